//! A secret is never printed: not by `Debug`, `config show`, or an error, wherever it was put by mistake.

use crate::config::{Folder, SMALL};

const CANARY: &str = "c4n4ry-Zwölf/Boxkämpfer";

fn assert_hidden(text: &str) {
    assert!(!text.contains("c4n4ry"), "a secret was printed:\n{text}");
}

const GOOD: &str = r#"
[sources.shop]
path = "shop.db"
preset = "outboxd"
read = "events"

[sinks.bus]
type = "kafka"
bootstrap_servers = ["127.0.0.1:9092"]
topic = "shop"
properties = { "client.rack" = "a" }
sasl = { mechanism = "PLAIN", username = "shop", password = "CANARY" }

[sinks.rabbit]
type = "amqp"
uri = "amqp://shop:CANARY@127.0.0.1"
exchange = "events"
routing_key = "{type}"

[relays.shop_to_bus]
source = "shop"
sink = "bus"

[relays.shop_to_rabbit]
source = "shop"
sink = "rabbit"
"#;

#[cfg(all(feature = "kafka", feature = "amqp"))]
#[test]
fn a_configuration_that_is_taken_shows_no_secret() {
    let folder = Folder::with(&GOOD.replace("CANARY", "c4n4ry"));
    let loaded = folder.load(&[("OUTBOXD_SINKS__BUS__SASL__PASSWORD", "c4n4ry2")]).unwrap();
    assert_hidden(&format!("{loaded:?} {loaded:#?}"));
    assert_hidden(&loaded.shown.toml(true));
    assert!(loaded.shown.toml(false).contains("password = ***"));
}

#[test]
fn an_error_shows_no_secret() {
    let wrong = [
        // Not TOML, on the very line of the secret.
        GOOD.replace("password = \"CANARY\"", "password = \"CANARY"),
        GOOD.replace("password = \"CANARY\"", "password = CANARY"),
        // The wrong kind, the wrong key, the wrong place.
        GOOD.replace("password = \"CANARY\"", "password = [\"CANARY\"]"),
        GOOD.replace("password = \"CANARY\"", "pasword = \"CANARY\""),
        GOOD.replace("sasl = {", "sasl = \"CANARY\" # {"),
        GOOD.replace("\"client.rack\" = \"a\"", "\"sasl.password\" = \"CANARY\""),
        GOOD.replace("\"client.rack\" = \"a\"", "\"ssl.key.pasword\" = \"CANARY\""),
        GOOD.replace("\"client.rack\" = \"a\"", "\"sasl_password\" = \"CANARY\""),
        GOOD.replace("\"client.rack\" = \"a\"", "\"linger.ms\" = \"CANARY\""),
        // Addresses.
        GOOD.replace("amqp://shop:CANARY@127.0.0.1", "amqp://shop:CANARY@rabbit.example.com"),
        GOOD.replace("amqp://shop:CANARY@127.0.0.1", "http://shop:CANARY@127.0.0.1"),
        GOOD.replace("amqp://shop:CANARY@127.0.0.1", "shop:CANARY@127.0.0.1"),
        GOOD.replace("amqp://shop:CANARY@127.0.0.1", "amqp://shop:CANARY@:port"),
        GOOD.replace("uri = \"amqp", "urj = \"amqp"),
        GOOD.replace("\"127.0.0.1:9092\"", "\"shop:CANARY@127.0.0.1:9092\""),
    ];
    for text in wrong {
        for canary in [CANARY, "c4n4ry"] {
            let error = Folder::with(&text.replace("CANARY", canary)).load(&[]).expect_err(&text);
            assert_hidden(&format!("{error} {error:?} {error:#?}"));
        }
    }
}

#[test]
fn an_error_shows_no_secret_of_the_environment_or_a_file() {
    let folder = Folder::with(&SMALL.replace("type = \"file\"", "type = \"amqp\"\nuri_file = \"uri\""));
    folder.write("uri", &format!("amqp://u:{CANARY}@example.com"));
    let variables = [("OUTBOXD_SINKS__OTHER__SASL__PASSWORD", CANARY), ("OUTBOXD_SINKS__BUS__URI", CANARY)];
    for variables in [&variables[..0], &variables[..1], &variables[1..]] {
        let error = folder.load(variables).unwrap_err();
        assert_hidden(&format!("{error} {error:?}"));
    }
}
