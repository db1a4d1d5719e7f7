//! `[daemon]`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::{Checker, Nanos, is_loopback};
use crate::config::{Daemon, LogFormat, WhenLocked, file};
use crate::setting::problem::KeyPath;
use crate::setting::value::Span;

const CONTROL: &str = "unix:outboxd.sock";
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
const DRAIN_TIMEOUT_MAX: Duration = Duration::from_secs(3600);
const LOG_LEVEL: &str = "info";

/// The length that the system admits for a socket's path.
const SOCKET_PATH_BYTES_MAX: usize = 107;

pub(super) fn resolve(raw: &file::Daemon, checker: &mut Checker<'_>) -> Daemon {
    let key = |name: &str| KeyPath::of(["daemon", name]);
    let drain_timeout = raw.drain_timeout.unwrap_or(Span(DRAIN_TIMEOUT));
    checker.within(
        &key("drain_timeout"),
        Nanos(drain_timeout),
        Nanos(Span(Duration::from_millis(100))),
        Nanos(Span(DRAIN_TIMEOUT_MAX)),
    );
    let waits = [("wait", WhenLocked::Wait), ("refuse", WhenLocked::Refuse)];
    let formats = [("auto", LogFormat::Auto), ("logfmt", LogFormat::Logfmt), ("json", LogFormat::Json)];
    Daemon {
        admin: raw.admin.as_ref().and_then(|text| admin(text, &key("admin"), checker)),
        control: control_of(raw.control.as_deref(), checker),
        drain_timeout: drain_timeout.0,
        when_locked: checker.choose_or(&key("when_locked"), raw.when_locked.as_ref(), &waits, WhenLocked::Wait),
        log_format: checker.choose_or(&key("log_format"), raw.log_format.as_ref(), &formats, LogFormat::Auto),
        log_level: log_level(raw.log_level.as_deref().unwrap_or(LOG_LEVEL), &key("log_level"), checker),
    }
}

pub(super) fn control_of(said: Option<&str>, checker: &mut Checker<'_>) -> PathBuf {
    control(said.unwrap_or(CONTROL), &KeyPath::of(["daemon", "control"]), checker)
}

fn admin(text: &str, key: &KeyPath, checker: &mut Checker<'_>) -> Option<SocketAddr> {
    let (host, _) = text.rsplit_once(':').unwrap_or((text, ""));
    let address = text.replacen("localhost:", "127.0.0.1:", 1).parse::<SocketAddr>();
    match address {
        Ok(address) if is_loopback(&address.ip().to_string()) => Some(address),
        Ok(_) => {
            let reason =
                format!("{host} is not loopback: others could reach it, and TLS and tokens are not in this version");
            checker.refuse(
                key.clone(),
                reason,
                "write \"127.0.0.1:9464\", and let a proxy or an agent on this machine carry it on",
            );
            None
        }
        Err(_) => {
            checker.refuse(key.clone(), format!("{text:?} is not an address and a port"), "write \"127.0.0.1:9464\"");
            None
        }
    }
}

fn control(text: &str, key: &KeyPath, checker: &mut Checker<'_>) -> PathBuf {
    let path = text.strip_prefix("unix:").unwrap_or_default();
    if path.is_empty() {
        checker.refuse(key.clone(), format!("{text:?} does not name a socket"), format!("write {CONTROL:?}"));
        return PathBuf::new();
    }
    let path = checker.places.folder().join(path);
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        let reason = format!(
            "{} is longer than the {SOCKET_PATH_BYTES_MAX} bytes that a socket's path may have",
            path.display()
        );
        checker.refuse(key.clone(), reason, "write a shorter one, as in \"unix:/run/outboxd/outboxd.sock\"");
    }
    path
}

fn log_level(text: &str, key: &KeyPath, checker: &mut Checker<'_>) -> String {
    let is_word = |word: &str| ["error", "warn", "info", "debug", "trace", "off"].contains(&word);
    // A bare word that is no level would be taken for a module's name, and silence everything else.
    let is_plain = |part: &str| is_word(part.trim()) || part.contains('=');
    if !text.split(',').all(is_plain) || EnvFilter::builder().parse(text).is_err() {
        checker.refuse(
            key.clone(),
            format!("{text:?} is neither a level nor a list of directives"),
            "write \"info\" or \"info,outboxd::sink=debug\"; levels are error, warn, info, debug and trace",
        );
    }
    text.to_owned()
}
