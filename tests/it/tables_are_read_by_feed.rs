//! A table without a safe position is read by its feed: whatever its key is, whatever a migration, a conflict clause or the
//! application's own archiver does to its rows.

use std::process::Output;
use std::time::{Duration, Instant};

use outboxd::consumer::control::Command;
use outboxd::consumer::status::State;
use outboxd::consumer::{Bounds, Settings};
use outboxd::event::Reason;
use outboxd::source::feed::{self, Made, Run};
use rusqlite::Connection;

use crate::cli::{code, outboxd, printed, told};
use crate::config::Folder;
use crate::support::by_hand::Table;
use crate::support::fake_sink::FarSide;
use crate::support::fleet::{self, Relays, arrived};
use crate::support::rig::open;

/// FlightDeck's own tables, as its document of them has it.
pub const FLIGHTDECK: &str = include_str!("../fixtures/flightdeck.sql");
const PLAIN: &str = "table = \"t\"\nfeed = true\nid = \"id\"\ntype = { constant = \"K\" }\npayload = \"body\"\n";

fn make(table: &Table, name: &str, archive: Option<&str>) -> Made {
    feed::make(&table.source.path, name, archive, Run::Make).unwrap()
}

fn relay(table: &Table, far_side: &FarSide) -> Settings {
    let mut relay = fleet::relay("r", "app", fleet::fake(far_side));
    relay.bounds = Bounds { attempts_max: 1, ..Bounds::default() };
    assert_eq!(table.source.name, relay.source);
    relay
}

fn start(table: &Table, far_side: &FarSide) -> Relays {
    Relays::start(std::slice::from_ref(&table.source), vec![relay(table, far_side)])
}

fn ids(far_side: &FarSide) -> Vec<String> {
    far_side.arrivals().into_iter().map(|arrival| arrival.id).collect()
}

fn one<T: rusqlite::types::FromSql>(connection: &Connection, sql: &str) -> T {
    connection.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

struct Kind {
    name: &'static str,
    sql: &'static str,
    insert: &'static str,
    id: &'static str,
    /// The id of row `n`.
    said: &'static str,
    /// Rows that are there already come in order of their keys.
    by_key: bool,
}

const KINDS: [Kind; 6] = [
    Kind {
        name: "t",
        sql: "CREATE TABLE t (id TEXT PRIMARY KEY, body TEXT)",
        insert: "INSERT INTO t VALUES ('i{n}', '{n}')",
        id: "\"id\"",
        said: "i{n}",
        by_key: false,
    },
    Kind {
        name: "t",
        sql: "CREATE TABLE t (body TEXT NOT NULL, n INTEGER NOT NULL, a TEXT NOT NULL, PRIMARY KEY (a, n)) STRICT",
        insert: "INSERT INTO t VALUES ('{n}', {n}, 's')",
        id: "\"{a}:{n}\"",
        said: "s:{n}",
        by_key: false,
    },
    Kind {
        name: "t",
        sql: "CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)",
        insert: "INSERT INTO t VALUES ({n}, '{n}')",
        id: "\"id\"",
        said: "{n}",
        by_key: true,
    },
    Kind {
        name: "t",
        sql: "CREATE TABLE t (a TEXT, n INTEGER, body TEXT, PRIMARY KEY (a, n)) WITHOUT ROWID",
        insert: "INSERT INTO t VALUES ('s', {n}, '{n}')",
        id: "\"{a}:{n}\"",
        said: "s:{n}",
        by_key: true,
    },
    Kind {
        name: "t",
        sql: "CREATE TABLE t (body TEXT, id BLOB NOT NULL); CREATE UNIQUE INDEX by_id ON t (id)",
        insert: "INSERT INTO t VALUES ('{n}', x'0{n}')",
        id: "{ column = \"id\", as = \"hex\" }",
        said: "0{n}",
        by_key: false,
    },
    Kind {
        name: "my \"events\"",
        sql: "CREATE TABLE \"my \"\"events\"\"\" (\"select\" TEXT COLLATE NOCASE PRIMARY KEY, body TEXT)",
        insert: "INSERT INTO \"my \"\"events\"\"\" VALUES ('i{n}', '{n}')",
        id: "\"select\"",
        said: "i{n}",
        by_key: false,
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_table_is_fed_in_order_with_what_was_there_before() {
    for kind in KINDS {
        let numbered = |text: &str, n: u32| text.replace("{n}", &n.to_string());
        let insert = |table: &Table, n| table.app.execute_batch(&numbered(kind.insert, n)).unwrap();
        let fields = format!("id = {}\ntype = {{ constant = \"K\" }}\npayload = \"body\"\n", kind.id);
        let table = Table::new(kind.sql, &format!("table = '{}'\nfeed = true\n{fields}", kind.name));
        [5, 3, 9].into_iter().for_each(|n| insert(&table, n));
        let halt = table.look().await.unwrap_err();
        assert!(halt.detail.contains("has no feed") && halt.detail.contains("outboxd init --feed"), "{halt:?}");
        let made = make(&table, kind.name, None);
        assert_eq!(made.rows, 3, "{}", kind.sql);
        [7, 1].into_iter().for_each(|n| insert(&table, n));
        // A rowid that nothing names would be given out anew.
        table.app.execute_batch("VACUUM").unwrap();
        let again = make(&table, kind.name, None);
        assert_eq!((again.statements.len(), again.rows), (0, 0), "{:?}", again.statements);
        assert_eq!(table.look().await.unwrap().plan.warnings, Vec::<String>::new(), "{}", kind.sql);
        let far_side = FarSide::default();
        let relays = start(&table, &far_side);
        arrived(&far_side, 5).await;
        relays.stop().await;
        let order = if kind.by_key { [3, 5, 9, 7, 1] } else { [5, 3, 9, 7, 1] };
        assert_eq!(ids(&far_side), order.map(|n| numbered(kind.said, n)), "{}", kind.sql);
    }
}

/// The words in which a person is told are the program's.
#[test]
fn what_cannot_have_a_feed_or_needs_none_is_refused() {
    let folder = Folder::with(crate::config::SMALL);
    let app = open(&folder.path("app.db"));
    app.execute_batch(
        "CREATE TABLE log (n INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT); CREATE VIEW seen AS SELECT * FROM log;
         CREATE TABLE bare (id TEXT, body TEXT); CREATE TABLE t (id TEXT PRIMARY KEY, body TEXT); INSERT INTO t VALUES ('a', '');",
    )
    .unwrap();
    std::fs::write(folder.path("text.db"), "this is no database, however long one looks at it").unwrap();
    let schema = || one::<i64>(&app, "SELECT count(*) FROM sqlite_schema");
    let before = schema();
    let run = |arguments: &[&str]| -> Output { outboxd(&folder, &[&["init", "--feed"], arguments].concat()) };
    for (arguments, exit, said) in [
        (&["log", "app.db"][..], 65, "needs no feed"),
        (&["seen", "app.db"], 65, "seen is a view"),
        (&["bare", "app.db"], 65, "CREATE UNIQUE INDEX"),
        (&["nothing", "app.db"], 65, "there is no table nothing"),
        (&["t", "app.db", "--archive", "old"], 65, "there is no table old"),
        (&["t", "nowhere.db"], 65, "it must be there"),
        (&["t", "text.db"], 65, "nothing was changed"),
        // No source of this configuration reads it by its feed.
        (&["t"], 64, "name the FILE"),
    ] {
        let output = run(arguments);
        assert_eq!(code(&output), exit, "{arguments:?}: {}", told(&output));
        assert!(told(&output).contains(said), "{arguments:?}: {}", told(&output));
        assert_eq!(schema(), before, "{arguments:?} changed the file");
    }
    assert_eq!(code(&outboxd(&folder, &["init"])), 64);
    assert_eq!(code(&outboxd(&folder, &["init", "app.db", "--archive", "old"])), 64);
    // It says what it would do, does it, and then has nothing to do.
    let said = printed(&run(&["t", "app.db", "--dry-run"]));
    assert!(said.contains("CREATE TRIGGER") && said.contains("1 rows would be fed"), "{said}");
    assert_eq!(schema(), before, "a dry run changes nothing");
    let said = printed(&run(&["T", "app.db"]));
    assert!(said.contains("1 rows were fed") && said.contains("DROP TRIGGER \"outboxd_feed_t_insert\""), "{said}");
    let said = printed(&run(&["t", "app.db"]));
    assert!(said.contains("nothing was changed") && !said.contains("CREATE"), "{said}");
    // What it says takes it back does.
    let undo = said.lines().find_map(|line| line.strip_prefix("-- to undo it: ")).unwrap();
    app.execute_batch(undo).unwrap();
    assert_eq!(schema(), before);
}

/// A look at ten million rows must not take ten seconds: the newest are looked at, and what was not is said.
#[test]
fn a_check_looks_at_the_newest_rows_of_a_long_table_and_says_so() {
    let source = format!("[sources.app]\npath = \"app.db\"\n{PLAIN}");
    let rest = "[sinks.out]\ntype = \"stdout\"\n[relays.r]\nsource = \"app\"\nsink = \"out\"\nstart = \"first\"\n";
    let folder = Folder::with(&(source + rest));
    let app = open(&folder.path("app.db"));
    let insert = |from: usize, to: usize| {
        let sql = "WITH RECURSIVE n(n) AS (SELECT ?1 UNION ALL SELECT n + 1 FROM n WHERE n < ?2)
                   INSERT INTO t SELECT 'id' || n, 'body' FROM n";
        app.execute(sql, [from as i64, to as i64]).unwrap();
    };
    app.execute_batch("CREATE TABLE t (id TEXT PRIMARY KEY, body TEXT)").unwrap();
    insert(1, feed::NEWEST_ROWS);
    feed::make(&folder.path("app.db"), "t", None, Run::Make).unwrap();
    let check = || {
        let output = outboxd(&folder, &["check", "--offline"]);
        (code(&output), printed(&output))
    };
    let (exit, said) = check();
    assert!(exit == 0 && !said.contains("was not looked at"), "{said}");
    insert(feed::NEWEST_ROWS + 1, feed::NEWEST_ROWS + 1);
    let (exit, said) = check();
    assert!(exit == 0 && said.contains("of t the newest 20000 rows are in the feed"), "{said}");
    app.execute_batch("DELETE FROM outboxd_feed_t WHERE key1 = 'id20000'").unwrap();
    let (exit, said) = check();
    assert!(exit == 65 && said.contains("1 rows of t are not in its feed"), "{exit} {said}");
}

/// FlightDeck's tables, and what its code does to them.
struct Deck(Table);

impl Deck {
    fn new() -> Self {
        Self(Table::new(FLIGHTDECK, "preset = \"flightdeck\""))
    }

    /// `appendEvent`.
    fn append(&self, stream: &str, version: u32) {
        let transaction = self.0.app.unchecked_transaction().unwrap();
        let stream_sql =
            "INSERT INTO streams (stream_id, type, version, created_at, updated_at) VALUES (?1, 'Content', ?2, '', '')
                          ON CONFLICT (stream_id) DO UPDATE SET version = ?2";
        transaction.execute(stream_sql, rusqlite::params![stream, version]).unwrap();
        let sql = "INSERT INTO events (id, stream_id, version, event_type, data, metadata, timestamp)
                   VALUES (?1, ?2, ?3, 'ContentUpdated', ?4, '{\"UserId\":\"u\"}', '2026-11-21T03:15:20.1234567+00:00')";
        // Ids in an order of their own.
        let id = format!("{}-{stream}-{version}", 9 - version);
        transaction.execute(sql, rusqlite::params![id, stream, version, format!("{{\"v\":{version}}}")]).unwrap();
        transaction.commit().unwrap();
    }

    /// `archiveEvents`.
    fn archive(&self, stream: &str, version: u32) {
        let transaction = self.0.app.unchecked_transaction().unwrap();
        for sql in [
            "INSERT INTO archived_events (id, stream_id, version, event_type, data, metadata, timestamp, archived_at)
             SELECT id, stream_id, version, event_type, data, metadata, timestamp, '2026-11-21T04:00:00+00:00'
             FROM events WHERE stream_id = ?1 AND version <= ?2",
            "DELETE FROM events WHERE stream_id = ?1 AND version <= ?2",
        ] {
            transaction.execute(sql, rusqlite::params![stream, version]).unwrap();
        }
        transaction.commit().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flightdecks_events_arrive_whatever_its_archiver_has_moved() {
    let deck = Deck::new();
    for (stream, version) in [("c", 1), ("d", 1), ("c", 2), ("c", 3), ("d", 2)] {
        deck.append(stream, version);
    }
    deck.archive("c", 1);
    assert_eq!(make(&deck.0, "events", Some("archived_events")).rows, 5);
    deck.append("c", 4);
    // Before anything was read.
    deck.archive("c", 3);
    let batch = deck.0.read(0, 10).await.unwrap();
    let event = batch.event(1);
    assert_eq!((event.id, event.kind, event.stream_type), ("8-d-1", "ContentUpdated", Some("Content")));
    assert_eq!(
        (event.version, event.payload, event.header("UserId").as_deref()),
        (Some(1), Some(&b"{\"v\":1}"[..]), Some("u"))
    );
    assert!(event.time_micros.is_some() && !batch.has_defects());
    let far_side = FarSide::default();
    let relays = start(&deck.0, &far_side);
    arrived(&far_side, 6).await;
    // While it runs, and over a restart.
    deck.append("d", 3);
    deck.archive("d", 3);
    arrived(&far_side, 7).await;
    relays.reaches("r", |status| status.delivered == 7).await;
    relays.stop().await;
    deck.append("d", 4);
    let relays = start(&deck.0, &far_side);
    arrived(&far_side, 8).await;
    relays.stop().await;
    let expected = ["8-c-1", "8-d-1", "7-c-2", "6-c-3", "7-d-2", "5-c-4", "6-d-3", "5-d-4"];
    assert_eq!(ids(&far_side), expected, "what was archived before the feed was made comes first");
    assert_eq!(deck.0.look().await.unwrap().plan.warnings, Vec::<String>::new());
}

/// Sizes are asked of the columns themselves: what is too large is not read, wherever it stands.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_not_read_from_an_archive_either() {
    let deck = Deck::new();
    make(&deck.0, "events", Some("archived_events"));
    deck.append("c", 1);
    deck.append("c", 2);
    deck.0.app.execute("UPDATE events SET data = printf('{\"text\":\"%.*c\"}', 70000, 'x')", []).unwrap();
    deck.archive("c", 1);
    let batch = deck.0.read(0, 10).await.unwrap();
    for index in [0, 1] {
        let defect = batch.defect(index).unwrap();
        assert_eq!(defect.reason, Reason::TooLarge, "{}", defect.detail);
        assert!(batch.event(index).payload.is_none());
    }
}

/// Not in the table, and not in the archive.
#[tokio::test(flavor = "multi_thread")]
async fn a_fed_row_that_is_deleted_before_it_was_read_becomes_a_dead_letter() {
    let deck = Deck::new();
    make(&deck.0, "events", Some("archived_events"));
    for version in 1..=3 {
        deck.append("c", version);
    }
    deck.0.app.execute("DELETE FROM events WHERE version = 1", []).unwrap();
    // This one goes without a word: the new row has its version.
    deck.0.app.execute("INSERT OR REPLACE INTO events SELECT 'new', stream_id, version, event_type, data, metadata, timestamp FROM events WHERE version = 2", []).unwrap();
    let far_side = FarSide::default();
    let relays = start(&deck.0, &far_side);
    arrived(&far_side, 2).await;
    relays.reaches("r", |status| status.dead == 2).await;
    relays.stop().await;
    assert_eq!(ids(&far_side), ["6-c-3", "new"]);
    let state = open(&deck.0.source.state_path());
    let held: String = one(
        &state,
        "SELECT group_concat(event_id || ' ' || reason || ' ' || state, ', ') FROM (SELECT * FROM outboxd_held ORDER BY position)",
    );
    assert_eq!(held, "8-c-1 source_row_gone dead, 7-c-2 source_row_gone dead");
    let detail: String = one(&state, "SELECT max(detail) FROM outboxd_held");
    assert!(
        detail.contains("not in events and not in archived_events") && detail.contains("outboxd_safe_position"),
        "{detail}"
    );
}

/// What was read from the archive was sent as it should be, and what is gone is not called lost.
#[tokio::test(flavor = "multi_thread")]
async fn an_audit_reads_by_the_feed_too() {
    let folder = Folder::with(
        "[sources.app]\npath = \"app.db\"\npreset = \"flightdeck\"\n[sinks.out]\ntype = \"file\"\npath = \"out.ndjson\"\n\
         [relays.r]\nsource = \"app\"\nsink = \"out\"\nstart = \"first\"\n",
    );
    let app = open(&folder.path("app.db"));
    app.execute_batch(FLIGHTDECK).unwrap();
    feed::make(&folder.path("app.db"), "events", Some("archived_events"), Run::Make).unwrap();
    app.execute_batch(
        "INSERT INTO streams VALUES ('s', 'Content', 9, '', '');
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9)
         INSERT INTO events SELECT 'e' || i, 's', i, 'T', '{}', '{}', '2026-11-21T03:15:20Z' FROM n;
         INSERT INTO archived_events SELECT *, '' FROM events WHERE version < 4; DELETE FROM events WHERE version < 4",
    )
    .unwrap();
    let loaded = folder.load(&[]).unwrap();
    let relays = Relays::start(&[loaded.config.sources["app"].clone()], loaded.config.relays.clone());
    relays.reaches("r", |status| status.delivered == 9).await;
    relays.stop().await;
    let audited_well = || {
        let output = outboxd(&folder, &["audit", "r", "--json"]);
        assert_eq!(code(&output), 0, "{}{}", printed(&output), told(&output));
    };
    audited_well();
    app.execute_batch("DELETE FROM archived_events WHERE version = 1").unwrap();
    audited_well();
}

/// A migration as SQLite's documentation has it: a new table, a copy, and its name.
fn rebuild(app: &Connection) {
    app.execute_batch(
        "BEGIN; CREATE TABLE new_t (id TEXT PRIMARY KEY, body TEXT, more TEXT); INSERT INTO new_t (id, body) SELECT id, body FROM t;
         DROP TABLE t; ALTER TABLE new_t RENAME TO t; INSERT INTO t (id, body) VALUES ('c', ''); COMMIT",
    )
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_drops_the_trigger_halts_until_the_feed_is_mended() {
    let table = Table::new("CREATE TABLE t (id TEXT PRIMARY KEY, body TEXT); INSERT INTO t VALUES ('a', '')", PLAIN);
    make(&table, "t", None);
    let far_side = FarSide::default();
    let relays = start(&table, &far_side);
    table.app.execute_batch("INSERT INTO t VALUES ('b', '')").unwrap();
    arrived(&far_side, 2).await;
    // What leaves the trigger alone is no matter.
    table.app.execute_batch("CREATE TABLE another (x); INSERT INTO another VALUES (1)").unwrap();
    rebuild(&table.app);
    let halted = relays.reaches("r", |status| status.state == State::Halted).await.detail;
    for said in ["outboxd_feed_t_insert", "outboxd init --feed t", "outboxd resume"] {
        assert!(halted.contains(said), "{said:?} is not said in {halted}");
    }
    // A resume without it is in vain; so is a restart.
    relays.handle("r").ask(Command::Resume).await.unwrap();
    relays.reaches("r", |status| status.state == State::Halted).await;
    relays.stop().await;
    let relays = start(&table, &far_side);
    relays
        .reaches("r", |status| status.state == State::Halted && status.detail.contains("outboxd_feed_t_insert"))
        .await;
    assert_eq!(make(&table, "t", None).rows, 1);
    table.app.execute_batch("INSERT INTO t (id, body) VALUES ('d', '')").unwrap();
    relays.handle("r").ask(Command::Resume).await.unwrap();
    arrived(&far_side, 4).await;
    relays.stop().await;
    assert_eq!(ids(&far_side), ["a", "b", "c", "d"]);
    // The trigger may be there, and a row have come before it.
    table.app.execute_batch("DELETE FROM outboxd_feed_t WHERE key1 = 'd'").unwrap();
    let halt = table.look().await.unwrap_err();
    assert!(halt.detail.contains("1 rows of t are not in its feed"), "{}", halt.detail);
    // Another trigger under its name is not it.
    table.app.execute_batch("DROP TRIGGER outboxd_feed_t_insert; CREATE TRIGGER outboxd_feed_t_insert AFTER INSERT ON t BEGIN SELECT 1; END").unwrap();
    let halt = table.look().await.unwrap_err();
    assert!(halt.detail.contains("is not the one that fills the feed"), "{}", halt.detail);
    assert_eq!(make(&table, "t", None).rows, 1);
    table.look().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_row_is_fed_once_whatever_the_conflict_clause() {
    let table = Table::new("CREATE TABLE t (id TEXT PRIMARY KEY, body TEXT)", PLAIN);
    make(&table, "t", None);
    let fed = || {
        one::<String>(&table.app, "SELECT group_concat(key1, '') FROM (SELECT * FROM outboxd_feed_t ORDER BY position)")
    };
    for (n, clause) in ["", "OR REPLACE", "OR IGNORE", "OR ABORT", "OR FAIL", "OR ROLLBACK"].iter().enumerate() {
        // Its key was fed before: the row is a new one.
        let insert = format!("INSERT {clause} INTO t VALUES ('{n}', 'new')");
        table.app.execute_batch(&insert).unwrap();
        table.app.execute_batch(&format!("DELETE FROM t WHERE id = '{n}'")).unwrap();
        table.app.execute_batch(&insert).unwrap_or_else(|error| panic!("{insert}: {error}"));
    }
    assert_eq!(fed(), "012345");
    let newest: i64 = one(&table.app, "SELECT max(position) FROM outboxd_feed_t");
    assert_eq!(newest, 12, "each has the position of its second insert");
    // A row that is changed, or not inserted, is no new event.
    table.app.execute_batch("INSERT INTO t VALUES ('0', '') ON CONFLICT (id) DO UPDATE SET body = 'changed'").unwrap();
    table
        .app
        .execute_batch("INSERT OR IGNORE INTO t VALUES ('0', ''); BEGIN; INSERT INTO t VALUES ('x', ''); ROLLBACK")
        .unwrap();
    assert_eq!(fed(), "012345");
    let far_side = FarSide::default();
    let relays = start(&table, &far_side);
    arrived(&far_side, 6).await;
    // One that is replaced is sent again, with the same id.
    table.app.execute_batch("INSERT OR REPLACE INTO t VALUES ('0', 'replaced')").unwrap();
    let arrivals = arrived(&far_side, 7).await;
    relays.stop().await;
    let last = arrivals.last().unwrap();
    assert_eq!((last.id.as_str(), &last.body[..]), ("0", &b"replaced"[..]));
    assert_eq!(table.app.changes(), 1, "the application sees its own change alone");
}

/// The statement in docs/SOURCES.md that keeps a feed small.
#[tokio::test(flavor = "multi_thread")]
async fn a_feed_is_pruned_as_the_document_says() {
    let guide = include_str!("../../docs/SOURCES.md");
    let sql = guide
        .split("```sql\n")
        .find(|block| block.starts_with("DELETE FROM outboxd_feed_events"))
        .expect("the guide has it");
    let deck = Deck::new();
    make(&deck.0, "events", Some("archived_events"));
    for version in 1..=4 {
        deck.append("c", version);
    }
    let far_side = FarSide::default();
    let relays = start(&deck.0, &far_side);
    arrived(&far_side, 4).await;
    relays.reaches("r", |status| status.delivered == 4).await;
    relays.stop().await;
    deck.archive("c", 2);
    deck.0.app.execute("DELETE FROM archived_events WHERE version = 1", []).unwrap();
    let safe: i64 =
        one(&open(&deck.0.source.state_path()), "SELECT position FROM outboxd_safe_position WHERE source = 'app'");
    let sql = sql.split("```").next().unwrap();
    assert_eq!(deck.0.app.execute(sql, rusqlite::named_params! { ":safe": safe }).unwrap(), 1);
    deck.append("c", 5);
    let relays = start(&deck.0, &far_side);
    arrived(&far_side, 5).await;
    relays.stop().await;
    assert_eq!(ids(&far_side), ["8-c-1", "7-c-2", "6-c-3", "5-c-4", "4-c-5"]);
}

/// What docs/BENCHMARKS.md says of the trigger; printed with `--nocapture`.
#[test]
fn what_a_feed_costs_the_applications_insert() {
    const ROUNDS: usize = 7;
    let _alone = crate::support::process::shared_machine();
    let folder = tempfile::tempdir().unwrap();
    let sides = ["without.db", "with.db"].map(|name| {
        let app = open(&folder.path().join(name));
        app.execute_batch(FLIGHTDECK).unwrap();
        app.execute_batch("INSERT INTO streams VALUES ('c', 'Content', 1, '', '')").unwrap();
        app
    });
    feed::make(&folder.path().join("with.db"), "events", None, Run::Make).unwrap();
    let mut next = 0;
    for (what, transactions, rows, most) in [("one", 300, 1, 4.0), ("a hundred", 20, 100, 6.0)] {
        let mut ratios = Vec::new();
        for _ in 0..ROUNDS {
            let [without, with] = [0, 1].map(|side| {
                let began = Instant::now();
                for n in 0..transactions {
                    insert(&sides[side], next + n * rows, rows);
                }
                began.elapsed()
            });
            next += transactions * rows;
            ratios.push(with.as_secs_f64() / without.as_secs_f64());
        }
        ratios.sort_by(f64::total_cmp);
        let median = ratios[ROUNDS / 2];
        println!("{what} a transaction: with a feed an insert takes {median:.2} times as long ({ratios:.2?})");
        assert!(median < most, "{what}: {ratios:?}");
    }
    assert_eq!(one::<i64>(&sides[1], "SELECT count(*) FROM outboxd_feed_events"), next as i64);
    let began = Instant::now();
    sides[1].execute_batch("DROP TRIGGER outboxd_feed_events_insert; DROP TABLE outboxd_feed_events").unwrap();
    let rows = feed::make(&folder.path().join("with.db"), "events", None, Run::Make).unwrap().rows;
    println!("a feed of {rows} rows was made in {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(20));
}

fn insert(app: &Connection, from: usize, rows: usize) {
    let transaction = app.unchecked_transaction().unwrap();
    for n in from..from + rows {
        // As long and as disorderly as a UUID.
        let id = format!("{:016x}-{n:019}", (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        transaction
            .prepare_cached(
                "INSERT INTO events VALUES (?1, 'c', ?2, 'ContentUpdated', ?3, '{}', '2026-11-21T03:15:20Z')",
            )
            .unwrap()
            .execute(rusqlite::params![
                id,
                n as i64,
                format!("{{\"Case\":\"ContentUpdated\",\"Text\":\"{}\"}}", "x".repeat(250))
            ])
            .unwrap();
    }
    transaction.commit().unwrap();
}
