//! The main job in one process: an application that writes orders, a relay that carries their events to a file, and a count from
//! both files in the end.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::{Connection, SqliteConnection};
use tokio::sync::watch;

use crate::config::preset;
use crate::consumer::engine::WhenLocked;
use crate::consumer::fleet::{Fleet, Handle};
use crate::consumer::{Bounds, Destination, OnReject, Settings, Start};
use crate::shutdown::{Phase, Shutdown};
use crate::sink;
use crate::source::{self, Durability, StatePlace};
use crate::sqlite::pool;
use crate::store;

/// Orders of which the application has some open at a time.
const OPEN_ORDERS: u64 = 200;
/// As in the config that is left behind.
const RELAY: &str = "shop_to_file";
/// How long the last events may take to arrive.
const CATCH_UP: Duration = Duration::from_secs(60);

pub struct Options {
    pub folder: PathBuf,
    /// End by itself after so many events.
    pub events: Option<u64>,
    pub quiet: bool,
    /// Events a second that the application writes.
    pub rate: u64,
}

/// What both files say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    pub written: u64,
    pub delivered: u64,
    pub missing: u64,
    pub repeated: u64,
    pub out_of_order: u64,
    pub unknown: u64,
}

impl Summary {
    pub fn is_whole(&self) -> bool {
        self.missing == 0 && self.repeated == 0 && self.out_of_order == 0 && self.unknown == 0
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use the folder {path}")]
    Folder { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Init(#[from] store::InitError),
    #[error("the application could not write")]
    Application(#[from] sqlx::Error),
    #[error("the relay could not start")]
    Relay(#[source] io::Error),
    #[error("the relay had to end: {0}")]
    Ended(#[from] crate::consumer::engine::Locked),
    #[error("the delivered file cannot be read")]
    Count(#[source] io::Error),
}

/// Runs until the events are written and delivered, or Ctrl-C; then counts.
pub async fn run(options: Options) -> Result<Summary, Error> {
    let folder = options.folder.clone();
    let in_folder = |source| Error::Folder { path: folder.clone(), source };
    fs::create_dir_all(&options.folder).map_err(in_folder)?;
    let database = options.folder.join("shop.db");
    let delivered = options.folder.join("events.ndjson");
    store::init(&database).await?;
    fs::write(options.folder.join("outboxd.toml"), CONFIG).map_err(in_folder)?;

    let (shutdown, phase) = Shutdown::new();
    let mut fleet = relay(&database, &delivered, &phase).map_err(Error::Relay)?;
    let written = Arc::new(AtomicU64::new(0));
    let (stop, stopped) = watch::channel(false);
    let application =
        tokio::spawn(write_orders(database.clone(), options.events, options.rate, written.clone(), stopped));

    let handle = fleet.handle(RELAY).expect("it was just started").clone();
    watch_until_done(&options, &written, &handle, application, &stop).await?;
    catch_up(&handle, &written).await;
    shutdown.drain(Duration::from_secs(10));
    fleet.ended().await?;
    count(&database, &delivered).await
}

fn relay(database: &Path, delivered: &Path, phase: &watch::Receiver<Phase>) -> io::Result<Fleet> {
    let source = source::Settings {
        name: "shop".into(),
        path: database.to_owned(),
        preset: Some("outboxd".into()),
        tables: preset::tables("outboxd", "outbox").expect("it is one of ours"),
        durability: Durability::Strict,
        state: StatePlace::Beside,
        allow_network_filesystem: false,
    };
    let settings = Settings {
        name: RELAY.into(),
        source: "shop".into(),
        destination: Destination::Sink {
            name: "events".into(),
            settings: sink::Settings::File(sink::file::Settings {
                path: Some(delivered.to_owned()),
                format: sink::format::Format::Envelope,
                ..Default::default()
            }),
        },
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
    Fleet::spawn(&sources, &BTreeMap::new(), vec![settings], WhenLocked::Refuse, phase)
}

const CONFIG: &str = r#"# What `outboxd demo` ran, as a config. Try, in this folder:
#   outboxd check    outboxd run    outboxd status    outboxd position show shop_to_file
[daemon]
control = "unix:outboxd.sock"

[sources.shop]
path = "shop.db"
preset = "outboxd"
read = "outbox"

[sinks.events]
type = "file"
path = "events.ndjson"

[relays.shop_to_file]
source = "shop"
sink = "events"
start = "first"
"#;

/// The application: places and ships orders, each change and its event in one transaction.
async fn write_orders(
    database: PathBuf,
    events: Option<u64>,
    rate: u64,
    written: Arc<AtomicU64>,
    stopped: watch::Receiver<bool>,
) -> Result<(), sqlx::Error> {
    let mut connection = pool::application(&database).await?;
    sqlx::query("CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, customer TEXT NOT NULL, state TEXT NOT NULL)")
        .execute(&mut connection)
        .await?;
    let run = uuid::Uuid::new_v4().simple().to_string();
    let began = Instant::now();
    let mut n = 0;
    while events.is_none_or(|most| n < most) && !*stopped.borrow() {
        // A burst every 20 ms keeps the rate without a timer an event.
        let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
        if n >= due {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        write_event(&mut connection, &run, n).await?;
        n += 1;
        written.store(n, Ordering::Relaxed);
    }
    connection.close().await
}

/// Event n: even rounds place [`OPEN_ORDERS`] orders, odd rounds ship them.
async fn write_event(connection: &mut SqliteConnection, run: &str, n: u64) -> Result<(), sqlx::Error> {
    let (round, place) = (n / OPEN_ORDERS, n % OPEN_ORDERS);
    let order = format!("order-{}-{}", &run[..8], (round / 2) * OPEN_ORDERS + place);
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let kind = if round % 2 == 0 {
        sqlx::query("INSERT INTO orders (id, customer, state) VALUES (?1, ?2, 'placed')")
            .bind(&order)
            .bind(format!("customer-{}", n % 50))
            .execute(&mut *transaction)
            .await?;
        "OrderPlaced"
    } else {
        sqlx::query("UPDATE orders SET state = 'shipped' WHERE id = ?1")
            .bind(&order)
            .execute(&mut *transaction)
            .await?;
        "OrderShipped"
    };
    sqlx::query("INSERT INTO outbox (stream_id, stream_type, type, payload) VALUES (?1, 'Order', ?2, json_object('order', ?1, 'n', ?3))")
        .bind(&order)
        .bind(kind)
        .bind(n as i64)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await
}

async fn watch_until_done(
    options: &Options,
    written: &AtomicU64,
    handle: &Handle,
    mut application: tokio::task::JoinHandle<Result<(), sqlx::Error>>,
    stop: &watch::Sender<bool>,
) -> Result<(), Error> {
    let live = !options.quiet && io::stdout().is_terminal();
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    let mut interrupted = false;
    loop {
        tokio::select! {
            ended = &mut application => {
                if live {
                    show(written, handle);
                    println!();
                }
                return Ok(ended.expect("the demo's application does not panic")?);
            }
            _ = tick.tick() => if live { show(written, handle) },
            _ = tokio::signal::ctrl_c(), if !interrupted => {
                interrupted = true;
                stop.send_replace(true);
            }
        }
    }
}

fn show(written: &AtomicU64, handle: &Handle) {
    let status = handle.status.borrow();
    print!(
        "\r\x1b[2Kwritten {:>8}   delivered {:>8}   lag {:>5.2} s   held keys {:>3}   {}",
        written.load(Ordering::Relaxed),
        status.delivered,
        status.lag_seconds(),
        status.held_keys,
        status.state.as_str(),
    );
    let _ = io::stdout().flush();
}

async fn catch_up(handle: &Handle, written: &AtomicU64) {
    let mut status = handle.status.clone();
    let goal = written.load(Ordering::Relaxed);
    let caught_up = status.wait_for(|status| status.delivered >= goal);
    let _ = tokio::time::timeout(CATCH_UP, caught_up).await;
}

/// Compares the application's table with the delivered file: nothing of what the relay says of itself is believed.
pub async fn count(database: &Path, delivered: &Path) -> Result<Summary, Error> {
    let mut connection = pool::application(database).await?;
    let rows: Vec<(String, String, i64)> =
        sqlx::query_as("SELECT id, stream_id, position FROM outbox ORDER BY position")
            .fetch_all(&mut connection)
            .await?;
    connection.close().await?;
    let written: HashMap<&str, (&str, i64)> =
        rows.iter().map(|(id, key, position)| (id.as_str(), (key.as_str(), *position))).collect();
    let mut times: HashMap<String, u64> = HashMap::new();
    let mut last_of_key: HashMap<&str, i64> = HashMap::new();
    let (mut lines, mut out_of_order, mut unknown) = (0, 0, 0);
    for line in io::BufReader::new(fs::File::open(delivered).map_err(Error::Count)?).lines() {
        let line = line.map_err(Error::Count)?;
        lines += 1;
        let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        let id = event["id"].as_str().unwrap_or_default();
        let Some((key, position)) = written.get(id) else {
            unknown += 1;
            continue;
        };
        let count = times.entry(id.to_owned()).or_default();
        *count += 1;
        if *count == 1 {
            let last = last_of_key.entry(key).or_insert(i64::MIN);
            out_of_order += u64::from(*position < *last);
            *last = (*last).max(*position);
        }
    }
    Ok(Summary {
        written: rows.len() as u64,
        delivered: lines,
        missing: rows.iter().filter(|(id, ..)| !times.contains_key(id)).count() as u64,
        repeated: times.values().map(|count| count - 1).sum(),
        out_of_order,
        unknown,
    })
}
