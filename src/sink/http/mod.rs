//! The HTTP sink: `POST`s to one address, an event a request or many.
//!
//! Events are dealt to lanes by their key, and a lane has one request under way at a time: so order per key holds over any
//! number of connections. One event a request carries its payload as the body, and its id as `Idempotency-Key`, by which a
//! receiver knows it again; many a request are envelopes, one a line (`application/x-ndjson`), each with its id.
//!
//! Invariants (the conformance suite `tests/it/sink_contract/http.rs`):
//! 1. `Delivered` only after a status of 200 to 299.
//! 2. The address is the config's: no redirect is followed, no proxy is asked, and no link-local or metadata address is
//!    connected to, whatever a name resolves to (`where_clouds_keep_their_secrets_nothing_is_sent`).
//! 3. No header that an event brings along can break out of its line or pass for one of the connection's (`field`).
//!
//! How it fails: see [`Settings::answer`]. After a status that says *wait* or *mend*, nothing is sent until a probe passes, and a
//! probe does not pass before the time that `Retry-After` names, or before a pause that grows. Start reading at `Lane`.

mod address;
mod client;
pub mod config;
mod field;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use super::format::{Dress, Format, HeaderField, Wire, envelope, looks_like_json};
use super::tls::Tls;
use super::{BoxFuture, Fault, FaultClass, Flight, Outcome, Port, Sink};
use crate::event::{Reason, Rejection};
use crate::retry::Pace;
use crate::secret::Secret;
use address::REFUSED_ADDRESS;
pub use address::{Target, target};
pub(super) use client::{built, client, told};
use field::{field_name, field_value};

/// What a receiver said is quoted up to here.
const QUOTED_BYTES_MAX: usize = 200;
/// Nobody is believed who asks for a longer pause.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A resolved `[sinks.X]` of type `http`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `http` or `https`, without a user in it; it may hold a token.
    pub url: Secret,
    /// Asked with `GET` by the probe, and has to answer 200 to 299; without it a probe is content with a connection.
    pub check_url: Option<Secret>,
    /// The value of the header `Authorization`.
    pub authorization: Option<Secret>,
    /// `Plain`: the payload. `Envelope`: everything. More than one event a request is always envelopes.
    pub format: Format,
    pub headers: Vec<HeaderField>,
    /// Requests under way at a time.
    pub connections: usize,
    /// Events in one request.
    pub batch_events: usize,
    /// A request of several events grows up to here.
    pub batch_bytes: usize,
    /// Statuses that are an event's own fault, whatever they usually mean.
    pub rejecting_statuses: Vec<u16>,
    pub tls: Option<Tls>,
    pub allow_link_local: bool,
    /// The relay's: a request that takes longer is given up.
    pub ack_timeout: Duration,
}

/// What a status says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    Delivered,
    /// What was sent is not taken.
    Rejected(Reason),
    /// Nothing is wrong with what was sent.
    Fault(FaultClass),
}

impl Settings {
    fn answer(&self, status: StatusCode) -> Answer {
        match status.as_u16() {
            200..=299 => Answer::Delivered,
            413 => Answer::Rejected(Reason::TooLarge),
            code if self.rejecting_statuses.contains(&code) => Answer::Rejected(Reason::Refused),
            408 | 425 | 429 | 500..=599 => Answer::Fault(FaultClass::Unavailable),
            // Redirects, rights, and an address at which nothing takes events.
            300..=399 | 401 | 402 | 403 | 404 | 405 | 407 | 410 | 421 => Answer::Fault(FaultClass::Fatal),
            400..=499 => Answer::Rejected(Reason::Refused),
            _ => Answer::Fault(FaultClass::Unavailable),
        }
    }

    fn client(&self) -> Result<Client, Fault> {
        let builder = client(self.tls.as_ref(), self.ack_timeout, self.allow_link_local)?;
        built(builder.pool_max_idle_per_host(self.connections))
    }
}

pub struct Http {
    settings: Settings,
    port: Port,
    live: Option<Live>,
}

struct Live {
    shared: Arc<Shared>,
    lanes: Vec<UnboundedSender<Parcel>>,
    tasks: JoinSet<()>,
}

/// The slots of a flight that fell to one lane.
struct Parcel {
    flight: Arc<Flight>,
    slots: Vec<usize>,
    /// The circuit's when it was taken. One of an earlier time stands behind something that failed, and is not sent any more:
    /// it could overtake what the engine sends again.
    epoch: u64,
}

impl Http {
    pub fn new(settings: Settings, port: Port) -> Self {
        Self { settings, port, live: None }
    }

    fn start(&self) -> Result<Live, Fault> {
        let read = |url: &Secret| match target(url, self.settings.allow_link_local) {
            Ok(target) => Ok(target.url),
            Err((reason, remedy)) => Err(Fault::fatal(format!("{reason}; {remedy}"))),
        };
        let shared = Arc::new(Shared {
            client: self.settings.client()?,
            url: read(&self.settings.url)?,
            check_url: self.settings.check_url.as_ref().map(read).transpose()?,
            dress: Dress {
                format: self.settings.format,
                wire: Wire::Http,
                headers: self.settings.headers.clone(),
                source: self.port.source.clone(),
            },
            settings: self.settings.clone(),
            circuit: Mutex::new(Circuit { epoch: 0, open: None, last: None, pace: Pace::new(PAUSE_MIN, PAUSE_MAX) }),
        });
        let mut tasks = JoinSet::new();
        let lanes = (0..self.settings.connections.max(1))
            .map(|_| {
                let (lane, inbox) = unbounded_channel();
                tasks.spawn(Lane { shared: shared.clone(), inbox, scratch: Vec::new() }.run());
                lane
            })
            .collect();
        Ok(Live { shared, lanes, tasks })
    }
}

impl Sink for Http {
    fn check(&mut self, timeout: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        Box::pin(async move {
            if self.live.is_none() {
                self.live = Some(self.start()?);
            }
            let live = self.live.as_ref().expect("it was just put there");
            live.shared.probe(timeout).await
        })
    }

    fn send(&mut self, flight: Arc<Flight>) {
        let Some(live) = &self.live else {
            return flight.fill_rest(&Outcome::Unavailable(Fault::unavailable("nothing is connected yet")));
        };
        let epoch = live.shared.circuit().epoch;
        let mut parcels: Vec<Vec<usize>> = vec![Vec::new(); live.lanes.len()];
        for slot in 0..flight.len() {
            let mut hasher = DefaultHasher::new();
            flight.event(slot).hold_key().hash(&mut hasher);
            parcels[hasher.finish() as usize % live.lanes.len()].push(slot);
        }
        for (lane, slots) in live.lanes.iter().zip(parcels).filter(|(_, slots)| !slots.is_empty()) {
            if let Err(unsent) = lane.send(Parcel { flight: flight.clone(), slots, epoch }) {
                let gone = Outcome::Unavailable(Fault::unavailable("the task that sends has ended"));
                unsent.0.slots.into_iter().for_each(|slot| flight.fill(slot, gone.clone()));
            }
        }
    }

    fn close(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Some(live) = &mut self.live {
                live.tasks.shutdown().await;
            }
        })
    }
}

/// What the lanes have in common.
struct Shared {
    client: Client,
    url: Url,
    check_url: Option<Url>,
    settings: Settings,
    dress: Dress,
    circuit: Mutex<Circuit>,
}

/// Open: nothing is sent, because it would come to the same.
struct Circuit {
    /// How often it was opened.
    epoch: u64,
    /// Until when no probe passes.
    open: Option<(Fault, Instant)>,
    last: Option<Fault>,
    pace: Pace,
}

impl Shared {
    /// Why what was taken in that epoch is not to be sent now.
    fn fault(&self, epoch: u64) -> Option<Fault> {
        let circuit = self.circuit();
        let is_to_be_sent = circuit.open.is_none() && circuit.epoch == epoch;
        if is_to_be_sent { None } else { circuit.last.clone() }
    }

    fn circuit(&self) -> std::sync::MutexGuard<'_, Circuit> {
        self.circuit.lock().expect("no panic happens under this lock")
    }

    /// From now on nothing is sent, and no probe passes before the pause is over.
    fn trip(&self, fault: &Fault, asked: Option<Duration>) {
        let mut circuit = self.circuit();
        if circuit.open.is_none() {
            let pause = asked.map_or_else(|| circuit.pace.delay(), |asked| asked.min(RETRY_AFTER_MAX));
            circuit.open = Some((fault.clone(), Instant::now() + pause));
        }
        circuit.epoch += 1;
        circuit.last = Some(fault.clone());
    }

    async fn probe(&self, timeout: Duration) -> Result<(), Fault> {
        if let Some((fault, until)) = &self.circuit().open
            && Instant::now() < *until
        {
            return Err(fault.clone());
        }
        let request = match &self.check_url {
            Some(url) => self.client.get(url.clone()),
            // Any answer will do: not every receiver of POSTs knows another method.
            None => self.client.request(reqwest::Method::OPTIONS, self.url.clone()),
        };
        let response = self.authorized(request).timeout(timeout).send().await.map_err(|error| self.away(&error))?;
        if self.check_url.is_some() && !response.status().is_success() {
            let class = match self.settings.answer(response.status()) {
                Answer::Fault(class) => class,
                Answer::Delivered | Answer::Rejected(_) => FaultClass::Fatal,
            };
            return Err(Fault { class, detail: format!("check_url answers {}", self.told(response).await) });
        }
        self.circuit().open = None;
        Ok(())
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.settings.authorization {
            Some(secret) => request.header(reqwest::header::AUTHORIZATION, field_value(secret.reveal())),
            None => request,
        }
    }

    /// Sends one body: what became of each event in it.
    async fn post(&self, epoch: u64, headers: HeaderMap, body: Vec<u8>, is_alone: bool) -> Outcome {
        if let Some(fault) = self.fault(epoch) {
            return Outcome::Unavailable(fault);
        }
        let request = self.authorized(self.client.post(self.url.clone())).headers(headers).body(body);
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => {
                let fault = self.away(&error);
                self.trip(&fault, Some(Duration::ZERO));
                return Outcome::Unavailable(fault);
            }
        };
        match self.settings.answer(response.status()) {
            Answer::Delivered => {
                // Read to its end, so that the connection can be used again; what it says does not matter any more.
                let _ = response.bytes().await;
                self.circuit().pace.succeeded();
                Outcome::Delivered
            }
            Answer::Rejected(reason) => {
                let rejection = Rejection::new(reason, format!("the receiver answers {}", self.told(response).await));
                if is_alone { Outcome::Rejected(rejection) } else { Outcome::Suspect(rejection) }
            }
            Answer::Fault(class) => {
                let asked = retry_after(&response);
                let remedy = match response.status().as_u16() {
                    300..=399 => "; redirects are not followed: write the final address",
                    401 | 403 | 407 => "; look at `authorization`",
                    404 | 405 | 410 => "; look at `url`",
                    _ => "",
                };
                let detail = format!("{} answers {}{remedy}", self.place(), self.told(response).await);
                let fault = Fault { class, detail };
                self.trip(&fault, asked);
                Outcome::Unavailable(fault)
            }
        }
    }

    /// Host and port: the path may hold a token.
    fn place(&self) -> String {
        let port = self.url.port().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}{port}", self.url.host_str().unwrap_or_default())
    }

    fn away(&self, error: &reqwest::Error) -> Fault {
        let why = told(error);
        let detail = format!("{}: {why}", self.place());
        let needs_a_person = ["certificate", "fatal alert", REFUSED_ADDRESS].iter().any(|word| why.contains(word));
        if needs_a_person { Fault::fatal(detail) } else { Fault::unavailable(detail) }
    }

    /// The status and the beginning of what was said, on one line, without our secret.
    async fn told(&self, mut response: Response) -> String {
        let status = response.status();
        let mut said = Vec::new();
        while let (true, Ok(Some(chunk))) = (said.len() < QUOTED_BYTES_MAX, response.chunk().await) {
            said.extend_from_slice(&chunk);
        }
        let mut text = String::from_utf8_lossy(&said).into_owned();
        if let Some(secret) = self.settings.authorization.as_ref().filter(|secret| !secret.reveal().is_empty()) {
            text = text.replace(secret.reveal(), "***");
        }
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(QUOTED_BYTES_MAX).collect();
        if text.trim().is_empty() { status.to_string() } else { format!("{status}: {}", text.trim()) }
    }
}

/// One request at a time.
struct Lane {
    shared: Arc<Shared>,
    inbox: UnboundedReceiver<Parcel>,
    scratch: Vec<u8>,
}

impl Lane {
    async fn run(mut self) {
        while let Some(parcel) = self.inbox.recv().await {
            if self.shared.settings.batch_events <= 1 {
                for slot in parcel.slots {
                    let outcome = self.single(&parcel.flight, slot, parcel.epoch).await;
                    parcel.flight.fill(slot, outcome);
                }
            } else {
                self.together(parcel).await;
            }
        }
    }

    async fn single(&mut self, flight: &Arc<Flight>, slot: usize, epoch: u64) -> Outcome {
        let (event, pick) = (flight.event(slot), flight.picks[slot]);
        let mut headers = HeaderMap::new();
        headers.insert("idempotency-key", field_value(event.id));
        let dressed = self.shared.dress.each(&event, pick, |name, value| {
            if let Some(name) = field_name(name) {
                headers.insert(name, field_value(&value.to_string()));
            }
        });
        if let Err(rejection) = dressed {
            return Outcome::Rejected(rejection);
        }
        let Some(body) = self.shared.settings.format.body(&event, &self.shared.dress.source, &mut self.scratch) else {
            let detail = "the event has no payload; format = \"envelope\" carries it all the same";
            return Outcome::Rejected(Rejection::new(Reason::Refused, detail));
        };
        let kind = if looks_like_json(body) { "application/json" } else { "application/octet-stream" };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        let body = body.to_vec();
        self.shared.post(epoch, headers, body, true).await
    }

    /// The parcel and whatever else is waiting, in requests as large as they may be.
    async fn together(&mut self, first: Parcel) {
        let settings = &self.shared.settings;
        let (batch_events, batch_bytes) = (settings.batch_events, settings.batch_bytes);
        let mut waiting: Vec<(Arc<Flight>, usize)> = Vec::new();
        // The oldest one's: a newer parcel behind an outdated one comes back with it.
        let epoch = first.epoch;
        let mut next = Some(first);
        while let Some(parcel) = next.take() {
            waiting.extend(parcel.slots.into_iter().map(|slot| (parcel.flight.clone(), slot)));
            if waiting.len() < batch_events {
                next = self.inbox.try_recv().ok();
            }
        }
        let mut rest = waiting.as_slice();
        while !rest.is_empty() {
            let mut body = Vec::new();
            let mut count = 0;
            for (flight, slot) in rest.iter().take(batch_events) {
                let start = body.len();
                let event = flight.event(*slot);
                envelope::write_marked(&event, &self.shared.dress.source, flight.picks[*slot], &mut body);
                body.push(b'\n');
                if count > 0 && body.len() > batch_bytes {
                    body.truncate(start);
                    break;
                }
                count += 1;
            }
            let (sent, after) = rest.split_at(count);
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
            if let [(flight, slot)] = sent {
                headers.insert("idempotency-key", field_value(flight.event(*slot).id));
            }
            let outcome = self.shared.post(epoch, headers, body, count == 1).await;
            sent.iter().for_each(|(flight, slot)| flight.fill(*slot, outcome.clone()));
            rest = after;
        }
    }
}

/// Seconds; the other form, a date, depends on two clocks.
fn retry_after(response: &Response) -> Option<Duration> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}
