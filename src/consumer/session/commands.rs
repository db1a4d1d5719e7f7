//! What operators ask of a running consumer. The work is done beside the loop, which goes on turning; one command at a time.

use serde_json::Value;
use std::time::Instant;

use super::{Answer, End, Health, Session, Surroundings};
use crate::consumer::control::{self, Command, Done, Reply};
use crate::sqlite::writer::JobError;
use crate::state::held::{self, HeldKey};

/// A command that has been carried out.
pub(super) enum Operated {
    Paused(Result<Value, JobError>, Reply),
    Resumed(Result<Value, JobError>, Reply),
    /// With the held keys as they are then, when they were changed.
    Done(Result<Done, JobError>, Option<Vec<HeldKey>>, Reply),
}

impl Session {
    pub(super) fn on_command(&mut self, command: Command, around: &mut Surroundings<'_>) {
        self.operating = true;
        let (writer, reader, settings) = (self.writer.clone(), self.reader.clone(), self.settings.clone());
        let answers = self.answers_tx.clone();
        if matches!(command, Command::Resume(_)) {
            *around.resumed = true;
        }
        tokio::spawn(async move {
            let name = &settings.name;
            let operated = match command {
                Command::Pause(reply) => Operated::Paused(control::set_paused(&writer, name, true).await, reply),
                Command::Resume(reply) => Operated::Resumed(control::set_paused(&writer, name, false).await, reply),
                Command::Operate(operation, reply) => {
                    let mut done = control::operate(&writer, &reader, &settings, operation).await;
                    let mut keys = None;
                    if let Ok(done) = &mut done
                        && done.changed_holds
                        && !done.restarts
                    {
                        let (name, retry_min) = (name.clone(), settings.bounds.retry_min);
                        keys = writer.perform(move |connection| held::keys(connection, &name, retry_min)).await.ok();
                        // What is held is not known any more: look at it from the start.
                        done.restarts = keys.is_none();
                    }
                    Operated::Done(done, keys, reply)
                }
            };
            let _ = answers.send(Answer::Operated(operated));
        });
    }

    pub(super) fn on_operated(&mut self, operated: Operated) {
        self.operating = false;
        match operated {
            Operated::Paused(result, reply) => {
                self.paused |= result.is_ok();
                let _ = reply.send(result);
            }
            Operated::Resumed(result, reply) => {
                self.paused &= result.is_err();
                if let Health::Backoff(until) = &mut self.health {
                    *until = Instant::now();
                }
                let _ = reply.send(result);
            }
            Operated::Done(result, keys, reply) => {
                if let Some(keys) = keys {
                    self.take_over(keys);
                }
                if result.as_ref().is_ok_and(|done| done.replays) {
                    self.beside.replays.notify_one();
                }
                if result.as_ref().is_ok_and(|done| done.restarts) {
                    self.end.get_or_insert(End::Restart);
                }
                let _ = reply.send(result.map(|done| done.value));
            }
        }
    }

    fn take_over(&mut self, keys: Vec<HeldKey>) {
        let held: Vec<_> =
            keys.iter().filter(|held| !self.holds.is_recorded(&held.key)).map(|held| held.key.clone()).collect();
        let freed = self.holds.load(keys, self.window.next_seq());
        for key in held {
            // A dead letter that was skipped comes back.
            self.order.excuse(key.clone());
            self.update.hold(key);
        }
        for key in freed {
            self.order.free(&key);
            self.update.free(key);
        }
        self.held_counts = None;
    }
}
