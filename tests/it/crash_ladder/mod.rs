//! A crash at any step loses nothing, reorders nothing, and repeats no more than the window.
//!
//! The relay runs in a process of its own (this test binary once more), which ends itself at the n-th step; n goes up until a run
//! is untouched. Steps are the seams of `outboxd::controls`: a new one needs its line there and is climbed over from then on. What
//! runs is a course (`course`): a new way of recording progress, or a new trouble, is one line more in its list. After every rung, what
//! the crash left is looked at before anything else touches it (`truth`), and again when the next run is done. With a protection
//! turned off, the same count has to show what it protects from (`controls`). Real brokers have a shorter ladder (`brokers`); and the daemon
//! itself is killed from outside at its system calls (`system_calls`).

mod brokers;
mod controls;
mod course;
mod journal;
mod system_calls;
mod truth;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use outboxd::controls::{Protection, Seam};
use outboxd::state::SCHEMA_VERSION;

use self::course::{COURSES, Course};
use self::truth::{count, stands_after_a_crash, stands_at_the_end};
use crate::support::proof::Proof;

const FOLDER: &str = "OUTBOXD_TEST_FOLDER";
const COURSE: &str = "OUTBOXD_TEST_COURSE";
/// A rung waits for the disk more than it works.
const AT_ONCE: usize = 2;

/// The other process. Not a test of its own.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is the process that the others start"]
async fn child() {
    let [folder, name] = [FOLDER, COURSE].map(|name| std::env::var(name).expect("the others say it"));
    course::run(course::named(&name), Path::new(&folder)).await;
}

/// Runs the other process; says whether it came to its end.
fn run(course: &Course, folder: &Path, crash_at: Option<usize>, off: Option<Protection>) -> bool {
    let mut process = Process::new(std::env::current_exe().unwrap());
    process.args(["--exact", "crash_ladder::child", "--ignored", "--quiet", "--nocapture"]);
    process.env(FOLDER, folder).env(COURSE, course.name);
    process.stdout(Stdio::null()).stderr(fs::File::create(folder.join("said")).unwrap());
    if let Some(step) = crash_at {
        process.env("CRASH_AT", step.to_string());
    }
    if let Some(off) = off {
        process.env("TURNED_OFF", format!("{off:?}"));
    }
    process.status().unwrap().success()
}

/// Where it crashed.
fn seam(folder: &Path) -> String {
    let said = fs::read_to_string(folder.join("said")).unwrap();
    let seam = said.lines().find_map(|line| line.strip_prefix("crashed at "));
    seam.unwrap_or_else(|| panic!("it ended by itself: {said}")).to_owned()
}

/// What a rung showed.
struct Rung {
    /// `None`: nothing was reached any more.
    seam: Option<String>,
    repeated: usize,
}

async fn rung(course: &Course, step: usize) -> Rung {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    course.place(folder).await;
    let what = format!("{}, step {step}", course.name);
    let seam = (!run(course, folder, Some(step), None)).then(|| seam(folder));
    if let Some(seam) = &seam {
        stands_after_a_crash(course, folder).unwrap_or_else(|wrong| panic!("{what}, {seam}: {wrong}"));
        let said = || fs::read_to_string(folder.join("said")).unwrap();
        assert!(run(course, folder, None, None), "{what}, {seam}: the run after it fails: {}", said());
    }
    let found = count(course, folder);
    let end = fs::read_to_string(folder.join("end")).unwrap();
    assert!(end.starts_with("Running"), "{what}, {seam:?}: {end} {found:?}");
    let told = || fs::read_to_string(folder.join("journal")).unwrap_or_default().replace('\n', "; ");
    assert!(found.is_clean(course), "{what}, {seam:?}: {found:?}; {}", told());
    stands_at_the_end(course, folder).unwrap_or_else(|wrong| panic!("{what}, {seam:?}: {wrong}"));
    Rung { seam, repeated: found.repeated }
}

/// Climbs until a run is untouched.
fn climb(course: &Course) {
    let began = Instant::now();
    let (next, top) = (AtomicUsize::new(1), AtomicUsize::new(usize::MAX));
    let climber = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut rungs = Vec::new();
        loop {
            let step = next.fetch_add(1, Ordering::SeqCst);
            if step > top.load(Ordering::SeqCst) {
                return rungs;
            }
            let rung = runtime.block_on(rung(course, step));
            if rung.seam.is_none() {
                top.fetch_min(step, Ordering::SeqCst);
            }
            rungs.push(rung);
        }
    };
    let rungs: Vec<Rung> = std::thread::scope(|scope| {
        let climbers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(climber)).collect();
        climbers.into_iter().flat_map(|climber| climber.join().expect("a rung failed: see above")).collect()
    });
    let mut seams: BTreeMap<&str, usize> = BTreeMap::new();
    rungs.iter().filter_map(|rung| rung.seam.as_deref()).for_each(|seam| *seams.entry(seam).or_default() += 1);
    let crashes: usize = seams.values().sum();
    assert!(crashes >= 2 * course.events, "the ladder has rungs: {seams:?}");
    println!("{}: {crashes} rungs in {:?}: {seams:?}", course.name, began.elapsed());
    let seams: Vec<String> = seams.iter().map(|(seam, count)| format!("{seam} {count}")).collect();
    Proof::of(&format!("crash ladder, {}", course.name))
        .tried("crashes", crashes as u64)
        .found("at", seams.join(" "))
        .found("lost, phantom or out of order", 0)
        .found("most duplicates of a crash", rungs.iter().map(|rung| rung.repeated).max().unwrap_or_default());
}

#[test]
fn a_crash_at_any_step_loses_and_reorders_nothing() {
    climb(course::named("beside"));
}

#[test]
fn nor_with_the_state_inside() {
    climb(course::named("inside"));
}

#[test]
fn nor_with_durability_fast() {
    climb(course::named("fast"));
}

#[test]
fn nor_by_feed() {
    climb(course::named("by feed"));
}

#[test]
fn nor_by_row() {
    climb(course::named("by row"));
}

#[test]
fn nor_by_row_with_an_archive() {
    climb(course::named("archived"));
}

#[test]
fn nor_while_the_far_side_is_away() {
    climb(course::named("away"));
    climb(course::named("by row, away"));
}

#[test]
fn nor_while_dead_letters_are_retried_and_discarded() {
    climb(course::named("dead letters"));
    climb(course::named("skipped"));
}

#[test]
fn nor_while_dead_letters_are_retried_and_discarded_by_row() {
    climb(course::named("by row, dead letters"));
}

#[test]
fn nor_while_settled_events_are_replayed() {
    climb(course::named("replay"));
    climb(course::named("by row, replay"));
}

#[test]
fn nor_with_the_file_sink() {
    climb(course::named("to a file"));
    climb(course::named("by row, to a file"));
}

#[test]
fn nor_with_files_that_rotate() {
    climb(course::named("to files that rotate"));
    climb(course::named("by row, to files that rotate"));
}

#[test]
fn nor_while_the_tables_of_an_older_version_are_brought_on() {
    for version in 0..SCHEMA_VERSION {
        climb(course::named(&format!("tables of version {version}")));
    }
}

/// Of a whole daemon or command, and of projections: `reloads_lose_nothing`, `jobs_run_on_schedule`, `snapshots_are_true`, `archives_pass_nobody`,
/// `retention_takes_nothing_needed`, `free_pages_go_back`, `damage_is_found`, `backups_are_whole`, `backups_leave_the_host`, `projection_ladder` and `rebuilds`
/// climb over them, `restores_in_place` and `files_are_written_anew` too.
const ELSEWHERE: [Seam; 18] = [
    Seam::Reload,
    Seam::JobRun,
    Seam::JobWork,
    Seam::Snapshot,
    Seam::Archive,
    Seam::Retention,
    Seam::Vacuum,
    Seam::Integrity,
    Seam::ArchiveFile,
    Seam::Backup,
    Seam::Upload,
    Seam::Withdraw,
    Seam::Bring,
    Seam::Drill,
    Seam::Restore,
    Seam::Define,
    Seam::Apply,
    Seam::Swap,
];

/// Every seam that exists is climbed over by some course.
#[test]
fn every_seam_is_reached() {
    let reached: BTreeSet<String> = COURSES
        .iter()
        .flat_map(|course| {
            let folder = tempfile::tempdir().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(course.place(folder.path()));
            assert!(run(course, folder.path(), None, None), "{}", course.name);
            let reached = fs::read_to_string(folder.path().join("reached")).unwrap();
            reached.split(' ').map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    let missed: Vec<_> =
        Seam::ALL.iter().filter(|seam| !ELSEWHERE.contains(seam) && !reached.contains(&format!("{seam:?}"))).collect();
    assert!(missed.is_empty(), "no course comes by {missed:?}");
}
