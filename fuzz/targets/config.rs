//! A configuration: any file and any variables (`NAME=value` lines behind a line `---`). Every mistake is told with its place, and what is taken can be shown
//! and taken again.

#![no_main]

use std::ffi::OsString;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
});

fuzz_target!(|text: &str| {
    let (file, variables) = text.split_once("\n---\n").unwrap_or((text, ""));
    let path = FOLDER.path().join("outboxd.toml");
    std::fs::write(&path, file).unwrap();
    let variable = |line: &str| {
        let (name, value) = line.split_once('=')?;
        Some((OsString::from(format!("OUTBOXD_{name}")), OsString::from(value)))
    };
    match outboxd::config::load_with(&path, variables.lines().filter_map(variable)) {
        Ok(loaded) => {
            let _ = format!("{:?}", loaded.config);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
