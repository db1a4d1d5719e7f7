//! Copies of backups at a target off this host: sent behind the local one, listed and pruned like those here, brought back where they are wanted.
//!
//! A backup lies at the target when its manifest does, which is put last and taken away first: whatever ends a run leaves a whole backup there or
//! none, and what is left of one that was not sent whole is sent on, or removed, by the next run (`whatever_ends_a_run_leaves_whole_backups_at_the_target`).
//! What comes back is held against its manifest before anybody opens it (`a_copy_that_is_not_what_was_sent_is_refused`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::manifest::{self, Copied, Manifest};
use super::shelf::{self, Entry, Lies, Making};
use super::target::{Put, Session};
use super::{Backups, copy};
use crate::clock;
use crate::controls::{self, Protection, Seam};
use crate::maintenance::{Failure, Stop};
use crate::telemetry::metric;

/// What a run has done at the target.
#[derive(Debug, Default)]
pub struct Sent {
    pub backups: usize,
    pub removed: usize,
    /// What bears the name of a backup there and is none, or another.
    pub wrong: Vec<String>,
}

/// The backups, wherever they lie.
#[derive(Debug)]
pub struct Everywhere {
    /// The oldest first.
    pub entries: Vec<Entry>,
    /// Why those at the target are not among them.
    pub unseen: Option<Failure>,
}

/// A backup that can be opened: where it lies, or brought here for a while.
#[derive(Debug)]
pub struct AtHand {
    pub entry: Entry,
    brought: Option<Making>,
}

impl Drop for AtHand {
    fn drop(&mut self) {
        if let Some(brought) = self.brought.take() {
            // What stays begins with a dot: the next run removes it.
            drop(brought.give_up());
        }
    }
}

impl Backups {
    /// The target beside the folder, as it was said.
    pub fn target_url(&self) -> Option<&str> {
        self.target.as_ref().map(|target| target.url.as_str())
    }

    /// Those in the folder and those at the target. One that cannot be asked hides nothing of what lies here.
    pub fn everywhere(&self, stop: &Stop) -> Result<Everywhere, Failure> {
        let mut entries = if self.shelf.folder.exists() { self.entries()? } else { Vec::new() };
        let Some(target) = &self.target else { return Ok(Everywhere { entries, unseen: None }) };
        match target.open(stop).and_then(|session| self.there(&session)) {
            Err(Failure::Aborted) => Err(Failure::Aborted),
            Err(failure) => Ok(Everywhere { entries, unseen: Some(failure) }),
            Ok(there) => {
                for one in there.into_iter().filter_map(Stored::listed) {
                    match entries.iter_mut().find(|entry| entry.name == one.name) {
                        Some(entry) if entry.manifest.is_ok() && entry.manifest == one.manifest => {
                            entry.lies = Lies::Both
                        }
                        // Another under the same name is shown as what it is.
                        _ => entries.push(one),
                    }
                }
                // Of two under one name the one that lies here is the later: it is taken where one is chosen.
                entries.sort_by_key(|entry| (entry.time, entry.lies != Lies::There));
                Ok(Everywhere { entries, unseen: None })
            }
        }
    }

    /// Where it can be opened; what lies only at the target, or is wanted from there, is brought here first.
    pub fn at_hand(&self, entry: &Entry, from_target: bool, stop: &Stop) -> Result<AtHand, Failure> {
        match (&self.target, entry.lies) {
            (Some(target), Lies::There) => self.bring(&target.open(stop)?, entry, stop),
            (Some(target), Lies::Both) if from_target => self.bring(&target.open(stop)?, entry, stop),
            (None, _) if from_target => Err(Failure::Data(format!("{} has no copy at a target", entry.name))),
            (_, Lies::Here) if from_target => Err(Failure::Data(format!("{} does not lie at the target", entry.name))),
            _ => Ok(AtHand { entry: entry.clone(), brought: None }),
        }
    }

    /// Sends what the target lacks, the newest first, and removes there what the calendar of all of them leaves out.
    pub fn send(&self, stop: &Stop) -> Result<Sent, Failure> {
        let Some(target) = &self.target else { return Ok(Sent::default()) };
        let session = target.open(stop)?;
        let here: Vec<Entry> = self.entries()?.into_iter().filter(|entry| entry.manifest.is_ok()).collect();
        let there: BTreeMap<i64, Stored> = self.there(&session)?.into_iter().map(|one| (one.time, one)).collect();
        let whole_there = there.values().filter(|one| matches!(one.manifest, Some(Ok(_)))).map(|one| one.time);
        let kept = self.policy.kept(self.zone, here.iter().map(|entry| entry.time).chain(whole_there));
        let mut sent = Sent::default();
        for entry in here.iter().rev().filter(|entry| kept.contains(&entry.time)) {
            match there.get(&entry.time).and_then(|one| one.manifest.as_ref()) {
                None => {
                    self.send_one(&session, target.piece_bytes, entry, stop)?;
                    sent.backups += 1;
                }
                Some(found) if *found == entry.manifest => {}
                Some(Ok(_)) => sent.wrong.push(format!("{} there is another than here", entry.name)),
                Some(Err(what)) => sent.wrong.push(format!("{} there: {what}", entry.name)),
            }
        }
        if let Some(newest) = kept.last() {
            metric::backup_at_target(&self.shelf.job, *newest);
        }
        for one in there.values().filter(|one| !kept.contains(&one.time)) {
            match &one.manifest {
                Some(Err(what)) => sent.wrong.push(format!("{} there: {what}", one.name)),
                _ => {
                    withdraw(&session, &one.name)?;
                    sent.removed += usize::from(one.manifest.is_some());
                }
            }
        }
        Ok(sent)
    }

    /// What bears the name of one of our backups at the target.
    fn there(&self, session: &Session<'_>) -> Result<Vec<Stored>, Failure> {
        let mut all = Vec::new();
        for name in session.names()? {
            let Some(time) = self.shelf.time_in(&name) else { continue };
            let manifest = match session.small(&name, manifest::NAME, manifest::BYTES_MAX) {
                Ok(None) => None,
                Ok(Some(text)) => Some(self.read_manifest(&text)),
                Err(Failure::Data(what)) => Some(Err(what)),
                Err(failure) => return Err(failure),
            };
            all.push(Stored { name, time, manifest });
        }
        Ok(all)
    }

    fn read_manifest(&self, text: &[u8]) -> Result<Manifest, String> {
        let text = std::str::from_utf8(text).map_err(|error| format!("{}: {error}", manifest::NAME))?;
        let manifest = Manifest::parse(text).map_err(|what| format!("{}: {what}", manifest::NAME))?;
        self.shelf.own(manifest)
    }

    fn send_one(&self, session: &Session<'_>, piece_bytes: u64, entry: &Entry, stop: &Stop) -> Result<(), Failure> {
        let manifest = entry.manifest.as_ref().map_err(|what| Failure::Data(what.clone()))?;
        let mut lying: BTreeMap<String, u64> = session.parts(&entry.name)?.into_iter().collect();
        for copied in &manifest.files {
            let path = entry.path.join(copied.artefact());
            let unread = |error: io::Error| Failure::Unavailable(format!("{}: {error}", path.display()));
            let mut file = shelf::open_plain(&path).map_err(unread)?;
            let mut hash = Sha256::new();
            for piece in pieces(copied, piece_bytes) {
                let mut bytes = vec![0; piece.bytes as usize];
                file.read_exact(&mut bytes).map_err(unread)?;
                hash.update(&bytes);
                let left = lying.remove(&session.listed_as(&piece.name));
                put_piece(session, &entry.name, &piece, bytes, left)?;
                controls::reach(Seam::Upload);
                if stop.is_asked() {
                    return Err(Failure::Aborted);
                }
            }
            if copy::hex(hash) != copied.compressed_sha256 {
                return Err(Failure::Data(format!(
                    "{} is not any more what was written there, and is not sent. Remedy: remove this backup, and look after the disk that it stands on",
                    path.display()
                )));
            }
        }
        // Of an earlier attempt with pieces of another size.
        for name in lying.keys() {
            session.remove(&entry.name, name)?;
        }
        let path = entry.path.join(manifest::NAME);
        let text = fs::read(&path).map_err(|error| Failure::Unavailable(format!("{}: {error}", path.display())))?;
        match session.put(&entry.name, manifest::NAME, text)? {
            Put::New => {}
            Put::There => return Err(Failure::Data(format!("{} has come to lie at the target meanwhile", entry.name))),
        }
        controls::reach(Seam::Upload);
        Ok(())
    }

    /// Brings one here, into a folder that goes with what is returned.
    fn bring(&self, session: &Session<'_>, entry: &Entry, stop: &Stop) -> Result<AtHand, Failure> {
        let manifest = entry.manifest.as_ref().map_err(|what| Failure::Data(what.clone()))?;
        self.shelf.prepare().map_err(Failure::Data)?;
        let unwritten = |error: &io::Error| self.unread(error);
        let (needed, free) = (manifest.compressed_bytes(), self.shelf.free_bytes().map_err(|error| unwritten(&error))?);
        if free < needed {
            return Err(Failure::Unavailable(format!(
                "{} has {free} bytes free, and {} needs {needed}. Remedy: make room there, or name another `folder`",
                self.shelf.folder.display(),
                entry.name
            )));
        }
        let making = self.shelf.brought(clock::now_micros()).map_err(|error| unwritten(&error))?;
        let path = making.partial.clone();
        let at_hand = AtHand { entry: Entry { path, lies: Lies::Here, ..entry.clone() }, brought: Some(making) };
        let parts: BTreeMap<String, u64> = session.parts(&entry.name)?.into_iter().collect();
        for copied in &manifest.files {
            bring_file(session, &at_hand.entry, copied, &parts, stop)?;
            controls::reach(Seam::Bring);
        }
        Ok(at_hand)
    }
}

/// What bears the name of a backup at the target.
struct Stored {
    name: String,
    time: i64,
    /// `None`: it has none, and is no backup.
    manifest: Option<Result<Manifest, String>>,
}

impl Stored {
    fn listed(self) -> Option<Entry> {
        let Self { name, time, manifest } = self;
        Some(Entry { path: name.clone().into(), name, time, manifest: manifest?, lies: Lies::There })
    }
}

/// A part of a file at the target.
struct Piece {
    name: String,
    bytes: u64,
}

/// A file that is not larger than a piece lies there under its own name; of a larger one, `cat NAME.*` makes it whole.
fn pieces(copied: &Copied, piece_bytes: u64) -> Vec<Piece> {
    let (name, all) = (copied.artefact(), copied.compressed_bytes);
    if all <= piece_bytes {
        return vec![Piece { name, bytes: all }];
    }
    let piece = |n: u64| Piece { name: numbered(&name, n + 1), bytes: piece_bytes.min(all - n * piece_bytes) };
    (0..all.div_ceil(piece_bytes)).map(piece).collect()
}

fn numbered(name: &str, number: u64) -> String {
    format!("{name}.{number:06}")
}

/// `left` is what an attempt before has left under its name.
fn put_piece(
    session: &Session<'_>,
    backup: &str,
    piece: &Piece,
    bytes: Vec<u8>,
    left: Option<u64>,
) -> Result<(), Failure> {
    let is_there = |bytes: &[u8]| {
        let (mut at, mut is_same) = (0, true);
        session.read(backup, &piece.name, piece.bytes, |window| {
            is_same &= bytes[at..at + window.len()] == *window;
            at += window.len();
            Ok(())
        })?;
        Ok::<_, Failure>(is_same)
    };
    if left == Some(piece.bytes) && is_there(&bytes)? {
        return Ok(());
    }
    if left.is_some() {
        session.remove(backup, &piece.name)?;
    }
    match session.put(backup, &piece.name, bytes.clone())? {
        Put::New => Ok(()),
        // An answer that was lost is no fault.
        Put::There if is_there(&bytes)? => Ok(()),
        Put::There => Err(Failure::Data(format!(
            "{} of {backup} lies at the target already, is another, and is not overwritten. Remedy: one job of one host for each target",
            piece.name
        ))),
    }
}

/// From one moment to the next it is no backup any more.
fn withdraw(session: &Session<'_>, backup: &str) -> Result<(), Failure> {
    session.remove(backup, manifest::NAME)?;
    controls::reach(Seam::Withdraw);
    for (part, _) in session.parts(backup)? {
        session.remove(backup, &part)?;
        controls::reach(Seam::Withdraw);
    }
    session.sweep(backup)
}

fn bring_file(
    session: &Session<'_>,
    to: &Entry,
    copied: &Copied,
    parts: &BTreeMap<String, u64>,
    stop: &Stop,
) -> Result<(), Failure> {
    let name = copied.artefact();
    let wrong = |what: String| {
        Failure::Data(format!(
            "{name} of {} at the target: {what}. Remedy: take another backup (`outboxd backup list`)",
            to.name
        ))
    };
    let lying = |name: &str| parts.get(&session.listed_as(name)).map(|bytes| (name.to_owned(), *bytes));
    let pieces: Vec<(String, u64)> = match lying(&name) {
        Some(whole) => vec![whole],
        None => (1..).map_while(|number| lying(&numbered(&name, number))).collect(),
    };
    let bytes: u64 = pieces.iter().map(|(_, bytes)| bytes).sum();
    if bytes != copied.compressed_bytes {
        return Err(wrong(format!("it has {bytes} bytes, and the manifest says {}", copied.compressed_bytes)));
    }
    let (path, partial) = (to.path.join(&name), to.path.join(format!("{name}.partial")));
    let unwritten = |error: io::Error| unwritten(&partial, &error);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&partial).map_err(unwritten)?;
    let mut hash = Sha256::new();
    for (piece, bytes) in pieces {
        session.read(&to.name, &piece, bytes, |window| {
            hash.update(window);
            if stop.is_asked() { Err(Failure::Aborted) } else { file.write_all(window).map_err(unwritten) }
        })?;
    }
    if copy::hex(hash) != copied.compressed_sha256 && !controls::is_off(Protection::Hashes) {
        return Err(wrong("its SHA-256 is not the manifest's".to_owned()));
    }
    fs::rename(&partial, &path).map_err(|error| self::unwritten(&path, &error))
}

fn unwritten(path: &Path, error: &io::Error) -> Failure {
    Failure::Unavailable(format!("{} cannot be written: {error}", path.display()))
}
