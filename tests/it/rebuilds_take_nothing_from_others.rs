//! A rebuild has its file for itself, leaves to others what is theirs, and comes to no dead end.

use std::time::Duration;

use outboxd::config;
use outboxd::consumer::Settings;
use outboxd::consumer::rebuild::{Purpose, Scratch};
use serde_json::{Value, json};

use crate::support::events::{EVENTS, Shop, TOTALS, standing};
use crate::support::process::{Scene, shared_machine};
use crate::support::rig::open;

const PATIENCE: Duration = Duration::from_secs(30);

fn told(scene: &Scene, arguments: &[&str], code: i32) -> String {
    let output = scene.outboxd(arguments);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    text
}

fn settle(scene: &Scene, consumers: &[&str], shop: &Shop) {
    let mut daemon = scene.daemon();
    for consumer in consumers {
        daemon.until_settled(consumer, shop.head(), PATIENCE);
    }
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
}

fn projection(scene: &Scene) -> Settings {
    config::load_with(&scene.path("outboxd.toml"), Vec::new()).unwrap().config.projections[0].clone()
}

fn one<T: rusqlite::types::FromSql>(scene: &Scene, file: &str, sql: &str) -> T {
    open(&scene.path(file)).query_row(sql, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn dropped(scene: &Scene, projection: &str) -> Value {
    let text = told(scene, &["rebuild", projection, "--drop", "--yes", "--json"], 0);
    serde_json::from_str::<Value>(&text).unwrap()["dropped"].clone()
}

fn scratches(scene: &Scene) -> Vec<String> {
    let names = std::fs::read_dir(scene.path(".")).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter_map(|name| name.into_string().ok()).filter(|name| name.contains("-rebuild-")).collect()
}

/// The second is told who the first is, and touches nothing of what that one makes.
#[test]
fn two_makers_of_one_projection_do_not_meet() {
    let _machine = shared_machine();
    let scene = Scene::new(&[EVENTS, TOTALS].concat());
    let shop = Shop::of(&scene);
    shop.count(50, 7);
    settle(&scene, &["totals"], &shop);
    for (command, other, purpose) in [("rebuild", "verify", Purpose::Rebuild), ("verify", "rebuild", Purpose::Verify)] {
        let first = Scratch::claim(&projection(&scene), purpose).unwrap();
        std::fs::write(first.path(), "what the first has made").unwrap();
        let text = told(&scene, &[command, "totals"], 75);
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
        assert_eq!(std::fs::read_to_string(first.path()).unwrap(), "what the first has made");
        told(&scene, &[other, "totals"], 0);
        first.remove();
        told(&scene, &[command, "totals"], 0);
    }
    assert_eq!(scratches(&scene), [""; 0]);
}

/// What refused the events was mended where the statements look: that is looked at anew, however often it was tried before.
#[test]
fn a_rebuild_that_refused_events_begins_anew_when_they_are_mended() {
    let _machine = shared_machine();
    let config = "
[projections.priced]
source = \"shop\"
path = \"read.db\"
on_reject = \"halt\"
tables = [\"priced\"]
reads = [\"prices\"]
schema = \"CREATE TABLE priced (id TEXT PRIMARY KEY, price INTEGER NOT NULL) STRICT\"
[projections.priced.on]
Counted = \"INSERT INTO priced SELECT :id, (SELECT price FROM prices)\"
";
    let scene = Scene::new(&[EVENTS, config].concat());
    let file = open(&scene.path("read.db"));
    file.execute_batch("CREATE TABLE prices (price ANY) STRICT; INSERT INTO prices VALUES (7)").unwrap();
    let shop = Shop::of(&scene);
    shop.count(30, 7);
    settle(&scene, &["priced"], &shop);
    file.execute_batch("UPDATE prices SET price = NULL").unwrap();
    // All of them are counted, also where the first one would halt it.
    let text = told(&scene, &["rebuild", "priced"], 65);
    assert!(text.contains("7 events were refused"), "{text}");
    assert_eq!(one::<i64>(&scene, "read.db", "SELECT sum(price) FROM priced"), 7 * 30);
    file.execute_batch("UPDATE prices SET price = 8").unwrap();
    told(&scene, &["rebuild", "priced"], 0);
    assert_eq!(one::<i64>(&scene, "read.db", "SELECT sum(price) FROM priced"), 8 * 30);
    assert_eq!(scratches(&scene), [""; 0]);
}

/// What the statements read of others is brought in slices: all of it, with every value as it is there.
#[test]
fn what_a_rebuild_reads_of_others_is_the_whole_of_it() {
    let _machine = shared_machine();
    let config = "
[projections.summed]
source = \"shop\"
path = \"read.db\"
tables = [\"summed\"]
reads = [\"many\", \"named\", \"odd\", \"seen\"]
schema = \"CREATE TABLE summed (id TEXT PRIMARY KEY, n ANY, name ANY, odd ANY, seen ANY) STRICT\"
[projections.summed.on]
Counted = '''INSERT INTO summed SELECT :id, (SELECT count(*) || ' ' || sum(n) FROM many), (SELECT group_concat(name) FROM named),
    (SELECT group_concat(typeof(value)) FROM odd), (SELECT count(*) FROM seen)'''
";
    let scene = Scene::new(&[EVENTS, config].concat());
    let theirs = "
CREATE TABLE many (n INTEGER);
INSERT INTO many (rowid, n) WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 12000) SELECT n * 7 - 20000, n FROM c;
INSERT INTO many (rowid, n) VALUES (-9223372036854775808, 1), (9223372036854775807, 2);
CREATE TABLE named (name TEXT PRIMARY KEY, rowid TEXT) WITHOUT ROWID;
INSERT INTO named VALUES ('a', 1), ('b', 1);
CREATE TABLE odd (value ANY) STRICT;
INSERT INTO odd VALUES ('7'), (7), (x'07'), (7.5);
CREATE VIEW seen AS SELECT n FROM many WHERE n < 100;
";
    open(&scene.path("read.db")).execute_batch(theirs).unwrap();
    let shop = Shop::of(&scene);
    shop.count(2, 1);
    settle(&scene, &["summed"], &shop);
    let summed = "SELECT group_concat(n || name || odd || seen) FROM summed";
    let live = one::<String>(&scene, "read.db", summed);
    assert!(live.starts_with("12002 72006003a,btext,integer,blob,real101"), "{live}");
    told(&scene, &["verify", "summed"], 0);
    told(&scene, &["rebuild", "summed"], 0);
    assert_eq!(one::<String>(&scene, "read.db", summed), live);
}

/// What a rebuild has left that was ended, and nobody can go on with, is made anew; of a projection there is one such file.
#[cfg(feature = "controls")]
#[test]
fn what_an_ended_rebuild_has_left_is_no_dead_end() {
    let _machine = shared_machine();
    let scene = Scene::new(&[EVENTS, TOTALS].concat());
    let shop = Shop::of(&scene);
    shop.count(50, 7);
    settle(&scene, &["totals"], &shop);
    let scratch = "read.db-rebuild-totals.db";
    let end_it = || {
        let output = scene.outboxd_with(&["rebuild", "totals"], &[("CRASH_AT", "Swap")]);
        assert_eq!(output.status.code(), None, "it crashed");
        assert_eq!(one::<i64>(&scene, scratch, "SELECT position FROM outboxd_checkpoint"), shop.head());
    };
    // As a changed mapping of the source leaves it, as a source leaves it that was restored, and as a broken disk does.
    for spoilt in [
        "UPDATE outboxd_checkpoint SET definition = 'of another mapping'",
        "UPDATE outboxd_checkpoint SET event_id = 'x', witnesses = '[[3,\"x\"]]'",
        "",
    ] {
        end_it();
        match spoilt {
            "" => std::fs::write(scene.path(scratch), [7_u8; 5_000]).unwrap(),
            sql => open(&scene.path(scratch)).execute_batch(sql).unwrap(),
        }
        told(&scene, &["rebuild", "totals"], 0);
        assert_eq!(standing(&scene.path("read.db"), "totals"), (shop.truth(shop.head()), shop.head()), "{spoilt}");
    }
    end_it();
    scene.reconfigure(&[EVENTS, &TOTALS.replace("events + 1", "events + 2")].concat());
    told(&scene, &["rebuild", "totals"], 0);
    assert_eq!(scratches(&scene), [""; 0]);
    end_it();
    assert_eq!(dropped(&scene, "totals"), json!(["outboxd_old_totals"]));
    assert_eq!(scratches(&scene), [""; 0]);
}

/// The command has done its part when it asks for the swap: whoever swaps brings the tables up to the live ones, and nothing stays paused when
/// nobody is there any more to resume it.
#[cfg(feature = "controls")]
#[test]
fn a_swap_brings_what_was_made_up_to_the_live_tables() {
    let _machine = shared_machine();
    let config = [EVENTS, TOTALS].concat();
    let scene = Scene::new(&config);
    let shop = Shop::of(&scene);
    shop.count(50, 7);
    settle(&scene, &["totals"], &shop);
    let output = scene.outboxd_with(&["rebuild", "totals"], &[("CRASH_AT", "Swap")]);
    assert_eq!(output.status.code(), None, "it crashed");
    shop.count(3_000, 7);
    let mut daemon = scene.daemon();
    daemon.until_settled("totals", shop.head(), PATIENCE);
    let hash = projection(&scene).destination.tables().unwrap().hash();
    let swap = json!({ "command": "rebuild", "action": "swap", "consumer": "totals", "hash": hash, "with_dead_letters": false });
    let answer = daemon.ask(&swap).unwrap();
    assert_eq!((&answer["ok"], &answer["position"]), (&json!(true), &json!(shop.head())), "{answer}");
    shop.count(50, 7);
    daemon.until_settled("totals", shop.head(), PATIENCE);
    assert_eq!(standing(&scene.path("read.db"), "totals"), (shop.truth(shop.head()), shop.head()));
    assert_eq!(scratches(&scene), [""; 0]);
}

/// The kept tables refer to nothing: what the new ones delete is asked of no old row.
#[test]
fn tables_that_refer_to_each_other_go_on_after_a_swap() {
    let _machine = shared_machine();
    let config = "
[projections.orders]
source = \"shop\"
path = \"read.db\"
tables = [\"parent\", \"child\"]
schema = '''
CREATE TABLE parent (id TEXT PRIMARY KEY, above TEXT REFERENCES parent (id)) STRICT;
CREATE TABLE child (id TEXT PRIMARY KEY, parent TEXT NOT NULL REFERENCES parent (id) ON DELETE CASCADE, amount INTEGER) STRICT;
'''
[projections.orders.on]
Counted = [
    \"INSERT INTO parent (id) VALUES (:stream_id) ON CONFLICT DO NOTHING\",
    \"INSERT INTO child VALUES (:id, :stream_id, :data ->> 'amount')\",
]
Closed = \"DELETE FROM parent WHERE id = :stream_id\"
";
    let scene = Scene::new(&[EVENTS, config].concat());
    let shop = Shop::of(&scene);
    shop.count(30, 3);
    let mut daemon = scene.daemon();
    for round in 0..2 {
        daemon.until_settled("orders", shop.head(), PATIENCE);
        told(&scene, &["rebuild", "orders"], 0);
        shop.happens(&format!("s{round}"), "Closed", &json!({}));
        let status = daemon.until_settled("orders", shop.head(), PATIENCE);
        assert_eq!((&status["state"], &status["held_keys"]), (&json!("running"), &json!(0)), "{status}");
    }
    assert_eq!(one::<i64>(&scene, "read.db", "SELECT count(*) FROM child"), 10);
    assert_eq!(
        one::<i64>(&scene, "read.db", "SELECT sum(amount) FROM outboxd_old_child WHERE parent = 's2'"),
        (2..30).step_by(3).sum::<i64>()
    );
    assert_eq!(dropped(&scene, "orders"), json!(["outboxd_old_child", "outboxd_old_parent"]));
}

/// What somebody else has put on a projection's table stands on the new one, too; where it cannot, the swap does not go through.
#[test]
fn what_others_have_put_on_a_table_stays_on_it() {
    let _machine = shared_machine();
    let config = [EVENTS, TOTALS].concat();
    let scene = Scene::new(&config);
    let shop = Shop::of(&scene);
    shop.count(30, 3);
    settle(&scene, &["totals"], &shop);
    let file = open(&scene.path("read.db"));
    let theirs = "CREATE INDEX theirs_by_seen ON totals (seen);
                  CREATE TRIGGER theirs_no_delete BEFORE DELETE ON totals BEGIN SELECT raise(ABORT, 'never'); END;
                  CREATE TRIGGER theirs_of_large INSTEAD OF UPDATE ON large BEGIN SELECT 1; END;";
    file.execute_batch(theirs).unwrap();
    let parts = "SELECT group_concat(name) FROM (SELECT name FROM sqlite_schema WHERE tbl_name = 'totals' AND sql IS NOT NULL ORDER BY name)";
    // Its own index goes with the definition that made it.
    scene.reconfigure(&config.replace("totals_by_amount ON totals (amount)", "totals_by_events ON totals (events)"));
    told(&scene, &["rebuild", "totals"], 0);
    assert_eq!(one::<String>(&scene, "read.db", parts), "theirs_by_seen,theirs_no_delete,totals,totals_by_events");
    assert_eq!(one::<i64>(&scene, "read.db", "SELECT count(*) FROM sqlite_schema WHERE name = 'theirs_of_large'"), 1);
    scene.reconfigure(&config.replace("seen", "versions"));
    let before = standing(&scene.path("read.db"), "totals");
    let text = told(&scene, &["rebuild", "totals"], 65);
    assert!(text.contains("theirs_by_seen") && text.contains("nothing was changed"), "{text}");
    assert_eq!(standing(&scene.path("read.db"), "totals"), before);
    file.execute_batch("DROP INDEX theirs_by_seen").unwrap();
    file.execute_batch("CREATE TRIGGER theirs_looks AFTER INSERT ON totals BEGIN SELECT new.seen; END").unwrap();
    let text = told(&scene, &["rebuild", "totals"], 65);
    assert!(text.contains("new.seen") && text.contains("nothing was changed"), "{text}");
    assert_eq!(standing(&scene.path("read.db"), "totals"), before);
    file.execute_batch("DROP TRIGGER theirs_looks").unwrap();
    told(&scene, &["rebuild", "totals"], 0);
}

/// `--drop` is about one projection; what another one has kept stays, whatever its tables are called now.
#[test]
fn what_another_projection_has_kept_stays() {
    let _machine = shared_machine();
    let of = |name: &str, table: &str| {
        format!(
            "
[projections.{name}]
source = \"shop\"
path = \"read.db\"
tables = [\"{table}\"]
schema = \"CREATE TABLE {table} (id TEXT PRIMARY KEY) STRICT\"
[projections.{name}.on]
Counted = \"INSERT INTO {table} VALUES (:id)\"
"
        )
    };
    let scene = Scene::new(&[EVENTS, &of("one", "a"), &of("two", "b")].concat());
    let shop = Shop::of(&scene);
    shop.count(30, 3);
    settle(&scene, &["one", "two"], &shop);
    told(&scene, &["rebuild", "one"], 0);
    scene.reconfigure(&[EVENTS, &of("one", "a"), &of("two", "c")].concat());
    told(&scene, &["rebuild", "two"], 0);
    assert_eq!(dropped(&scene, "one"), json!(["outboxd_old_a"]));
    assert_eq!(one::<i64>(&scene, "read.db", "SELECT count(*) FROM outboxd_old_b"), 30);
    // Nor does a rebuild take its name.
    scene.reconfigure(&[EVENTS, &of("one", "b"), &of("two", "c")].concat());
    told(&scene, &["rebuild", "one"], 0);
    let text = told(&scene, &["rebuild", "one"], 65);
    assert!(text.contains("outboxd_old_b is there already, and two has kept it"), "{text}");
    assert_eq!(dropped(&scene, "two"), json!(["outboxd_old_b"]));
    told(&scene, &["rebuild", "one"], 0);
    assert_eq!(dropped(&scene, "one"), json!(["outboxd_old_a", "outboxd_old_b"]));
}

/// In the application's file, its tables are its own: those that the configuration knows, and those that only the file knows.
#[test]
fn an_applications_table_is_no_read_model() {
    let _machine = shared_machine();
    let of = |table: &str| {
        format!(
            "
[projections.mine]
source = \"shop\"
path = \"app.db\"
tables = [\"{table}\"]
schema = \"CREATE TABLE {table} (id TEXT PRIMARY KEY) STRICT\"
[projections.mine.on]
Counted = \"INSERT INTO {table} VALUES (:id)\"
"
        )
    };
    let scene = Scene::new(EVENTS);
    for table in ["events", "Snapshots", "outbox", "archived_events"] {
        scene.configure(&[EVENTS, &of(table)].concat());
        let text = told(&scene, &["check"], 78);
        assert!(text.contains(&format!("{table} is the application's")), "{text}");
    }
    let app = open(&scene.path("app.db"));
    app.execute_batch("CREATE TABLE customers (id TEXT); INSERT INTO customers VALUES ('kim')").unwrap();
    scene.configure(&[EVENTS, &of("customers")].concat());
    Shop::of(&scene).count(3, 1);
    let text = told(&scene, &["rebuild", "mine"], 65);
    assert!(text.contains("customers is there already"), "{text}");
    assert_eq!(one::<String>(&scene, "app.db", "SELECT id FROM customers"), "kim");
}

/// A link to a file is that file: one writer, one lock, and the application's is written as an application's.
#[test]
fn a_read_model_is_the_same_file_by_whatever_name() {
    let _machine = shared_machine();
    let link = |scene: &Scene, to: &str, name: &str| std::os::unix::fs::symlink(to, scene.path(name)).unwrap();
    let second = TOTALS.replace("totals", "again").replace("large", "huge");
    let scene = Scene::new(&[EVENTS, TOTALS, &second.replace("read.db", "link.db")].concat());
    link(&scene, "read.db", "link.db");
    let shop = Shop::of(&scene);
    shop.count(30, 3);
    settle(&scene, &["totals", "again"], &shop);
    assert_eq!(one::<i64>(&scene, "read.db", "SELECT count(*) FROM outboxd_checkpoint"), 2);
    told(&scene, &["verify", "again"], 0);
    scene.configure(&[EVENTS, &TOTALS.replace("read.db", "app-link.db")].concat());
    link(&scene, "app.db", "app-link.db");
    settle(&scene, &["totals"], &shop);
    assert_eq!(standing(&scene.path("app.db"), "totals"), (shop.truth(shop.head()), shop.head()));
    for name in ["link.db-outboxd.lock", "app-link.db-outboxd.lock", "app-link.db-wal"] {
        assert!(!scene.path(name).exists(), "{name}");
    }
    assert!(scene.path("app.db-outboxd.lock").exists());
    std::fs::hard_link(scene.path("app.db"), scene.path("hard.db")).unwrap();
    scene.configure(&[EVENTS, &TOTALS.replace("read.db", "hard.db")].concat());
    let text = told(&scene, &["check"], 78);
    assert!(text.contains("two names of one file"), "{text}");
}
