//! The only room that opens a database file.
//!
//! Invariants:
//! 1. A file is opened through SQLite alone; of its side files only `-wal` is opened, to be made durable ([`barrier`]).
//!    Closing any other descriptor on it would drop this process's locks (`howtocorrupt`, §2.2). A file that SQLite cannot read, and that is
//!    about to be replaced, is the exception ([`sole`]).
//! 2. Every write begins with `BEGIN IMMEDIATE`, on the file's one [`writer`] thread.
//! 3. No connection checkpoints at close, changes the journal mode of an application's file, or keeps a statement open between calls.
//!
//! SQLite runs only on threads of its own: a reader thread per file (`source/`) and a writer thread per written file.
//! Where a file lies and whom it belongs to is looked at before it is opened: [`premises`].
//! How it fails: [`fault`] sorts every error into what is waited for, what halts, and what is a bug.

pub mod authorizer;
pub mod barrier;
pub mod fault;
pub mod guard;
pub mod holders;
pub mod litestream;
pub mod lockfile;
pub mod log;
pub mod open;
pub mod place;
pub mod pool;
pub mod premises;
pub mod sizes;
pub mod sole;
pub mod strain;
pub mod writer;
