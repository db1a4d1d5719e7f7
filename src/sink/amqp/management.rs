//! RabbitMQ's management API, asked by the doctor alone: what stands behind the exchanges that a sink sends to. It only reads.
//!
//! It is asked for what is reached, and for nothing else of the broker. Redirects are not followed, no proxy is asked, and link-local addresses are
//! refused, as for the HTTP sink.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode, Url};
use serde::de::DeserializeOwned;

use super::Settings;
use super::queue::{self, Place, Told};
use super::routes::{Binding, Exchange, Routes};
use super::survey::{NAMES_MAX, Wanted, declared_queue, left_out, lost, of_these, vhost};
use crate::remark::{Remark, word};
use crate::secret::Secret;
use crate::sink::http;

const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Routing keys that are named.
const KEYS_MAX: usize = 10;

/// Why it does not tell.
enum Fault {
    /// With the status, and the user who asked.
    Denied(StatusCode, String),
    Other(String),
}

type Answer<T> = Result<Option<T>, Fault>;

struct Api {
    client: Client,
    url: Url,
    user: String,
    password: Secret,
    vhost: String,
    until: Instant,
}

/// Says what would lose, hold up or refuse the events.
pub(super) async fn look(settings: &Settings, wanted: &Wanted, timeout: Duration) -> Vec<Remark> {
    let looked = async {
        let api = Api::of(settings, timeout)?;
        let mut seen = Seen::default();
        seen.exchanges(&api, wanted).await?;
        seen.queues(&api, wanted).await?;
        Ok(judge(settings, wanted, &seen))
    };
    match looked.await {
        Ok(remarks) => remarks,
        Err(Fault::Other(why)) => {
            let remedy = "see whether the plugin rabbitmq_management is enabled there, and what `management` says";
            let command = "rabbitmq-plugins enable rabbitmq_management".to_owned();
            vec![Remark::advice(format!("the management API was not asked to the end: {why}"), remedy).with([command])]
        }
        Err(Fault::Denied(status, user)) => {
            let evidence = format!(
                "the management API does not let the user {user} in ({status}): queues and bindings were not looked at"
            );
            let remedy = "give it the tag `management`, beside those that it has (the command sets all of them)";
            let command = format!("rabbitmqctl set_user_tags {} management", word(&user));
            vec![Remark::advice(evidence, remedy).with([command])]
        }
    }
}

impl Api {
    fn of(settings: &Settings, timeout: Duration) -> Result<Self, Fault> {
        let address = Secret::new(settings.management.clone().unwrap_or_default());
        let target =
            http::target(&address, false).map_err(|(reason, remedy)| Fault::Other(format!("{reason}; {remedy}")))?;
        let tls = settings.tls.as_ref().filter(|_| target.is_encrypted);
        let client =
            http::client(tls, timeout, false).and_then(http::built).map_err(|fault| Fault::Other(fault.detail))?;
        let user = settings.uri.reveal().parse::<lapin::uri::AMQPUri>().map(|uri| uri.authority.userinfo);
        // The parser may repeat the address, and a password with it.
        let user = user.map_err(|_| Fault::Other("`uri` cannot be read".to_owned()))?;
        let until = Instant::now() + timeout;
        let (user, password) = (user.username, Secret::new(user.password));
        Ok(Self { client, url: target.url, user, password, vhost: vhost(settings), until })
    }

    /// `None`: there is no such thing.
    async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Answer<T> {
        let mut url = self.url.clone();
        let other = |error: &dyn std::fmt::Display| Fault::Other(error.to_string());
        url.path_segments_mut()
            .map_err(|()| Fault::Other("`management` is no address of HTTP".into()))?
            .pop_if_empty()
            .push("api")
            .extend(path);
        let left = self.until.saturating_duration_since(Instant::now());
        let asked = self.client.get(url).timeout(left).basic_auth(&self.user, Some(self.password.reveal())).send();
        let mut response = asked.await.map_err(|error| Fault::Other(http::told(&error.without_url())))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                return Err(Fault::Denied(status, self.user.clone()));
            }
            status => return Err(Fault::Other(format!("it answers {status}"))),
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| other(&error.without_url()))? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES_MAX {
                return Err(Fault::Other(format!("an answer has more than {ANSWER_BYTES_MAX} bytes")));
            }
        }
        serde_json::from_slice(&body).map(Some).map_err(|error| other(&error))
    }

    async fn exchange(&self, name: &str) -> Answer<Told> {
        self.get(&["exchanges", &self.vhost, name]).await
    }

    /// Those that lead from it, or to it.
    async fn bindings(&self, name: &str, end: &str) -> Result<Vec<Told>, Fault> {
        Ok(self.get(&["exchanges", &self.vhost, name, "bindings", end]).await?.unwrap_or_default())
    }
}

/// What was told of all that is reached.
#[derive(Default)]
struct Seen {
    vhost: String,
    routes: Routes,
    exchanges: BTreeMap<String, (Told, Vec<Told>)>,
    /// `None`: it is not there.
    queues: BTreeMap<String, Option<(Told, Vec<Told>)>>,
    nodes: Option<usize>,
    reached_queues: usize,
}

impl Seen {
    async fn exchanges(&mut self, api: &Api, wanted: &Wanted) -> Result<(), Fault> {
        self.vhost = api.vhost.clone();
        let mut ahead: Vec<String> = wanted.exchanges.keys().filter(|name| !name.is_empty()).cloned().collect();
        while let Some(name) = ahead.pop() {
            if self.exchanges.contains_key(&name) || self.exchanges.len() >= NAMES_MAX {
                continue;
            }
            let Some(told) = api.exchange(&name).await? else { continue };
            let mut bindings = api.bindings(&name, "source").await?;
            let bound = |binding: &Told| Binding {
                destination: binding.destination.clone(),
                is_queue: binding.destination_type == "queue",
                key: binding.routing_key.clone(),
            };
            let exchange = Exchange {
                kind: told.kind.clone(),
                bindings: bindings.iter().map(bound).collect(),
                alternate: told.alternate(),
                policy: told.policy.clone(),
            };
            let next =
                exchange.bindings.iter().filter(|binding| !binding.is_queue).map(|binding| binding.destination.clone());
            ahead.extend(next.chain(exchange.alternate.clone()));
            bindings.extend(api.bindings(&name, "destination").await?);
            self.routes.0.insert(name.clone(), exchange);
            self.exchanges.insert(name, (told, bindings));
        }
        Ok(())
    }

    async fn queues(&mut self, api: &Api, wanted: &Wanted) -> Result<(), Fault> {
        let reached: BTreeSet<String> = self.reached(wanted).flat_map(|(_, _, taken)| taken.queues).collect();
        self.reached_queues = reached.len();
        for name in reached.into_iter().take(NAMES_MAX) {
            let told: Option<Told> = api.get(&["queues", &api.vhost, &name]).await?;
            let bindings = match told {
                Some(_) => api.get(&["queues", &api.vhost, &name, "bindings"]).await?.unwrap_or_default(),
                None => Vec::new(),
            };
            self.queues.insert(name, told.map(|told| (told, bindings)));
        }
        // Only a user with the tag `monitoring` sees the nodes.
        self.nodes = match api.get::<Vec<serde_json::Value>>(&["nodes"]).await {
            Ok(nodes) => nodes.map(|nodes| nodes.len()),
            Err(Fault::Denied(..)) => None,
            Err(fault) => return Err(fault),
        };
        Ok(())
    }

    fn reached<'a>(&'a self, wanted: &'a Wanted) -> impl Iterator<Item = (&'a str, &'a str, super::routes::Taken)> {
        let each = move |(exchange, keys): (&'a String, &'a BTreeMap<String, usize>)| {
            keys.keys().map(move |key| (exchange.as_str(), key.as_str(), self.routes.taken(exchange, key)))
        };
        wanted.exchanges.iter().flat_map(each)
    }
}

fn judge(settings: &Settings, wanted: &Wanted, seen: &Seen) -> Vec<Remark> {
    let mut remarks = Vec::new();
    // Named by the configuration or the events, or reached from there.
    remarks.extend(seen.exchanges.values().filter_map(|(told, bindings)| queue::exchange(told, bindings, &seen.vhost)));
    let mut untaken: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut undecided: BTreeSet<String> = BTreeSet::new();
    for (exchange, key, taken) in seen.reached(wanted) {
        match taken.undecided {
            _ if !taken.queues.is_empty() => {}
            Some(why) => drop(undecided.insert(why)),
            None => untaken.entry(exchange).or_default().push(key),
        }
    }
    remarks.extend(untaken.iter().map(|(exchange, keys)| no_queue(settings, wanted, seen, exchange, keys)));
    let undecided: Vec<String> = undecided.into_iter().collect();
    if !undecided.is_empty() {
        remarks
            .push(Remark::ok(format!("whether a queue takes these events is not decided: {}", undecided.join("; "))));
    }
    remarks.extend(left_out(seen.reached_queues, "queues"));
    let mut kept = Vec::new();
    for (told, bindings) in seen.queues.values().flatten() {
        let found = queue::queue(told, &Place { vhost: &seen.vhost, nodes: seen.nodes, bindings });
        if found.is_empty() {
            kept.push(format!("{} ({})", told.name, told.kind));
        }
        remarks.extend(found);
    }
    if !kept.is_empty() {
        remarks
            .push(Remark::ok(format!("queues that keep what they take until it is acknowledged: {}", kept.join(", "))));
    }
    remarks
}

fn no_queue(settings: &Settings, wanted: &Wanted, seen: &Seen, exchange: &str, keys: &[&str]) -> Remark {
    let counts = wanted.exchanges.get(exchange);
    let count: usize = keys.iter().filter_map(|key| counts?.get(*key)).sum();
    let named: Vec<String> = keys.iter().take(KEYS_MAX).map(|key| format!("{key:?}")).collect();
    let more = if keys.len() > KEYS_MAX { ", ..." } else { "" };
    let fate = lost(settings);
    let evidence = format!(
        "no queue takes what exchange {exchange} is given by routing key {}{more}: {} would be {fate}",
        named.join(", "),
        of_these(count)
    );
    // Names that begin with `amq.` are RabbitMQ's own.
    let queue = exchange.trim_start_matches("amq.");
    let remedy = format!("bind the queue that is to take them; as they stand, the commands make one called {queue}");
    let bound = keys.iter().take(KEYS_MAX).map(|key| {
        let said =
            ["source", "destination", "destination_type", "routing_key"].iter().zip([exchange, queue, "queue", key]);
        let words: Vec<String> = said.map(|(name, value)| word(&format!("{name}={value}"))).collect();
        format!("rabbitmqadmin --vhost={} declare binding {}", word(&seen.vhost), words.join(" "))
    });
    Remark::danger(evidence, remedy).with([declared_queue(queue, &seen.vhost)].into_iter().chain(bound))
}
