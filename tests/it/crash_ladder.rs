//! A crash at any step loses nothing, reorders nothing, and repeats no more than the window.
//!
//! The relay runs in a process of its own (this test binary once more), which ends itself at the n-th step; n goes up until a run
//! is untouched. With a protection turned off, the same count has to show what it protects from.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outboxd::consumer::engine::WhenLocked;
use outboxd::consumer::status::State;
use outboxd::consumer::{Bounds, Settings};
use outboxd::controls::{self, Protection, Seam};
use outboxd::event::{Reason, Rejection};
use outboxd::sink::{self, BoxFuture, Fault, Flight, Maker, Outcome, Sink};

use crate::support::fake_sink::FarSide;
use crate::support::rig::{Running, insert, number, open, relay_to, source_of};

const FOLDER: &str = "OUTBOXD_TEST_FOLDER";
const CRASH_AT: &str = "OUTBOXD_TEST_CRASH_AT";
const OFF: &str = "OUTBOXD_TEST_OFF";

const EVENTS: usize = 60;
const KEYS: usize = 5;
const WINDOW: usize = 20;
/// Refused until their second attempt.
const POISON: [usize; 2] = [12, 33];

const ALL: [Protection; 10] = [
    Protection::Acknowledgement,
    Protection::Hold,
    Protection::OneTransaction,
    Protection::Behind,
    Protection::GuiltyAlone,
    Protection::Fingerprint,
    Protection::Inode,
    Protection::CompareAndSet,
    Protection::Lock,
    Protection::Barrier,
];

/// Writes what arrives to a journal, which outlives the process.
struct Journal(fs::File);

impl Journal {
    fn judge(&mut self, flight: &Flight, slot: usize) -> Outcome {
        let (event, pick) = (flight.event(slot), flight.picks[slot]);
        if POISON.contains(&number(event.id)) && pick.attempt < 2 {
            return Outcome::Rejected(Rejection::new(Reason::Refused, "poison"));
        }
        let is_convicted = pick.attempt > 1 && !POISON.contains(&number(event.id));
        self.write(
            flight,
            slot,
            if is_convicted {
                "convicted"
            } else if pick.redelivery {
                "again"
            } else {
                "first"
            },
        );
        Outcome::Delivered
    }

    /// In one piece, so that a crash tears no line.
    fn write(&mut self, flight: &Flight, slot: usize, what: &str) {
        let event = flight.event(slot);
        let key = String::from_utf8_lossy(event.key.unwrap_or_default()).into_owned();
        self.0.write_all(format!("{} {key} {what}\n", event.id).as_bytes()).unwrap();
    }
}

impl Sink for Journal {
    fn check(&mut self, _timeout: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        Box::pin(async { Ok(()) })
    }

    fn send(&mut self, flight: Arc<Flight>) {
        // Once, something in the middle of a flight does not get through, and nobody knows whose fault it was.
        let unlucky = flight.id == 2 && flight.len() > 3;
        for slot in 0..flight.len() {
            let outcome = if unlucky && slot == 2 {
                self.write(&flight, slot, "dropped");
                Outcome::Suspect(Rejection::new(Reason::Refused, "somebody's fault"))
            } else {
                self.judge(&flight, slot)
            };
            flight.fill(slot, outcome);
        }
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

fn relay(folder: &Path) -> Settings {
    let path = folder.join("journal");
    let maker =
        Maker(Arc::new(move |_| Box::new(Journal(OpenOptions::new().create(true).append(true).open(&path).unwrap()))));
    let bounds =
        Bounds { batch_events: 10, window_events: WINDOW, retry_min: Duration::from_millis(1), ..Bounds::default() };
    Settings { sink: sink::Settings::Custom(maker), bounds, ..relay_to("relay", "shop", &FarSide::default()) }
}

/// The other process: relays until all is settled. Not a test of its own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is the process that the others start"]
async fn child() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let folder = Path::new(&folder);
    let said = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
    if let Some(off) = said(OFF) {
        controls::turn_off(ALL[off]);
    }
    if let Some(step) = said(CRASH_AT) {
        controls::crash_at(step as u32);
    }
    let sources = BTreeMap::from([("shop".to_owned(), source_of("shop", &folder.join("shop.db")))]);
    let running = Running::start(&sources, vec![relay(folder)], WhenLocked::Wait);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let status = running.status("relay");
        let is_done = status.position == EVENTS as i64 && status.held_keys == 0;
        if is_done || status.state == State::Halted || Instant::now() > deadline {
            fs::write(folder.join("end"), format!("{:?} {}", status.state, status.detail)).unwrap();
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    running.drain().await;
}

/// Runs the other process; says whether it came to its end.
fn run(folder: &Path, crash_at: Option<usize>, off: Option<Protection>) -> bool {
    let mut process = Process::new(std::env::current_exe().unwrap());
    process.args(["--exact", "crash_ladder::child", "--ignored", "--quiet"]).env(FOLDER, folder);
    process.stdout(Stdio::null()).stderr(Stdio::null());
    if let Some(step) = crash_at {
        process.env(CRASH_AT, step.to_string());
    }
    if let Some(off) = off {
        process.env(OFF, ALL.iter().position(|protection| *protection == off).unwrap().to_string());
    }
    process.status().unwrap().success()
}

async fn place(folder: &Path) {
    let database = folder.join("shop.db");
    outboxd::store::init(&database).await.unwrap();
    let app = open(&database);
    let transaction = app.unchecked_transaction().unwrap();
    for n in 1..=EVENTS {
        insert(&transaction, &format!("e{n}"), &format!("k{}", n % KEYS));
    }
    transaction.commit().unwrap();
}

/// What the journal says, against what was written.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    lost: Vec<usize>,
    /// First deliveries that came after a later one of their key, although nothing had become of them before.
    out_of_order: Vec<usize>,
    /// Last deliveries that came before that of an earlier one of their key.
    ends_out_of_order: Vec<usize>,
    repeated: usize,
    unmarked: usize,
    /// An attempt was counted that was not theirs.
    convicted: usize,
}

fn count(folder: &Path) -> Count {
    let journal = fs::read_to_string(folder.join("journal")).unwrap_or_default();
    let mut result = Count::default();
    let mut seen = BTreeSet::new();
    let mut last_of_key: HashMap<&str, usize> = HashMap::new();
    let mut last_at: HashMap<usize, usize> = HashMap::new();
    // An event that did not get through is overtaken by what was in flight behind it.
    let mut unlucky = BTreeSet::from(POISON);
    for (at, line) in journal.lines().enumerate() {
        let [id, key, what] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let n = number(id);
        if what == "dropped" {
            unlucky.insert(n);
            continue;
        }
        last_at.insert(n, at);
        result.convicted += usize::from(what == "convicted");
        if seen.insert(n) {
            let last = last_of_key.entry(key).or_default();
            if n < *last && !unlucky.contains(&n) {
                result.out_of_order.push(n);
            }
            *last = n.max(*last);
        } else {
            result.repeated += 1;
            result.unmarked += usize::from(what == "first");
        }
    }
    result.lost = (1..=EVENTS).filter(|n| !seen.contains(n)).collect();
    let behind = |n: &usize| last_at.get(n).zip(last_at.get(&(n + KEYS))).is_some_and(|(this, next)| this > next);
    result.ends_out_of_order = (1..=EVENTS).filter(behind).collect();
    result
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_step_loses_and_reorders_nothing() {
    let mut steps = 0;
    for step in 1.. {
        let folder = tempfile::tempdir().unwrap();
        place(folder.path()).await;
        let untouched = run(folder.path(), Some(step), None);
        if !untouched {
            assert!(run(folder.path(), None, None), "the run after the crash at step {step} ends well");
        }
        let found = count(folder.path());
        let end = fs::read_to_string(folder.path().join("end")).unwrap();
        assert!(end.starts_with("Running"), "step {step}: {end}");
        let wrong = [&found.lost, &found.out_of_order, &found.ends_out_of_order];
        assert!(wrong.iter().all(|events| events.is_empty()), "step {step}: {found:?}");
        // The window, what was behind the refused ones in flight, and behind the one that was dropped.
        assert!(found.repeated <= WINDOW + 3 * WINDOW / KEYS, "step {step}: {found:?}");
        assert_eq!((found.unmarked, found.convicted), (0, 0), "step {step}: {found:?}");
        steps = step;
        if untouched {
            break;
        }
    }
    assert!(steps > 30, "the ladder has rungs: {steps}");
    eprintln!("{steps} rungs");
}

/// Whether some crash, or none, with the protection off shows what it protects from.
async fn shows(off: Protection, wrong: impl Fn(&Count, &Path) -> bool) -> bool {
    for step in [None].into_iter().chain((1..200).map(Some)) {
        let folder = tempfile::tempdir().unwrap();
        place(folder.path()).await;
        let untouched = run(folder.path(), step, Some(off));
        if !untouched {
            run(folder.path(), None, Some(off));
        }
        if wrong(&count(folder.path()), folder.path()) {
            return true;
        }
        if untouched && step.is_some() {
            return false;
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn control_settling_before_the_acknowledgement_loses() {
    assert!(shows(Protection::Acknowledgement, |found, _| !found.lost.is_empty()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn control_without_held_keys_order_is_lost() {
    assert!(shows(Protection::Hold, |found, _| !found.ends_out_of_order.is_empty() || !found.lost.is_empty()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn control_a_refusal_recorded_apart_from_the_checkpoint_is_lost() {
    assert!(shows(Protection::OneTransaction, |found, _| !found.lost.is_empty()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn control_without_sending_what_is_behind_again_the_last_word_is_out_of_order() {
    assert!(shows(Protection::Behind, |found, _| !found.ends_out_of_order.is_empty()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn control_without_the_search_for_the_guilty_innocents_are_convicted() {
    assert!(shows(Protection::GuiltyAlone, |found, _| found.convicted > 0).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn control_without_the_look_at_the_inode_another_file_is_not_noticed() {
    for (off, expected) in [(None, "Halted"), (Some(Protection::Inode), "Running")] {
        let folder = tempfile::tempdir().unwrap();
        place(folder.path()).await;
        let mut process = Process::new(std::env::current_exe().unwrap());
        process.args(["--exact", "crash_ladder::inode_child", "--ignored", "--quiet"]).env(FOLDER, folder.path());
        if off.is_some() {
            process.env(OFF, "1");
        }
        assert!(process.stdout(Stdio::null()).status().unwrap().success());
        assert_eq!(fs::read_to_string(folder.path().join("end")).unwrap(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is the process that the others start"]
async fn inode_child() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let folder = Path::new(&folder);
    if std::env::var(OFF).is_ok() {
        controls::turn_off(Protection::Inode);
    }
    let database = folder.join("shop.db");
    let sources = BTreeMap::from([("shop".to_owned(), source_of("shop", &database))]);
    let far_side = FarSide::default();
    let running = Running::start(&sources, vec![relay_to("relay", "shop", &far_side)], WhenLocked::Wait);
    crate::support::rig::eventually("it arrives", || running.status("relay").position == EVENTS as i64).await;
    open(&database).execute("VACUUM INTO ?1", [folder.join("new.db").to_str().unwrap()]).unwrap();
    fs::rename(folder.join("new.db"), &database).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    fs::write(folder.join("end"), format!("{:?}", running.status("relay").state)).unwrap();
    running.drain().await;
}

/// In this process: nothing is turned off, and every batch passes the barrier before anything of it is sent.
#[tokio::test(flavor = "multi_thread")]
async fn every_batch_passes_the_barrier_and_without_it_none_does() {
    for (off, expected) in [(None, true), (Some(Protection::Barrier), false)] {
        let folder = tempfile::tempdir().unwrap();
        place(folder.path()).await;
        let mut process = Process::new(std::env::current_exe().unwrap());
        process.args(["--exact", "crash_ladder::barrier_child", "--ignored", "--quiet"]).env(FOLDER, folder.path());
        if off.is_some() {
            process.env(OFF, "1");
        }
        assert!(process.stdout(Stdio::null()).status().unwrap().success());
        let raised = fs::read_to_string(folder.path().join("raised")).unwrap();
        assert_eq!(raised == "true", expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is the process that the others start"]
async fn barrier_child() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let folder = Path::new(&folder);
    if std::env::var(OFF).is_ok() {
        controls::turn_off(Protection::Barrier);
    }
    let sources = BTreeMap::from([("shop".to_owned(), source_of("shop", &folder.join("shop.db")))]);
    let far_side = FarSide::default();
    let running = Running::start(&sources, vec![relay_to("relay", "shop", &far_side)], WhenLocked::Wait);
    crate::support::rig::eventually("it arrives", || far_side.arrivals().len() == EVENTS).await;
    let raised = controls::reached(Seam::Barrier);
    let app = open(&folder.join("shop.db"));
    insert(&app, "e61", "k1");
    crate::support::rig::eventually("it arrives", || far_side.arrivals().len() == EVENTS + 1).await;
    let again = controls::reached(Seam::Barrier);
    fs::write(folder.join("raised"), (raised == 1 && again == 2).to_string()).unwrap();
    running.drain().await;
}

/// Starts the other process over a file that has been wrongly changed, and says how it ended.
async fn after(off: Option<Protection>, change: impl Fn(&Path)) -> (String, Count) {
    let folder = tempfile::tempdir().unwrap();
    place(folder.path()).await;
    assert!(run(folder.path(), None, None));
    change(folder.path());
    run(folder.path(), None, off);
    (fs::read_to_string(folder.path().join("end")).unwrap(), count(folder.path()))
}

#[tokio::test(flavor = "multi_thread")]
async fn control_without_the_fingerprint_a_rebuilt_table_is_passed_over() {
    let rebuild = |folder: &Path| {
        let app = open(&folder.join("shop.db"));
        app.execute_batch("DELETE FROM outbox; DELETE FROM sqlite_sequence WHERE name = 'outbox'").unwrap();
        for n in 1..=EVENTS {
            insert(&app, &format!("e{}", 1000 + n), "k1");
        }
    };
    let (end, _) = after(None, rebuild).await;
    assert!(end.starts_with("Halted") && end.contains("not the one that was read"), "{end}");
    let (end, found) = after(Some(Protection::Fingerprint), rebuild).await;
    assert!(end.starts_with("Running"), "{end}");
    assert!(found.lost.is_empty(), "nothing new arrived at all, and nobody was told");
}

#[tokio::test(flavor = "multi_thread")]
async fn control_two_daemons_without_lock_and_compare_and_set_move_one_checkpoint() {
    for (offs, both_go_on) in
        [(vec![], false), (vec![Protection::Lock], false), (vec![Protection::Lock, Protection::CompareAndSet], true)]
    {
        let folder = tempfile::tempdir().unwrap();
        place(folder.path()).await;
        let mut process = Process::new(std::env::current_exe().unwrap());
        process.args(["--exact", "crash_ladder::two_daemons_child", "--ignored", "--quiet"]).env(FOLDER, folder.path());
        process.env(OFF, offs.len().to_string()).stdout(Stdio::null());
        assert!(process.status().unwrap().success(), "{offs:?}");
        assert_eq!(fs::read_to_string(folder.path().join("both")).unwrap(), both_go_on.to_string(), "{offs:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is the process that the others start"]
async fn two_daemons_child() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let folder = Path::new(&folder);
    let offs = std::env::var(OFF).unwrap().parse::<usize>().unwrap();
    [Protection::Lock, Protection::CompareAndSet][..offs].iter().for_each(|off| controls::turn_off(*off));
    let sources = BTreeMap::from([("shop".to_owned(), source_of("shop", &folder.join("shop.db")))]);
    let sides = [FarSide::default(), FarSide::default()];
    let start = |side: &FarSide| Running::start(&sources, vec![relay_to("relay", "shop", side)], WhenLocked::Wait);
    let first = start(&sides[0]);
    crate::support::rig::eventually("the first is done", || first.status("relay").position == EVENTS as i64).await;
    let second = start(&sides[1]);
    let settled = |state: State| matches!(state, State::Running | State::Waiting | State::Halted);
    crate::support::rig::eventually("the second stands", || settled(second.status("relay").state)).await;
    let app = open(&folder.join("shop.db"));
    for n in EVENTS + 1..=EVENTS + 40 {
        insert(&app, &format!("e{n}"), "k1");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let both = [&first, &second].iter().all(|daemon| daemon.status("relay").state == State::Running);
    fs::write(folder.join("both"), both.to_string()).unwrap();
    for daemon in [first, second] {
        daemon.drain().await;
    }
}
