//! The real daemon as a process of its own, in a folder with an application's file and a configuration.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::wait::{until, within};

/// The configuration's first part: where events come from, and the doors to the daemon.
pub const SHOP: &str = r#"
[daemon]
admin = "127.0.0.1:0"

[sources.shop]
path = "app.db"
preset = "outboxd"
read = "outbox"
"#;

/// Tests with a clock in them share the machine with each other, and not with those that need all of it.
static MACHINE: RwLock<()> = RwLock::new(());

pub fn shared_machine() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

pub fn whole_machine() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What a command says that went well.
pub fn told(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a command says that ends with this code.
pub fn ended_with(output: &Output, code: i32) -> String {
    let told = [&output.stdout[..], &output.stderr[..]].concat();
    let told = String::from_utf8_lossy(&told).into_owned();
    assert_eq!(output.status.code(), Some(code), "{told}");
    told
}

/// The same of one that found what is not what it must be.
pub fn refused(output: &Output) -> String {
    ended_with(output, 65)
}

/// A folder with an application's file, `app.db`, and `outboxd.toml`. What is in it goes with it.
pub struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    /// `app.db` is made as users make it: by `outboxd init`.
    pub fn new(config: &str) -> Self {
        let scene = Self::without_a_file(config);
        scene.init();
        scene
    }

    pub fn without_a_file(config: &str) -> Self {
        let scene = Self { folder: tempfile::Builder::new().prefix("outboxd-it-").tempdir().unwrap() };
        scene.configure(config);
        scene
    }

    pub fn init(&self) {
        let output = self.outboxd(&["init", "app.db"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn configure(&self, config: &str) {
        self.write("outboxd.toml", config);
    }

    /// As it ought to be done: a new file is renamed into the place of the old one.
    pub fn reconfigure(&self, config: &str) {
        std::fs::rename(self.write("outboxd.toml.new", config), self.path("outboxd.toml")).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file that others cannot read.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Of whichever daemon runs here at present.
    pub fn status(&self, consumer: &str) -> Option<Value> {
        status(&self.path("outboxd.sock"), consumer)
    }

    /// Whether the consumer comes so far in the time that there is.
    pub fn settles(&self, consumer: &str, head: i64, time: Duration) -> bool {
        within(time, || self.status(consumer).filter(|status| status["position"] == head)).is_some()
    }

    /// Runs a command to its end.
    pub fn outboxd(&self, arguments: &[&str]) -> Output {
        command(self.folder.path()).args(arguments).output().unwrap()
    }

    pub fn outboxd_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        command(self.folder.path()).args(arguments).envs(environment.iter().copied()).output().unwrap()
    }

    pub fn daemon(&self) -> Daemon {
        self.daemon_with(&[])
    }

    pub fn daemon_with(&self, environment: &[(&str, &str)]) -> Daemon {
        self.daemon_of_with("outboxd.toml", environment)
    }

    /// A command that is killed so long after its start; whether it was at work until then.
    pub fn killed(&self, arguments: &[&str], after: Duration) -> bool {
        let mut command = command(self.folder.path());
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(after);
        let is_at_work = child.try_wait().unwrap().is_none();
        drop(child.kill());
        child.wait().unwrap();
        is_at_work
    }

    /// Another version of it, or this one.
    pub fn daemon_from(&self, binary: Option<&Path>) -> Daemon {
        let binary = binary.unwrap_or(Path::new(env!("CARGO_BIN_EXE_outboxd")));
        Daemon::spawn(command_of(binary, self.folder.path()), self.folder.path(), "outboxd.toml", &[])
    }

    /// A second one, with a configuration of its own.
    pub fn daemon_of(&self, config: &str) -> Daemon {
        self.daemon_of_with(config, &[])
    }

    pub fn daemon_of_with(&self, config: &str, environment: &[(&str, &str)]) -> Daemon {
        Daemon::spawn(command(self.folder.path()), self.folder.path(), config, environment)
    }

    /// Started by another program, which is told these words before the daemon's own, and becomes it.
    pub fn daemon_under(&self, program: &str, words: &[&str]) -> Daemon {
        let mut around = command_of(Path::new(program), self.folder.path());
        around.args(words).arg(env!("CARGO_BIN_EXE_outboxd"));
        Daemon::spawn(around, self.folder.path(), "outboxd.toml", &[])
    }

    /// Under `strace`, which injects faults into its system calls and writes them to `trace`.
    pub fn daemon_traced(&self, words: &[&str]) -> Daemon {
        let trace = self.path("trace").display().to_string();
        // -D: the child is the daemon, and strace its grandchild, which ends with it.
        self.daemon_under("strace", &[&["-D", "-f", "-y", "-o", &trace], words].concat())
    }
}

fn ask(socket: &Path, request: &Value) -> Option<Value> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    writeln!(stream, "{request}").ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    serde_json::from_str(&line).ok()
}

fn status(socket: &Path, consumer: &str) -> Option<Value> {
    let answer = ask(socket, &json!({ "command": "status" }))?;
    answer["consumers"].as_array()?.iter().find(|status| status["name"] == consumer).cloned()
}

fn command(folder: &Path) -> Command {
    command_of(Path::new(env!("CARGO_BIN_EXE_outboxd")), folder)
}

fn command_of(binary: &Path, folder: &Path) -> Command {
    let mut command = Command::new(binary);
    command.current_dir(folder).stdin(Stdio::null()).env_remove("NOTIFY_SOCKET").env_remove("OUTBOXD_CONFIG");
    command
}

/// A running daemon; dropped, it is killed. What it logs goes to a file, to which later ones of the same folder append.
pub struct Daemon {
    child: Child,
    folder: PathBuf,
    log: PathBuf,
    /// Where in the log this one began.
    log_began: u64,
    control: PathBuf,
}

impl Daemon {
    fn spawn(mut command: Command, folder: &Path, config: &str, environment: &[(&str, &str)]) -> Self {
        let stem = config.trim_end_matches(".toml");
        let log = folder.join(format!("{stem}.log"));
        let file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let log_began = file.metadata().unwrap().len();
        let child = command
            .args(["-c", config, "run"])
            .envs(environment.iter().copied())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, folder: folder.into(), log, log_began, control: folder.join(format!("{stem}.sock")) }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Stops it where it stands, between any two of its steps; SIGCONT lets it go on.
    pub fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
        until("it stands still", Duration::from_secs(10), || {
            let mut tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).ok()?;
            tasks.all(|task| is_stopped(&task.unwrap().path())).then_some(())
        });
    }

    /// Processor time used so far.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(10 * ticks)
    }

    pub fn hang_up(&self) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Its exit code, and how long it took.
    pub fn wait(&mut self, within: Duration) -> (Option<i32>, Duration) {
        let start = Instant::now();
        let deadline = start + within;
        while Instant::now() < deadline {
            if let Some(status) = self.ended() {
                return (status.code(), start.elapsed());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("it did not end within {within:?}:\n{}", self.log_tail());
    }

    /// SIGTERM, and the whole way to the end: its exit code and how long it took.
    pub fn stop(&mut self, within: Duration) -> (Option<i32>, Duration) {
        self.terminate();
        self.wait(within)
    }

    /// What this one has logged so far.
    pub fn log(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text[(self.log_began as usize).min(text.len())..]).into_owned()
    }

    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// One request over the control socket; `None` while it does not listen.
    pub fn ask(&self, request: &Value) -> Option<Value> {
        ask(&self.control, request)
    }

    pub fn status(&self, consumer: &str) -> Option<Value> {
        status(&self.control, consumer)
    }

    /// Waits until the consumer's status is what the test looks for, and returns it.
    pub fn until(&mut self, consumer: &str, what: &str, within: Duration, is: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + within;
        loop {
            let status = self.status(consumer);
            if let Some(status) = status.as_ref().filter(|status| is(status)) {
                return status.clone();
            }
            if let Some(ended) = self.ended() {
                panic!("while waiting for {consumer} ({what}) it ended: {ended}\n{}", self.log_tail());
            }
            assert!(
                Instant::now() < deadline,
                "{consumer} is not {what} within {within:?}; status {status:?}\n{}",
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn until_state(&mut self, consumer: &str, state: &str, within: Duration) -> Value {
        self.until(consumer, state, within, |status| status["state"] == state)
    }

    /// Everything that stands in the source is settled.
    pub fn until_settled(&mut self, consumer: &str, head: i64, within: Duration) -> Value {
        self.until(consumer, "settled", within, |status| {
            status["position"].as_i64() >= Some(head) && status["in_flight_events"] == 0
        })
    }

    pub fn dead_letters(&self) -> Vec<Value> {
        let request = json!({ "command": "dead-letters", "action": "list", "limit": 10_000 });
        let answer = self.ask(&request).expect("it listens");
        answer["dead_letters"].as_array().unwrap_or_else(|| panic!("{answer}")).clone()
    }

    /// Where the admin address really is.
    pub fn admin(&self) -> String {
        until("the admin address is logged", Duration::from_secs(10), || {
            let log = self.log();
            let line = log.lines().find(|line| line.contains("admin_listens"))?;
            let (_, rest) = line.split_once("address=").or(line.split_once("\"address\":\""))?;
            Some(rest.split([' ', '"']).next()?.to_owned())
        })
    }

    /// `GET path`: the status and the body.
    pub fn get(&self, path: &str) -> (u16, String) {
        self.request("GET", path)
    }

    pub fn request(&self, method: &str, path: &str) -> (u16, String) {
        let address = self.admin();
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status =
            head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer}"));
        (status, body.to_owned())
    }

    /// A series of `/metrics`, named as it stands there.
    pub fn metric(&self, series: &str) -> Option<f64> {
        let (_, body) = self.get("/metrics");
        body.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }
}

fn is_stopped(task: &Path) -> bool {
    // A thread that has ended meanwhile stands still, too.
    let stat = std::fs::read_to_string(task.join("stat")).unwrap_or_else(|_| ") T".into());
    matches!(stat[stat.rfind(')').unwrap() + 2..].chars().next(), Some('T' | 't'))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the daemon in {} had logged:\n{}", self.folder.display(), self.log_tail());
        }
    }
}
