//! A table of any application whose rows are marked: which are pending, in which order, and what becomes of each.

use outboxd::consumer::control::{Command, Operation};
use outboxd::consumer::replay::Wanted;
use outboxd::consumer::status::State;
use outboxd::consumer::{Bounds, OnReject};
use outboxd::event::{Reason, Rejection};
use outboxd::source::Settings;

use crate::support::by_hand::{Table, described};
use crate::support::fake_sink::FarSide;
use crate::support::fleet::{self, Relays, arrived};
use crate::support::rig::eventually;

const JOBS: &str = "CREATE TABLE jobs (id TEXT PRIMARY KEY, status TEXT, tries INTEGER DEFAULT 0, note TEXT, at TEXT, who TEXT, body TEXT);
                    CREATE TABLE sent_jobs (id, status, tries, note, at, who, body);";
const FIELDS: &str =
    "table = \"jobs\"\nrow = \"id\"\nid = \"id\"\nkey = \"who\"\ntype = { constant = \"Job\" }\npayload = \"body\"\n";
const PENDING: &str = "pending = { status = [\"new\", \"again\"] }\n";
const SENT: &str = "on_delivered = { set = { status = \"sent\", at = \"{now}\", tries = \"{+1}\" } }\n";

fn add(table: &Table, id: &str, who: &str) {
    let sql = "INSERT INTO jobs (id, status, who, body) VALUES (?1, 'new', ?2, ?1)";
    table.app.execute(sql, [id, who]).unwrap();
}

fn told(table: &Table, sql: &str) -> String {
    table.app.query_row(sql, [], |row| row.get::<_, Option<String>>(0)).unwrap().unwrap_or_default()
}

fn start(source: &Settings, far_side: &FarSide, attempts_max: u32) -> Relays {
    let mut relay = fleet::relay("r", &source.name, fleet::fake(far_side));
    relay.on_reject = OnReject::Hold;
    let retry_min = std::time::Duration::from_millis(20);
    relay.bounds = Bounds { attempts_max, retry_min, ..Bounds::default() };
    Relays::start(std::slice::from_ref(source), vec![relay])
}

/// The first refusal is the last, and is to stand in the application's table of them.
fn start_with_rows(source: &Settings, far_side: &FarSide) -> Relays {
    let mut relay = fleet::relay("r", &source.name, fleet::fake(far_side));
    relay.bounds = Bounds { attempts_max: 1, ..Bounds::default() };
    relay.dead_letter_row = true;
    Relays::start(std::slice::from_ref(source), vec![relay])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivered_row_is_set_deleted_or_archived() {
    for (mark, left) in [
        (SENT, "a=sent1,b=sent1"),
        ("on_delivered = \"delete\"\n", ""),
        ("on_delivered = { archive = \"sent_jobs\" }\n", "archived:a,b"),
    ] {
        let table = Table::new(JOBS, &format!("{FIELDS}{PENDING}{mark}"));
        add(&table, "a", "k");
        add(&table, "b", "k");
        table.app.execute_batch("INSERT INTO jobs (id, status, body) VALUES ('c', 'other', 'x')").unwrap();
        let far_side = FarSide::default();
        let relays = start(&table.source, &far_side, 3);
        relays.reaches("r", |status| status.delivered == 2 && status.backlog == 0).await;
        relays.stop().await;
        let sql = "SELECT group_concat(id || '=' || status || tries) FROM jobs WHERE id <> 'c'";
        let archived = told(&table, "SELECT 'archived:' || group_concat(id) FROM sent_jobs");
        assert_eq!(if archived.is_empty() { told(&table, sql) } else { archived }, left);
        assert_eq!(told(&table, "SELECT status FROM jobs WHERE id = 'c'"), "other");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_the_application_changed_meanwhile_stays_as_it_is() {
    let table = Table::new(JOBS, &format!("{FIELDS}{PENDING}{SENT}"));
    let far_side = FarSide::default();
    far_side.delay(std::time::Duration::from_millis(500));
    add(&table, "a", "k");
    let relays = start(&table.source, &far_side, 3);
    relays.reaches("r", |status| status.in_flight > 0).await;
    table.app.execute_batch("UPDATE jobs SET status = 'cancelled'").unwrap();
    arrived(&far_side, 1).await;
    relays.reaches("r", |status| status.in_flight == 0).await;
    relays.stop().await;
    assert_eq!(told(&table, "SELECT status || tries FROM jobs"), "cancelled0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_row_is_marked_at_each_try_and_at_the_last() {
    let marks = "on_retry = { set = { tries = \"{+1}\", note = \"{error}\" } }\non_rejected = { set = { status = \"failed\", note = \"{error}\" } }\n";
    let table = Table::new(JOBS, &format!("{FIELDS}{PENDING}{SENT}{marks}"));
    let far_side = FarSide::default();
    far_side.reject(|event| (event.id == "a").then(|| Rejection::new(Reason::Refused, "not today")));
    add(&table, "a", "k");
    add(&table, "b", "other");
    let relays = start(&table.source, &far_side, 3);
    relays.reaches("r", |status| status.dead == 1 && status.delivered == 1).await;
    assert_eq!(told(&table, "SELECT status || tries FROM jobs WHERE id = 'a'"), "failed2");
    assert!(told(&table, "SELECT note FROM jobs WHERE id = 'a'").contains("not today"));
    // Pending again: the application asks for another try.
    far_side.mend();
    table.app.execute_batch("UPDATE jobs SET status = 'again' WHERE id = 'a'").unwrap();
    relays.reaches("r", |status| status.delivered == 2 && status.dead == 0).await;
    assert_eq!(told(&table, "SELECT status FROM jobs WHERE id = 'a'"), "sent");
    relays.stop().await;
}

/// A table without a place for it: the dead letter stands among ours, and its row is passed over, also after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_row_without_a_mark_is_passed_over() {
    let table = Table::new(JOBS, &format!("{FIELDS}pending_sql = \"o.status = 'new'\"\non_delivered = \"delete\"\n"));
    let far_side = FarSide::default();
    far_side.reject(|event| (event.id == "a").then(|| Rejection::new(Reason::Refused, "never")));
    add(&table, "a", "k");
    let mut relays = start(&table.source, &far_side, 1);
    relays.reaches("r", |status| status.dead == 1).await;
    for (id, count) in [("b", 1), ("c", 2)] {
        add(&table, id, "other");
        eventually("another flows", || far_side.arrivals().len() == count).await;
        relays.stop().await;
        relays = start(&table.source, &far_side, 1);
    }
    relays.reaches("r", |status| status.state == State::Running && status.dead == 1).await;
    assert_eq!(told(&table, "SELECT group_concat(id || status) FROM jobs"), "anew");
    assert_eq!(far_side.refused().len(), 1, "it was tried once");
    relays.stop().await;
}

/// What a person wrote adds to the table that it names, and does nothing else; otherwise nothing is sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_for_a_dead_letter_is_added_and_nothing_else_is_done() {
    let tables = "CREATE TABLE failures (id UNIQUE, why, who); CREATE TABLE counts (n); CREATE TABLE other (x);
                  CREATE TRIGGER counted AFTER INSERT ON failures BEGIN DELETE FROM counts; INSERT INTO counts VALUES (1); END;";
    let failed = "on_rejected = { set = { status = \"failed\" } }\n";
    let row = "SELECT id, :error, :consumer FROM jobs WHERE id = :row AND status = 'failed'";
    let upsert = "ON CONFLICT (id) DO UPDATE SET why = excluded.why";
    for (sql, is_taken) in [
        (format!("INSERT INTO failures {row}"), true),
        (format!("-- for us\nWITH x AS (SELECT 1) INSERT OR REPLACE INTO failures {row}"), true),
        (format!("INSERT INTO failures {row} {upsert}"), true),
        (format!("INSERT INTO failures {row}; DROP TABLE other"), false),
        (format!("INSERT INTO failures {row}; DELETE FROM other"), false),
        ("INSERT INTO failures SELECT load_extension('/tmp/x'), 1, 2".to_owned(), false),
        ("INSERT INTO failures SELECT seq, name, file FROM pragma_database_list()".to_owned(), false),
        ("INSERT INTO outboxd_meta VALUES ('schema_version', '1')".to_owned(), false),
        ("INSERT OR REPLACE INTO outboxd_checkpoint SELECT * FROM outboxd_checkpoint".to_owned(), false),
        ("INSERT INTO sqlite_sequence VALUES ('jobs', 7)".to_owned(), false),
        ("WITH x AS (SELECT 1) DELETE FROM other".to_owned(), false),
        ("WITH x AS (SELECT 1) UPDATE jobs SET status = 'sent'".to_owned(), false),
    ] {
        let keys = format!("{FIELDS}{PENDING}{SENT}{failed}on_dead_letter = \"\"\"\n{sql}\"\"\"\n");
        let table = Table::new(&format!("{JOBS}{tables}"), &keys);
        let far_side = FarSide::default();
        far_side.reject(|event| (event.id == "a").then(|| Rejection::new(Reason::Refused, "never")));
        add(&table, "a", "k");
        add(&table, "b", "other");
        let relays = start_with_rows(&table.source, &far_side);
        if is_taken {
            relays.reaches("r", |status| status.dead == 1 && status.delivered == 1).await;
            let sql = "SELECT group_concat(id || ' ' || why || ' ' || who || ' ' || n) FROM failures, counts";
            assert_eq!(told(&table, sql), "a refused: never r 1");
        } else {
            let halted = relays.reaches("r", |status| status.state == State::Halted).await;
            let says = |what: &str| halted.detail.contains(what);
            assert!(says("`on_dead_letter`") && says("Remedy"), "{sql}: {}", halted.detail);
            assert_eq!(told(&table, "SELECT group_concat(id || status) FROM jobs"), "anew,bnew", "{sql}");
        }
        relays.stop().await;
    }
}

/// What goes wrong only when it runs passes nothing over.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_for_a_dead_letter_that_cannot_be_added_halts() {
    let failed = "on_rejected = { set = { status = \"failed\" } }\n";
    let insert = "on_dead_letter = \"INSERT INTO failures VALUES (NULL, :error)\"\n";
    let sql = format!("{JOBS}CREATE TABLE failures (id NOT NULL, why);");
    let table = Table::new(&sql, &format!("{FIELDS}{PENDING}{SENT}{failed}{insert}"));
    let far_side = FarSide::default();
    far_side.reject(|event| (event.id == "a").then(|| Rejection::new(Reason::Refused, "never")));
    add(&table, "a", "k");
    let relays = start_with_rows(&table.source, &far_side);
    let halted = relays.reaches("r", |status| status.state == State::Halted).await;
    for what in ["`on_dead_letter`", "NOT NULL constraint failed: failures.id", "Remedy"] {
        assert!(halted.detail.contains(what), "{}", halted.detail);
    }
    assert_eq!(told(&table, "SELECT group_concat(id || status) FROM jobs"), "anew");
    relays.stop().await;
}

/// What was delivered is looked for where it is: in the archive, which no index makes unique; what was deleted is told, not passed over.
#[tokio::test(flavor = "multi_thread")]
async fn delivered_rows_are_replayed_from_their_archive_and_deleted_ones_are_refused() {
    const OLDER: i64 = 2_500;
    for mark in ["on_delivered = { archive = \"sent_jobs\" }\n", "on_delivered = \"delete\"\n"] {
        let table = Table::new(JOBS, &format!("{FIELDS}{PENDING}{mark}"));
        let older = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?1)
                     INSERT INTO sent_jobs (id, status, who, body) SELECT 'old' || n, 'new', 'k' || n % 7, '{}' FROM n";
        table.app.execute(older, [OLDER]).unwrap();
        add(&table, "a", "k");
        add(&table, "b", "k");
        let far_side = FarSide::default();
        let relays = start(&table.source, &far_side, 3);
        relays.reaches("r", |status| status.delivered == 2 && status.backlog == 0).await;
        let all = Operation::Replay(Wanted::default());
        let asked = relays.handle("r").ask(|reply| Command::Operate(all, reply)).await;
        if mark.contains("archive") {
            asked.unwrap();
            let done = |status: &outboxd::consumer::status::Status| {
                status.replay.as_ref().is_some_and(|replay| replay.state == "done")
            };
            let replay = relays.reaches("r", done).await.replay.unwrap();
            assert_eq!((replay.sent, replay.left_out), (OLDER as u64 + 2, 0));
            let again = far_side.arrivals().into_iter().filter(|arrival| arrival.pick.replay).map(|arrival| arrival.id);
            let older = (1..=OLDER).map(|n| format!("old{n}"));
            assert!(again.eq(older.chain(["a".to_owned(), "b".to_owned()])), "each once, as they were archived");
        } else {
            let refused = asked.unwrap_err().to_string();
            assert!(refused.contains("deleted when they are delivered") && refused.contains("Remedy"), "{refused}");
            assert_eq!(relays.status("r").replay, None);
        }
        relays.stop().await;
    }
}

/// VACUUM numbers the rows of such an archive anew: which of them were passed is not known any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_whose_rows_are_numbered_anew_stops() {
    let archived = "on_delivered = { archive = \"sent_jobs\" }\n";
    let table = Table::new(JOBS, &format!("{FIELDS}{PENDING}{archived}"));
    let older = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 3000)
                 INSERT INTO sent_jobs (id, status, who, body) SELECT 'old' || n, 'new', 'k' || n % 7, '{}' FROM n;
                 DELETE FROM sent_jobs WHERE rowid <= 500";
    table.app.execute_batch(older).unwrap();
    add(&table, "a", "k");
    let far_side = FarSide::default();
    let relays = start(&table.source, &far_side, 3);
    relays.reaches("r", |status| status.delivered == 1 && status.backlog == 0).await;
    let asked =
        async |wanted: Wanted| relays.handle("r").ask(|reply| Command::Operate(Operation::Replay(wanted), reply)).await;
    asked(Wanted { rate: Some(400), ..Wanted::default() }).await.unwrap();
    let sent =
        |status: &outboxd::consumer::status::Status| status.replay.as_ref().is_some_and(|replay| replay.sent > 0);
    relays.reaches("r", sent).await;
    table.app.execute_batch("VACUUM").unwrap();
    let ended = |status: &outboxd::consumer::status::Status| {
        status.replay.as_ref().is_some_and(|replay| replay.state != "running")
    };
    let replay = relays.reaches("r", ended).await.replay.unwrap();
    assert_eq!(replay.state, "stopped", "{replay:?}");
    assert!(
        replay.detail.contains("may number the rows of sent_jobs anew") && replay.detail.contains("Remedy: "),
        "{replay:?}"
    );
    // In the same words it does not go on; others begin anew.
    asked(Wanted { rate: Some(400), ..Wanted::default() }).await.unwrap();
    relays.reaches("r", |status| ended(status) && status.replay.as_ref().unwrap().number > replay.number).await;
    asked(Wanted::default()).await.unwrap();
    let done = relays.reaches("r", |status| status.replay.as_ref().is_some_and(|replay| replay.state == "done")).await;
    assert_eq!(done.replay.unwrap().sent, 2_501);
    relays.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_in_the_declared_order_and_then_as_inserted() {
    let table = Table::new(JOBS, &format!("{FIELDS}{PENDING}{SENT}order = [\"note\", \"at\"]\ntime = \"at\"\n"));
    for (id, note, at) in [
        ("e", "2", "2026-01-01T00:00:00Z"),
        ("d", "1", "2026-01-02 00:00:00"),
        ("c", "1", "2026-01-02T00:00:00"),
        ("b", "1", "2026-01-01T23:00:00"),
        ("a", "1", "2026-01-02 00:00:00"),
    ] {
        let sql = "INSERT INTO jobs (id, status, note, at, body) VALUES (?1, 'new', ?2, ?3, '{}')";
        table.app.execute(sql, [id, note, at]).unwrap();
    }
    table.app.execute_batch("INSERT INTO jobs (id, status, at, body) VALUES ('last', 'new', '', '')").unwrap();
    let batch = table.read(0, 10).await.unwrap();
    let ids: Vec<&str> = batch.events().map(|event| event.id).collect();
    assert_eq!(ids, ["b", "d", "c", "a", "e", "last"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_test_of_pending() {
    let sql = "CREATE TABLE t (id INTEGER PRIMARY KEY, v, x TEXT DEFAULT 'x');
               INSERT INTO t (v) VALUES (NULL), (0), (1), (2), ('a'), ('2000-01-01T00:00:00'), ('2999-01-01T00:00:00');";
    for (pending, ids) in [
        ("{ v = 1 }", "3"),
        ("{ v = true }", "3"),
        ("{ v = \"a\" }", "5"),
        ("{ v = [1, \"a\"] }", "3,5"),
        ("{ v = { null = true } }", "1"),
        ("{ v = { null = false } }", "2,3,4,5,6,7"),
        ("{ v = { not = 1 } }", "1,2,4,5,6,7"),
        ("{ v = { at_most = 1 } }", "2,3"),
        ("{ v = { below = 1 } }", "2"),
        ("{ v = { below = \"{now}\", }, x = \"x\" }", "2,3,4,6"),
        ("{ v = { at_least = \"{now}\" } }", "5,7"),
    ] {
        let keys = format!(
            "table = \"t\"\nrow = \"id\"\nid = \"id\"\ntype = \"x\"\npayload = \"x\"\npending = {pending}\non_delivered = \"delete\"\n"
        );
        let table = Table::new(sql, &keys);
        let batch = table.read(0, 10).await.unwrap();
        let found: Vec<&str> = batch.events().map(|event| event.id).collect();
        assert_eq!(found.join(","), ids, "{pending}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_not_unique_or_an_archive_that_does_not_fit_is_refused() {
    for (sql, keys, said) in [
        ("CREATE TABLE jobs (id TEXT, status, who, body)", SENT, "id is not unique in table jobs"),
        (
            "CREATE TABLE jobs (id TEXT, status, who, body)",
            SENT,
            "CREATE UNIQUE INDEX \"jobs_id\" ON \"jobs\" (\"id\")",
        ),
        (
            "CREATE TABLE jobs (id TEXT PRIMARY KEY, status, who, body); CREATE TABLE old (id)",
            "on_delivered = { archive = \"old\" }\n",
            "table old has not the columns of jobs",
        ),
        (
            "CREATE TABLE jobs (id TEXT PRIMARY KEY, status, who, body)",
            "on_delivered = { set = { status = \"sent\", sent_on = \"{now}\" } }\n",
            "there is no column sent_on in table jobs",
        ),
        (
            "CREATE TABLE jobs (id TEXT PRIMARY KEY, state, who, body, at, tries)",
            SENT,
            "there is no column status in table jobs. Remedy: did you mean state?",
        ),
    ] {
        let halt = Table::new(sql, &format!("{FIELDS}{PENDING}{keys}")).look().await.unwrap_err();
        assert!(halt.detail.contains(said), "{said:?} is not said in {:?}", halt.detail);
    }
}

/// The statement that is told, made, ends the warning.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_index_is_told_and_it_is_the_right_one() {
    const ORDERED: &str = "time = \"at\"\norder = [\"at\"]\n";
    let always = JOBS.replace("at TEXT", "at TEXT NOT NULL").replacen("tries INTEGER", "due TEXT, tries INTEGER", 1);
    let with = |more: &str| format!("{always}{more}");
    let index = |columns: &str| format!("CREATE INDEX \"jobs_pending\" ON \"jobs\" ({columns})");
    let (whole, sorts) = ("reads the whole table", "sorts all of them");
    for (sql, pending, order, what, told) in [
        (JOBS.to_owned(), "{ status = \"new\" }", "", whole, index("\"status\"")),
        (JOBS.to_owned(), "{ status = [\"new\", \"again\"] }", "", whole, index("\"status\"")),
        // A time that may be NULL brings no order.
        (JOBS.to_owned(), "{ status = \"new\" }", ORDERED, whole, index("\"status\"")),
        (JOBS.to_owned(), "{ note = { null = true } }", "", whole, index("\"note\"")),
        (JOBS.to_owned(), "{ tries = { above = 0 } }", "", whole, index("\"tries\"")),
        (with(""), "{ status = \"new\", due = { at_most = \"{now}\" } }", ORDERED, whole, index("\"status\", \"at\"")),
        (with(""), "{ status = \"new\" }", ORDERED, whole, index("\"status\", \"at\"")),
        // An index that finds the rows, and not their order.
        (with("CREATE INDEX s ON jobs (status);"), "{ status = \"new\" }", ORDERED, sorts, index("\"status\", \"at\"")),
        // One in their order, which finds all others, too.
        (with("CREATE INDEX a ON jobs (at);"), "{ status = \"new\" }", ORDERED, whole, index("\"status\", \"at\"")),
        (
            with(""),
            "{ status = [\"new\", \"again\"] }",
            ORDERED,
            whole,
            format!("{} WHERE \"status\" IN ('new', 'again')", index("\"at\"")),
        ),
    ] {
        let mark = "on_delivered = { set = { status = \"sent\", note = \"x\", tries = 0 } }\n";
        let table = Table::new(&sql, &format!("{FIELDS}pending = {pending}\n{mark}{order}"));
        let warnings = table.look().await.unwrap().plan.warnings;
        assert_eq!(warnings.len(), 1, "{pending} {order}: {warnings:?}");
        let (why, statement) = warnings[0].split_once(". Remedy: ").unwrap();
        assert!(why.contains(what), "{pending} {order}: {why}");
        assert_eq!(statement, told, "{pending} {order}");
        table.app.execute_batch(statement).unwrap();
        let look = table.look().await.unwrap();
        assert_eq!(look.plan.warnings, Vec::<String>::new(), "{pending} {order}: {:?}", look.plan.steps);
        // And it is found by it.
        table
            .app
            .execute_batch(
                "INSERT INTO jobs (id, status, tries, at, who, body) VALUES ('a', 'new', 1, '2026', 'w', 'b')",
            )
            .unwrap();
        let columns = if sql == JOBS { "" } else { "UPDATE jobs SET due = '2026'" };
        table.app.execute_batch(columns).unwrap();
        assert_eq!(table.read(0, 10).await.unwrap().len(), 1, "{pending} {order}");
    }
    let own = Table::new(JOBS, &format!("{FIELDS}pending_sql = \"o.status = 'new'\"\n{SENT}"));
    let warnings = own.look().await.unwrap().plan.warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("`pending_sql`"), "{warnings:?}");
    let all = Table::new(JOBS, &format!("{FIELDS}pending_sql = \"true\"\non_delivered = \"delete\"\n"));
    assert_eq!(all.look().await.unwrap().plan.warnings, Vec::<String>::new());
}

/// A backlog of several slices is listed whole, in order, by whatever index there is.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_listed_whole_by_whatever_index_there_is() {
    for index in ["", "CREATE INDEX s ON jobs (status);", "CREATE INDEX s ON jobs (status, at);"] {
        let sql = format!(
            "{JOBS}{index} WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 5999)
             INSERT INTO jobs (id, status, at, who, body) SELECT 'j' || i, CASE WHEN i % 3 = 0 THEN 'sent' WHEN i % 3 = 1 THEN 'new' ELSE 'again' END,
             printf('%05d', i * 4999 % 6000), 'w' || i % 7, 'b' FROM n;"
        );
        let table = Table::new(&sql, &format!("{FIELDS}{PENDING}{SENT}order = [\"at\"]\n"));
        let batch = table.read(0, 10_000).await.unwrap();
        let listed: Vec<String> = batch.events().map(|event| event.id.to_owned()).collect();
        let mut statement =
            table.app.prepare("SELECT id FROM jobs WHERE status IN ('new', 'again') ORDER BY at, rowid").unwrap();
        let expected: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        assert_eq!((listed.len(), listed == expected), (4_000, true), "{index}");
    }
}

/// What a configuration alone shows.
#[test]
fn mistakes_of_a_description_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let by_row = format!("{FIELDS}{PENDING}{SENT}");
    let log = "table = \"t\"\nposition = \"n\"\nid = \"id\"\ntype = \"k\"\npayload = \"p\"\n";
    for (keys, said) in [
        (by_row.replace(SENT, ""), "on_delivered"),
        (by_row.replace(PENDING, ""), "which rows are to be sent"),
        (by_row.replace("row = \"id\"\n", ""), "by it a row is known when it is marked"),
        (
            by_row.replace(SENT, "on_delivered = { set = { note = \"x\" } }\n"),
            "this changes nothing that `pending` looks at",
        ),
        (
            format!("{by_row}on_rejected = {{ set = {{ note = \"x\" }} }}\n"),
            "this changes nothing that `pending` looks at",
        ),
        (format!("{by_row}on_retry = \"delete\"\n"), "an event that is tried again needs its row"),
        (format!("{by_row}on_dead_letter = \"COMMIT\"\n"), "may only add a row"),
        (format!("{by_row}pending_sql = \"1\"\n"), "`pending` and `pending_sql` are both said"),
        (by_row.replace("table = \"jobs\"", "query = \"SELECT 1\""), "marked row by row is read itself"),
        (by_row.replace(SENT, "on_delivered = \"drop\"\n"), "\"drop\" is not known here"),
        (
            by_row.replace(SENT, "on_delivered = { set = { status = \"{noww}\" } }\n"),
            "\"{noww}\" is not a word known here",
        ),
        (by_row.replace(PENDING, "pending = { status = { over = 1 } }\n"), "`over` is not a test"),
        (
            by_row.replace(PENDING, "pending = { status = \"{error}\", tries = { below = \"{error}\" } }\n"),
            "are for marking rows",
        ),
        (format!("{by_row}state = \"beside\"\n"), "this table is read by row"),
        (log.replace("position = \"n\"\n", ""), "the column whose values grow from commit to commit"),
        (log.replace("id = \"id\"\n", ""), "sources.app.id"),
        (log.replace("table = \"t\"\n", ""), "sources.app.preset"),
        (log.replace("\"n\"", "\"{n}\""), "this must be a column, as it is"),
        (log.replace("\"p\"", "{ column = \"p\", path = \"p\" }"), "is not a path"),
        (log.replace("\"p\"", "{ column = \"p\", as = \"xml\" }"), "\"xml\" is not a form"),
        (log.replace("\"p\"", "{ column = \"p\", as = \"epoch_s\" }"), "makes no sense here"),
        (log.replace("\"p\"", "{ colum = \"p\" }"), "`colum` is not known here"),
        (log.replace("\"p\"", "{ path = \"$.a\" }"), "say one of `column`"),
        (log.replace("id = \"id\"", "id = \"{a\""), "is not a template"),
        (log.replace("id = \"id\"", "id = { fields = { a = \"b\" } }"), "`fields` make an object"),
        (log.replace("id = \"id\"", "id = 5"), "sources.app.id"),
        (format!("{log}order = [\"x\"]\n"), "this table is read by checkpoint"),
        (format!("{log}read = \"outbox\"\n"), "there is no preset"),
        (format!("{log}query = \"SELECT 1\"\n"), "`table` and `query` are both said"),
        (log.replace("table = \"t\"", "query = \"PRAGMA table_list\""), "this is no SELECT"),
        (log.replace("table = \"t\"", "query = \"-- all\\n/* of them */ EXPLAIN SELECT 1\""), "this is no SELECT"),
        (log.replace("table = \"t\"", "query = \"DELETE FROM t RETURNING *\""), "this is no SELECT"),
        (log.replace("table = \"t\"", "query = \"events\""), "this is no SELECT"),
        (log.replace("table = \"t\"", "query = \" -- nothing\""), "this is no SELECT"),
        (format!("{log}headers = {{ column = \"h\", as = \"text\" }}\n"), "write one of json, jsonb"),
        (format!("{log}refuse_if = \"SELECT 1\"\n"), "refuse_because"),
        ("preset = \"emmet\"\n".to_owned(), "did you mean \"emmett\"?"),
        ("preset = \"outboxd\"\n".to_owned(), "sources.app.read"),
        ("preset = \"outboxd\"\nread = \"outbx\"\n".to_owned(), "did you mean \"outbox\"?"),
        (format!("{log}tabel = \"x\"\n"), "did you mean `table`?"),
        (format!("{log}feed = true\n"), "this table is read by its feed"),
        (format!("{by_row}feed = true\n"), "this table is read by its feed"),
        (format!("{log}sql_time_max = \"0s\"\n"), "in no time"),
    ] {
        let told = described(folder.path(), &keys).expect_err(&keys);
        assert!(told.contains(said), "{said:?} is not said in {told}");
    }
}
