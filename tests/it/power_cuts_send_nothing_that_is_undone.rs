//! G4, G1: the power goes off at random instants while an application commits and the daemon relays; what comes back is what the disk held.
//!
//! The application's file (and the state, beside it or inside) lies on a disk that can be cut off; the sink's file lies elsewhere, as a broker
//! would. At each cut the daemon is stopped where it stands, the disk is copied as it is, and both the daemon and the application end. Then
//! they go on from the copy.
//!
//! `OUTBOXD_TEST_POWER_CUTS`: how many cuts each (default 10); the seed: `OUTBOXD_TEST_SEED`. Needs root, or `sudo` without a password.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::support::dice::{Dice, number};
use crate::support::disk::CutDisk;
use crate::support::eventsource;
use crate::support::process::{Daemon, Scene, shared_machine};
use crate::support::proof::Proof;
use crate::support::readers::lines;
use crate::support::referee::{Entry, Print, judge};
use crate::support::wait::until;

const KEYS: u64 = 40;
const PAYLOAD: &[u8] = br#"{"total": 7}"#;
const WINDOW: usize = 10_000;

/// What an application does, and how its events are relayed.
#[derive(Clone, Copy)]
struct Setup {
    synchronous: &'static str,
    durability: &'static str,
    way: Way,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Checkpoint { state: &'static str },
    Row,
}

impl Setup {
    fn config(self, database: &Path) -> String {
        let (source, start) = match self.way {
            Way::Checkpoint { state } => {
                (format!("preset = \"outboxd\"\nread = \"outbox\"\nstate = \"{state}\""), "start = \"first\"\n")
            }
            Way::Row => ("preset = \"eventsource-py\"\nread = \"outbox\"".to_owned(), ""),
        };
        format!(
            "[sources.shop]\npath = \"{}\"\ndurability = \"{}\"\n{source}\n\n[sinks.out]\ntype = \"file\"\npath = \"out.ndjson\"\n\n\
             [relays.to_out]\nsource = \"shop\"\nsink = \"out\"\n{start}",
            database.display(),
            self.durability,
        )
    }

    fn make(self, scene: &Scene, database: &Path) {
        if self.way == Way::Row {
            drop(eventsource::make(database, "g4"));
        } else {
            let made = scene.outboxd(&["init", database.to_str().unwrap()]);
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
    }

    fn open(self, database: &Path) -> Connection {
        let connection = Connection::open(database).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection.pragma_update(None, "synchronous", self.synchronous).unwrap();
        connection
    }

    fn insert(self) -> &'static str {
        match self.way {
            Way::Checkpoint { .. } => {
                "INSERT INTO outbox (id, key, stream_type, type, payload) VALUES (?1, ?2, 'Order', 'Placed', '{\"total\": 7}')"
            }
            Way::Row => {
                "INSERT INTO event_outbox (id, event_id, event_type, aggregate_id, aggregate_type, event_data, created_at)
                 VALUES ('row-' || ?1, ?1, 'Placed', ?2, 'Order', '{\"payload\": {\"total\": 7}}', datetime('now'))"
            }
        }
    }

    /// What stands in the file, in order.
    fn ledger(self, connection: &Connection) -> Vec<Entry> {
        let sql = match self.way {
            Way::Checkpoint { .. } => "SELECT id, key FROM outbox ORDER BY position",
            Way::Row => "SELECT event_id, aggregate_id FROM event_outbox ORDER BY rowid",
        };
        let mut numbers: HashMap<String, u32> = HashMap::new();
        let mut statement = connection.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(|row| {
            let (id, key): (String, String) = row.unwrap();
            let number = numbers.entry(key.clone()).or_default();
            *number += 1;
            Entry { id, key, number: *number, body: Print::of(PAYLOAD) }
        })
        .collect()
    }

    fn is_settled(self, daemon: &Daemon, connection: &Connection) -> bool {
        let Some(status) = daemon.status("to_out") else { return false };
        let head = match self.way {
            Way::Checkpoint { .. } => "SELECT coalesce(max(position), 0) FROM outbox",
            Way::Row => "SELECT count(*) FROM event_outbox WHERE status = 'pending'",
        };
        let head: i64 = connection.query_row(head, [], |row| row.get(0)).unwrap();
        let is_there = if self.way == Way::Row { head == 0 } else { status["position"].as_i64() >= Some(head) };
        is_there && status["in_flight_events"] == 0 && status["state"] == "running"
    }
}

/// The application: it commits one to five events at a time until it is stopped. Returns when each COMMIT came back.
struct Application {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(Instant, Vec<String>)>>,
}

impl Application {
    fn start(setup: Setup, database: &Path, cut: u64, mut dice: Dice) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let mut connection = setup.open(database);
        let thread = std::thread::spawn(move || {
            let mut book = Vec::new();
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                let transaction = connection.transaction().unwrap();
                let ids: Vec<_> = (0..=dice.below(5))
                    .map(|_| {
                        number += 1;
                        let id = format!("{cut}-{number}");
                        let mut insert = transaction.prepare_cached(setup.insert()).unwrap();
                        insert.execute([&id, &format!("k{}", dice.below(KEYS))]).unwrap();
                        id
                    })
                    .collect();
                transaction.commit().unwrap();
                book.push((Instant::now(), ids));
                std::thread::sleep(Duration::from_micros(dice.below(1500)));
            }
            book
        });
        Self { stop, thread }
    }

    fn stop(self) -> Vec<(Instant, Vec<String>)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// What all the cuts of one setup came to.
#[derive(Debug, Default)]
struct Damage {
    cuts: u64,
    events: usize,
    /// Events whose COMMIT had come back and that were gone after a cut.
    undone: usize,
    phantoms: usize,
    corrupt: Vec<String>,
    lost: usize,
    out_of_order: usize,
    duplicates: usize,
    most_duplicates: usize,
}

fn cut_again_and_again(setup: Setup, disk: &mut CutDisk, dice: &mut Dice) -> Damage {
    let database = disk.path("app.db");
    let scene = Scene::without_a_file(&setup.config(&database));
    setup.make(&scene, &database);
    let out = scene.path("out.ndjson");
    let mut damage = Damage { cuts: number("OUTBOXD_TEST_POWER_CUTS").unwrap_or(10), ..Damage::default() };
    let mut repeated = 0;
    for cut in 0..damage.cuts {
        let before = bytes(&out);
        // Whoever comes first recovers what the cut left in the `-wal`.
        let early = (dice.below(2) == 0).then(|| scene.daemon());
        let application = Application::start(setup, &database, cut, Dice::of(dice.next()));
        let mut daemon = early.unwrap_or_else(|| scene.daemon());
        until("events arrive", Duration::from_secs(20), || (bytes(&out) > before).then_some(()));
        std::thread::sleep(dice.between(Duration::ZERO, Duration::from_millis(900)));
        daemon.freeze();
        let instant = Instant::now();
        disk.cut();
        daemon.kill();
        let book = application.stop();
        disk.come_back();
        let (survivors, corrupt) = examine(setup, &scene, &database);
        damage.corrupt.extend(corrupt);
        let committed = book.iter().filter(|(at, _)| *at < instant).flat_map(|(_, ids)| ids);
        damage.undone += committed.filter(|id| !survivors.contains(*id)).count();
        let received = lines(&out);
        let distinct: HashSet<_> = received.iter().map(|arrival| &arrival.id).collect();
        let most = received.len() - distinct.len();
        damage.most_duplicates = damage.most_duplicates.max(most - repeated);
        repeated = most;
    }
    let mut daemon = scene.daemon();
    let connection = setup.open(&database);
    until("all is settled", Duration::from_secs(60), || setup.is_settled(&daemon, &connection).then_some(()));
    assert_eq!(daemon.dead_letters().len(), 0, "a power cut dead-letters nothing");
    assert_eq!(daemon.stop(Duration::from_secs(10)).0, Some(0));
    let ledger = setup.ledger(&connection);
    let judgement = judge(&ledger, &[], &lines(&out));
    damage.events = ledger.len();
    damage.phantoms = judgement.phantom.iter().collect::<HashSet<_>>().len();
    damage.lost = judgement.lost.len();
    damage.out_of_order = judgement.out_of_order.len();
    damage.duplicates = judgement.duplicates;
    damage
}

fn bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.len())
}

/// Which events survived, and which files are damaged: of copies, so that what is to be recovered from a `-wal` stays to be recovered by
/// those who use it.
fn examine(setup: Setup, scene: &Scene, database: &Path) -> (HashSet<String>, Vec<String>) {
    let (mut survivors, mut wrong) = (HashSet::new(), Vec::new());
    for name in ["app.db", "app.db-outboxd.db"] {
        let from = database.with_file_name(name);
        if !from.exists() {
            continue;
        }
        let copy = scene.path(&format!("check-{name}"));
        for part in ["", "-wal"] {
            let (from, to) = (format!("{}{part}", from.display()), format!("{}{part}", copy.display()));
            let _ = std::fs::remove_file(&to);
            if Path::new(&from).exists() {
                std::fs::copy(from, to).unwrap();
            }
        }
        let connection = Connection::open(&copy).unwrap();
        let checked: rusqlite::Result<String> = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0));
        if checked.as_deref() != Ok("ok") {
            wrong.push(format!("{name}: {checked:?}"));
        } else if name == "app.db" {
            survivors.extend(setup.ledger(&connection).into_iter().map(|entry| entry.id));
        }
    }
    (survivors, wrong)
}

/// Cuts one setup's power again and again, and writes down what was found; `None` where this machine cannot.
fn damage(suite: &str, setup: Setup) -> Option<Damage> {
    let _machine = shared_machine();
    let proof = Proof::of(&format!("power cuts, {suite}"));
    let mut disk = match CutDisk::new() {
        Ok(disk) => disk,
        Err(why) => {
            proof.not_run(&format!("file systems cannot be mounted here: {why}"));
            return None;
        }
    };
    let mut dice = Dice::thrown(suite);
    let damage = cut_again_and_again(setup, &mut disk, &mut dice);
    println!("{suite}: {damage:?}");
    proof
        .seed(dice.seed)
        .tried("power cuts", damage.cuts)
        .tried("events that survived", damage.events as u64)
        .found("commits that the cuts undid", damage.undone)
        .found("phantom", damage.phantoms)
        .found("lost", damage.lost)
        .found("corrupt", damage.corrupt.len())
        .found("out of order", damage.out_of_order)
        .found("duplicates", damage.duplicates)
        .found("most duplicates of a cut", damage.most_duplicates);
    Some(damage)
}

fn is_harmless(suite: &str, setup: Setup) {
    let Some(damage) = damage(suite, setup) else { return };
    assert_eq!((damage.phantoms, damage.lost, damage.out_of_order), (0, 0, 0), "{damage:?}");
    assert_eq!(damage.corrupt, Vec::<String>::new());
    assert!(damage.most_duplicates <= WINDOW, "{damage:?}");
    // What SQLite promises of FULL is what the rig must show, or it cuts too much.
    assert!(setup.synchronous == "NORMAL" || damage.undone == 0, "{damage:?}");
}

#[test]
fn with_the_application_at_normal_and_the_state_beside() {
    let way = Way::Checkpoint { state: "beside" };
    is_harmless("NORMAL, state beside", Setup { synchronous: "NORMAL", durability: "strict", way });
}

#[test]
fn with_the_application_at_normal_and_the_state_inside() {
    let way = Way::Checkpoint { state: "inside" };
    is_harmless("NORMAL, state inside", Setup { synchronous: "NORMAL", durability: "strict", way });
}

#[test]
fn with_the_application_at_full_and_the_state_beside() {
    let way = Way::Checkpoint { state: "beside" };
    is_harmless("FULL, state beside", Setup { synchronous: "FULL", durability: "strict", way });
}

#[test]
fn with_the_application_at_full_and_the_state_inside() {
    let way = Way::Checkpoint { state: "inside" };
    is_harmless("FULL, state inside", Setup { synchronous: "FULL", durability: "strict", way });
}

#[test]
fn with_rows_that_are_marked() {
    is_harmless("NORMAL, by row", Setup { synchronous: "NORMAL", durability: "strict", way: Way::Row });
}

/// Without the barrier, events arrive that never were.
#[test]
fn control_without_the_barrier_power_cuts_leave_phantoms() {
    let way = Way::Checkpoint { state: "inside" };
    let setup = Setup { synchronous: "NORMAL", durability: "fast", way };
    let Some(damage) = damage("control without the barrier", setup) else { return };
    assert!(damage.phantoms > 0 && damage.undone > 0, "{damage:?}");
    assert_eq!(damage.corrupt, Vec::<String>::new());
}
