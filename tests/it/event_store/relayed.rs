//! `read = "events"`: what was moved to the archive is read, replayed and audited as if it had not moved.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::time::Duration;

use serde_json::Value;

use super::archive;
use crate::support::by_hand::Table;
use crate::support::process::{Scene, shared_machine};
use crate::support::relays::{file, relay};
use crate::support::rig::open;
use crate::support::wait::until;

const LOG: &str = "[sources.shop]\npath = \"app.db\"\npreset = \"outboxd\"\nread = \"events\"\n";
const DEADLINE: Duration = Duration::from_secs(30);

fn write(app: &rusqlite::Connection, from: i64, to: i64) {
    let transaction = app.unchecked_transaction().unwrap();
    for n in from..=to {
        let sql = "INSERT INTO events (id, stream_id, stream_type, version, type, data) VALUES (?1, ?2, 'Order', ?3, 'T', '{}')";
        transaction.execute(sql, (format!("e{n}"), format!("s{}", n % 5), (n - 1) / 5 + 1)).unwrap();
    }
    transaction.commit().unwrap();
}

fn ids(scene: &Scene) -> Vec<String> {
    let text = std::fs::read_to_string(scene.path("lines.ndjson")).unwrap();
    let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
    text.lines().map(id).collect()
}

fn expected(to: i64) -> Vec<String> {
    (1..=to).map(|n| format!("e{n}")).collect()
}

#[test]
fn a_relay_reads_replays_and_audits_what_was_archived() {
    let _machine = shared_machine();
    let scene = Scene::new(&[LOG, &file("lines"), &relay("lines", "")].concat());
    let app = open(&scene.path("app.db"));
    write(&app, 1, 1_000);
    (0..5).for_each(|stream| archive(&app, &format!("s{stream}"), 120 + 10 * stream));
    let mut daemon = scene.daemon();
    // While it reads, they go on moving, also what was read already.
    let (stop, moved) = (AtomicBool::new(false), AtomicI64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mover = open(&scene.path("app.db"));
            while !stop.load(SeqCst) {
                let n = moved.load(SeqCst);
                archive(&mover, &format!("s{}", n % 5), 120 + n);
                moved.store(n + 1, SeqCst);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        for n in 0..40 {
            write(&app, 1_001 + n * 50, 1_050 + n * 50);
            until("something moves", DEADLINE, || (moved.load(SeqCst) > 3 * n).then_some(()));
        }
        daemon.until_settled("to_lines", 3_000, DEADLINE);
        stop.store(true, SeqCst);
    });
    assert_eq!(ids(&scene), expected(3_000));
    let archived: i64 = app.query_row("SELECT count(*) FROM archived_events", [], |row| row.get(0)).unwrap();
    assert!(archived > 700, "{archived}");
    assert_eq!(daemon.stop(DEADLINE).0, Some(0));
    let audit = scene.outboxd(&["audit", "to_lines"]);
    assert!(audit.status.success(), "{}", String::from_utf8_lossy(&audit.stdout));
    let replay = scene.outboxd(&["replay", "to_lines", "--from", "1", "--to", "50", "--yes"]);
    assert!(replay.status.success(), "{}", String::from_utf8_lossy(&replay.stderr));
    assert_eq!(ids(&scene), [expected(3_000), expected(50)].concat());
    // Everything once more, from the beginning.
    let again = scene.outboxd(&["position", "set", "to_lines", "first", "--yes"]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    scene.daemon().until_settled("to_lines", 3_000, DEADLINE);
    assert_eq!(ids(&scene), [expected(3_000), expected(50), expected(3_000)].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn both_tables_are_searched_and_the_archive_belongs_to_the_source() {
    let preset = "preset = \"outboxd\"\nread = \"events\"\n";
    let table = Table::new(&outboxd::store::schema(), preset);
    write(&table.app, 1, 50);
    (0..5).for_each(|stream| archive(&table.app, &format!("s{stream}"), 4));
    let look = table.look().await.unwrap();
    assert_eq!((look.before_first.0, look.head.0, look.has_events), (0, 50, true));
    assert_eq!((look.head_id.as_str(), look.plan.warnings.len()), ("e50", 0));
    assert!(look.plan.steps.iter().all(|step| !step.starts_with("SCAN") && !step.contains("TEMP")), "{:?}", look.plan);
    assert!(look.mapping.told.contains(&("archive".to_owned(), "archived_events".to_owned())));
    let read = table.read(10, 1_000).await.unwrap();
    assert!(read.events().map(|event| event.id.to_owned()).eq((11..=50).map(|n| format!("e{n}"))));
    let scan = outboxd::source::scan::Scan::open(&table.source).unwrap();
    assert_eq!(
        (scan.count().unwrap(), scan.rows_gone().unwrap(), scan.bounds().unwrap()),
        (50, Some(0), Some((1, 50)))
    );
    // Without it, what was moved is not there.
    let words = "table = \"events\"\nposition = \"position\"\nid = \"id\"\nkey = \"stream_id\"\ntype = \"type\"\npayload = \"data\"\n";
    let alone = Table { source: table.described(words).unwrap(), ..table };
    let read = alone.read(10, 1_000).await.unwrap();
    assert_eq!(read.events().map(|event| event.id.to_owned()).next().unwrap(), "e21");
    // An event that stands in both was copied and not yet deleted: it is one, wherever a batch ends.
    alone.app.execute_batch("INSERT INTO archived_events SELECT * FROM events WHERE position IN (40, 45, 50)").unwrap();
    let both = Table { source: alone.described(preset).unwrap(), ..alone };
    for most in [1_000, 30, 31, 36] {
        let read = both.read(10, most).await.unwrap();
        let ids: Vec<String> = read.events().map(|event| event.id.to_owned()).collect();
        assert!(ids.iter().cloned().eq((11..).map(|n| format!("e{n}")).take(ids.len())), "{most}: {ids:?}");
        assert!(ids.len() == 40 || most < 1_000 && ids.len() + 3 >= most, "{most}: {}", ids.len());
    }
    let scan = outboxd::source::scan::Scan::open(&both.source).unwrap();
    let page = scan.page(outboxd::source::scan::Which::All, 0).unwrap().unwrap();
    assert_eq!((scan.count().unwrap(), page.batch.len(), page.next), (50, 50, 50));
    drop(scan);
    // Another event under the same position halts: one of the two is not what was given out.
    both.app.execute_batch("DELETE FROM archived_events WHERE position IN (40, 45); UPDATE archived_events SET id = 'other' WHERE position = 50").unwrap();
    let halt = both.read(10, 1_000).await.unwrap_err();
    assert!(halt.detail.contains("50 comes behind 50"), "{}", halt.detail);
    // What is added to one of the two concerns nobody.
    both.app
        .execute_batch("DELETE FROM archived_events WHERE position = 50; ALTER TABLE events ADD COLUMN tenant TEXT")
        .unwrap();
    assert_eq!(both.read(10, 1_000).await.unwrap().events().count(), 40);
    // One that lacks a column that is declared is refused, one that is not there is waited for.
    both.app
        .execute_batch("DROP TRIGGER archived_events_are_whole; ALTER TABLE archived_events DROP COLUMN metadata")
        .unwrap();
    let halt = both.look().await.unwrap_err();
    assert!(halt.detail.contains("no column metadata in table archived_events"), "{}", halt.detail);
}

/// An archive that cannot be searched with its table is named, with what keeps it from that.
#[tokio::test(flavor = "multi_thread")]
async fn the_table_that_is_walked_is_named() {
    let words = "table = \"log\"\nposition = \"position\"\nid = \"id\"\ntype = \"type\"\npayload = \"data\"\narchive = \"old\"\n";
    for (position, told) in [
        (
            "position TEXT",
            "position is INTEGER in log and TEXT in old. Remedy: make old with the same types of columns",
        ),
        (
            "position INTEGER",
            "Remedy: see that the position is the own key of old, or CREATE INDEX \"old_position\" ON \"old\" (\"position\")",
        ),
    ] {
        let sql = format!(
            "CREATE TABLE log (position INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT, type TEXT, data TEXT); CREATE TABLE old ({position}, id TEXT, type TEXT, data TEXT)"
        );
        let table = Table::new(&sql, words);
        let warnings = table.look().await.unwrap().plan.warnings;
        assert!(warnings.len() == 1 && warnings[0].contains(told), "{position}: {warnings:?}");
    }
}

#[test]
fn by_row_and_by_query_there_is_no_archive() {
    let folder = tempfile::tempdir().unwrap();
    let words =
        "id = \"id\"\ntype = \"type\"\npayload = \"data\"\nposition = \"position\"\narchive = \"archived_events\"\n";
    let error =
        crate::support::by_hand::described(folder.path(), &format!("query = \"SELECT 1\"\n{words}")).unwrap_err();
    assert!(error.contains("only a table that is read by checkpoint, or by its feed"), "{error}");
}
