//! All consumers of this daemon: each runs on a task of its own; one's trouble never stops another.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::Settings;
use super::control::{Command, Reply};
use super::engine::{Engine, Locked, WhenLocked};
use super::status::Status;
use crate::shutdown::Phase;
use crate::source::{self, reader::Reader};
use crate::sqlite::writer::JobError;
use crate::state::files::Files;

/// What others hold of a running consumer.
#[derive(Clone, Debug)]
pub struct Handle {
    pub name: String,
    commands: UnboundedSender<Command>,
    pub status: watch::Receiver<Status>,
}

impl Handle {
    /// Sends a command and waits for its answer.
    pub async fn ask(&self, command: impl FnOnce(Reply) -> Command) -> Result<serde_json::Value, JobError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| JobError::Ended)?;
        answer.await.map_err(|_| JobError::Ended)?
    }
}

pub struct Fleet {
    pub handles: Vec<Handle>,
    tasks: JoinSet<Result<(), Locked>>,
}

impl Fleet {
    /// Starts a reader for every source that a relay reads, and every relay.
    pub fn spawn(
        sources: &BTreeMap<String, source::Settings>,
        relays: Vec<Settings>,
        when_locked: WhenLocked,
        shutdown: &watch::Receiver<Phase>,
    ) -> std::io::Result<Self> {
        let files = Files::default();
        let mut readers: BTreeMap<String, Reader> = BTreeMap::new();
        let mut handles = Vec::new();
        let mut tasks = JoinSet::new();
        for settings in relays {
            let source = sources.get(&settings.source).expect("the config was resolved: every relay's source is there");
            let reader = match readers.get(&settings.source) {
                Some(reader) => reader.clone(),
                None => {
                    let reader = Reader::start(source.clone())?;
                    readers.insert(settings.source.clone(), reader.clone());
                    reader
                }
            };
            let (commands, queue) = mpsc::unbounded_channel();
            let (status_tx, status) =
                watch::channel(Status::new(&settings.name, &settings.source, &settings.sink_name));
            handles.push(Handle { name: settings.name.clone(), commands, status });
            let engine = Engine {
                settings: Arc::new(settings),
                source: Arc::new(source.clone()),
                reader,
                files: files.clone(),
                when_locked,
                commands: queue,
                shutdown: shutdown.clone(),
                status: status_tx,
                resumed: false,
            };
            tasks.spawn(engine.run());
        }
        Ok(Self { handles, tasks })
    }

    /// Ends everything at once, as a crash would; harmless by the guarantees.
    pub async fn cut(mut self) {
        self.tasks.shutdown().await;
    }

    /// Waits until every consumer has ended, or one says that the daemon must.
    pub async fn ended(&mut self) -> Result<(), Locked> {
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a consumer that panics is a bug: the daemon must not go on as if nothing were")?;
        }
        Ok(())
    }
}
