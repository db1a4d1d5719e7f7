//! An application with an outbox, and its own book of what it was told is committed.

use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, params};

use super::dice::Dice;
use super::referee::{Entry, Ledger, Print};

/// What it inserts.
#[derive(Clone, Debug)]
pub struct Row {
    pub key: String,
    pub stream_type: String,
    pub payload: Vec<u8>,
}

impl Row {
    pub fn of(key: &str) -> Self {
        Self { key: key.into(), stream_type: "order".into(), payload: br#"{"total": 7}"#.to_vec() }
    }

    pub fn to(self, stream_type: &str) -> Self {
        Self { stream_type: stream_type.into(), ..self }
    }

    /// With a payload that no other event has.
    fn telling(self, n: usize) -> Self {
        Self { payload: format!("{{\"total\": 7, \"note\": \"entry {n} — ünïcödé\"}}").into_bytes(), ..self }
    }

    pub fn heavy(self, bytes: usize) -> Self {
        Self { payload: vec![b'x'; bytes], ..self }
    }
}

pub struct Application {
    connection: Connection,
    keys: usize,
    /// How many events each key has had.
    numbers: std::collections::HashMap<String, u32>,
    /// What COMMIT returned for, in order; it stands in a file of its own, too.
    pub ledger: Ledger,
    /// When each COMMIT returned, in milliseconds since 1970.
    pub committed_millis: Vec<i64>,
}

impl Application {
    /// As most do it: WAL, synchronous NORMAL.
    pub fn open(path: &Path, keys: usize) -> Self {
        let connection = Connection::open(path).unwrap();
        connection.pragma_update(None, "journal_mode", "wal").unwrap();
        connection.pragma_update(None, "synchronous", "normal").unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        let ledger = Ledger::create(&Ledger::path_of(path));
        let numbers = std::collections::HashMap::new();
        Self { connection, keys, numbers, ledger, committed_millis: Vec::new() }
    }

    /// One transaction. Returns the ids, and writes them into the book once it is committed.
    pub fn commit(&mut self, rows: &[Row]) -> Vec<String> {
        let first = self.ledger.len();
        let transaction = self.connection.transaction().unwrap();
        let mut entries = Vec::with_capacity(rows.len());
        {
            let mut insert = transaction
                .prepare_cached(
                    "INSERT INTO outbox (id, stream_id, stream_type, type, payload) VALUES (?1, ?2, ?3, 'Happened', ?4)",
                )
                .unwrap();
            for (n, row) in rows.iter().enumerate() {
                let number = self.numbers.entry(row.key.clone()).or_default();
                *number += 1;
                let id = format!("event-{}", first + n);
                insert.execute(params![id, row.key, row.stream_type, row.payload]).unwrap();
                let body = Print::of(&row.payload);
                entries.push(Entry { id, key: row.key.clone(), number: *number, body });
            }
        }
        transaction.commit().unwrap();
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        self.committed_millis.push(since_1970.as_millis() as i64);
        self.ledger.append(entries);
        self.ledger[first..].iter().map(|entry| entry.id.clone()).collect()
    }

    /// So many ordinary events, over all its keys, in transactions of 100.
    pub fn write(&mut self, count: usize) {
        let mut left = count;
        while left > 0 {
            let rows: Vec<_> = (0..left.min(100)).map(|n| self.ordinary(self.ledger.len() + n)).collect();
            left -= rows.len();
            self.commit(&rows);
        }
    }

    fn ordinary(&self, n: usize) -> Row {
        Row::of(&format!("key-{}", n % self.keys)).telling(n)
    }

    /// Goes on writing on a thread of its own until it has written `count` events, at `per_second` on the average: in bursts of up to
    /// 5,000, in transactions of 1 to 200.
    pub fn flow(mut self, count: usize, per_second: f64, mut dice: Dice) -> JoinHandle<Self> {
        std::thread::spawn(move || {
            let start = Instant::now();
            let mut written = 0;
            while written < count {
                let burst = (1 + dice.below(5000) as usize).min(count - written);
                let mut left = burst;
                while left > 0 {
                    let rows: Vec<_> = (0..(1 + dice.below(200) as usize).min(left))
                        .map(|n| {
                            Row::of(&format!("key-{}", dice.below(self.keys as u64))).telling(self.ledger.len() + n)
                        })
                        .collect();
                    left -= rows.len();
                    self.commit(&rows);
                }
                written += burst;
                let due = Duration::from_secs_f64(written as f64 / per_second);
                std::thread::sleep(due.saturating_sub(start.elapsed()));
            }
            self
        })
    }

    /// The newest position.
    pub fn head(&self) -> i64 {
        self.connection.query_row("SELECT coalesce(max(position), 0) FROM outbox", [], |row| row.get(0)).unwrap()
    }
}
