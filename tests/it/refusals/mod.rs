//! What cannot be relayed safely is refused, with what was found and the remedy: seen in the status, in `/readyz` and by `outboxd check`; what
//! was refused was not touched, and when it is mended, `outboxd resume` goes on.

mod http;
mod places;
mod rights;
mod schema;
mod states;

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::process::{Daemon, Scene};

const PATIENCE: Duration = Duration::from_secs(20);

/// A relay `r` of `path`, whose other keys are these, to `out.ndjson`.
fn config(path: &str, keys: &str) -> String {
    format!(
        "[daemon]\nadmin = \"127.0.0.1:0\"\n[sources.s]\npath = \"{path}\"\npreset = \"outboxd\"\nread = \"outbox\"\n{keys}\n\
         [sinks.out]\ntype = \"file\"\npath = \"out.ndjson\"\n[relays.r]\nsource = \"s\"\nsink = \"out\"\nstart = \"first\"\n"
    )
}

/// It is halted for this reason, and says so wherever it is asked.
fn halts(daemon: &mut Daemon, words: &[&str]) -> String {
    let status = daemon.until_state("r", "halted", PATIENCE);
    let detail = told(&status, words);
    assert!(detail.contains("Remedy: "), "{detail}");
    let (code, body) = daemon.get("/readyz?consumers&verbose");
    assert!(code == 503 && body.contains(words[0]), "{code} {body}");
    assert_eq!(daemon.get("/livez").0, 200, "a halt is no hang");
    detail
}

fn told(status: &Value, words: &[&str]) -> String {
    let detail = status["detail"].as_str().unwrap();
    for word in words {
        assert!(detail.contains(word), "{word:?} is not said in {detail}");
    }
    detail.to_owned()
}

/// `outboxd check` says the same, and ends with 65.
fn check_tells(scene: &Scene, words: &[&str]) {
    let checked = scene.outboxd(&["-c", "outboxd.toml", "check", "--offline"]);
    let said = String::from_utf8_lossy(&checked.stdout);
    assert_eq!(checked.status.code(), Some(65), "{said}{}", String::from_utf8_lossy(&checked.stderr));
    for word in words {
        assert!(said.contains(word), "{word:?} is not said in {said}");
    }
}

fn delivered(scene: &Scene) -> usize {
    std::fs::read_to_string(scene.path("out.ndjson")).unwrap_or_default().lines().count()
}

/// The files beside a database that SQLite makes.
fn side_files(database: &Path) -> usize {
    ["-wal", "-shm"].iter().filter(|end| Path::new(&format!("{}{end}", database.display())).exists()).count()
}
