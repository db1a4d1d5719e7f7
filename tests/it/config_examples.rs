//! Every example configuration that is shipped is one that is taken.

use std::path::Path;

use outboxd::config;

#[test]
fn every_example_is_taken() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut taken = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "toml") {
            if let Err(error) = config::load_with(&path, []) {
                panic!("{error}");
            }
            taken.push(path.file_stem().unwrap().to_string_lossy().into_owned());
        }
    }
    taken.sort();
    assert_eq!(taken, ["eventsource-py", "file", "kafka", "outboxd", "rabbitmq"]);
}
