//! The daemon's own HTTP listener: whatever is sent to it is answered clearly or let go of, in bounded time and memory, and the daemon goes on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::{PATIENCE, config};
use crate::support::application::Application;
use crate::support::process::{Daemon, Scene};
use crate::support::proof::Proof;
use crate::support::wait::until;

/// As src/admin/http.rs has it.
const CONNECTIONS_MAX: usize = 64;

fn running() -> (Scene, Application, Daemon) {
    let scene = Scene::new(&config("app.db", ""));
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(10);
    let mut daemon = scene.daemon();
    daemon.until_settled("r", application.head(), PATIENCE);
    (scene, application, daemon)
}

fn connect(daemon: &Daemon) -> TcpStream {
    let stream = TcpStream::connect(daemon.admin()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    stream
}

/// What is answered to these bytes; the sender does not care whether all of it was taken.
fn answer(daemon: &Daemon, bytes: &[u8]) -> String {
    let mut stream = connect(daemon);
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn goes_on(daemon: &mut Daemon, application: &mut Application) {
    assert_eq!(daemon.get("/livez"), (200, "ok\n".into()));
    application.write(10);
    daemon.until_settled("r", application.head(), PATIENCE);
}

#[test]
fn requests_that_are_malformed_or_too_big_are_answered_and_the_daemon_goes_on() {
    let (_scene, mut application, mut daemon) = running();
    let get = |path: &str, more: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n").into_bytes()
    };
    let long = "x".repeat(40_000);
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("no HTTP", b"hello\r\n\r\n".to_vec(), &["400"]),
        ("bytes", vec![0, 255, 13, 10, 13, 10], &["400"]),
        ("a TLS greeting", b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03\r\n\r\n".to_vec(), &["400"]),
        ("a header without a colon", get("/", "nonsense\r\n"), &["400"]),
        ("a length that is none", get("/", "Content-Length: many\r\n"), &["400"]),
        ("two lengths", get("/", "Content-Length: 1\r\nContent-Length: 2\r\n"), &["400"]),
        ("a line of 40,000 bytes", get(&format!("/{long}"), ""), &["431", "414"]),
        ("a header of 40,000 bytes", get("/", &format!("X: {long}\r\n")), &["431"]),
        ("200 headers", get("/", &"A: b\r\n".repeat(200)), &["431"]),
        ("a body", [get("/livez", "Content-Length: 5\r\n"), b"hello".to_vec()].concat(), &["413"]),
        ("a body without an end", get("/livez", "Transfer-Encoding: chunked\r\n"), &["413"]),
        ("a body of 100 GB", get("/livez", "Content-Length: 100000000000\r\n"), &["413"]),
        ("a query that is none", get("/api/v1/dead-letters?limit=many", ""), &["400"]),
        ("a query with a wrong escape", get("/api/v1/dead-letters?consumer=%ff%zz", ""), &["400", "404"]),
        ("more than all", get("/api/v1/dead-letters?limit=18446744073709551615", ""), &["200"]),
        ("what is not there", get("/../../etc/passwd", ""), &["404"]),
        ("another method", b"BREW /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_vec(), &["405"]),
    ];
    let count = cases.len() as u64;
    for (what, bytes, codes) in cases {
        let answer = answer(&daemon, &bytes);
        let code = answer.split(' ').nth(1).unwrap_or_default();
        assert!(answer.starts_with("HTTP/1.1 ") && codes.contains(&code), "{what}: {answer:?}");
    }
    assert_eq!(
        answer(&daemon, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        "",
        "there is no answer in HTTP/1 to the greeting of HTTP/2"
    );
    for (path, words) in [("/nowhere", "/ lists what there is"), ("/livez", "ok")] {
        assert!(daemon.get(path).1.contains(words));
    }
    assert!(daemon.request("DELETE", "/livez").1.contains("read-only"));
    // A thousand, one behind the other.
    let many = [b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n".repeat(999), get("/livez", "")].concat();
    assert_eq!(answer(&daemon, &many).matches("HTTP/1.1 200").count(), 1_000);
    goes_on(&mut daemon, &mut application);
    Proof::of("HTTP requests that are wrong").tried("requests", count + 1_000).found("unanswered", 0);
}

#[test]
fn too_many_connections_and_slow_ones_are_let_go_of() {
    let (_scene, mut application, mut daemon) = running();
    let open_files = |daemon: &Daemon| std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    let before = open_files(&daemon);
    let began = Instant::now();
    // Half a request each, and nothing more.
    let mut slow: Vec<TcpStream> = (0..CONNECTIONS_MAX).map(|_| connect(&daemon)).collect();
    for stream in &mut slow {
        stream.write_all(b"GET /livez HTTP/1.1\r\nHo").unwrap();
    }
    let refused = until("one more is refused", PATIENCE, || {
        let answer = answer(&daemon, b"GET /livez HTTP/1.1\r\n\r\n");
        (!answer.contains(" 200 ")).then_some(answer)
    });
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.ends_with("too many connections\n"), "{refused:?}");
    // Events flow meanwhile.
    application.write(10);
    daemon.until_settled("r", application.head(), PATIENCE);
    // Each is let go of after five seconds, without an answer or with one.
    for stream in &mut slow {
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert_eq!(daemon.get("/livez").0, 200);
    // Five hundred that say nothing: no more than the bound are kept.
    let silent: Vec<TcpStream> = (0..500).map(|_| connect(&daemon)).collect();
    until("they are refused", PATIENCE, || (open_files(&daemon) <= before + CONNECTIONS_MAX + 2).then_some(()));
    drop(silent);
    until("all are let go of", PATIENCE, || (open_files(&daemon) <= before + 2).then_some(()));
    goes_on(&mut daemon, &mut application);
    Proof::of("HTTP connections that are too many or too slow")
        .tried("connections", 565)
        .found("let go of within", format!("{took:?}"));
}
