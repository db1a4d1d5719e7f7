//! The file sink's rig, and what only a file can do.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use outboxd::sink::file::{File, Settings};
use outboxd::sink::format::{Format, envelope};
use outboxd::sink::{FaultClass, Outcome, Port, Sink};

use super::rig::{Case, Message, Rig};
use crate::support::flights::{Draft, Tower};

crate::sink_contract!(FileRig);

struct FileRig {
    folder: tempfile::TempDir,
}

impl FileRig {
    fn path(&self) -> PathBuf {
        self.folder.path().join("out/events.ndjson")
    }

    fn settings(&self) -> Settings {
        Settings { path: Some(self.path()), format: Format::Envelope, ..Settings::default() }
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.path()).unwrap()
    }
}

impl Rig for FileRig {
    const AWAY: FaultClass = FaultClass::Fatal;

    async fn new() -> Self {
        let rig = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(rig.folder.path().join("out")).unwrap();
        rig
    }

    async fn alone() -> Self {
        Self::new().await
    }

    fn open(&self, port: Port, case: Case) -> Box<dyn Sink> {
        let mut settings = self.settings();
        match case {
            Case::Routing => settings.format = Format::Plain,
            Case::Nowhere => settings.path = Some(self.folder.path().join("nowhere/events.ndjson")),
            Case::Ordinary | Case::Small => {}
        }
        Box::new(File::new(settings, port))
    }

    fn make_unroutable(&self, draft: &mut Draft) {
        draft.payload = b"two\nlines".to_vec();
    }

    fn make_oversize(&self, _draft: &mut Draft) -> bool {
        false
    }

    async fn arrived(&self, _least: usize) -> Vec<Message> {
        let message = |line: &str| match envelope::read(line.as_bytes()) {
            Ok(kept) => Message {
                id: kept.id,
                kind: kept.kind,
                key: String::from_utf8(kept.key.unwrap()).unwrap(),
                body: kept.payload.unwrap(),
                headers: serde_json::from_str(&kept.headers.unwrap()).unwrap(),
            },
            Err(_) => Message {
                id: String::new(),
                kind: String::new(),
                key: String::new(),
                body: line.into(),
                headers: Default::default(),
            },
        };
        self.text().lines().map(message).collect()
    }

    async fn stop(&self) {
        std::fs::rename(self.folder.path().join("out"), self.folder.path().join("away")).unwrap();
    }

    async fn start(&self) {
        std::fs::rename(self.folder.path().join("away"), self.folder.path().join("out")).unwrap();
    }

    async fn pause(&self) {}

    fn shows_own_headers(&self) -> bool {
        true
    }
}

async fn opened(rig: &FileRig, tower: &Tower) -> Box<dyn Sink> {
    let mut sink: Box<dyn Sink> = Box::new(File::new(rig.settings(), tower.port.clone()));
    sink.check(Duration::from_secs(5)).await.unwrap();
    sink
}

#[tokio::test]
async fn a_torn_end_is_cut_and_good_lines_stay() {
    let rig = FileRig::new().await;
    let mut tower = Tower::new("contract");
    let mut sink = opened(&rig, &tower).await;
    tower.send(&mut *sink, &[Draft::nth("t", 0)]).await;
    sink.close().await;
    let good = rig.text();
    let mut file = std::fs::OpenOptions::new().append(true).open(rig.path()).unwrap();
    file.write_all(b"{\"id\":\"torn\n\0\0\0\0\n{\"id\"").unwrap();
    let mut sink = opened(&rig, &tower).await;
    assert_eq!(rig.text(), good);
    assert_eq!(tower.send(&mut *sink, &[Draft::nth("t", 1)]).await, [Outcome::Delivered]);
    assert_eq!(rig.text().lines().count(), 2);
    sink.close().await;
}

#[tokio::test]
async fn a_file_that_is_not_ours_is_left_alone() {
    let rig = FileRig::new().await;
    std::fs::write(rig.path(), "root:x:0:0\n").unwrap();
    let mut sink = File::new(rig.settings(), Tower::new("contract").port);
    assert_eq!(sink.check(Duration::from_secs(5)).await.unwrap_err().class, FaultClass::Fatal);
    assert_eq!(rig.text(), "root:x:0:0\n");
}

#[tokio::test]
async fn a_file_takes_one_relay() {
    let rig = FileRig::new().await;
    let tower = Tower::new("contract");
    let first = opened(&rig, &tower).await;
    let mut second = File::new(rig.settings(), tower.port.clone());
    let fault = second.check(Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Fatal);
    assert!(fault.detail.contains("events.ndjson"), "{}", fault.detail);
    first.close().await;
    second.check(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test]
async fn a_file_renamed_away_is_not_written_to_again() {
    let rig = FileRig::new().await;
    let mut tower = Tower::new("contract");
    let mut sink = opened(&rig, &tower).await;
    tower.send(&mut *sink, &[Draft::nth("r", 0)]).await;
    let rotated = rig.folder.path().join("rotated");
    std::fs::rename(rig.path(), &rotated).unwrap();
    let outcomes = tower.send(&mut *sink, &[Draft::nth("r", 1)]).await;
    assert!(matches!(outcomes[..], [Outcome::Unavailable(_)]), "{outcomes:?}");
    sink.check(Duration::from_secs(5)).await.unwrap();
    assert_eq!(tower.send(&mut *sink, &[Draft::nth("r", 1)]).await, [Outcome::Delivered]);
    assert_eq!(std::fs::read_to_string(rotated).unwrap().lines().count(), 1);
    assert_eq!(rig.text().lines().count(), 1);
    sink.close().await;
}
