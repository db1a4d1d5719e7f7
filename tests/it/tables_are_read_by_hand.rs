//! A table of any application, described column by column, is read by checkpoint: every decoder, every wrong value, and every
//! refusal that keeps an event from being passed over.

use outboxd::consumer::control::Operation;
use outboxd::consumer::status::State;
use outboxd::event::Reason;
use outboxd::source::feed::{self, Run};
use outboxd::state::held::Selection;

use crate::support::by_hand::{Table, look, read};
use crate::support::fake_sink::FarSide;
use crate::support::fleet::{self, Relays, arrived};
use crate::support::rig::{eventually, open};

const FIELDS: &str = "id = \"id\"\ntype = \"kind\"\npayload = \"data\"\n";
const MESSAGES: &str =
    "CREATE TABLE \"my messages\" (\"offset\" INTEGER PRIMARY KEY AUTOINCREMENT, id, kind, data, stream, n, meta, at);";

fn keys(more: &str) -> String {
    let said = |key: &str| more.lines().any(|line| line.starts_with(&format!("{key} =")));
    let usual = FIELDS.lines().filter(|line| !said(line.split(' ').next().unwrap()));
    let usual: Vec<&str> = usual.collect();
    format!("table = \"my messages\"\nposition = \"offset\"\n{}\n{more}\n", usual.join("\n"))
}

/// The one event of a row, with what is wrong with it.
async fn one(columns: &str, values: &str, more: &str) -> (Event, Option<String>) {
    let table = Table::new(MESSAGES, &keys(more));
    // What is not said is there, and right.
    let mut names: Vec<&str> = columns.split(", ").filter(|name| !name.is_empty()).collect();
    let mut row: Vec<String> = if values.is_empty() { vec![] } else { vec![values.to_owned()] };
    for (name, usual) in [("id", "'e1'"), ("kind", "'K'"), ("data", "'{}'")] {
        if !names.contains(&name) {
            names.push(name);
            row.push(usual.to_owned());
        }
    }
    let sql = format!("INSERT INTO \"my messages\" ({}) VALUES ({})", names.join(", "), row.join(", "));
    table.app.execute_batch(&sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    let batch = table.read(0, 10).await.unwrap_or_else(|halt| panic!("{more}: {}", halt.detail));
    assert_eq!(batch.len(), 1, "{more} {values}");
    let defect = batch.defect(0).map(|defect| {
        assert_eq!(defect.reason, Reason::Undecodable);
        defect.detail.clone()
    });
    let event = batch.event(0);
    let text = |bytes: Option<&[u8]>| bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let event = Event {
        id: event.id.to_owned(),
        key: text(event.key),
        version: event.version,
        payload: text(event.payload),
        headers: event.headers.map(str::to_owned),
        micros: event.time_micros,
    };
    (event, defect)
}

#[derive(Debug)]
struct Event {
    id: String,
    key: Option<String>,
    version: Option<i64>,
    payload: Option<String>,
    headers: Option<String>,
    micros: Option<i64>,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_decoder() {
    const UUID: &str = "00112233-4455-6677-8899-aabbccddeeff";
    const HEX: &str = "x'00112233445566778899aabbccddeeff'";
    for (value, take, id) in [
        ("'plain'", "\"id\"", "plain"),
        ("42", "\"id\"", "42"),
        ("42", "{ column = \"id\", as = \"integer\" }", "42"),
        ("-9223372036854775808", "\"id\"", "-9223372036854775808"),
        (HEX, "{ column = \"id\", as = \"uuid\" }", UUID),
        (HEX, "{ column = \"id\", as = \"hex\" }", "00112233445566778899aabbccddeeff"),
        (HEX, "{ column = \"id\", as = \"uuid_mixed\" }", "33221100-5544-7766-8899-aabbccddeeff"),
        ("'00112233445566778899AABBCCDDEEFF'", "{ column = \"id\", as = \"uuid\" }", UUID),
        ("'00112233-4455-6677-8899-AABBCCDDEEFF'", "{ column = \"id\", as = \"uuid\" }", UUID),
        ("'{\"a\":{\"id\":\"x\\u00e9\"}}'", "{ column = \"id\", path = \"$.a.id\" }", "xé"),
        ("'[7,8]'", "{ column = \"id\", path = \"$[1]\" }", "8"),
        ("7", "\"{kind}:{id}-{offset}\"", "K:7-1"),
        ("NULL", "[\"id\", \"kind\"]", "K"),
        ("NULL", "{ constant = \"it's\" }", "it's"),
    ] {
        let (event, defect) = one("id", value, &format!("id = {take}")).await;
        assert_eq!((event.id.as_str(), defect), (id, None), "{value} {take}");
    }
    for (value, take, payload) in [
        ("'{ \"a\" : 1.0 }'", "\"data\"", "{ \"a\" : 1.0 }"),
        ("x'7b7d'", "\"data\"", "{}"),
        ("x'7b7d'", "{ column = \"data\", as = \"blob\" }", "{}"),
        ("''", "\"data\"", ""),
        ("7", "\"data\"", "7"),
        (
            "'{\"p\": { \"z\":1.50,\"a\" :\"\\u00e9\" } }'",
            "{ column = \"data\", path = \"$.p\" }",
            "{ \"z\":1.50,\"a\" :\"\\u00e9\" }",
        ),
        ("'{\"p\":null}'", "{ column = \"data\", path = \"$.p\" }", "null"),
        ("jsonb('{\"a\":[1,2]}')", "{ column = \"data\", as = \"jsonb\" }", "{\"a\":[1,2]}"),
        ("'{\"a\": 1}'", "{ column = \"data\", as = \"jsonb\" }", "{\"a\": 1}"),
        ("jsonb('{\"p\":{\"q\":1}}')", "{ column = \"data\", path = \"$.p\", as = \"jsonb\" }", "{\"q\":1}"),
        (
            "'x\"y'",
            "{ fields = { a = \"data\", k = \"{kind}\", n = \"offset\", none = \"meta\" } }",
            "{\"a\":\"x\\\"y\",\"k\":\"K\",\"n\":1}",
        ),
        (
            "'{\"a\":[1]}'",
            "{ fields = { whole = { column = \"data\", as = \"json\" }, part = { column = \"data\", path = \"$.a\" } } }",
            "{\"part\":[1],\"whole\":{\"a\":[1]}}",
        ),
    ] {
        let (event, defect) = one("data", value, &format!("payload = {take}")).await;
        assert_eq!((event.payload.as_deref(), defect), (Some(payload), None), "{value} {take}");
    }
    for (value, take, micros) in [
        ("'2026-11-21T03:15:20Z'", "\"at\"", 1_795_230_920_000_000),
        ("'2026-11-21T03:15:20.123456789Z'", "\"at\"", 1_795_230_920_123_456),
        ("'2026-11-21T03:15:20.5'", "\"at\"", 1_795_230_920_500_000),
        ("'2026-11-21T05:15:20+02:00'", "{ column = \"at\", as = \"iso\" }", 1_795_230_920_000_000),
        ("'2026-11-21 03:15:20'", "{ column = \"at\", as = \"iso\" }", 1_795_230_920_000_000),
        ("1795230920", "{ column = \"at\", as = \"epoch_s\" }", 1_795_230_920_000_000),
        ("1795230920123", "{ column = \"at\", as = \"epoch_ms\" }", 1_795_230_920_123_000),
        ("1795230920123456", "{ column = \"at\", as = \"epoch_us\" }", 1_795_230_920_123_456),
        ("0", "{ column = \"at\", as = \"epoch_s\" }", 0),
        ("'2999-12-31T23:59:59Z'", "\"at\"", 32_503_679_999_000_000),
    ] {
        let (event, defect) = one("at", value, &format!("time = {take}")).await;
        assert_eq!((event.micros, defect), (Some(micros), None), "{value} {take}");
    }
    for (value, take, headers) in [
        ("'{\"tenant\":\"a\"}'", "\"meta\"", Some("{\"tenant\":\"a\"}")),
        ("NULL", "\"meta\"", None),
        ("'{\"h\":{\"n\":1}}'", "{ column = \"meta\", path = \"$.h\" }", Some("{\"n\":1}")),
        (
            "7",
            "{ fields = { n = \"meta\", text = \"{meta}\", c = { constant = \"x\" } } }",
            Some("{\"c\":\"x\",\"n\":7,\"text\":\"7\"}"),
        ),
    ] {
        let (event, defect) = one("meta", value, &format!("headers = {take}")).await;
        assert_eq!((event.headers.as_deref(), defect), (headers, None), "{value} {take}");
    }
    for (value, take, key) in [
        ("x'00ff'", "\"stream\"", "\0\u{fffd}"),
        ("5", "\"stream\"", "5"),
        ("'{\"k\":\"s\"}'", "{ column = \"stream\", path = \"$.k\" }", "s"),
    ] {
        let (event, defect) = one("stream", value, &format!("key = {take}")).await;
        assert_eq!((event.key.as_deref(), defect), (Some(key), None), "{value} {take}");
    }
    let (event, defect) = one("n", "'12'", "version = \"n\"").await;
    assert_eq!((event.version, defect), (Some(12), None));
    let (event, _) = one("stream", "'s'", "stream_id = \"stream\"").await;
    assert_eq!(event.key.as_deref(), Some("s"), "without a key, order is kept by the stream");
    let (event, defect) = one("data", "NULL", "tombstones = true").await;
    assert_eq!((event.payload, defect), (None, None));
}

/// A wrong value in a mapped column says which column, and why.
#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_value_is_named() {
    let big = format!("'{}{}'", "[".repeat(10_000), "]".repeat(10_000));
    for (column, value, more, said) in [
        ("id", "NULL", "", "column for id (id) is NULL or empty"),
        ("id", "''", "", "column for id (id) is NULL or empty"),
        ("id", "x'ff'", "", "column for id (id) is not UTF-8"),
        ("id", "CAST(x'61ff' AS TEXT)", "", "column for id (id) is not UTF-8"),
        (
            "id",
            "x'0011'",
            "id = { column = \"id\", as = \"uuid\" }",
            "(id as uuid) is a BLOB of 2 bytes, where a UUID is wanted",
        ),
        ("id", "'zz'", "id = { column = \"id\", as = \"uuid\" }", "(id as uuid) is no UUID"),
        ("id", "7", "id = { column = \"id\", as = \"uuid\" }", "is an INTEGER, where a UUID is wanted"),
        ("id", "'x'", "id = { column = \"id\", as = \"integer\" }", "is TEXT, where a whole number is wanted"),
        ("id", "1.5", "id = { column = \"id\", as = \"integer\" }", "is a REAL, where a whole number is wanted"),
        ("id", "'x'", "id = { column = \"id\", as = \"hex\" }", "is TEXT, where a BLOB is wanted"),
        ("id", "7", "id = { column = \"id\", as = \"text\" }", "is an INTEGER, where text is wanted"),
        ("id", "'x'", "id = { column = \"id\", path = \"$.a\" }", "(id at $.a) holds no JSON"),
        ("id", "'{}'", "id = { column = \"id\", path = \"$.a\" }", "(id at $.a) is NULL or empty"),
        ("meta", "NULL", "id = \"{kind}:{meta}\"", "column for id ({kind}:{meta}) is NULL or empty"),
        ("kind", "NULL", "", "column for type (kind) is NULL"),
        ("kind", "x'ff00'", "", "column for type (kind) is not UTF-8"),
        ("stream", "x'ff'", "stream_id = \"stream\"\nkey = \"id\"", "column for stream_id (stream) is not UTF-8"),
        (
            "stream",
            "7",
            "stream_type = { column = \"stream\", as = \"text\" }",
            "column for stream_type (stream as text) is an INTEGER",
        ),
        (
            "stream",
            "7",
            "key = { column = \"stream\", as = \"blob\" }",
            "column for key (stream as blob) is an INTEGER, where a BLOB is wanted",
        ),
        ("n", "'x'", "version = \"n\"", "column for version (n) is no whole number"),
        ("n", "1.5", "version = \"n\"", "column for version (n) is no whole number"),
        ("data", "NULL", "", "column for payload (data) is NULL"),
        (
            "data",
            "'{}'",
            "payload = { column = \"data\", path = \"$.p\" }",
            "column for payload (data at $.p) has nothing at $.p",
        ),
        (
            "data",
            "'{\"p\":1'",
            "payload = { column = \"data\", path = \"$.p\" }",
            "holds no JSON that $.p could be found in",
        ),
        ("data", "'nope'", "payload = { column = \"data\", as = \"json\" }", "is no JSON"),
        ("data", "x'c3'", "payload = { column = \"data\", as = \"jsonb\" }", "is no JSONB"),
        ("data", "x'00'", "payload = { column = \"data\", as = \"text\" }", "is a BLOB, where text is wanted"),
        (
            "data",
            "x'00'",
            "payload = { fields = { a = \"data\" } }",
            "column for a (data) is a BLOB, which JSON cannot hold",
        ),
        (
            "data",
            "'x'",
            "payload = { fields = { a = { column = \"data\", as = \"json\" } } }",
            "column for a (data as json) is no JSON",
        ),
        ("meta", "'[1]'", "headers = \"meta\"", "column for headers (meta) is no JSON object"),
        ("meta", "'{'", "headers = \"meta\"", "column for headers (meta) is no JSON"),
        ("meta", "7", "headers = \"meta\"", "column for headers (meta) is an INTEGER, where JSON is wanted"),
        ("meta", big.as_str(), "headers = \"meta\"", "column for headers (meta) is no JSON object"),
        (
            "at",
            "'soon'",
            "time = { column = \"at\", as = \"iso\" }",
            "column for time (at as iso) is no time that can be read",
        ),
        ("at", "7", "time = { column = \"at\", as = \"iso\" }", "is an INTEGER, where a time in text is wanted"),
        ("at", "'7'", "time = { column = \"at\", as = \"epoch_s\" }", "is TEXT, where a whole number is wanted"),
        (
            "at",
            "9223372036854775807",
            "time = { column = \"at\", as = \"epoch_s\" }",
            "which is no time in such a count",
        ),
        ("at", "x'ff'", "time = \"at\"", "column for time (at) is not UTF-8"),
    ] {
        let (event, defect) = one(column, value, more).await;
        let defect = defect.unwrap_or_else(|| panic!("{column} = {value} with {more:?} was taken: {event:?}"));
        assert!(defect.contains(said), "{column} = {value} with {more:?}: {said:?} is not said in {defect:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_row_becomes_a_dead_letter_and_the_others_flow() {
    let table = Table::new(MESSAGES, &keys("key = \"id\"\nid = { column = \"id\", as = \"uuid\" }"));
    table
        .app
        .execute_batch(
            "INSERT INTO \"my messages\" (id, kind, data) VALUES (x'00112233445566778899aabbccddeeff', 'K', 'one'), (x'0b', 'K', 'two'),
             (x'00112233445566778899aabbccddeef0', 'K', 'three'), (NULL, 'K', 'four'), (x'00112233445566778899aabbccddeef1', 'K', 'five')",
        )
        .unwrap();
    let far_side = FarSide::default();
    let mut relay = fleet::relay("r", &table.source.name, fleet::fake(&far_side));
    relay.bounds.attempts_max = 1;
    let relays = Relays::start(std::slice::from_ref(&table.source), vec![relay]);
    let bodies: Vec<Vec<u8>> = arrived(&far_side, 3).await.into_iter().map(|arrival| arrival.body).collect();
    assert_eq!(bodies, [b"one".to_vec(), b"three".to_vec(), b"five".to_vec()]);
    relays.reaches("r", |status| status.dead == 2 && status.position == 5).await;
    // Mended, they are the events that they should have been.
    table.app.execute_batch("UPDATE \"my messages\" SET id = zeroblob(16) WHERE data IN ('two', 'four')").unwrap();
    relays.operate("r", Operation::Retry(Selection::default())).await;
    let mended: Vec<_> = arrived(&far_side, 5).await.into_iter().skip(3).map(|arrival| arrival.id).collect();
    assert_eq!(mended, ["00000000-0000-0000-0000-000000000000"; 2]);
    relays.reaches("r", |status| status.held_keys == 0).await;
    relays.stop().await;
}

/// Sizes are asked first: what is too large is not read, whichever column it stands in.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_a_dead_letter_unread() {
    for more in [
        "",
        "payload = { column = \"data\", path = \"$.p\" }",
        "payload = { fields = { a = \"data\" } }",
        "payload = { column = \"data\", as = \"json\" }",
    ] {
        let table = Table::new(MESSAGES, &keys(more));
        table
            .app
            .execute_batch(
                "INSERT INTO \"my messages\" (id, kind, data) VALUES ('e', 'K', CAST(zeroblob(70000) AS TEXT))",
            )
            .unwrap();
        let batch = table.read(0, 10).await.unwrap();
        assert_eq!(batch.defect(0).map(|defect| defect.reason), Some(Reason::TooLarge), "{more}");
        assert!(batch.bytes() < 100, "{more}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_joins_what_it_needs() {
    let sql = "CREATE TABLE streams (id INTEGER PRIMARY KEY, name TEXT);
               CREATE TABLE msgs (pos INTEGER PRIMARY KEY AUTOINCREMENT, stream INTEGER, id TEXT, kind TEXT, data TEXT, live INTEGER DEFAULT 1);
               INSERT INTO streams VALUES (1, 'order-1'), (2, 'order-2');
               INSERT INTO msgs (stream, id, kind, data, live) VALUES (1, 'a', 'K', '1', 1), (2, 'b', 'K', '2', 0), (2, 'c', 'K', '3', 1);
               CREATE VIEW seen AS SELECT m.*, s.name FROM msgs m JOIN streams s ON s.id = m.stream WHERE m.live;";
    let fields = "position = \"pos\"\nid = \"id\"\ntype = \"kind\"\npayload = \"data\"\nstream_id = \"name\"\n";
    let query =
        "query = \"SELECT m.*, s.name FROM msgs m JOIN streams s ON s.id = m.stream WHERE m.live -- those alone\"\n";
    for from in [query, "table = \"seen\"\n"] {
        let table = Table::new(sql, &format!("{from}{fields}"));
        let batch = table.read(0, 10).await.unwrap();
        let read: Vec<_> = batch.events().map(|event| (event.position.0, event.id, event.stream_id.unwrap())).collect();
        assert_eq!(read, [(1, "a", "order-1"), (3, "c", "order-2")], "{from}");
        let look = table.look().await.unwrap();
        assert_eq!((look.mapping.table.as_str(), look.head.0), ("msgs", 3));
        assert_eq!(look.plan.warnings, Vec::<String>::new(), "{:?}", look.plan.steps);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_doubles_positions_halts() {
    let sql = "CREATE TABLE tags (msg INTEGER, tag TEXT);
               CREATE TABLE msgs (pos INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT, kind TEXT, data TEXT);
               INSERT INTO msgs (id, kind, data) VALUES ('a', 'K', '1'), ('b', 'K', '2');
               INSERT INTO tags VALUES (1, 'x'), (2, 'x'), (2, 'y');";
    let keys = "query = \"SELECT m.*, t.tag FROM msgs m JOIN tags t ON t.msg = m.pos\"\nposition = \"pos\"\nid = \"{id}:{tag}\"\ntype = \"kind\"\npayload = \"data\"\n";
    let table = Table::new(sql, keys);
    let halt = table.read(0, 10).await.unwrap_err();
    assert!(halt.detail.contains("not unique and growing: 2 comes behind 2"), "{}", halt.detail);
    // Also where a batch would end between the two.
    let halt = table.read(0, 2).await.unwrap_err();
    assert!(halt.detail.contains("more than one event with position 2"), "{}", halt.detail);
}

/// SQL of a person's own can only read.
#[tokio::test(flavor = "multi_thread")]
async fn raw_sql_is_fenced() {
    let sql = "CREATE TABLE msgs (pos INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT, kind TEXT, data TEXT);
               INSERT INTO msgs (id, kind, data) VALUES ('e', 'K', 'x');";
    for query in [
        "SELECT m.*, load_extension('/tmp/x') AS x FROM msgs m",
        "SELECT * FROM msgs); ATTACH 'other.db' AS other; SELECT (1",
        "SELECT m.*, p.* FROM msgs m, pragma_database_list() p",
        "SELECT m.*, p.* FROM msgs m, pragma_compile_options() p",
        "WITH x AS (SELECT 1) DELETE FROM msgs RETURNING *",
    ] {
        let keys =
            format!("query = \"{query}\"\nposition = \"pos\"\nid = \"id\"\ntype = \"kind\"\npayload = \"data\"\n");
        let table = Table::new(sql, &keys);
        let halt = table.read(0, 10).await.err().unwrap_or_else(|| panic!("{query} was taken"));
        assert!(!table.folder.path().join("other.db").exists());
        assert!(halt.detail.contains("Remedy"), "{query}: {}", halt.detail);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_must_be_in_the_schema() {
    let rest = "id = \"id\"\ntype = \"kind\"\npayload = \"data\"\n";
    for (keys, said) in [
        (
            "position = \"offset\"\nid = \"identity\"\ntype = \"kind\"\npayload = \"data\"".to_owned(),
            "there is no column identity in table my messages. Remedy: did you mean id?",
        ),
        (
            format!("position = \"ofset\"\n{rest}"),
            "there is no column ofset in table my messages. Remedy: did you mean offset?",
        ),
        (
            format!("position = \"offset\"\ntime = \"zzz\"\n{rest}"),
            "there is no column zzz in table my messages. Remedy: the table has offset, id, kind, data",
        ),
    ] {
        let table = Table::new(MESSAGES, &format!("table = \"my messages\"\n{keys}"));
        let halt = table.look().await.unwrap_err();
        assert!(halt.detail.contains(said), "{said:?} is not said in {:?}", halt.detail);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_goes_halts_with_its_name() {
    let table = Table::new(MESSAGES, &keys("time = \"at\""));
    table.app.execute_batch("INSERT INTO \"my messages\" (id, kind, data) VALUES ('e1', 'K', 'x')").unwrap();
    let far_side = FarSide::default();
    let relays = Relays::one(table.source.clone(), fleet::fake(&far_side));
    arrived(&far_side, 1).await;
    table.app.execute_batch("ALTER TABLE \"my messages\" DROP COLUMN at").unwrap();
    table.app.execute_batch("INSERT INTO \"my messages\" (id, kind, data) VALUES ('e2', 'K', 'x')").unwrap();
    let status = relays.reaches("r", |status| status.state == State::Halted).await;
    assert!(status.detail.contains("there is no column at") && status.detail.contains("Remedy"), "{}", status.detail);
    relays.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_may_come_again_is_refused_unless_allowed() {
    let fields = "id = \"id\"\ntype = \"kind\"\npayload = \"data\"\n";
    for (sql, position, allowed) in [
        ("CREATE TABLE t (pos INTEGER PRIMARY KEY, id TEXT, kind TEXT, data TEXT)", "pos", true),
        ("CREATE TABLE t (id TEXT, kind TEXT, data TEXT)", "rowid", true),
        ("CREATE TABLE t (id TEXT PRIMARY KEY, pos INTEGER UNIQUE, kind TEXT, data TEXT)", "pos", true),
        ("CREATE TABLE t (id TEXT PRIMARY KEY, pos INTEGER, kind TEXT, data TEXT)", "pos", false),
        (
            "CREATE TABLE t (k INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT, pos INTEGER, kind TEXT, data TEXT)",
            "pos",
            false,
        ),
    ] {
        let keys = format!("table = \"t\"\nposition = \"{position}\"\n{fields}");
        let halt = Table::new(sql, &keys).look().await.unwrap_err();
        assert!(
            halt.detail.contains("has no AUTOINCREMENT key") && halt.detail.contains("allow_reused_positions"),
            "{}",
            halt.detail
        );
        let looked = Table::new(sql, &format!("{keys}allow_reused_positions = true\n")).look().await;
        match looked {
            Ok(_) => assert!(allowed, "{sql}"),
            Err(halt) => {
                assert!(!allowed, "{sql}: {}", halt.detail);
                assert!(
                    halt.detail.contains("not unique") && halt.detail.contains("CREATE UNIQUE INDEX"),
                    "{}",
                    halt.detail
                );
            }
        }
    }
    let expression = "query = \"SELECT pos + 1 AS pos, id, kind, data FROM t\"\nposition = \"pos\"\n";
    let table = Table::new(
        "CREATE TABLE t (pos INTEGER PRIMARY KEY AUTOINCREMENT, id, kind, data)",
        &format!("{expression}{fields}"),
    );
    let halt = table.look().await.unwrap_err();
    assert!(halt.detail.contains("is no column of a table"), "{}", halt.detail);
}

/// Allowed, it is still seen when the newest rows were deleted, or one stands at the checkpoint that was not read.
#[tokio::test(flavor = "multi_thread")]
async fn reused_positions_are_seen_as_far_as_they_can_be() {
    let sql = "CREATE TABLE t (pos INTEGER PRIMARY KEY, id TEXT, kind TEXT, data TEXT)";
    let keys = "table = \"t\"\nposition = \"pos\"\nid = \"id\"\ntype = \"kind\"\npayload = \"data\"\nallow_reused_positions = true\n";
    for (after, why) in [
        (
            "DELETE FROM t WHERE pos = 3; INSERT INTO t (id, kind, data) VALUES ('new', 'K', 'x')",
            "is not the one that was read: at position 3",
        ),
        (
            "DELETE FROM t WHERE pos > 1; INSERT INTO t (id, kind, data) VALUES ('new', 'K', 'x')",
            "or its newest rows were deleted",
        ),
    ] {
        let table = Table::new(sql, keys);
        table
            .app
            .execute_batch("INSERT INTO t (id, kind, data) VALUES ('a', 'K', 'x'), ('b', 'K', 'x'), ('c', 'K', 'x')")
            .unwrap();
        let far_side = FarSide::default();
        let relays = Relays::one(table.source.clone(), fleet::fake(&far_side));
        relays.reaches("r", |status| status.position == 3).await;
        table.app.execute_batch(&format!("BEGIN; {after}; COMMIT")).unwrap();
        eventually("the relay halts", || relays.status("r").state == State::Halted).await;
        assert!(relays.status("r").detail.contains(why), "{}", relays.status("r").detail);
        assert_eq!(far_side.arrivals().len(), 3);
        relays.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_plan_is_told_with_the_index_that_is_missing() {
    let sql = "CREATE TABLE streams (id INTEGER, name TEXT); CREATE TABLE msgs (pos INTEGER PRIMARY KEY AUTOINCREMENT, stream INTEGER, id TEXT, kind TEXT, data TEXT);";
    let fields = "position = \"pos\"\nid = \"id\"\ntype = \"kind\"\npayload = \"data\"\n";
    let table = Table::new(
        sql,
        &format!(
            "query = \"SELECT m.*, streams.name FROM msgs m LEFT JOIN streams ON streams.id = m.stream\"\n{fields}"
        ),
    );
    let look = table.look().await.unwrap();
    let told = look.plan.warnings.join("\n");
    assert!(told.contains("CREATE INDEX \"streams_id\" ON streams (\"id\")"), "{:?}", look.plan);
    table.app.execute_batch("CREATE INDEX \"streams_id\" ON streams (\"id\")").unwrap();
    assert_eq!(table.look().await.unwrap().plan.warnings, Vec::<String>::new());
    // A sort of everything, for every batch.
    let table = Table::new(
        "CREATE TABLE t (id TEXT PRIMARY KEY, kind TEXT, data TEXT, pos INTEGER PRIMARY KEY AUTOINCREMENT)"
            .replace("id TEXT PRIMARY KEY", "id TEXT")
            .as_str(),
        "query = \"SELECT pos, id, kind, data FROM t UNION ALL SELECT -pos, id, kind, data FROM t WHERE 0\"\nposition = \"pos\"\nid = \"id\"\ntype = \"kind\"\npayload = \"data\"\nallow_reused_positions = true\n",
    );
    let looked = table.look().await;
    assert!(looked.is_err() || !looked.unwrap().plan.warnings.is_empty());
}

/// SQL that never ends is stopped, and the relay halts with what it was; the thread that reads is free again.
#[tokio::test(flavor = "multi_thread")]
async fn sql_that_runs_away_is_stopped_and_named() {
    const FOR_EVER: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)";
    let fields = "position = \"offset\"\nid = \"id\"\ntype = \"kind\"\npayload = \"data\"\nsql_time_max = \"200ms\"\n";
    let rows = "table = \"my messages\"\nrow = \"offset\"\non_delivered = \"delete\"\n";
    let fine = "SELECT * FROM \\\"my messages\\\"";
    for (key, text) in [
        (
            "query",
            format!(
                "query = \"{FOR_EVER} {} m WHERE m.\\\"offset\\\" IN (SELECT i FROM n)\"\n{fields}",
                fine.replace('*', "m.*")
            ),
        ),
        ("pending_sql", format!("{rows}pending_sql = \"o.\\\"offset\\\" IN ({FOR_EVER} SELECT i FROM n)\"\n{fields}")),
        (
            "refuse_if",
            format!(
                "query = \"{fine}\"\nrefuse_if = \"{FOR_EVER} SELECT 1 FROM n WHERE i < 0\"\nrefuse_because = \"x\"\n{fields}"
            ),
        ),
    ] {
        let table = Table::new(MESSAGES, &text);
        table.app.execute_batch("INSERT INTO \"my messages\" (id, kind, data) VALUES ('a', 'K', '{}')").unwrap();
        let halt = match table.look().await {
            Err(halt) => halt,
            Ok(_) => table.read(0, 10).await.unwrap_err(),
        };
        for said in [key, "200ms", "was stopped", "sql_time_max", "RECURSIVE"] {
            assert!(halt.detail.contains(said), "{said:?} is not said in {}", halt.detail);
        }
    }
}

/// Two readers of one file, each with its own description.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_table_may_be_described_twice() {
    let table = Table::new(MESSAGES, &keys(""));
    table.app.execute_batch("INSERT INTO \"my messages\" (id, kind, data) VALUES ('e1', 'K', '{\"p\":1}')").unwrap();
    let other = table.described(&keys("payload = { column = \"data\", path = \"$.p\" }")).unwrap();
    assert_eq!(table.read(0, 1).await.unwrap().event(0).payload, Some(&b"{\"p\":1}"[..]));
    assert_eq!(read(&other, 0, 1).await.unwrap().event(0).payload, Some(&b"1"[..]));
}

/// docs/SOURCES.md, followed to the letter on tables as the libraries make them: its sections, and a file that the events go to.
#[tokio::test(flavor = "multi_thread")]
async fn the_guide_works_as_written() {
    let guide = include_str!("../../docs/SOURCES.md");
    for (name, sql, ids) in [
        (
            "shop",
            "CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, id VARCHAR NOT NULL, version INTEGER, reason VARCHAR, type VARCHAR,
                                  timestamp VARCHAR, data BLOB, metadata BLOB, UNIQUE (id, type, version));
             INSERT INTO events (id, version, reason, type, timestamp, data) VALUES ('a', 1, 'Born', 'Person', '2026-11-21T03:15:20Z', x'7b7d');",
            "a:1",
        ),
        (
            "bank",
            "CREATE TABLE events (aggregate_type TEXT NOT NULL, aggregate_id TEXT NOT NULL, sequence INTEGER NOT NULL, event_type TEXT NOT NULL,
                                  event_version TEXT NOT NULL, payload TEXT NOT NULL, metadata TEXT NOT NULL,
                                  PRIMARY KEY (aggregate_type, aggregate_id, sequence)) STRICT;
             INSERT INTO events VALUES ('account', 'z', 1, 'Opened', '1.0', '{\"n\":1}', '{}'), ('account', 'a', 1, 'Opened', '1.0', '{}', '{\"t\":\"x\"}');",
            "account:z:1,account:a:1",
        ),
        (
            "bank_fed",
            "CREATE TABLE events (aggregate_type TEXT NOT NULL, aggregate_id TEXT NOT NULL, sequence INTEGER NOT NULL, event_type TEXT NOT NULL,
                                  event_version TEXT NOT NULL, payload TEXT NOT NULL, metadata TEXT NOT NULL,
                                  PRIMARY KEY (aggregate_type, aggregate_id, sequence)) STRICT;
             INSERT INTO events VALUES ('account', 'z', 1, 'Opened', '1.0', '{\"n\":1}', '{}'), ('account', 'a', 1, 'Opened', '1.0', '{}', '{\"t\":\"x\"}');",
            "account:z:1,account:a:1",
        ),
        (
            "cqrs",
            "CREATE TABLE tbl_events (id BLOB PRIMARY KEY, aggregate_id BLOB, aggregate_version INTEGER, type TEXT NOT NULL, data TEXT, meta TEXT);
             INSERT INTO tbl_events VALUES (x'00112233445566778899aabbccddeeff', x'ff112233445566778899aabbccddeeff', 1, 'Made', '{}', NULL);",
            "00112233-4455-6677-8899-aabbccddeeff",
        ),
        (
            "jobs",
            "CREATE TABLE outbox_events (id TEXT PRIMARY KEY, status TEXT, next_retry_at TEXT, occurred_at TEXT, order_id TEXT, type TEXT, payload TEXT,
                                         sent_at TEXT, retry_count INTEGER, last_error TEXT);
             INSERT INTO outbox_events (id, status, next_retry_at, occurred_at, order_id, type, payload)
             VALUES ('1', 'created', '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z', 'o', 'T', '{}'), ('2', 'sent', '', '', 'o', 'T', '{}');",
            "1",
        ),
    ] {
        let head = format!("[sources.{name}]\n");
        let section = guide.split(&head).nth(1).unwrap_or_else(|| panic!("the guide has no {head}")).split("```").next().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (config, out) = (folder.path().join("outboxd.toml"), folder.path().join("out.ndjson"));
        let relay = format!("[sinks.out]\ntype = \"file\"\npath = \"out.ndjson\"\n[relays.r]\nsource = \"{name}\"\nsink = \"out\"\n");
        // A relay of a log must say where it begins; one of a queue has nothing to say.
        let start = if section.contains("\npending") { "" } else { "start = \"first\"\n" };
        std::fs::write(&config, format!("{head}{section}{relay}{start}")).unwrap();
        let loaded = outboxd::config::load_with(&config, Vec::new()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let source = &loaded.config.sources[name];
        open(&source.path).execute_batch(sql).unwrap();
        if section.contains("\nfeed = true") {
            feed::make(&source.path, source.tables[0].from.table().unwrap(), None, Run::Make).unwrap();
        }
        let look = look(source).await.unwrap_or_else(|halt| panic!("{name}: {}", halt.detail));
        if name != "jobs" {
            assert_eq!(look.plan.warnings, Vec::<String>::new(), "{name}");
        }
        let relays = Relays::start(std::slice::from_ref(source), loaded.config.relays.clone());
        let carried = || -> Vec<String> {
            let text = std::fs::read_to_string(&out).unwrap_or_default();
            let id = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
            text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(id).collect()
        };
        let expected: Vec<&str> = ids.split(',').collect();
        eventually(&format!("{name}: all is in the file"), || carried().len() >= expected.len()).await;
        relays.reaches("r", |status| status.delivered == expected.len() as u64 && status.dead == 0).await;
        relays.stop().await;
        assert_eq!(carried(), expected, "{name}");
    }
}
