//! How long a backup takes, beside a bare `VACUUM INTO` of the same file; how far the application's `-wal` grows meanwhile, and how long its commits take.
//!
//! The binary is run as a user runs it, `outboxd backup now`; how long its parts took it says itself. The file holds events of 600 bytes, half of which
//! no compressor makes smaller.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rusqlite::Connection;
use serde_json::Value;

use crate::load;
use crate::meter::{Pace, median};
use crate::table::Table;

const ROW_BYTES: usize = 640;
/// The application's commits.
const PER_SECOND: usize = 500;

struct Shop {
    folder: tempfile::TempDir,
    app: Connection,
}

/// What one backup took, in seconds.
struct Took {
    copied: f64,
    all: f64,
}

impl Shop {
    fn of(mib: usize) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("app.db");
        let app = load::fill(&path, 1, 256);
        let rows = mib * (1 << 20) / ROW_BYTES;
        let sql = format!(
            "CREATE TABLE parts (n INTEGER PRIMARY KEY, body TEXT);
             WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {rows})
             INSERT INTO parts SELECT n, printf('{{\"n\":%d,\"note\":\"%0250d\",\"code\":\"%s\"}}', n, n % 1000, hex(randomblob(150))) FROM n"
        );
        app.execute_batch(&sql).expect("the disk has room");
        app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("nobody else reads");
        let config = "[sources.shop]\npath = \"app.db\"\npreset = \"outboxd\"\nread = \"outbox\"\n[jobs.nightly]\ntype = \"backup\"\nfiles = [\"app.db\"]\n\
                      target = \"kept\"\nschedule = \"0 3 * * *\"\nkeep = { daily = 1 }\n";
        std::fs::write(folder.path().join("outboxd.toml"), config).expect("the folder is there");
        Self { folder, app }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What was written before is on the disk, and no copy of before is there.
    fn begin(&self) {
        for left in [self.path("bare.db"), self.path("kept")] {
            // What is not there need not be removed.
            let _ = if left.is_dir() { std::fs::remove_dir_all(left) } else { std::fs::remove_file(left) };
        }
        rustix::fs::sync();
    }

    fn bare(&self) -> f64 {
        let reader = load::open(&self.path("app.db"));
        reader.execute_batch("PRAGMA synchronous = FULL").expect("it is known");
        let to = self.path("bare.db");
        let began = Instant::now();
        reader.execute("VACUUM INTO ?1", [to.to_str().expect("it is text")]).expect("the disk has room");
        began.elapsed().as_secs_f64()
    }

    fn job(&self) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outboxd"));
        command.args(["--json", "backup", "now"]).current_dir(self.folder.path()).stdout(Stdio::piped());
        command.spawn().expect("it can be started")
    }

    fn ended(&self, job: Child) -> Took {
        let output = job.wait_with_output().expect("it can be waited for");
        let answer: Value = serde_json::from_slice(&output.stdout).expect("it answers");
        let detail = answer["run"]["detail"].as_str().expect("it tells").to_owned();
        let copied = detail.split("copied in ").nth(1).and_then(|rest| rest.split(" s").next()?.parse().ok());
        let all = answer["run"]["duration_seconds"].as_f64().expect("it has ended");
        Took { copied: copied.expect("it says how long that took"), all }
    }

    /// The application's commits, as long as this says, in nanoseconds; and how large its `-wal` became.
    fn commits(&self, mut goes_on: impl FnMut(usize) -> bool) -> (Vec<i64>, u64) {
        let mut wal = 0;
        let took = load::commits(&self.app, PER_SECOND, |n| {
            wal = wal.max(size(&self.path("app.db-wal")));
            goes_on(n)
        });
        (took, wal)
    }
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.len())
}

pub fn measure(mib: usize, rounds: usize, table: &mut Table) {
    let shop = Shop::of(mib);
    let (mut bare, mut copied, mut all) = (Vec::new(), Vec::new(), Vec::new());
    let (mut alone, mut beside, mut wals) = (Vec::new(), Vec::new(), [0, 0]);
    for round in 0..rounds {
        for side in [round % 2, (round + 1) % 2] {
            shop.begin();
            match side {
                0 => bare.push(shop.bare()),
                _ => {
                    let took = shop.ended(shop.job());
                    copied.push(took.copied);
                    all.push(took.all);
                }
            }
        }
        eprintln!(
            "backup, round {}: bare {:.2} s, copied {:.2} s, all {:.2} s",
            round + 1,
            bare[round],
            copied[round],
            all[round]
        );
        shop.begin();
        let mut job = shop.job();
        let (nanos, wal) = shop.commits(|_| job.try_wait().expect("it can be asked").is_none());
        shop.ended(job);
        rustix::fs::sync();
        let (quiet, wal_alone) = shop.commits(|n| n < nanos.len());
        wals = [wals[0].max(wal_alone), wals[1].max(wal)];
        for (side, nanos) in [(&mut alone, quiet), (&mut beside, nanos)] {
            side.push(Pace::of(nanos));
        }
        eprintln!("the application's commits, round {}: alone {}, beside {}", round + 1, alone[round], beside[round]);
    }
    let mib = size(&shop.path("app.db")) >> 20;
    let [bare, copied, all] = [bare, copied, all].map(median);
    table.amount(&format!("backup of {mib} MiB: copied, beside VACUUM INTO"), "s", bare, copied);
    table.amount(&format!("backup of {mib} MiB: the whole chain, beside VACUUM INTO"), "s", bare, all);
    let [wal_alone, wal] = wals.map(|bytes| bytes as f64 / 1e6);
    table.amount("the application's -wal at most, alone and beside a backup", "MB", wal_alone, wal);
    let [alone, beside] = [alone, beside].map(|results| Pace::median(&results));
    table.pace(&format!("an application's commits at {PER_SECOND}/s, alone and beside a backup"), &alone, &beside);
}
