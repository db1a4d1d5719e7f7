//! The file that the state is to stand in is not ours, or no longer whole.

use outboxd::consumer::status::State;
use outboxd::source::StatePlace;

use crate::support::rig::{Rig, open};

/// It halts with these words, and nothing was sent; the remedy is said.
async fn halts(rig: &mut Rig, words: &[&str]) {
    rig.place(3, 1);
    rig.start();
    let detail = rig.is(State::Halted).await.detail;
    for word in words.iter().chain(&["Remedy: "]) {
        assert!(detail.contains(word), "{word:?} is not said in {detail}");
    }
    assert_eq!(rig.delivered().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_not_ours_are_left_alone() {
    for (sql, words) in [
        ("CREATE TABLE outboxd_meta (name TEXT, value TEXT)", ["outboxd_meta is there that is not ours"]),
        ("CREATE TABLE outboxd_held (id INTEGER)", ["outboxd_held is there that is not ours"]),
        ("CREATE VIEW outboxd_safe_position AS SELECT 1 AS x", ["outboxd_safe_position is there that is not ours"]),
    ] {
        for place in [StatePlace::Inside, StatePlace::Beside] {
            let mut rig = Rig::new().await;
            rig.source.state = place;
            let state = open(&rig.source.state_path());
            state.execute_batch(sql).unwrap();
            let tables = "SELECT group_concat(name ORDER BY name) FROM sqlite_schema";
            let before: String = state.query_row(tables, [], |row| row.get(0)).unwrap();
            halts(&mut rig, &words).await;
            let after: String = state.query_row(tables, [], |row| row.get(0)).unwrap();
            assert_eq!(before, after, "nothing was made");
            // Out of the way, it goes on.
            let kind = if sql.contains("VIEW") { "VIEW" } else { "TABLE" };
            state.execute_batch(&format!("DROP {kind} {}", sql.split(' ').nth(2).unwrap())).unwrap();
            rig.resume().await;
            rig.is_done().await;
            assert_eq!(rig.delivered().len(), 3);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn state_tables_of_another_shape_halt() {
    for (sql, missing) in [
        ("DROP VIEW outboxd_safe_position; DROP TABLE outboxd_held", "outboxd_held has no column"),
        ("ALTER TABLE outboxd_checkpoint DROP COLUMN witnesses", "outboxd_checkpoint has no column witnesses"),
    ] {
        for place in [StatePlace::Inside, StatePlace::Beside] {
            let mut rig = Rig::new().await;
            rig.source.state = place;
            rig.start();
            rig.is(State::Running).await;
            rig.drain().await;
            rig.state().execute_batch(sql).unwrap();
            halts(&mut rig, &[missing, "somebody changed them"]).await;
        }
    }
}

/// It would be put into WAL mode, and tables made in it.
#[tokio::test(flavor = "multi_thread")]
async fn another_applications_file_is_not_taken_for_the_state() {
    let mut rig = Rig::new().await;
    let other = rig.folder.path().join("other.db");
    let connection = rusqlite::Connection::open(&other).unwrap();
    connection.execute_batch("CREATE TABLE orders (id)").unwrap();
    rig.source.state = StatePlace::At(other.clone());
    let before = std::fs::read(&other).unwrap();
    halts(&mut rig, &["somebody else's: it has a table orders"]).await;
    assert_eq!(std::fs::read(&other).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_no_database_halts() {
    let mut rig = Rig::new().await;
    std::fs::write(rig.source.state_path(), vec![b'x'; 8_192]).unwrap();
    halts(&mut rig, &["cannot be read: file is not a database", "restore that file"]).await;
    assert_eq!(std::fs::read(rig.source.state_path()).unwrap(), vec![b'x'; 8_192]);
}
