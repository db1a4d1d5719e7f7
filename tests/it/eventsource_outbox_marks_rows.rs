//! A table read by row: what becomes of a row is written into it, guarded, with the library's own meanings; keys are held in order.

use std::path::PathBuf;
use std::time::Duration;

use crate::support::fleet::Read;
use outboxd::consumer::control::Operation;
use outboxd::consumer::{Bounds, OnReject, Settings};
use outboxd::event::{Reason, Rejection};
use outboxd::state::held::Selection;
use rusqlite::Connection;

use crate::support::daemon::{Daemon, lines, one_relay};
use crate::support::eventsource::{self, count, enqueue, enqueue_many, row_state};
use crate::support::fake_sink::{Arrival, FarSide};
use crate::support::fleet::{self, Relays, arrived, until};

/// A file with the newest tables, an application, a far side.
struct Stage {
    _folder: tempfile::TempDir,
    database: PathBuf,
    application: Connection,
    far_side: FarSide,
}

impl Stage {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("app.db");
        let application = eventsource::make(&database, "g4");
        Self { _folder: folder, database, application, far_side: FarSide::default() }
    }

    fn start(&self, change: impl FnOnce(&mut Settings)) -> Relays {
        let mut relay = fleet::relay("r", "r", fleet::fake(&self.far_side));
        change(&mut relay);
        Relays::start(&[fleet::source("r", &self.database, Read::Outbox)], vec![relay])
    }

    /// The events whose row has this name are refused.
    fn refuse(&self, row: &'static str) {
        self.far_side.reject(move |event| {
            (event.id == format!("e-{row}")).then(|| Rejection::new(Reason::Refused, "not like this"))
        });
    }

    fn accept_all(&self) {
        self.far_side.reject(|_| None);
    }

    async fn row_reaches(&self, row: &str, status: &str) {
        until("the row's status", || {
            let state = row_state(&self.application, row);
            if state.0 == status { Ok(()) } else { Err(format!("{row}: {state:?}")) }
        })
        .await;
    }

    async fn drained(&self) {
        until("every row is published", || {
            match count(&self.application, "event_outbox WHERE status <> 'published'") {
                0 => Ok(()),
                left => Err(format!("{left} are left")),
            }
        })
        .await;
    }
}

fn ids(arrivals: &[Arrival]) -> Vec<&str> {
    arrivals.iter().map(|arrival| arrival.id.as_str()).collect()
}

fn attempts(most: u32) -> impl FnOnce(&mut Settings) {
    move |relay| relay.bounds = Bounds { attempts_max: most, ..Bounds::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_row_is_counted_fails_and_holds_its_key_alone() {
    let stage = Stage::new();
    stage.refuse("a1");
    enqueue(&stage.application, &[("a1", "a"), ("b1", "b"), ("a2", "a"), ("b2", "b")]);
    let relays = stage.start(attempts(2));
    until("the first attempt is counted", || {
        let state = row_state(&stage.application, "a1");
        if state.1 >= 1 { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
    stage.row_reaches("a1", "failed").await;
    let (_, retries, error, published) = row_state(&stage.application, "a1");
    assert_eq!(retries, 2);
    assert_eq!(error.as_deref(), Some("refused: not like this"));
    assert_eq!(published, None);
    stage.row_reaches("b2", "published").await;
    assert_eq!(row_state(&stage.application, "a2"), ("pending".into(), 0, None, None), "it waits behind");
    let status = relays.reaches("r", |status| status.dead == 1).await;
    assert_eq!((status.held_keys, status.delivered), (1, 2));
    // What comes later waits too, and others flow.
    enqueue(&stage.application, &[("a3", "a"), ("b3", "b")]);
    stage.row_reaches("b3", "published").await;
    assert_eq!(row_state(&stage.application, "a3").0, "pending");
    assert_eq!(count(&stage.application, "outboxd_held"), 1, "what waits has no row of ours");
    relays.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_is_retried_goes_first_and_its_key_follows_in_order() {
    let stage = Stage::new();
    stage.refuse("a1");
    enqueue(&stage.application, &[("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b")]);
    let relays = stage.start(attempts(1));
    stage.row_reaches("a1", "failed").await;
    relays.reaches("r", |status| status.dead == 1 && status.delivered == 1).await;
    stage.accept_all();
    let retried =
        relays.operate("r", Operation::Retry(Selection { id: Some("e-a1".into()), ..Selection::default() })).await;
    assert_eq!(retried["retried"], 1);
    enqueue(&stage.application, &[("a4", "a")]);
    stage.drained().await;
    let arrivals = stage.far_side.arrivals();
    let of_key: Vec<&str> = ids(&arrivals).into_iter().filter(|id| id.starts_with("e-a")).collect();
    // Those behind the refused one were in flight with it: they may come twice, but behind it in order.
    let last = |id: &str| of_key.iter().rposition(|seen| *seen == id).unwrap();
    assert!(last("e-a1") < last("e-a2") && last("e-a2") < last("e-a3") && last("e-a3") < last("e-a4"), "{of_key:?}");
    relays.reaches("r", |status| status.held_keys == 0 && status.backlog == 0).await;
    assert_eq!(count(&stage.application, "outboxd_held"), 0);
    relays.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_is_discarded_lets_its_key_go_on() {
    let stage = Stage::new();
    stage.refuse("a1");
    enqueue(&stage.application, &[("a1", "a"), ("a2", "a")]);
    let relays = stage.start(attempts(1));
    stage.row_reaches("a1", "failed").await;
    relays.reaches("r", |status| status.dead == 1).await;
    let selection = Selection { key: Some(b"a".to_vec()), ..Selection::default() };
    let done = relays.operate("r", Operation::Discard { selection, reason: "a test order".into() }).await;
    assert_eq!(done["discarded"], 1);
    stage.row_reaches("a2", "published").await;
    assert_eq!(row_state(&stage.application, "a1").0, "failed", "the application's row stays as it was");
    // The application wants it all the same: now it is a row like every other.
    stage.accept_all();
    stage.application.execute("UPDATE event_outbox SET status = 'pending' WHERE id = 'a1'", []).unwrap();
    stage.row_reaches("a1", "published").await;
    relays.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_row_that_the_application_makes_pending_again_is_retried() {
    for on_reject in [OnReject::Hold, OnReject::Skip] {
        let stage = Stage::new();
        stage.refuse("a1");
        enqueue(&stage.application, &[("a1", "a"), ("a2", "a")]);
        let relays = stage.start(|relay| {
            relay.on_reject = on_reject;
            attempts(1)(relay);
        });
        stage.row_reaches("a1", "failed").await;
        if on_reject == OnReject::Skip {
            stage.row_reaches("a2", "published").await;
        }
        // In vain the first time: it is dead again, and nothing was tried in a circle.
        let retry =
            || stage.application.execute("UPDATE event_outbox SET status = 'pending' WHERE id = 'a1'", []).unwrap();
        retry();
        until("it has failed again", || {
            let state = row_state(&stage.application, "a1");
            if state.0 == "failed" && state.1 == 2 { Ok(()) } else { Err(format!("{state:?}")) }
        })
        .await;
        stage.accept_all();
        retry();
        stage.drained().await;
        relays.reaches("r", |status| status.held_keys == 0).await;
        assert_eq!(count(&stage.application, "outboxd_held"), 0);
        assert_eq!(row_state(&stage.application, "a1").1, 2, "each refusal was counted once");
        relays.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_row_that_was_made_pending_while_nothing_ran_is_retried_at_the_start() {
    let stage = Stage::new();
    stage.refuse("a1");
    enqueue(&stage.application, &[("a1", "a"), ("a2", "a")]);
    let relays = stage.start(attempts(1));
    stage.row_reaches("a1", "failed").await;
    relays.stop().await;
    stage.accept_all();
    stage.application.execute("UPDATE event_outbox SET status = 'pending' WHERE id = 'a1'", []).unwrap();
    let relays = stage.start(attempts(1));
    stage.drained().await;
    let arrivals = stage.far_side.arrivals();
    assert_eq!(ids(&arrivals)[arrivals.len() - 2..], ["e-a1", "e-a2"]);
    relays.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_application_changed_meanwhile_is_not_overwritten() {
    let stage = Stage::new();
    stage.far_side.delay(Duration::from_secs(1));
    stage.refuse("d1");
    enqueue(&stage.application, &[("a1", "a"), ("b1", "b"), ("c1", "c"), ("d1", "d")]);
    let relays = stage.start(attempts(1));
    relays.reaches("r", |status| status.in_flight == 4).await;
    stage
        .application
        .execute_batch(
            "UPDATE event_outbox SET status = 'failed', last_error = 'by hand' WHERE id IN ('a1', 'd1');
             DELETE FROM event_outbox WHERE id = 'b1';",
        )
        .unwrap();
    relays.reaches("r", |status| status.delivered == 3 && status.dead == 1).await;
    assert_eq!(row_state(&stage.application, "a1"), ("failed".into(), 0, Some("by hand".into()), None));
    assert_eq!(row_state(&stage.application, "d1"), ("failed".into(), 0, Some("by hand".into()), None));
    assert_eq!(row_state(&stage.application, "c1").0, "published");
    assert_eq!(count(&stage.application, "event_outbox"), 3);
    relays.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_sending_and_marking_costs_duplicates_only() {
    let stage = Stage::new();
    // The first run is a process of its own: killed when everything was sent, while a lock keeps it from marking.
    let folder = stage.database.parent().unwrap();
    let mut daemon = Daemon::new(folder, &one_relay("app.db", "outbox"));
    daemon.start();
    enqueue(&stage.application, &[("0", "k")]);
    stage.row_reaches("0", "published").await;
    enqueue_many(&stage.application, 500, 7);
    stage.application.execute_batch("BEGIN IMMEDIATE").unwrap();
    let sent = || lines(&folder.join("out.ndjson")).len();
    until("everything was sent", || if sent() == 501 { Ok(()) } else { Err(format!("{} were sent", sent())) }).await;
    daemon.kill();
    stage.application.execute_batch("ROLLBACK").unwrap();
    let marked = count(&stage.application, "event_outbox WHERE status = 'published' AND id <> '0'") as usize;
    let relays = stage.start(|_| {});
    stage.drained().await;
    let arrivals = arrived(&stage.far_side, 500 - marked).await;
    assert_eq!(arrivals.len(), 500 - marked, "what was not marked comes again, once");
    assert!(arrivals.iter().all(|arrival| arrival.pick.redelivery), "and says that it may have come before");
    for key in 0..7 {
        let again: Vec<&Arrival> = arrivals.iter().filter(|a| a.key == format!("k{key:02}").as_bytes()).collect();
        assert!(again.windows(2).all(|pair| pair[0].id < pair[1].id), "in order");
    }
    relays.reaches("r", |status| status.backlog == 0).await;
    // What comes later was never sent before.
    enqueue(&stage.application, &[("later", "k1")]);
    let arrivals = arrived(&stage.far_side, 501 - marked).await;
    assert!(!arrivals.last().unwrap().pick.redelivery);
    println!("{marked} of 500 were marked before the crash");
    relays.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_restart_repeats_nothing() {
    let stage = Stage::new();
    let rows: Vec<String> = (0..200).map(|n| format!("{n:04}")).collect();
    enqueue(&stage.application, &rows.iter().map(|row| (row.as_str(), "k")).collect::<Vec<_>>());
    for part in 0..2 {
        let relays = stage.start(|_| {});
        stage.drained().await;
        relays.stop().await;
        if part == 0 {
            enqueue(&stage.application, &[("9998", "k"), ("9999", "k")]);
        }
    }
    let arrivals = stage.far_side.arrivals();
    assert_eq!(arrivals.len(), 202);
    assert!(arrivals.iter().all(|arrival| !arrival.pick.redelivery));
    assert!(arrivals.windows(2).all(|pair| pair[0].id < pair[1].id));
}

/// Many keys are refused and released while others flow: a key's later rows stand in lists that were made before it was held.
#[tokio::test(flavor = "multi_thread")]
async fn a_released_key_is_never_overtaken_by_its_later_rows() {
    let stage = Stage::new();
    enqueue_many(&stage.application, 6_000, 40);
    // Every eleventh event is refused once: what is sent behind it at its first attempt counts as not sent.
    let refused = std::sync::Mutex::new(std::collections::HashSet::new());
    stage.far_side.reject(move |event| {
        let number: u32 = event.id[2..].parse().unwrap();
        (number.is_multiple_of(11) && refused.lock().unwrap().insert(number))
            .then(|| Rejection::new(Reason::Refused, "once"))
    });
    let relays = stage.start(|relay| {
        relay.bounds = Bounds { batch_events: 50, window_events: 400, in_flight_per_key: Some(3), ..Bounds::default() };
    });
    stage.drained().await;
    let arrivals = stage.far_side.arrivals();
    for key in 0..40 {
        let key = format!("k{key:02}");
        let mut first_seen = std::collections::HashSet::new();
        let mut newest_refused_first: Vec<&str> = Vec::new();
        for arrival in arrivals.iter().filter(|arrival| arrival.key == key.as_bytes()) {
            first_seen.insert(arrival.id.as_str());
            newest_refused_first.push(&arrival.id);
        }
        assert_eq!(first_seen.len(), 150, "{key}: nothing is missing");
        // The last delivery of each is in order: whatever came before a refused one was sent again behind it.
        let mut last = std::collections::BTreeMap::new();
        newest_refused_first.iter().enumerate().for_each(|(at, id)| _ = last.insert(*id, at));
        let places: Vec<usize> = last.values().copied().collect();
        assert!(places.windows(2).all(|pair| pair[0] < pair[1]), "{key}: {newest_refused_first:?}");
    }
    relays.reaches("r", |status| status.held_keys == 0).await;
    relays.stop().await;
}

/// Thousands of dead heads, and rows behind each: others flow past them, and once they are retried all goes out, in order.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_held_keys_starve_nobody_and_are_released() {
    const KEYS: usize = 2_000;
    let stage = Stage::new();
    let rows: Vec<(String, String)> = (0..3 * KEYS).map(|n| (format!("{n:06}"), format!("k{:04}", n % KEYS))).collect();
    enqueue(&stage.application, &rows.iter().map(|(row, key)| (row.as_str(), key.as_str())).collect::<Vec<_>>());
    stage.far_side.reject(|event| (event.key != Some(b"good")).then(|| Rejection::new(Reason::Refused, "no")));
    let relays = stage.start(attempts(1));
    let began = std::time::Instant::now();
    relays.reaches("r", |status| status.dead == KEYS as u64).await;
    println!("{KEYS} keys are held after {:?}", began.elapsed());
    for n in 0..20 {
        enqueue(&stage.application, &[(&format!("g{n:02}"), "good")]);
        let asked = std::time::Instant::now();
        let arrivals = arrived(&stage.far_side, n + 1).await;
        assert_eq!(arrivals[n].id, format!("e-g{n:02}"));
        assert!(asked.elapsed() < Duration::from_secs(2), "it waited {:?} behind held rows", asked.elapsed());
    }
    stage.accept_all();
    let began = std::time::Instant::now();
    let retried = relays.operate("r", Operation::Retry(Selection::default())).await;
    assert_eq!(retried["retried"], KEYS);
    stage.drained().await;
    println!("{} rows of {KEYS} released keys in {:?}", 3 * KEYS, began.elapsed());
    let mut seen = std::collections::HashMap::<Vec<u8>, Vec<String>>::new();
    stage.far_side.arrivals().into_iter().for_each(|arrival| seen.entry(arrival.key).or_default().push(arrival.id));
    assert_eq!(seen.len(), KEYS + 1);
    assert!(seen.values().all(|ids| ids.is_sorted()), "a key was overtaken");
    relays.reaches("r", |status| status.held_keys == 0).await;
    relays.stop().await;
}

/// The library's own commands for dead letters see it. Without its table the relay halts, and nothing is sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_a_row_of_the_librarys_own_table_where_that_is_wanted() {
    let stage = Stage::new();
    stage.refuse("b");
    enqueue(&stage.application, &[("a", "k1"), ("b", "k2"), ("c", "k1")]);
    let wanted = |settings: &mut Settings| {
        settings.dead_letter_row = true;
        settings.bounds.attempts_max = 1;
    };
    let relays = stage.start(wanted);
    stage.row_reaches("b", "failed").await;
    let sql = "SELECT event_id || ' ' || projection_name || ' ' || event_type || ' ' || event_data || ' ' || error_message || ' ' || retry_count
               || ' ' || status || ' ' || (first_failed_at = last_failed_at AND first_failed_at LIKE '20%+00:00') FROM dead_letter_queue";
    let rows = || stage.application.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(rows(), r#"e-b relay:r Happened {"row":"b"} refused: not like this 1 failed 1"#);
    // Tried once more in vain, it is the same row.
    let retry = Operation::Retry(Selection::default());
    relays.operate("r", retry).await;
    until("it has failed once more", || {
        match count(&stage.application, "dead_letter_queue WHERE last_failed_at > first_failed_at") {
            1 => Ok(()),
            _ => Err(rows()),
        }
    })
    .await;
    assert_eq!(count(&stage.application, "dead_letter_queue"), 1);
    relays.stop().await;

    stage.application.execute_batch("DROP TABLE dead_letter_queue").unwrap();
    let relays = stage.start(wanted);
    let halted = relays.reaches("r", |status| status.state == outboxd::consumer::status::State::Halted).await;
    assert!(halted.detail.contains("dead_letter_queue") && halted.detail.contains("Remedy"), "{}", halted.detail);
    relays.stop().await;
    // Who does not want it does not need it.
    let relays = stage.start(|settings| settings.bounds.attempts_max = 1);
    enqueue(&stage.application, &[("d", "k3")]);
    stage.row_reaches("d", "published").await;
    relays.stop().await;
}
