//! Real brokers, started by `scripts/broker`. Each ends with this process, however it ends: the script leaves a guard behind.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use outboxd::sink::tls::{Identity, Tls};
use serde_json::Value;

/// One broker, its files in a directory of its own.
pub struct Broker {
    kind: &'static str,
    dir: PathBuf,
    /// What `start` printed.
    pub facts: Value,
}

impl Broker {
    /// Starts a new one; `options` as `scripts/broker KIND start` takes them.
    pub fn start(kind: &'static str, options: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("outboxd-it-{}-{kind}-{number}", std::process::id()));
        let mut broker = Self { kind, dir, facts: Value::Null };
        let pid = std::process::id().to_string();
        broker.facts = broker.run("start", &[&["--watch", &pid, "--remove"], options].concat());
        broker
    }

    /// Kafka nodes that make one cluster, each to be killed and started by itself.
    pub fn cluster(nodes: usize) -> Vec<Broker> {
        let controllers: Vec<String> = Self::free_ports().step_by(7).take(nodes).map(|port| port.to_string()).collect();
        let controllers = controllers.join(",");
        let start = |node: usize| {
            let (node, controllers) = (node.to_string(), controllers.as_str());
            Broker::start("kafka", &["--node", &node, "--controllers", controllers])
        };
        // None is ready before a majority is there.
        std::thread::scope(|scope| {
            let starting: Vec<_> = (1..=nodes).map(|node| scope.spawn(move || start(node))).collect();
            starting.into_iter().map(|node| node.join().unwrap()).collect()
        })
    }

    /// None of those that the system gives out by itself.
    pub fn free_ports() -> impl Iterator<Item = u16> {
        (10_240..30_000).rev().filter(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
    }

    /// The one that tests share which do not disturb it.
    pub fn kafka() -> &'static Broker {
        static SHARED: OnceLock<Broker> = OnceLock::new();
        SHARED.get_or_init(|| Broker::start("kafka", &[]))
    }

    pub fn rabbitmq() -> &'static Broker {
        static SHARED: OnceLock<Broker> = OnceLock::new();
        SHARED.get_or_init(|| Broker::start("rabbitmq", &[]))
    }

    /// Runs `scripts/broker KIND COMMAND DIR ARGUMENTS` and returns what it printed, as JSON where it is that.
    pub fn run(&self, command: &str, arguments: &[&str]) -> Value {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/broker");
        let output = Command::new(script)
            .args([self.kind, command])
            .arg(&self.dir)
            .args(arguments)
            .output()
            .expect("scripts/broker can be run (scripts/setup fetches what it needs)");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "scripts/broker {} {command} {arguments:?}: {text}{error}", self.kind);
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    }

    pub fn stop(&self) {
        self.run("stop", &[]);
    }

    pub fn restart(&self) {
        self.run("start", &[]);
    }

    /// Kafka: a new topic, with `key=value` configs.
    pub fn topic(&self, name: &str, partitions: u32, configs: &[&str]) {
        let partitions = partitions.to_string();
        let mut arguments = vec![name, "--partitions", &partitions];
        configs.iter().for_each(|config| arguments.extend(["--config", config]));
        self.run("topic", &arguments);
    }

    /// A file that the broker's certificate authority made.
    pub fn tls_file(&self, name: &str) -> PathBuf {
        self.facts["tls"][name].as_str().unwrap_or_else(|| panic!("no TLS file {name}: {}", self.facts)).into()
    }

    /// Who trusts the authority `ca`, and shows the certificate of `party` when asked.
    pub fn tls(&self, ca: &str, party: Option<&str>) -> Tls {
        let identity = party.map(|party| Identity {
            cert_file: self.tls_file(&format!("{party}_certificate")),
            key_file: self.tls_file(&format!("{party}_key")),
        });
        Tls { ca_file: Some(self.tls_file(ca)), identity }
    }

    pub fn number(&self, fact: &str) -> u16 {
        self.facts[fact].as_u64().unwrap_or_else(|| panic!("{} has no {fact}: {}", self.kind, self.facts)) as u16
    }

    pub fn text(&self, fact: &str) -> String {
        self.facts[fact].as_str().unwrap_or_else(|| panic!("{} has no {fact}: {}", self.kind, self.facts)).to_owned()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.run("kill", &[]);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
