//! G6, where rows are marked in the application's own file: it comes first.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::fleet::Read;
use rusqlite::Connection;

use crate::support::daemon::{Daemon, one_relay};
use crate::support::eventsource::{self, count, enqueue_many};
use crate::support::fake_sink::FarSide;
use crate::support::fleet::{self, Relays, until};
use crate::support::wait;

/// An application that inserts so many rows a second, each in a transaction that begins IMMEDIATE. Returns its refusals and its
/// waits for the lock.
fn write(path: &Path, rows: u32, per_second: u32) -> (u32, Vec<Duration>) {
    let connection = eventsource::open(path);
    connection.busy_timeout(Duration::from_secs(1)).unwrap();
    let (mut refused, mut waits) = (0, Vec::new());
    let began = Instant::now();
    for n in 0..rows {
        std::thread::sleep((began + Duration::from_secs(1) / per_second * n).saturating_duration_since(Instant::now()));
        let asked = Instant::now();
        match connection.execute_batch("BEGIN IMMEDIATE") {
            Ok(()) => {
                waits.push(asked.elapsed());
                insert(&connection, n);
                refused += u32::from(connection.execute_batch("COMMIT").is_err());
            }
            Err(_) => refused += 1,
        }
    }
    waits.sort();
    (refused, waits)
}

fn insert(connection: &Connection, n: u32) {
    connection
        .prepare_cached(
            "INSERT INTO event_outbox (id, event_id, event_type, aggregate_id, aggregate_type, event_data, created_at)
             VALUES (?1, 'e-' || ?1, 'T', substr(?1, 2) % 50, 'A', '{\"payload\": {\"n\": \"' || ?1 || '\"}}', '2026-11-21T03:15:20+00:00')",
        )
        .unwrap()
        .execute([format!("n{n}")])
        .unwrap();
}

fn metrics(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// The value of the sample whose name and labels contain all of these.
fn sample(metrics: &str, parts: &[&str]) -> f64 {
    let line = metrics.lines().find(|line| !line.starts_with('#') && parts.iter().all(|part| line.contains(part)));
    line.unwrap_or_else(|| panic!("no {parts:?} in {metrics}")).rsplit(' ').next().unwrap().parse().unwrap()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_writes_never_meets_a_busy_file() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("app.db");
    let application = eventsource::make(&database, "g4");
    // A backlog besides, so that marks come in full batches.
    enqueue_many(&application, 20_000, 50);
    let port = free_port();
    let config = format!("[daemon]\nadmin = \"127.0.0.1:{port}\"\n{}", one_relay("app.db", "outbox"));
    let mut daemon = Daemon::new(folder.path(), &config);
    daemon.start();
    let began = Instant::now();
    let (refused, waits) = write(&database, 3_000, 500);
    let elapsed = began.elapsed().as_secs_f64();
    let metrics = metrics(port);
    let held = "outboxd_lock_held_seconds";
    let (holds, sum) = (sample(&metrics, &[&format!("{held}_count")]), sample(&metrics, &[&format!("{held}_sum")]));
    let within = sample(&metrics, &[&format!("{held}_bucket"), "le=\"0.005\""]);
    println!(
        "{holds} holds, {:.2} % within 5 ms, {:.2} ms on average, {:.1} % of the time; the application waited p50 {:?} p99 {:?} most {:?}",
        100.0 * within / holds,
        1000.0 * sum / holds,
        100.0 * sum / elapsed,
        waits[waits.len() / 2],
        waits[waits.len() * 99 / 100],
        waits[waits.len() - 1],
    );
    assert_eq!(refused, 0, "the application met SQLITE_BUSY");
    assert!(sum / elapsed <= 0.15, "the lock was held {:.1} % of the time", 100.0 * sum / elapsed);
    assert!(*waits.last().unwrap() < Duration::from_secs(1));
    until("everything is published", || match count(&application, "event_outbox WHERE status = 'pending'") {
        0 => Ok(()),
        left => Err(format!("{left} are left")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_backlog_drains_without_going_over_it_again_and_again() {
    let rows = 200_000;
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("app.db");
    let application = eventsource::make(&database, "g4");
    enqueue_many(&application, rows, 97);
    let far_side = FarSide::default();
    let began = Instant::now();
    let relays = Relays::one(fleet::source("outbox", &database, Read::Outbox), fleet::fake(&far_side));
    relays.reaches("r", |status| status.delivered >= 20_000).await;
    let tenth = began.elapsed();
    // On a machine that is busy besides it takes its time.
    let is_published = || (relays.status("r").delivered as usize == rows).then_some(());
    tokio::task::block_in_place(|| wait::until("everything is published", Duration::from_secs(180), is_published));
    let whole = began.elapsed();
    println!(
        "{rows} rows: the first tenth in {tenth:?}, all in {whole:?}, {:.0} rows/s",
        rows as f64 / whole.as_secs_f64()
    );
    relays.reaches("r", |status| status.backlog == 0).await;
    assert_eq!(count(&application, "event_outbox WHERE status = 'published'"), rows as i64);
    assert_eq!(far_side.arrivals().len(), rows);
    relays.stop().await;
}
