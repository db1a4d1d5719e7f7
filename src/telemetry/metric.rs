//! Every metric that there is: name, kind, labels, meaning. No other file names one.
//!
//! Labels hold names from the config and closed sets only, never ids, keys or payloads.

#![expect(clippy::disallowed_macros, reason = "this is the one place that names metrics")]

use std::time::Duration;

use metrics::{Label, counter, gauge, histogram};

/// One row of the reference in docs/METRICS.md.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: &'static str,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

macro_rules! metrics_table {
    ($($constant:ident = $name:literal, $kind:literal, [$($label:literal),*], $help:literal;)*) => {
        $(const $constant: &str = $name;)*
        /// All of them, in the order of the reference.
        pub const ALL: &[Metric] = &[$(Metric { name: $name, kind: $kind, labels: &[$($label),*], help: $help }),*];
    };
}

metrics_table! {
    BUILD_INFO = "outboxd_build_info", "gauge", ["version"], "1, with the version of the daemon.";
    LAG_SECONDS = "outboxd_lag_seconds", "gauge", ["consumer"], "Age of the oldest event that is not settled; 0 when there is none. Held events have a gauge of their own.";
    BACKLOG_EVENTS = "outboxd_backlog_events", "gauge", ["consumer"], "Events behind the checkpoint, counted from positions: an upper bound.";
    EVENTS_TOTAL = "outboxd_events_total", "counter", ["consumer", "outcome"], "Settled events by outcome: delivered, retrying, dead, skipped, waiting.";
    REDELIVERED_TOTAL = "outboxd_redelivered_total", "counter", ["consumer"], "Events that were sent again and may have been delivered before.";
    EVENT_TO_ACK_SECONDS = "outboxd_event_to_ack_seconds", "histogram", ["consumer"], "From the event's time (else from its reading) to its acknowledgement; at most 64 evenly spaced events of a flight stand for the rest.";
    CONSUMER_STATE = "outboxd_consumer_state", "gauge", ["consumer", "state"], "1 for the state that the consumer is in: starting, waiting, running, unavailable, halted, paused, stopped.";
    CONSUMER_POSITION_AHEAD = "outboxd_consumer_position_ahead", "gauge", ["consumer"], "1 while the consumer is halted because its position is not one of the database that is there (the file was restored or the table made anew): behind its end, or with another event in its place.";
    HELD_KEYS = "outboxd_held_keys", "gauge", ["consumer"], "Keys whose head was refused; later events of them wait.";
    HELD_OLDEST_SECONDS = "outboxd_held_oldest_seconds", "gauge", ["consumer"], "Age of the oldest hold; 0 when there is none.";
    DEAD_LETTERS = "outboxd_dead_letters", "gauge", ["consumer"], "Events whose attempts are spent and whose keys wait behind them (those that `on_reject = \"skip\"` passed over: `outboxd_events_total`, outcome `skipped`).";
    DEAD_LETTERS_COPIED_TOTAL = "outboxd_dead_letters_copied_total", "counter", ["consumer"], "Copies of dead letters that the dead-letter sink has acknowledged.";
    DEAD_LETTER_COPIES = "outboxd_dead_letter_copies", "gauge", ["consumer"], "Copies of dead letters that the dead-letter sink has not acknowledged yet; 0 without one.";
    ORDER_VIOLATIONS_TOTAL = "outboxd_order_violations_total", "counter", ["consumer"], "Deliveries that came after a later one of their key, by the daemon's own check: always 0. It remembers the last delivery of up to 4,096 keys.";
    REPLAYED_TOTAL = "outboxd_replayed_total", "counter", ["consumer"], "Events that were sent again on purpose, by a replay; they count nowhere else.";
    SINK_UP = "outboxd_sink_up", "gauge", ["consumer"], "1 while the sink acknowledges, 0 while it is unavailable or refuses as a whole.";
    SINK_BLOCKED = "outboxd_sink_blocked", "gauge", ["consumer"], "1 while the broker asks publishers to stop (an alarm).";
    RETRIES_TOTAL = "outboxd_retries_total", "counter", ["consumer", "reason"], "Attempts that failed, by reason.";
    IN_FLIGHT_EVENTS = "outboxd_in_flight_events", "gauge", ["consumer"], "Events read and not yet durably settled.";
    BUSY_TOTAL = "outboxd_busy_total", "counter", ["file", "code"], "Transactions that SQLite did not let through, by extended code.";
    LOCK_WAIT_SECONDS = "outboxd_lock_wait_seconds", "histogram", ["file"], "How long a transaction of ours waited for the write lock.";
    LOCK_HELD_SECONDS = "outboxd_lock_held_seconds", "histogram", ["file"], "How long a transaction of ours held the write lock.";
    TRANSACTIONS_TOTAL = "outboxd_transactions_total", "counter", ["file", "result"], "Transactions of ours by result: committed, retried, failed.";
    BARRIER_SECONDS = "outboxd_barrier_seconds", "histogram", ["source"], "How long it took to make what was read durable.";
    FILE_BYTES = "outboxd_file_bytes", "gauge", ["file", "part"], "Size of a database file by part: main, wal.";
    FREELIST_BYTES = "outboxd_freelist_bytes", "gauge", ["file"], "Bytes of pages that are free in the file, and are used again.";
    DISK_FREE_BYTES = "outboxd_disk_free_bytes", "gauge", ["file"], "Bytes that are free on the file's file system.";
    FILE_GROWTH_BYTES_PER_DAY = "outboxd_file_growth_bytes_per_day", "gauge", ["file"], "How fast the file grows, from the daemon's start on; 0 for its first ten minutes.";
    CHECKPOINT_BACKLOG_PAGES = "outboxd_checkpoint_backlog_pages", "gauge", ["file"], "Pages of the write-ahead log that stood in it alone when the daemon last looked: no checkpoint had copied them yet.";
    JOB_LAST_SUCCESS_TIMESTAMP_SECONDS = "outboxd_job_last_success_timestamp_seconds", "gauge", ["job"], "When the job last ended well; 0 when it never has.";
    JOB_DURATION_SECONDS = "outboxd_job_duration_seconds", "histogram", ["job"], "How long a run of the job took, however it ended.";
    JOB_RUNS_TOTAL = "outboxd_job_runs_total", "counter", ["job", "result"], "Runs of the job by result: done, failed, aborted (by a stop or a reload), killed (found at the next start).";
    BACKUP_VERIFIED_TIMESTAMP_SECONDS = "outboxd_backup_verified_timestamp_seconds", "gauge", ["job"], "When the newest backup in the job's folder had been opened and checked; 0 when there is none.";
    BACKUP_AT_TARGET_TIMESTAMP_SECONDS = "outboxd_backup_at_target_timestamp_seconds", "gauge", ["job"], "When the newest backup was begun that lies at the job's target off this host; after a start, until a run has looked: when the last run ended that went well; 0 when there was none.";
    DRILL_TIMESTAMP_SECONDS = "outboxd_drill_timestamp_seconds", "gauge", ["job"], "When the drill last took a backup back and found it sound; 0 when it never has.";
    JOB_PROGRESS_RATIO = "outboxd_job_progress_ratio", "gauge", ["job"], "Which part of the run under way is done, 0 to 1, of jobs that say so (backups); 0 when none is under way.";
    JOB_INFO = "outboxd_job_info", "gauge", ["job", "type"], "1, with the type of the job, as `[jobs.NAME]` says it.";
    SNAPSHOTS_TOTAL = "outboxd_snapshots_total", "counter", ["job"], "Snapshots that the job has written.";
    ARCHIVED_EVENTS_TOTAL = "outboxd_archived_events_total", "counter", ["job"], "Events that the job has moved to the archive.";
    ARCHIVE_HELD_BACK_EVENTS = "outboxd_archive_held_back_events", "gauge", ["job", "reason"], "Events that snapshots hold and that the last run left in the log, by reason: consumer, held, outbox, age.";
    RETENTION_DELETED_ROWS_TOTAL = "outboxd_retention_deleted_rows_total", "counter", ["job"], "Rows that the job has deleted because their time was over.";
    RETENTION_HELD_BACK_ROWS = "outboxd_retention_held_back_rows", "gauge", ["job", "reason"], "Rows whose time was over and that the last run left, by reason: consumer, held, outbox.";
    CONFIG_LAST_RELOAD_SUCCESSFUL = "outboxd_config_last_reload_successful", "gauge", [], "1 when the configuration was taken when it was last read, 0 when it was refused and the one before is still in force.";
    CONFIG_LAST_RELOAD_SUCCESS_TIMESTAMP_SECONDS = "outboxd_config_last_reload_success_timestamp_seconds", "gauge", [], "When a configuration was last taken, at the start or by a reload.";
    SOURCE_READY = "outboxd_source_ready", "gauge", ["source"], "1 while the source can be read.";
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransactionResult {
    Committed,
    Retried,
    Failed,
}

fn label(name: &'static str, value: &str) -> Label {
    Label::new(name, value.to_owned())
}

pub fn build_info() {
    gauge!(BUILD_INFO, vec![label("version", env!("CARGO_PKG_VERSION"))]).set(1.0);
}

/// A configuration was read; `taken` says when, in microseconds since 1970, `None` that it was refused.
pub fn config_read(taken: Option<i64>) {
    gauge!(CONFIG_LAST_RELOAD_SUCCESSFUL).set(f64::from(u8::from(taken.is_some())));
    if let Some(micros) = taken {
        gauge!(CONFIG_LAST_RELOAD_SUCCESS_TIMESTAMP_SECONDS).set(micros as f64 / 1e6);
    }
}

const JOB_RESULTS: [&str; 4] = ["done", "failed", "aborted", "killed"];

pub fn job_info(job: &str, kind: &'static str) {
    gauge!(JOB_INFO, vec![label("job", job), label("type", kind)]).set(1.0);
}

/// A job is known: its series stand from the start. `success` is when it last ended well, in microseconds since 1970.
pub fn job_is_known(job: &str, success: Option<i64>) {
    job_progress(job, 0.0);
    for result in JOB_RESULTS {
        counter!(JOB_RUNS_TOTAL, vec![label("job", job), label("result", result)]).increment(0);
    }
    gauge!(JOB_LAST_SUCCESS_TIMESTAMP_SECONDS, vec![label("job", job)]).set(success.unwrap_or(0) as f64 / 1e6);
}

pub fn backup_verified(job: &str, micros: i64) {
    gauge!(BACKUP_VERIFIED_TIMESTAMP_SECONDS, vec![label("job", job)]).set(micros as f64 / 1e6);
}

pub fn backup_at_target(job: &str, micros: i64) {
    gauge!(BACKUP_AT_TARGET_TIMESTAMP_SECONDS, vec![label("job", job)]).set(micros as f64 / 1e6);
}

pub fn drilled(job: &str, micros: i64) {
    gauge!(DRILL_TIMESTAMP_SECONDS, vec![label("job", job)]).set(micros as f64 / 1e6);
}

pub fn job_progress(job: &str, done: f64) {
    gauge!(JOB_PROGRESS_RATIO, vec![label("job", job)]).set(done);
}

pub fn snapshots_written(job: &str, count: u64) {
    counter!(SNAPSHOTS_TOTAL, vec![label("job", job)]).increment(count);
}

pub fn events_archived(job: &str, count: u64) {
    counter!(ARCHIVED_EVENTS_TOTAL, vec![label("job", job)]).increment(count);
}

pub fn archive_held_back(job: &str, reason: &'static str, count: u64) {
    gauge!(ARCHIVE_HELD_BACK_EVENTS, vec![label("job", job), label("reason", reason)]).set(count as f64);
}

pub fn rows_deleted(job: &str, count: u64) {
    counter!(RETENTION_DELETED_ROWS_TOTAL, vec![label("job", job)]).increment(count);
}

pub fn retention_held_back(job: &str, reason: &'static str, count: u64) {
    gauge!(RETENTION_HELD_BACK_ROWS, vec![label("job", job), label("reason", reason)]).set(count as f64);
}

/// A run has ended; `success` says when, where it was done.
pub fn job_ended(job: &str, result: &'static str, took: Option<Duration>, success: Option<i64>) {
    counter!(JOB_RUNS_TOTAL, vec![label("job", job), label("result", result)]).increment(1);
    if let Some(took) = took {
        histogram!(JOB_DURATION_SECONDS, vec![label("job", job)]).record(took);
    }
    if let Some(micros) = success {
        gauge!(JOB_LAST_SUCCESS_TIMESTAMP_SECONDS, vec![label("job", job)]).set(micros as f64 / 1e6);
    }
}

pub fn lock_wait(file: &str, waited: Duration) {
    histogram!(LOCK_WAIT_SECONDS, vec![label("file", file)]).record(waited);
}

pub fn lock_held(file: &str, held: Duration) {
    histogram!(LOCK_HELD_SECONDS, vec![label("file", file)]).record(held);
}

pub fn busy(file: &str, code: i32) {
    counter!(BUSY_TOTAL, vec![label("file", file), label("code", &code.to_string())]).increment(1);
}

pub fn transaction(file: &str, result: TransactionResult) {
    let result = match result {
        TransactionResult::Committed => "committed",
        TransactionResult::Retried => "retried",
        TransactionResult::Failed => "failed",
    };
    counter!(TRANSACTIONS_TOTAL, vec![label("file", file), label("result", result)]).increment(1);
}

/// What SQLite answers when another connection is in the way: BUSY, LOCKED, and what says more of BUSY.
const BUSY_CODES: [i32; 5] = [5, 6, 261, 517, 773];

/// A file is going to be written: its counters stand from the start, at zero.
pub fn file_is_written(file: &str) {
    for result in ["committed", "retried", "failed"] {
        counter!(TRANSACTIONS_TOTAL, vec![label("file", file), label("result", result)]).increment(0);
    }
    for code in BUSY_CODES {
        counter!(BUSY_TOTAL, vec![label("file", file), label("code", &code.to_string())]).increment(0);
    }
}

pub fn replayed(consumer: &str, events: u64) {
    counter!(REPLAYED_TOTAL, vec![label("consumer", consumer)]).increment(events);
}

pub fn dead_letters_copied(consumer: &str, copies: u64) {
    counter!(DEAD_LETTERS_COPIED_TOTAL, vec![label("consumer", consumer)]).increment(copies);
}

pub fn barrier(source: &str, took: Duration) {
    histogram!(BARRIER_SECONDS, vec![label("source", source)]).record(took);
}

pub fn file_bytes(file: &str, part: &'static str, bytes: u64) {
    gauge!(FILE_BYTES, vec![label("file", file), label("part", part)]).set(bytes as f64);
}

pub fn freelist_bytes(file: &str, bytes: u64) {
    gauge!(FREELIST_BYTES, vec![label("file", file)]).set(bytes as f64);
}

pub fn disk_free_bytes(file: &str, bytes: u64) {
    gauge!(DISK_FREE_BYTES, vec![label("file", file)]).set(bytes as f64);
}

pub fn growth_per_day(file: &str, bytes: f64) {
    gauge!(FILE_GROWTH_BYTES_PER_DAY, vec![label("file", file)]).set(bytes);
}

pub fn checkpoint_backlog(file: &str, pages: i64) {
    gauge!(CHECKPOINT_BACKLOG_PAGES, vec![label("file", file)]).set(pages as f64);
}

pub fn source_ready(source: &str, ready: bool) {
    gauge!(SOURCE_READY, vec![label("source", source)]).set(f64::from(u8::from(ready)));
}

/// The counters of one consumer, looked up once: nothing on the hot path hashes a name.
pub struct ConsumerMetrics {
    consumer: String,
    pub delivered: metrics::Counter,
    pub retrying: metrics::Counter,
    pub dead: metrics::Counter,
    pub skipped: metrics::Counter,
    pub waiting: metrics::Counter,
    pub redelivered: metrics::Counter,
    pub order_violations: metrics::Counter,
    pub event_to_ack: metrics::Histogram,
}

impl ConsumerMetrics {
    /// `reasons` is a closed set; every series stands from the start, at zero.
    pub fn new(consumer: &str, reasons: &[&'static str]) -> Self {
        let own = || vec![label("consumer", consumer)];
        let outcome = |outcome| {
            let counter = counter!(EVENTS_TOTAL, vec![label("consumer", consumer), label("outcome", outcome)]);
            counter.absolute(0);
            counter
        };
        for reason in reasons {
            counter!(RETRIES_TOTAL, vec![label("consumer", consumer), label("reason", reason)]).absolute(0);
        }
        let redelivered = counter!(REDELIVERED_TOTAL, own());
        redelivered.absolute(0);
        let order_violations = counter!(ORDER_VIOLATIONS_TOTAL, own());
        order_violations.absolute(0);
        replayed(consumer, 0);
        dead_letters_copied(consumer, 0);
        Self {
            consumer: consumer.to_owned(),
            delivered: outcome("delivered"),
            retrying: outcome("retrying"),
            dead: outcome("dead"),
            skipped: outcome("skipped"),
            waiting: outcome("waiting"),
            redelivered,
            order_violations,
            event_to_ack: histogram!(EVENT_TO_ACK_SECONDS, own()),
        }
    }

    pub fn retry(&self, reason: &'static str) {
        counter!(RETRIES_TOTAL, vec![label("consumer", &self.consumer), label("reason", reason)]).increment(1);
    }
}

/// The gauges of one consumer, set when somebody asks: a loop that has stopped does not freeze its lag.
pub struct ConsumerGauges<'a> {
    pub lag_seconds: f64,
    pub backlog: u64,
    pub in_flight: u64,
    pub held_keys: u64,
    pub held_oldest_seconds: f64,
    pub dead_letters: u64,
    pub dead_letter_copies: u64,
    pub sink_up: bool,
    pub sink_blocked: bool,
    pub state: &'a str,
    pub states: &'a [&'static str],
    pub position_is_ahead: bool,
}

impl ConsumerGauges<'_> {
    pub fn set(&self, consumer: &str) {
        let own = || vec![label("consumer", consumer)];
        gauge!(LAG_SECONDS, own()).set(self.lag_seconds);
        gauge!(BACKLOG_EVENTS, own()).set(self.backlog as f64);
        gauge!(IN_FLIGHT_EVENTS, own()).set(self.in_flight as f64);
        gauge!(HELD_KEYS, own()).set(self.held_keys as f64);
        gauge!(HELD_OLDEST_SECONDS, own()).set(self.held_oldest_seconds);
        gauge!(DEAD_LETTERS, own()).set(self.dead_letters as f64);
        gauge!(DEAD_LETTER_COPIES, own()).set(self.dead_letter_copies as f64);
        gauge!(SINK_UP, own()).set(f64::from(u8::from(self.sink_up)));
        gauge!(SINK_BLOCKED, own()).set(f64::from(u8::from(self.sink_blocked)));
        gauge!(CONSUMER_POSITION_AHEAD, own()).set(f64::from(u8::from(self.position_is_ahead)));
        for state in self.states {
            let labels = vec![label("consumer", consumer), label("state", state)];
            gauge!(CONSUMER_STATE, labels).set(f64::from(u8::from(*state == self.state)));
        }
    }
}

/// Tells the recorder what each metric means. Call once, after it is installed.
pub fn describe() {
    for metric in ALL {
        match metric.kind {
            "counter" => metrics::describe_counter!(metric.name, metric.help),
            "gauge" => metrics::describe_gauge!(metric.name, metric.help),
            _ => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}

/// docs/METRICS.md.
pub fn reference() -> String {
    let mut out = String::from(
        "# Metrics\n\n<!-- Generated by `outboxd config reference --metrics`; a test compares this file with the program. Do not edit it by \
         hand. -->\n\nLabels hold names from the config and closed sets only.\n\n| name | kind | labels | meaning |\n|---|---|---|---|\n",
    );
    for metric in ALL {
        let labels = metric.labels.join(", ");
        out.push_str(&format!("| `{}` | {} | {labels} | {} |\n", metric.name, metric.kind, metric.help));
    }
    out
}
