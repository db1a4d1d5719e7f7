//! One file's way into a backup: copied, opened, checked, counted, hashed, compressed; and its way out again.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::ops::AddAssign;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use sha2::{Digest, Sha256};

use super::manifest::{Copied, Found, Stands};
use super::shelf;
use crate::controls::{self, Protection};
use crate::maintenance::{Failure, Stop};
use crate::sqlite::{open, place};
use crate::state::{self, checkpoint};

/// As the command `zstd` does it by itself.
const LEVEL: i32 = 3;
const CHUNK: usize = 1 << 20;
/// SQLite asks so often, in steps of its machine, whether to go on: a few times a millisecond.
const STEPS: i32 = 10_000;
/// Of what is wrong with a copy, so much is told.
const NAMED_MAX: usize = 10;

/// Which part of a run a file is, from 0 to 1: where it begins, and how much it is.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    pub before: f64,
    pub own: f64,
}

impl Share {
    /// Of the work on a file, copying is about as much as compressing; opening and checking it lies in between.
    const COPYING: f64 = 0.4;
    const CHECKED: f64 = 0.6;

    fn tell(self, stop: &Stop, done: f64) {
        stop.tell(self.before + self.own * done.clamp(0.0, 1.0));
    }
}

/// How long the parts of the work took.
#[derive(Clone, Copy, Default, Debug)]
pub struct Took {
    pub copying: Duration,
    pub checking: Duration,
    pub compressing: Duration,
}

impl AddAssign for Took {
    fn add_assign(&mut self, other: Self) {
        self.copying += other.copying;
        self.checking += other.checking;
        self.compressing += other.compressing;
    }
}

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [copying, checking, compressing] =
            [self.copying, self.checking, self.compressing].map(|took| took.as_secs_f64());
        write!(f, "copied in {copying:.2} s, checked in {checking:.2} s, compressed in {compressing:.2} s")
    }
}

/// Copies a database into a folder of ours, and makes sure of the copy. Nothing is locked: the application writes on.
pub fn into_backup(path: &Path, folder: &Path, share: Share, stop: &Stop) -> Result<(Copied, Took), Failure> {
    let name = path.file_name().and_then(|name| name.to_str()).expect("the config has looked").to_owned();
    let meta = fs::metadata(path).map_err(|error| Failure::Unavailable(format!("{}: {error}", path.display())))?;
    let raw = folder.join(&name);
    let mut took = Took::default();
    let began = Instant::now();
    vacuum_into(path, &raw, share, stop)?;
    took.copying = began.elapsed();
    share.tell(stop, Share::COPYING);
    let found = inspect(&raw, stop).map_err(|failure| match failure {
        Failure::Data(what) => Failure::Data(format!(
            "the copy of {} is not sound, and no backup is made of it: {what}. Remedy: see `PRAGMA integrity_check` in the file itself; an index \
             alone is mended by REINDEX",
            path.display()
        )),
        other => other,
    })?;
    took.checking = began.elapsed() - took.copying;
    let mut copied = Copied {
        name,
        path: path.to_owned(),
        bytes: 0,
        sha256: String::new(),
        compressed_bytes: 0,
        compressed_sha256: String::new(),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        found,
    };
    compress(&raw, &folder.join(copied.artefact()), &mut copied, share, stop)?;
    fs::remove_file(&raw).map_err(|error| unwritten(&raw, &error))?;
    took.compressing = began.elapsed() - took.checking - took.copying;
    Ok((copied, took))
}

/// A copy of what is committed at a moment.
pub fn vacuum_into(path: &Path, raw: &Path, share: Share, stop: &Stop) -> Result<(), Failure> {
    let connection = open::copier(path).map_err(|error| uncopied(path, raw, stop, error))?;
    vacuum_from(&connection, path, raw, share, stop)
}

/// The same, over a connection that is open.
pub fn vacuum_from(connection: &Connection, path: &Path, raw: &Path, share: Share, stop: &Stop) -> Result<(), Failure> {
    let told = |error: rusqlite::Error| uncopied(path, raw, stop, error);
    let whole = open::size(connection).map_err(told)?.max(1) as f64;
    let (grows, listens) = (raw.to_owned(), stop.clone());
    let look = move || {
        let bytes = fs::metadata(&grows).map_or(0, |meta| meta.len());
        share.tell(&listens, Share::COPYING * (bytes as f64 / whole).min(1.0));
        listens.is_asked()
    };
    connection.progress_handler(STEPS, Some(look)).map_err(told)?;
    let to = raw.to_str().expect("the config has looked");
    connection.execute("VACUUM INTO ?1", [to]).map_err(told)?;
    Ok(())
}

fn uncopied(path: &Path, raw: &Path, stop: &Stop, error: rusqlite::Error) -> Failure {
    match &error {
        _ if stop.is_asked() => Failure::Aborted,
        rusqlite::Error::SqliteFailure(code, _)
            if matches!(code.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) =>
        {
            let remedy = "Remedy: stop the application, and restore the last backup; `.recover` of the sqlite3 shell saves what came since";
            Failure::Data(format!("{} is damaged: {error}. {remedy}", path.display()))
        }
        _ => Failure::Unavailable(format!("{} cannot be copied to {}: {error}", path.display(), raw.display())),
    }
}

/// Opens a database that nobody writes, and looks through all of it. `Data` says what is wrong.
pub fn inspect(raw: &Path, stop: &Stop) -> Result<Found, Failure> {
    let connection = open::still(raw).map_err(|error| Failure::Data(error.to_string()))?;
    all_of(&connection, stop)
}

/// The same of a file that may have a `-wal` beside it.
pub fn look_at(path: &Path, stop: &Stop) -> Result<Found, Failure> {
    match place::beside(path, "-wal").exists() {
        true => all_of(&open::visitor(path).map_err(|error| Failure::Data(error.to_string()))?, stop),
        false => inspect(path, stop),
    }
}

/// Looks through all of what a connection sees.
pub fn all_of(connection: &Connection, stop: &Stop) -> Result<Found, Failure> {
    let told = |error: rusqlite::Error| match stop.is_asked() {
        true => Failure::Aborted,
        false => Failure::Data(error.to_string()),
    };
    listen(connection, stop).map_err(told)?;
    look_through(connection).map_err(told)?.map_err(Failure::Data)
}

fn listen(connection: &Connection, stop: &Stop) -> rusqlite::Result<()> {
    let stop = stop.clone();
    connection.progress_handler(STEPS, Some(move || stop.is_asked()))
}

fn look_through(connection: &Connection) -> rusqlite::Result<Result<Found, String>> {
    let wrong: Vec<String> = connection
        .prepare(&format!("PRAGMA integrity_check({NAMED_MAX})"))?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    if wrong != ["ok"] {
        return Ok(Err(wrong.join("; ")));
    }
    let foreign_key_violations = count(connection, "SELECT count(*) FROM pragma_foreign_key_check")?;
    let mut found = Found { foreign_key_violations, ..Found::default() };
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND sql NOT LIKE 'CREATE VIRTUAL%'";
    let tables: Vec<String> = connection.prepare(sql)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for table in tables {
        let rows = count(connection, &format!("SELECT count(*) FROM \"{}\"", table.replace('"', "\"\"")))?;
        found.tables.insert(table, rows);
    }
    if connection.table_exists(None, "sqlite_sequence")? {
        let mut statement = connection.prepare("SELECT name, seq FROM sqlite_sequence")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        found.sequences = rows.collect::<Result<_, _>>()?;
    }
    match consumers(connection) {
        Ok(consumers) => found.consumers = consumers,
        Err(what) => return Ok(Err(what)),
    }
    Ok(Ok(found))
}

fn count(connection: &Connection, sql: &str) -> rusqlite::Result<u64> {
    connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map(|count| count as u64)
}

/// The checkpoints that stand in a file.
pub fn consumers(connection: &Connection) -> Result<std::collections::BTreeMap<String, Stands>, String> {
    let all = || match state::schema_version(connection)? {
        None => Ok(Vec::new()),
        Some(_) => checkpoint::all(connection),
    };
    let all = all().map_err(|error| format!("outboxd's checkpoints cannot be read: {error}"))?;
    let stands = |one: checkpoint::Checkpoint| {
        let stands = Stands { source: one.source, position: one.mark.position.0, event_id: one.mark.event_id };
        (one.consumer, stands)
    };
    Ok(all.into_iter().map(stands).collect())
}

fn compress(raw: &Path, to: &Path, copied: &mut Copied, share: Share, stop: &Stop) -> Result<(), Failure> {
    let read = |error: io::Error| Failure::Unavailable(format!("{}: {error}", raw.display()));
    let written = |error: io::Error| unwritten(to, &error);
    let mut from = File::open(raw).map_err(read)?;
    let whole = from.metadata().map_err(read)?.len().max(1) as f64;
    let file = File::options().write(true).create_new(true).mode(0o600).open(to).map_err(written)?;
    let (mut plain, mut buffer) = (Sha256::new(), vec![0; CHUNK]);
    let mut encoder = zstd::Encoder::new(Hashing::new(file), LEVEL).map_err(written)?;
    encoder.include_checksum(true).map_err(written)?;
    loop {
        let length = from.read(&mut buffer).map_err(read)?;
        if length == 0 {
            break;
        }
        if stop.is_asked() {
            return Err(Failure::Aborted);
        }
        plain.update(&buffer[..length]);
        copied.bytes += length as u64;
        share.tell(stop, Share::CHECKED + (1.0 - Share::CHECKED) * copied.bytes as f64 / whole);
        encoder.write_all(&buffer[..length]).map_err(written)?;
    }
    let hashing = encoder.finish().map_err(written)?;
    hashing.inner.sync_all().map_err(written)?;
    (copied.sha256, copied.compressed_sha256) = (hex(plain), hex(hashing.hash));
    copied.compressed_bytes = hashing.bytes;
    Ok(())
}

/// Takes a file out of a backup, into a new file, and makes sure that it is the one that was put in. Never more is written than the manifest says.
pub fn out_of_backup(folder: &Path, copied: &Copied, to: &Path, stop: &Stop) -> Result<(), Failure> {
    let artefact = folder.join(copied.artefact());
    let wrong = |what: String| {
        let remedy =
            "Remedy: take another backup (`outboxd backup list`), and look after the disk that this one stands on";
        Failure::Data(format!("{}: {what}. {remedy}", artefact.display()))
    };
    let opened = shelf::open_plain(&artefact).map_err(|error| wrong(error.to_string()))?;
    let length = opened.metadata().map_err(|error| wrong(error.to_string()))?.len();
    if length != copied.compressed_bytes {
        return Err(wrong(format!("it has {length} bytes, and the manifest says {}", copied.compressed_bytes)));
    }
    let written = |error: io::Error| unwritten(to, &error);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(to).map_err(written)?;
    let mut decoder =
        zstd::Decoder::with_buffer(BufReader::new(Hashing::new(opened))).map_err(|error| wrong(error.to_string()))?;
    decoder.window_log_max(27).map_err(|error| wrong(error.to_string()))?;
    let (mut plain, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; CHUNK]);
    loop {
        let length = decoder.read(&mut buffer).map_err(|error| wrong(format!("it cannot be unpacked: {error}")))?;
        if length == 0 {
            break;
        }
        if stop.is_asked() {
            return Err(Failure::Aborted);
        }
        bytes += length as u64;
        if bytes > copied.bytes {
            return Err(wrong(format!("more than the {} bytes that the manifest says come out of it", copied.bytes)));
        }
        plain.update(&buffer[..length]);
        file.write_all(&buffer[..length]).map_err(written)?;
    }
    // What stands behind the last frame was not looked at by the decoder.
    let mut hashing = decoder.finish().into_inner();
    io::copy(&mut hashing, &mut io::sink()).map_err(|error| wrong(error.to_string()))?;
    let is_another = hex(hashing.hash) != copied.compressed_sha256 || hex(plain) != copied.sha256;
    if (is_another && !controls::is_off(Protection::Hashes)) || bytes != copied.bytes {
        return Err(wrong("its SHA-256 is not the manifest's".to_owned()));
    }
    file.sync_all().map_err(written)
}

fn unwritten(path: &Path, error: &io::Error) -> Failure {
    Failure::Unavailable(format!("{} cannot be written: {error}", path.display()))
}

pub fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hashes what passes.
struct Hashing<T> {
    inner: T,
    hash: Sha256,
    bytes: u64,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    fn note(&mut self, passed: &[u8]) {
        self.hash.update(passed);
        self.bytes += passed.len() as u64;
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.note(&buffer[..length]);
        Ok(length)
    }
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(bytes)?;
        self.note(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an application opens its file")]
mod tests {
    use super::*;

    #[test]
    fn a_copy_tells_how_far_it_is_and_what_it_took() {
        let folder = tempfile::tempdir().unwrap();
        let (path, to) = (folder.path().join("app.db"), folder.path().join("made"));
        fs::create_dir(&to).unwrap();
        let application = Connection::open(&path).unwrap();
        application.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (a); INSERT INTO t VALUES (7)").unwrap();
        let stop = Stop::default();
        assert_eq!(stop.done(), None);
        // The second half of a run.
        let (copied, took) = into_backup(&path, &to, Share { before: 0.5, own: 0.5 }, &stop).unwrap();
        assert_eq!((stop.done(), copied.found.tables["t"]), (Some(1.0), 1));
        assert!(took.to_string().starts_with("copied in 0.") && took.copying > Duration::ZERO, "{took}");
        Share { before: 0.0, own: 0.5 }.tell(&stop, Share::COPYING);
        assert_eq!(stop.done(), Some(0.2));
        stop.ask();
        fs::remove_file(to.join(copied.artefact())).unwrap();
        let ended = into_backup(&path, &to, Share { before: 0.0, own: 1.0 }, &stop).map(drop);
        assert_eq!(ended, Err(Failure::Aborted));
    }
}
