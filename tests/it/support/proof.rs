//! What a fault test tried and what it found, for the summary of `make test` and for RELIABILITY.md (`scripts/proof`).
//!
//! One JSON file a record, in `OUTBOXD_PROOF_DIR` (default: `target/proof`):
//! `{"suite", "test", "seed", "tried": {fault: count}, "found": {what: figure}, "not_run": reason, "at": seconds since 1970}`.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

/// Written when it goes out of scope at the end of a test that did not fail.
pub struct Proof {
    suite: String,
    seed: Option<u64>,
    tried: Map<String, Value>,
    found: Map<String, Value>,
    not_run: Option<String>,
}

impl Proof {
    /// `suite` says in a few words what is tried, as in `kill -9 of the daemon, Kafka`; it is the name of the record.
    pub fn of(suite: &str) -> Self {
        Self { suite: suite.into(), seed: None, tried: Map::new(), found: Map::new(), not_run: None }
    }

    /// With which the same run can be had again.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// How many of a fault were tried, as in `kills of the daemon`.
    pub fn tried(mut self, fault: &str, count: u64) -> Self {
        self.tried.insert(fault.into(), count.into());
        self
    }

    /// A figure that was found, with its unit, as in `lost`, 0 or `restart to first read, p99`, `310 ms`.
    pub fn found(mut self, what: &str, figure: impl Display) -> Self {
        self.found.insert(what.into(), figure.to_string().into());
        self
    }

    /// It could not be tried on this machine. Said in the summary, never silently.
    pub fn not_run(mut self, reason: &str) -> Self {
        println!("NOT RUN: {}: {reason}", self.suite);
        self.not_run = Some(reason.into());
        self
    }
}

impl Drop for Proof {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let record = json!({
            "suite": self.suite,
            "test": std::thread::current().name(),
            "seed": self.seed,
            "tried": self.tried,
            "found": self.found,
            "not_run": self.not_run,
            "at": SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs(),
        });
        let folder = std::env::var_os("OUTBOXD_PROOF_DIR")
            .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/proof")), PathBuf::from);
        std::fs::create_dir_all(&folder).unwrap();
        let name: String = self.suite.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
        std::fs::write(folder.join(format!("{name}.json")), format!("{record:#}\n")).unwrap();
    }
}
