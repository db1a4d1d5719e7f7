//! A password stands in no log at any level, no metric, no answer and no error; nor does a payload.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use base64::Engine as _;
use outboxd::consumer::status::State;

use crate::sink_contract::rig::unique;
use crate::support::application::{Application, Row};
use crate::support::broker::Broker;
use crate::support::process::{SHOP, Scene, shared_machine};
use crate::support::relays::{amqp, kafka, relay};
use crate::support::rig::Rig;
use crate::support::topology;

/// A word, and every form in which it could slip out.
struct Canary {
    forms: Vec<(&'static str, String)>,
}

impl Canary {
    fn new(word: &str) -> Self {
        let mut forms = vec![
            ("as it is", word.to_owned()),
            ("in a uri", in_uri(word)),
            ("escaped", word.escape_debug().to_string()),
        ];
        // Inside something that was encoded as a whole: its neighbours decide where the groups of three begin.
        for (lead, what) in [(0, "base64"), (1, "base64, one off"), (2, "base64, two off")] {
            let text = base64::engine::general_purpose::STANDARD.encode([&b"\0\0"[..lead], word.as_bytes()].concat());
            let first = if lead == 0 { 0 } else { 4 };
            let whole = (lead + word.len()) / 3 * 4;
            forms.push((what, text[first..whole].to_owned()));
        }
        let hex = word.bytes().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        });
        let bytes = format!("{:?}", word.as_bytes());
        forms.push(("hex", hex));
        forms.push(("a list of bytes", bytes.trim_matches(['[', ']']).to_owned()));
        Self { forms }
    }

    /// Where it stands in the text, with what is around it.
    fn found_in(&self, text: &str) -> Option<String> {
        self.forms.iter().find_map(|(how, form)| {
            let at = text.find(form.as_str())?;
            let line = text[..at].lines().count();
            let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
            let context: String = text[start..].chars().take(300).collect();
            Some(format!("{how}, line {line}: {context}"))
        })
    }

    fn assert_absent(&self, place: &str, text: &str) {
        assert_eq!(self.found_in(text), None, "{place}");
    }
}

fn in_uri(word: &str) -> String {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    word.bytes().fold(String::new(), |mut text, byte| {
        if is_plain(&byte) {
            text.push(byte.into())
        } else {
            write!(text, "%{byte:02X}").unwrap()
        }
        text
    })
}

#[test]
fn a_canary_is_found_in_every_form() {
    let canary = Canary::new("tweet/tweet&1");
    for text in [
        "x tweet/tweet&1".to_owned(),
        format!("amqp://guest:{}@x", in_uri("tweet/tweet&1")),
        base64::engine::general_purpose::STANDARD.encode("\0guest\0tweet/tweet&1"),
        base64::engine::general_purpose::STANDARD.encode("\0alice\0\0tweet/tweet&1!"),
        format!("{:?}", b"\0guest\0tweet/tweet&1"),
    ] {
        assert!(canary.found_in(&text).is_some(), "{text}");
    }
    assert_eq!(canary.found_in("tweet, tweet"), None);
}

#[test]
fn passwords_and_payloads_stand_nowhere() {
    let _machine = shared_machine();
    let passwords =
        [Canary::new("kaf/ka&Canary+one"), Canary::new("scr/am&Canary+two"), Canary::new("rab/bit&Canary+three")];
    let payload = Canary::new("payload-Canary-4711");
    let kafka_broker = Broker::start("kafka", &["--sasl-tls"]);
    let rabbit = Broker::rabbitmq();
    let name = unique("canary");
    topology::declare(rabbit, &name, "order.#");
    kafka_broker.topic("shop", 1, &["max.message.bytes=2000"]);
    let sasl = |mechanism: &str, password: &str| {
        format!(
            "tls = {{ ca_file = \"{}\" }}\nsasl = {{ mechanism = \"{mechanism}\", username = \"alice\", {password} }}",
            kafka_broker.tls_file("ca").display()
        )
    };
    let secure = kafka_broker.text("sasl_tls_bootstrap");
    let wrong_uri = rabbit.text("uri").replace("guest:guest", &format!("guest:{}", in_uri("rab/bit&Canary+three")));
    let sections = [
        kafka("plain", &secure, "shop", &sasl("PLAIN", "password = \"kaf/ka&Canary+one\"")),
        kafka("scram", &secure, "shop", &sasl("SCRAM-SHA-256", "password_file = \"password\"")),
        amqp("rabbit", &wrong_uri, &name, "{type}", ""),
        // These work, and refuse some events, whose payloads they could tell of.
        kafka("good", &kafka_broker.text("bootstrap"), "shop", ""),
        amqp("returns", &rabbit.text("uri"), &name, "{stream_type}.x", ""),
    ];
    let names = ["plain", "scram", "rabbit", "good", "returns"];
    let relays = names.map(|name| relay(name, "attempts_max = 1"));
    let loud = SHOP.replace("[daemon]", "[daemon]\nlog_level = \"trace\"");
    let scene = Scene::without_a_file(&[&[loud][..], &sections, &relays].concat().concat());
    scene.write("password", "scr/am&Canary+two");
    scene.init();
    let mut application = Application::open(&scene.path("app.db"), 5);
    let told =
        |row: Row, bytes: usize| Row { payload: format!("{:->bytes$}", "payload-Canary-4711").into_bytes(), ..row };
    application.commit(&[told(Row::of("a"), 20), told(Row::of("b").to("nowhere"), 20), told(Row::of("c"), 5000)]);

    let mut daemon = scene.daemon();
    for name in ["to_plain", "to_scram", "to_rabbit"] {
        daemon.until_state(name, "halted", Duration::from_secs(30));
    }
    daemon.until("to_good", "one dead", Duration::from_secs(20), |status| status["dead_letters"] == 1);
    daemon.until("to_returns", "one dead", Duration::from_secs(20), |status| status["dead_letters"] == 1);
    let outputs = [
        &["config", "show"][..],
        &["config", "show", "--json"],
        &["config", "show", "--origin"],
        &["status", "--json"],
        &["status"],
        &["check"],
        &["health"],
        &["consumer", "list"],
        &["-c", "broken.toml", "check"],
        &["-c", "broken.toml", "run"],
    ];
    let broken = std::fs::read_to_string(scene.path("outboxd.toml")).unwrap();
    let broken =
        broken.replace("mechanism = \"PLAIN\"", "mechanism = \"PLANE\"").replace("amqp://guest:", "amqp://gu est@x:y:");
    scene.write("broken.toml", &format!("{broken}\ncolour = 1\n"));
    let mut texts =
        vec![("metrics".to_owned(), daemon.get("/metrics").1), ("readyz".to_owned(), daemon.get("/readyz?verbose").1)];
    texts.push(("api".to_owned(), daemon.get("/api/v1/status").1));
    for arguments in outputs {
        let output = scene.outboxd(arguments);
        let both = [output.stdout, output.stderr].concat();
        assert!(!both.is_empty(), "{arguments:?}");
        texts.push((format!("{arguments:?}"), String::from_utf8_lossy(&both).into_owned()));
    }
    assert_eq!(daemon.stop(Duration::from_secs(20)).0, Some(0));
    let log = daemon.log();
    assert!(log.contains("level=trace") || log.contains("level=debug"), "it is loud");
    println!("{} lines of log", log.lines().count());
    texts.push(("the log".to_owned(), log));
    for (place, text) in &texts {
        for password in &passwords {
            password.assert_absent(place, text);
        }
        payload.assert_absent(place, text);
    }
}

/// Whatever prints the configuration or a part of it (a panic, a trace) goes through `Debug`.
#[test]
fn what_a_panic_could_print_of_the_configuration_has_no_password() {
    let sasl = "sasl = { mechanism = \"PLAIN\", username = \"alice\", password = \"kaf/ka&Canary+one\" }";
    let uri = format!("amqp://guest:{}@127.0.0.1", in_uri("rab/bit&Canary+three"));
    let config = [
        SHOP,
        &kafka("bus", "127.0.0.1:9", "shop", sasl),
        &relay("bus", ""),
        &amqp("rabbit", &uri, "shop", "{type}", ""),
        &relay("rabbit", ""),
    ];
    let scene = Scene::without_a_file(&config.concat());
    let loaded = outboxd::config::load_with(&scene.path("outboxd.toml"), []).unwrap();
    let printed = format!("{loaded:?}");
    assert!(printed.contains("alice") && printed.contains("***"), "{printed}");
    for password in ["kaf/ka&Canary+one", "rab/bit&Canary+three"] {
        Canary::new(password).assert_absent("Debug", &printed);
    }
}

/// Held events and their payloads stand in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_is_not_for_others_to_read() {
    let mut rig = Rig::new().await;
    rig.start();
    rig.is(State::Running).await;
    let state = rig.source.state_path();
    for path in [state.clone(), format!("{}-wal", state.display()).into()] {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o007, 0, "{}: {mode:o}", path.display());
    }
}
