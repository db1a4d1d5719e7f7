//! The relay: the same fleet of readers, consumers and sinks that `outboxd run` spawns, on a file that an application fills.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use outboxd::config::preset;
use outboxd::consumer::control::Command;
use outboxd::consumer::engine::WhenLocked;
use outboxd::consumer::fleet::{Fleet, Handle};
use outboxd::consumer::{Bounds, Destination, OnReject, Settings, Start};
use outboxd::shutdown::Shutdown;
use outboxd::sink;
use outboxd::source::{self, Durability, StatePlace};

use crate::child::{Order, Worker, say};
use crate::load;
use crate::meter::{Drain, Meter, Pace};
use crate::site::FarSide;
use crate::stamp;

const DRAIN_WAIT: Duration = Duration::from_secs(10);

/// A fleet of one relay.
struct Running {
    fleet: Fleet,
    shutdown: Shutdown,
    metrics: PrometheusHandle,
}

impl Running {
    fn start(sink: sink::Settings, database: &Path, state: StatePlace) -> Self {
        // The daemon records its metrics all the time: so does this one.
        let buckets = [0.001, 0.01, 0.1, 1.0, 10.0];
        let metrics = PrometheusBuilder::new().set_buckets(&buckets).expect("there are some");
        let metrics = metrics.install_recorder().expect("it is the first");
        let upkeep = metrics.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(5)).await;
                upkeep.run_upkeep();
            }
        });
        let source = source::Settings {
            name: "shop".into(),
            path: database.to_owned(),
            preset: Some("outboxd".into()),
            tables: preset::tables("outboxd", "outbox").expect("it is one of ours"),
            durability: Durability::Strict,
            state,
            allow_network_filesystem: false,
        };
        let relay = Settings {
            name: "bench".into(),
            source: "shop".into(),
            destination: Destination::Sink { name: "far".into(), settings: sink },
            types: Vec::new(),
            start: Some(Start::First),
            on_reject: OnReject::Hold,
            dead_letter_sink: None,
            dead_letter_row: false,
            bounds: Bounds::default(),
            paused: false,
            until: None,
        };
        let sources = BTreeMap::from([("shop".to_owned(), source)]);
        let (shutdown, phase) = Shutdown::new();
        let fleet = Fleet::spawn(&sources, &BTreeMap::new(), vec![relay], WhenLocked::Refuse, &phase)
            .expect("threads can be started");
        Self { fleet, shutdown, metrics }
    }

    fn handle(&self) -> &Handle {
        self.fleet.handle("bench").expect("it runs")
    }

    /// Waits until so many events are settled: acknowledged, and the checkpoint durably behind them.
    async fn settled(&self, events: usize) {
        let mut status = self.handle().status.clone();
        status.wait_for(|status| status.delivered >= events as u64).await.expect("the consumer runs");
    }

    /// How many events are settled when no more come.
    async fn settled_at_rest(&self) -> usize {
        let mut before = u64::MAX;
        loop {
            let delivered = self.handle().status.borrow().delivered;
            if delivered == before {
                return delivered as usize;
            }
            before = delivered;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// The sum of a metric's series.
    fn metric(&self, name: &str) -> u64 {
        let text = self.metrics.render();
        let values = text
            .lines()
            .filter(|line| line.starts_with(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.sum::<f64>() as u64
    }

    fn transactions(&self) -> u64 {
        self.metric("outboxd_transactions_total")
    }

    fn barriers(&self) -> u64 {
        self.metric("outboxd_barrier_seconds_count")
    }

    async fn stop(mut self) {
        self.shutdown.drain(DRAIN_WAIT);
        self.fleet.ended().await.expect("nobody else has the file");
    }
}

/// Relays the first events, pauses, and measures from there to the last settlement.
pub async fn drain(far_side: &FarSide, database: &Path, state: PathBuf, events: usize) -> Drain {
    let running = Running::start(far_side.sink(), database, StatePlace::At(state));
    running.settled(events / 50).await;
    running.handle().ask(Command::Pause).await.expect("a pause is taken");
    let before = running.settled_at_rest().await;
    assert!(before < events, "the pause came before the end");
    let (transactions, barriers) = (running.transactions(), running.barriers());
    let meter = Meter::start();
    running.handle().ask(Command::Resume).await.expect("a resumption is taken");
    running.settled(events).await;
    let mut drain = meter.read(events - before);
    drain.transactions = running.transactions() - transactions;
    drain.barriers = running.barriers() - barriers;
    running.stop().await;
    drain
}

/// In the child: relays one event, says that it is ready, and then when each further one was acknowledged.
pub async fn pace(far_side: &FarSide, database: &Path, events: usize) {
    let (sink, stamps) = stamp::stamping(far_side.sink());
    let running = Running::start(sink, database, StatePlace::Beside);
    running.settled(1).await;
    say(&true);
    running.settled(1 + events).await;
    running.stop().await;
    say(&stamps.take());
}

/// In the parent: from the return of an application's COMMIT to the acknowledgement of its event.
pub fn paced(far_side: &FarSide, events: usize, per_second: usize) -> Pace {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let database = folder.path().join("shop.db");
    // One event, so that the first acknowledgement of a new producer is not measured.
    let _application = load::fill(&database, 1, 256);
    let mut relay = Worker::start(&Order::RelayPace { far_side: far_side.clone(), database: database.clone(), events });
    assert!(relay.hear::<bool>(), "the relay is ready");
    let application = Worker::start(&Order::Application { database, events, per_second });
    let acknowledged: BTreeMap<i64, i64> = relay.finish::<Vec<(i64, i64)>>().into_iter().collect();
    let committed: Vec<(i64, i64)> = application.finish();
    Pace::of(committed.iter().map(|(position, nanos)| acknowledged[position] - nanos).collect())
}
