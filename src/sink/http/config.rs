//! `[sinks.X]` with `type = "http"`: its keys, and what follows from them.

use super::{Settings, Target};
use crate::secret::Secret;
use crate::setting::key::Fallback::{Absent, Required, Value};
use crate::setting::key::section;
use crate::setting::problem::KeyPath;
use crate::setting::value::{List, Size};
use crate::setting::{Bytes, Checker, is_loopback};
use crate::sink;
use crate::sink::format::Format;
use crate::sink::keys::{self, Tls};

const CONNECTIONS: u64 = 8;
const CONNECTIONS_MAX: u64 = 256;
const BATCH_EVENTS_MAX: u64 = 10_000;
const BATCH_BYTES: Size = Size(1 << 20);
const BATCH_BYTES_MAX: Size = Size(64 << 20);

section! {
    /// Events are posted to an HTTP address. Delivered is what was answered with 200 to 299.
    Http, "[sinks.<name>] with type = \"http\"" {
        /// `"http"`.
        r#type: String, Required, r#""http""#;
        /// Where to post, as `http://` or `https://`. Redirects are not followed; no proxy is used.
        url: Secret, Required, r#""https://hooks.example.org/orders""#;
        /// An address that answers `GET` with 200 to 299 when events can be taken: asked at start and after every fault.
        check_url: Secret, Absent("a connection to `url` will do"), r#""https://hooks.example.org/health""#;
        /// The value of the header `Authorization`; better given as `authorization_file`.
        authorization: Secret, Absent("none"), r#""Bearer token""#;
        /// What a request holds: `"plain"` (the payload's bytes as they are) or `"envelope"`.
        format: String, Value(r#""plain""#), r#""envelope""#;
        /// Headers beyond those that every request carries; `_` in a name becomes `-`.
        headers: List, Value("[]"), r#"["stream_id", "time"]"#;
        /// Requests under way at a time. Events of one key share one, so their order holds.
        connections: u64, Value("8"), "1";
        /// Events in one request. More than 1: envelopes, one a line, as `application/x-ndjson`; `format` has to say `"envelope"`.
        batch_events: u64, Value("1"), "100";
        /// A request of several events grows up to here.
        batch_bytes: Size, Value(r#""1MiB""#), r#""1MiB""#;
        /// Statuses that mean "this event is at fault" and not "wait" or "halt", such as a 500 that one event alone provokes.
        reject_statuses: List, Value("[]"), r#"["500"]"#;
        /// Certificates for an `https://` address.
        tls: Tls, Absent("the system's certificates, for `https://`"), r#"{ ca_file = "ca.pem" }"#;
        /// Lets `authorization` travel unencrypted to a host that is not loopback.
        allow_plaintext: bool, Value("false"), "true";
        /// Lets the address lead to a link-local or metadata address of a cloud.
        allow_link_local: bool, Value("false"), "true";
    }
}

keys::told! { Http, tls;}

impl sink::Keys for Http {
    fn resolve(&self, name: &str, checker: &mut Checker<'_>) -> Option<sink::Settings> {
        let raw = self;
        let key = |part: &str| KeyPath::of(["sinks", name, part]);
        let url = checker.require(&key("url"), raw.url.as_ref());
        let mut target = |part: &str, url: &Secret| check_url(&key(part), url, raw, checker);
        let target_url = url.as_ref().and_then(|url| target("url", url));
        raw.check_url.as_ref().and_then(|url| target("check_url", url));
        if let (Some(target), Some(_)) = (&target_url, &raw.tls)
            && !target.is_encrypted
        {
            checker.refuse(key("tls"), "`tls` is said, but the address begins with http://", "write https://");
        }
        let format = checker.choose_or(
            &key("format"),
            raw.format.as_ref(),
            &[("plain", Format::Plain), ("envelope", Format::Envelope)],
            Format::Plain,
        );
        let connections = raw.connections.unwrap_or(CONNECTIONS);
        checker.within(&key("connections"), connections, 1, CONNECTIONS_MAX);
        let batch_events = raw.batch_events.unwrap_or(1);
        checker.within(&key("batch_events"), batch_events, 1, BATCH_EVENTS_MAX);
        if batch_events > 1 && format != Format::Envelope {
            let reason = "a request of several events holds envelopes, because payloads alone could not be told apart";
            checker.refuse(key("batch_events"), reason, "write format = \"envelope\", or batch_events = 1");
        }
        let batch_bytes = raw.batch_bytes.unwrap_or(BATCH_BYTES);
        checker.within(&key("batch_bytes"), Bytes(batch_bytes), Bytes(Size(1)), Bytes(BATCH_BYTES_MAX));
        Some(sink::Settings::Http(Settings {
            url: url?,
            check_url: raw.check_url.clone(),
            authorization: raw.authorization.clone(),
            format,
            headers: keys::headers(&key("headers"), raw.headers.as_ref(), checker),
            connections: connections as usize,
            batch_events: batch_events as usize,
            batch_bytes: batch_bytes.0 as usize,
            rejecting_statuses: statuses(&key("reject_statuses"), raw.reject_statuses.as_ref(), checker),
            tls: raw.tls.as_ref().map(|raw| keys::tls(name, raw, checker)),
            allow_link_local: raw.allow_link_local.unwrap_or(false),
            // The relay's, when it is known which one it is.
            ack_timeout: keys::ACK_TIMEOUT,
        }))
    }
}

/// Says what is wrong with an address, never the address: it may hold a token.
fn check_url(key: &KeyPath, url: &Secret, raw: &Http, checker: &mut Checker<'_>) -> Option<Target> {
    let target = match super::target(url, raw.allow_link_local.unwrap_or(false)) {
        Ok(target) => target,
        Err((reason, remedy)) => {
            checker.refuse(key.clone(), reason, remedy);
            return None;
        }
    };
    let is_exposed = raw.authorization.is_some() && !target.is_encrypted && !is_loopback(&target.host);
    if is_exposed && raw.allow_plaintext != Some(true) {
        keys::refuse_plaintext_password(key.clone(), &target.host, "write https://", checker);
    }
    Some(target)
}

fn statuses(key: &KeyPath, said: Option<&List>, checker: &mut Checker<'_>) -> Vec<u16> {
    let mut codes = Vec::new();
    for text in said.iter().flat_map(|list| &list.0) {
        match text.parse() {
            Ok(code) if (400..=599).contains(&code) => codes.push(code),
            _ => checker.refuse(
                key.clone(),
                format!("{text:?} is not a status of a failure"),
                "write statuses from 400 to 599, as in [\"500\"]",
            ),
        }
    }
    codes
}
