//! Rows that no application would write, in tables without types: each is delivered byte for byte or becomes a dead letter with its
//! reason; nothing panics, nothing stalls, memory stays within bounds, and no terminal obeys what they hold.
//!
//! What must become of a row is worked out from the row alone ([`oracle`]). Sizes: `OUTBOXD_TEST_HOSTILE_ROWS` (to files; default 100,000),
//! `OUTBOXD_TEST_HOSTILE_ROWS_BROKERS` (to each broker; default 10,000); the seed: `OUTBOXD_TEST_SEED`.

pub mod brokers;
mod keys;
pub mod oracle;
pub mod rows;
mod sizes;

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use self::oracle::{Fate, Table, judge, obeyed, position_of, says};
use self::rows::{Row, Taste};
use crate::support::dice::{Dice, number};
use crate::support::process::{Daemon, Scene, shared_machine};
use crate::support::proof::Proof;

const EVENT_BYTES_MAX: usize = 256 << 10;
/// A position is used up to here, so that the last one can be the last of all.
const LAST: i64 = i64::MAX;

/// The known tables, without a type or a constraint.
const LOOSE: [(Table, &str); 3] = [
    (
        Table::Outbox,
        "CREATE TABLE outbox (position INTEGER PRIMARY KEY AUTOINCREMENT, id, stream_id, stream_type, type, key, payload, headers, time)",
    ),
    (
        Table::Log,
        "CREATE TABLE events (global_position INTEGER PRIMARY KEY AUTOINCREMENT, event_id, aggregate_id, aggregate_type, event_type, \
         tenant_id, actor_id, version, timestamp, payload, created_at)",
    ),
    (
        Table::ByRow,
        "CREATE TABLE events (global_position INTEGER PRIMARY KEY AUTOINCREMENT, event_id UNIQUE, version); \
         CREATE TABLE event_outbox (id PRIMARY KEY, event_id, event_type, aggregate_id, aggregate_type, event_data, created_at, \
         published_at, retry_count DEFAULT 0, last_error, status DEFAULT 'pending'); \
         CREATE INDEX pending ON event_outbox (created_at) WHERE status = 'pending'",
    ),
];

/// A file with one of the tables, as an application opens it.
pub fn loose(path: &Path, table: Table) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL").unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    connection.execute_batch(LOOSE.iter().find(|known| known.0 == table).unwrap().1).unwrap();
    connection
}

pub fn insert(connection: &Connection, table: Table, row: &Row) {
    let done = match table {
        Table::Outbox => connection
            .prepare_cached(
                "INSERT INTO outbox (position, id, stream_id, stream_type, type, key, payload, headers, time) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )
            .unwrap()
            .execute(params![
                row.position,
                row.id,
                row.stream_id,
                row.stream_type,
                row.kind,
                row.key,
                row.payload,
                row.headers,
                row.time
            ]),
        Table::Log => connection
            .prepare_cached(
                "INSERT INTO events (global_position, event_id, aggregate_id, aggregate_type, event_type, version, timestamp, payload) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )
            .unwrap()
            .execute(params![
                row.position,
                row.id,
                row.stream_id,
                row.stream_type,
                row.kind,
                row.version,
                row.time,
                row.payload
            ]),
        Table::ByRow => connection
            .prepare_cached(
                "INSERT INTO event_outbox (rowid, id, event_id, event_type, aggregate_id, aggregate_type, event_data, created_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )
            .unwrap()
            .execute(params![
                row.position,
                row.name,
                row.id,
                row.kind,
                row.stream_id,
                row.stream_type,
                row.payload,
                row.time
            ]),
    };
    assert_eq!(done.unwrap(), 1);
}

/// One of the tables, its relay, and what the seed puts into it.
struct Stand {
    table: Table,
    name: &'static str,
    seed: u64,
    count: i64,
    connection: Connection,
}

impl Stand {
    fn new(scene: &Scene, table: Table, name: &'static str, seed: u64, count: i64) -> Self {
        Self { table, name, seed, count, connection: loose(&scene.path(&format!("{name}.db")), table) }
    }

    fn config(&self) -> String {
        let Self { name, table, .. } = self;
        let (preset, read) = match table {
            Table::Outbox => ("outboxd", "outbox"),
            Table::Log => ("eventsource-py", "events"),
            Table::ByRow => ("eventsource-py", "outbox"),
        };
        let start = if *table == Table::ByRow { "" } else { "start = \"first\"\n" };
        format!(
            "\n[sources.{name}]\npath = \"{name}.db\"\npreset = \"{preset}\"\nread = \"{read}\"\n\
             [sinks.{name}]\ntype = \"file\"\npath = \"{name}.ndjson\"\n\
             [relays.{name}]\nsource = \"{name}\"\nsink = \"{name}\"\nattempts_max = 1\non_reject = \"skip\"\n\
             event_bytes_max = \"{EVENT_BYTES_MAX}B\"\n{start}"
        )
    }

    /// The `n`-th position: with holes, some below zero, and the last one there is.
    fn position(&self, n: i64) -> i64 {
        match self.table {
            Table::ByRow => n + 1,
            _ if n == self.count - 1 => LAST,
            _ => n + n / 7 - 20,
        }
    }

    fn row(&self, position: i64) -> Row {
        let taste = Taste { heavy_every: 500, heavy_bytes: 300 << 10, wrapped: self.table == Table::ByRow };
        let mut dice = Dice::of(self.seed ^ (position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        dice.next();
        Row::thrown(&mut dice, position, taste)
    }

    fn write(&self, range: std::ops::Range<i64>) {
        let mut from = range.start;
        while from < range.end {
            let transaction = self.connection.unchecked_transaction().unwrap();
            let until = (from + 500).min(range.end);
            (from..until).for_each(|n| insert(&transaction, self.table, &self.row(self.position(n))));
            transaction.commit().unwrap();
            from = until;
        }
    }

    fn wait(&self, daemon: &mut Daemon, within: Duration) {
        daemon.until(self.name, "through", within, |status| {
            let is_read = match self.table {
                Table::ByRow => status["backlog_events"] == 0,
                _ => status["position"] == LAST,
            };
            is_read && status["in_flight_events"] == 0
        });
    }

    /// Every row is where it must be, once, as it must be. Returns how many were delivered and how many are dead letters.
    fn examine(&self, scene: &Scene) -> (u64, u64) {
        let mut seen: HashMap<i64, u32> = HashMap::new();
        let mut newest: HashMap<Option<Vec<u8>>, i64> = HashMap::new();
        let file = std::fs::File::open(scene.path(&format!("{}.ndjson", self.name))).unwrap();
        for line in BufReader::new(file).lines() {
            let line = line.unwrap();
            let position = position_of(&line);
            let row = self.row(position);
            let Fate::Delivered(event) = judge(self.table, &row, EVENT_BYTES_MAX) else {
                panic!("{} {position} was delivered: {line:.500}\n{row:.500?}", self.name);
            };
            assert!(says(&line, &event), "{} {position}: {line:.900}\nis not\n{event:.900?}", self.name);
            // By row, the time decides.
            if event.key.is_some() && self.table != Table::ByRow {
                let before = newest.insert(event.key, position);
                assert!(before < Some(position), "{} {position} came behind {before:?}", self.name);
            }
            *seen.entry(position).or_default() += 1;
        }
        let delivered = seen.len() as u64;
        let state = Connection::open(match self.table {
            Table::ByRow => scene.path(&format!("{}.db", self.name)),
            _ => scene.path(&format!("{}.db-outboxd.db", self.name)),
        })
        .unwrap();
        let mut held = state.prepare("SELECT position, state, reason, detail FROM outboxd_held").unwrap();
        let mut held = held.query([]).unwrap();
        let mut dead = 0;
        while let Some(letter) = held.next().unwrap() {
            let position: i64 = letter.get(0).unwrap();
            let (state, reason): (String, String) = (letter.get(1).unwrap(), letter.get(2).unwrap());
            let detail: String = letter.get(3).unwrap();
            let fate = judge(self.table, &self.row(position), EVENT_BYTES_MAX);
            let is_right = matches!(&fate, Fate::Dead(reasons) if reasons.contains(reason.as_str()));
            assert!(
                is_right && state == "skipped",
                "{} {position} is {state}, {reason}, {detail}: {fate:.500?}",
                self.name
            );
            *seen.entry(position).or_default() += 1;
            dead += 1;
        }
        let missing: Vec<i64> = (0..self.count).map(|n| self.position(n)).filter(|at| !seen.contains_key(at)).collect();
        assert!(missing.is_empty(), "{}: {} are missing: {:.200?}", self.name, missing.len(), missing);
        let twice: Vec<_> = seen.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "{}: twice: {:.200?}", self.name, twice);
        assert_eq!(seen.len() as i64, self.count);
        if self.table == Table::ByRow {
            let count = |status: &str| -> u64 {
                let sql = "SELECT count(*) FROM event_outbox WHERE status = ?1";
                self.connection.query_row(sql, [status], |row| row.get::<_, i64>(0)).unwrap() as u64
            };
            assert_eq!((count("published"), count("failed"), count("pending")), (delivered, dead, 0));
        }
        (delivered, dead)
    }
}

/// The most memory that the process has ever had, in MiB.
pub fn peak_mib(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

/// What commands and the admin address print of it is looked at byte by byte.
pub fn nothing_printed_is_obeyed(scene: &Scene, daemon: Option<&Daemon>, consumers: &[&str]) {
    let hostile = "\u{1b}[2J\u{202e}";
    for arguments in [
        &["dead-letters", "list", "--limit", "2000"][..],
        &["--json", "dead-letters", "list", "--limit", "2000"],
        &["dead-letters", "show", hostile],
        &["status"],
        &["--json", "status"],
        &["position", "show"],
        &["--json", "position", "show"],
        &["consumer", "list"],
    ] {
        let output = scene.outboxd(arguments);
        for text in [&output.stdout, &output.stderr] {
            assert_eq!(obeyed(text), None, "{arguments:?}");
        }
        assert!(!output.stdout.is_empty() || !output.stderr.is_empty(), "{arguments:?}");
    }
    let Some(daemon) = daemon else { return };
    for path in ["/readyz?verbose", "/api/v1/status", "/metrics"] {
        assert_eq!(obeyed(daemon.get(path).1.as_bytes()), None, "{path}");
    }
    for consumer in consumers {
        let (code, body) = daemon.get(&format!("/api/v1/dead-letters?consumer={consumer}&limit=2000"));
        assert_eq!((code, obeyed(body.as_bytes())), (200, None), "{consumer}");
    }
}

#[test]
fn hostile_rows_are_delivered_byte_for_byte_or_become_dead_letters() {
    let _machine = shared_machine();
    let dice = Dice::thrown("hostile rows");
    let count = number("OUTBOXD_TEST_HOSTILE_ROWS").unwrap_or(100_000) as i64;
    let scene = Scene::without_a_file("");
    let stands = [
        Stand::new(&scene, Table::Outbox, "outbox", dice.seed, count / 2),
        Stand::new(&scene, Table::Log, "log", dice.seed.rotate_left(7), count * 3 / 10),
        Stand::new(&scene, Table::ByRow, "rows", dice.seed.rotate_left(14), count / 5),
    ];
    let config: String = stands.iter().map(Stand::config).collect();
    scene.configure(&format!("[daemon]\nadmin = \"127.0.0.1:0\"\nlog_format = \"json\"\n{config}"));
    // What stands below zero has to be there first; half of the rest comes while they are carried.
    stands.iter().for_each(|stand| stand.write(0..stand.count / 2));
    let mut daemon = scene.daemon();
    let began = Instant::now();
    stands.iter().for_each(|stand| stand.write(stand.count / 2..stand.count));
    let within = Duration::from_secs(60 + count as u64 / 500);
    stands.iter().for_each(|stand| stand.wait(&mut daemon, within));
    let took = began.elapsed();
    let peak = peak_mib(&daemon);
    nothing_printed_is_obeyed(&scene, Some(&daemon), &["outbox", "log", "rows"]);
    let listed = peak_mib(&daemon);
    assert_eq!(daemon.stop(Duration::from_secs(20)).0, Some(0));
    nothing_printed_is_obeyed(&scene, None, &[]);
    let log = daemon.log();
    assert!(!log.contains("panicked"), "{}", daemon.log_tail());
    assert_eq!(obeyed(log.as_bytes()), None);
    let (mut delivered, mut dead) = (0, 0);
    for stand in &stands {
        let found = stand.examine(&scene);
        assert!(found.0 > stand.count as u64 / 4 && found.1 > stand.count as u64 / 100, "{}: {found:?}", stand.name);
        (delivered, dead) = (delivered + found.0, dead + found.1);
    }
    // Three windows of 32 MiB at most, and what stands around them.
    assert!(peak < 320, "{peak} MiB");
    Proof::of("hostile rows to files")
        .seed(dice.seed)
        .tried("hostile rows", count as u64)
        .found("delivered byte for byte", delivered)
        .found("dead letters, with the right reason", dead)
        .found("missing, altered, twice, panics, stalls", 0)
        .found("most memory", format!("{peak} MiB"))
        .found("most memory, while dead letters are listed", format!("{listed} MiB"))
        .found("took", format!("{:.0} s", took.as_secs_f64()));
}
