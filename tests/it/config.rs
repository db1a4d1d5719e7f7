//! A configuration says what it says: layers, defaults, paths and what is in force.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outboxd::config::preset;
use outboxd::config::{self, Error, Loaded, LogFormat, WhenLocked};
use outboxd::consumer::{Bounds, OnReject, Start};
use outboxd::sink;
use outboxd::source::{Durability, StatePlace};
use tempfile::TempDir;

/// A folder with a configuration in it.
pub struct Folder {
    pub dir: TempDir,
}

impl Folder {
    pub fn with(text: &str) -> Self {
        let folder = Self { dir: TempDir::new().unwrap() };
        folder.write("outboxd.toml", text);
        folder
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    pub fn load(&self, variables: &[(&str, &str)]) -> Result<Loaded, Error> {
        let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        config::load_with(&self.path("outboxd.toml"), variables)
    }

    /// What is printed about the errors, with the folder's path taken out.
    pub fn errors(&self, variables: &[(&str, &str)]) -> String {
        let error = self.load(variables).expect_err("this configuration is refused");
        error.to_string().replace(&format!("{}/", self.dir.path().display()), "")
    }
}

/// The smallest configuration that is taken.
pub const SMALL: &str = r#"
[sources.shop]
path = "shop.db"
preset = "outboxd"
read = "outbox"

[sinks.lines]
type = "file"
path = "events.ndjson"

[relays.shop_to_lines]
source = "shop"
sink = "lines"
"#;

fn file_of(settings: &sink::Settings) -> &Path {
    match settings {
        sink::Settings::File(settings) => settings.path.as_deref().unwrap(),
        #[allow(unreachable_patterns, reason = "there are no others in a build without brokers")]
        _ => panic!("a file was configured"),
    }
}

#[test]
fn what_is_not_said_has_its_default() {
    let folder = Folder::with(SMALL);
    let config = folder.load(&[]).unwrap().config;
    assert_eq!(config.daemon.admin, None);
    assert_eq!(config.daemon.control, folder.path("outboxd.sock"));
    assert_eq!(config.daemon.drain_timeout, Duration::from_secs(30));
    assert_eq!(config.daemon.when_locked, WhenLocked::Wait);
    assert_eq!(config.daemon.log_format, LogFormat::Auto);
    assert_eq!(config.daemon.log_level, "info");
    let source = &config.sources["shop"];
    assert_eq!(source.path, folder.path("shop.db"));
    assert_eq!(source.preset.as_deref(), Some("outboxd"));
    assert_eq!(source.tables, preset::tables("outboxd", "outbox").unwrap());
    assert_eq!((source.durability, &source.state), (Durability::Strict, &StatePlace::Beside));
    let relay = &config.relays[0];
    assert_eq!((relay.name.as_str(), relay.source.as_str()), ("shop_to_lines", "shop"));
    assert_eq!(file_of(relay.destination.sink().unwrap()), folder.path("events.ndjson"));
    assert_eq!((relay.start, relay.on_reject, relay.paused), (None, OnReject::Hold, false));
    assert_eq!(relay.bounds, Bounds::default());
    assert!(relay.types.is_empty());
}

#[test]
fn what_is_said_is_taken() {
    let folder = Folder::with(
        r#"
[daemon]
admin = "localhost:9464"
control = "unix:run/o.sock"
drain_timeout = "1m30s"
when_locked = "refuse"
log_format = "json"
log_level = "info,outboxd::sink=debug"

[sources.shop]
path = "/data/shop.db"
preset = "eventsource-py"
read = "events"
durability = "strict"
state = "state/shop-state.db"

[sinks.lines]
type = "stdout"
format = "envelope"

[relays.shop_to_lines]
source = "shop"
sink = "lines"
types = ["Order*", "Paid"]
start = "head"
on_reject = "skip"
attempts_max = 2
ack_timeout = "5s"
in_flight_per_key = 1
window_events = 50
window_bytes = "8MiB"
event_bytes_max = "1MiB"
paused = true
"#,
    );
    let config = folder.load(&[]).unwrap().config;
    assert_eq!(config.daemon.admin, Some("127.0.0.1:9464".parse().unwrap()));
    assert_eq!(config.daemon.control, folder.path("run/o.sock"));
    assert_eq!(config.daemon.drain_timeout, Duration::from_secs(90));
    assert_eq!((config.daemon.when_locked, config.daemon.log_format), (WhenLocked::Refuse, LogFormat::Json));
    let source = &config.sources["shop"];
    assert_eq!(source.path, Path::new("/data/shop.db"));
    assert_eq!(source.state, StatePlace::At(folder.path("state/shop-state.db")));
    let relay = &config.relays[0];
    assert_eq!(relay.types, ["Order*", "Paid"]);
    assert_eq!((relay.start, relay.on_reject, relay.paused), (Some(Start::Head), OnReject::Skip, true));
    let expected = Bounds {
        attempts_max: 2,
        ack_timeout: Duration::from_secs(5),
        in_flight_per_key: Some(1),
        window_events: 50,
        window_bytes: 8 << 20,
        batch_events: 50,
        batch_bytes: 4 << 20,
        event_bytes_max: 1 << 20,
        ..Bounds::default()
    };
    assert_eq!(relay.bounds, expected);
}

#[test]
fn tables_read_by_row_and_fast_sources_keep_their_state_inside() {
    let by_row = SMALL.replace("\"outboxd\"", "\"eventsource-py\"");
    assert_eq!(Folder::with(&by_row).load(&[]).unwrap().config.sources["shop"].state, StatePlace::Inside);
    let fast = SMALL.replace("read = \"outbox\"", "read = \"outbox\"\ndurability = \"fast\"");
    assert_eq!(Folder::with(&fast).load(&[]).unwrap().config.sources["shop"].state, StatePlace::Inside);
}

#[test]
fn fragments_and_the_environment_go_over_the_file() {
    let folder = Folder::with(SMALL);
    folder.write("conf.d/20-b.toml", "[sources.shop]\npath = \"b.db\"\n[daemon]\nwhen_locked = \"refuse\"\n");
    folder.write("conf.d/10-a.toml", "[sources.shop]\npath = \"a.db\"\n[relays.shop_to_lines]\nattempts_max = 9\n");
    folder.write("conf.d/README", "not a fragment");
    let config = folder.load(&[]).unwrap().config;
    assert_eq!(config.sources["shop"].path, folder.path("b.db"));
    assert_eq!(config.relays[0].bounds.attempts_max, 9);
    let variables = [
        ("OUTBOXD_SOURCES__SHOP__PATH", "/env/shop.db"),
        ("OUTBOXD_RELAYS__SHOP_TO_LINES__ATTEMPTS_MAX", "7"),
        ("OUTBOXD_RELAYS__SHOP_TO_LINES__PAUSED", "true"),
        ("OUTBOXD_RELAYS__SHOP_TO_LINES__TYPES", "Order*, Paid"),
        ("OUTBOXD_RELAYS__SHOP_TO_LINES__ACK_TIMEOUT", "3s"),
        // An orchestrator makes such ones for a service that is called outboxd.
        ("OUTBOXD_PORT", "tcp://10.0.0.1:9464"),
        ("OUTBOXD_PORT_9464_TCP_ADDR", "10.0.0.1"),
        ("OUTBOXD_CONFIG", "elsewhere.toml"),
    ];
    let loaded = folder.load(&variables).unwrap();
    let relay = &loaded.config.relays[0];
    assert_eq!(loaded.config.sources["shop"].path, Path::new("/env/shop.db"));
    assert_eq!((relay.bounds.attempts_max, relay.paused), (7, true));
    assert_eq!(relay.bounds.ack_timeout, Duration::from_secs(3));
    assert_eq!(relay.types, ["Order*", "Paid"]);
    let shown = loaded.shown.toml(true);
    let origins = [
        "path = \"/env/shop.db\"  # environment variable OUTBOXD_SOURCES__SHOP__PATH",
        "conf.d/20-b.toml, line 4",
        "preset = \"outboxd\"  # ",
        "outboxd.toml, line 4",
        "drain_timeout = \"30s\"  # default",
    ];
    for origin in origins {
        assert!(shown.contains(origin), "{origin} is not in\n{shown}");
    }
}

#[test]
fn what_is_shown_is_a_configuration_that_means_the_same() {
    let folder = Folder::with(SMALL);
    let loaded = folder.load(&[]).unwrap();
    folder.write("outboxd.toml", &loaded.shown.toml(true));
    let again = folder.load(&[]).unwrap();
    assert_eq!(format!("{:?}", again.config), format!("{:?}", loaded.config));
    assert_eq!(again.shown.toml(false), loaded.shown.toml(false));
}

#[cfg(feature = "kafka")]
mod kafka {
    use super::*;

    const KAFKA: &str = r#"
[sources.shop]
path = "shop.db"
preset = "outboxd"
read = "events"

[sinks.bus]
type = "kafka"
bootstrap_servers = ["kafka.example.com:9093", "127.0.0.1:9092"]
topic = "shop.{stream_type}"
key = "{stream_id}"
headers = ["stream_id", "time"]
properties = { "linger.ms" = 5, compression.type = "zstd", socket = { keepalive.enable = true } }
tls = {}
sasl = { mechanism = "SCRAM-SHA-512", username = "shop", password_file = "password" }

[relays.shop_to_bus]
source = "shop"
sink = "bus"
start = "first"
"#;

    #[test]
    fn a_kafka_sink_is_taken() {
        let folder = Folder::with(KAFKA);
        folder.write("password", "  12345\n");
        let config = folder.load(&[]).unwrap().config;
        let sink::Settings::Kafka(settings) = config.relays[0].destination.sink().unwrap() else {
            panic!("a Kafka sink was configured")
        };
        assert_eq!(settings.bootstrap_servers, ["kafka.example.com:9093", "127.0.0.1:9092"]);
        let expected = [("compression.type", "zstd"), ("linger.ms", "5"), ("socket.keepalive.enable", "true")];
        assert_eq!(settings.properties, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        assert_eq!(settings.security.sasl.as_ref().unwrap().password.reveal(), "12345");
    }

    #[test]
    fn a_password_of_digits_stays_text_in_the_environment() {
        let folder = Folder::with(KAFKA);
        folder.write("password", "from the file");
        let variables = [("OUTBOXD_SINKS__BUS__SASL__PASSWORD", "0042"), ("OUTBOXD_SINKS__BUS__TOPIC", "9")];
        let config = folder.load(&variables).unwrap().config;
        let sink::Settings::Kafka(settings) = config.relays[0].destination.sink().unwrap() else {
            panic!("a Kafka sink was configured")
        };
        assert_eq!(settings.security.sasl.as_ref().unwrap().password.reveal(), "0042");
        assert_eq!(settings.topic.constant(), Some("9"));
    }

    #[test]
    fn properties_from_the_environment_join_those_of_the_file() {
        let folder = Folder::with(KAFKA);
        folder.write("password", "from the file");
        let variables = [("OUTBOXD_SINKS__BUS__PROPERTIES", "{ \"linger.ms\" = 7, \"batch.size\" = 1000 }")];
        let config = folder.load(&variables).unwrap().config;
        let sink::Settings::Kafka(settings) = config.relays[0].destination.sink().unwrap() else {
            panic!("a Kafka sink was configured")
        };
        assert_eq!(settings.properties["linger.ms"], "7");
        assert_eq!(settings.properties["batch.size"], "1000");
        assert_eq!(settings.properties["compression.type"], "zstd");
    }
}
