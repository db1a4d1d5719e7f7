//! Keys that several sinks have.

use std::time::Duration;

use super::format::{Format, HeaderField};
use super::template::{ParseError, Template};
use super::tls::{self, Identity};
use crate::setting::Checker;
use crate::setting::key::Fallback::Absent;
use crate::setting::key::section;
use crate::setting::problem::{KeyPath, either, nearest};
use crate::setting::secret_file::{self, Audience};
use crate::setting::value::{FilePath, List};

/// Until the relay is known, whose own takes its place.
pub(super) const ACK_TIMEOUT: Duration = Duration::from_secs(30);

section! {
    /// Encryption, inside a Kafka, AMQP or HTTP sink.
    Tls, "tls" {
        /// The authorities that the broker's certificate must come from, in PEM.
        ca_file: FilePath, Absent("the system's"), r#""ca.pem""#;
        /// Our own certificate, in PEM, together with `key_file`.
        cert_file: FilePath, Absent("none"), r#""client.pem""#;
        /// The key of our certificate, in PEM. Others must not be able to read it.
        key_file: FilePath, Absent("none"), r#""client-key.pem""#;
    }
}

/// What the settings of a server's client tell: they have `format` and `ack_timeout`, and TLS where it is said. What one of them tells
/// besides stands behind that.
macro_rules! told {
    ($sink:ident, $($tls:ident).+; $($more:tt)*) => {
        impl $crate::sink::Told for Settings {
            fn open(&self, port: $crate::sink::Port) -> Box<dyn $crate::sink::Sink> {
                Box::new(super::$sink::new(self.clone(), port))
            }

            fn format(&self) -> $crate::sink::format::Format {
                self.format
            }

            fn files(&self) -> Vec<std::path::PathBuf> {
                self.$($tls).+.as_ref().map($crate::sink::tls::Tls::files).unwrap_or_default()
            }

            fn set_ack_timeout(&mut self, ack_timeout: std::time::Duration) {
                self.ack_timeout = ack_timeout;
            }

            $($more)*
        }
    };
}
pub(super) use told;

/// The wire form of a broker's messages.
pub(super) fn format(key: &KeyPath, word: Option<&String>, checker: &mut Checker<'_>) -> Format {
    if word.is_some_and(|word| word == "cloudevents") {
        let names = either(Format::ALL.iter().map(|(name, _)| *name));
        checker.refuse(key.clone(), "format \"cloudevents\" is not in this version", format!("write {names}"));
        return Format::Plain;
    }
    checker.choose_or(key, word, &Format::ALL, Format::Plain)
}

pub(super) fn headers(key: &KeyPath, names: Option<&List>, checker: &mut Checker<'_>) -> Vec<HeaderField> {
    let mut fields = Vec::new();
    for name in names.iter().flat_map(|list| &list.0) {
        let known = || HeaderField::ALL.iter().map(|(name, _)| *name);
        match HeaderField::parse(name) {
            Some(field) if fields.contains(&field) => {
                checker.refuse(key.clone(), format!("{name:?} is said twice"), "say it once");
            }
            Some(field) => fields.push(field),
            None => {
                let near = nearest(name, known());
                let remedy = near
                    .map_or_else(|| format!("known are {}", either(known())), |near| format!("did you mean {near:?}?"));
                checker.refuse(key.clone(), format!("there is no header {name:?}"), remedy);
            }
        }
    }
    fields
}

/// A template; one that cannot be parsed is reported, with the place.
pub(super) fn template(key: &KeyPath, text: &str, checker: &mut Checker<'_>) -> Option<Template> {
    match Template::parse(text) {
        Ok(template) => Some(template),
        Err(error) => {
            let remedy = match &error {
                ParseError::UnknownField { nearest: Some(near), .. } => format!("write {{{near}}}"),
                ParseError::UnknownField { .. } => "write one of the known fields".to_owned(),
                _ => "close every field, and write {{ and }} for braces".to_owned(),
            };
            checker.refuse(key.clone(), format!("in {text:?}: {error}"), remedy);
            None
        }
    }
}

/// The files of a `tls` table, checked.
pub(super) fn tls(sink: &str, raw: &Tls, checker: &mut Checker<'_>) -> tls::Tls {
    let key = |part: &str| KeyPath(["sinks", sink, "tls", part].map(str::to_owned).to_vec());
    let mut file = |part: &str, path: Option<&FilePath>, audience: Audience| {
        let path = checker.path(path?);
        if let Err((reason, remedy)) = secret_file::read(&path, audience) {
            checker.refuse(
                key(part),
                reason,
                remedy.unwrap_or_else(|| "name a file in PEM that outboxd may read".to_owned()),
            );
        }
        Some(path)
    };
    let ca_file = file("ca_file", raw.ca_file.as_ref(), Audience::Anybody);
    let certificate = file("cert_file", raw.cert_file.as_ref(), Audience::Anybody);
    let private = file("key_file", raw.key_file.as_ref(), Audience::NotOthers);
    if certificate.is_some() != private.is_some() {
        let (said, missing) = if certificate.is_some() { ("cert_file", "key_file") } else { ("key_file", "cert_file") };
        checker.refuse(
            key(said),
            format!("`{said}` is said without `{missing}`"),
            format!("add `{missing}`, or leave both out"),
        );
    }
    let identity = certificate.zip(private).map(|(cert_file, key_file)| Identity { cert_file, key_file });
    tls::Tls { ca_file, identity }
}

/// Refuses to send a password unencrypted over a network.
pub(super) fn refuse_plaintext_password(key: KeyPath, host: &str, encrypt: &str, checker: &mut Checker<'_>) {
    checker.refuse(
        key,
        format!("the password would travel unencrypted to {host}"),
        format!("{encrypt}; or write allow_plaintext = true if the network between is safe"),
    );
}
