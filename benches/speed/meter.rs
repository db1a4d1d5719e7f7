//! What is measured: rates, CPU time, memory, times to the acknowledgement.

use std::fmt;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Samples at the beginning of a paced run that do not count.
const WARM_UP_SAMPLES: usize = 600;

/// One drain, from a side that is warm and idle to the last acknowledgement.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub struct Drain {
    pub events: usize,
    pub seconds: f64,
    pub cpu_seconds: f64,
    /// The most memory that the process ever had.
    pub rss_mib: f64,
    pub threads: usize,
    /// The relay's transactions on the state file, and barriers on the source.
    pub transactions: u64,
    pub barriers: u64,
}

impl Drain {
    pub fn rate(&self) -> f64 {
        self.events as f64 / self.seconds
    }

    /// CPU seconds for a million events.
    pub fn cpu(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.events as f64
    }

    /// Of each figure by itself; of memory the most.
    pub fn median(runs: &[Drain]) -> Drain {
        let of = |figure: fn(&Drain) -> f64| median(runs.iter().map(figure).collect());
        let last = runs.last().expect("there is at least one round").clone();
        let seconds = last.events as f64 / of(Drain::rate);
        let cpu_seconds = of(Drain::cpu) * last.events as f64 / 1e6;
        let rss_mib = runs.iter().map(|run| run.rss_mib).fold(0.0, f64::max);
        Drain { seconds, cpu_seconds, rss_mib, ..last }
    }
}

impl fmt::Display for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} k/s, {:.2} s CPU a million", self.rate() / 1e3, self.cpu())?;
        if self.threads == 0 {
            return Ok(());
        }
        write!(f, ", {:.0} MiB", self.rss_mib)?;
        write!(f, ", {} threads, {} transactions, {} barriers", self.threads, self.transactions, self.barriers)
    }
}

/// Times to the acknowledgement at a steady pace.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Pace {
    pub p50_ms: f64,
    pub p99_ms: f64,
}

impl Pace {
    /// From nanoseconds, in the order in which the events were written.
    pub fn of(mut nanos: Vec<i64>) -> Self {
        let warm = WARM_UP_SAMPLES.min(nanos.len() / 3);
        nanos.drain(..warm);
        nanos.sort_unstable();
        let at = |percent: usize| nanos[(nanos.len() * percent / 100).min(nanos.len() - 1)] as f64 / 1e6;
        Self { p50_ms: at(50), p99_ms: at(99) }
    }

    pub fn median(runs: &[Pace]) -> Pace {
        let of = |figure: fn(&Pace) -> f64| median(runs.iter().map(figure).collect());
        Pace { p50_ms: of(|run| run.p50_ms), p99_ms: of(|run| run.p99_ms) }
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p50 {:.2} ms, p99 {:.2} ms", self.p50_ms, self.p99_ms)
    }
}

pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let half = figures.len() / 2;
    if figures.len() % 2 == 1 { figures[half] } else { (figures[half - 1] + figures[half]) / 2.0 }
}

/// Runs from its making until it is read.
pub struct Meter {
    began: Instant,
    cpu: f64,
}

impl Meter {
    pub fn start() -> Self {
        Self { began: Instant::now(), cpu: cpu_seconds() }
    }

    pub fn read(&self, events: usize) -> Drain {
        let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
        Drain { rss_mib: peak_rss_mib(), threads, ..self.read_shared(events) }
    }

    /// In a process that others have used as well: its memory says nothing.
    pub fn read_shared(&self, events: usize) -> Drain {
        let (seconds, cpu_seconds) = (self.began.elapsed().as_secs_f64(), cpu_seconds() - self.cpu);
        Drain { events, seconds, cpu_seconds, ..Drain::default() }
    }
}

/// What a command took, its start among it.
pub fn command(events: usize, run: impl FnOnce()) -> Drain {
    let (began, cpu) = (Instant::now(), children_cpu_seconds());
    run();
    let (seconds, cpu_seconds) = (began.elapsed().as_secs_f64(), children_cpu_seconds() - cpu);
    Drain { events, seconds, cpu_seconds, ..Drain::default() }
}

/// Of all processes that were started here and have ended; the system counts in hundredths.
fn children_cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("the system tells of this process");
    let fields: Vec<&str> = stat[stat.rfind(')').expect("behind the name") + 2..].split(' ').collect();
    let ticks = |n: usize| fields[n].parse::<f64>().expect("a number");
    (ticks(13) + ticks(14)) / 100.0
}

fn cpu_seconds() -> f64 {
    nanos(ClockId::ProcessCPUTime) as f64 / 1e9
}

/// The same clock in every process of this machine.
pub fn monotonic_nanos() -> i64 {
    nanos(ClockId::Monotonic)
}

fn nanos(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

fn peak_rss_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}

/// When the events of a paced run are due.
pub struct Beat {
    began: Instant,
    interval: Duration,
}

impl Beat {
    pub fn new(per_second: usize) -> Self {
        Self { began: Instant::now(), interval: Duration::from_secs(1) / per_second as u32 }
    }

    /// How long event `n` has to wait.
    pub fn wait(&self, n: usize) -> Duration {
        (self.interval * n as u32).saturating_sub(self.began.elapsed())
    }
}
