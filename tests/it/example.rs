//! docs/EXAMPLE.md, run as it says: its commands, one after the other in one shell, on config/shop.toml; and they print what it says they print.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

#[test]
fn the_example_runs_as_the_document_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    // Whatever else runs on this machine: the port is the one thing that is another. It is none of those that the system gives out by itself.
    let mut ports = (0..10_000).map(|n| 20_000 + (std::process::id() + n) % 10_000);
    let address = ports.find_map(|port| TcpListener::bind(format!("127.0.0.1:{port}")).ok()?.local_addr().ok());
    let address = address.expect("a port is free").to_string();
    let ported = |text: String| {
        assert!(text.contains("127.0.0.1:9464"));
        text.replace("127.0.0.1:9464", &address)
    };
    let document = ported(read("docs/EXAMPLE.md"));
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("config")).unwrap();
    std::fs::write(folder.path().join("config/shop.toml"), ported(read("config/shop.toml"))).unwrap();

    let blocks: Vec<(&str, &str)> =
        document.split("```").skip(1).step_by(2).map(|block| block.split_once('\n').unwrap()).collect();
    let mut script = "set -e\ntrap 'exit 1' TERM\ntrap 'kill -9 $daemon 2> /dev/null || :' EXIT\n".to_owned();
    for (n, (_, commands)) in blocks.iter().enumerate().filter(|(_, block)| block.0 == "sh") {
        let printed = folder.path().join(format!("printed-{n}"));
        script.push_str(&format!("{{\n{commands}}} > {} 2>&1\n", printed.display()));
    }
    // It has ended, and its number is another's.
    script.push_str("daemon=\n");
    let programs = Path::new(env!("CARGO_BIN_EXE_outboxd")).parent().unwrap().display();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
    let ended = Command::new("timeout")
        .args(["-k", "5", "150", "sh", "-c", &script])
        .current_dir(folder.path())
        .env("PATH", path)
        .env_remove("OUTBOXD_CONFIG")
        .status()
        .unwrap();

    let mut printed = String::new();
    let mut compared = 0;
    for (n, (language, text)) in blocks.iter().enumerate() {
        match *language {
            "sh" => {
                let file = folder.path().join(format!("printed-{n}"));
                printed = std::fs::read_to_string(file).unwrap_or_else(|_| panic!("it came no further than {printed}"));
            }
            "text" => {
                assert!(is_as_told(&printed, text), "the document says\n{text}\nand there comes\n{printed}");
                compared += 1;
            }
            other => panic!("{other} is not run"),
        }
    }
    assert!(ended.success(), "{ended}: {printed}");
    assert!(compared >= 8, "{compared} were compared");
}

/// Line by line; `…` stands for whatever is there.
fn is_as_told(printed: &str, told: &str) -> bool {
    let fits = |(printed, told): (&str, &str)| match told.split_once('…') {
        Some((before, after)) => printed.strip_prefix(before).is_some_and(|rest| rest.ends_with(after)),
        None => printed == told,
    };
    printed.lines().count() == told.lines().count() && printed.lines().zip(told.lines()).all(fits)
}

#[test]
fn what_is_printed_otherwise_is_noticed() {
    assert!(is_as_told("a in 5ms: b\nc\n", "a in …: b\nc\n"));
    for other in ["a in 5ms: d\nc\n", "b in 5ms: b\nc\n", "a in 5ms: b\nd\n", "a in 5ms: b\n", ""] {
        assert!(!is_as_told(other, "a in …: b\nc\n"), "{other}");
    }
}
