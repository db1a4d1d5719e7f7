//! The main jobs in one process: an application that writes orders, a relay that carries their events to a file, a projection that folds them
//! into a table, and a count from all the files in the end.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::{Connection, SqliteConnection};
use tokio::sync::watch;

use crate::config;
use crate::consumer::engine::WhenLocked;
use crate::consumer::fleet::{Fleet, Handle};
use crate::consumer::status::{State, Status};
use crate::shutdown::Shutdown;
use crate::sqlite::pool;
use crate::store;

/// Orders of which the application has some open at a time.
const OPEN_ORDERS: u64 = 200;
/// Customers that order, by turns; a divisor of [`OPEN_ORDERS`], so that who has placed an order ships it.
const CUSTOMERS: u64 = 50;
/// As in the config that is left behind.
const RELAY: &str = "shop_to_file";
const PROJECTION: &str = "customers";
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

/// The files, in the demo's folder.
struct Files {
    application: PathBuf,
    delivered: PathBuf,
    read_model: PathBuf,
    config: PathBuf,
}

/// What the files say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    pub written: u64,
    pub delivered: u64,
    pub missing: u64,
    pub repeated: u64,
    pub out_of_order: u64,
    pub unknown: u64,
    /// Rows of the read model.
    pub customers: u64,
    /// Of them, and of those that it lacks: other than the application's own table says.
    pub customers_wrong: u64,
}

impl Summary {
    pub fn is_whole(&self) -> bool {
        self.missing == 0
            && self.repeated == 0
            && self.out_of_order == 0
            && self.unknown == 0
            && self.customers_wrong == 0
    }
}

impl Files {
    fn of(folder: &Path) -> Self {
        let [application, delivered, read_model, config] =
            ["shop.db", "events.ndjson", "shop-read.db", "outboxd.toml"].map(|name| folder.join(name));
        Self { application, delivered, read_model, config }
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
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error("relay and projection could not start")]
    Start(#[source] io::Error),
    #[error("relay or projection had to end: {0}")]
    Ended(#[from] crate::consumer::engine::Locked),
    #[error("the delivered file cannot be read")]
    Count(#[source] io::Error),
}

/// Runs until the events are written and delivered, or Ctrl-C; then counts.
pub async fn run(options: Options) -> Result<Summary, Error> {
    let folder = options.folder.clone();
    let in_folder = |source| Error::Folder { path: folder.clone(), source };
    fs::create_dir_all(&options.folder).map_err(in_folder)?;
    let files = Files::of(&options.folder);
    store::init(&files.application).await?;
    fs::write(&files.config, CONFIG).map_err(in_folder)?;

    let config = config::load_with(&files.config, [])?.config;
    let consumers = config.consumers().cloned().collect();
    let (shutdown, phase) = Shutdown::new();
    let mut fleet =
        Fleet::spawn(&config.sources, &config.sinks, consumers, WhenLocked::Refuse, &phase).map_err(Error::Start)?;
    let written = Arc::new(AtomicU64::new(0));
    let (stop, stopped) = watch::channel(false);
    let application =
        tokio::spawn(write_orders(files.application.clone(), options.events, options.rate, written.clone(), stopped));

    let handles = [RELAY, PROJECTION].map(|name| fleet.handle(name).expect("it was just started").clone());
    watch_until_done(&options, &written, &handles, application, &stop).await?;
    for handle in &handles {
        catch_up(handle, &written).await;
    }
    shutdown.drain(Duration::from_secs(10));
    fleet.ended().await?;
    count(&options.folder).await
}

const CONFIG: &str = r#"# What `outboxd demo` ran, as a config. Try, in this folder:
#   outboxd check    outboxd run    outboxd status    outboxd verify customers
[daemon]
control = "unix:outboxd.sock"

[sources.shop]                      # the outbox: what others are to hear of
path = "shop.db"
preset = "outboxd"
read = "outbox"

[sources.shop_events]               # the same file's event log: what tables are made of
path = "shop.db"
preset = "outboxd"
read = "events"

[sinks.events]
type = "file"
path = "events.ndjson"

[relays.shop_to_file]
source = "shop"
sink = "events"
start = "first"

[projections.customers]
source = "shop_events"
path = "shop-read.db"
tables = ["customers"]
schema = """
CREATE TABLE customers (name TEXT PRIMARY KEY, placed INTEGER NOT NULL, shipped INTEGER NOT NULL) STRICT
"""
[projections.customers.on]
OrderPlaced = """
INSERT INTO customers (name, placed, shipped) VALUES (:data ->> 'customer', 1, 0) ON CONFLICT DO UPDATE SET placed = placed + 1
"""
OrderShipped = "UPDATE customers SET shipped = shipped + 1 WHERE name = :data ->> 'customer'"
"#;

/// The application: places and ships orders, each change and its event in one transaction, in its log and in its outbox.
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
    let customer = format!("customer-{}", n % CUSTOMERS);
    let (kind, version, change) = if round % 2 == 0 {
        ("OrderPlaced", 1, "INSERT INTO orders (id, customer, state) VALUES (?1, ?2, 'placed')")
    } else {
        ("OrderShipped", 2, "UPDATE orders SET state = 'shipped' WHERE id = ?1 AND customer = ?2")
    };
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query(change).bind(&order).bind(&customer).execute(&mut *transaction).await?;
    sqlx::query(
        "INSERT INTO events (stream_id, stream_type, version, type, data)
         VALUES (?1, 'Order', ?2, ?3, json_object('order', ?1, 'customer', ?4, 'n', ?5))",
    )
    .bind(&order)
    .bind(version)
    .bind(kind)
    .bind(&customer)
    .bind(n as i64)
    .execute(&mut *transaction)
    .await?;
    sqlx::query(
        "INSERT INTO outbox (id, stream_id, stream_type, type, payload)
         SELECT id, stream_id, stream_type, type, data FROM events WHERE position = last_insert_rowid()",
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await
}

async fn watch_until_done(
    options: &Options,
    written: &AtomicU64,
    handles: &[Handle; 2],
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
                    show(written, handles);
                    println!();
                }
                return Ok(ended.expect("the demo's application does not panic")?);
            }
            _ = tick.tick() => if live { show(written, handles) },
            _ = tokio::signal::ctrl_c(), if !interrupted => {
                interrupted = true;
                stop.send_replace(true);
            }
        }
    }
}

fn show(written: &AtomicU64, handles: &[Handle; 2]) {
    let [relay, projection] = handles.each_ref().map(|handle| handle.status.borrow().clone());
    let is_well = |status: &&Status| status.state == State::Running;
    let state = [&relay, &projection].into_iter().find(|status| !is_well(status)).unwrap_or(&relay).state;
    print!(
        "\r\x1b[2Kwritten {:>6}  delivered {:>6}  folded {:>6}  lag {:.2} s  held keys {}  {}",
        written.load(Ordering::Relaxed),
        relay.delivered,
        projection.delivered,
        relay.lag_seconds().max(projection.lag_seconds()),
        relay.held_keys + projection.held_keys,
        state.as_str(),
    );
    let _ = io::stdout().flush();
}

async fn catch_up(handle: &Handle, written: &AtomicU64) {
    let mut status = handle.status.clone();
    let goal = written.load(Ordering::Relaxed);
    let caught_up = status.wait_for(|status| status.delivered >= goal);
    let _ = tokio::time::timeout(CATCH_UP, caught_up).await;
}

/// Compares the application's tables with the delivered file and the read model: nothing of what outboxd says of itself is believed.
pub async fn count(folder: &Path) -> Result<Summary, Error> {
    let files = Files::of(folder);
    let mut connection = pool::application(&files.application).await?;
    let rows: Vec<(String, String, i64)> =
        sqlx::query_as("SELECT id, stream_id, position FROM outbox ORDER BY position")
            .fetch_all(&mut connection)
            .await?;
    let truth: Vec<Customer> = sqlx::query_as(
        "SELECT customer, count(*), count(*) FILTER (WHERE state = 'shipped') FROM orders GROUP BY customer ORDER BY customer",
    )
    .fetch_all(&mut connection)
    .await?;
    connection.close().await?;
    let mut connection = pool::application(&files.read_model).await?;
    let customers: Vec<Customer> =
        sqlx::query_as("SELECT name, placed, shipped FROM customers ORDER BY name").fetch_all(&mut connection).await?;
    connection.close().await?;
    let right = customers.iter().filter(|customer| truth.contains(customer)).count();
    let summary = Summary {
        customers: customers.len() as u64,
        customers_wrong: (truth.len().max(customers.len()) - right) as u64,
        ..delivered(&rows, &files.delivered).map_err(Error::Count)?
    };
    Ok(summary)
}

/// Name, orders placed, orders shipped.
type Customer = (String, i64, i64);

/// What the delivered file says of the outbox's rows: id, key, position.
fn delivered(rows: &[(String, String, i64)], delivered: &Path) -> io::Result<Summary> {
    let written: HashMap<&str, (&str, i64)> =
        rows.iter().map(|(id, key, position)| (id.as_str(), (key.as_str(), *position))).collect();
    let mut times: HashMap<String, u64> = HashMap::new();
    let mut last_of_key: HashMap<&str, i64> = HashMap::new();
    let (mut lines, mut out_of_order, mut unknown) = (0, 0, 0);
    for line in io::BufReader::new(fs::File::open(delivered)?).lines() {
        lines += 1;
        let event: serde_json::Value = serde_json::from_str(&line?).unwrap_or_default();
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
        ..Summary::default()
    })
}
