//! The composition root: builds everything from a config, spawns it, takes on a changed one, drains it, and lets go.

mod reload;

use std::io;
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::reload::Reloader;
use crate::admin::control_socket::ControlSocket;
use crate::admin::{Board, http};
use crate::config::Loaded;
use crate::consumer::engine::Locked;
use crate::consumer::fleet::Fleet;
use crate::maintenance::crew::Crew;
use crate::shutdown::Shutdown;
use crate::telemetry::{logs, metric};

/// How long it may take to tell the service manager that this is the end.
const GOODBYE: Duration = Duration::from_millis(200);
const UPKEEP: Duration = Duration::from_secs(5);
/// Seconds; from a fast local acknowledgement to a long outage.
const BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0, 3600.0];

/// Why the daemon could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the admin address {address} cannot be used")]
    Admin { address: std::net::SocketAddr, source: io::Error },
    #[error("the control socket {path} cannot be used")]
    Control { path: std::path::PathBuf, source: io::Error },
    #[error("the daemon cannot start")]
    Start(#[source] io::Error),
    #[error("the metrics cannot be recorded: {0}")]
    Metrics(String),
    #[error(transparent)]
    Locked(#[from] Locked),
}

/// Runs until SIGTERM or SIGINT, then drains. A second signal ends it at once, which loses nothing. SIGHUP has the configuration read
/// anew, and so has who asks for it through the control socket.
pub async fn run(loaded: Loaded, level: logs::Level) -> Result<(), Error> {
    // Before anything else: from here on, no signal ends the process by itself.
    let mut signals = Signals::new().map_err(Error::Start)?;
    let metrics = install_metrics()?;
    let config = loaded.config.clone();
    let (mut reloader, reloads) = Reloader::new(loaded, level).map_err(Error::Start)?;
    let (shutdown, phase) = Shutdown::new();
    let consumers = config.consumers().cloned().collect();
    let mut fleet = Fleet::spawn(&config.sources, &config.sinks, consumers, config.daemon.when_locked, &phase)
        .map_err(Error::Start)?;
    let mut crew = Crew::spawn(config.jobs, fleet.files().clone(), &phase).await;
    let (roster, jobs) = (fleet.roster(), crew.roster());
    let board = Board { roster, jobs, metrics: metrics.clone(), started: Instant::now(), reloads };
    if let Some(address) = config.daemon.admin {
        let bound = http::serve(address, board.clone()).map_err(|source| Error::Admin { address, source })?;
        tracing::info!(event = "admin_listens", address = %bound);
    }
    let path = config.daemon.control;
    let socket = ControlSocket::bind(&path).map_err(|source| Error::Control { path, source })?;
    let control = tokio::spawn(socket.serve(board.clone()));
    tokio::spawn(upkeep(metrics));
    std::thread::Builder::new()
        .name("manager".into())
        .spawn(move || keep_the_manager_informed(&board))
        .map_err(Error::Start)?;

    tracing::info!(event = "daemon_started", version = env!("CARGO_PKG_VERSION"));
    let ended = tokio::select! {
        locked = reloader.serve(&mut fleet, &mut crew) => Err(locked),
        // A reload that is under way is left where it is: those that it has not started yet are not needed any more.
        () = signals.end() => {
            drain(&shutdown, reloader.drain_timeout(), &mut fleet, &mut crew, &mut signals).await
        }
    };
    control.abort();
    let _ = control.await;
    tracing::info!(event = "daemon_stopped");
    Ok(ended?)
}

async fn drain(
    shutdown: &Shutdown,
    timeout: Duration,
    fleet: &mut Fleet,
    crew: &mut Crew,
    signals: &mut Signals,
) -> Result<(), Locked> {
    tracing::info!(event = "daemon_drains");
    shutdown.drain(timeout);
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || tell.send(sd_notify::notify(&[sd_notify::NotifyState::Stopping])));
    let _ = tokio::time::timeout(GOODBYE, told).await;
    tokio::select! {
        (ended, ()) = async { tokio::join!(fleet.ended(), crew.ended()) } => ended,
        () = signals.end() => Ok(()),
    }
}

/// Those that end it.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn install_metrics() -> Result<PrometheusHandle, Error> {
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &BUCKETS)
        .map_err(|error| Error::Metrics(error.to_string()))?;
    let handle = builder.install_recorder().map_err(|error| Error::Metrics(error.to_string()))?;
    metric::describe();
    metric::build_info();
    Ok(handle)
}

/// Without it histograms grow without bound between scrapes.
async fn upkeep(metrics: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        metrics.run_upkeep();
    }
}

/// READY at once (a broker may be away for hours), a status line, and the watchdog while the loops turn. On a thread of its own: telling
/// blocks while the manager does not listen, and nothing else may wait for that.
fn keep_the_manager_informed(board: &Board) {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let interval = sd_notify::watchdog_enabled().map_or(Duration::from_secs(10), |timeout| timeout / 3);
    loop {
        let summary = board.summary();
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Status(&summary)]);
        if board.hung().is_empty() {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
        std::thread::sleep(interval);
    }
}
