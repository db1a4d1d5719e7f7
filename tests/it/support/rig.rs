//! An application with a SQLite file, a relay over it, and a far side: what the engine's promises are tried on.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outboxd::config::preset;
use outboxd::consumer::control::{Command, Operation};
use outboxd::consumer::engine::WhenLocked;
use outboxd::consumer::fleet::{Fleet, Handle};
use outboxd::consumer::status::{State, Status};
use outboxd::consumer::{Bounds, Destination, OnReject, Settings, Start};
use outboxd::event::{Event, Reason, Rejection};
use outboxd::shutdown::Shutdown;
use outboxd::sink::{self, Maker};
use outboxd::source::{self, Durability, StatePlace};
use outboxd::state::held::Selection;
use rusqlite::Connection;
use serde_json::Value;

use super::fake_sink::{Arrival, FakeSink, FarSide};

/// How long anything may take that has to happen.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Waits until it is so.
pub async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The daemon's heart, running.
pub struct Running {
    pub fleet: Fleet,
    shutdown: Shutdown,
}

impl Running {
    pub fn start(sources: &BTreeMap<String, source::Settings>, relays: Vec<Settings>, when_locked: WhenLocked) -> Self {
        Self::with_sinks(sources, &BTreeMap::new(), relays, when_locked)
    }

    /// With further sinks that are known by name.
    pub fn with_sinks(
        sources: &BTreeMap<String, source::Settings>,
        sinks: &BTreeMap<String, sink::Settings>,
        relays: Vec<Settings>,
        when_locked: WhenLocked,
    ) -> Self {
        let (shutdown, phase) = Shutdown::new();
        let fleet = Fleet::spawn(sources, sinks, relays, when_locked, &phase).unwrap();
        Self { fleet, shutdown }
    }

    pub fn handle(&self, name: &str) -> &Handle {
        self.fleet.handle(name).unwrap()
    }

    pub fn status(&self, name: &str) -> Status {
        self.handle(name).status.borrow().clone()
    }

    pub async fn is(&self, name: &str, state: State) -> Status {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let status = self.status(name);
            if status.state == state {
                return status;
            }
            assert!(Instant::now() < deadline, "{name} is not {state:?}: {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn drain(mut self) {
        self.shutdown.drain(DEADLINE);
        tokio::time::timeout(DEADLINE, self.fleet.ended()).await.expect("it drains").unwrap();
    }
}

/// An application and one relay named `relay` that reads its outbox.
pub struct Rig {
    pub folder: tempfile::TempDir,
    pub database: PathBuf,
    pub app: Connection,
    pub far_side: FarSide,
    pub source: source::Settings,
    pub relay: Settings,
    pub running: Option<Running>,
    next: usize,
}

impl Rig {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("shop.db");
        outboxd::store::init(&database).await.unwrap();
        let far_side = FarSide::default();
        Self {
            app: open(&database),
            source: source_of("shop", &database),
            relay: relay_to("relay", "shop", &far_side),
            running: None,
            next: 1,
            folder,
            database,
            far_side,
        }
    }

    /// Writes `count` events; their keys go round `k0`, `k1`, ... Returns their ids: `e1`, `e2`, ...
    pub fn place(&mut self, count: usize, keys: usize) -> Vec<String> {
        let transaction = self.app.unchecked_transaction().unwrap();
        let range = self.next..self.next + count;
        self.next = range.end;
        let ids = range.map(|n| {
            let id = format!("e{n}");
            insert(&transaction, &id, &format!("k{}", n % keys));
            id
        });
        let ids = ids.collect();
        transaction.commit().unwrap();
        ids
    }

    pub fn start(&mut self) {
        assert!(self.running.is_none(), "one at a time");
        let sources = BTreeMap::from([(self.source.name.clone(), self.source.clone())]);
        self.running = Some(Running::start(&sources, vec![self.relay.clone()], WhenLocked::Wait));
    }

    pub fn running(&self) -> &Running {
        self.running.as_ref().expect("it was started")
    }

    /// Ends it as a crash would.
    pub async fn crash(&mut self) {
        self.far_side.cut();
        self.running.take().expect("it was started").fleet.cut().await;
    }

    pub async fn drain(&mut self) {
        self.running.take().expect("it was started").drain().await;
    }

    pub fn status(&self) -> Status {
        self.running().status("relay")
    }

    pub async fn is(&self, state: State) -> Status {
        self.running().is("relay", state).await
    }

    pub async fn ask(&self, operation: Operation) -> Result<Value, String> {
        let asked = self.running().handle("relay").ask(|reply| Command::Operate(operation, reply));
        let answer = tokio::time::timeout(DEADLINE, asked).await.expect("an operator is answered");
        answer.map_err(|error| error.to_string())
    }

    pub async fn retry(&self, selection: Selection) -> u64 {
        self.ask(Operation::Retry(selection)).await.unwrap()["retried"].as_u64().unwrap()
    }

    pub async fn discard(&self, selection: Selection, reason: &str) -> Result<u64, String> {
        let done = self.ask(Operation::Discard { selection, reason: reason.into() }).await?;
        Ok(done["discarded"].as_u64().unwrap())
    }

    pub async fn resume(&self) {
        self.running().handle("relay").ask(Command::Resume).await.unwrap();
    }

    pub async fn pause(&self) {
        self.running().handle("relay").ask(Command::Pause).await.unwrap();
    }

    /// Waits until everything that was written is settled, and nothing is held.
    pub async fn is_done(&self) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let status = self.status();
            let head = self.head();
            if status.state == State::Running
                && status.position == head
                && status.held_keys == 0
                && status.in_flight == 0
            {
                return;
            }
            assert!(Instant::now() < deadline, "not done: head {head}, {status:?}, {:?}", self.held());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until everything that was written is settled or held.
    pub async fn is_done_or_held(&self) {
        eventually("all is settled or held", || self.status().position == self.head()).await;
    }

    pub fn head(&self) -> i64 {
        self.app.query_row("SELECT coalesce(max(position), 0) FROM outbox", [], |row| row.get(0)).unwrap()
    }

    /// A connection to the file that the state stands in.
    pub fn state(&self) -> Connection {
        let connection = Connection::open(self.source.state_path()).unwrap();
        connection.busy_timeout(Duration::from_secs(5)).unwrap();
        connection
    }

    /// One value from the state's file.
    pub fn recorded<T: rusqlite::types::FromSql>(&self, sql: &str) -> T {
        self.state().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// The held events: key, id, state, attempts.
    pub fn held(&self) -> Vec<(String, String, String, u32)> {
        if !self.source.state_path().exists() {
            return Vec::new();
        }
        let state = self.state();
        let sql = "SELECT cast(key AS TEXT), event_id, state, attempts FROM outboxd_held ORDER BY key, ordinal";
        // Its tables may be about to be made.
        let Ok(mut statement) = state.prepare(sql) else { return Vec::new() };
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    pub fn held_ids(&self) -> Vec<String> {
        self.held().into_iter().map(|row| row.1).collect()
    }

    pub fn delivered(&self) -> Vec<String> {
        self.far_side.arrivals().into_iter().map(|arrival| arrival.id).collect()
    }

    pub async fn arrives(&self, id: &str) {
        eventually(&format!("{id} arrives"), || self.far_side.arrivals().iter().any(|arrival| arrival.id == id)).await;
    }
}

impl Drop for Rig {
    /// What is waited for in vain is seldom told by the test alone.
    fn drop(&mut self) {
        if let Some(running) = self.running.as_ref().filter(|_| std::thread::panicking()) {
            eprintln!(
                "the relay stood so: {:?}; {} events had arrived",
                running.status("relay"),
                self.far_side.arrivals().len()
            );
        }
    }
}

/// An application's connection.
#[allow(clippy::disallowed_methods, reason = "this plays the application")]
pub fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(5)).unwrap();
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL").unwrap();
    connection
}

pub fn insert(connection: &Connection, id: &str, key: &str) {
    connection
        .prepare_cached(
            "INSERT INTO outbox (id, key, stream_type, type, payload) VALUES (?1, ?2, 'Order', 'Placed', ?1)",
        )
        .unwrap()
        .execute([id, key])
        .unwrap();
}

pub fn source_of(name: &str, path: &Path) -> source::Settings {
    source::Settings {
        name: name.into(),
        path: path.into(),
        preset: Some("outboxd".into()),
        tables: preset::tables("outboxd", "outbox").expect("it is one of ours"),
        durability: Durability::Strict,
        state: StatePlace::Beside,
        allow_network_filesystem: false,
    }
}

pub fn relay_to(name: &str, source: &str, far_side: &FarSide) -> Settings {
    let far_side = far_side.clone();
    let maker = Maker(Arc::new(move |port| Box::new(FakeSink::new(far_side.clone(), port))));
    Settings {
        name: name.into(),
        source: source.into(),
        destination: Destination::Sink { name: "far_side".into(), settings: sink::Settings::Custom(maker) },
        types: Vec::new(),
        start: Some(Start::First),
        on_reject: OnReject::Hold,
        dead_letter_sink: None,
        dead_letter_row: false,
        bounds: Bounds { retry_min: Duration::from_millis(20), ..Bounds::default() },
        paused: false,
        until: None,
    }
}

/// Refuses these by name.
pub fn poison(ids: &[&str]) -> impl Fn(&Event<'_>) -> Option<Rejection> + Send + 'static {
    let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
    move |event| ids.iter().any(|id| id == event.id).then(|| Rejection::new(Reason::Refused, "poison"))
}

pub fn by_id(id: &str) -> Selection {
    Selection { id: Some(id.into()), ..Selection::default() }
}

/// The number in `e17`.
pub fn number(id: &str) -> usize {
    id[1..].parse().unwrap()
}

/// All of `e1..=eN` arrived, and the first deliveries of each key in order; says how many arrived more than once.
pub fn check(arrivals: &[Arrival], count: usize) -> usize {
    let mut times: HashMap<&str, usize> = HashMap::new();
    let mut last: HashMap<&[u8], usize> = HashMap::new();
    for arrival in arrivals {
        let seen = times.entry(&arrival.id).or_default();
        *seen += 1;
        if *seen == 1 {
            let before = last.insert(&arrival.key, number(&arrival.id)).unwrap_or(0);
            assert!(before < number(&arrival.id), "{} came after e{before}", arrival.id);
        }
    }
    let missing: Vec<usize> = (1..=count).filter(|n| !times.contains_key(format!("e{n}").as_str())).collect();
    assert!(missing.is_empty(), "missing: {missing:?}");
    arrivals.len() - times.len()
}

/// The last delivery of each event of the key comes after the last delivery of the one before it.
pub fn check_last_deliveries(arrivals: &[Arrival], key: &str) {
    let mut last: BTreeMap<usize, usize> = BTreeMap::new();
    for (at, arrival) in arrivals.iter().enumerate().filter(|(_, arrival)| arrival.key == key.as_bytes()) {
        last.insert(number(&arrival.id), at);
    }
    assert!(last.values().is_sorted(), "{last:?}");
}
