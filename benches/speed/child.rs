//! Work that a process of its own does, so that its CPU time and memory are nobody else's.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::site::FarSide;
use crate::{application, bare_amqp, bare_kafka, relay};

#[derive(Serialize, Deserialize, Clone, Debug)]
pub enum Order {
    /// Sends all events from memory.
    BareDrain { far_side: FarSide, bytes: usize, events: usize },
    /// Sends one event after the other, so many a second.
    BarePace { far_side: FarSide, events: usize, per_second: usize },
    /// Relays all events of the file.
    RelayDrain { far_side: FarSide, database: PathBuf, state: PathBuf, events: usize },
    /// Relays what is written meanwhile; a first line says when it is ready.
    RelayPace { far_side: FarSide, database: PathBuf, events: usize },
    /// Writes one event a transaction, so many a second.
    Application { database: PathBuf, events: usize, per_second: usize },
}

/// A process that has its order.
pub struct Worker {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Worker {
    pub fn start(order: &Order) -> Self {
        let order = serde_json::to_string(order).expect("an order is JSON");
        let mut child = Command::new(std::env::current_exe().expect("this binary has a path"))
            .args(["--child", &order])
            .stdout(Stdio::piped())
            .spawn()
            .expect("this binary can be started once more");
        let lines = BufReader::new(child.stdout.take().expect("it is a pipe"));
        Self { child, lines }
    }

    /// The next line that the child says.
    pub fn hear<T: DeserializeOwned>(&mut self) -> T {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a pipe can be read");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("a child failed ({error}): {line:?}"))
    }

    pub fn finish<T: DeserializeOwned>(mut self) -> T {
        let result = self.hear();
        let status = self.child.wait().expect("a child can be waited for");
        assert!(status.success(), "a child failed: {status}");
        result
    }
}

pub fn run<T: DeserializeOwned>(order: &Order) -> T {
    Worker::start(order).finish()
}

/// Says a line to the parent.
pub fn say(value: &impl Serialize) {
    let line = serde_json::to_string(value).expect("a result is JSON");
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("the parent listens");
}

/// In the child.
pub fn obey(order: &str) {
    let order: Order = serde_json::from_str(order).expect("the parent gives orders as JSON");
    // As `outboxd run` does.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime can be made");
    runtime.block_on(async {
        match order {
            Order::BareDrain { far_side: FarSide::Kafka { bootstrap, topic, .. }, bytes, events } => {
                say(&bare_kafka::drain(&bootstrap, &topic, bytes, events).await);
            }
            Order::BareDrain { far_side: FarSide::Rabbitmq { uri, queue }, bytes, events } => {
                say(&bare_amqp::drain(&uri, &queue, bytes, events).await);
            }
            Order::BarePace { far_side: FarSide::Kafka { bootstrap, topic, .. }, events, per_second } => {
                say(&bare_kafka::pace(&bootstrap, &topic, events, per_second));
            }
            Order::BarePace { far_side: FarSide::Rabbitmq { uri, queue }, events, per_second } => {
                say(&bare_amqp::pace(&uri, &queue, events, per_second).await);
            }
            Order::RelayDrain { far_side, database, state, events } => {
                say(&relay::drain(&far_side, &database, state, events).await);
            }
            Order::RelayPace { far_side, database, events } => relay::pace(&far_side, &database, events).await,
            Order::Application { database, events, per_second } => {
                say(&application::write(&database, events, per_second));
            }
        }
    });
    runtime.shutdown_background();
}
