//! Every way in which a command ends has its exit code, and says what to do.

use std::process::{Command, Output, Stdio};

use crate::config::{Folder, SMALL};

/// The program, in a folder, with nothing of ours in its environment.
pub fn outboxd(folder: &Folder, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outboxd"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OUTBOXD")) {
        command.env_remove(name);
    }
    command.current_dir(folder.dir.path()).args(arguments).stdin(Stdio::null()).output().unwrap()
}

pub fn code(output: &Output) -> i32 {
    output.status.code().expect("no signal ended it")
}

pub fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn help_and_version_end_well() {
    let folder = Folder::with(SMALL);
    for arguments in [&["--help"][..], &["--version"], &["dead-letters", "discard", "--help"]] {
        assert_eq!(code(&outboxd(&folder, arguments)), 0, "{arguments:?}");
    }
}

#[test]
fn a_wrong_command_line_is_64() {
    let folder = Folder::with(SMALL);
    for arguments in [
        &[][..],
        &["rnu"],
        &["status", "--colour"],
        &["position", "set", "shop_to_lines", "somewhere"],
        &["dead-letters", "retry"],
        &["dead-letters", "retry", "--all", "--id", "1"],
        &["dead-letters", "retry", "--older-than", "1 fortnight"],
        &["dead-letters", "discard", "--all", "--reason", " ", "--yes"],
        &["status", "--watch"],
    ] {
        assert_eq!(code(&outboxd(&folder, arguments)), 64, "{arguments:?}");
    }
}

#[test]
fn what_cannot_be_undone_asks_or_is_told_yes() {
    let folder = Folder::with(SMALL);
    for arguments in [
        &["dead-letters", "discard", "--all", "--reason", "old"][..],
        &["position", "set", "shop_to_lines", "head"],
        &["consumer", "forget", "shop_to_lines"],
    ] {
        let unasked = outboxd(&folder, arguments);
        assert_eq!(code(&unasked), 64, "{arguments:?}");
        assert!(told(&unasked).contains("add --yes"), "{}", told(&unasked));
        // Told yes, it goes on to the daemon, which does not run.
        assert_ne!(code(&outboxd(&folder, &[arguments, &["--yes"]].concat())), 64, "{arguments:?}");
    }
}

#[test]
fn a_wrong_configuration_is_78_and_all_is_told() {
    let folder = Folder::with(&SMALL.replace("source = \"shop\"", "source = \"shp\"\ncolour = 1"));
    for arguments in [&["config", "show"][..], &["run"], &["check"], &["status"], &["health"]] {
        let output = outboxd(&folder, arguments);
        assert_eq!(code(&output), 78, "{arguments:?}: {}", told(&output));
        assert!(
            told(&output).contains("did you mean \"shop\"?") && told(&output).contains("relays.shop_to_lines.colour")
        );
        assert!(told(&output).ends_with("The configuration has 2 errors; nothing was started or changed.\n"));
    }
}

#[test]
fn no_configuration_is_78() {
    let folder = Folder::with(SMALL);
    let output = outboxd(&folder, &["-c", "elsewhere.toml", "config", "show"]);
    assert_eq!((code(&output), told(&output).contains("elsewhere.toml")), (78, true));
}

#[test]
fn the_configuration_is_shown_with_its_origins() {
    let folder = Folder::with(SMALL);
    let output = outboxd(&folder, &["config", "show", "--origin"]);
    assert_eq!(code(&output), 0, "{}", told(&output));
    assert!(printed(&output).contains("preset = \"outboxd\"  # outboxd.toml, line 4\n"), "{}", printed(&output));
    let json: serde_json::Value =
        serde_json::from_str(&printed(&outboxd(&folder, &["config", "show", "--json"]))).unwrap();
    assert_eq!(json["sources.shop.path"], "\"shop.db\"");
}

#[test]
fn completions_are_printed_for_every_shell() {
    let folder = Folder::with(SMALL);
    for shell in ["bash", "zsh", "fish"] {
        let output = outboxd(&folder, &["completions", shell]);
        assert_eq!(code(&output), 0);
        assert!(printed(&output).contains("dead-letters"), "{shell}");
    }
}

#[test]
fn health_is_69_when_nobody_answers() {
    let folder = Folder::with(SMALL);
    assert_eq!(code(&outboxd(&folder, &["health"])), 69);
    assert_eq!(code(&outboxd(&folder, &["health", "--address", "127.0.0.1:1"])), 69);
}

#[test]
fn health_is_what_the_admin_address_says() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answers =
        ["HTTP/1.1 200 OK\r\n\r\nok", "HTTP/1.1 503 Service Unavailable\r\n\r\nrelay \u{1b}[2Jhalted", "nonsense"];
    let server = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).unwrap();
            asked.push(String::from_utf8_lossy(&request[..length]).lines().next().unwrap().to_owned());
            stream.write_all(answer.as_bytes()).unwrap();
        }
        asked
    });
    let folder = Folder::with(SMALL);
    assert_eq!(code(&outboxd(&folder, &["health", "--address", &address])), 0);
    let halted = outboxd(&folder, &["health", "--ready", "--address", &address]);
    assert_eq!(code(&halted), 69);
    assert!(told(&halted).contains("/readyz says 503: relay \\u{1b}[2Jhalted"), "{}", told(&halted));
    assert_eq!(code(&outboxd(&folder, &["health", "--address", &address])), 69);
    assert_eq!(server.join().unwrap(), ["GET /livez HTTP/1.1", "GET /readyz HTTP/1.1", "GET /livez HTTP/1.1"]);
}
