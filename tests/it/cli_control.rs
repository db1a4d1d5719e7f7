//! Commands speak with the daemon through its control socket: one line there, one line back.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use serde_json::{Value, json};

use crate::cli::{code, outboxd, printed, told};
use crate::config::{Folder, SMALL};

/// A daemon that gives one answer, and tells what it was asked.
fn daemon(folder: &Folder, answer: &Value) -> JoinHandle<Value> {
    let listener = UnixListener::bind(folder.path("outboxd.sock")).unwrap();
    let answer = answer.to_string();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
        writeln!(stream, "{answer}").unwrap();
        serde_json::from_str(&line).unwrap()
    })
}

/// What a command asks, and what it prints for an answer.
fn ask(arguments: &[&str], answer: &Value) -> (Value, String) {
    let folder = Folder::with(SMALL);
    let daemon = daemon(&folder, answer);
    let output = outboxd(&folder, arguments);
    assert_eq!(code(&output), 0, "{}", told(&output));
    (daemon.join().unwrap(), printed(&output))
}

#[test]
fn status_is_asked_for_and_drawn() {
    let answer = json!({"ok": true, "consumers": [
        {"name": "shop_to_lines", "state": "running", "lag_seconds": 61.5, "backlog_events": 7, "delivered_total": 12,
         "held_keys": 1, "dead_letters": 1, "detail": "key \u{202e}x held"},
    ]});
    let (asked, printed) = ask(&["status"], &answer);
    assert_eq!(asked, json!({"command": "status"}));
    assert_eq!(
        printed,
        "CONSUMER       STATE    LAG    BACKLOG  DELIVERED  HELD  DEAD  DETAIL\n\
         shop_to_lines  running  1m 1s  7        12         1     1     key \\u{202e}x held\n"
    );
    let (_, printed) = ask(&["status", "--json"], &answer);
    assert!(printed.contains("key \\u202ex held"));
    assert_eq!(serde_json::from_str::<Value>(&printed).unwrap(), answer);
}

#[test]
fn consumers_are_paused_and_resumed() {
    let (asked, printed) = ask(&["pause", "shop_to_lines"], &json!({"ok": true}));
    assert_eq!(asked, json!({"command": "pause", "consumer": "shop_to_lines"}));
    assert_eq!(printed, "shop_to_lines is paused\n");
    let (asked, _) = ask(&["resume", "shop_to_lines"], &json!({"ok": true}));
    assert_eq!(asked, json!({"command": "resume", "consumer": "shop_to_lines"}));
}

#[test]
fn dead_letters_are_selected() {
    let (asked, printed) =
        ask(&["dead-letters", "list", "--consumer", "a", "--limit", "5"], &json!({"ok": true, "dead_letters": []}));
    let expected = json!({"command": "dead-letters", "action": "list", "consumer": "a", "key": null, "id": null,
                          "older_than_seconds": null, "limit": 5});
    assert_eq!((asked, printed.as_str()), (expected, "none\n"));
    let (asked, printed) = ask(&["dead-letters", "retry", "--older-than", "90m"], &json!({"ok": true, "changed": 3}));
    let expected = json!({"command": "dead-letters", "action": "retry", "consumer": null, "key": null, "id": null,
                          "older_than_seconds": 5400});
    assert_eq!((asked, printed.as_str()), (expected, "3 will be tried again\n"));
    let discard = ["dead-letters", "discard", "--id", "e1", "--reason", "test data", "--yes"];
    let (asked, printed) = ask(&discard, &json!({"ok": true, "changed": 1}));
    let expected = json!({"command": "dead-letters", "action": "discard", "consumer": null, "key": null, "id": "e1",
                          "older_than_seconds": null, "reason": "test data"});
    assert_eq!((asked, printed.as_str()), (expected, "1 discarded\n"));
    let letter =
        json!({"consumer": "a", "id": "e1", "state": "dead", "attempts": 5, "payload": "{\"a\":\"\u{1b}[2J\"}"});
    let (asked, printed) = ask(&["dead-letters", "show", "e1"], &json!({"ok": true, "dead_letter": letter}));
    assert_eq!(asked, json!({"command": "dead-letters", "action": "show", "id": "e1", "consumer": null}));
    assert!(printed.contains("payload   {\"a\":\"\\u{1b}[2J\"}"), "{printed}");
}

#[test]
fn positions_are_shown_and_set() {
    let standing =
        json!({"consumer": "a", "source": "shop", "position": 7, "event_id": "e7", "head": 9, "updated_at": null});
    let (asked, printed) = ask(&["position", "show"], &json!({"ok": true, "positions": [standing]}));
    assert_eq!(asked, json!({"command": "position", "action": "show", "consumer": null}));
    assert!(printed.contains("a         shop    7         9     e7     -"), "{printed}");
    for (word, to) in [("first", json!("first")), ("head", json!("head")), ("12", json!({"position": 12}))] {
        let answer = json!({"ok": true, "position": 12, "previous": null});
        let (asked, printed) = ask(&["position", "set", "a", word, "--yes"], &answer);
        assert_eq!(asked, json!({"command": "position", "action": "set", "consumer": "a", "to": to}));
        assert_eq!(printed, "a: 12, was the beginning\n");
    }
    for (before, meaning) in [(7, "up to 5 events are skipped"), (20, "up to 8 events are sent again")] {
        let answer = json!({"ok": true, "position": 12, "previous": before});
        let (_, printed) = ask(&["position", "set", "a", "12", "--yes"], &answer);
        assert_eq!(printed, format!("a: 12, was {before}; {meaning}\n"));
    }
}

#[test]
fn consumers_are_listed_accepted_and_forgotten() {
    let known =
        json!({"name": "a", "kind": "relay", "source": "shop", "sink": null, "is_configured": false, "state": null});
    let (asked, printed) = ask(&["consumer", "list"], &json!({"ok": true, "consumers": [known]}));
    assert_eq!(asked, json!({"command": "consumer", "action": "list"}));
    assert!(printed.contains("a         relay  shop    -     no          -"), "{printed}");
    let (asked, _) = ask(&["consumer", "accept", "a"], &json!({"ok": true}));
    assert_eq!(asked, json!({"command": "consumer", "action": "accept", "consumer": "a"}));
    let (asked, _) = ask(&["consumer", "forget", "a", "--yes"], &json!({"ok": true}));
    assert_eq!(asked, json!({"command": "consumer", "action": "forget", "consumer": "a"}));
}

#[test]
fn a_refusal_is_told_with_its_remedy_and_exit_code() {
    let folder = Folder::with(SMALL);
    let answer =
        json!({"ok": false, "error": "there is no consumer `a\u{1b}[2J`", "remedy": "see `consumer list`", "exit": 65});
    let daemon = daemon(&folder, &answer);
    let output = outboxd(&folder, &["pause", "a"]);
    daemon.join().unwrap();
    assert_eq!(code(&output), 65);
    assert_eq!(told(&output), "error: there is no consumer `a\\u{1b}[2J`\n  fix: see `consumer list`\n");
}

#[test]
fn a_daemon_that_dies_while_it_is_asked_is_unavailable() {
    let folder = Folder::with(SMALL);
    let listener = UnixListener::bind(folder.path("outboxd.sock")).unwrap();
    let server = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let output = outboxd(&folder, &["status"]);
    server.join().unwrap();
    assert_eq!(code(&output), 69, "{}", told(&output));
}
