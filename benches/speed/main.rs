//! How fast all parts are beside bare clients and bare loops: `make bench`, `make bench ARGS=--quick`, `make bench ARGS="--only append"`.
//!
//! Of the relay, every measured side is a process of its own (this binary, called with `--child`), so that CPU time and peak memory are that
//! side's alone. The bare clients send, from memory, the very keys, bytes and headers that the relay reads from the SQLite file. What ends in a
//! SQLite file is compared with a prepared-statement loop. docs/BENCHMARKS.md says what is measured, and what is not. Start reading at [`run`].

#![allow(clippy::disallowed_methods, clippy::disallowed_macros, reason = "a benchmark stands outside the rooms")]

mod append;
mod application;
mod backup;
mod bare_amqp;
mod bare_kafka;
mod child;
mod load;
mod meter;
mod projection;
mod relay;
mod site;
mod snapshots;
mod stamp;
mod table;

/// Shared with the tests.
#[path = "../../tests/it/support/broker.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod broker;

use clap::{Parser, ValueEnum};

use child::Order;
use meter::{Drain, Pace};
use site::Site;
use table::Table;

/// What is measured, and how long.
#[derive(Parser, Clone, Debug)]
struct Arguments {
    /// A smoke run of seconds: few events, one round; the figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// Events that are drained to Kafka, for each size.
    #[arg(long, default_value_t = 1_000_000)]
    kafka_events: usize,
    /// Events that are drained to RabbitMQ.
    #[arg(long, default_value_t = 200_000)]
    rabbitmq_events: usize,
    /// Events that are appended, and that a projection folds.
    #[arg(long, default_value_t = 300_000)]
    store_events: usize,
    /// Events of a rebuild, and of snapshots.
    #[arg(long, default_value_t = 1_000_000)]
    fold_events: usize,
    /// The size of the file that is backed up, in MiB.
    #[arg(long, default_value_t = 1024)]
    backup_mib: usize,
    /// The sides take turns so often; the table shows medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long events are written at the pace, each round.
    #[arg(long, default_value_t = 20)]
    pace_seconds: usize,
    /// Events a second of the paced part.
    #[arg(long, default_value_t = 600)]
    pace: usize,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// librdkafka properties for the relay's Kafka sink, as `name=value`: to try something.
    #[arg(long)]
    relay_property: Vec<String>,
    /// What this process is to do for its parent, as JSON.
    #[arg(long, hide = true)]
    child: Option<String>,
    /// `cargo bench` passes it.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    Kafka256,
    Kafka1024,
    Rabbitmq,
    KafkaPace,
    RabbitmqPace,
    /// The event store's appends.
    Append,
    Projection,
    Rebuild,
    Snapshots,
    /// An application's commits beside snapshots.
    Neighbour,
    /// A backup, and an application's commits beside it.
    Backup,
}

impl Arguments {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn made_quick(mut self) -> Self {
        if self.quick {
            (self.kafka_events, self.rabbitmq_events, self.rounds, self.pace_seconds) = (100_000, 40_000, 1, 3);
            (self.store_events, self.fold_events, self.backup_mib) = (20_000, 50_000, 64);
        }
        self
    }
}

fn main() {
    let arguments = Arguments::parse().made_quick();
    match &arguments.child {
        Some(order) => child::obey(order),
        None => run(&arguments),
    }
}

fn run(arguments: &Arguments) {
    let mut table = Table::new(arguments);
    let wants = |parts: &[Part]| parts.iter().any(|part| arguments.wants(*part));
    if wants(&[Part::Kafka256, Part::Kafka1024, Part::KafkaPace]) {
        let site = Site::kafka(&arguments.relay_property);
        warm_up(&site, arguments.kafka_events / 5);
        // Before the drains: the disk is still busy with those long after.
        if arguments.wants(Part::KafkaPace) {
            pace(&site, arguments, &mut table);
        }
        for (part, bytes) in [(Part::Kafka256, 256), (Part::Kafka1024, 1024)] {
            if arguments.wants(part) {
                drain(&site, bytes, arguments.kafka_events, arguments.rounds, &mut table);
            }
        }
    }
    if wants(&[Part::Rabbitmq, Part::RabbitmqPace]) {
        let site = Site::rabbitmq();
        warm_up(&site, arguments.rabbitmq_events / 5);
        if arguments.wants(Part::RabbitmqPace) {
            pace(&site, arguments, &mut table);
        }
        if arguments.wants(Part::Rabbitmq) {
            drain(&site, 256, arguments.rabbitmq_events, arguments.rounds, &mut table);
        }
    }
    let Arguments { store_events, fold_events, rounds, .. } = *arguments;
    if arguments.wants(Part::Append) {
        append::measure(store_events, rounds, &mut table);
    }
    if arguments.wants(Part::Projection) {
        projection::measure(store_events, rounds, &mut table);
    }
    if arguments.wants(Part::Rebuild) {
        projection::measure_rebuild(fold_events, rounds, &mut table);
    }
    if arguments.wants(Part::Snapshots) {
        snapshots::measure(fold_events, rounds, &mut table);
    }
    if arguments.wants(Part::Neighbour) {
        snapshots::measure_neighbour(fold_events, rounds, &mut table);
    }
    if arguments.wants(Part::Backup) {
        backup::measure(arguments.backup_mib, rounds, &mut table);
    }
    println!("{table}");
}

/// A broker that was just started is slow: its virtual machine has not compiled what it needs.
fn warm_up(site: &Site, events: usize) {
    let far_side = site.destination();
    child::run::<Drain>(&Order::BareDrain { far_side: far_side.clone(), bytes: 256, events });
    site.remove(&far_side);
}

fn drain(site: &Site, bytes: usize, events: usize, rounds: usize, table: &mut Table) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let database = folder.path().join("shop.db");
    // The application has it open all the time, as it would.
    let _application = load::fill(&database, events, bytes);
    let mut sides = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        // Whoever goes second finds the disk busy with what the first one made: they take turns at that too.
        for side in [round % 2, (round + 1) % 2] {
            let far_side = site.destination();
            let order = match side {
                0 => Order::BareDrain { far_side: far_side.clone(), bytes, events },
                _ => Order::RelayDrain {
                    far_side: far_side.clone(),
                    database: database.clone(),
                    state: folder.path().join(format!("state-{round}.db")),
                    events,
                },
            };
            let result: Drain = child::run(&order);
            eprintln!("{} {bytes} B, round {}: {} {result}", site.name, round + 1, ["bare", "relay"][side]);
            sides[side].push(result);
            site.remove(&far_side);
        }
    }
    let [bare, relay] = sides.map(|results| Drain::median(&results));
    table.drain(site, bytes, events, [&bare, &relay]);
}

fn pace(site: &Site, arguments: &Arguments, table: &mut Table) {
    let (per_second, events) = (arguments.pace, arguments.pace * arguments.pace_seconds);
    let mut sides = [Vec::new(), Vec::new()];
    for round in 0..arguments.rounds {
        let bare_side = site.destination();
        let bare: Pace = child::run(&Order::BarePace { far_side: bare_side.clone(), events, per_second });
        site.remove(&bare_side);
        let relay_side = site.destination();
        let relay = relay::paced(&relay_side, events, per_second);
        site.remove(&relay_side);
        for (side, result) in [("bare", &bare), ("relay", &relay)] {
            eprintln!("{} at {per_second}/s, round {}: {side} {result}", site.name, round + 1);
        }
        sides[0].push(bare);
        sides[1].push(relay);
    }
    let [bare, relay] = sides.map(|results| Pace::median(&results));
    table.pace(&format!("{}: to the acknowledgement at {per_second}/s", site.name), &bare, &relay);
}
