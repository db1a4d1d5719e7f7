//! The one table that is printed.

use std::fmt;

use crate::Arguments;
use crate::meter::{Drain, Pace};
use crate::site::Site;

const HEAD: [&str; 7] = ["", "bare", "outboxd", "ratio", "CPU s/M bare", "CPU s/M outboxd", "peak RSS outboxd"];

/// Markdown, so that it can be pasted into docs/BENCHMARKS.md.
pub struct Table {
    rows: Vec<[String; 7]>,
    footer: String,
}

impl Table {
    pub fn new(arguments: &Arguments) -> Self {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let rounds = arguments.rounds;
        let mut footer = format!(
            "Medians of {rounds} rounds (of memory the most); {cores} cores, shared with broker and application."
        );
        if arguments.quick {
            footer.push_str(" A quick run: the figures mean nothing.");
        }
        Self { rows: Vec::new(), footer }
    }

    pub fn drain(&mut self, site: &Site, bytes: usize, events: usize, [bare, relay]: [&Drain; 2]) {
        let size = if bytes.is_multiple_of(1024) { format!("{} KiB", bytes / 1024) } else { format!("{bytes} B") };
        self.sides(format!("{}: drain, {size}, {} k events", site.name, events / 1000), bare, relay);
    }

    /// How many events a second, and at what price. Memory is that of a process of its own.
    pub fn sides(&mut self, what: String, bare: &Drain, ours: &Drain) {
        let memory = if ours.rss_mib > 0.0 { format!("{:.0} MiB", ours.rss_mib) } else { "-".to_owned() };
        self.rows.push([
            what,
            format!("{:.1} k/s", bare.rate() / 1e3),
            format!("{:.1} k/s", ours.rate() / 1e3),
            format!("{:.2}", ours.rate() / bare.rate()),
            format!("{:.2}", bare.cpu()),
            format!("{:.2}", ours.cpu()),
            memory,
        ]);
    }

    /// How much of something there is: seconds, bytes.
    pub fn amount(&mut self, what: &str, unit: &str, bare: f64, ours: f64) {
        let dash = || "-".to_owned();
        let ratio = if bare > 0.0 { format!("{:.2}", ours / bare) } else { dash() };
        self.rows.push([
            what.to_owned(),
            format!("{bare:.2} {unit}"),
            format!("{ours:.2} {unit}"),
            ratio,
            dash(),
            dash(),
            dash(),
        ]);
    }

    /// How long something takes: alone or by the bare client, and with outboxd.
    pub fn pace(&mut self, what: &str, bare: &Pace, ours: &Pace) {
        for (name, figure) in [("p50", (|p| p.p50_ms) as fn(&Pace) -> f64), ("p99", |p| p.p99_ms)] {
            let (bare, ours) = (figure(bare), figure(ours));
            let dash = || "-".to_owned();
            self.rows.push([
                format!("{what}, {name}"),
                format!("{bare:.2} ms"),
                format!("{ours:.2} ms"),
                format!("{:.1}", ours / bare),
                dash(),
                dash(),
                dash(),
            ]);
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].len());
            cells.chain([HEAD[column].len()]).max().unwrap_or(0)
        };
        let widths: [usize; 7] = std::array::from_fn(width);
        let line = |f: &mut fmt::Formatter<'_>, cells: &[String; 7]| {
            for (column, cell) in cells.iter().enumerate() {
                let width = widths[column];
                if column == 0 { write!(f, "| {cell:<width$} |")? } else { write!(f, " {cell:>width$} |")? }
            }
            writeln!(f)
        };
        line(f, &HEAD.map(str::to_owned))?;
        write!(f, "|{}|", "-".repeat(widths[0] + 2))?;
        for width in &widths[1..] {
            write!(f, "{}:|", "-".repeat(width + 1))?;
        }
        writeln!(f)?;
        for row in &self.rows {
            line(f, row)?;
        }
        write!(f, "\n{}", self.footer)
    }
}
