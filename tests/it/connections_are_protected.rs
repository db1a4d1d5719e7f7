//! TLS and SASL, end to end: each way in delivers, and whoever is not who he should be halts that relay alone.

use std::time::Duration;

use crate::support::application::Application;
use crate::support::broker::Broker;
use crate::support::process::{Daemon, SHOP, Scene, shared_machine};
use crate::support::referee::judge;
use crate::support::relays::{amqp, kafka, relay};
use crate::support::{readers, topology};

fn tls(broker: &Broker, ca: &str, party: Option<&str>) -> String {
    let mut fields = format!("ca_file = \"{}\"", broker.tls_file(ca).display());
    if let Some(party) = party {
        let (certificate, key) =
            (broker.tls_file(&format!("{party}_certificate")), broker.tls_file(&format!("{party}_key")));
        fields += &format!(", cert_file = \"{}\", key_file = \"{}\"", certificate.display(), key.display());
    }
    format!("tls = {{ {fields} }}")
}

fn halts_and_blames_a_certificate(daemon: &mut Daemon, consumer: &str) {
    let status = daemon.until_state(consumer, "halted", Duration::from_secs(20));
    println!("{consumer}: {}", status["detail"]);
    let detail = status["detail"].as_str().unwrap().to_lowercase();
    assert!(["certificate", "alert", "ssl"].iter().any(|word| detail.contains(word)), "{status}");
    assert_eq!((&status["held_keys"], &status["position"]), (&0.into(), &0.into()), "{status}");
}

#[test]
fn rabbitmq_with_its_own_authority_and_a_client_certificate() {
    let _machine = shared_machine();
    let broker = Broker::start("rabbitmq", &["--tls-client"]);
    topology::declare(&broker, "shop", "#");
    let uri = broker.text("tls_uri");
    let sink = |name: &str, tls: String| [amqp(name, &uri, "shop", "{type}", &tls), relay(name, "")].concat();
    let config = [
        SHOP.to_owned(),
        sink("good", tls(&broker, "ca", Some("client"))),
        sink("wrong_ca", tls(&broker, "stranger_ca", Some("client"))),
        sink("wrong_party", tls(&broker, "ca", Some("stranger"))),
        sink("no_party", tls(&broker, "ca", None)),
    ];
    let scene = Scene::new(&config.concat());
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(500);
    let mut daemon = scene.daemon();
    daemon.until_settled("to_good", application.head(), Duration::from_secs(20));
    for consumer in ["to_wrong_ca", "to_wrong_party", "to_no_party"] {
        halts_and_blames_a_certificate(&mut daemon, consumer);
    }
    let judgement = judge(&application.ledger, &[], &readers::arrivals(readers::rabbitmq(&broker, "shop")));
    assert!(judgement.is_clean() && judgement.duplicates == 0, "{}", judgement.summary());
}

#[test]
fn kafka_with_scram_over_tls_and_with_a_client_certificate() {
    let _machine = shared_machine();
    let broker = Broker::start("kafka", &["--sasl-tls"]);
    let (by_password, by_certificate) = (broker.text("sasl_tls_bootstrap"), broker.text("mtls_bootstrap"));
    let sasl = |mechanism: &str| {
        format!("sasl = {{ mechanism = \"{mechanism}\", username = \"alice\", password_file = \"password\" }}")
    };
    let good = [
        ("scram256", &by_password, format!("{}\n{}", tls(&broker, "ca", None), sasl("SCRAM-SHA-256"))),
        ("scram512", &by_password, format!("{}\n{}", tls(&broker, "ca", None), sasl("SCRAM-SHA-512"))),
        ("plain", &by_password, format!("{}\n{}", tls(&broker, "ca", None), sasl("PLAIN"))),
        ("mtls", &by_certificate, tls(&broker, "ca", Some("client"))),
    ];
    let bad = [
        ("wrong_ca", &by_password, format!("{}\n{}", tls(&broker, "stranger_ca", None), sasl("SCRAM-SHA-256"))),
        ("wrong_party", &by_certificate, tls(&broker, "ca", Some("stranger"))),
        ("no_party", &by_certificate, tls(&broker, "ca", None)),
    ];
    let mut config = SHOP.to_owned();
    for (name, bootstrap, more) in good.iter().chain(&bad) {
        broker.topic(name, 1, &[]);
        config += &kafka(name, bootstrap, name, more);
        config += &relay(name, "");
    }
    let scene = Scene::without_a_file(&config);
    scene.write("password", "secret\n");
    scene.init();
    let mut application = Application::open(&scene.path("app.db"), 5);
    application.write(500);
    let mut daemon = scene.daemon();
    for (name, ..) in &good {
        daemon.until_settled(&format!("to_{name}"), application.head(), Duration::from_secs(30));
        let judgement = judge(&application.ledger, &[], &readers::arrivals(readers::kafka(&broker, name)));
        assert!(judgement.is_clean() && judgement.duplicates == 0, "{name}: {}", judgement.summary());
    }
    for (name, ..) in &bad {
        halts_and_blames_a_certificate(&mut daemon, &format!("to_{name}"));
        assert!(readers::kafka(&broker, name).is_empty());
    }
}
