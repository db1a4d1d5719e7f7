//! What a run left behind, against what was written.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use outboxd::consumer::OnReject;
use outboxd::sink::file;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, Params};

use super::course::{Course, End, Progress, Trouble, number};

/// What arrived.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub lost: Vec<usize>,
    /// Nobody committed them.
    pub phantoms: Vec<usize>,
    /// First deliveries that came after a later one of their key, although nothing had become of them before.
    pub out_of_order: Vec<usize>,
    /// Last deliveries that came before that of an earlier one of their key.
    pub ends_out_of_order: Vec<usize>,
    pub repeated: usize,
    pub unmarked: usize,
    /// An attempt was counted that was not theirs.
    pub convicted: usize,
}

impl Count {
    pub fn is_clean(&self, course: &Course) -> bool {
        let wrong = [&self.lost, &self.phantoms, &self.out_of_order, &self.ends_out_of_order];
        // The window; behind each that was refused or dropped, what was in flight of its key; and all of a flight that was cut short.
        let behind = match course.trouble {
            Trouble::None | Trouble::DeadForGood | Trouble::Replay => 0,
            Trouble::Refusals | Trouble::DeadLetters => 3 * course.window.div_ceil(course.keys),
            Trouble::Away => 2 * course.window,
        };
        wrong.iter().all(|events| events.is_empty())
            && self.repeated <= course.window + behind
            && (self.unmarked, self.convicted) == (0, 0)
    }
}

/// Each delivery, in order: which, and what was said of it.
fn deliveries(course: &Course, folder: &Path) -> Vec<(usize, String)> {
    let name = if course.end == End::Journal { "journal" } else { "lines" };
    let mut text = String::new();
    let rotated = file::rotated(&folder.join(name)).unwrap();
    for path in &rotated {
        let piece = fs::read_to_string(path).unwrap();
        assert!(piece.ends_with('\n'), "{} was rotated in the middle of a line", path.display());
        text.push_str(&piece);
    }
    assert!(course.end == End::Rotating || rotated.is_empty());
    text.push_str(&fs::read_to_string(folder.join(name)).unwrap_or_default());
    // A line that a crash has torn is not one yet.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let read = |line: &str| match course.end {
        End::Journal => {
            let (id, what) = line.split_once(' ').unwrap_or_else(|| panic!("{line}"));
            (number(id), what.to_owned())
        }
        End::File | End::Rotating => {
            let event: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
            let again = event["headers"].get("outboxd-redelivery").is_some();
            (number(event["id"].as_str().unwrap()), if again { "again" } else { "first" }.to_owned())
        }
    };
    whole.lines().map(read).collect()
}

/// What nobody counts on any more: an operator has said so.
fn given_up(course: &Course) -> Option<usize> {
    (course.trouble == Trouble::DeadLetters).then(|| course.poison()[1])
}

/// Stays a dead letter.
fn stays(course: &Course, n: usize) -> bool {
    course.trouble == Trouble::DeadForGood && course.poison().contains(&n)
}

pub fn count(course: &Course, folder: &Path) -> Count {
    let mut result = Count::default();
    let mut seen = BTreeSet::new();
    let mut last_of_key: HashMap<usize, usize> = HashMap::new();
    let mut last_at: HashMap<usize, usize> = HashMap::new();
    // An event that did not get through is overtaken by what was in flight behind it.
    let mut unlucky = BTreeSet::from(course.poison());
    let deliveries = deliveries(course, folder);
    for (at, (n, what)) in deliveries.iter().enumerate() {
        let n = *n;
        if !(1..=course.events).contains(&n) {
            result.phantoms.push(n);
        }
        if what == "replayed" {
            continue;
        }
        if what == "dropped" {
            unlucky.insert(n);
            continue;
        }
        last_at.insert(n, at);
        result.convicted += usize::from(what == "convicted");
        if seen.insert(n) {
            let last = last_of_key.entry(n % course.keys).or_default();
            if n < *last && !unlucky.contains(&n) {
                result.out_of_order.push(n);
            }
            *last = n.max(*last);
        } else {
            result.repeated += 1;
            result.unmarked += usize::from(what == "first");
        }
    }
    result.lost = (1..=course.events)
        .filter(|n| !seen.contains(n) && given_up(course) != Some(*n) && !stays(course, *n))
        .collect();
    let skips = |n: &usize| course.on_reject == OnReject::Skip && course.poison().contains(n);
    let behind = |n: &usize| {
        !skips(n) && last_at.get(n).zip(last_at.get(&(n + course.keys))).is_some_and(|(this, next)| this > next)
    };
    result.ends_out_of_order = (1..=course.events).filter(behind).collect();
    result
}

/// The files as a crash left them: looking at them changes nothing for who comes next.
pub fn look(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
    connection
}

fn one<T: rusqlite::types::FromSql>(connection: &Connection, sql: &str, params: impl Params) -> T {
    connection.query_row(sql, params, |row| row.get(0)).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn ids(connection: &Connection, sql: &str) -> BTreeSet<usize> {
    let mut statement = connection.prepare(sql).unwrap();
    let ids = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
    ids.map(|id| number(&id.unwrap())).collect()
}

/// At whatever instant it ended: both files are whole, and what is settled was delivered, or is held, or was given up.
pub fn stands_after_a_crash(course: &Course, folder: &Path) -> Result<(), String> {
    let (source, state) = (look(&course.database(folder)), course.source(folder).state_path());
    if !state.exists() {
        return Ok(());
    }
    let state = look(&state);
    for file in [&source, &state] {
        let found: String = one(file, "PRAGMA integrity_check", []);
        if found != "ok" {
            return Err(found);
        }
    }
    let stamped = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'outboxd_meta')";
    if !one::<bool>(&state, stamped, []) {
        return Ok(());
    }
    let settled: BTreeSet<usize> = if course.is_by_row() {
        let whole = "SELECT count(DISTINCT id) = ?1 AND count(*) = ?1 FROM
                     (SELECT id FROM event_outbox UNION ALL SELECT id FROM done)";
        if !one::<bool>(&source, whole, [course.events as i64]) {
            return Err("not every row is there once".to_owned());
        }
        ids(&source, "SELECT event_id FROM event_outbox WHERE status <> 'pending' UNION ALL SELECT event_id FROM done")
    } else {
        let position: i64 = one(&state, "SELECT coalesce(max(position), 0) FROM outboxd_checkpoint", []);
        (1..=position as usize).collect()
    };
    let arrived: BTreeSet<usize> =
        deliveries(course, folder).into_iter().filter(|(_, what)| what != "dropped").map(|(n, _)| n).collect();
    let held = ids(&state, "SELECT event_id FROM outboxd_held");
    let given_up = ids(&state, "SELECT event_id FROM outboxd_resolution WHERE action = 'discard'");
    let missing: Vec<_> =
        settled.iter().filter(|n| ![&arrived, &held, &given_up].iter().any(|set| set.contains(n))).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("settled, and neither delivered nor held: {missing:?}")) }
}

/// A replay sent all of it, each key in its order but for what a crash repeats.
fn replayed_in_order(course: &Course, folder: &Path) -> Result<(), String> {
    if course.trouble != Trouble::Replay {
        return Ok(());
    }
    let mut first: Vec<usize> = Vec::new();
    for (n, _) in deliveries(course, folder).into_iter().filter(|(_, what)| what == "replayed") {
        if !first.contains(&n) {
            first.push(n);
        }
    }
    let all: Vec<usize> = (1..=course.events).collect();
    if first == all { Ok(()) } else { Err(format!("replayed: {first:?}")) }
}

/// Of each event that died there is a copy, and none is under way any more.
fn copied(course: &Course, folder: &Path) -> Result<(), String> {
    if !course.has_copies() {
        return Ok(());
    }
    let text = fs::read_to_string(folder.join("copies")).unwrap_or_default();
    let copied: BTreeSet<usize> = text.lines().filter_map(|line| Some(number(line.split_once(' ')?.0))).collect();
    let left: i64 =
        one(&look(&course.source(folder).state_path()), "SELECT count(*) FROM outboxd_dead_letter_copy", []);
    let dead = BTreeSet::from(course.poison());
    if copied == dead && left == 0 { Ok(()) } else { Err(format!("copied: {copied:?}, under way: {left}")) }
}

/// Whether the last stop is recorded as a clean one.
pub fn is_clean_stop(course: &Course, folder: &Path) -> bool {
    one(&look(&course.source(folder).state_path()), "SELECT max(dirty) = 0 FROM outboxd_checkpoint", [])
}

/// When all is done and the daemon has stopped: nothing is left over, and everything fits.
pub fn stands_at_the_end(course: &Course, folder: &Path) -> Result<(), String> {
    stands_after_a_crash(course, folder)?;
    replayed_in_order(course, folder)?;
    copied(course, folder)?;
    let (source, state) = (look(&course.database(folder)), look(&course.source(folder).state_path()));
    let version =
        format!("SELECT value = '{}' FROM outboxd_meta WHERE name = 'schema_version'", outboxd::state::SCHEMA_VERSION);
    let mut all_true = vec![
        (&state, version),
        (&state, format!("SELECT count(*) = {} AND coalesce(min(state = 'dead'), 1) FROM outboxd_held", course.stay())),
        (&state, "SELECT count(*) = 1 FROM outboxd_checkpoint".to_owned()),
        (&state, format!("SELECT count(*) = {} FROM outboxd_resolution", given_up(course).iter().count())),
    ];
    if course.is_by_row() {
        let failed = given_up(course).iter().count();
        let done = if course.progress == Progress::Archived { course.events } else { 0 };
        all_true.push((&source, format!("SELECT count(*) = {done} FROM done")));
        all_true.push((&source, format!("SELECT count(*) = {failed} FROM event_outbox WHERE status = 'failed'")));
        all_true.push((
            &source,
            "SELECT NOT EXISTS (SELECT 1 FROM event_outbox WHERE status = 'published' AND published_at IS NULL)"
                .to_owned(),
        ));
    } else {
        let (events, last) = (course.events, format!("e{}", course.events));
        all_true.push((&state, format!("SELECT position = {events} AND event_id = '{last}' FROM outboxd_checkpoint")));
        // Of what could not be decoded there is no copy: its row is still needed.
        let safe = (1..=events).find(|n| stays(course, *n)).map_or(events, |first| first - 1);
        all_true.push((&state, format!("SELECT position = {safe} FROM outboxd_safe_position")));
        // Every witness is the event that stands there.
        all_true.push((
            &state,
            "SELECT min(e.value ->> 1 = 'e' || (e.value ->> 0)) FROM outboxd_checkpoint, json_each(witnesses) e"
                .to_owned(),
        ));
    }
    let wrong: Vec<_> = all_true.iter().filter(|(file, sql)| !one::<bool>(file, sql, [])).map(|(_, sql)| sql).collect();
    if wrong.is_empty() { Ok(()) } else { Err(format!("not so: {wrong:?}")) }
}
