//! What an SQLite error means for us: wait, halt, or our own bug. Extended codes decide, never the message.

use rusqlite::ffi;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Another connection holds the lock: wait, with backoff.
    Busy,
    /// The disk is full or failed: wait, with backoff; nothing moves until it heals.
    Storage,
    /// The file cannot be opened yet: it may be about to appear, or its folder may be mended.
    CannotOpen,
    /// No right to read or write it.
    Permission,
    /// The file is damaged or no database.
    Corrupt,
    /// It ran for longer than it may.
    Stopped,
    /// A table or column that should be there is not, SQL does what it may not, or any other refusal by SQL.
    Sql,
}

impl Kind {
    /// By itself, or when somebody else does something: what is tried again, with backoff.
    pub fn passes(self) -> bool {
        matches!(self, Kind::Busy | Kind::Storage | Kind::CannotOpen)
    }
}

/// `(kind, extended code)`; code 0 where the error is not SQLite's own.
pub fn classify(error: &rusqlite::Error) -> (Kind, i32) {
    let code = match error {
        rusqlite::Error::SqliteFailure(failure, _) => failure.extended_code,
        rusqlite::Error::SqlInputError { error, .. } => error.extended_code,
        _ => 0,
    };
    let kind = match code & 0xff {
        // PROTOCOL is a start of the WAL that was lost to others for seconds; all of BUSY is cured by a new attempt.
        ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED | ffi::SQLITE_PROTOCOL => Kind::Busy,
        ffi::SQLITE_FULL | ffi::SQLITE_IOERR | ffi::SQLITE_NOMEM => Kind::Storage,
        ffi::SQLITE_CANTOPEN => Kind::CannotOpen,
        ffi::SQLITE_READONLY | ffi::SQLITE_PERM => Kind::Permission,
        ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB => Kind::Corrupt,
        ffi::SQLITE_INTERRUPT => Kind::Stopped,
        _ => Kind::Sql,
    };
    (kind, code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(code: i32) -> Kind {
        classify(&rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)).0
    }

    #[test]
    fn extended_codes_are_sorted() {
        assert_eq!(kind(517), Kind::Busy);
        assert_eq!(kind(261), Kind::Busy);
        assert_eq!(kind(13), Kind::Storage);
        assert_eq!(kind(1034), Kind::Storage);
        assert_eq!(kind(1032), Kind::Permission);
        assert_eq!(kind(267), Kind::Corrupt);
        assert_eq!(kind(26), Kind::Corrupt);
        assert_eq!(kind(9), Kind::Stopped);
        assert_eq!(kind(1), Kind::Sql);
    }
}
