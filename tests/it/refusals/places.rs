//! Where a file lies, and what wrote it.

use std::process::Command;

use super::{PATIENCE, check_tells, config, delivered, halts, side_files, told};
use crate::support::disk::{Mirror, SmallDisk};
use crate::support::process::{Daemon, Scene};
use crate::support::proof::Proof;
use crate::support::rig;
use crate::support::wait::until;

fn arrives(scene: &Scene, count: usize) {
    until("events arrive", PATIENCE, || (delivered(scene) == count).then_some(()));
}

fn warnings(daemon: &Daemon) -> Vec<String> {
    let status = daemon.status("r").unwrap();
    status["warnings"].as_array().unwrap().iter().map(|warning| warning.as_str().unwrap().to_owned()).collect()
}

/// On a real FUSE mount; NFS, SMB and 9p are known by the same call and the next lines of the same table
/// (`network_file_systems_are_known_by_their_type`).
#[test]
fn a_network_file_system_is_refused_unless_allowed() {
    Proof::of("network file systems: NFS, SMB and 9p")
        .not_run("no server of these is here; their statfs types are told apart in a table");
    let proof = Proof::of("network file systems: FUSE");
    let scene = Scene::new("");
    let app = rig::open(&scene.path("app.db"));
    rig::insert(&app, "e1", "k");
    let mirror = match Mirror::new(&scene.path("")) {
        Ok(mirror) => mirror,
        Err(why) => return drop(proof.not_run(&format!("FUSE cannot be mounted here: {why}"))),
    };
    let path = mirror.path("app.db").display().to_string();
    let words = ["lies on a FUSE file system", "statfs type 0x65735546", "allow_network_filesystem = true"];
    // The file there, and the state here; the state there, and the file here.
    for (file, state) in [(path.as_str(), "state.db"), ("app.db", &mirror.path("state.db").display().to_string())] {
        scene.configure(&config(file, &format!("state = \"{state}\"")));
        check_tells(&scene, &words);
        halts(&mut scene.daemon(), &words);
        assert_eq!(delivered(&scene), 0);
    }
    scene.configure(&config(&path, "state = \"state.db\"\nallow_network_filesystem = true"));
    let mut daemon = scene.daemon();
    daemon.until_settled("r", 1, PATIENCE);
    arrives(&scene, 1);
    assert!(warnings(&daemon)[0].contains(words[0]), "{:?}", warnings(&daemon));
    assert!(daemon.get("/readyz?verbose").1.contains("r: warning: "));
    daemon.stop(PATIENCE);
    drop(proof.tried("mounts", 1));
}

#[test]
fn read_only_media_are_refused() {
    let proof = Proof::of("read-only media");
    let disk = match SmallDisk::new(8_192) {
        Ok(disk) => disk,
        Err(why) => return drop(proof.not_run(&format!("file systems cannot be mounted here: {why}"))),
    };
    let path = disk.path("app.db").display().to_string();
    let scene = Scene::without_a_file("");
    assert!(scene.outboxd(&["init", &path]).status.success());
    rig::insert(&rig::open(&disk.path("app.db")), "e1", "k");
    assert_eq!(side_files(&disk.path("app.db")), 0);
    disk.read_only(true);
    // The state cannot be made beside it, nor stand in it.
    for keys in ["", "state = \"inside\""] {
        scene.configure(&config(&path, keys));
        check_tells(&scene, &["Read-only file system"]);
        halts(&mut scene.daemon(), &["Read-only file system"]);
    }
    // Elsewhere it can; the file itself is read as soon as an application has made what WAL mode needs.
    scene.configure(&config(&path, "state = \"state.db\""));
    let mut daemon = scene.daemon();
    told(&daemon.until_state("r", "waiting", PATIENCE), &["no -wal and -shm", "Read-only file system"]);
    disk.read_only(false);
    let app = rig::open(&disk.path("app.db"));
    rig::insert(&app, "e2", "k");
    daemon.until_settled("r", 2, PATIENCE);
    arrives(&scene, 2);
    daemon.stop(PATIENCE);
    drop(app);
    drop(proof.tried("mounts", 1));
}

#[test]
fn what_is_no_database_is_refused() {
    let scene = Scene::without_a_file("");
    std::fs::create_dir(scene.path("folder.db")).unwrap();
    scene.write("text.db", &"this is no database, but long enough to be one\n".repeat(100));
    for (path, words) in [("folder.db", "is no file"), ("text.db", "file is not a database")] {
        scene.configure(&config(path, ""));
        check_tells(&scene, &[words, "Remedy: "]);
        halts(&mut scene.daemon(), &[words]);
    }
    assert!(std::fs::read_to_string(scene.path("text.db")).unwrap().starts_with("this is no database"));
}

/// Debian's own SQLite wrote the file last.
#[test]
fn an_old_sqlite_as_the_last_writer_is_a_warning() {
    let proof = Proof::of("an old SQLite as the last writer");
    let scene = Scene::new(&config("app.db", ""));
    let script = "import sqlite3; c = sqlite3.connect('app.db'); c.execute('CREATE TABLE other (x)'); c.close(); print(sqlite3.sqlite_version)";
    let python = Command::new("/usr/bin/python3").args(["-c", script]).current_dir(scene.path("")).output().unwrap();
    let version = String::from_utf8(python.stdout).unwrap().trim().to_owned();
    let number: Vec<u32> = version.split('.').map(|part| part.parse().unwrap()).collect();
    if number >= vec![3, 51, 3] {
        return drop(proof.not_run(&format!("the SQLite of this machine's Python is {version}")));
    }
    let words = format!("was last written by SQLite {version}, of the versions before 3.51.3");
    let mut daemon = scene.daemon();
    daemon.until_state("r", "running", PATIENCE);
    let told = warnings(&daemon);
    assert!(told.len() == 1 && told[0].contains(&words) && told[0].contains("Remedy: "), "{told:?}");
    assert!(daemon.get("/readyz?consumers&verbose").1.contains(&words), "it is shown, and no reason not to be ready");
    assert_eq!(daemon.get("/readyz?consumers").0, 200);
    let checked = scene.outboxd(&["-c", "outboxd.toml", "check", "--offline"]);
    assert!(checked.status.code() == Some(0) && String::from_utf8_lossy(&checked.stdout).contains(&words));
    let status = scene.outboxd(&["-c", "outboxd.toml", "status"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains(&words));
    daemon.stop(PATIENCE);
    // Written by a newer one, it is well.
    rig::open(&scene.path("app.db")).execute_batch("CREATE TABLE another (x)").unwrap();
    let mut daemon = scene.daemon();
    daemon.until_state("r", "running", PATIENCE);
    assert_eq!(warnings(&daemon), Vec::<String>::new());
    drop(proof.tried("versions", 1).found("version", version));
}
