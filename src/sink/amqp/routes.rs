//! Which queues take a message, by the bindings of exchanges, as RabbitMQ routes it. Pure.
//!
//! `direct`, `fanout` and `topic` are walked, from exchange to exchange and to alternate exchanges; types that look at headers, or belong to plugins,
//! are not decided.

use std::collections::{BTreeMap, BTreeSet};

/// An exchange, as far as routing depends on it.
#[derive(Clone, Debug, Default)]
pub(super) struct Exchange {
    pub kind: String,
    pub bindings: Vec<Binding>,
    /// Takes what no binding does.
    pub alternate: Option<String>,
    /// A policy, which may name an alternate.
    pub policy: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Binding {
    pub destination: String,
    pub is_queue: bool,
    pub key: String,
}

#[derive(Debug, Default)]
pub(super) struct Routes(pub BTreeMap<String, Exchange>);

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub queues: BTreeSet<String>,
    /// Why there may be more, or fewer.
    pub undecided: Option<String>,
}

impl Routes {
    /// The default exchange gives a message to the queue of that name.
    pub fn taken(&self, exchange: &str, key: &str) -> Taken {
        let mut taken = Taken::default();
        if exchange.is_empty() {
            taken.queues.insert(key.to_owned());
            return taken;
        }
        let (mut seen, mut ahead) = (BTreeSet::new(), vec![exchange]);
        while let Some(name) = ahead.pop() {
            if !seen.insert(name) {
                continue;
            }
            let Some(found) = self.0.get(name) else {
                taken.undecided = Some(format!("exchange {name} was not looked at"));
                continue;
            };
            let Some(matches) = matcher(&found.kind) else {
                taken.undecided = Some(format!("exchange {name} is of type {}", found.kind));
                continue;
            };
            let mut is_taken = false;
            for binding in found.bindings.iter().filter(|binding| matches(&binding.key, key)) {
                is_taken = true;
                if binding.is_queue {
                    taken.queues.insert(binding.destination.clone());
                } else {
                    ahead.push(&binding.destination);
                }
            }
            match (&found.alternate, &found.policy) {
                _ if is_taken => {}
                (Some(alternate), _) => ahead.push(alternate),
                (None, Some(policy)) => {
                    taken.undecided =
                        Some(format!("the policy {policy} of exchange {name} may name an alternate exchange"));
                }
                (None, None) => {}
            }
        }
        taken
    }
}

type Matches = fn(&str, &str) -> bool;

fn matcher(kind: &str) -> Option<Matches> {
    match kind {
        "direct" => Some(|binding, key| binding == key),
        "fanout" => Some(|_, _| true),
        "topic" => Some(is_match),
        _ => None,
    }
}

/// Words between dots: `*` stands for one, `#` for any number.
fn is_match(pattern: &str, key: &str) -> bool {
    let words = |text: &'_ str| -> Vec<String> {
        if text.is_empty() { Vec::new() } else { text.split('.').map(str::to_owned).collect() }
    };
    let key = words(key);
    // Which numbers of the key's words the pattern so far can stand for.
    let mut reached = vec![false; key.len() + 1];
    reached[0] = true;
    for word in words(pattern) {
        let mut next = vec![false; key.len() + 1];
        for at in 0..=key.len() {
            next[at] = match word.as_str() {
                "#" => reached[..=at].contains(&true),
                word => at > 0 && reached[at - 1] && (word == "*" || word == key[at - 1]),
            };
        }
        reached = next;
    }
    reached[key.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(kind: &str, bindings: &[(&str, &str)]) -> Exchange {
        let binding = |(destination, key): &(&str, &str)| Binding {
            destination: destination.trim_start_matches('>').to_owned(),
            is_queue: !destination.starts_with('>'),
            key: (*key).to_owned(),
        };
        Exchange { kind: kind.into(), bindings: bindings.iter().map(binding).collect(), ..Exchange::default() }
    }

    fn queues(routes: &Routes, exchange: &str, key: &str) -> Vec<String> {
        let taken = routes.taken(exchange, key);
        assert_eq!(taken.undecided, None);
        taken.queues.into_iter().collect()
    }

    #[test]
    fn patterns_are_those_of_topic_exchanges() {
        for (pattern, key, is) in [
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("a.#", "a", true),
            ("a.#", "a.b.c", true),
            ("#", "", true),
            ("*", "", false),
            ("", "", true),
            ("#.c", "a.b.c", true),
            ("#.c", "c", true),
            ("a.#.c", "a.c", true),
            ("a.#.c", "a.b.d", false),
            ("*.*.#", "a", false),
            ("a", "A", false),
            ("a.", "a", false),
        ] {
            assert_eq!(is_match(pattern, key), is, "{pattern} {key}");
        }
    }

    #[test]
    fn bindings_are_walked_to_the_end() {
        let mut routes = Routes::default();
        routes.0.insert("in".into(), exchange("topic", &[("orders", "order.*"), (">all", "#.placed")]));
        routes.0.insert("all".into(), exchange("fanout", &[("audit", ""), (">in", "")]));
        routes
            .0
            .insert("direct".into(), Exchange { alternate: Some("all".into()), ..exchange("direct", &[("one", "1")]) });
        routes.0.insert("heads".into(), exchange("headers", &[("some", "")]));
        routes.0.insert("ruled".into(), Exchange { policy: Some("p".into()), ..exchange("direct", &[]) });
        assert_eq!(queues(&routes, "in", "order.placed"), ["audit", "orders"]);
        assert_eq!(queues(&routes, "in", "order.gone"), ["orders"]);
        assert_eq!(queues(&routes, "in", "other"), [""; 0]);
        assert_eq!(queues(&routes, "direct", "1"), ["one"]);
        assert_eq!(queues(&routes, "direct", "2"), ["audit"], "by the alternate exchange");
        assert_eq!(queues(&routes, "", "q"), ["q"]);
        for name in ["heads", "ruled", "unknown"] {
            assert!(routes.taken(name, "k").undecided.is_some(), "{name}");
        }
    }
}
