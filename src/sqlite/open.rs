//! Connections: how each is opened, and what it may do.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::{Connection, OpenFlags, OptionalExtension};

/// Reads an application's file. Never writes, never waits for a lock, never checkpoints.
pub fn reader(path: &Path) -> rusqlite::Result<Connection> {
    reading(path, Duration::ZERO)
}

fn reading(path: &Path, wait: Duration) -> rusqlite::Result<Connection> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    // Before the settings, for which SQLite reads the schema.
    connection.busy_timeout(wait)?;
    connection.execute_batch("PRAGMA query_only = ON; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -8000;")?;
    Ok(connection)
}

/// How long a visitor waits.
const VISIT_WAIT: Duration = Duration::from_secs(5);

/// As [`reader`], for those who look once: another connection that is just opening or closing the file is waited for.
pub fn visitor(path: &Path) -> rusqlite::Result<Connection> {
    reading(path, VISIT_WAIT)
}

/// Copies an application's file by VACUUM INTO: it writes another file, and so may not be forbidden to write; this one is opened for reading.
pub fn copier(path: &Path) -> rusqlite::Result<Connection> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(VISIT_WAIT)?;
    connection.execute_batch("PRAGMA cache_size = -8000; PRAGMA synchronous = FULL;")?;
    Ok(connection)
}

/// Reads a file that nobody writes, as it stands, and makes nothing beside it.
pub fn still(path: &Path) -> rusqlite::Result<Connection> {
    let escaped = path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let uri = format!("file:{escaped}?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let connection = connect(Path::new(&uri), flags)?;
    connection.execute_batch("PRAGMA query_only = ON; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -8000;")?;
    Ok(connection)
}

/// The only connection to a file that is about to be replaced: nobody else reads or writes it while this one is open.
pub fn sole(path: &Path) -> rusqlite::Result<Connection> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.busy_timeout(Duration::from_secs(1))?;
    // Before anything is read: then the lock is the whole file's.
    connection.query_row("PRAGMA locking_mode = EXCLUSIVE", [], |_| Ok(()))?;
    connection.execute_batch("BEGIN EXCLUSIVE; COMMIT")?;
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    synchronous(&connection, Durable::Full)?;
    Ok(connection)
}

/// Bytes of the database, as this connection sees it.
pub fn size(connection: &Connection) -> rusqlite::Result<u64> {
    let sql = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
    connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map(|bytes| bytes as u64)
}

/// From now on a connection of [`reader`] takes only what reads: SQL of a person's own can change no setting, reach no other file
/// and load nothing. (Nothing could be written before either.)
pub fn restrict(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    connection.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, 1 << 20)?;
    connection.set_limit(Limit::SQLITE_LIMIT_COMPOUND_SELECT, 50)?;
    connection.set_limit(Limit::SQLITE_LIMIT_EXPR_DEPTH, 500)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1_000)?;
    connection.authorizer(Some(|context: AuthContext<'_>| {
        // Statements that mark rows are looked at here, and run elsewhere.
        let marks = matches!(
            context.action,
            AuthAction::Transaction { .. }
                | AuthAction::Insert { .. }
                | AuthAction::Update { .. }
                | AuthAction::Delete { .. }
        );
        allowed(marks || reads(&context.action))
    }))
}

/// Runs what a person wrote on a connection that writes. It may read, and add to one table of the application's, or change there what it
/// finds instead; what the application's own triggers do then is the application's. Nothing bounds its time:
/// SQLite answers an interruption of what writes with a ROLLBACK of the whole transaction, which others share.
pub fn fenced<T>(connection: &Connection, run: impl FnOnce(&Connection) -> T) -> rusqlite::Result<T> {
    let is_ours = |table: &str| {
        let is = |prefix: &str| table.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix));
        is("outboxd_") || is("sqlite_")
    };
    let mut named: Option<String> = None;
    connection.authorizer(Some(move |context: AuthContext<'_>| {
        allowed(match context.action {
            AuthAction::Insert { table_name } if context.accessor.is_none() => {
                named = Some(table_name.to_owned());
                !is_ours(table_name)
            }
            AuthAction::Update { table_name, .. } if context.accessor.is_none() => named.as_deref() == Some(table_name),
            AuthAction::Insert { table_name }
            | AuthAction::Update { table_name, .. }
            | AuthAction::Delete { table_name } => context.accessor.is_some() && !is_ours(table_name),
            action => reads(&action),
        })
    }))?;
    let result = run(connection);
    connection.authorizer(None::<fn(AuthContext<'_>) -> Authorization>)?;
    Ok(result)
}

fn allowed(is_allowed: bool) -> Authorization {
    if is_allowed { Authorization::Allow } else { Authorization::Deny }
}

fn reads(action: &AuthAction<'_>) -> bool {
    const PRAGMAS: [&str; 10] = [
        "data_version",
        "freelist_count",
        "page_size",
        "journal_mode",
        "schema_version",
        "table_info",
        "table_xinfo",
        "index_list",
        "index_info",
        "index_xinfo",
    ];
    match *action {
        AuthAction::Select | AuthAction::Read { .. } | AuthAction::Recursive => true,
        AuthAction::Function { function_name } => function_name != "load_extension",
        AuthAction::Pragma { pragma_name: "wal_checkpoint", pragma_value } => pragma_value == Some("NOOP"),
        AuthAction::Pragma { pragma_name, pragma_value } => {
            PRAGMAS.contains(&pragma_name)
                && (!["journal_mode", "page_size"].contains(&pragma_name) || pragma_value.is_none())
        }
        _ => false,
    }
}

/// How long one look may take. Clones are of the same connection.
#[derive(Clone, Debug)]
pub struct TimeLimit {
    base: Instant,
    began_micros: Arc<AtomicU64>,
}

impl TimeLimit {
    /// SQLite asks so often, in steps of its machine, whether to go on: about every 100 us.
    const STEPS: i32 = 10_000;

    /// From now on a statement of the connection is interrupted that runs for longer than `most` after the last [`TimeLimit::begin`].
    pub fn of(connection: &Connection, most: Duration) -> rusqlite::Result<Self> {
        let limit = Self::none();
        let (base, began) = (limit.base, limit.began_micros.clone());
        let is_over = move || base.elapsed() > Duration::from_micros(began.load(Relaxed)) + most;
        connection.progress_handler(Self::STEPS, Some(is_over))?;
        Ok(limit)
    }

    /// No limit.
    pub fn none() -> Self {
        Self { base: Instant::now(), began_micros: Arc::default() }
    }

    /// A look begins.
    pub fn begin(&self) {
        self.began_micros.store(self.base.elapsed().as_micros() as u64, Relaxed);
    }
}

/// How a writer's commits reach the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durable {
    /// At every commit.
    Full,
    /// With the next barrier or checkpoint.
    Normal,
}

/// Writes into a file that is there.
pub fn writer(path: &Path, durable: Durable) -> rusqlite::Result<Connection> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    synchronous(&connection, durable)?;
    connection.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(()))?;
    Ok(connection)
}

/// Appends to a file as its application would: SQLite checkpoints by itself, and foreign keys hold. Whoever takes it sets how long it waits for
/// locks; until then as a visitor.
pub fn appender(path: &Path, durable: Durable) -> rusqlite::Result<Connection> {
    // What is attached to it says by its name that it is only read. This one's name, from the root on, is none that means more.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let connection = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI)?;
    connection.busy_timeout(VISIT_WAIT)?;
    synchronous(&connection, durable)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, true)?;
    Ok(connection)
}

/// Opens our own state file, made when it is not there, in WAL mode. It has payloads in it: whatever the umask says, others may not read it.
pub fn state_file(path: &Path) -> rusqlite::Result<Connection> {
    // What keeps it from being made, SQLite tells. (Of a file that was there nothing is opened, and so no lock is lost.)
    let _ = File::options().write(true).create_new(true).mode(0o660).open(path);
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    connection.busy_timeout(Duration::ZERO)?;
    // This file is ours: it may be tidied up when the last connection goes.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    synchronous(&connection, Durable::Full)?;
    Ok(connection)
}

/// A database that is nowhere, to try SQL of ours on.
#[expect(clippy::disallowed_methods, reason = "this is the room that opens database files")]
pub fn scratch() -> rusqlite::Result<Connection> {
    let connection = Connection::open_in_memory()?;
    distrust(&connection)?;
    Ok(connection)
}

pub fn synchronous(connection: &Connection, durable: Durable) -> rusqlite::Result<()> {
    connection.execute_batch(match durable {
        Durable::Full => "PRAGMA synchronous = FULL",
        Durable::Normal => "PRAGMA synchronous = NORMAL",
    })
}

/// `wal`, `delete`, ... in lower case.
pub fn journal_mode(connection: &Connection) -> rusqlite::Result<String> {
    connection.query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0)).map(|mode| mode.to_lowercase())
}

/// Changes whenever another connection committed; comparable on one connection only.
pub fn data_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
}

/// Changes whenever a table, view, index or trigger is made, changed or dropped.
pub fn schema_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("PRAGMA schema_version")?.query_row([], |row| row.get(0))
}

/// The SQLite that last wrote the file's first page (as 3051003), which holds its size and its schema; `None` where this cannot be known.
/// Bytes 96 to 99 of the header, read by SQLite itself: opened and closed beside it, the file would lose this process's locks.
pub fn last_library(connection: &Connection) -> rusqlite::Result<Option<u32>> {
    // A SQLite that was built without `sqlite_dbpage` (.cargo/config.toml) does not tell.
    let Ok(mut statement) = connection.prepare("SELECT substr(data, 97, 4) FROM sqlite_dbpage WHERE pgno = 1") else {
        return Ok(None);
    };
    let bytes: Option<Vec<u8>> = statement.query_row([], |row| row.get(0)).optional()?;
    Ok(bytes.and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes))
}

/// The columns of a table or view, in order; empty when there is none.
pub fn columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<(String, String)>> {
    connection
        .prepare("SELECT name, upper(type) FROM pragma_table_info(?1)")?
        .query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

#[expect(clippy::disallowed_methods, reason = "this is the room that opens database files")]
fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(Duration::ZERO)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    distrust(&connection)?;
    connection.execute_batch("PRAGMA mmap_size = 0")?;
    connection.set_prepared_statement_cache_capacity(256);
    Ok(connection)
}

fn distrust(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    // A misspelt name in double quotes must be an error, not a string.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
    Ok(())
}
