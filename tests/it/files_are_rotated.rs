//! A file sink's full files are renamed away, whole, between two lines: whoever reads along, and whoever reads back, has every line once and in
//! order. (A crash in between: `nor_with_files_that_rotate`.)

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use outboxd::sink::file::{self, Rotation, Settings, rotated};
use outboxd::sink::format::Format;
use outboxd::sink::{Outcome, Sink};

use crate::support::application::Application;
use crate::support::flights::{Draft, Tower};
use crate::support::process::{SHOP, Scene, shared_machine};
use crate::support::relays::relay;
use crate::support::wait::until;

const PATIENCE: Duration = Duration::from_secs(120);

fn settings(path: &Path, rotation: Rotation) -> Settings {
    Settings { path: Some(path.into()), format: Format::Envelope, rotation }
}

async fn opened(path: &Path, rotation: Rotation, tower: &Tower) -> Box<dyn Sink> {
    let mut sink: Box<dyn Sink> = Box::new(file::File::new(settings(path, rotation), tower.port.clone()));
    sink.check(Duration::from_secs(5)).await.unwrap();
    sink
}

/// The ids in a file, every line of which is whole.
fn ids(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{} ends in the middle of a line", path.display());
    ids_in(&text)
}

fn ids_in(text: &str) -> Vec<String> {
    let id = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        line["id"].as_str().unwrap().to_owned()
    };
    text.lines().map(id).collect()
}

/// All of them, in the order of the files.
fn all_ids(path: &Path) -> Vec<String> {
    rotated(path).unwrap().iter().map(PathBuf::as_path).chain([path]).flat_map(ids).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_never_exceeds_its_size_but_for_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.ndjson");
    let mut tower = Tower::new("rotation");
    let bytes = 4096;
    let mut sink = opened(&path, Rotation { bytes: Some(bytes), every: None }, &tower).await;
    let mut drafts: Vec<_> = (0..300).map(|n| Draft::nth("r", n)).collect();
    // Larger by itself than a file may be; and one that is larger than what is handed to the kernel at once.
    drafts[100].payload = vec![b'x'; 10_000];
    drafts[200].payload = vec![b'x'; 3 << 20];
    for flight in drafts.chunks(70) {
        assert!(tower.send(&mut *sink, flight).await.iter().all(|outcome| *outcome == Outcome::Delivered));
    }
    sink.close().await;
    assert_eq!(all_ids(&path), (0..300).map(|n| format!("r-{n}")).collect::<Vec<_>>());
    let files = rotated(&path).unwrap();
    assert!(files.len() > 10, "{}", files.len());
    for file in &files {
        let (size, ids) = (std::fs::metadata(file).unwrap().len(), ids(file));
        assert!(size <= bytes || ids == ["r-100"] || ids == ["r-200"], "{} has {size} bytes", file.display());
        assert!(!ids.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_period_begins_a_new_file_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.ndjson");
    let mut tower = Tower::new("rotation");
    let hourly = Rotation { bytes: None, every: Some(Duration::from_secs(3600)) };
    // A file of its own for each, as far as it is known: the time it was last written to.
    for n in 0..3 {
        let mut sink = opened(&path, hourly, &tower).await;
        assert_eq!(tower.send(&mut *sink, &[Draft::nth("h", n)]).await, [Outcome::Delivered]);
        sink.close().await;
        let past = SystemTime::now() - Duration::from_secs(2 * 3600);
        File::options().write(true).open(&path).unwrap().set_modified(past).unwrap();
    }
    assert_eq!(rotated(&path).unwrap().len(), 2);
    assert_eq!(all_ids(&path), ["h-0", "h-1", "h-2"]);
    // While it runs, by the clock.
    let mut sink = opened(&path, Rotation { bytes: None, every: Some(Duration::from_secs(1)) }, &tower).await;
    let (mut n, end) = (3, SystemTime::now() + PATIENCE);
    while rotated(&path).unwrap().len() < 5 {
        assert!(SystemTime::now() < end, "no new file within {PATIENCE:?}");
        assert_eq!(tower.send(&mut *sink, &[Draft::nth("h", n)]).await, [Outcome::Delivered]);
        n += 1;
    }
    sink.close().await;
    assert_eq!(all_ids(&path), (0..n).map(|n| format!("h-{n}")).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_fails_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.ndjson");
    let mut tower = Tower::new("rotation");
    let mut sink = opened(&path, Rotation { bytes: Some(1024), every: None }, &tower).await;
    let drafts: Vec<_> = (0..20).map(|n| Draft::nth("f", n)).collect();
    // Somebody takes the file away in the middle: nothing more is written to it, and nobody is told that anything was.
    assert_eq!(tower.send(&mut *sink, &drafts[..1]).await, [Outcome::Delivered]);
    let away = folder.path().join("away");
    std::fs::rename(&path, &away).unwrap();
    let outcomes = tower.send(&mut *sink, &drafts[1..]).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Unavailable(_))), "{outcomes:?}");
    sink.check(Duration::from_secs(5)).await.unwrap();
    assert!(tower.send(&mut *sink, &drafts[1..]).await.iter().all(|outcome| *outcome == Outcome::Delivered));
    sink.close().await;
    assert_eq!((ids(&away), all_ids(&path)), (vec!["f-0".into()], (1..20).map(|n| format!("f-{n}")).collect()));
}

/// Reads what is appended and, when the file was renamed away, all that followed: as a person would write it from docs/CONFIG.md.
struct Follower {
    path: PathBuf,
    open: Option<(File, PathBuf)>,
    /// Taken of it: lines with their ends. What has none yet may be taken back.
    bytes: u64,
    text: String,
}

impl Follower {
    fn step(&mut self) {
        // Looked for before the end is read: a file that was renamed away is whole, and this one follows it.
        let next = self.next();
        if let Some((file, _)) = &mut self.open {
            let mut read = Vec::new();
            file.seek(SeekFrom::Start(self.bytes)).unwrap();
            file.read_to_end(&mut read).unwrap();
            read.truncate(read.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1));
            self.bytes += read.len() as u64;
            self.text.push_str(std::str::from_utf8(&read).unwrap());
        }
        if next.is_some() {
            (self.open, self.bytes) = (next, 0);
        }
    }

    /// The file behind the one that is open, if there is one: opened, and then looked for again, because names move.
    fn next(&self) -> Option<(File, PathBuf)> {
        let place = |file: &File| {
            let ours = file.metadata().unwrap().ino();
            self.files().iter().position(|path| std::fs::metadata(path).is_ok_and(|meta| meta.ino() == ours))
        };
        let at = || self.open.as_ref().map_or(Some(0), |(file, _)| Some(place(file)? + 1));
        let path = self.files().get(at()?)?.clone();
        let file = File::open(&path).ok()?;
        (place(&file) == at()).then_some((file, path))
    }

    fn files(&self) -> Vec<PathBuf> {
        rotated(&self.path).unwrap().into_iter().chain([self.path.clone()]).collect()
    }
}

#[test]
fn a_reader_follows_kills_and_an_audit_reads_the_files_in_order() {
    let _machine = shared_machine();
    let sink =
        "\n[sinks.lines]\ntype = \"file\"\npath = \"lines.ndjson\"\nrotate_bytes = \"16KiB\"\nrotate_every = \"1s\"\n";
    let scene = Scene::new(&[SHOP, sink, &relay("lines", "window_events = 50")].concat());
    let path = scene.path("lines.ndjson");
    let done = Arc::new(AtomicBool::new(false));
    let following = std::thread::spawn({
        let (done, path) = (done.clone(), path.clone());
        move || {
            let mut follower = Follower { path, open: None, bytes: 0, text: String::new() };
            loop {
                let was_done = done.load(Ordering::SeqCst);
                let before = (follower.text.len(), follower.open.as_ref().map(|(_, path)| path.clone()));
                follower.step();
                let after = (follower.text.len(), follower.open.as_ref().map(|(_, path)| path.clone()));
                if was_done && before == after {
                    return follower.text;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let mut application = Application::open(&scene.path("app.db"), 20);
    let count = 2_000;
    for round in 0..4 {
        let mut daemon = scene.daemon();
        application.write(count / 4);
        // Killed in the middle of it, but for the last time.
        let lines = || rotated(&path).unwrap().len();
        let before = lines();
        match round {
            3 => drop(daemon.until_settled("to_lines", application.head(), PATIENCE)),
            _ => until("some are rotated", PATIENCE, || (lines() > before + 2).then_some(())),
        }
        if round < 3 { daemon.kill() } else { assert_eq!(daemon.stop(PATIENCE).0, Some(0)) }
    }
    done.store(true, Ordering::SeqCst);
    let followed = following.join().unwrap();
    let files = rotated(&path).unwrap().len();
    assert!(files > 20, "{files}");
    let all = all_ids(&path);
    let distinct: std::collections::HashSet<&String> = all.iter().collect();
    assert_eq!(distinct.len(), count);
    assert!(all.len() <= count + 3 * 50, "{} lines: more than the window came again after a kill", all.len());
    assert_eq!(ids_in(&followed), all, "a follower has what stands in the files, each line once and in order");
    let output = scene.outboxd(&["audit", "--json", "to_lines"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["clean"]), (Some(0), &true.into()), "{report:#}");
    // It has really read them: without one, its events are missed.
    let some = rotated(&path).unwrap().swap_remove(files / 2);
    let missed = ids(&some).into_iter().collect::<std::collections::HashSet<_>>();
    std::fs::rename(&some, scene.path("kept")).unwrap();
    let report: serde_json::Value =
        serde_json::from_slice(&scene.outboxd(&["audit", "--json", "to_lines"]).stdout).unwrap();
    let lost = report["lost"]["count"].as_u64().unwrap();
    assert!(lost > 0 && lost <= missed.len() as u64, "{lost} of {}: {report:#}", missed.len());
    let older = scene.outboxd(&["audit", "--json", "to_lines", "--older", "kept"]);
    let report: serde_json::Value = serde_json::from_slice(&older.stdout).unwrap();
    assert_eq!(report["lost"]["count"], 0, "{report:#}");
}
