//! The alerts are taken by Debian's Prometheus, tried by it, and each leads to its section of the runbook.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rusqlite::Connection;

use super::{alerts, place, read, unknown_metrics};
use crate::support::application::Application;
use crate::support::process::{Daemon, SHOP, Scene, shared_machine, told};
use crate::support::relays::{file, relay};
use crate::support::wait::until;

const RULES: &str = "ops/prometheus/outboxd.rules.yml";
const TESTS: &str = "ops/prometheus/outboxd.rules.test.yml";

fn promtool(arguments: &[&str], folder: &Path) -> Output {
    Command::new("promtool").args(arguments).current_dir(folder).output().expect("promtool: scripts/setup installs it")
}

#[test]
fn the_alerts_are_taken_and_tried_by_promtool() {
    let folder = place("ops/prometheus");
    told(&promtool(&["check", "rules", "outboxd.rules.yml"], &folder));
    told(&promtool(&["test", "rules", "outboxd.rules.test.yml"], &folder));
}

/// The cases notice when an alert says something else.
#[test]
fn control_an_alert_that_is_changed_fails_its_cases() {
    let folder = tempfile::tempdir().unwrap();
    let (rules, cases) = (read(RULES), read(TESTS));
    let (head, cases) = cases.split_once("  - name: ").unwrap();
    let of_one = cases.split("  - name: ").filter(|case| case.contains("alertname: OutboxdLagHigh"));
    let of_one: String = of_one.map(|case| format!("  - name: {case}")).collect();
    std::fs::write(folder.path().join("outboxd.rules.test.yml"), format!("{head}{of_one}")).unwrap();
    let passes = |rules: &str| {
        std::fs::write(folder.path().join("outboxd.rules.yml"), rules).unwrap();
        promtool(&["test", "rules", "outboxd.rules.test.yml"], folder.path()).status.success()
    };
    assert!(passes(&rules));
    assert!(rules.contains("outboxd_lag_seconds > 300"));
    assert!(!passes(&rules.replace("outboxd_lag_seconds > 300", "outboxd_lag_seconds > 3000")));
    assert!(!passes(&rules.replace("outboxd_lag_seconds > 300", "outboxd_lag_seconds > 30")));
}

/// One `- name:` of the file: what is expected of which alert, in the order of time.
struct Case<'a> {
    name: &'a str,
    expected: Vec<(&'a str, bool)>,
}

fn cases(text: &str) -> Vec<Case<'_>> {
    let mut cases: Vec<Case> = Vec::new();
    let mut alert = "";
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("- name: ") {
            cases.push(Case { name, expected: Vec::new() });
        } else if let Some(name) = line.strip_prefix("alertname: ") {
            alert = name;
        } else if let Some(none) = line.strip_prefix("exp_alerts:") {
            cases.last_mut().unwrap().expected.push((alert, none.is_empty()));
        }
    }
    cases
}

#[test]
fn every_alert_has_cases_in_which_it_fires_resolves_and_stays_quiet() {
    let text = read(TESTS);
    let cases = cases(&text);
    for alert in alerts() {
        let of_it: Vec<_> = cases.iter().filter(|case| case.expected.iter().all(|(name, _)| *name == alert)).collect();
        let resolves = |case: &&Case| {
            let fires = case.expected.iter().position(|(_, fires)| *fires);
            fires.is_some_and(|at| case.expected[at..].iter().any(|(_, fires)| !fires))
        };
        let names: Vec<_> = of_it.iter().map(|case| case.name).collect();
        assert!(of_it.iter().any(resolves), "{alert} fires and resolves in none of {names:?}");
        assert!(
            of_it.iter().any(|case| case.expected.iter().all(|(_, fires)| !fires)),
            "{alert} stays quiet in none of {names:?}"
        );
    }
}

#[test]
fn every_alert_leads_to_its_section_of_the_runbook() {
    let (rules, runbook) = (read(RULES), read("docs/RUNBOOK.md"));
    let alerts = alerts();
    for alert in &alerts {
        let section = runbook.split(&format!("\n## {alert}\n")).nth(1);
        let section = section.unwrap_or_else(|| panic!("docs/RUNBOOK.md has no section {alert}"));
        let section = section.split("\n## ").next().unwrap();
        for part in ["It means:", "Where to look", "hat to do"] {
            assert!(section.contains(part), "{alert}: {part}");
        }
        let of_it = rules.split(&format!("- alert: {alert}\n")).nth(1).unwrap().split("- alert: ").next().unwrap();
        let link = format!("runbook_url: docs/RUNBOOK.md#{}\n", alert.to_lowercase());
        assert!(format!("{of_it}\n").contains(&link), "{alert} leads elsewhere");
        for key in ["severity: ", "summary: ", "description: "] {
            assert!(of_it.contains(key), "{alert} has no {key}");
        }
    }
    for section in runbook.lines().filter_map(|line| line.strip_prefix("## ")) {
        assert!(alerts.iter().any(|alert| alert == section), "docs/RUNBOOK.md: there is no alert {section}");
    }
}

#[test]
fn alerts_and_dashboard_name_only_metrics_that_exist() {
    for name in [RULES, "ops/grafana/outboxd.json", "docs/LIMITS.md"] {
        assert_eq!(unknown_metrics(&read(name)), [""; 0], "{name}");
    }
    assert_eq!(
        unknown_metrics("outboxd_lag_seconds, outboxd_lag_seconds_sum, outboxd_lock_wait_seconds_sum"),
        ["outboxd_lag_seconds_sum"]
    );
}

/// What the lock alone took, however often it was asked for, and also where that was given up and begun anew.
#[test]
fn waiting_for_a_lock_is_measured_and_a_job_that_waits_has_its_series() {
    let _machine = shared_machine();
    let more = "
[sources.log]
path = \"app.db\"
preset = \"outboxd\"
read = \"events\"

[projections.totals]
source = \"log\"
path = \"read.db\"
tables = [\"totals\"]
schema = \"CREATE TABLE totals (id TEXT PRIMARY KEY) STRICT\"
on = { Placed = \"INSERT INTO totals VALUES (:stream_id)\" }

[jobs.late]
type = \"backup\"
files = [\"late.db\"]
target = \"file:///tmp/outboxd-no-backups\"
every = \"1h\"
";
    let scene = Scene::new(&[SHOP, &file("lines"), &relay("lines", ""), more].concat());
    let mut daemon = scene.daemon();
    daemon.until_state("to_lines", "running", Duration::from_secs(30));
    daemon.until_state("totals", "running", Duration::from_secs(30));
    let waited = |daemon: &Daemon, file: &str| {
        daemon.metric(&format!("outboxd_lock_wait_seconds_sum{{file=\"{file}\"}}")).unwrap_or(0.0)
    };

    let holders = ["app.db-outboxd.db", "read.db"].map(|file| Connection::open(scene.path(file)).unwrap());
    for holder in &holders {
        holder.busy_timeout(Duration::from_secs(10)).unwrap();
        holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    }
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(10);
    let events = Connection::open(scene.path("app.db")).unwrap();
    events.busy_timeout(Duration::from_secs(10)).unwrap();
    let event =
        "INSERT INTO events (stream_id, stream_type, version, type, data) VALUES ('o', 'Order', 1, 'Placed', '{}')";
    events.execute(event, []).unwrap();
    let busy = |daemon: &Daemon, file: &str| {
        daemon.metric(&format!("outboxd_busy_total{{file=\"{file}\",code=\"5\"}}")).unwrap_or(0.0)
    };
    for file in ["app.db-outboxd.db", "read.db"] {
        until("both are turned away", Duration::from_secs(30), || (busy(&daemon, file) > 0.0).then_some(()));
    }
    std::thread::sleep(Duration::from_millis(1_500));
    holders.iter().for_each(|holder| holder.execute_batch("COMMIT").unwrap());
    for file in ["app.db-outboxd.db", "read.db"] {
        until(&format!("{file} was waited for"), Duration::from_secs(30), || {
            (waited(&daemon, file) > 1.0).then_some(())
        });
    }
    assert_eq!(daemon.metric("outboxd_job_last_success_timestamp_seconds{job=\"late\"}"), Some(0.0));
}

#[test]
fn what_a_daemon_tells_is_taken_by_promtool() {
    let _machine = shared_machine();
    let scene = Scene::new(&[SHOP, &file("lines"), &relay("lines", "")].concat());
    let mut daemon = scene.daemon();
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(100);
    daemon.until_settled("to_lines", application.head(), Duration::from_secs(30));
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(daemon.get("/metrics").1.as_bytes()).unwrap();
    assert_eq!(told(&promtool.wait_with_output().unwrap()), "");
}
