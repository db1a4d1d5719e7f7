//! Where a consumer's events take effect: the port that the engine drives, and the relay's implementation of it.
//!
//! A projection will be the other implementation: its effect and its settlement are one transaction.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use crate::sink::{self, BoxFuture, Fault, Flight, News, Port, Sink};
use crate::source::mapping::RowMapping;
use crate::sqlite::writer::{JobError, Writer};
use crate::state::settlement::Settlement;

/// The end of a consumer.
pub trait Delivery: Send {
    /// Proves that the far side is there; `timeout` bounds it.
    fn check(&mut self, timeout: Duration) -> BoxFuture<'_, Result<(), Fault>>;
    /// Takes a flight; its slots are filled later.
    fn send(&mut self, flight: Arc<Flight>);
    /// Records a settlement; `done` is called when it is durable, or can never be.
    fn settle(&mut self, settlement: Settlement, done: Box<dyn FnOnce(Result<(), JobError>) + Send>);
    /// Drops what is in flight and starts anew; nothing of what was sent before is reported any more.
    fn reopen(&mut self) -> BoxFuture<'_, ()>;
    fn close(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// Effect at a sink, progress in a file of its own time.
pub struct Publish {
    sink: Option<Box<dyn Sink>>,
    settings: sink::Settings,
    port: Port,
    writer: Writer,
    rows: Option<RowMapping>,
}

impl Publish {
    pub fn new(settings: sink::Settings, port: Port, writer: Writer, rows: Option<RowMapping>) -> Self {
        Self { sink: Some(sink::open(&settings, port.clone())), settings, port, writer, rows }
    }

    pub fn news(&self) -> &UnboundedSender<News> {
        &self.port.news
    }

    fn sink(&mut self) -> &mut Box<dyn Sink> {
        self.sink.as_mut().expect("a sink is always open between calls")
    }
}

impl Delivery for Publish {
    fn check(&mut self, timeout: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        self.sink().check(timeout)
    }

    fn send(&mut self, flight: Arc<Flight>) {
        self.sink().send(flight);
    }

    fn settle(&mut self, settlement: Settlement, done: Box<dyn FnOnce(Result<(), JobError>) + Send>) {
        let rows = self.rows.clone();
        self.writer.submit(move |connection| settlement.apply(connection, rows.as_ref()), done);
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
