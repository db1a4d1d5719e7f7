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

use super::Board;
use crate::consumer::control::{Command, Operation};
use crate::consumer::status;
use crate::state::held::Selection;

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
    (StatusCode::SERVICE_UNAVAILABLE, format!("these consumers have stopped turning: {}\n", hung.join(", "))).into_response()
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
            body.push_str(&format!("{}: {} {}\n", status.consumer, status.state.as_str(), status.detail));
        }
    }
    (code, body).into_response()
}

async fn api_status(State(board): State<Board>) -> Response {
    json_response(&status_json(&board))
}

/// The whole status, as `outboxd status --json` prints it.
pub fn status_json(board: &Board) -> serde_json::Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": board.started.elapsed().as_secs(),
        "consumers": consumers_json(&board.statuses()),
    })
}

pub fn consumers_json(statuses: &[status::Status]) -> serde_json::Value {
    statuses
        .iter()
        .map(|status| {
            let mut value = serde_json::to_value(status).expect("a status is plain data");
            value["lag_seconds"] = json!(status.lag_seconds());
            value["held_oldest_seconds"] = json!(status.held_oldest_seconds());
            value
        })
        .collect()
}

async fn api_consumers(State(board): State<Board>) -> Response {
    json_response(&consumers_json(&board.statuses()))
}

#[derive(Deserialize)]
struct DeadLetters {
    consumer: Option<String>,
}

async fn api_dead_letters(State(board): State<Board>, Query(query): Query<DeadLetters>) -> Response {
    let mut lists = Vec::new();
    for handle in board.handles.iter().filter(|handle| query.consumer.as_ref().is_none_or(|name| *name == handle.name)) {
        let selection = Selection { heads_only: true, ..Selection::default() };
        match handle.ask(|reply| Command::Operate(Operation::List(selection), reply)).await {
            Ok(list) => lists.push(list),
            Err(error) => lists.push(json!({ "consumer": handle.name, "error": error.to_string() })),
        }
    }
    if lists.is_empty() && query.consumer.is_some() {
        return (StatusCode::NOT_FOUND, "there is no such consumer\n").into_response();
    }
    json_response(&json!(lists))
}

fn json_response(value: &serde_json::Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (headers, format!("{value}\n")).into_response()
}
