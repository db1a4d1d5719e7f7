//! The daemon as a process of its own, with a config in a folder; killed at the end.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A config with one relay of eventsource-py's `read` table in `path`, to `out.ndjson`.
pub fn one_relay(path: &str, read: &str) -> String {
    relay("r", path, read, "out.ndjson")
}

/// The same as one of several.
pub fn relay(name: &str, path: &str, read: &str, out: &str) -> String {
    let start = if read == "events" { "start = \"first\"\n" } else { "" };
    format!(
        "[sources.{name}]\npath = \"{path}\"\npreset = \"eventsource-py\"\nread = \"{read}\"\n\n\
         [sinks.{name}]\ntype = \"file\"\npath = \"{out}\"\n\n\
         [relays.{name}]\nsource = \"{name}\"\nsink = \"{name}\"\n{start}\n"
    )
}

pub struct Daemon {
    folder: PathBuf,
    child: Option<Child>,
    /// Started instead of the daemon itself, with it as the last arguments.
    around: Vec<String>,
}

impl Daemon {
    pub fn new(folder: &Path, config: &str) -> Self {
        std::fs::write(folder.join("outboxd.toml"), config).unwrap();
        Self { folder: folder.to_owned(), child: None, around: vec![] }
    }

    /// Under `strace -f -o FOLDER/trace`, with these arguments.
    pub fn traced(folder: &Path, config: &str, arguments: &[&str]) -> Self {
        let trace = folder.join("trace").display().to_string();
        let around =
            ["strace", "-f", "-y", "-o", &trace].iter().chain(arguments).map(|&argument| argument.to_owned()).collect();
        let mut daemon = Self::new(folder, config);
        daemon.around = around;
        daemon
    }

    pub fn start(&mut self) {
        let log = std::fs::File::create(self.folder.join("log")).unwrap();
        let words =
            self.around.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_outboxd"), "run", "-c", "outboxd.toml"]);
        let words: Vec<&str> = words.collect();
        let child = Command::new(words[0])
            .args(&words[1..])
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the daemon can be started (tracing wants strace)");
        self.child = Some(child);
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    pub fn trace(&self) -> String {
        std::fs::read_to_string(self.folder.join("trace")).unwrap_or_default()
    }

    /// Processor time used so far, in hundredths of a second.
    pub fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Bytes that it made the system write to storage.
    pub fn write_bytes(&self) -> u64 {
        let io = std::fs::read_to_string(format!("/proc/{}/io", self.pid())).unwrap();
        io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap().parse().unwrap()
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // strace ends with what it traces, not the other way round.
            if !self.around.is_empty() {
                let tracer = child.id();
                let children =
                    std::fs::read_to_string(format!("/proc/{tracer}/task/{tracer}/children")).unwrap_or_default();
                for pid in children.split_whitespace() {
                    let _ = Command::new("kill").args(["-9", pid]).status();
                }
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The lines of a file that have ended.
pub fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    text[..whole].lines().map(str::to_owned).collect()
}
