//! `/metrics`, `/livez`, `/readyz`, `/api/v1/...`: read-only.

use std::net::SocketAddr;
use std::thread;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use serde_json::json;

use super::answer::{Refusal, answer};
use super::request::{DeadLetters, Filter, Request};
use super::{Board, status_json};
use crate::consumer::status;
use crate::telemetry::visible::{visible, visible_json};

/// Binds at once, so that an address in use is told at start; serves on its own thread until the process ends.
pub fn serve(address: SocketAddr, board: Board) -> std::io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let bound = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("admin".into()).spawn(move || {
        runtime.block_on(async move {
            let listener = match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => return tracing::error!(event = "admin_failed", detail = %error),
            };
            if let Err(error) = axum::serve(listener, router(board)).await {
                tracing::error!(event = "admin_failed", detail = %error);
            }
        });
    })?;
    Ok(bound)
}

fn router(board: Board) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/api/v1/status", get(api_status))
        .route("/api/v1/consumers", get(api_consumers))
        .route("/api/v1/dead-letters", get(api_dead_letters))
        .with_state(board)
}

async fn index() -> &'static str {
    "outboxd\n\n/metrics\n/livez\n/readyz  (?verbose, ?consumers)\n/api/v1/status\n/api/v1/consumers\n/api/v1/dead-letters?consumer=NAME\n"
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
        }
    }
    (code, body).into_response()
}

async fn api_status(State(board): State<Board>) -> Response {
    let consumers: Vec<_> = board.statuses().iter().map(status_json).collect();
    let uptime = board.started.elapsed().as_secs();
    json_response(&json!({ "version": env!("CARGO_PKG_VERSION"), "uptime_seconds": uptime, "consumers": consumers }))
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
    let _ = Query::<Readiness>::try_from_uri(&uri).map(|readiness| (readiness.0.verbose, readiness.0.consumers));
}

async fn api_dead_letters(State(board): State<Board>, Query(query): Query<Which>) -> Response {
    let filter = Filter { consumer: query.consumer, ..Filter::default() };
    let request = Request::DeadLetters(DeadLetters::List { filter, limit: query.limit.unwrap_or(100).min(10_000) });
    match answer(&board, &request).await {
        Ok(value) => json_response(&value),
        Err(refusal) if refusal.exit == Refusal::USAGE => (StatusCode::NOT_FOUND, refusal.error).into_response(),
        Err(refusal) => (StatusCode::SERVICE_UNAVAILABLE, refusal.error).into_response(),
    }
}

fn json_response(value: &serde_json::Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (headers, visible_json(&format!("{value}\n"))).into_response()
}
