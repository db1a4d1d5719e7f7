//! Directory, uid, gid and mode, with real users: where opening the file would lock its application out, it is not opened.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::{PATIENCE, config, delivered, halts, side_files, told};
use crate::support::process::{Daemon, Scene};
use crate::support::proof::Proof;
use crate::support::wait::until;

const APP: u32 = 61_001;
const SIDECAR: u32 = 61_002;
const SHARED: u32 = 61_009;

/// An application as a user of its own: it inserts what it is told to.
const PLAYS_THE_APPLICATION: &str = "
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=5)
connection.execute('SELECT count(*) FROM outbox').fetchall()
print('open', flush=True)
for line in sys.stdin:
    try:
        with connection:
            connection.execute(\"INSERT INTO outbox (id, key, type, payload) VALUES (?, 'k', 'T', '{}')\", (line.strip(),))
        print('ok', flush=True)
    except sqlite3.Error as error:
        print(error, flush=True)
";

struct App {
    child: Child,
    said: BufReader<ChildStdout>,
    told: Option<ChildStdin>,
}

impl App {
    fn start(database: &Path) -> Self {
        let mut child = Command::new("setpriv")
            .args(as_user(APP, APP))
            .args(["/usr/bin/python3", "-c", PLAYS_THE_APPLICATION])
            .arg(database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (said, told) = (BufReader::new(child.stdout.take().unwrap()), child.stdin.take());
        let mut app = Self { child, said, told };
        assert_eq!(app.line(), "open");
        app
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// `ok`, or the error.
    fn insert(&mut self, id: &str) -> String {
        writeln!(self.told.as_ref().unwrap(), "{id}").unwrap();
        self.line()
    }

    fn close(mut self) {
        drop(self.told.take());
        self.child.wait().unwrap();
    }
}

impl Drop for App {
    fn drop(&mut self) {
        drop(self.told.take());
        let _ = self.child.wait();
    }
}

fn as_user(uid: u32, gid: u32) -> Vec<String> {
    vec![format!("--reuid={uid}"), format!("--regid={gid}"), format!("--groups={SHARED}")]
}

/// A daemon's own folder, and in it `data/` with the application's file.
struct House {
    scene: Scene,
    database: PathBuf,
}

fn owned(path: &Path, uid: u32, gid: u32, mode: u32) {
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

impl House {
    /// Group and mode of the folder, and of the file; both belong to the application.
    fn new(folder: (u32, u32), file: (u32, u32), keys: &str) -> Self {
        let scene = Scene::without_a_file(&config("data/app.db", keys));
        let data = scene.path("data");
        std::fs::create_dir(&data).unwrap();
        assert!(scene.outboxd(&["init", "data/app.db"]).status.success());
        let database = data.join("app.db");
        assert_eq!(side_files(&database), 0);
        owned(&data, APP, folder.0, folder.1);
        owned(&database, APP, file.0, file.1);
        owned(data.parent().unwrap(), SIDECAR, SIDECAR, 0o711);
        owned(&scene.path("outboxd.toml"), SIDECAR, SIDECAR, 0o600);
        Self { scene, database }
    }

    fn daemon(&self, uid: u32, gid: u32) -> Daemon {
        self.daemon_of(uid, gid, "")
    }

    /// `TURNED_OFF=...` before it.
    fn daemon_of(&self, uid: u32, gid: u32, environment: &str) -> Daemon {
        let script = format!("umask 077; exec env {environment} \"$@\"");
        let user = as_user(uid, gid);
        let words: Vec<&str> =
            ["-c", &script, "sh", "setpriv"].into_iter().chain(user.iter().map(String::as_str)).collect();
        self.scene.daemon_under("sh", &words)
    }

    fn arrives(&self, count: usize) {
        until("events arrive", PATIENCE, || (delivered(&self.scene) == count).then_some(()));
    }

    /// Nothing was made beside the file, and the application can still write.
    fn nothing_was_touched(&self) {
        assert_eq!(side_files(&self.database), 0);
        let mut app = App::start(&self.database);
        assert_eq!(app.insert("still"), "ok");
        app.close();
    }
}

/// Whether users can be changed here, and those users may run the daemon.
fn users_can_be_had(proof: Proof) -> Option<Proof> {
    let tried = Command::new("setpriv")
        .args(as_user(SIDECAR, SIDECAR))
        .args([env!("CARGO_BIN_EXE_outboxd"), "--version"])
        .output();
    match tried {
        Ok(output) if output.status.success() => Some(proof),
        Ok(output) => {
            drop(
                proof.not_run(&format!("no other user can be had: {}", String::from_utf8_lossy(&output.stderr).trim())),
            );
            None
        }
        Err(error) => {
            drop(proof.not_run(&format!("setpriv cannot be run: {error}")));
            None
        }
    }
}

/// Of each row of the table: group and mode of the folder and the file, the sidecar's group, and who would be locked out.
type Place = (u32, u32);
const LOCKING_OUT: [(Place, Place, u32, &str); 3] = [
    // Group folder, setgid, but the file is the owner's alone.
    ((SHARED, 0o2775), (SHARED, 0o644), SHARED, "its owner (uid 61001)"),
    // Group folder without setgid: side files get the sidecar's own group.
    ((SHARED, 0o775), (SHARED, 0o664), SIDECAR, "its owner (uid 61001)"),
    // Everybody's folder.
    ((APP, 0o777), (APP, 0o644), SIDECAR, "its owner (uid 61001)"),
];

#[test]
fn a_file_is_not_opened_where_that_would_lock_the_application_out() {
    let Some(proof) = users_can_be_had(Proof::of("rights: folder, uid, gid and mode")) else { return };
    for (folder, file, gid, who) in LOCKING_OUT {
        let house = House::new(folder, file, "state = \"state.db\"");
        let mut daemon = house.daemon(SIDECAR, gid);
        halts(&mut daemon, &["would make", "-wal", who, "uid 61002", "Nothing was opened", "setgid"]);
        house.nothing_was_touched();
        // As it should be, and `outboxd resume`.
        owned(&house.database, APP, SHARED, 0o664);
        owned(house.database.parent().unwrap(), APP, SHARED, 0o2775);
        assert!(house.scene.outboxd(&["resume", "r"]).status.success());
        daemon.until_settled("r", 1, PATIENCE);
        house.arrives(1);
        let mut app = App::start(&house.database);
        assert_eq!(app.insert("after"), "ok", "both have it open");
        house.arrives(2);
    }
    drop(proof.tried("set-ups that would lock out", 3).found("locked out", 0));
}

/// SQLite would give side files to the database's owner, and may not.
#[test]
fn root_that_may_not_chown_is_like_everybody() {
    let Some(proof) = users_can_be_had(Proof::of("rights: root without CAP_CHOWN")) else { return };
    let house = House::new((APP, 0o755), (APP, 0o644), "state = \"state.db\"");
    let mut daemon = house.scene.daemon_under("setpriv", &["--bounding-set=-chown"]);
    halts(&mut daemon, &["would make", "(uid 0, gid 0, mode 0644)", "Nothing was opened"]);
    house.nothing_was_touched();
    drop(proof.tried("set-ups", 1));
}

/// What the look is for: without it the application cannot write its own file any more.
#[test]
#[cfg(feature = "controls")]
fn control_without_the_look_at_permissions_the_application_is_locked_out() {
    assert!(outboxd::controls::Protection::ALL.contains(&outboxd::controls::Protection::Permissions));
    let Some(proof) = users_can_be_had(Proof::of("rights: control without the look at them")) else { return };
    for (folder, file, gid, _) in LOCKING_OUT {
        let house = House::new(folder, file, "state = \"state.db\"");
        let mut daemon = house.daemon_of(SIDECAR, gid, "TURNED_OFF=Permissions");
        daemon.until_state("r", "running", PATIENCE);
        let mut app = App::start(&house.database);
        assert_eq!(app.insert("refused"), "attempt to write a readonly database", "{folder:?} {file:?}");
    }
    drop(proof.tried("set-ups", 3).found("applications locked out", 3));
}

#[test]
fn set_ups_that_work_are_taken() {
    let Some(proof) = users_can_be_had(Proof::of("rights: set-ups that work")) else { return };
    for (folder, file, uid, gid) in [
        // The application's own user.
        ((APP, 0o755), (APP, 0o644), APP, APP),
        // A setgid folder with a shared group.
        ((SHARED, 0o2775), (SHARED, 0o664), SIDECAR, SIDECAR),
        // Root, for whom SQLite gives side files to the database's owner.
        ((APP, 0o755), (APP, 0o644), 0, 0),
    ] {
        for inside in [false, true] {
            let house = House::new(folder, file, if inside { "state = \"inside\"" } else { "state = \"state.db\"" });
            // A sidecar often comes first.
            if uid == APP {
                owned(house.scene.path("").as_path(), APP, APP, 0o711);
                owned(&house.scene.path("outboxd.toml"), APP, APP, 0o600);
            }
            let mut daemon = house.daemon(uid, gid);
            daemon.until_state("r", "running", PATIENCE);
            let mut app = App::start(&house.database);
            assert_eq!(app.insert("first"), "ok", "{folder:?} {file:?} {uid} inside: {inside}");
            house.arrives(1);
            assert_eq!(daemon.stop(PATIENCE).0, Some(0));
            assert_eq!(app.insert("second"), "ok");
            app.close();
            let mut app = App::start(&house.database);
            assert_eq!(app.insert("third"), "ok");
            let mut daemon = house.daemon(uid, gid);
            daemon.until_settled("r", 3, PATIENCE);
            house.arrives(3);
        }
    }
    drop(proof.tried("set-ups, state beside and inside", 6).found("locked out", 0));
}

/// A sidecar that may only read needs the application's `-wal` and `-shm`.
#[test]
fn who_may_only_read_waits_until_the_application_has_it_open() {
    let Some(proof) = users_can_be_had(Proof::of("rights: reading only")) else { return };
    let house = House::new((APP, 0o755), (APP, 0o644), "state = \"state.db\"");
    let mut daemon = house.daemon(SIDECAR, SIDECAR);
    let status = daemon.until_state("r", "waiting", PATIENCE);
    told(&status, &["no -wal and -shm", "uid 61002"]);
    assert_eq!(side_files(&house.database), 0);
    let mut app = App::start(&house.database);
    assert_eq!(app.insert("first"), "ok");
    daemon.until_settled("r", 1, PATIENCE);
    assert_eq!(app.insert("second"), "ok");
    house.arrives(2);
    drop(proof.tried("set-ups", 1));
}

#[test]
fn what_may_not_be_read_or_written_is_named() {
    let Some(proof) = users_can_be_had(Proof::of("rights: missing")) else { return };
    for (folder, file, keys, words) in [
        (
            (APP, 0o755),
            (APP, 0o600),
            "state = \"state.db\"",
            ["app.db (uid 61001, gid 61001, mode 0600) cannot be read", "Permission denied"],
        ),
        ((APP, 0o700), (APP, 0o644), "state = \"state.db\"", ["cannot be reached", "Permission denied"]),
        (
            (APP, 0o755),
            (APP, 0o644),
            "state = \"inside\"",
            ["mode 0644) cannot be written, where the state is to stand", "Permission denied"],
        ),
        (
            (APP, 0o755),
            (APP, 0o666),
            "state = \"inside\"",
            ["cannot be written, where files beside the database are to be made", "mode 0755"],
        ),
        (
            (APP, 0o755),
            (APP, 0o644),
            "",
            ["app.db-outboxd.db cannot be written: nothing can be made in its folder", "state = \"/var/lib"],
        ),
        ((APP, 0o755), (APP, 0o644), "state = \"nowhere/state.db\"", ["nowhere is not there", "make it"]),
    ] {
        let house = House::new(folder, file, keys);
        let mut daemon = house.daemon(SIDECAR, SIDECAR);
        halts(&mut daemon, &words);
        house.nothing_was_touched();
    }
    drop(proof.tried("set-ups", 6).found("touched", 0));
}

/// Somebody was there before as the wrong user: what he left keeps the application out, and is named.
#[test]
fn side_files_of_the_wrong_owner_are_named() {
    let Some(proof) = users_can_be_had(Proof::of("rights: side files of the wrong owner")) else { return };
    let house = House::new((APP, 0o755), (APP, 0o644), "state = \"state.db\"");
    for end in ["-wal", "-shm"] {
        let side = house.scene.path(&format!("data/app.db{end}"));
        std::fs::write(&side, "").unwrap();
        owned(&side, SIDECAR, SIDECAR, 0o644);
    }
    let mut daemon = house.daemon(SIDECAR, SIDECAR);
    halts(
        &mut daemon,
        &["-wal (uid 61002, gid 61002, mode 0644) cannot be written by its owner (uid 61001)", "chown --reference"],
    );
    drop(proof.tried("set-ups", 1));
}

/// `outboxd check` says what the daemon would, and makes nothing.
#[test]
fn check_looks_at_rights_without_opening_anything() {
    let Some(proof) = users_can_be_had(Proof::of("rights: check")) else { return };
    let (folder, file, gid, _) = LOCKING_OUT[0];
    let house = House::new(folder, file, "state = \"state.db\"");
    let output = Command::new("setpriv")
        .args(as_user(SIDECAR, gid))
        .args([env!("CARGO_BIN_EXE_outboxd"), "-c", "outboxd.toml", "check", "--offline"])
        .current_dir(house.scene.path(""))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(65) && said.contains("Nothing was opened"), "{said}");
    house.nothing_was_touched();
    drop(proof.tried("set-ups", 1));
}
