//! Switches for the tests: end the process at the n-th step, or turn one protection off to show what it protects from.
//!
//! Only with the feature `controls`, which no release has; without it every function here is empty and compiles to nothing. The
//! switches are the process's: a test that uses them runs in a process of its own.

/// A step at which a crash is tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seam {
    /// A batch was read; it is not known to be durable yet.
    Read,
    /// It is durable.
    Barrier,
    /// A flight is about to be sent.
    Send,
    /// A flight has come back.
    Landed,
    /// A settlement is about to be handed to the writer.
    Settle,
    /// A transaction of the writer is about to be committed.
    Commit,
    /// It is committed; nobody was told.
    Committed,
    /// The engine knows that a settlement is recorded.
    Settled,
    /// A held key is about to be released.
    Release,
    /// The source is about to be opened, a consumer to start.
    Start,
    /// A reload is about to stop consumers, one of them has ended, or all is done.
    Reload,
}

/// Something that is done for safety's sake alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protection {
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
    /// One daemon a file.
    Lock,
    /// What was read is made durable before it is sent.
    Barrier,
}

#[cfg(feature = "controls")]
mod switches {
    use std::sync::atomic::{AtomicI64, AtomicU32, Ordering::SeqCst};

    use super::{Protection, Seam};

    static STEPS_LEFT: AtomicI64 = AtomicI64::new(-1);
    /// Taken over when a reload begins.
    static STEPS_OF_A_RELOAD: AtomicI64 = AtomicI64::new(-1);
    static OFF: AtomicU32 = AtomicU32::new(0);
    /// Seams reached, by kind.
    static REACHED: [AtomicU32; 11] = [const { AtomicU32::new(0) }; 11];

    /// From now on, the process ends at the `step`-th step (1 = the next one).
    pub fn crash_at(step: u32) {
        STEPS_LEFT.store(i64::from(step), SeqCst);
    }

    pub fn turn_off(protection: Protection) {
        OFF.fetch_or(1 << protection as u32, SeqCst);
    }

    /// For a process that is not a test's own: `TURNED_OFF` names one protection, as in `TURNED_OFF=GuiltyAlone`;
    /// `CRASH_IN_RELOAD=n` ends it at the n-th step from the beginning of its first reload on.
    #[expect(clippy::disallowed_methods, reason = "no setting of the daemon: no release has it")]
    pub fn obey_environment() {
        const ALL: [Protection; 10] = [
            Protection::Acknowledgement,
            Protection::Hold,
            Protection::OneTransaction,
            Protection::Behind,
            Protection::GuiltyAlone,
            Protection::Fingerprint,
            Protection::Inode,
            Protection::CompareAndSet,
            Protection::Lock,
            Protection::Barrier,
        ];
        if let Ok(step) = std::env::var("CRASH_IN_RELOAD") {
            STEPS_OF_A_RELOAD.store(step.parse().expect("CRASH_IN_RELOAD is a number"), SeqCst);
        }
        let Ok(name) = std::env::var("TURNED_OFF") else { return };
        let named = ALL.into_iter().find(|protection| format!("{protection:?}") == name);
        turn_off(named.expect("TURNED_OFF names a protection"));
    }

    pub fn is_off(protection: Protection) -> bool {
        OFF.load(SeqCst) & (1 << protection as u32) != 0
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
        if STEPS_LEFT.load(SeqCst) > 0 && STEPS_LEFT.fetch_sub(1, SeqCst) == 1 {
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
