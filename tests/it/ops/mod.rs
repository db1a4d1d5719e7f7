//! What operators are given is true: alerts, dashboard, runbook, and the documents' code.

mod documents;
mod grafana;
mod named;
mod prometheus;
mod systemd;

use std::path::{Path, PathBuf};

use outboxd::telemetry::metric;

fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(place(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The alerts that there are.
fn alerts() -> Vec<String> {
    let rules = read("ops/prometheus/outboxd.rules.yml");
    let alerts: Vec<_> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ").map(str::to_owned)).collect();
    assert!(alerts.len() >= 13, "{alerts:?}");
    alerts
}

/// Names in a text that look like ours and are no metric.
fn unknown_metrics(text: &str) -> Vec<String> {
    let is_there = |name: &str| {
        metric::ALL.iter().any(|metric| {
            let rest = name.strip_prefix(metric.name);
            rest == Some("")
                || metric.kind == "histogram" && rest.is_some_and(|rest| ["_bucket", "_sum", "_count"].contains(&rest))
        })
    };
    let mut unknown: Vec<String> = text
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("outboxd_") && !is_there(word))
        .map(str::to_owned)
        .collect();
    unknown.sort();
    unknown.dedup();
    unknown
}
