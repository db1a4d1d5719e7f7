//! One file's way into a backup: copied, opened, checked, counted, hashed, compressed; and its way out again.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rusqlite::{Connection, ErrorCode};
use sha2::{Digest, Sha256};

use super::manifest::{Copied, Found, Stands};
use super::shelf;
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

/// Copies a database into a folder of ours, and makes sure of the copy. Nothing is locked: the application writes on.
pub fn into_backup(path: &Path, folder: &Path, stop: &Stop) -> Result<Copied, Failure> {
    let name = path.file_name().and_then(|name| name.to_str()).expect("the config has looked").to_owned();
    let meta = fs::metadata(path).map_err(|error| Failure::Unavailable(format!("{}: {error}", path.display())))?;
    let raw = folder.join(&name);
    vacuum_into(path, &raw, stop)?;
    let found = inspect(&raw, stop).map_err(|failure| match failure {
        Failure::Data(what) => Failure::Data(format!(
            "the copy of {} is not sound, and no backup is made of it: {what}. Remedy: see `PRAGMA integrity_check` in the file itself; an index \
             alone is mended by REINDEX",
            path.display()
        )),
        other => other,
    })?;
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
    compress(&raw, &folder.join(copied.artefact()), &mut copied, stop)?;
    fs::remove_file(&raw).map_err(|error| unwritten(&raw, &error))?;
    Ok(copied)
}

/// A copy of what is committed at a moment.
pub fn vacuum_into(path: &Path, raw: &Path, stop: &Stop) -> Result<(), Failure> {
    let told = |error: rusqlite::Error| match &error {
        _ if stop.is_asked() => Failure::Aborted,
        rusqlite::Error::SqliteFailure(code, _)
            if matches!(code.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) =>
        {
            let remedy = "Remedy: stop the application, and restore the last backup; `.recover` of the sqlite3 shell saves what came since";
            Failure::Data(format!("{} is damaged: {error}. {remedy}", path.display()))
        }
        _ => Failure::Unavailable(format!("{} cannot be copied to {}: {error}", path.display(), raw.display())),
    };
    let connection = open::copier(path).map_err(told)?;
    listen(&connection, stop).map_err(told)?;
    let to = raw.to_str().expect("the config has looked");
    connection.execute("VACUUM INTO ?1", [to]).map_err(told)?;
    Ok(())
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

fn all_of(connection: &Connection, stop: &Stop) -> Result<Found, Failure> {
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

fn compress(raw: &Path, to: &Path, copied: &mut Copied, stop: &Stop) -> Result<(), Failure> {
    let read = |error: io::Error| Failure::Unavailable(format!("{}: {error}", raw.display()));
    let written = |error: io::Error| unwritten(to, &error);
    let mut from = File::open(raw).map_err(read)?;
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
    if hex(hashing.hash) != copied.compressed_sha256 || hex(plain) != copied.sha256 || bytes != copied.bytes {
        return Err(wrong("its SHA-256 is not the manifest's".to_owned()));
    }
    file.sync_all().map_err(written)
}

fn unwritten(path: &Path, error: &io::Error) -> Failure {
    Failure::Unavailable(format!("{} cannot be written: {error}", path.display()))
}

fn hex(hash: Sha256) -> String {
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
