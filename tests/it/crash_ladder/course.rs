//! The runs that are ended at every step: what stands in the file, how it is read, where it goes, what goes wrong on the way.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use outboxd::config::preset;
use outboxd::consumer::control::{Command, Operation};
use outboxd::consumer::engine::WhenLocked;
use outboxd::consumer::replay::Wanted;
use outboxd::consumer::status::State;
use outboxd::consumer::{Bounds, Destination, OnReject, Settings};
use outboxd::controls::{self, Seam};
use outboxd::sink::format::Format;
use outboxd::sink::{self, file};
use outboxd::source::declared::Mark;
use outboxd::source::{self, Durability, StatePlace, feed};
use outboxd::state::held::Selection;
use outboxd::state::{self, SCHEMA_VERSION};
use rusqlite::Connection;

use super::journal;
use crate::support::by_hand::described;
use crate::support::eventsource;
use crate::support::fake_sink::FarSide;
use crate::support::rig::{Running, insert, open, relay_to, source_of};

/// How long a run may take that is not ended.
const PATIENCE: Duration = Duration::from_secs(20);

const ROTATE_BYTES: u64 = 600;

/// How progress is recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// By checkpoint, in a file beside the source.
    Beside,
    /// By checkpoint, in the source's own file.
    Inside,
    /// By checkpoint, beside, of a feed; some rows stand in the application's archive.
    Fed,
    /// In the rows themselves.
    ByRow,
    /// The same, and a row that was delivered moves into the table `done`.
    Archived,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// A sink in this process.
    Journal,
    /// The file sink.
    File,
    /// The same, with a new file for every two lines or three.
    Rotating,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    None,
    /// Two events are refused once, and one does not get through for nobody's fault.
    Refusals,
    /// Two events are dead letters until an operator has the one retried and the other discarded.
    DeadLetters,
    /// Two events cannot be decoded: they are dead letters, and stay so.
    DeadForGood,
    /// When all is settled, all of it is replayed.
    Replay,
    /// The far side goes away in the middle of a flight, and is found away when it is looked for.
    Away,
}

#[derive(Debug)]
pub struct Course {
    pub name: &'static str,
    pub progress: Progress,
    pub durability: Durability,
    pub end: End,
    pub trouble: Trouble,
    pub on_reject: OnReject,
    pub events: usize,
    pub keys: usize,
    pub batch: usize,
    pub window: usize,
    /// The state's tables are of this version at first (0: there are none).
    pub tables: i64,
}

/// The first and longest.
pub const BESIDE: Course = Course {
    name: "beside",
    progress: Progress::Beside,
    durability: Durability::Strict,
    end: End::Journal,
    trouble: Trouble::Refusals,
    on_reject: OnReject::Hold,
    events: 60,
    keys: 5,
    batch: 10,
    window: 20,
    tables: 0,
};
const SHORT: Course = Course { events: 20, keys: 3, batch: 4, window: 8, ..BESIDE };
const TINY: Course = Course { events: 4, keys: 2, batch: 2, window: 4, trouble: Trouble::None, ..BESIDE };

const FED: &str = "table = \"log\"\nfeed = true\narchive = \"old\"\nid = \"id\"\nkey = \"key\"\ntype = \"kind\"\npayload = \"data\"\n";

/// Goes in one piece.
const BATCH: Course = Course { events: 6, keys: 2, batch: 6, window: 6, end: End::File, ..TINY };

/// One line a course.
pub static COURSES: [Course; 22] = [
    BESIDE,
    Course { name: "inside", progress: Progress::Inside, ..SHORT },
    Course { name: "fast", progress: Progress::Inside, durability: Durability::Fast, ..SHORT },
    Course { name: "by feed", progress: Progress::Fed, ..SHORT },
    Course { name: "by row", progress: Progress::ByRow, ..SHORT },
    Course { name: "archived", progress: Progress::Archived, ..SHORT },
    Course { name: "away", trouble: Trouble::Away, ..SHORT },
    Course { name: "by row, away", progress: Progress::ByRow, trouble: Trouble::Away, ..SHORT },
    Course { name: "dead letters", trouble: Trouble::DeadLetters, ..SHORT },
    Course { name: "by row, dead letters", progress: Progress::ByRow, trouble: Trouble::DeadLetters, ..SHORT },
    Course { name: "skipped", trouble: Trouble::DeadLetters, on_reject: OnReject::Skip, ..SHORT },
    Course { name: "to a file", end: End::File, trouble: Trouble::None, ..SHORT },
    Course { name: "by row, to a file", progress: Progress::ByRow, end: End::File, trouble: Trouble::None, ..SHORT },
    Course { name: "to files that rotate", end: End::Rotating, trouble: Trouble::None, ..SHORT },
    Course {
        name: "by row, to files that rotate",
        progress: Progress::ByRow,
        end: End::Rotating,
        trouble: Trouble::None,
        ..SHORT
    },
    Course { name: "batch beside", ..BATCH },
    Course { name: "batch inside", progress: Progress::Inside, ..BATCH },
    Course { name: "batch by row", progress: Progress::ByRow, ..BATCH },
    Course { name: "batch with dead letters", trouble: Trouble::DeadForGood, keys: 6, ..BATCH },
    Course { name: "replay", trouble: Trouble::Replay, keys: 2, events: 12, ..SHORT },
    Course {
        name: "by row, replay",
        trouble: Trouble::Replay,
        keys: 2,
        events: 12,
        progress: Progress::ByRow,
        ..SHORT
    },
    // One more for each version of the tables that is not the newest.
    Course { name: "tables of version 0", tables: 0, ..TINY },
];

/// The number in `e17` and `e-17`.
pub fn number(id: &str) -> usize {
    id.trim_start_matches(['e', '-']).parse().unwrap()
}

pub fn named(name: &str) -> &'static Course {
    COURSES.iter().find(|course| course.name == name).unwrap_or_else(|| panic!("no course {name}"))
}

impl Course {
    /// Events that are refused.
    pub fn poison(&self) -> [usize; 2] {
        match self.events {
            60 => [12, 33],
            20 => [5, 13],
            12 => [3, 8],
            _ => [2, 5],
        }
    }

    /// How many held rows stay.
    pub fn stay(&self) -> i64 {
        if self.trouble == Trouble::DeadForGood { 2 } else { 0 }
    }

    pub fn is_by_row(&self) -> bool {
        matches!(self.progress, Progress::ByRow | Progress::Archived)
    }

    pub fn source(&self, folder: &Path) -> source::Settings {
        let settings = source_of("shop", &folder.join("shop.db"));
        let is_beside = matches!(self.progress, Progress::Beside | Progress::Fed);
        let state = if is_beside { StatePlace::Beside } else { StatePlace::Inside };
        let settings = source::Settings { state, durability: self.durability, ..settings };
        match self.is_by_row() {
            true => {
                let mut tables = preset::tables("eventsource-py", "outbox").unwrap().to_vec();
                if self.progress == Progress::Archived {
                    let rows = tables.iter_mut().filter_map(|table| table.rows.as_mut());
                    rows.for_each(|rows| rows.on_delivered = Mark::Archive("done".into()));
                }
                source::Settings { preset: Some("eventsource-py".into()), tables: tables.into(), ..settings }
            }
            false if self.progress == Progress::Fed => {
                let tables = described(folder, FED).unwrap().tables;
                source::Settings { preset: None, tables, ..settings }
            }
            false => settings,
        }
    }

    pub fn database(&self, folder: &Path) -> PathBuf {
        self.source(folder).path
    }

    /// Makes the application's file, with all its events, and the state's tables as an older outboxd left them.
    pub async fn place(&self, folder: &Path) {
        let database = self.database(folder);
        if self.is_by_row() {
            let rows: Vec<_> = (1..=self.events).map(|n| (n.to_string(), format!("k{}", n % self.keys))).collect();
            let rows: Vec<_> = rows.iter().map(|(row, key)| (row.as_str(), key.as_str())).collect();
            let app = eventsource::make(&database, "g4");
            app.execute_batch("CREATE TABLE done AS SELECT * FROM event_outbox WHERE 0").unwrap();
            eventsource::enqueue(&app, &rows);
        } else if self.progress == Progress::Fed {
            self.place_fed(&database);
        } else {
            outboxd::store::init(&database).await.unwrap();
            let app = open(&database);
            let transaction = app.unchecked_transaction().unwrap();
            for n in 1..=self.events {
                insert(&transaction, &format!("e{n}"), &format!("k{}", n % self.keys));
            }
            if self.trouble == Trouble::DeadForGood {
                let sql = "UPDATE outbox SET stream_type = cast(x'ff' AS TEXT) WHERE position IN (?1, ?2)";
                transaction.execute(sql, self.poison().map(|n| n as i64)).unwrap();
            }
            transaction.commit().unwrap();
        }
        if self.tables > 0 {
            assert!(self.tables <= SCHEMA_VERSION);
            state::migrate_to(&open(&self.source(folder).state_path()), self.tables).unwrap();
        }
    }

    /// Half of the rows are there before the feed is; then some of them go into the archive.
    fn place_fed(&self, database: &Path) {
        let app = open(database);
        let columns = "id TEXT PRIMARY KEY, key TEXT, kind TEXT, data TEXT";
        app.execute_batch(&format!("CREATE TABLE log ({columns}); CREATE TABLE old ({columns});")).unwrap();
        let place = |n: usize| {
            let values = [format!("e{n}"), format!("k{}", n % self.keys), "Placed".into(), format!("e{n}")];
            app.execute("INSERT INTO log VALUES (?1, ?2, ?3, ?4)", values).unwrap();
        };
        (1..=self.events / 2).for_each(place);
        feed::make(database, "log", Some("old"), feed::Run::Make).unwrap();
        (self.events / 2 + 1..=self.events).for_each(place);
        for table in ["INSERT INTO old SELECT * FROM log", "DELETE FROM log"] {
            app.execute_batch(&format!("{table} WHERE id IN ('e1', 'e2', 'e5', 'e13')")).unwrap();
        }
    }

    fn relay(&'static self, folder: &Path) -> Settings {
        let sink = match self.end {
            End::Journal => sink::Settings::Custom(journal::maker(self, folder)),
            End::File | End::Rotating => {
                let bytes = (self.end == End::Rotating).then_some(ROTATE_BYTES);
                let rotation = file::Rotation { bytes, every: None };
                let path = Some(folder.join("lines"));
                sink::Settings::File(file::Settings { path, format: Format::Envelope, rotation })
            }
        };
        let bounds = Bounds {
            batch_events: self.batch,
            window_events: self.window,
            retry_min: Duration::from_millis(1),
            attempts_max: if matches!(self.trouble, Trouble::DeadLetters | Trouble::DeadForGood) { 1 } else { 5 },
            ..Bounds::default()
        };
        let copies = || ("graveyard".to_owned(), sink::Settings::Custom(journal::copies(folder)));
        let dead_letter_sink = self.has_copies().then(copies);
        let relay = relay_to("relay", "shop", &FarSide::default());
        let destination = Destination::Sink { name: "far_side".into(), settings: sink };
        Settings { destination, bounds, on_reject: self.on_reject, dead_letter_sink, ..relay }
    }

    /// Each dead letter is copied.
    pub fn has_copies(&self) -> bool {
        self.trouble == Trouble::DeadLetters
    }

    /// How many rows there are of which something is still to become.
    pub fn left(&self, application: &Connection, state: &Connection) -> i64 {
        let one =
            |connection: &Connection, sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        let unsettled = if self.is_by_row() {
            one(application, "SELECT count(*) FROM event_outbox WHERE status = 'pending'")
        } else {
            one(state, "SELECT coalesce(max(position), 0) FROM outboxd_checkpoint").abs_diff(self.events as i64) as i64
        };
        let copies = one(state, "SELECT count(*) FROM outboxd_dead_letter_copy");
        unsettled + copies + one(state, "SELECT count(*) FROM outboxd_held") - self.stay()
    }

    /// How many replays there are that are not done.
    pub fn left_to_replay(&self, state: &Connection) -> i64 {
        let sql = "SELECT coalesce((SELECT state <> 'done' FROM outboxd_replay), 1)";
        if self.trouble == Trouble::Replay { state.query_row(sql, [], |row| row.get(0)).unwrap() } else { 0 }
    }
}

/// The other process: relays until all is settled, with an operator beside it where dead letters want one.
pub async fn run(course: &'static Course, folder: &Path) {
    controls::obey_environment();
    let sources = BTreeMap::from([("shop".to_owned(), course.source(folder))]);
    let running = Running::start(&sources, vec![course.relay(folder)], WhenLocked::Wait);
    let deadline = Instant::now() + PATIENCE;
    // What it says of itself is waited for first: only then are its tables there.
    let mut books: Option<(Connection, Connection)> = None;
    loop {
        let status = running.status("relay");
        if books.is_none() && matches!(status.state, State::Running | State::Unavailable) {
            books = Some((open(&course.database(folder)), open(&course.source(folder).state_path())));
        }
        let left = books.as_ref().map(|(application, state)| course.left(application, state));
        if let (Some(0), Some((_, state))) = (left, &books) {
            replay(course, &running, state).await;
        }
        let left = left.zip(books.as_ref()).map(|(left, (_, state))| left + course.left_to_replay(state));
        if left == Some(0) || status.state == State::Halted || Instant::now() > deadline {
            fs::write(folder.join("end"), format!("{:?} {} left {left:?}", status.state, status.detail)).unwrap();
            break;
        }
        if let Some((_, state)) = &books {
            operate(course, folder, &running, state).await;
        }
        if status.state == State::Unavailable {
            // An operator has no patience, and the ladder no time.
            running.handle("relay").ask(Command::Resume).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    running.drain().await;
    let reached: Vec<String> =
        Seam::ALL.iter().filter(|seam| controls::reached(**seam) > 0).map(|seam| format!("{seam:?}")).collect();
    fs::write(folder.join("reached"), reached.join(" ")).unwrap();
}

/// When all is settled, an operator has all of it sent again, once.
async fn replay(course: &Course, running: &Running, state: &Connection) {
    let sql = "SELECT EXISTS (SELECT 1 FROM outboxd_replay)";
    if course.trouble == Trouble::Replay && !state.query_row(sql, [], |row| row.get::<_, bool>(0)).unwrap() {
        let all = Operation::Replay(Wanted::default());
        running.handle("relay").ask(|reply| Command::Operate(all, reply)).await.unwrap();
    }
}

/// When both are dead letters, the far side is mended; then the first is retried, and the second discarded.
async fn operate(course: &Course, folder: &Path, running: &Running, state: &Connection) {
    if course.trouble != Trouble::DeadLetters {
        return;
    }
    let sql = "SELECT event_id FROM outboxd_held WHERE state IN ('dead', 'skipped') ORDER BY event_id";
    let mut statement = state.prepare_cached(sql).unwrap();
    let dead: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let mended = folder.join("mended");
    if dead.len() == 2 && !mended.exists() {
        fs::write(&mended, "").unwrap();
    }
    if !mended.exists() {
        return;
    }
    for id in dead {
        let is_first = number(&id) == course.poison()[0];
        let selection = Selection { id: Some(id), ..Selection::default() };
        let reason = "the ladder's".to_owned();
        let operation = if is_first { Operation::Retry(selection) } else { Operation::Discard { selection, reason } };
        running.handle("relay").ask(|reply| Command::Operate(operation, reply)).await.unwrap();
    }
}
