//! Several processes append to one file, and are killed while they do.

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use outboxd::store::event::{Append, Expected, NewEvent};
use outboxd::store::fault::AppendError;
use outboxd::store::{EventStore, Options};
use serde_json::{Value, json};

use super::{Shop, WITHIN};
use crate::support::dice::Dice;
use crate::support::process::Scene;
use crate::support::rig::open;

/// `outboxd events append --each`, which is fed lines and answers each.
fn appender(folder: &Path, environment: &[(&str, &str)]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_outboxd"))
        .args(["events", "append", "./app.db", "--each", "--json", "--outbox", "--wait", "20s"])
        .current_dir(folder)
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// An append of two events, with ids of their own, to one of three streams.
fn line(process: usize, n: usize) -> String {
    let event = |which| json!({ "id": format!("{process}-{n}-{which}"), "type": "Placed", "data": { "n": n } });
    let append =
        json!({ "stream_id": format!("s{}", n % 3), "stream_type": "Order", "events": [event("a"), event("b")] });
    format!("{append}\n")
}

/// The numbers of the lines that were answered.
fn answered(child: &mut Child) -> Vec<usize> {
    let answers = BufReader::new(child.stdout.take().unwrap()).lines();
    // The last one may be torn.
    let answers = answers.map_while(|line| serde_json::from_str::<Value>(&line.ok()?).ok());
    answers.map(|answer| answer["line"].as_u64().unwrap() as usize - 1).collect()
}

/// Every append is whole or not there at all, with its outbox rows, and those that were answered are there.
fn check(file: &Path, answered: &HashSet<String>) -> usize {
    let app = open(file);
    let rows = |sql: &str| -> Vec<(String, String, i64)> {
        let mut statement = app.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        rows.map(Result::unwrap).collect()
    };
    let events = rows("SELECT id, stream_id, version FROM events ORDER BY position");
    let outbox: Vec<String> =
        rows("SELECT id, stream_id, position FROM outbox ORDER BY position").into_iter().map(|row| row.0).collect();
    assert!(events.iter().map(|row| &row.0).eq(&outbox), "events and outbox are the same");
    let mut versions: BTreeMap<&str, i64> = BTreeMap::new();
    for (_, stream, version) in &events {
        let last = versions.entry(stream).or_default();
        *last += 1;
        assert_eq!(version, last);
    }
    for pair in events.chunks(2) {
        let [(one, ..), (other, ..)] = pair else { panic!("half an append: {pair:?}") };
        assert_eq!(one.strip_suffix("-a"), other.strip_suffix("-b"), "half an append");
        assert!(one.ends_with("-a"));
    }
    let there: HashSet<&str> = events.iter().filter_map(|row| row.0.strip_suffix("-a")).collect();
    let lost: Vec<_> = answered.iter().filter(|append| !there.contains(append.as_str())).collect();
    assert!(lost.is_empty(), "answered, and not there: {lost:?}");
    there.len()
}

#[test]
fn what_was_answered_is_there_after_kills_of_two_processes() {
    let mut dice = Dice::thrown("kills of appenders");
    let scene = Scene::new("");
    let mut known: HashSet<String> = HashSet::new();
    let mut killed_at_work = 0;
    for round in 0..6 {
        let processes: Vec<usize> = vec![2 * round, 2 * round + 1];
        let mut children: Vec<Child> =
            processes.iter().map(|_| appender(scene.path("app.db").parent().unwrap(), &[])).collect();
        let feeders: Vec<_> = children
            .iter_mut()
            .zip(&processes)
            .map(|(child, process)| {
                let (mut input, process) = (child.stdin.take().unwrap(), *process);
                // It ends with the process that it feeds.
                std::thread::spawn(move || (0..).find(|n| input.write_all(line(process, *n).as_bytes()).is_err()))
            })
            .collect();
        std::thread::sleep(dice.between(Duration::from_millis(150), Duration::from_millis(500)));
        let readers: Vec<_> = children
            .iter_mut()
            .map(|child| {
                child.kill().unwrap();
                answered(child)
            })
            .collect();
        for child in &mut children {
            child.wait().unwrap();
        }
        for feeder in feeders {
            feeder.join().unwrap();
        }
        for (process, lines) in processes.iter().zip(readers) {
            killed_at_work += usize::from(!lines.is_empty());
            known.extend(lines.iter().map(|n| format!("{process}-{n}")));
        }
        let there = check(&scene.path("app.db"), &known);
        println!("round {round}: {} answered, {there} there", known.len());
    }
    assert!(killed_at_work >= 6, "they were killed at work: {killed_at_work}");
}

/// Ended at every step of its own, and run again with the same lines: whole, and once.
#[test]
#[cfg(feature = "controls")]
fn an_append_survives_a_crash_at_every_step() {
    for step in 1..30 {
        let scene = Scene::new("");
        let folder = scene.path("app.db").parent().unwrap().to_owned();
        let run = |environment: &[(&str, &str)]| {
            let mut child = appender(&folder, environment);
            let mut input = child.stdin.take().unwrap();
            (0..3).for_each(|n| input.write_all(line(0, n).as_bytes()).unwrap_or_default());
            drop(input);
            let known = answered(&mut child).into_iter().map(|n| format!("0-{n}")).collect();
            (child.wait().unwrap().success(), known)
        };
        let (is_untouched, known) = run(&[("CRASH_AT", &step.to_string())]);
        check(&folder.join("app.db"), &known);
        let (is_done, known) = run(&[]);
        assert!(is_done && known.len() == 3);
        assert_eq!(check(&folder.join("app.db"), &known), 3);
        if is_untouched {
            assert!(step > 6, "every append has its steps: {step}");
            return;
        }
    }
    panic!("no run was untouched");
}

/// Two writers that both read before they write: each version is given out once, and every append finds its place.
#[tokio::test(flavor = "multi_thread")]
async fn writers_that_meet_decide_by_version() {
    const EACH: usize = 60;
    let shop = Shop::open().await;
    let other = EventStore::open(&shop.file, Options::default()).await.unwrap();
    let write = async |store: EventStore, name: &'static str| {
        let mut conflicts = 0;
        for n in 0..EACH {
            let event = NewEvent::new("Placed", "{}").with_id(format!("{name}-{n}"));
            loop {
                let version = store.reader().version("a").await.unwrap().unwrap_or(0);
                let append = Append::new("a", "Order", Expected::Exact(version), vec![event.clone()]);
                match store.append(append, WITHIN).await {
                    Ok(done) => {
                        assert_eq!((done.first_version, done.is_repeat), (version + 1, false));
                        break;
                    }
                    Err(AppendError::Conflict { actual, .. }) => {
                        assert!(actual > Some(version));
                        conflicts += 1;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
        conflicts
    };
    // The third writes by hand, as an application in another language does, and begins IMMEDIATE.
    let file = shop.file.clone();
    let by_hand = tokio::task::spawn_blocking(move || {
        let app = open(&file);
        for n in 0..EACH {
            let sql = "BEGIN IMMEDIATE; INSERT INTO events (id, stream_id, stream_type, version, type, data)
                       SELECT 'hand-#', 'a', 'Order', 1 + coalesce(max(version), 0), 'T', '{}' FROM events WHERE stream_id = 'a'; COMMIT";
            app.execute_batch(&sql.replace('#', &n.to_string())).unwrap();
        }
    });
    let conflicts = tokio::join!(write(shop.store.clone(), "one"), write(other, "other"));
    by_hand.await.unwrap();
    println!("conflicts: {conflicts:?}");
    assert_eq!(shop.versions("a").await, (1..=3 * EACH as i64).collect::<Vec<_>>());
}
