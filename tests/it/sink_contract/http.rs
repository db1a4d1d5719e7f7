//! The HTTP sink's rig, a server on loopback, and what only HTTP can do.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use outboxd::event::Reason;
use outboxd::secret::Secret;
use outboxd::sink::format::{Format, HeaderField, envelope};
use outboxd::sink::http::{Http, Settings};
use outboxd::sink::{FaultClass, Outcome, Port, Sink};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::rig::{Case, Message, Rig};
use crate::support::flights::{Draft, Tower};

crate::sink_contract!(HttpRig);

/// What the server is and has.
#[derive(Default)]
struct Receiver {
    taken: Mutex<Vec<Message>>,
    requests: Mutex<Vec<(Method, Uri)>>,
    /// Answers to the next posts, before it takes anything.
    answers: Mutex<Vec<(u16, Option<u64>)>>,
    /// The status for an event, by its id.
    statuses: Mutex<HashMap<String, u16>>,
    body_bytes_max: Mutex<Option<usize>>,
    hangs: Mutex<bool>,
    never: Notify,
}

struct HttpRig {
    receiver: Arc<Receiver>,
    port: u16,
    serving: Mutex<Option<JoinHandle<()>>>,
}

/// `/events` takes posts; everything else is not found.
async fn serve(
    State(receiver): State<Arc<Receiver>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    receiver.requests.lock().unwrap().push((method.clone(), uri.clone()));
    let hangs = *receiver.hangs.lock().unwrap();
    if hangs {
        receiver.never.notified().await;
    }
    if uri.path() == "/elsewhere" {
        return (StatusCode::FOUND, [("location", "/events")]).into_response();
    }
    if uri.path() != "/events" {
        return StatusCode::NOT_FOUND.into_response();
    }
    if method != Method::POST {
        return StatusCode::OK.into_response();
    }
    let planned = { receiver.answers.lock().unwrap().pop() };
    if let Some((status, retry_after)) = planned {
        let mut response = (StatusCode::from_u16(status).unwrap(), "as planned").into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert("retry-after", seconds.into());
        }
        return response;
    }
    if receiver.body_bytes_max.lock().unwrap().is_some_and(|most| body.len() > most) {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    }
    let messages = read(&headers, &body);
    let refused = messages.iter().find_map(|message| receiver.statuses.lock().unwrap().get(&message.id).copied());
    if let Some(status) = refused.or_else(|| is_unroutable(&headers).then_some(422)) {
        return (StatusCode::from_u16(status).unwrap(), "not\r\nthis one").into_response();
    }
    receiver.taken.lock().unwrap().extend(messages);
    StatusCode::ACCEPTED.into_response()
}

fn is_unroutable(headers: &HeaderMap) -> bool {
    headers.get("stream-type").is_some_and(|value| value == "missing")
}

fn read(headers: &HeaderMap, body: &Bytes) -> Vec<Message> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    if text("content-type").as_deref() == Some("application/x-ndjson") {
        let line = |line: &[u8]| {
            let kept = envelope::read(line).unwrap();
            let headers = serde_json::from_str(&kept.headers.unwrap()).unwrap();
            let key = String::from_utf8(kept.key.unwrap()).unwrap();
            Message { id: kept.id, kind: kept.kind, key, body: kept.payload.unwrap(), headers }
        };
        return body.split(|byte| *byte == b'\n').filter(|bytes| !bytes.is_empty()).map(line).collect();
    }
    let own: BTreeMap<String, String> =
        headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap().to_owned())).collect();
    vec![Message {
        id: text("idempotency-key").unwrap(),
        kind: text("type").unwrap(),
        key: text("stream-id").unwrap_or_default(),
        body: body.to_vec(),
        headers: own,
    }]
}

impl HttpRig {
    fn settings(&self) -> Settings {
        Settings {
            url: self.url("/events"),
            check_url: None,
            authorization: None,
            format: Format::Plain,
            headers: vec![HeaderField::StreamId, HeaderField::StreamType],
            connections: 4,
            batch_events: 1,
            batch_bytes: 1 << 20,
            rejecting_statuses: vec![],
            tls: None,
            allow_link_local: false,
            ack_timeout: Duration::from_secs(10),
        }
    }

    fn url(&self, path: &str) -> Secret {
        Secret::new(format!("http://127.0.0.1:{}{path}", self.port))
    }

    async fn listen(&self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        let router = Router::new().fallback(serve).with_state(self.receiver.clone());
        *self.serving.lock().unwrap() = Some(tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }));
    }

    /// A sink that has been found well.
    async fn opened(&self, tower: &Tower, settings: Settings) -> Box<dyn Sink> {
        let mut sink: Box<dyn Sink> = Box::new(Http::new(settings, tower.port.clone()));
        sink.check(Duration::from_secs(5)).await.unwrap();
        sink
    }
}

impl Rig for HttpRig {
    async fn new() -> Self {
        let free = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let rig = Self { receiver: Arc::default(), port, serving: Mutex::new(None) };
        rig.listen().await;
        rig
    }

    async fn alone() -> Self {
        Self::new().await
    }

    fn open(&self, port: Port, case: Case) -> Box<dyn Sink> {
        let mut settings = self.settings();
        match case {
            Case::Ordinary | Case::Routing => {}
            Case::Small => *self.receiver.body_bytes_max.lock().unwrap() = Some(1000),
            Case::Nowhere => settings.check_url = Some(self.url("/nowhere")),
        }
        Box::new(Http::new(settings, port))
    }

    fn make_unroutable(&self, draft: &mut Draft) {
        draft.stream_type = "missing".into();
    }

    fn make_oversize(&self, draft: &mut Draft) -> bool {
        draft.payload = vec![b'x'; 3000];
        true
    }

    async fn arrived(&self, _least: usize) -> Vec<Message> {
        self.receiver.taken.lock().unwrap().clone()
    }

    /// Its listener goes at once; with its connections.
    async fn stop(&self) {
        let serving = self.serving.lock().unwrap().take().unwrap();
        serving.abort();
        let _ = serving.await;
        *self.receiver.answers.lock().unwrap() = Vec::new();
        *self.receiver.hangs.lock().unwrap() = true;
    }

    async fn start(&self) {
        *self.receiver.hangs.lock().unwrap() = false;
        self.receiver.never.notify_waiters();
        self.listen().await;
    }

    async fn pause(&self) {
        *self.receiver.hangs.lock().unwrap() = true;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_are_told_apart() {
    let rig = HttpRig::new().await;
    let mut tower = Tower::new("contract");
    let mut settings = rig.settings();
    settings.rejecting_statuses = vec![501];
    let mut sink = rig.opened(&tower, settings).await;
    for (status, expected) in [
        (200, "delivered"),
        (204, "delivered"),
        (400, "rejected refused"),
        (409, "rejected refused"),
        (413, "rejected too_large"),
        (422, "rejected refused"),
        (501, "rejected refused"),
        (302, "fatal"),
        (401, "fatal"),
        (403, "fatal"),
        (404, "fatal"),
        (408, "unavailable"),
        (429, "unavailable"),
        (500, "unavailable"),
        (503, "unavailable"),
    ] {
        rig.receiver.answers.lock().unwrap().push((status, Some(0)));
        let outcome = tower.send(&mut *sink, &[Draft::nth("s", 0)]).await.remove(0);
        let seen = match &outcome {
            Outcome::Delivered => "delivered".to_owned(),
            Outcome::Rejected(rejection) => format!("rejected {}", rejection.reason.as_str()),
            Outcome::Unavailable(fault) if fault.class == FaultClass::Fatal => "fatal".to_owned(),
            Outcome::Unavailable(_) => "unavailable".to_owned(),
            Outcome::Suspect(_) => "suspect".to_owned(),
            Outcome::Behind => "behind".to_owned(),
        };
        assert_eq!(seen, expected, "{status}: {outcome:?}");
        sink.check(Duration::from_secs(5)).await.unwrap();
    }
    sink.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_is_asked_for_is_kept() {
    let rig = HttpRig::new().await;
    let mut tower = Tower::new("contract");
    let mut sink = rig.opened(&tower, rig.settings()).await;
    rig.receiver.answers.lock().unwrap().push((503, Some(2)));
    let start = Instant::now();
    let outcomes = tower.send(&mut *sink, &[Draft::nth("p", 0)]).await;
    assert!(matches!(&outcomes[..], [Outcome::Unavailable(_)]), "{outcomes:?}");
    let posts = || rig.receiver.requests.lock().unwrap().iter().filter(|(method, _)| method == Method::POST).count();
    while let Err(fault) = sink.check(Duration::from_secs(1)).await {
        assert_eq!(fault.class, FaultClass::Unavailable, "{fault:?}");
        assert!(start.elapsed() < Duration::from_secs(10), "{fault:?}");
        let outcomes = tower.send(&mut *sink, &[Draft::nth("p", 0)]).await;
        assert!(matches!(&outcomes[..], [Outcome::Unavailable(_)]), "{outcomes:?}");
        assert_eq!(posts(), 1, "nothing is sent meanwhile");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(tower.send(&mut *sink, &[Draft::nth("p", 0)]).await, [Outcome::Delivered]);
    sink.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed() {
    let rig = HttpRig::new().await;
    let mut tower = Tower::new("contract");
    let mut settings = rig.settings();
    settings.url = rig.url("/elsewhere");
    let mut sink = rig.opened(&tower, settings).await;
    let outcomes = tower.send(&mut *sink, &[Draft::nth("r", 0)]).await;
    let [Outcome::Unavailable(fault)] = &outcomes[..] else { panic!("{outcomes:?}") };
    assert_eq!(fault.class, FaultClass::Fatal);
    assert!(fault.detail.contains("302") && fault.detail.contains("redirects are not followed"), "{}", fault.detail);
    assert!(rig.arrived(0).await.is_empty());
    sink.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_go_together_in_order_and_nobody_is_convicted_in_company() {
    let rig = HttpRig::new().await;
    let mut tower = Tower::new("contract");
    let mut settings = rig.settings();
    (settings.format, settings.batch_events, settings.batch_bytes) = (Format::Envelope, 100, 20_000);
    let mut sink = rig.opened(&tower, settings).await;
    let drafts: Vec<_> = (0..2000).map(|n| Draft::nth("b", n)).collect();
    let outcomes = tower.send(&mut *sink, &drafts).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Delivered));
    let arrived = rig.arrived(0).await;
    assert_eq!(arrived.len(), drafts.len());
    for key in 0..10 {
        let key = format!("key-{key}");
        let of: Vec<_> = arrived.iter().filter(|message| message.key == key).map(|message| &message.id).collect();
        let sent: Vec<_> = drafts.iter().filter(|draft| draft.key == key).map(|draft| &draft.id).collect();
        assert_eq!(of, sent, "{key}");
    }
    let posts = rig.receiver.requests.lock().unwrap().iter().filter(|(method, _)| method == Method::POST).count();
    assert!(posts <= 80, "{posts} requests for 2,000 events");

    rig.receiver.statuses.lock().unwrap().insert("c-1".into(), 422);
    let together: Vec<_> = (0..3).map(|n| Draft { key: "k".into(), ..Draft::nth("c", n) }).collect();
    let outcomes = tower.send(&mut *sink, &together).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Suspect(_))), "{outcomes:?}");
    let alone = tower.send(&mut *sink, &together[1..2]).await;
    assert!(matches!(&alone[..], [Outcome::Rejected(rejection)] if rejection.reason == Reason::Refused), "{alone:?}");
    assert_eq!(tower.send(&mut *sink, &together[..1]).await, [Outcome::Delivered]);
    sink.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_sent_and_never_told_and_hostile_values_stay_on_their_line() {
    let rig = HttpRig::new().await;
    let mut tower = Tower::new("contract");
    let mut settings = rig.settings();
    settings.authorization = Some(Secret::new("Bearer as planned"));
    let mut sink = rig.opened(&tower, settings).await;
    let draft = Draft { id: "id\r\nX-Evil: 1".into(), key: "größe\0".into(), ..Draft::nth("h", 0) };
    assert_eq!(tower.send(&mut *sink, &[draft]).await, [Outcome::Delivered]);
    let message = rig.arrived(1).await.remove(0);
    assert_eq!(message.id, "id%0D%0AX-Evil:%201");
    assert_eq!(message.key, "gr%C3%B6%C3%9Fe%00");
    assert_eq!(message.headers["authorization"], "Bearer as planned");
    assert!(!message.headers.contains_key("x-evil"));

    // The receiver's words are quoted, on one line, and our secret is not among them.
    rig.receiver.statuses.lock().unwrap().insert("h-1".into(), 400);
    let outcomes = tower.send(&mut *sink, &[Draft::nth("h", 1)]).await;
    let [Outcome::Rejected(rejection)] = &outcomes[..] else { panic!("{outcomes:?}") };
    assert_eq!(rejection.detail, "the receiver answers 400 Bad Request: not  this one");
    sink.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_not_answered_is_given_up() {
    let rig = HttpRig::new().await;
    let mut tower = Tower::new("contract");
    let mut settings = rig.settings();
    settings.ack_timeout = Duration::from_millis(300);
    let mut sink = rig.opened(&tower, settings).await;
    rig.pause().await;
    let outcomes = tower.send(&mut *sink, &[Draft::nth("t", 0)]).await;
    let [Outcome::Unavailable(fault)] = &outcomes[..] else { panic!("{outcomes:?}") };
    assert!(fault.detail.contains("no answer in time"), "{}", fault.detail);
    sink.close().await;
}
