//! Whether this machine's clock goes behind the times that stand in the file system.

use std::fs;

use super::Patient;
use crate::clock;
use crate::remark::{Remark, word};
use crate::sqlite::place::beside;

/// Clocks of file systems are coarse.
const MICROS_MAX: i64 = 5_000_000;

pub(super) fn look(patient: &Patient<'_>) -> Vec<Remark> {
    let files = [patient.path.to_owned(), beside(patient.path, "-wal")];
    let written = |path: &std::path::PathBuf| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let newest = files.iter().filter_map(|path| Some((clock::micros_of(written(path)?), path))).max();
    let now = clock::now_micros();
    let Some((at, path)) = newest.filter(|(at, _)| at - now > MICROS_MAX) else {
        return vec![Remark::ok(format!("it is {}", clock::iso(now)))];
    };
    let evidence = format!(
        "{} was written at {}, and it is {}: the clock of this machine was set back, or is wrong",
        path.display(),
        clock::iso(at),
        clock::iso(now)
    );
    let remedy = "set the clock, and let a time service hold it (jobs run by it, and retries, delays and lags are told by it); once it is right, this \
                  ends the advice";
    vec![Remark::advice(evidence, remedy).with([format!("touch -c {}", word(&path.display().to_string()))])]
}
