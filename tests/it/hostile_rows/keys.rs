//! Hostile rows with keys that are held, rows that have no name, and an operator who is told of them.

use std::time::Duration;

use super::oracle::{Table, obeyed};
use super::{loose, nothing_printed_is_obeyed};
use crate::support::process::{Daemon, Scene, shared_machine};
use crate::support::readers;

/// What is wrong with an event and how it is called must not keep others from flowing.
fn config(table: &str, on_reject: &str) -> String {
    let (preset, read, start) = match table {
        "outbox" => ("outboxd", "outbox", "start = \"first\""),
        _ => ("eventsource-py", "outbox", ""),
    };
    format!(
        "[daemon]\nadmin = \"127.0.0.1:0\"\n[sources.shop]\npath = \"app.db\"\npreset = \"{preset}\"\nread = \"{read}\"\n\
         [sinks.lines]\ntype = \"file\"\npath = \"lines.ndjson\"\n\
         [relays.r]\nsource = \"shop\"\nsink = \"lines\"\nattempts_max = 1\non_reject = \"{on_reject}\"\n{start}\n"
    )
}

fn delivered(scene: &Scene) -> Vec<String> {
    readers::lines(&scene.path("lines.ndjson")).into_iter().map(|arrival| arrival.id).collect()
}

fn states(daemon: &Daemon) -> Vec<(i64, String)> {
    let mut states: Vec<_> = daemon
        .dead_letters()
        .iter()
        .map(|letter| (letter["position"].as_i64().unwrap(), letter["state"].as_str().unwrap().to_owned()))
        .collect();
    states.sort();
    states
}

#[test]
fn what_has_neither_key_nor_id_holds_nobody_else() {
    let _machine = shared_machine();
    let scene = Scene::without_a_file(&config("outbox", "hold"));
    let application = loose(&scene.path("app.db"), Table::Outbox);
    // Two without a key and an id, two of one key of which the first is no text, one that has nothing to do with them.
    application
        .execute_batch(
            "INSERT INTO outbox (id, key, type) VALUES (NULL, NULL, 'T'), ('', NULL, 'T'), (x'ff1b', x'00ff', 'T'), ('later', x'00ff', 'T'), \
             ('free', 'free', 'T'), ('alone', NULL, 'T')",
        )
        .unwrap();
    let mut daemon = scene.daemon();
    daemon.until_settled("r", 6, Duration::from_secs(20));
    assert_eq!(delivered(&scene), ["free", "alone"]);
    let dead = |at: i64| (at, "dead".to_owned());
    assert_eq!(states(&daemon), [dead(1), dead(2), dead(3), (4, "waiting".to_owned())]);
    nothing_printed_is_obeyed(&scene, Some(&daemon), &["r"]);
}

#[test]
fn an_operator_is_told_of_a_hostile_id_without_harm() {
    let _machine = shared_machine();
    let scene = Scene::without_a_file(&config("outbox", "halt"));
    let application = loose(&scene.path("app.db"), Table::Outbox);
    let id = "\u{1b}]0;owned\u{7}\u{202e}\u{9b}2J\r\n";
    application.execute("INSERT INTO outbox (id, key, type) VALUES (?1, 'k', x'ff')", [id]).unwrap();
    let mut daemon = scene.daemon();
    let status = daemon.until_state("r", "halted", Duration::from_secs(20));
    assert!(status["detail"].as_str().unwrap().contains(id), "{status}");
    nothing_printed_is_obeyed(&scene, Some(&daemon), &["r"]);
    for arguments in [&["dead-letters", "show", id][..], &["--json", "dead-letters", "show", id]] {
        let output = scene.outboxd(arguments);
        assert!(output.status.success());
        assert_eq!(obeyed(&output.stdout), None, "{arguments:?}");
    }
    let discard = scene.outboxd(&["--yes", "dead-letters", "discard", "--id", id, "--reason", id]);
    assert!(discard.status.success(), "{}", String::from_utf8_lossy(&discard.stderr));
    assert!(scene.outboxd(&["resume", "r"]).status.success());
    daemon.until_state("r", "running", Duration::from_secs(20));
    assert_eq!(obeyed(daemon.log().as_bytes()), None, "{}", daemon.log_tail());
}

#[test]
fn a_row_without_a_name_halts_its_relay_until_it_is_mended() {
    let _machine = shared_machine();
    let scene = Scene::without_a_file(&config("event_outbox", "hold"));
    let application = loose(&scene.path("app.db"), Table::ByRow);
    let insert = "INSERT INTO event_outbox (id, event_id, event_type, aggregate_id, event_data) VALUES (?1, ?2, 'T', 'k', '{\"payload\":1}')";
    application.execute(insert, (b"a\xff\x1b".as_slice(), "blob")).unwrap();
    application.execute(insert, (rusqlite::types::Null, "nameless")).unwrap();
    let mut daemon = scene.daemon();
    let status = daemon.until_state("r", "halted", Duration::from_secs(20));
    let detail = status["detail"].as_str().unwrap();
    assert!(detail.contains("rowid 2") && detail.contains("Remedy"), "{status}");
    application.execute("UPDATE event_outbox SET id = 'named' WHERE rowid = 2", []).unwrap();
    assert!(scene.outboxd(&["resume", "r"]).status.success());
    daemon.until("r", "through", Duration::from_secs(20), |status| status["backlog_events"] == 0);
    assert_eq!(delivered(&scene), ["blob", "nameless"]);
}
