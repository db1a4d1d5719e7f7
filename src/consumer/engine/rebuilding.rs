//! `on_change = "rebuild"`: a projection makes the tables of another definition anew by itself, before it goes on.

use std::sync::{Arc, Mutex};

use super::{Engine, FILE_RETRY, Stop};
use crate::consumer::control::{self, Operation};
use crate::consumer::rebuild::{Failed, Purpose, Scratch};
use crate::source::reader::Halt;

impl Engine {
    pub(super) async fn rebuild(&mut self) -> Result<(), Stop> {
        let refused = |error: &dyn std::fmt::Display| {
            Stop::Halted(Halt::new(format!("its tables could not be made anew: {error}")))
        };
        let tables = self.settings.destination.tables().expect("only projections are rebuilt").clone();
        tracing::info!(event = "rebuild_began", consumer = %self.settings.name, definition = %tables.hash());
        // Written by the run, read by whoever is told what is waited for.
        let progress = Arc::new(Mutex::new(String::new()));
        let told = |progress: &Arc<Mutex<String>>| {
            let progress = progress.lock().expect("no panic happens under this lock").clone();
            Some(format!("its definition has changed, and its tables are made anew beside the old ones{progress}"))
        };
        loop {
            let (source, settings) = (self.source.clone(), self.settings.clone());
            let noted = progress.clone();
            let run = async move {
                let scratch = Scratch::claim(&settings, Purpose::Rebuild);
                let scratch = scratch.map_err(|error| Failed::Away(error.to_string()))?;
                scratch.take_over();
                let mut look = |status: &crate::consumer::status::Status| {
                    let text = format!(": at {} of {}", status.position, status.head.unwrap_or(status.position));
                    *noted.lock().expect("no panic happens under this lock") = text;
                };
                scratch.make(&source, None, &mut look).await
            };
            let seen = progress.clone();
            match self.during(move || told(&seen), run).await? {
                Ok(()) => break,
                Err(Failed::Halted(why)) => return Err(refused(&why)),
                Err(Failed::Away(why)) => {
                    self.during(move || Some(why.clone()), tokio::time::sleep(FILE_RETRY)).await?;
                }
            }
        }
        let writer = self.writer().await?;
        let (reader, settings) = (self.reader.clone(), self.settings.clone());
        let swap = Operation::Swap { hash: tables.hash(), with_dead_letters: false };
        let swap = async move { control::operate(&writer, &reader, &settings, swap).await };
        self.during(|| None, swap).await?.map_err(|error| refused(&error))?;
        tracing::info!(event = "rebuild_swapped", consumer = %self.settings.name);
        Ok(())
    }
}
