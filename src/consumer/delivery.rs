//! Where a consumer's events take effect: the port that the engine drives, and the relay's implementation of it.
//!
//! A projection is the other one ([`project`]): its effect and its settlement are one transaction.

pub mod project;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::controls::{self, Protection};
use crate::event::RowKey;
use crate::sink::{self, BoxFuture, Fault, Flight, Port, Sink};
use crate::source::mapping::RowMapping;
use crate::sqlite::writer::{JobError, Writer};
use crate::state::settlement::{RowMark, Settlement};

/// The end of a consumer.
pub trait Delivery: Send {
    /// Proves that the far side is there; `timeout` bounds it.
    fn check(&mut self, timeout: Duration) -> BoxFuture<'_, Result<(), Fault>>;
    /// Takes a flight; its slots are filled later.
    fn send(&mut self, flight: Arc<Flight>, cargo: Cargo);
    /// As many events as a flight may carry at present.
    fn most(&self) -> usize {
        usize::MAX
    }
    /// Drops what is in flight and starts anew; nothing of what was sent before is reported any more.
    fn reopen(&mut self) -> BoxFuture<'_, ()>;
    fn close(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// What a flight carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cargo {
    /// Events as they were read.
    Live,
    /// The rows of one held key.
    Held,
}

pub type Done = Box<dyn FnOnce(Result<(), JobError>) + Send>;

/// Where settlements are recorded. Apart from the delivery, because that is away while it is probed.
pub trait Ledger: Send {
    /// `done` is called when the settlement is durable, or can never be.
    fn record(&self, settlement: Settlement, done: Done);
}

/// Effect at a sink.
pub struct Publish {
    sink: Option<Box<dyn Sink>>,
    settings: sink::Settings,
    port: Port,
}

impl Publish {
    pub fn new(settings: sink::Settings, port: Port) -> Self {
        Self { sink: Some(sink::open(&settings, port.clone())), settings, port }
    }

    fn sink(&mut self) -> &mut Box<dyn Sink> {
        self.sink.as_mut().expect("a sink is always open between calls")
    }
}

impl Delivery for Publish {
    fn check(&mut self, timeout: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        self.sink().check(timeout)
    }

    fn send(&mut self, flight: Arc<Flight>, _: Cargo) {
        self.sink().send(flight);
    }

    fn reopen(&mut self) -> BoxFuture<'_, ()> {
        let old = self.sink.take();
        Box::pin(async move {
            if let Some(old) = old {
                old.close().await;
            }
            self.sink = Some(sink::open(&self.settings, self.port.clone()));
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Some(sink) = self.sink {
                sink.close().await;
            }
        })
    }
}

/// Rows of an application's table that are marked in one job: about 0.3 ms of lock.
const MARKS_A_JOB: usize = 25;

/// Progress of a relay: a transaction of its own in the file that the state stands in.
pub struct StateLedger {
    pub writer: Writer,
    /// How the application's rows are marked, for a source read by row.
    pub rows: Option<RowMapping>,
}

impl Ledger for StateLedger {
    fn record(&self, settlement: Settlement, done: Done) {
        let rows = self.rows.clone();
        if controls::is_off(Protection::OneTransaction) {
            return self.record_apart(settlement, done);
        }
        if rows.is_some() && settlement.rows.len() > MARKS_A_JOB {
            return self.record_in_parts(settlement, done);
        }
        self.writer.submit(move |connection| settlement.apply(connection, rows.as_ref()), done);
    }
}

impl StateLedger {
    /// By row: what was held is recorded as one, and first; rows that were delivered are marked after it in jobs so small that the
    /// writer can let the application in between. A crash in between costs duplicates of what was not marked.
    fn record_in_parts(&self, mut settlement: Settlement, done: Done) {
        let (delivered, other) = settlement.rows.drain(..).partition(|(_, mark)| *mark == RowMark::Delivered);
        settlement.rows = other;
        let consumer = settlement.consumer.clone();
        let parts: Vec<Vec<(RowKey, RowMark)>> = { delivered }.chunks(MARKS_A_JOB).map(<[_]>::to_vec).collect();
        let mut jobs: Vec<Settlement> = parts
            .into_iter()
            .map(|rows| Settlement { consumer: consumer.clone(), rows, ..Settlement::default() })
            .collect();
        if !settlement.is_empty() {
            jobs.insert(0, settlement);
        }
        // The writer's thread alone calls back, in this order: never contended.
        let refused: Arc<Mutex<Option<JobError>>> = Arc::default();
        let last = jobs.pop().expect("there is something to record");
        let submit = |job: Settlement, done: Done| {
            let rows = self.rows.clone();
            self.writer.submit(move |connection| job.apply(connection, rows.as_ref()), done);
        };
        for job in jobs {
            let refused = refused.clone();
            let note = move |result: Result<(), JobError>| {
                if let Err(error) = result {
                    refused.lock().expect("no panic happens under this lock").get_or_insert(error);
                }
            };
            submit(job, Box::new(note));
        }
        let close = move |result: Result<(), JobError>| {
            let earlier = refused.lock().expect("no panic happens under this lock").take();
            done(earlier.map_or(result, Err));
        };
        submit(last, Box::new(close));
    }

    /// The control: the checkpoint first, the rest in a transaction of its own.
    fn record_apart(&self, mut settlement: Settlement, done: Done) {
        let rows = self.rows.clone();
        let first = Settlement {
            advance: settlement.advance.take(),
            consumer: settlement.consumer.clone(),
            ..Settlement::default()
        };
        let writer = self.writer.clone();
        self.writer.submit(
            move |connection| first.apply(connection, None),
            move |result| match result {
                Ok(()) => writer.submit(move |connection| settlement.apply(connection, rows.as_ref()), done),
                Err(error) => done(Err(error)),
            },
        );
    }
}
