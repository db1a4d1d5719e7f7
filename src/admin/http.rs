//! `/metrics`, `/livez`, `/readyz`, `/api/v1/...`: read-only, and bounded in every way.

use std::io::Write;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::body::HttpBody;
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer::{Refusal, answer};
use super::request::{self, DeadLetters, Filter};
use super::{Board, status_json};
use crate::consumer::status;
use crate::setting::value::Span;
use crate::telemetry::visible::{visible, visible_json};

/// Probes, a scraper or two, a person: far fewer.
const CONNECTIONS_MAX: usize = 64;
/// In which a request must be there, the first as well as one more on the same connection.
const HEAD_TIME_MAX: Duration = Duration::from_secs(5);
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(60);
/// Of a request's line and headers.
const HEAD_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;
/// How long a position is waited for where nothing is said, and at most.
const WAIT_USUAL: Duration = Duration::from_secs(5);
const WAIT_MAX: Duration = Duration::from_secs(30);
const TOO_MANY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 21\r\nConnection: close\r\n\r\n\
    too many connections\n";

/// Binds at once, so that an address in use is told at start; serves on its own thread until the process ends.
pub fn serve(address: SocketAddr, board: Board) -> std::io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let bound = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("admin".into()).spawn(move || {
        runtime.block_on(async move {
            let listener = match TcpListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => return tracing::error!(event = "admin_failed", detail = %error),
            };
            accept(listener, router(board)).await;
        });
    })?;
    Ok(bound)
}

/// Takes connections for ever. Each is bounded in time and in what it may send; one too many is told so, and the others are served on.
async fn accept(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match places.clone().try_acquire_owned() {
                Ok(place) => drop(tokio::spawn(converse(stream, router.clone(), place))),
                // It is new, so that this fits into its buffer.
                Err(_) => drop(stream.into_std().map(|mut stream| stream.write(TOO_MANY))),
            },
            Err(error) => {
                // Too many open files, say.
                tracing::warn!(event = "admin_accept_failed", detail = %error);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// What is malformed or too big is answered by hyper itself: 400, 414, 431.
async fn converse(stream: TcpStream, router: Router, _place: OwnedSemaphorePermit) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    // Whoever is not well served by this reconnects; there is nobody to tell.
    if tokio::time::timeout(CONNECTION_TIME_MAX, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(HEAD_TIME_MAX, connection).await;
    }
}

/// Nothing here takes a body, so none is read.
async fn without_body(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let close = [(header::CONNECTION, "close")];
    (StatusCode::PAYLOAD_TOO_LARGE, close, "this address takes no request bodies\n").into_response()
}

fn router(board: Board) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/api/v1/status", get(api_status))
        .route("/api/v1/consumers", get(api_consumers))
        .route("/api/v1/jobs", get(api_jobs))
        .route("/api/v1/dead-letters", get(api_dead_letters))
        .route("/api/v1/wait", get(api_wait))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is nothing here; / lists what there is\n") })
        .method_not_allowed_fallback(|| async {
            (StatusCode::METHOD_NOT_ALLOWED, "this address is read-only: GET it\n")
        })
        .layer(middleware::from_fn(without_body))
        .with_state(board)
}

async fn index() -> &'static str {
    "outboxd\n\n/metrics\n/livez\n/readyz  (?verbose, ?consumers)\n/api/v1/status\n/api/v1/consumers\n/api/v1/jobs\n\
     /api/v1/dead-letters?consumer=NAME\n/api/v1/wait?consumer=NAME&position=N&timeout=5s\n"
}

async fn metrics(State(board): State<Board>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], board.render_metrics()).into_response()
}

async fn livez(State(board): State<Board>) -> Response {
    let hung = board.hung();
    if hung.is_empty() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("these consumers have stopped turning: {}\n", hung.join(", ")))
        .into_response()
}

#[derive(Deserialize)]
struct Readiness {
    verbose: Option<String>,
    consumers: Option<String>,
}

/// 200 once started: an unready sidecar would take its pod out of service. `?consumers` is for those who want to know.
async fn readyz(State(board): State<Board>, Query(query): Query<Readiness>) -> Response {
    let statuses = board.statuses();
    let halted = statuses.iter().any(|status| status.state == status::State::Halted);
    let code = if query.consumers.is_some() && halted { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let mut body = String::from(if code == StatusCode::OK { "ok\n" } else { "a consumer is halted\n" });
    if query.verbose.is_some() {
        for status in &statuses {
            body.push_str(&format!("{}: {} {}\n", status.consumer, status.state.as_str(), visible(&status.detail)));
            for warning in status.warnings() {
                body.push_str(&format!("{}: warning: {}\n", status.consumer, visible(warning)));
            }
        }
    }
    (code, body).into_response()
}

async fn api_status(State(board): State<Board>) -> Response {
    let consumers: Vec<_> = board.statuses().iter().map(status_json).collect();
    let uptime = board.started.elapsed().as_secs();
    let (version, jobs) = (env!("CARGO_PKG_VERSION"), board.job_statuses());
    json_response(&json!({ "version": version, "uptime_seconds": uptime, "consumers": consumers, "jobs": jobs }))
}

async fn api_jobs(State(board): State<Board>) -> Response {
    json_response(&json!(board.job_statuses()))
}

async fn api_consumers(State(board): State<Board>) -> Response {
    json_response(&board.statuses().iter().map(status_json).collect())
}

#[derive(Deserialize)]
struct Which {
    consumer: Option<String>,
    limit: Option<u64>,
}

/// For fuzzing: whatever a query string says, it is taken or refused.
#[cfg(feature = "controls")]
pub fn read_query(query: &str) {
    let Ok(uri) = format!("/?{query}").parse() else { return };
    let _ = Query::<Which>::try_from_uri(&uri).map(|which| (which.0.consumer, which.0.limit));
    let _ =
        Query::<Awaited>::try_from_uri(&uri).map(|awaited| (awaited.0.consumer, awaited.0.position, awaited.0.timeout));
    let _ = Query::<Readiness>::try_from_uri(&uri).map(|readiness| (readiness.0.verbose, readiness.0.consumers));
}

async fn api_dead_letters(State(board): State<Board>, Query(query): Query<Which>) -> Response {
    let filter = Filter { consumer: query.consumer, ..Filter::default() };
    let request =
        request::Request::DeadLetters(DeadLetters::List { filter, limit: query.limit.unwrap_or(100).min(10_000) });
    match answer(&board, &request).await {
        Ok(value) => json_response(&value),
        Err(refusal) if refusal.exit == Refusal::USAGE => (StatusCode::NOT_FOUND, refusal.error).into_response(),
        Err(refusal) => (StatusCode::SERVICE_UNAVAILABLE, refusal.error).into_response(),
    }
}

#[derive(Deserialize)]
struct Awaited {
    consumer: String,
    position: i64,
    timeout: Option<String>,
}

/// For whoever reads what he has just written: answers when the consumer has settled everything up to a position.
async fn api_wait(State(board): State<Board>, Query(query): Query<Awaited>) -> Response {
    let Some(handle) = board.handle(&query.consumer) else {
        return (StatusCode::NOT_FOUND, format!("{} is not in the config\n", visible(&query.consumer))).into_response();
    };
    let timeout = match query.timeout.as_deref().map(Span::parse) {
        None => WAIT_USUAL,
        Some(Ok(Span(timeout))) => timeout.min(WAIT_MAX),
        Some(Err(reason)) => return (StatusCode::BAD_REQUEST, format!("{}\n", visible(&reason))).into_response(),
    };
    let mut status = handle.status.clone();
    let reached = status.wait_for(|status| status.position >= query.position);
    let is_reached = matches!(tokio::time::timeout(timeout, reached).await, Ok(Ok(_)));
    let (position, held_keys) = {
        let status = status.borrow();
        (status.position, status.held_keys)
    };
    let answer = json_response(&json!({
        "consumer": query.consumer, "position": position, "reached": is_reached, "held_keys": held_keys,
    }));
    let code = if is_reached { StatusCode::OK } else { StatusCode::GATEWAY_TIMEOUT };
    (code, answer).into_response()
}

fn json_response(value: &serde_json::Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (headers, visible_json(&format!("{value}\n"))).into_response()
}
