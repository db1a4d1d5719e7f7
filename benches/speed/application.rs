//! An application that writes one event a transaction, at a steady pace.

use std::path::Path;

use crate::load::{self, Draft};
use crate::meter::{Beat, monotonic_nanos};

/// Position of each event, and when its COMMIT returned.
pub fn write(database: &Path, events: usize, per_second: usize) -> Vec<(i64, i64)> {
    let connection = load::open(database);
    let mut draft = Draft::default();
    let beat = Beat::new(per_second);
    (0..events)
        .map(|n| {
            std::thread::sleep(beat.wait(n));
            // The first of the file was written before.
            draft.make(n + 1, 256);
            connection.execute_batch("BEGIN IMMEDIATE").expect("within the busy timeout");
            load::insert(&connection, &draft);
            let position = connection.last_insert_rowid();
            connection.execute_batch("COMMIT").expect("the disk has room");
            (position, monotonic_nanos())
        })
        .collect()
}
