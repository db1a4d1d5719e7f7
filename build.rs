//! Lists `config/presets`, so that a new preset is one file there.

use std::path::Path;
use std::{env, fs};

#[expect(clippy::disallowed_methods, reason = "cargo speaks to a build script by its environment")]
fn main() {
    println!("cargo::rerun-if-changed=config/presets");
    let folder = Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("config/presets");
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("the folder can be read").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "toml"));
    paths.sort();
    let line = |path: &std::path::PathBuf| {
        let name = path.file_stem().expect("it has a name before its end");
        format!("    ({name:?}, include_str!({path:?})),\n")
    };
    let list = format!("&[\n{}]\n", paths.iter().map(line).collect::<String>());
    let out = Path::new(&env::var_os("OUT_DIR").expect("cargo sets it")).join("presets.rs");
    fs::write(&out, list).unwrap_or_else(|error| panic!("{}: {error}", out.display()));
}
