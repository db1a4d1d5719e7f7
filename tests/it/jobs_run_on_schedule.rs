//! Jobs: a missed run is caught up once, two runs never overlap, a stop ends one, a kill leaves nothing behind, a clock that is set or summer
//! time makes it neither zero nor two. What the work is does not matter here: it is `type = "trial"`, which writes into `trials` when it
//! began and ended, and has a file `NAME.partial` in between.

use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::clocks_are_set_at_will::{Clock, library};
use crate::support::manager::Manager;
use crate::support::process::{Daemon, SHOP, Scene, shared_machine};
use crate::support::proof::Proof;
use crate::support::wait::{throughout, until, within};
use crate::the_controls_fail_without_their_protection::without;

const PATIENCE: Duration = Duration::from_secs(20);

fn job(name: &str, keys: &str) -> String {
    format!("\n[jobs.{name}]\ntype = \"trial\"\nsource = \"shop\"\n{keys}\n")
}

fn scene(jobs: &[String]) -> Scene {
    Scene::new(&[&[SHOP.to_owned()], jobs].concat().concat())
}

fn trials(scene: &Scene) -> Vec<String> {
    let text = std::fs::read_to_string(scene.path("trials")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn state(scene: &Scene) -> Connection {
    let connection = Connection::open(scene.path("app.db-outboxd.db")).unwrap();
    connection.busy_timeout(PATIENCE).unwrap();
    connection
}

/// Of a job's runs, the oldest first: how each ended.
fn results(scene: &Scene, job: &str) -> Vec<Option<String>> {
    let connection = state(scene);
    let mut statement = connection.prepare("SELECT result FROM outboxd_job_run WHERE job = ?1 ORDER BY rowid").unwrap();
    statement.query_map([job], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

fn ended(words: &[&str]) -> Vec<Option<String>> {
    words.iter().map(|word| Some((*word).to_owned())).collect()
}

fn shown(daemon: &Daemon, job: &str) -> Option<Value> {
    let answer = daemon.ask(&json!({ "command": "job", "action": "list" }))?;
    answer["jobs"].as_array()?.iter().find(|shown| shown["name"] == job).cloned()
}

/// Waits until the job is in this state.
fn is(daemon: &Daemon, job: &str, state: &str) -> Value {
    until(&format!("{job} is {state}"), PATIENCE, || shown(daemon, job).filter(|shown| shown["state"] == state))
}

fn began(scene: &Scene, job: &str) {
    let line = format!("{job} began");
    until(&line, PATIENCE, || trials(scene).contains(&line).then_some(()));
}

#[test]
fn a_missed_run_is_caught_up_once() {
    let _machine = shared_machine();
    let scene = scene(&[job("often", "every = \"1h\""), job("nightly", "schedule = \"0 3 * * *\"")]);
    let mut daemon = scene.daemon();
    for job in ["often", "nightly"] {
        assert_eq!(is(&daemon, job, "scheduled")["last"], Value::Null, "it is known, and has not run");
    }
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
    assert_eq!(trials(&scene), Vec::<String>::new());
    // Two days pass.
    let past = "UPDATE outboxd_job_run SET began = strftime('%Y-%m-%dT%H:%M:%S.000000Z', 'now', '-2 days')";
    assert_eq!(state(&scene).execute(past, []).unwrap(), 2);
    let daemon = scene.daemon();
    for job in ["often", "nightly"] {
        until("it has run", PATIENCE, || shown(&daemon, job).filter(|job| job["last"]["result"] == "done"));
    }
    throughout("it has run once", Duration::from_millis(500), || trials(&scene).len() == 4);
    assert_eq!(results(&scene, "nightly"), ended(&["known", "done"]));
    let shown = is(&daemon, "often", "scheduled");
    assert!(shown["next"].as_str() > shown["last"]["began"].as_str(), "{shown}");
    assert_eq!(daemon.metric("outboxd_job_runs_total{job=\"often\",result=\"done\"}"), Some(1.0));
    let success = daemon.metric("outboxd_job_last_success_timestamp_seconds{job=\"often\"}").unwrap();
    assert!(success > 1.7e9, "{success}");
    assert_eq!(daemon.metric("outboxd_job_duration_seconds_count{job=\"often\"}"), Some(1.0));
    let (status, api) = (daemon.get("/api/v1/status").1, daemon.get("/api/v1/jobs").1);
    let (status, api): (Value, Value) = (serde_json::from_str(&status).unwrap(), serde_json::from_str(&api).unwrap());
    assert_eq!((api[1]["name"].as_str(), status["jobs"].as_array().map(Vec::len)), (Some("often"), Some(2)));
}

#[test]
fn two_runs_never_overlap() {
    let _machine = shared_machine();
    let slow = "schedule = \"0 3 1 1 *\"\ntakes = \"700ms\"";
    let scene = scene(&[job("a", slow), job("b", slow)]);
    let daemon = scene.daemon();
    is(&daemon, "a", "scheduled");
    is(&daemon, "b", "scheduled");
    let codes = std::thread::scope(|scope| {
        let scene = &scene;
        let first = scope.spawn(move || scene.outboxd(&["job", "run", "a"]));
        is(&daemon, "a", "running");
        let other = scope.spawn(move || scene.outboxd(&["job", "run", "b"]));
        is(&daemon, "b", "queued");
        let busy = scene.outboxd(&["job", "run", "a"]);
        assert!(String::from_utf8_lossy(&busy.stderr).contains("never overlap"), "{busy:?}");
        [busy, first.join().unwrap(), other.join().unwrap()].map(|output| output.status.code())
    });
    assert_eq!(codes, [Some(75), Some(0), Some(0)]);
    assert_eq!(trials(&scene), ["a began", "a ended", "b began", "b ended"], "jobs of one file take turns");
    assert_eq!(results(&scene, "a"), ended(&["known", "done"]));
}

#[test]
fn control_without_turns_two_jobs_work_on_one_file_at_once() {
    let _machine = shared_machine();
    let slow = "every = \"1s\"\ntakes = \"1h\"";
    let scene = scene(&[job("a", slow), job("b", slow)]);
    let _daemon = scene.daemon_with(&without("Turns"));
    began(&scene, "a");
    began(&scene, "b");
}

#[test]
fn a_killed_run_leaves_nothing_and_is_told() {
    let _machine = shared_machine();
    let scene = scene(&[job("long", "every = \"1s\"\ntakes = \"1h\"")]);
    let mut daemon = scene.daemon();
    began(&scene, "long");
    assert!(scene.path("long.partial").exists());
    daemon.kill();
    assert_eq!(results(&scene, "long").last(), Some(&None), "it has no end");
    scene.configure(&[SHOP, &job("long", "every = \"1h\"")].concat());
    let listed = scene.outboxd(&["job", "list"]);
    assert_eq!(listed.status.code(), Some(0));
    let daemon = scene.daemon();
    let shown = is(&daemon, "long", "scheduled");
    assert_eq!(shown["last"]["result"], "killed", "{shown}");
    assert!(daemon.log().contains("event=job_was_killed job=long"), "{}", daemon.log());
    assert!(!scene.path("long.partial").exists(), "what it left is gone");
    assert_eq!(daemon.metric("outboxd_job_runs_total{job=\"long\",result=\"killed\"}"), Some(1.0));
}

#[test]
fn a_stop_ends_a_running_job_within_a_second() {
    let _machine = shared_machine();
    for (deaf, result) in [("", Some("aborted")), ("is_deaf = true", None)] {
        let scene = scene(&[job("long", &format!("every = \"1s\"\ntakes = \"1h\"\n{deaf}"))]);
        let mut daemon = scene.daemon();
        began(&scene, "long");
        let (code, took) = daemon.stop(PATIENCE);
        // The second, and what a busy machine needs to start and end a process.
        assert!(code == Some(0) && took < Duration::from_millis(1800), "{code:?} after {took:?}");
        assert_eq!(results(&scene, "long").last(), Some(&result.map(str::to_owned)));
        assert_eq!(scene.path("long.partial").exists(), result.is_none());
    }
}

/// A run that does not look whether it has to end is let go of; until it has ended, nobody works beside it, and nothing is removed under it.
#[test]
fn a_run_that_does_not_hear_a_reload_keeps_its_turn() {
    let _machine = shared_machine();
    let long = |takes: &str| job("long", &format!("every = \"1s\"\ntakes = \"{takes}\"\nis_deaf = true"));
    let scene = scene(&[long("4s"), job("other", "every = \"1h\"")]);
    let daemon = scene.daemon();
    is(&daemon, "other", "scheduled");
    began(&scene, "long");
    scene.reconfigure(&[SHOP, &long("1ms"), &job("other", "every = \"1s\"")].concat());
    let reloaded = scene.outboxd(&["reload"]);
    assert_eq!(reloaded.status.code(), Some(0), "{reloaded:?}");
    let waits = until("it waits for itself", PATIENCE, || shown(&daemon, "long").filter(|job| job["detail"] != ""));
    assert!(waits["detail"].as_str().unwrap().contains("has not ended yet"), "{waits}");
    assert!(scene.path("long.partial").exists(), "nothing is removed under it");
    let lines = until("all have run", PATIENCE, || {
        let lines = trials(&scene);
        (lines.iter().filter(|line| *line == "long ended").count() >= 2 && lines.contains(&"other ended".into()))
            .then_some(lines)
    });
    let pairs: Vec<&[String]> = lines.chunks_exact(2).collect();
    assert!(
        pairs.iter().all(|pair| pair[0].replace("began", "ended") == pair[1]),
        "one works beside another: {lines:?}"
    );
    assert_eq!(pairs[0], ["long began", "long ended"]);
    assert_eq!(results(&scene, "long")[1], Some("killed".into()), "how it ended is not known");
}

/// Another process holds the state's write lock: the job cannot open it, and is told to end.
#[test]
fn a_job_that_opens_its_state_hears_a_stop_and_a_reload() {
    let _machine = shared_machine();
    let scene = scene(&[job("j", "every = \"1h\"")]);
    let mut daemon = scene.daemon();
    is(&daemon, "j", "scheduled");
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
    let locked = state(&scene);
    locked.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut daemon = scene.daemon();
    let series = "outboxd_transactions_total{file=\"app.db-outboxd.db\",result=\"retried\"}";
    let opens = || until("it opens its state", PATIENCE, || daemon.metric(series).filter(|count| *count > 0.0));
    opens();
    scene.reconfigure(&[SHOP, &job("j", "every = \"2h\"")].concat());
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| scene.outboxd(&["reload"]));
        let heard = within(PATIENCE, || reload.is_finished().then_some(()));
        if heard.is_none() {
            locked.execute_batch("ROLLBACK").unwrap();
        }
        let reloaded = reload.join().unwrap();
        assert!(heard.is_some() && reloaded.status.code() == Some(0), "{reloaded:?}");
    });
    assert_eq!(is(&daemon, "j", "waiting")["schedule"], "every 2h");
    locked.execute_batch("ROLLBACK").unwrap();
    is(&daemon, "j", "scheduled");
    locked.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
    let mut daemon = scene.daemon();
    until("it opens its state", PATIENCE, || daemon.metric(series).filter(|count| *count > 0.0));
    let (code, took) = daemon.stop(PATIENCE);
    assert!(code == Some(0) && took < PATIENCE / 2, "{code:?} after {took:?}");
}

#[test]
fn a_failed_run_is_told_by_name_and_by_exit_code() {
    let _machine = shared_machine();
    let scene = scene(&[job("bad", "every = \"1h\"\nfails = \"stream 7 has a hole\""), job("well", "every = \"1h\"")]);
    for by_daemon in [false, true] {
        let daemon = by_daemon.then(|| scene.daemon());
        if let Some(daemon) = &daemon {
            is(daemon, "bad", "scheduled");
            is(daemon, "well", "scheduled");
        }
        let failed = scene.outboxd(&["job", "run", "bad"]);
        let told = String::from_utf8_lossy(&failed.stderr);
        assert!(failed.status.code() == Some(65) && told.contains("stream 7 has a hole"), "{failed:?}");
        let well = scene.outboxd(&["job", "run", "well"]);
        let printed = String::from_utf8_lossy(&well.stdout);
        assert!(well.status.code() == Some(0) && printed.starts_with("well is done, in "), "{well:?}");
        let unknown = scene.outboxd(&["job", "run", "wel"]);
        assert_eq!(unknown.status.code(), Some(64));
        let listed = scene.outboxd(&["job", "list", "--json"]);
        let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
        assert_eq!(listed["jobs"][0]["last"]["result"], "failed", "{listed}");
        assert_eq!(listed["jobs"][1]["last"]["detail"], "well", "{listed}");
        if let Some(daemon) = daemon {
            assert!(daemon.log().contains("event=job_failed job=bad"), "{}", daemon.log());
            assert_eq!(daemon.metric("outboxd_job_runs_total{job=\"bad\",result=\"failed\"}"), Some(1.0));
            assert_eq!(daemon.metric("outboxd_job_last_success_timestamp_seconds{job=\"bad\"}"), Some(0.0));
        }
    }
    assert_eq!(results(&scene, "bad"), ended(&["known", "failed", "failed"]));
}

#[test]
fn a_job_waits_for_its_file_and_for_the_lock() {
    let _machine = shared_machine();
    let scene = Scene::without_a_file(&[SHOP, &job("j", "every = \"1h\"")].concat());
    let mut daemon = scene.daemon();
    let waits = is(&daemon, "j", "waiting");
    assert!(waits["detail"].as_str().unwrap().contains("app.db is not there yet"), "{waits}");
    assert!(!scene.path("app.db-outboxd.db").exists(), "nothing is made for a file that is not there");
    let refused = scene.outboxd(&["job", "run", "j"]);
    assert_eq!(refused.status.code(), Some(69), "{refused:?}");
    scene.init();
    is(&daemon, "j", "scheduled");
    // Another daemon, and a command that finds no daemon at its own socket.
    let other = SHOP.replace("[daemon]", "[daemon]\ncontrol = \"unix:other.sock\"");
    scene.write("other.toml", &[&other, job("j", "every = \"1h\"").as_str()].concat());
    let held = scene.outboxd(&["-c", "other.toml", "job", "run", "j"]);
    assert_eq!(held.status.code(), Some(75), "{held:?}");
    let second = scene.daemon_of("other.toml");
    let waits = is(&second, "j", "waiting");
    assert!(waits["detail"].as_str().unwrap().contains("is held by process"), "{waits}");
    assert_eq!(daemon.stop(PATIENCE).0, Some(0));
    is(&second, "j", "scheduled");
}

#[test]
fn a_reload_restarts_the_jobs_that_changed_and_no_other() {
    let _machine = shared_machine();
    let (long, every) = ("every = \"1s\"\ntakes = \"1h\"", "every = \"1h\"");
    let scene = scene(&[job("stays", long), job("changes", every), job("goes", every)]);
    let daemon = scene.daemon();
    began(&scene, "stays");
    is(&daemon, "changes", "scheduled");
    is(&daemon, "goes", "scheduled");
    scene.reconfigure(&[SHOP, &job("stays", long), &job("changes", "every = \"2h\""), &job("comes", every)].concat());
    let told = scene.outboxd(&["reload", "--json"]);
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    let expected =
        json!({ "started": ["comes"], "restarted": ["changes"], "stopped": ["goes"], "unchanged": ["stays"] });
    assert_eq!(told["jobs"], expected);
    assert_eq!(is(&daemon, "changes", "scheduled")["schedule"], "every 2h");
    is(&daemon, "comes", "scheduled");
    assert_eq!((shown(&daemon, "goes"), is(&daemon, "stays", "running")["detail"].as_str()), (None, Some("")));
    assert_eq!(trials(&scene), ["stays began"], "it was not disturbed");
    assert_eq!(daemon.metric("outboxd_job_runs_total{job=\"goes\",result=\"done\"}"), None);
    // A run of a job that changes is aborted.
    scene.reconfigure(&[SHOP, &job("stays", every)].concat());
    daemon.hang_up();
    until("it was aborted", PATIENCE, || {
        (results(&scene, "stays").last() == Some(&Some("aborted".into()))).then_some(())
    });
    let shown = is(&daemon, "stays", "scheduled");
    assert_eq!((shown["schedule"].as_str(), shown["last"]["result"].as_str()), (Some("every 1h"), Some("aborted")));
}

/// tokio-cron-scheduler fires, by the clock on the wall; summer time ends, the hour comes twice, and the daemon is killed in between.
#[test]
fn a_night_in_which_an_hour_comes_twice_has_one_run() {
    let _machine = shared_machine();
    let Some(library) = library() else {
        Proof::of("jobs and clocks").not_run("libfaketime is not installed (scripts/setup installs it)");
        return;
    };
    let scene = scene(&[job("nightly", "schedule = \"30 2 * * *\"\ntime_zone = \"Europe/Zurich\"")]);
    let clock = Clock::of(&library, &scene, "UTC");
    let _manager = Manager::at(&clock.notify);
    let at = |time: &str| clock.set(time);
    at("@2026-10-24 20:00:00");
    let mut daemon = clock.start(&scene);
    assert_eq!(is(&daemon, "nightly", "scheduled")["next"], "2026-10-25T00:30:00.000000Z");
    assert!(trials(&scene).is_empty());
    at("@2026-10-25 00:29:58");
    until("it was fired", Duration::from_secs(30), || (trials(&scene).len() == 2).then_some(()));
    // The clock is set back over the time of the run, which began a moment behind it; a start looks at once.
    daemon.kill();
    at("@2026-10-25 00:29:58");
    let mut daemon = clock.start(&scene);
    assert_eq!(is(&daemon, "nightly", "scheduled")["next"], "2026-10-26T01:30:00.000000Z");
    throughout("one run", Duration::from_millis(2500), || trials(&scene).len() == 2);
    // It is half past two again, and once more after a kill.
    at("@2026-10-25 01:29:59");
    throughout("one run", Duration::from_millis(1800), || trials(&scene).len() == 2);
    daemon.kill();
    let daemon = clock.start(&scene);
    assert_eq!(is(&daemon, "nightly", "scheduled")["next"], "2026-10-26T01:30:00.000000Z");
    assert_eq!(trials(&scene).len(), 2, "one run");
    // A clock that is far ahead makes one run, not hundreds; set right again, the next day has its own.
    at("@2027-11-01 12:00:00");
    until("it was caught up", Duration::from_secs(30), || (trials(&scene).len() == 4).then_some(()));
    drop(daemon);
    at("@2026-10-26 12:00:00");
    let daemon = clock.start(&scene);
    until("the day has its run", PATIENCE, || (trials(&scene).len() == 6).then_some(()));
    assert_eq!(is(&daemon, "nightly", "scheduled")["next"], "2026-10-27T01:30:00.000000Z");
    Proof::of("jobs and clocks").tried("clocks that are set", 6).found("runs too many or too few", 0);
}

/// A command that runs a job is ended at each of its steps; what the next one finds is as if the run had not been, or had been.
#[test]
fn a_crash_anywhere_in_a_run_is_recovered_from() {
    let scene = scene(&[job("j", "every = \"1h\"")]);
    let mut seams = std::collections::BTreeMap::<String, u64>::new();
    for step in 1.. {
        let crashed = scene.outboxd_with(&["job", "run", "j"], &[("CRASH_AT", &step.to_string())]);
        let said = String::from_utf8_lossy(&crashed.stderr).into_owned();
        let Some(seam) = said.lines().find_map(|line| line.strip_prefix("crashed at ")) else {
            assert!(crashed.status.success(), "{said}");
            break;
        };
        *seams.entry(seam.to_owned()).or_default() += 1;
        let after = scene.outboxd(&["job", "run", "j"]);
        assert!(after.status.success(), "after step {step}: {after:?}");
        assert!(!scene.path("j.partial").exists(), "after step {step}");
        let results = results(&scene, "j");
        assert!(results.iter().all(Option::is_some), "after step {step}: {results:?}");
        assert_eq!(results.last(), Some(&Some("done".to_owned())));
    }
    let done = results(&scene, "j").iter().filter(|result| result.as_deref() == Some("done")).count();
    let whole = trials(&scene).iter().filter(|line| *line == "j ended").count();
    println!("{seams:?}: {done} recorded as done, {whole} were");
    assert!(done <= whole, "no run is recorded as done that was not");
    assert!(seams["JobRun"] >= 2 && seams["JobWork"] == 2, "{seams:?}");
    let crashes = seams.values().sum();
    Proof::of("crash ladder, jobs").tried("crashes", crashes).found("recorded as done and were not", 0);
}

#[test]
fn jobs_that_wait_write_nothing() {
    let _machine = shared_machine();
    let scene = scene(&[job("a", "every = \"1h\""), job("b", "schedule = \"0 3 1 1 *\"\njitter = \"1h\"")]);
    let daemon = scene.daemon();
    is(&daemon, "a", "scheduled");
    is(&daemon, "b", "scheduled");
    let written = || {
        let io = std::fs::read_to_string(format!("/proc/{}/io", daemon.pid())).unwrap();
        io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap().parse::<u64>().unwrap()
    };
    let (before, cpu, began) = (written(), daemon.cpu(), Instant::now());
    throughout("nothing is written", Duration::from_secs(3), || written() == before);
    let share = (daemon.cpu() - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
    assert!(share < 0.03, "{share} of a CPU while nothing happens");
}

#[test]
fn what_is_wrong_with_a_job_is_told_with_place_and_remedy() {
    let jobs = [
        job("both", "every = \"1h\"\nschedule = \"0 3 * * *\""),
        job("never", "schedule = \"0 0 30 2 *\""),
        job("fields", "schedule = \"0 0 3 * * *\""),
        job("none", ""),
        job("zone", "schedule = \"0 3 * * *\"\ntime_zone = \"Europe/Zurch\""),
        job("fast", "every = \"1ms\"\njitter = \"2d\""),
        job("misspelt", "evry = \"1h\"\nevery = \"1h\""),
        "[jobs.lost]\ntype = \"trial\"\nsource = \"shp\"\nevery = \"1h\"\n".to_owned(),
        "[jobs.typeless]\nsource = \"shop\"\n".to_owned(),
        "[jobs.other]\ntype = \"vacum\"\n".to_owned(),
    ];
    let scene = Scene::without_a_file(&[&[SHOP.to_owned()], &jobs[..]].concat().concat());
    let output = scene.outboxd(&["config", "show"]);
    assert_eq!(output.status.code(), Some(78));
    let told = String::from_utf8_lossy(&output.stderr);
    for (key, reason, remedy) in [
        ("jobs.both.every", "`schedule` and `every` are both said", "keep one of them"),
        ("jobs.never.schedule", "\"0 0 30 2 *\" never comes", "write minute, hour, day"),
        ("jobs.fields.schedule", "is no schedule: ", "write minute, hour, day"),
        ("jobs.none.schedule", "when it runs must be said", "for example: schedule = \"0 3 * * *\", or every"),
        ("jobs.zone.time_zone", "there is no time zone \"Europe/Zurch\"", "did you mean \"Europe/Zurich\"?"),
        ("jobs.fast.every", "1ms is out of bounds", "write something from 1s"),
        ("jobs.fast.jitter", "2d is out of bounds", "write something from 0s to 1d"),
        ("jobs.misspelt.evry", "there is no such key", "did you mean `every`?"),
        ("jobs.lost.source", "there is no section [sources.shp]", "did you mean \"shop\"?"),
        ("jobs.typeless.type", "must be said", "write "),
        ("jobs.other.type", "there is no such type of job", "did you mean `vacuum`?"),
    ] {
        let block = told.split("\n\n").find(|block| block.starts_with(&format!("error: {key}  (outboxd.toml, line")));
        let block = block.unwrap_or_else(|| panic!("nothing is told of {key}:\n{told}"));
        assert!(block.contains(reason) && block.contains(&format!("fix: {remedy}")), "{block}");
    }
    assert!(told.contains("The configuration has 11 errors"), "{told}");
}
