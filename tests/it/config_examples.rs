//! Every example configuration that is shipped is one that is taken.

use std::path::Path;

use crate::support::process::Scene;

// A build without a broker's client refuses its sinks.
#[cfg(all(feature = "kafka", feature = "amqp", feature = "http"))]
#[test]
fn every_example_is_taken() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut taken = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "toml") {
            if let Err(error) = outboxd::config::load_with(&path, []) {
                panic!("{error}");
            }
            taken.push(path.file_stem().unwrap().to_string_lossy().into_owned());
        }
    }
    taken.sort();
    assert_eq!(taken, ["eventsource-py", "file", "http", "kafka", "outboxd", "rabbitmq", "shop"]);
}

/// The command itself finds nothing wrong: files that are not there yet are waited for.
#[cfg(all(feature = "kafka", feature = "amqp", feature = "http"))]
#[test]
fn every_example_passes_check() {
    for name in ["eventsource-py", "file", "http", "kafka", "outboxd", "rabbitmq", "shop"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name).with_extension("toml");
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_outboxd"))
            .args(["check", "--offline", "-c"])
            .arg(&path)
            .env_clear()
            .output()
            .unwrap();
        let told = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&told));
    }
}

/// What the documents say to write into a configuration can be written there: each section, with what stands before it in its document where it
/// has no source of its own; with the sources alone where it is another way to write what stands there.
#[cfg(all(feature = "kafka", feature = "amqp", feature = "http"))]
#[test]
fn the_configurations_in_the_documents_pass_check() {
    let mut tried = 0;
    for name in ["docs/PROJECTIONS.md", "docs/JOBS.md", "docs/BACKUP.md", "docs/MIGRATING.md"] {
        let document = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
        let mut before = String::new();
        for block in document.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()) {
            if block.contains("[sources.") {
                before.clear();
            } else if before.contains(block.lines().next().unwrap()) {
                let sections = before.split("\n[").map(|section| section.trim_start_matches('['));
                let sources = sections.filter(|section| section.starts_with("sources."));
                before = sources.map(|source| format!("[{source}\n")).collect();
            }
            before = before + "\n" + block;
            let scene = Scene::without_a_file(&before);
            scene.write("s3.key", "secret");
            let output = scene.outboxd(&["check", "--offline"]);
            let told = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert!(output.status.success(), "{name}:\n{before}\n{told}");
            tried += 1;
        }
    }
    assert!(tried >= 11, "{tried}");
}

#[test]
fn the_unit_waits_longer_for_a_stop_than_the_daemon_drains() {
    let unit = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/outboxd.service")).unwrap();
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    let stop = std::time::Duration::from_secs(value("TimeoutStopSec=").parse().unwrap());
    let folder = crate::config::Folder::with(crate::config::SMALL);
    assert!(stop > folder.load(&[]).unwrap().config.daemon.drain_timeout);
    assert_eq!(value("RestartPreventExitStatus="), "64 77 78");
    // What the unit sets is what the daemon reads.
    let set = value("Environment=OUTBOXD_").split_once('=').unwrap();
    let config = folder.load(&[(&format!("OUTBOXD_{}", set.0), set.1)]).unwrap().config;
    assert_eq!(config.daemon.control, Path::new("/run/outboxd/outboxd.sock"));
}
