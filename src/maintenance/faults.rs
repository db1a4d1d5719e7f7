//! Streams that a run leaves as they are: all are counted, the first of them named.

use super::snapshot::tables::Stream;
use super::{Failure, Report};

/// So many are named.
const NAMED_MAX: usize = 20;

#[derive(Debug, Default)]
pub struct Faults {
    named: Vec<String>,
    unnamed: u64,
}

impl Faults {
    pub fn stream(&mut self, stream: &Stream, what: &str) {
        self.add(format!("stream {} of type {}: {what}", stream.id, stream.kind));
    }

    pub fn add(&mut self, fault: String) {
        if self.named.len() < NAMED_MAX { self.named.push(fault) } else { self.unnamed += 1 }
    }

    /// One that is named however many there are.
    pub fn add_surely(&mut self, fault: String) {
        self.named.push(fault);
    }

    /// How the run ends that has done this.
    pub fn told(&self, done: String) -> Result<Report, Failure> {
        if self.named.is_empty() {
            return Ok(Report(done));
        }
        let more = if self.unnamed == 0 { String::new() } else { format!("\n... and {} more", self.unnamed) };
        let count = self.named.len() as u64 + self.unnamed;
        Err(Failure::Data(format!("{done}; {count} streams are left as they are:\n{}{more}", self.named.join("\n"))))
    }
}
