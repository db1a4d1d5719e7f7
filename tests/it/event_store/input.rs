//! Bad input, each refused by name, with nothing of it in the file.

use outboxd::store::event::{Append, EVENTS_MAX, Expected, Message, NewEvent};
use outboxd::store::fault::OpenError;
use outboxd::store::{EventStore, Options};

use super::{Shop, WITHIN, event};
use crate::support::rig::open;

#[tokio::test(flavor = "multi_thread")]
async fn bad_appends_are_refused_by_name() {
    let shop = Shop::open().await;
    shop.filled("there", 2).await;
    let of = |events: Vec<NewEvent>| Append::new("a", "Order", Expected::Any, events);
    let with = |change: fn(&mut NewEvent)| {
        let mut event = event("x", "{}");
        change(&mut event);
        // Also behind one that is right.
        of(vec![NewEvent::new("Placed", "{}"), event])
    };
    let many = (0..=EVENTS_MAX).map(|_| NewEvent::new("Placed", "{}")).collect();
    let huge = format!("\"{}\"", "x".repeat(16 << 20));
    let bulky = (0..5).map(|_| NewEvent::new("Placed", format!("\"{}\"", "x".repeat(15 << 20)))).collect();
    let deep = "[".repeat(1_100) + &"]".repeat(1_100);
    let message = Message { headers: Some("[]".into()), ..Message::of(&event("x", "{}")) };
    let payload =
        |id: &str, bytes: usize| Message { payload: Some("x".repeat(bytes)), ..Message::of(&event(id, "{}")) };
    let cases = [
        (of(Vec::new()), "there are no events in it"),
        (with(|event| event.id = String::new()), "the id is empty"),
        (with(|event| event.id = "a\0b".into()), "the id has a NUL character in it"),
        (with(|event| event.id = "x".repeat(1_025)), "the id has 1025 bytes, at most 1024 are taken"),
        (with(|event| event.kind = String::new()), "the type is empty"),
        (with(|event| event.data = String::new()), "the data of x is no valid JSON, or nested more than 1,000 deep"),
        (
            with(|event| event.data = "{\"a\":}".into()),
            "the data of x is no valid JSON, or nested more than 1,000 deep",
        ),
        (with(|event| event.data = "{a:1}".into()), "the data of x is no valid JSON, or nested more than 1,000 deep"),
        (of(vec![event("x", &deep)]), "the data of x is no valid JSON, or nested more than 1,000 deep"),
        (
            with(|event| event.metadata = Some("[1]".into())),
            "the metadata of x is no valid JSON object, or nested more than 1,000 deep",
        ),
        (
            with(|event| event.metadata = Some("nonsense".into())),
            "the metadata of x is no valid JSON object, or nested more than 1,000 deep",
        ),
        (with(|event| event.time = Some("yesterday".into())), "the time is no ISO 8601 time: \"yesterday\""),
        (of(vec![event("x", &huge)]), "event x has 16777218 bytes, at most 16777216 are taken"),
        (
            Append { outbox: vec![payload("m", (16 << 20) + 1)], ..of(vec![event("x", "{}")]) },
            "event m has 16777217 bytes, at most 16777216 are taken",
        ),
        (
            Append {
                outbox: (0..5).map(|n| payload(&n.to_string(), 15 << 20)).collect(),
                ..of(vec![event("x", "{}")])
            },
            "more than 10000 events or 64 MiB in one transaction",
        ),
        (of(bulky), "more than 10000 events or 64 MiB in one transaction"),
        (of(many), "more than 10000 events or 64 MiB in one transaction"),
        (Append { stream: String::new(), ..of(vec![event("x", "{}")]) }, "the stream is empty"),
        (Append { stream_type: String::new(), ..of(vec![event("x", "{}")]) }, "the stream type is empty"),
        (Append { expected: Expected::Exact(-1), ..of(vec![event("x", "{}")]) }, "the expected version is -1, below 0"),
        (
            Append { stream: "there".into(), stream_type: "Other".into(), ..of(vec![event("x", "{}")]) },
            "stream there is of type Order, not Other",
        ),
        (
            Append { outbox: vec![message], ..of(vec![event("x", "{}")]) },
            "the headers of x is no valid JSON object, or nested more than 1,000 deep",
        ),
    ];
    for (append, told) in cases {
        let refused = shop.store.append(append, WITHIN).await.unwrap_err().to_string();
        assert_eq!(refused, told);
    }
    assert_eq!((shop.count("events"), shop.count("streams"), shop.count("outbox")), (2, 1, 0));
    // As large as may be.
    let largest = format!("\"{}\"", "x".repeat((16 << 20) - 2));
    shop.append("large", Expected::NoStream, vec![event("l", &largest)]).await.unwrap();
    assert_eq!(shop.store.load("large", 1).await.unwrap()[0].data.len(), 16 << 20);
    // Not all at once.
    for n in 0..5 {
        shop.append("large", Expected::Any, vec![event(&format!("l{n}"), &largest)]).await.unwrap();
    }
    let read = shop.store.read_all(2, 100).await.unwrap();
    let rest = shop.store.read_all(read.last().unwrap().position, 100).await.unwrap();
    assert_eq!((read.len(), rest.len()), (4, 2), "64 MiB at a time");
    let (some, rest) = (
        shop.store.reader().load_some("large", 1).await.unwrap(),
        shop.store.reader().load_some("large", 5).await.unwrap(),
    );
    assert_eq!((some.len(), rest.len(), rest[1].version), (4, 2, 6));
    assert!(shop.store.reader().load_some("large", 7).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_end_where_numbers_do() {
    let shop = Shop::open().await;
    let sql = "INSERT INTO events (id, stream_id, stream_type, version, type, data) VALUES ('1', 'a', 'Order', ?1, 'T', '{}')";
    shop.app.execute(sql, [i64::MAX - 1]).unwrap();
    let two = shop.append("a", Expected::Any, vec![event("x", "{}"), event("y", "{}")]).await.unwrap_err();
    assert_eq!(two.to_string(), format!("stream a is at version {}, and no 2 versions are left", i64::MAX - 1));
    let one = shop.append("a", Expected::Exact(i64::MAX - 1), vec![event("x", "{}")]).await.unwrap();
    assert_eq!(one.last_version, i64::MAX);
    assert_eq!(shop.store.load("a", i64::MAX - 1).await.unwrap().len(), 2);
    assert!(shop.store.load("a", 1).await.unwrap_err().to_string().contains("no event of version 1"));
    assert!(shop.append("a", Expected::Any, vec![event("z", "{}")]).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_others_have_bent_is_not_appended_to() {
    let shop = Shop::open().await;
    shop.filled("a", 3).await;
    // Its row says less than the log: the next version is taken.
    shop.app.execute("UPDATE streams SET version = 1", []).unwrap();
    let taken = shop.append("a", Expected::Any, vec![event("x", "{}")]).await.unwrap_err().to_string();
    assert_eq!(taken, "stream a has an event of version 2, which its row in `streams` does not know of");
    // A trigger of the application's own.
    shop.app
        .execute_batch(
            "UPDATE streams SET version = 3; CREATE TRIGGER mine BEFORE INSERT ON events WHEN NEW.type = 'Refused' BEGIN
             SELECT raise(ABORT, 'not today'); END",
        )
        .unwrap();
    let refused = NewEvent::new("Refused", "{}");
    let told = shop.append("a", Expected::Any, vec![NewEvent::new("T", "{}"), refused]).await.unwrap_err();
    assert!(told.to_string().contains("not today"), "{told}");
    assert_eq!(shop.versions("a").await, [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_event_store_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let refused = async |name: &str| EventStore::open(&path(name), Options::default()).await.unwrap_err();
    assert!(matches!(refused("absent.db").await, OpenError::NotThere { .. }));
    assert!(!path("absent.db").exists());
    std::fs::write(path("text.db"), "nothing of a database ".repeat(100)).unwrap();
    assert!(matches!(refused("text.db").await, OpenError::NoDatabase { .. }));
    let app = open(&path("empty.db"));
    assert!(matches!(refused("empty.db").await, OpenError::NoTables { missing, .. } if missing == "table outbox"));
    let tables = ["outbox", "streams", "events", "snapshots", "archived_events"];
    tables.iter().for_each(|table| app.execute_batch(&format!("CREATE TABLE {table} (id)")).unwrap());
    app.execute_batch(
        "CREATE TRIGGER events_streams AFTER INSERT ON events BEGIN SELECT 1; END;
         CREATE TRIGGER events_are_new AFTER INSERT ON events BEGIN SELECT 1; END",
    )
    .unwrap();
    assert!(matches!(refused("empty.db").await, OpenError::NoTables { missing, .. } if missing.contains("columns")));
    outboxd::store::init(&path("rollback.db")).await.unwrap();
    open_as(&path("rollback.db"), "PRAGMA journal_mode = DELETE");
    assert!(matches!(refused("rollback.db").await, OpenError::Journal { mode, .. } if mode == "delete"));
    std::fs::create_dir(path("folder.db")).unwrap();
    assert!(matches!(refused("folder.db").await, OpenError::Premises(_)));
}

fn open_as(path: &std::path::Path, pragma: &str) {
    let connection = rusqlite::Connection::open(path).unwrap();
    let mode: String = connection.query_row(pragma, [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "delete");
}
