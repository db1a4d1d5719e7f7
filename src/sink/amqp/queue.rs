//! What follows from how a queue, or an exchange, is declared and ruled by policies. Pure.

use serde_json::{Map, Value};

use super::survey::{declared_exchange, declared_queue};
use crate::remark::{Remark, word};

/// A queue, an exchange or a binding, as the management API tells it.
#[derive(Clone, Debug, serde::Deserialize)]
pub(super) struct Told {
    #[serde(default)]
    pub name: String,
    #[serde(default, rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub durable: bool,
    #[serde(default)]
    pub auto_delete: bool,
    #[serde(default)]
    pub exclusive: bool,
    #[serde(default)]
    internal: bool,
    /// Nothing is told as a list.
    #[serde(default)]
    pub arguments: Value,
    #[serde(default)]
    pub policy: Option<String>,
    #[serde(default)]
    effective_policy_definition: Value,
    #[serde(default)]
    pub source: String,
    #[serde(default)]
    pub destination: String,
    #[serde(default)]
    pub destination_type: String,
    #[serde(default)]
    pub routing_key: String,
}

/// Where a queue stands.
pub(super) struct Place<'a> {
    pub vhost: &'a str,
    /// The cluster's nodes; `None`: it may not be seen.
    pub nodes: Option<usize>,
    /// All that lead to it.
    pub bindings: &'a [Told],
}

impl Told {
    fn argument(&self, name: &str) -> Option<&Value> {
        self.arguments.get(name)
    }

    fn ruled(&self, name: &str) -> Option<&Value> {
        self.effective_policy_definition.get(name)
    }

    /// By an argument `x-NAME`, or by a policy.
    fn set(&self, name: &str) -> Option<&Value> {
        self.argument(&format!("x-{name}")).or_else(|| self.ruled(name))
    }

    pub fn alternate(&self) -> Option<String> {
        self.argument("alternate-exchange").and_then(Value::as_str).map(str::to_owned)
    }

    /// As it would have to be declared to be there again.
    fn binding(&self, vhost: &str) -> String {
        let mut words = vec![
            format!("source={}", self.source),
            format!("destination={}", self.destination),
            format!("destination_type={}", self.destination_type),
            format!("routing_key={}", self.routing_key),
        ];
        words.extend(self.arguments_said());
        let words: Vec<String> = words.iter().map(|text| word(text)).collect();
        format!("rabbitmqadmin --vhost={} declare binding {}", word(vhost), words.join(" "))
    }

    fn arguments_said(&self) -> Option<String> {
        self.arguments
            .as_object()
            .filter(|arguments| !arguments.is_empty())
            .map(|_| format!("arguments={}", self.arguments))
    }
}

/// An exchange that goes, with what leads to and from it.
pub(super) fn exchange(told: &Told, bindings: &[Told], vhost: &str) -> Option<Remark> {
    let when = match (told.durable, told.auto_delete) {
        (true, false) => return None,
        (false, _) => "is not durable: a restart of RabbitMQ takes it away, with its bindings",
        (true, true) => "is declared to go with its last binding (auto_delete)",
    };
    let name = &told.name;
    let evidence = format!("exchange {name} {when}, and events are refused from then on");
    let remedy = "make it anew, durable, while the relay is paused (`outboxd pause`) and with all that was bound to it";
    let mut declared = declared_exchange(name, &told.kind, vhost);
    declared.push_str(if told.internal { " internal=true" } else { "" });
    declared.extend(told.arguments_said().map(|arguments| format!(" {}", word(&arguments))));
    let deleted = format!("rabbitmqadmin --vhost={} delete exchange {}", word(vhost), word(&format!("name={name}")));
    let bound = bindings.iter().map(|binding| binding.binding(vhost));
    Some(Remark::advice(evidence, remedy).with([deleted, declared].into_iter().chain(bound)))
}

/// What the queue may lose of what it has taken.
pub(super) fn queue(told: &Told, place: &Place<'_>) -> Vec<Remark> {
    let asked = [gone(told, place), drops(told, place), expires(told, place), unused(told, place), single(told, place)];
    asked.into_iter().flatten().collect()
}

/// Deleted where it is empty and nobody takes from it, and declared again with all that leads to it. RabbitMQ asks neither of queues that are not
/// classic: those a person deletes.
fn made_anew(told: &Told, place: &Place<'_>) -> Vec<String> {
    let (name, vhost) = (&told.name, place.vhost);
    if told.kind != "classic" {
        return Vec::new();
    }
    let deleted = format!("rabbitmqctl --vhost {} delete_queue {} --if-empty --if-unused", word(vhost), word(name));
    let bound =
        place.bindings.iter().filter(|binding| !binding.source.is_empty()).map(|binding| binding.binding(vhost));
    [deleted, declared_queue(name, vhost)].into_iter().chain(bound).collect()
}

const ANEW: &str = "make it anew as a quorum queue: pause the relay (`outboxd pause`), let consumers empty it and stop them, and start both again behind it";

fn gone(told: &Told, place: &Place<'_>) -> Option<Remark> {
    let name = &told.name;
    let when = if told.exclusive {
        "belongs to one connection (exclusive), and goes with it"
    } else if told.auto_delete {
        "goes with its last consumer (auto_delete)"
    } else if !told.durable {
        "is not durable, and goes with a restart of RabbitMQ"
    } else {
        return None;
    };
    let evidence = format!("queue {name} {when}: acknowledged events that it holds are lost");
    Some(Remark::danger(evidence, ANEW).with(made_anew(told, place)))
}

/// Of streams that is their retention.
fn is_stream(told: &Told) -> bool {
    told.kind == "stream"
}

fn drops(told: &Told, place: &Place<'_>) -> Option<Remark> {
    let limits = ["max-length", "max-length-bytes"];
    let (limit, most) = limits.iter().find_map(|name| Some((name, told.set(name)?)))?;
    let overflow = told.set("overflow").and_then(Value::as_str).unwrap_or("drop-head");
    if is_stream(told) || overflow != "drop-head" || told.set("dead-letter-exchange").is_some() {
        return None;
    }
    let evidence = format!(
        "queue {} holds at most {most} ({limit}), and then drops the oldest events that it has, although they were acknowledged",
        told.name
    );
    if told.argument("x-overflow").is_some() {
        return Some(Remark::advice(evidence, ANEW).with(made_anew(told, place)));
    }
    let mut rules = rules(told);
    rules.insert("overflow".into(), "reject-publish".into());
    let remedy = "let it refuse new ones instead: the relay then waits, and nothing is lost";
    Some(Remark::advice(evidence, remedy).with([policy(told, place, rules)]))
}

fn expires(told: &Told, place: &Place<'_>) -> Option<Remark> {
    let millis = told.set("message-ttl")?;
    if is_stream(told) || told.set("dead-letter-exchange").is_some() {
        return None;
    }
    let evidence = format!("queue {} drops events that nobody took within {millis} ms (message-ttl)", told.name);
    Some(lifted(told, place, "message-ttl", evidence))
}

fn unused(told: &Told, place: &Place<'_>) -> Option<Remark> {
    let millis = told.set("expires")?;
    let evidence =
        format!("queue {} is deleted, with what it holds, when nobody used it for {millis} ms (expires)", told.name);
    Some(lifted(told, place, "expires", evidence))
}

fn single(told: &Told, place: &Place<'_>) -> Option<Remark> {
    let nodes = place.nodes.filter(|nodes| *nodes > 1)?;
    let is_classic = told.kind == "classic" && told.ruled("ha-mode").is_none();
    (is_classic && gone(told, place).is_none()).then(|| {
        let evidence =
            format!("queue {} is a classic one: it stands on one of the {nodes} nodes, and is lost with it", told.name);
        Remark::advice(evidence, ANEW).with(made_anew(told, place))
    })
}

/// Without what a policy says; what an argument says stays with the queue.
fn lifted(told: &Told, place: &Place<'_>, name: &str, evidence: String) -> Remark {
    if told.argument(&format!("x-{name}")).is_some() {
        return Remark::advice(evidence, ANEW).with(made_anew(told, place));
    }
    let mut rules = rules(told);
    rules.remove(name);
    if rules.is_empty() {
        let policy = told.policy.as_deref().unwrap_or_default();
        let clear = format!("rabbitmqctl --vhost {} clear_policy {}", word(place.vhost), word(policy));
        return Remark::advice(evidence, format!("lift the policy {policy}, which says that, and nothing else"))
            .with([clear]);
    }
    Remark::advice(evidence, "let another policy, which is put before that, say the rest")
        .with([policy(told, place, rules)])
}

fn rules(told: &Told) -> Map<String, Value> {
    told.effective_policy_definition.as_object().cloned().unwrap_or_default()
}

/// A queue has one policy, the first by priority: so it says what the one before said, too.
fn policy(told: &Told, place: &Place<'_>, rules: Map<String, Value>) -> String {
    let escaped =
        |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c.to_string() } else { format!("\\{c}") };
    let pattern: String = told.name.chars().map(escaped).collect();
    let [vhost, name, pattern, rules] = [
        place.vhost.to_owned(),
        format!("keep-{}", told.name),
        format!("^{pattern}$"),
        Value::Object(rules).to_string(),
    ]
    .map(|text| word(&text));
    format!("rabbitmqctl --vhost {vhost} set_policy {name} {pattern} {rules} --priority 100 --apply-to queues")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::remark::Verdict::{Advice, Danger};

    fn told(more: Value) -> Told {
        let mut all = json!({ "name": "q.1", "type": "quorum", "durable": true, "arguments": [], "effective_policy_definition": [] });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    fn looked(more: Value, nodes: usize) -> Vec<Remark> {
        let bound =
            [told(json!({ "source": "x", "destination": "q.1", "destination_type": "queue", "routing_key": "#" }))];
        queue(&told(more), &Place { vhost: "/", nodes: Some(nodes), bindings: &bound })
    }

    #[test]
    fn what_keeps_everything_is_left_alone() {
        for more in [
            json!({}),
            json!({ "type": "classic", "auto_delete": false }),
            json!({ "type": "stream", "arguments": { "x-max-length-bytes": 9, "x-message-ttl": 9 } }),
            json!({ "arguments": { "x-max-length": 9, "x-overflow": "reject-publish" } }),
            json!({ "arguments": { "x-max-length": 9 }, "effective_policy_definition": { "overflow": "reject-publish" } }),
            json!({ "arguments": { "x-max-length": 9, "x-dead-letter-exchange": "dead" } }),
            json!({ "arguments": { "x-message-ttl": 9, "x-dead-letter-exchange": "dead" } }),
        ] {
            assert_eq!(looked(more.clone(), 1), [], "{more}");
        }
    }

    #[test]
    fn each_way_to_lose_is_one_remark_with_its_command() {
        let anew = "rabbitmqctl --vhost / delete_queue q.1 --if-empty --if-unused";
        let rule = |rules: &str| {
            format!("rabbitmqctl --vhost / set_policy keep-q.1 '^q\\.1$' '{rules}' --priority 100 --apply-to queues")
        };
        for (more, verdict, words, command) in [
            (json!({ "type": "classic", "durable": false }), Danger, "restart", anew.to_owned()),
            (json!({ "type": "classic", "auto_delete": true }), Danger, "last consumer", anew.to_owned()),
            (
                json!({ "type": "classic", "exclusive": true, "durable": false }),
                Danger,
                "one connection",
                anew.to_owned(),
            ),
            (json!({ "type": "classic" }), Advice, "one of the 3 nodes", anew.to_owned()),
            (
                json!({ "arguments": { "x-max-length": 9 } }),
                Advice,
                "at most 9",
                rule(r#"{"overflow":"reject-publish"}"#),
            ),
            (
                json!({ "policy": "p", "effective_policy_definition": { "expires": 9 } }),
                Advice,
                "nobody used it",
                "rabbitmqctl --vhost / clear_policy p".to_owned(),
            ),
            (
                json!({ "policy": "p", "effective_policy_definition": { "message-ttl": 9, "queue-mode": "lazy" } }),
                Advice,
                "within 9 ms",
                rule(r#"{"queue-mode":"lazy"}"#),
            ),
        ] {
            let remarks = looked(more.clone(), 3);
            assert!(remarks.len() == 1 && remarks[0].verdict == verdict, "{more}: {remarks:#?}");
            assert!(remarks[0].evidence.contains(words), "{more}: {remarks:#?}");
            assert_eq!(remarks[0].commands[0], command, "{more}");
            assert!(
                command != anew
                    || remarks[0].commands[2].ends_with("routing_key='#'")
                    || remarks[0].commands[2].ends_with("'routing_key=#'")
            );
        }
    }

    #[test]
    fn a_quorum_queue_is_deleted_by_a_person() {
        for name in ["x-message-ttl", "x-expires"] {
            let remarks = looked(json!({ "arguments": { name: 9 } }), 1);
            assert!(remarks.len() == 1 && remarks[0].commands.is_empty(), "{remarks:#?}");
        }
    }

    #[test]
    fn an_exchange_that_goes_is_made_anew_with_its_bindings() {
        let bound =
            [told(json!({ "source": "x", "destination": "q", "destination_type": "queue", "routing_key": "a.b" }))];
        assert_eq!(exchange(&told(json!({ "name": "x", "type": "topic" })), &bound, "/"), None);
        let remark = exchange(&told(json!({ "name": "x", "type": "topic", "durable": false })), &bound, "/").unwrap();
        assert_eq!(
            remark.commands,
            [
                "rabbitmqadmin --vhost=/ delete exchange name=x",
                "rabbitmqadmin --vhost=/ declare exchange name=x type=topic durable=true",
                "rabbitmqadmin --vhost=/ declare binding source=x destination=q destination_type=queue routing_key=a.b"
            ]
        );
    }
}
