//! Switches for the tests: end the process at a step, or turn one protection off to show what it protects from.
//!
//! Only with the feature `controls`, which no release has; without it every function here is empty and compiles to nothing. The
//! switches are the process's: a test that uses them runs in a process of its own. A daemon obeys two variables: `CRASH_AT`, a number
//! (of the step at which it ends itself) or a seam's name (the first time it is there), `CRASH_IN_RELOAD`, a number (of the step, counted
//! from its first reload on), and `TURNED_OFF`, names of protections, with commas.
//!
//! A new seam is one line below and one call of [`reach`] where it is; the crash ladder finds it by itself, and asks that some run
//! comes by it. A new protection is one line below and one question [`is_off`]; `tests/it/house.rs` asks for the test that turns it off.

/// An enumeration that can list its members.
macro_rules! listed {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $member:ident,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$doc])* $member,)* }

        impl $name {
            pub const ALL: &[$name] = &[$($name::$member,)*];

            pub fn named(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|member| format!("{member:?}") == name)
            }
        }
    };
}

listed! {
    /// A step at which a crash is tried.
    Seam {
        /// The source is about to be opened, a consumer to start.
        Start,
        /// A version of the state's tables has been made and is not stamped yet; its transaction is open.
        Migrate,
        /// A batch was read; it is not known to be durable yet.
        Read,
        /// It is durable.
        Barrier,
        /// A flight is about to be sent.
        Send,
        /// The file sink has handed a group of lines to the kernel; they are not synced.
        Written,
        /// They are; nobody was told.
        Synced,
        /// The file sink is about to rename a full file away, has, or has begun the next.
        Rotate,
        /// The far side has acknowledged one event of a flight.
        Acknowledged,
        /// A flight has come back.
        Landed,
        /// The far side is away: it is waited for.
        Backoff,
        /// A settlement is about to be handed to the writer.
        Settle,
        /// A checkpoint has moved; its transaction is open.
        Advance,
        /// An application's row was marked; its transaction is open.
        Mark,
        /// A refused event, or one that waits behind it, has its row; its transaction is open.
        Hold,
        /// A dead letter was written; its transaction is open.
        DeadLetter,
        /// A held row was taken away; its transaction is open.
        Unhold,
        /// What an operator asked for was done; its transaction is open.
        Operate,
        /// A transaction of the writer is about to be committed.
        Commit,
        /// It is committed; nobody was told.
        Committed,
        /// The engine knows that a settlement is recorded.
        Settled,
        /// A held key is about to be released.
        Release,
        /// All is settled, and the end of a clean stop about to be recorded.
        Stop,
        /// A flight of a replay is about to be sent, or how far it has come was written; its transaction is open.
        Replay,
        /// The copy of a dead letter was put on its way or taken away (its transaction is open), or is about to be sent.
        DeadLetterCopy,
        /// A run of a job was recorded as begun or ended; its transaction is open.
        JobRun,
        /// A job's work is about to begin, or is done and not recorded yet.
        JobWork,
        /// A snapshot was written; its transaction is open.
        Snapshot,
        /// An event was copied to the archive, and stands in the log as well, or was deleted there, since another file has it; its transaction is open.
        Archive,
        /// A row was deleted because its time is over; its transaction is open.
        Retention,
        /// Pages are given back (their transaction is open), or a file is about to be written anew, or was.
        Vacuum,
        /// A copy that is looked through is about to be made, or was.
        Integrity,
        /// An archive in a file of its own: it was made, its name stands in the other file, an event was copied into it (its transaction is open),
        /// copies are durable, events have left the log.
        ArchiveFile,
        /// A backup: a file was copied, its manifest written, it got its name, an older one went.
        Backup,
        /// A part of a backup has come to lie at the target, the last of them its manifest.
        Upload,
        /// A part of a backup was taken away from the target, the first of them its manifest.
        Withdraw,
        /// A file of a backup was brought here from the target.
        Bring,
        /// A backup was taken back and found sound; nobody was told.
        Drill,
        /// A restore in place: what lay beside the old file is moved away, the new one stands ready, the two have changed their names, the old one has
        /// the name under which it is kept.
        Restore,
        /// A reload is about to stop consumers, one of them has ended, or all is done.
        Reload,
        /// A projection's tables have been made; their transaction is open.
        Define,
        /// A projection's statements have run for one event; their transaction is open.
        Apply,
        /// Rebuilt tables are being put in the place of the live ones: these are renamed, those filled, or all is done; their transaction is open.
        Swap,
    }
}

listed! {
    /// Something that is done for safety's sake alone.
    Protection {
        /// Only what was acknowledged is settled.
        Acknowledgement,
        /// The key of a refused event is held.
        Hold,
        /// A refused event is recorded in the transaction that moves the checkpoint past it.
        OneTransaction,
        /// What is behind an event that did not get through is sent again.
        Behind,
        /// What several did together convicts nobody.
        GuiltyAlone,
        /// The checkpoint is compared with the table.
        Fingerprint,
        /// The file that a reader has open is still the one under its name.
        Inode,
        /// The checkpoint moves only from where this daemon believes it to be.
        CompareAndSet,
        /// A file is not opened where that would lock the application out of it.
        Permissions,
        /// A changed schema is compared with what is said of the table.
        Schema,
        /// A row is marked only as long as it stands as it was read.
        RowGuard,
        /// One daemon a file.
        Lock,
        /// What was read is made durable before it is sent.
        Barrier,
        /// A message that RabbitMQ returned is known by its id, whatever confirm it came with.
        Returned,
        /// A far side that owes acknowledgements for too long is left, and everything unsettled is sent again.
        AckTimeout,
        /// By row: what was read of a key while it was held is not sent once it is free, nor handed out from a list that was made before:
        /// earlier rows of it were passed over.
        Overtaking,
        /// A stop lets what is in flight come back, and settles it.
        Drain,
        /// Nothing is read by a feed whose trigger is gone, or that misses a row.
        Feed,
        /// A fed row that is deleted before it was read becomes a dead letter.
        Gone,
        /// An append that fails leaves nothing of itself in a transaction that others share.
        Savepoint,
        /// A Kafka client that does not find its brokers any more is replaced where a new one finds them.
        FreshClient,
        /// A projection's statements reach only what its section names.
        Authorizer,
        /// What a projection's statements did is committed with the settlement that moves the checkpoint past it, and not before.
        Together,
        /// A Kafka client that looks for no broker any more is given up.
        WatchedClient,
        /// Jobs of one file take turns.
        Turns,
        /// A stream is folded version by version, without a hole and without a double.
        Versions,
        /// A snapshot does not take the place of a newer one.
        NewerSnapshot,
        /// Nothing is archived that somebody still has to read.
        Passed,
        /// Nothing is archived that no snapshot holds.
        Covered,
        /// A stream's newest event is not archived.
        NewestStays,
        /// An event leaves the log only when the archive has it as it was.
        Copied,
        /// Nothing is deleted that a consumer, a held key, a dead letter or a replay still needs.
        Needed,
        /// Of a table that may give out a number again the newest row is not deleted.
        Tail,
        /// Where Litestream owns the checkpoints no file is written anew, and nobody else checkpoints.
        CheckpointOwner,
        /// And where the archive is another file, only when the copy is durable there.
        CopyFirst,
        /// What comes out of a backup, or from a target, is what was put in.
        Hashes,
        /// A file that somebody has open is not replaced.
        InUse,
        /// Nothing that lay beside the file that was replaced lies beside the restored one.
        OldWal,
        /// A reader that would go on at once lets the application's checkpoint through.
        GiveWay,
    }
}

#[cfg(feature = "controls")]
mod switches {
    use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

    use super::{Protection, Seam};

    static STEPS_LEFT: AtomicI64 = AtomicI64::new(-1);
    static CRASH_SEAM: AtomicUsize = AtomicUsize::new(usize::MAX);
    /// Taken over when a reload begins.
    static STEPS_OF_A_RELOAD: AtomicI64 = AtomicI64::new(-1);
    static OFF: AtomicU64 = AtomicU64::new(0);
    /// Seams reached, by kind.
    static REACHED: [AtomicU32; Seam::ALL.len()] = [const { AtomicU32::new(0) }; Seam::ALL.len()];

    /// From now on, the process ends at the `step`-th step (1 = the next one).
    pub fn crash_at(step: u32) {
        STEPS_LEFT.store(i64::from(step), SeqCst);
    }

    pub fn turn_off(protection: Protection) {
        OFF.fetch_or(1_u64 << protection as u32, SeqCst);
    }

    /// For a process that is not a test's own.
    #[expect(clippy::disallowed_methods, reason = "no setting of the daemon: no release has it")]
    pub fn obey_environment() {
        if let Ok(names) = std::env::var("TURNED_OFF") {
            let named = |name| Protection::named(name).expect("TURNED_OFF names protections");
            names.split(',').for_each(|name| turn_off(named(name)));
        }
        if let Ok(place) = std::env::var("CRASH_AT") {
            match place.parse() {
                Ok(step) => crash_at(step),
                Err(_) => {
                    let seam = Seam::named(&place).expect("CRASH_AT is a number or names a seam");
                    CRASH_SEAM.store(seam as usize, SeqCst);
                }
            }
        }
        if let Ok(step) = std::env::var("CRASH_IN_RELOAD") {
            STEPS_OF_A_RELOAD.store(step.parse().expect("CRASH_IN_RELOAD is a number"), SeqCst);
        }
    }

    pub fn is_off(protection: Protection) -> bool {
        OFF.load(SeqCst) & (1_u64 << protection as u32) != 0
    }

    /// How often the seam was reached in this process.
    pub fn reached(seam: Seam) -> u32 {
        REACHED[seam as usize].load(SeqCst)
    }

    #[expect(clippy::disallowed_methods, reason = "a crash is what is wanted")]
    pub fn reach(seam: Seam) {
        REACHED[seam as usize].fetch_add(1, SeqCst);
        if seam == Seam::Reload {
            let steps = STEPS_OF_A_RELOAD.swap(-1, SeqCst);
            if steps > 0 {
                STEPS_LEFT.store(steps, SeqCst);
            }
        }
        let is_step = STEPS_LEFT.load(SeqCst) > 0 && STEPS_LEFT.fetch_sub(1, SeqCst) == 1;
        if is_step || CRASH_SEAM.load(SeqCst) == seam as usize {
            eprintln!("crashed at {seam:?}");
            std::process::abort();
        }
    }
}

#[cfg(feature = "controls")]
pub use switches::{crash_at, is_off, obey_environment, reach, reached, turn_off};

#[cfg(not(feature = "controls"))]
#[inline(always)]
pub fn is_off(_: Protection) -> bool {
    false
}

#[cfg(not(feature = "controls"))]
#[inline(always)]
pub fn reach(_: Seam) {}

#[cfg(not(feature = "controls"))]
#[inline(always)]
pub fn obey_environment() {}
