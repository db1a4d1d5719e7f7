//! When a row was published, in whatever form its application writes it; and what is not said well.

use rusqlite::Connection;
use serde_json::Value;

use super::{config, refused, run, told};
use crate::support::eventsource::{count, enqueue_many, make};
use crate::support::process::Scene;
use crate::support::rig::open;

const PY: &str = "[daemon]\nadmin = \"127.0.0.1:0\"\n[sources.shop]\npath = \"app.db\"\npreset = \"eventsource-py\"\nread = \"outbox\"\n";

fn ids(app: &Connection) -> Vec<String> {
    let mut statement = app.prepare("SELECT id FROM event_outbox ORDER BY id").unwrap();
    let ids = statement.query_map([], |row| row.get(0)).unwrap();
    ids.map(Result::unwrap).collect()
}

/// Its own marks, as its releases and outboxd write them: only what is published goes, and only what has been for long.
#[test]
fn eventsource_pys_outbox_loses_what_was_published_long_ago() {
    let scene = Scene::without_a_file(&config(PY, "what = \"published\"\nolder_than = \"48h\"", &["a"]));
    let app = make(&scene.path("app.db"), "g3");
    app.execute("DELETE FROM event_outbox", []).unwrap();
    enqueue_many(&app, 12, 3);
    let mark = |row: i64, status: &str, time: &str| {
        let sql = format!("UPDATE event_outbox SET status = ?2, published_at = {time} WHERE id = printf('%06d', ?1)");
        app.execute(&sql, rusqlite::params![row, status]).unwrap();
    };
    mark(0, "published", "strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now', '-3 days')");
    mark(1, "published", "datetime('now', '-3 days')");
    mark(2, "published", "strftime('%Y-%m-%dT%H:%M:%SZ', 'now', '-3 days')");
    mark(3, "published", "strftime('%Y-%m-%dT%H:%M:%S+05:00', 'now', '-44 hours')");
    mark(4, "published", "strftime('%Y-%m-%dT%H:%M:%S+05:00', 'now', '-42 hours')");
    mark(5, "published", "datetime('now', '-47 hours')");
    mark(6, "failed", "datetime('now', '-3 days')");
    mark(7, "pending", "datetime('now', '-3 days')");
    // Published, and nothing says when: it is as old as the event.
    mark(8, "published", "NULL");
    mark(9, "published", "datetime('now', '+3 days')");
    // Row 3 is 49 hours old, row 4 47; the newest stays by the rule of tables without AUTOINCREMENT.
    app.execute("UPDATE event_outbox SET created_at = datetime('now', '-9 days') WHERE id = '000008'", []).unwrap();
    let said = told(&run(&scene));
    assert!(said.contains(": 5 rows of event_outbox deleted; 3 are younger than older_than"), "{said}");
    assert_eq!(ids(&app), ["000004", "000005", "000006", "000007", "000009", "000010", "000011"]);
    // What is no time is never guessed at.
    mark(9, "published", "'soon'");
    let said = refused(&run(&scene));
    assert!(
        said.contains(
            "of 1 it is not known how old they are, and they stay (row 10 of event_outbox: \"soon\" is no time)"
        ),
        "{said}"
    );
    assert_eq!(count(&app, "event_outbox"), 7);
}

/// One that is held although somebody has marked it stays: its retry would not find it.
#[test]
fn a_held_row_stays_whatever_its_mark_says() {
    let scene = Scene::without_a_file(&config(PY, "what = \"published\"\nkeep_newest = 0", &["a"]));
    let app = make(&scene.path("app.db"), "g3");
    app.execute("DELETE FROM event_outbox", []).unwrap();
    enqueue_many(&app, 5, 3);
    app.execute("UPDATE event_outbox SET status = 'published', published_at = created_at WHERE id < '000004'", [])
        .unwrap();
    told(&scene.outboxd(&["job", "run", "tidy", "--dry-run"]));
    assert_eq!(count(&app, "event_outbox"), 5);
    // The state is made inside, by the first run.
    app.execute("UPDATE event_outbox SET status = 'pending' WHERE id = '000002'", []).unwrap();
    assert!(told(&run(&scene)).contains(": 3 rows of event_outbox deleted"));
    let held = "INSERT INTO outboxd_held (consumer, key, ordinal, position, row_id, event_id, state, attempts, held_at)
                VALUES ('to_a', x'61', 0, 3, '000002', 'e-000002', 'dead', 5, '')";
    app.execute(held, []).unwrap();
    app.execute("UPDATE event_outbox SET status = 'published' WHERE id = '000002'", []).unwrap();
    let said = told(&run(&scene));
    assert!(
        said.contains(": 0 rows of event_outbox deleted; 1 stay, since they are the newest of their kind, are held"),
        "{said}"
    );
    app.execute("DELETE FROM outboxd_held", []).unwrap();
    assert!(told(&run(&scene)).contains(": 1 rows of event_outbox deleted"));
    assert_eq!(ids(&app), ["000004"]);
}

fn by_hand(on_delivered: &str) -> String {
    format!(
        "[daemon]\nadmin = \"127.0.0.1:0\"\n[sources.shop]\npath = \"app.db\"\ntable = \"mail\"\nrow = \"n\"\nid = \"n\"\ntype = {{ constant = \"T\" }}\n\
         payload = \"body\"\npending = {{ sent = {{ null = true }} }}\n{on_delivered}\n"
    )
}

/// A table of an application's own, whose time of delivery is a number, as its mark says.
#[test]
fn tables_mapped_by_hand_are_read_in_their_own_time() {
    for (word, unit) in [("{now_s}", 1_i64), ("{now_ms}", 1_000), ("{now_us}", 1_000_000)] {
        let mark = format!("on_delivered = {{ set = {{ sent = \"{word}\" }} }}");
        let scene =
            Scene::without_a_file(&config(&by_hand(&mark), "what = \"published\"\nolder_than = \"1h\"", &["a"]));
        let app = open(&scene.path("app.db"));
        app.execute_batch("CREATE TABLE mail (n INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT, sent)").unwrap();
        for (n, age) in [(1, Some(7_200)), (2, Some(60)), (3, None), (4, Some(7_200))] {
            let sql = "INSERT INTO mail (n, body, sent) VALUES (?1, 'x', (unixepoch() - ?2) * ?3)";
            app.execute(sql, rusqlite::params![n, age, unit]).unwrap();
        }
        let said = told(&run(&scene));
        assert!(said.contains(": 2 rows of mail deleted; 1 are younger"), "{word}: {said}");
        assert_eq!(count(&app, "mail WHERE n IN (2, 3)"), 2);
        // Text where a number is wanted, and a number that is no time.
        app.execute_batch("INSERT INTO mail (n, body, sent) VALUES (5, 'x', 'yes'), (6, 'x', 9223372036854775807)")
            .unwrap();
        assert!(
            refused(&run(&scene))
                .contains("of 2 it is not known how old they are, and they stay (row 5 of mail: \"yes\" is no time)")
        );
        assert_eq!(count(&app, "mail"), 4);
    }
}

/// What cannot be deleted without taking something from somebody is refused before anything is opened.
#[test]
fn what_nobody_can_know_is_refused() {
    let shop = crate::support::process::SHOP;
    let log = shop.replace("\"outbox\"\n\"", "").replace("read = \"outbox\"", "read = \"events\"");
    let old = "older_than = \"1h\"";
    let also = |source: &str| format!("{shop}\n[sources.also]\npath = \"app.db\"\n{source}\n");
    let query = also(
        "query = \"SELECT * FROM outbox\"\nposition = \"position\"\nid = \"id\"\ntype = \"type\"\npayload = \"payload\"",
    );
    let gone = by_hand("on_delivered = \"delete\"");
    for (source, keys, relays, key, what) in [
        (shop, "what = \"published\"", &["a"][..], "older_than", "which rows stay must be said"),
        (shop, &format!("what = \"all\"\n{old}"), &["a"], "what", "\"all\" is not a choice here"),
        (
            shop,
            &format!("what = \"published\"\n{old}"),
            &[],
            "source",
            "no relay carries the rows of outbox, and so none is published",
        ),
        (&log, &format!("what = \"published\"\n{old}"), &["a"], "source", "it reads an event log"),
        (
            &query,
            &format!("what = \"published\"\n{old}"),
            &["a"],
            "source",
            "[sources.also] reads outbox in a query of its own",
        ),
        (
            &gone,
            &format!("what = \"published\"\n{old}"),
            &["a"],
            "source",
            "its rows leave the table when they are delivered",
        ),
        (&log, &format!("what = \"archived\"\n{old}"), &["a"], "history_may_go", "events that are deleted are gone"),
        (
            shop,
            &format!("what = \"archived\"\nhistory_may_go = true\n{old}"),
            &["a"],
            "source",
            "reads another table than `events`",
        ),
        (
            shop,
            &format!("what = \"runs\"\nhistory_may_go = true\n{old}"),
            &["a"],
            "history_may_go",
            "only what = \"archived\"",
        ),
    ] {
        let scene = Scene::without_a_file(&config(source, keys, relays));
        let output = scene.outboxd(&["check"]);
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(78), "{keys}: {said}");
        assert!(said.contains(&format!("jobs.tidy.{key}")) && said.contains(what), "{keys}: {said}");
    }
}

/// What stands in the way in the file is told with its remedy, and nothing goes.
#[test]
fn a_table_that_others_refer_to_is_left_alone() {
    let scene = Scene::new(&config(crate::support::process::SHOP, "what = \"published\"\nkeep_newest = 0", &["a"]));
    let app = open(&scene.path("app.db"));
    super::add(&app, 3, super::OLD);
    super::checkpoint(&super::state(&scene), "to_a", 3);
    super::add(&app, 3, super::OLD);
    super::checkpoint(&super::state(&scene), "to_a", 6);
    app.execute_batch("CREATE TABLE note (position INTEGER REFERENCES outbox (position) ON DELETE CASCADE)").unwrap();
    let said = refused(&run(&scene));
    assert!(
        said.contains("the table note refers to outbox by a foreign key")
            && said.contains("Remedy: make note without it"),
        "{said}"
    );
    app.execute_batch(
        "DROP TABLE note; CREATE TRIGGER stay BEFORE DELETE ON outbox BEGIN SELECT raise(ABORT, 'rows stay here'); END",
    )
    .unwrap();
    let said = refused(&run(&scene));
    assert!(
        said.contains("rows of outbox cannot be deleted: rows stay here. Nothing of this slice was deleted"),
        "{said}"
    );
    let json: Value = serde_json::from_str(&told(&scene.outboxd(&["job", "list", "--json"]))).unwrap();
    assert_eq!(json["jobs"][0]["last"]["result"], "failed");
}
