//! One connection: made, watched, broken off. It is never mended; a probe makes a new one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::runtime::default_runtime;
use lapin::tcp::{AMQPUriTcpExt, OwnedIdentity, OwnedTLSConfig};
use lapin::types::{FieldTable, ShortString};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, Event, ExchangeKind};
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use super::Settings;
use super::fault::{fault, is_of_a_channel};
use crate::controls::{self, Protection};
use crate::sink::format::Dress;
use crate::sink::tls::Tls;
use crate::sink::{Fault, News, Port};

/// How long a connection that is let go may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// What lapin still has to say when its thread has ended is waited for so long.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// What a connection's lanes and its watcher share.
pub(super) struct Link {
    pub settings: Settings,
    pub dress: Dress,
    connection: Connection,
    thread: Thread,
    news: UnboundedSender<News>,
    state: watch::Sender<State>,
    /// Set by the sink's `close`: nobody listens any more.
    closed: AtomicBool,
    /// Chunks in flight on all lanes.
    in_flight: AtomicUsize,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// Why nothing more may be published on it.
    broken: Option<Fault>,
    /// What is in flight is not waited for any longer.
    is_cut: bool,
    blocked: Option<String>,
}

impl Link {
    /// Connects; nothing is proved yet.
    pub async fn connect(settings: &Settings, dress: &Dress, port: &Port) -> Result<Arc<Self>, Fault> {
        let (connection, thread) = dial(settings, &format!("outboxd {}", port.consumer)).await?;
        let link = Arc::new(Self {
            settings: settings.clone(),
            dress: dress.clone(),
            connection,
            thread,
            news: port.news.clone(),
            state: watch::Sender::default(),
            closed: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
        });
        tokio::spawn(watch(link.clone()));
        Ok(link)
    }

    /// What the broker answers, or that nobody is left who would hear it.
    async fn answered<T>(&self, answer: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        self.thread.outlives(answer).await.unwrap_or_else(|fault| Err(self.broken().unwrap_or(fault)))
    }

    /// A channel for a lane: every message on it is confirmed.
    pub async fn channel(&self) -> Result<Channel, Fault> {
        self.answered(self.open_channel()).await
    }

    async fn open_channel(&self) -> Result<Channel, Fault> {
        let cannot = |error| fault("opening a channel", &error);
        let channel = self.connection.create_channel().await.map_err(cannot)?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(cannot)?;
        Ok(channel)
    }

    /// Asks the broker on a channel of its own, because a refusal closes the channel.
    pub async fn prove(&self) -> Result<(), Fault> {
        if let Some(reason) = &self.state.borrow().blocked {
            return Err(Fault::unavailable(format!("RabbitMQ has blocked publishers: {reason}")));
        }
        self.answered(self.declare()).await
    }

    async fn declare(&self) -> Result<(), Fault> {
        let channel = self.connection.create_channel().await.map_err(|error| fault("opening a channel", &error))?;
        // The default exchange has no name and is always there; that of a template is known only with an event.
        if let Some(exchange) = self.settings.exchange.constant().filter(|exchange| !exchange.is_empty()) {
            let exchange = ShortString::try_new(exchange)
                .map_err(|_| Fault::fatal("the name of the exchange is longer than AMQP's 255 bytes"))?;
            let name = format!("declaring exchange `{exchange}`");
            let options = ExchangeDeclareOptions {
                passive: !self.settings.declare,
                durable: true,
                ..ExchangeDeclareOptions::default()
            };
            channel
                .exchange_declare(exchange, ExchangeKind::Topic, options, FieldTable::default())
                .await
                .map_err(|error| fault(&name, &error))?;
        }
        let _ = channel.close(200, "done".into()).await;
        Ok(())
    }

    /// What the broker says of one thing that may be there, on a channel of its own, because a refusal closes the channel.
    pub async fn ask<T, F>(&self, question: impl FnOnce(Channel) -> F) -> Result<Result<T, lapin::Error>, Fault>
    where
        F: Future<Output = Result<T, lapin::Error>>,
    {
        let asking = async {
            let channel = self.connection.create_channel().await.map_err(|error| fault("opening a channel", &error))?;
            let answer = question(channel.clone()).await;
            if answer.is_ok() {
                let _ = channel.close(200, "done".into()).await;
            }
            Ok(answer)
        };
        self.answered(asking).await
    }

    /// As the broker and the client have agreed.
    pub fn frame_bytes_max(&self) -> usize {
        self.connection.configuration().frame_max() as usize
    }

    pub fn broken(&self) -> Option<Fault> {
        self.state.borrow().broken.clone()
    }

    /// From now on nothing more is published on it; the first reason stands.
    pub fn break_with(&self, fault: Fault) {
        self.state.send_if_modified(|state| {
            let is_first = state.broken.is_none();
            state.broken.get_or_insert(fault);
            is_first
        });
    }

    /// Ends the connection; chunks in flight are settled as unavailable by their lanes.
    pub fn let_go(self: &Arc<Self>) {
        self.break_with(Fault::unavailable("the connection to RabbitMQ was let go"));
        let was_blocked = self.state.borrow().blocked.is_some();
        self.state.send_modify(|state| state.is_cut = true);
        if was_blocked {
            self.tell(News::Blocked(None));
        }
        let link = self.clone();
        // Without a runtime everything is at its end, and the connection with it.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                let _ = tokio::time::timeout(GOODBYE, link.connection.close(200, "done".into())).await;
            });
        }
    }

    /// From now on nobody is told anything.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// A chunk goes out; whether it is the only one.
    pub fn enter(&self) -> bool {
        self.in_flight.fetch_add(1, Ordering::AcqRel) == 0
    }

    /// A chunk came back; whether no other is out.
    pub fn leave(&self) -> bool {
        self.in_flight.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Resolves when what is in flight should not be waited for any longer. While the broker has blocked us the clock
    /// stands still: it has said that it will answer later, and breaking off would only make duplicates.
    pub async fn out_of_patience(&self) -> Fault {
        let mut state = self.state.subscribe();
        let patience = self.settings.ack_timeout;
        loop {
            let is_blocked = state.borrow_and_update().blocked.is_some();
            tokio::select! {
                () = tokio::time::sleep(patience), if !is_blocked && !controls::is_off(Protection::AckTimeout) => {
                    return Fault::unavailable(format!("RabbitMQ did not confirm within {patience:?}"));
                }
                cut = state.wait_for(|state| state.is_cut || state.blocked.is_some() != is_blocked) => {
                    if cut.is_err() || cut.is_ok_and(|state| state.is_cut) {
                        return Fault::unavailable("the connection to RabbitMQ was let go");
                    }
                }
            }
        }
    }

    fn tell(&self, news: News) {
        if !self.is_closed() {
            let _ = self.news.send(news);
        }
    }

    fn blocked(&self, reason: Option<String>) {
        self.state.send_modify(|state| state.blocked = reason.clone());
        self.tell(News::Blocked(reason));
    }
}

/// Reports what the broker says about the connection as a whole. A connection has one listener: its clones would share a queue.
async fn watch(link: Arc<Link>) {
    let mut state = link.state.subscribe();
    let mut events = std::pin::pin!(link.connection.events_listener());
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = state.wait_for(|state| state.is_cut) => return,
        };
        match event {
            Some(Event::ConnectionBlocked(reason)) => link.blocked(Some(format!(
                "{reason}. It goes on by itself when the broker's alarm is over: `rabbitmq-diagnostics alarms` there"
            ))),
            Some(Event::ConnectionUnblocked) => link.blocked(None),
            // Of one channel: whoever works on that channel is told, and knows what it was about.
            Some(Event::Error(error)) if is_of_a_channel(&error) => {}
            Some(Event::Error(error)) => {
                let fault = fault("the connection to RabbitMQ", &error);
                link.break_with(fault.clone());
                link.tell(News::Trouble(fault));
            }
            Some(_) => {}
            None => return,
        }
    }
}

/// The thread that serves a connection. lapin never answers what it is asked in the instant in which this thread ends, not even the
/// question for a connection: so whoever asks looks at the thread as well.
#[derive(Clone)]
pub(super) struct Thread(watch::Receiver<()>);

impl Thread {
    /// What the thread is asked, or that it has ended before it answered.
    async fn outlives<T>(&self, answer: impl Future<Output = T>) -> Result<T, Fault> {
        let mut alive = self.0.clone();
        let ended = async {
            while alive.changed().await.is_ok() {}
            tokio::time::sleep(LAST_WORDS).await;
        };
        tokio::select! {
            biased;
            answer = answer => Ok(answer),
            () = ended => Err(Fault::unavailable("the connection to RabbitMQ has ended")),
        }
    }
}

/// A connection under this name, and the thread that serves it.
pub(super) async fn dial(settings: &Settings, name: &str) -> Result<(Connection, Thread), Fault> {
    let uri = uri(settings)?;
    let runtime = default_runtime().map_err(|error| fault("starting the AMQP client", &error))?;
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let tls = settings.tls.as_ref().map_or_else(|| Ok(OwnedTLSConfig::default()), tls)?;
    let (alive, thread) = watch::channel(());
    // The thread owns this function, and with it the sign that it is alive.
    let connecting = Connection::connector(
        uri,
        runtime,
        async move |uri, runtime| {
            let _alive = &alive;
            Ok(uri.connect_with_config_async(tls.as_ref(), &runtime).await?)
        },
        properties,
    );
    let thread = Thread(thread);
    let connection = thread.outlives(connecting).await?.map_err(|error| fault("connecting to RabbitMQ", &error))?;
    Ok((connection, thread))
}

fn uri(settings: &Settings) -> Result<AMQPUri, Fault> {
    let text = settings.uri.reveal();
    let mut uri: AMQPUri = text.parse().map_err(|error: String| {
        // The parser may repeat the address, and a password with it.
        Fault::fatal(format!("the AMQP uri cannot be read: {}", error.replace(text, "***")))
    })?;
    // lapin gives a peer up after twice what is agreed on, and looks only every half of it: with three quarters of what is configured a
    // dead peer is noticed within two heartbeats.
    let agreed = (settings.heartbeat * 3 / 4).as_secs().max(1);
    uri.query.heartbeat = Some(agreed.try_into().unwrap_or(u16::MAX));
    Ok(uri)
}

fn tls(tls: &Tls) -> Result<OwnedTLSConfig, Fault> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|error| Fault::fatal(format!("cannot read {}: {error}", path.display())))
    };
    let cert_chain = match &tls.ca_file {
        Some(path) => Some(String::from_utf8_lossy(&read(path)?).into_owned()),
        None => None,
    };
    let identity = match &tls.identity {
        Some(identity) => {
            Some(OwnedIdentity::PKCS8 { pem: read(&identity.cert_file)?, key: read(&identity.key_file)? })
        }
        None => None,
    };
    Ok(OwnedTLSConfig { identity, cert_chain })
}
