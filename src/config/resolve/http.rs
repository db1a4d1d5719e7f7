//! `[sinks.X]` with `type = "http"`.

#[cfg(not(feature = "http"))]
pub(super) fn resolve(
    name: &str,
    _: &crate::config::file::Http,
    checker: &mut super::Checker<'_>,
) -> Option<crate::sink::Settings> {
    super::sink::refuse_missing_feature(name, "http", checker);
    None
}

#[cfg(feature = "http")]
pub(super) use with_client::resolve;

#[cfg(feature = "http")]
mod with_client {
    use crate::config::file;
    use crate::config::problem::KeyPath;
    use crate::config::resolve::{Bytes, Checker, broker, is_loopback};
    use crate::config::value::{List, Size};
    use crate::consumer::Bounds;
    use crate::secret::Secret;
    use crate::sink::Settings;
    use crate::sink::format::Format;
    use crate::sink::http::{self, Target};

    const CONNECTIONS: u64 = 8;
    const CONNECTIONS_MAX: u64 = 256;
    const BATCH_EVENTS_MAX: u64 = 10_000;
    const BATCH_BYTES: Size = Size(1 << 20);
    const BATCH_BYTES_MAX: Size = Size(64 << 20);

    pub(in crate::config::resolve) fn resolve(
        name: &str,
        raw: &file::Http,
        checker: &mut Checker<'_>,
    ) -> Option<Settings> {
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
        Some(Settings::Http(http::Settings {
            url: url?,
            check_url: raw.check_url.clone(),
            authorization: raw.authorization.clone(),
            format,
            headers: broker::headers(&key("headers"), raw.headers.as_ref(), checker),
            connections: connections as usize,
            batch_events: batch_events as usize,
            batch_bytes: batch_bytes.0 as usize,
            rejecting_statuses: statuses(&key("reject_statuses"), raw.reject_statuses.as_ref(), checker),
            tls: raw.tls.as_ref().map(|raw| broker::tls(name, raw, checker)),
            allow_link_local: raw.allow_link_local.unwrap_or(false),
            // The relay's, when it is known which one it is.
            ack_timeout: Bounds::default().ack_timeout,
        }))
    }

    /// Says what is wrong with an address, never the address: it may hold a token.
    fn check_url(key: &KeyPath, url: &Secret, raw: &file::Http, checker: &mut Checker<'_>) -> Option<Target> {
        let target = match http::target(url, raw.allow_link_local.unwrap_or(false)) {
            Ok(target) => target,
            Err((reason, remedy)) => {
                checker.refuse(key.clone(), reason, remedy);
                return None;
            }
        };
        let is_exposed = raw.authorization.is_some() && !target.is_encrypted && !is_loopback(&target.host);
        if is_exposed && raw.allow_plaintext != Some(true) {
            broker::refuse_plaintext_password(key.clone(), &target.host, "write https://", checker);
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
}
