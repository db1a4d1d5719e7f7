//! The dashboard is one for Grafana, and every one of its queries has an answer in a Prometheus that scrapes a daemon at work.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use outboxd::telemetry::metric;
use rusqlite::Connection;
use serde_json::Value;

use super::{alerts, place, read};
use crate::support::application::Application;
use crate::support::process::{SHOP, Scene, shared_machine, told};
use crate::support::relays::{file, relay};
use crate::support::wait::until;

fn dashboard() -> Value {
    serde_json::from_str(&read("ops/grafana/outboxd.json")).unwrap()
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row")
}

/// Read by the classes that Grafana makes from its own schema, and written again: nothing is refused, and nothing falls by the wayside.
#[test]
fn the_dashboard_is_what_grafanas_own_schema_says() {
    let script = "
import json, sys
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

def lost(said, kept, place):
    if isinstance(said, dict) and isinstance(kept, dict):
        for key in said:
            yield from lost(said[key], kept[key], f'{place}.{key}') if key in kept else [f'{place}.{key} is not known']
    elif isinstance(said, list) and isinstance(kept, list) and len(said) == len(kept):
        for at, pair in enumerate(zip(said, kept)):
            yield from lost(*pair, f'{place}[{at}]')
    elif said != kept:
        yield f'{place}: {said} becomes {kept}'

plugins.register_default_plugins()
said = json.load(open(sys.argv[1]))
def check(said):
    return list(lost(said, json.loads(JSONEncoder().encode(Dashboard.from_json(said))), 'dashboard'))
assert check(said) == [], check(said)
said['panels'][1]['tittle'] = 'misspelt'
assert check(said) == ['dashboard.panels[1].tittle is not known'], check(said)
";
    let python = place(".tools/eventsource/bin/python");
    let output = Command::new(python).args(["-c", script]).arg(place("ops/grafana/outboxd.json")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Each panel says what it shows and in what unit, and links lead to alerts' sections.
#[test]
fn panels_have_units_and_lead_to_the_runbook() {
    let dashboard = dashboard();
    let sections: Vec<_> = alerts().iter().map(|alert| format!("${{runbook}}#{}", alert.to_lowercase())).collect();
    let mut linked = Vec::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        assert!(panel["description"].as_str().is_some_and(|text| !text.is_empty()), "{title} has no description");
        let drawn = ["timeseries", "stat"].contains(&panel["type"].as_str().unwrap());
        assert!(!drawn || panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
        for link in panel["links"].as_array().into_iter().flatten() {
            let url = link["url"].as_str().unwrap().to_owned();
            assert!(sections.contains(&url), "{title}: {url}");
            linked.push(url);
        }
    }
    let missing: Vec<_> = sections.iter().filter(|section| !linked.contains(section)).collect();
    assert!(missing.is_empty(), "no panel leads to {missing:?}");
    let variables: Vec<_> = dashboard["templating"]["list"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| variable["name"].as_str().unwrap())
        .collect();
    assert_eq!(variables, ["datasource", "job", "instance", "consumer", "runbook"]);
}

/// Whoever adds a metric says where it is looked at.
#[test]
fn every_metric_is_on_the_dashboard() {
    let text = read("ops/grafana/outboxd.json");
    let words: Vec<_> = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let is_shown = |name: &str| ["", "_bucket", "_sum"].iter().any(|end| words.contains(&&*format!("{name}{end}")));
    let missing: Vec<_> = metric::ALL.iter().map(|metric| metric.name).filter(|name| !is_shown(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Debian's Prometheus with our alerts, which scrapes one daemon each second. It ends with the test.
struct Prometheus {
    child: Child,
    address: String,
}

impl Prometheus {
    fn start(scene: &Scene, target: &str) -> Self {
        let mut ports = (0..10_000).map(|n| 40_000 - (std::process::id() + n) % 10_000);
        let free = |port| TcpListener::bind(format!("127.0.0.1:{port}")).ok()?.local_addr().ok();
        let address = ports.find_map(free).expect("a port is free").to_string();
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [{}]\nscrape_configs:\n  - job_name: outboxd\n    \
             static_configs: [{{ targets: [\"{target}\"] }}]\n",
            place("ops/prometheus/outboxd.rules.yml").display()
        );
        let log = std::fs::File::create(scene.path("prometheus.log")).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", scene.write("prometheus.yml", &config).display()))
            .arg(format!("--storage.tsdb.path={}", scene.path("prometheus").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("prometheus: scripts/setup installs it");
        Self { child, address }
    }

    fn ask(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        write!(stream, "GET /api/v1/{path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    /// How many series a query has; a query that is wrong is an error here.
    fn series(&self, query: &str) -> Option<usize> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let answer = self.ask(&format!("query?query={encoded}"))?;
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        Some(answer["data"]["result"].as_array()?.len())
    }

    fn is_firing(&self, alert: &str, consumer: &str) -> bool {
        let answer = self.ask("alerts").unwrap_or_default();
        let is_it = |one: &Value| {
            one["labels"]["alertname"] == alert && one["labels"]["consumer"] == consumer && one["state"] == "firing"
        };
        answer["data"]["alerts"].as_array().is_some_and(|alerts| alerts.iter().any(is_it))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const READ_MODEL: &str = r#"
[sources.log]
path = "app.db"
preset = "outboxd"
read = "events"

[projections.totals]
source = "log"
path = "read.db"
tables = ["totals"]
schema = "CREATE TABLE totals (id TEXT PRIMARY KEY NOT NULL) STRICT"
attempts_max = 1
[projections.totals.on]
Placed = "INSERT INTO totals VALUES (:stream_id)"
Broken = "INSERT INTO totals VALUES (NULL)"

[jobs.often]
type = "snapshot"
source = "log"
every = "1s"
reducers = { Order = "merge-patch" }

[jobs.nightly]
type = "backup"
files = ["app.db"]
target = "file://BACKUPS"
every = "1h"

[jobs.elsewhere]
type = "backup"
files = ["app.db"]
folder = "backups"
target = "file://ELSEWHERE"
every = "1h"

[jobs.old]
type = "archive"
source = "log"
every = "1s"

[jobs.tidy]
type = "retention"
source = "shop"
what = "published"
older_than = "720h"
every = "1s"

[jobs.sound]
type = "integrity"
source = "log"
every = "1h"
"#;

fn append(application: &Connection, stream: &str, event: &str) {
    let sql =
        "INSERT INTO events (id, stream_id, stream_type, version, type, data) VALUES (?1, ?1, 'Order', 1, ?2, '{}')";
    application.execute(sql, [stream, event]).unwrap();
}

/// Under load every query has at least one series; and at night a dead letter is an alert, which goes when it is decided about.
#[test]
fn every_query_of_the_dashboard_has_an_answer_and_a_dead_letter_is_an_alert() {
    let _machine = shared_machine();
    let (backups, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let more = READ_MODEL.replace("BACKUPS", &backups.path().display().to_string());
    let more = more.replace("ELSEWHERE", &elsewhere.path().display().to_string());
    let scene = Scene::new(&[SHOP, &file("lines"), &relay("lines", ""), &more].concat());
    let mut daemon = scene.daemon();
    daemon.until_state("to_lines", "running", Duration::from_secs(30));
    daemon.until_state("totals", "running", Duration::from_secs(30));
    let prometheus = Prometheus::start(&scene, &daemon.admin());

    let dashboard = dashboard();
    let mut queries: Vec<(String, String)> = Vec::new();
    for panel in panels(&dashboard) {
        for target in panel["targets"].as_array().unwrap() {
            let mut query = target["expr"].as_str().unwrap().replace("consumer=\"$consumer\"", "consumer=\"to_lines\"");
            for (variable, value) in [
                ("$job", ".*"),
                ("$instance", ".*"),
                ("$consumer", ".*"),
                ("$__rate_interval", "1m"),
                ("$__interval", "1m"),
            ] {
                query = query.replace(variable, value);
            }
            assert!(!query.contains('$'), "{query}");
            queries.push((panel["title"].as_str().unwrap().to_owned(), query));
        }
    }
    assert!(queries.len() >= 40, "{}", queries.len());

    let mut application = Application::open(&scene.path("app.db"), 5);
    let events = Connection::open(scene.path("app.db")).unwrap();
    events.busy_timeout(Duration::from_secs(5)).unwrap();
    append(&events, "order-broken", "Broken");
    let mut written = 0;
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !queries.is_empty() {
        assert!(std::time::Instant::now() < deadline, "no series: {queries:#?}");
        application.write(100);
        append(&events, &format!("order-{written}"), "Placed");
        written += 1;
        queries.retain(|(_, query)| prometheus.series(query).unwrap_or_default() == 0);
        std::thread::sleep(Duration::from_millis(100));
    }

    let fires = |fires| {
        move |prometheus: &Prometheus| (prometheus.is_firing("OutboxdDeadLetters", "totals") == fires).then_some(())
    };
    until("the alert fires", Duration::from_secs(30), || fires(true)(&prometheus));
    let discarded =
        ["dead-letters", "discard", "--consumer", "totals", "--id", "order-broken", "--reason", "a test", "--yes"];
    told(&scene.outboxd(&discarded));
    until("the alert is gone", Duration::from_secs(30), || fires(false)(&prometheus));
}
