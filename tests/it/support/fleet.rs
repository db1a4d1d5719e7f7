//! Relays in this process, put together as the daemon does.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outboxd::config::preset;
use outboxd::consumer::control::{Command, Operation};
use outboxd::consumer::engine::WhenLocked;
use outboxd::consumer::fleet::{Fleet, Handle};
use outboxd::consumer::status::Status;
use outboxd::consumer::{Bounds, Destination, OnReject, Settings, Start};
use outboxd::shutdown::Shutdown;
use outboxd::sink::{self, Maker};
use outboxd::source::{self, Durability, StatePlace};

use super::fake_sink::{FakeSink, FarSide};

pub const PATIENCE: Duration = Duration::from_secs(30);

/// Which of eventsource-py's tables is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    Outbox,
    Events,
}

/// A source of eventsource-py's tables.
pub fn source(name: &str, path: &Path, read: Read) -> source::Settings {
    let state = if read == Read::Outbox { StatePlace::Inside } else { StatePlace::Beside };
    source::Settings {
        name: name.into(),
        path: path.to_owned(),
        preset: Some("eventsource-py".into()),
        tables: preset::tables("eventsource-py", if read == Read::Outbox { "outbox" } else { "events" }).unwrap(),
        durability: Durability::Strict,
        state,
        allow_network_filesystem: false,
    }
}

pub fn relay(name: &str, source: &str, sink: sink::Settings) -> Settings {
    Settings {
        name: name.into(),
        source: source.into(),
        destination: Destination::Sink { name: "sink".into(), settings: sink },
        types: vec![],
        start: Some(Start::First),
        on_reject: OnReject::Hold,
        dead_letter_sink: None,
        dead_letter_row: false,
        bounds: Bounds::default(),
        paused: false,
        until: None,
    }
}

pub fn fake(far_side: &FarSide) -> sink::Settings {
    let far_side = far_side.clone();
    sink::Settings::Custom(Maker(Arc::new(move |port| Box::new(FakeSink::new(far_side.clone(), port)))))
}

pub struct Relays {
    pub fleet: Fleet,
    shutdown: Shutdown,
}

impl Relays {
    pub fn start(sources: &[source::Settings], relays: Vec<Settings>) -> Self {
        let sources: BTreeMap<_, _> = sources.iter().map(|source| (source.name.clone(), source.clone())).collect();
        let (shutdown, phase) = Shutdown::new();
        let fleet = Fleet::spawn(&sources, &BTreeMap::new(), relays, WhenLocked::Wait, &phase).unwrap();
        Self { fleet, shutdown }
    }

    /// One relay of one source.
    pub fn one(source: source::Settings, sink: sink::Settings) -> Self {
        let settings = relay("r", &source.name, sink);
        Self::start(&[source], vec![settings])
    }

    pub fn handle(&self, name: &str) -> &Handle {
        self.fleet.handle(name).unwrap()
    }

    pub fn status(&self, name: &str) -> Status {
        self.handle(name).status.borrow().clone()
    }

    pub async fn reaches(&self, name: &str, is: impl Fn(&Status) -> bool) -> Status {
        let mut status = self.handle(name).status.clone();
        let reached = tokio::time::timeout(PATIENCE, status.wait_for(is)).await;
        match reached {
            Ok(status) => status.unwrap().clone(),
            Err(_) => panic!("{name} did not get there: {:?}", self.status(name)),
        }
    }

    pub async fn operate(&self, name: &str, operation: Operation) -> serde_json::Value {
        self.handle(name).ask(|reply| Command::Operate(operation, reply)).await.unwrap()
    }

    pub async fn stop(mut self) {
        self.shutdown.drain(Duration::from_secs(10));
        self.fleet.ended().await.unwrap();
    }
}

/// Waits until it is so.
pub async fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) => assert!(Instant::now() < deadline, "{what}: {seen}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until as many events have arrived, and returns them.
pub async fn arrived(far_side: &FarSide, least: usize) -> Vec<super::fake_sink::Arrival> {
    until("events arrive", || {
        let arrivals = far_side.arrivals();
        if arrivals.len() >= least { Ok(arrivals) } else { Err(format!("{} of {least}", arrivals.len())) }
    })
    .await
}
