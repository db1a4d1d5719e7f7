//! The keys of a backup job that say where its copies go.

use std::path::PathBuf;
use std::time::Duration;

use super::{Place, Target};
use crate::secret::Secret;
use crate::setting::key::Fallback::{Absent, Required, Value};
use crate::setting::key::section;
use crate::setting::problem::KeyPath;
use crate::setting::value::{FilePath, Size, Span};
use crate::setting::{Bytes, Checker, Nanos};

const TIMEOUT: Span = Span(Duration::from_secs(60));
const TIMEOUT_MIN: Span = Span(Duration::from_millis(100));
const TIMEOUT_MAX: Span = Span(Duration::from_hours(1));
const PIECE: Size = Size(16 << 20);
const PIECE_MIN: Size = Size(4 << 10);
/// A piece is held in memory while it is sent.
const PIECE_MAX: Size = Size(1 << 30);

section! {
    /// How the server of an `s3://` target is spoken to. Each key may come by environment, as `OUTBOXD_JOBS__NIGHTLY__S3__SECRET_ACCESS_KEY`.
    S3, "s3" {
        /// The server's address.
        endpoint: String, Absent("AWS's, by `region`"), r#""https://s3.example.net""#;
        /// The bucket's region; many servers other than AWS take any.
        region: String, Value(r#""us-east-1""#), r#""eu-central-2""#;
        /// The key's name.
        access_key_id: String, Required, r#""AKIAIOSFODNN7EXAMPLE""#;
        /// The key itself: better by `secret_access_key_file`, or by environment.
        secret_access_key: Secret, Required, r#""...""#;
        /// Of a key that was lent for a time.
        session_token: Secret, Absent("none"), r#""...""#;
        /// Puts the bucket's name before the host's (`https://bucket.s3.example.net`), not into the path.
        virtual_hosted: bool, Value("false"), "true";
        /// Certificates to trust beside the system's, in PEM.
        ca_file: FilePath, Absent("the system's alone"), r#""/etc/outboxd/ca.pem""#;
        /// Takes an `http://` endpoint on another machine: whoever is in between sees what is in the backups.
        allow_http: bool, Value("false"), "true";
    }
}

/// What a section says of its target.
pub struct Said<'a> {
    pub target: &'a str,
    pub s3: Option<&'a S3>,
    pub piece: Option<Size>,
    pub timeout: Option<Span>,
}

/// `None`: something is wrong, and noted.
pub fn resolve(job: &str, said: &Said<'_>, checker: &mut Checker<'_>) -> Option<Target> {
    let key = |part: &str| KeyPath::of(["jobs", job, part]);
    let timeout = said.timeout.unwrap_or(TIMEOUT);
    checker.within(&key("target_timeout"), Nanos(timeout), Nanos(TIMEOUT_MIN), Nanos(TIMEOUT_MAX));
    let piece = said.piece.unwrap_or(PIECE);
    checker.within(&key("target_piece"), Bytes(piece), Bytes(PIECE_MIN), Bytes(PIECE_MAX));
    let place = match said.target.split_once("://") {
        Some(("s3", rest)) => bucket(job, rest, said.s3, checker)?,
        _ => Place::Folder(folder(said.target, &key("target"), checker)?),
    };
    Some(Target { url: said.target.trim_end_matches('/').to_owned(), place, piece_bytes: piece.0, timeout: timeout.0 })
}

/// A path, or a file URL.
pub fn folder(target: &str, key: &KeyPath, checker: &mut Checker<'_>) -> Option<PathBuf> {
    let path = match target.split_once("://") {
        None => target,
        Some(("file", path)) if path.starts_with('/') => path,
        Some((scheme, _)) => {
            let reason = match scheme {
                "file" => "a file URL has three slashes, before a path from the root on".to_owned(),
                scheme => format!("backups go to file:// and s3://; this version knows no {scheme}://"),
            };
            checker.refuse(key.clone(), reason, "for example: target = \"file:///var/backups/shop\"");
            return None;
        }
    };
    Some(checker.path(&FilePath(path.to_owned())))
}

#[cfg(not(feature = "s3"))]
fn bucket(job: &str, _: &str, _: Option<&S3>, checker: &mut Checker<'_>) -> Option<Place> {
    let reason = "this build of outboxd cannot do s3: it was built without the feature `s3`";
    let remedy = "build it with `cargo build --release --features s3`, or use a release";
    checker.refuse(KeyPath::of(["jobs", job, "target"]), reason, remedy);
    None
}

#[cfg(feature = "s3")]
fn bucket(job: &str, rest: &str, said: Option<&S3>, checker: &mut Checker<'_>) -> Option<Place> {
    use super::s3::{Bucket, mark};
    use crate::setting::is_loopback;

    let key = |part: &str| KeyPath::of(["jobs", job, "s3", part]);
    let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.trim_matches('/');
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
        let reason = format!("{name:?} is no name of a bucket");
        checker.refuse(KeyPath::of(["jobs", job, "target"]), reason, "for example: target = \"s3://bucket/shop\"");
        return None;
    }
    if object_store::path::Path::parse(prefix).is_err() {
        let reason = format!("{prefix:?} cannot stand before names in a bucket");
        checker.refuse(KeyPath::of(["jobs", job, "target"]), reason, "write words with single slashes between them");
        return None;
    }
    let usual = S3::default();
    let said = said.unwrap_or(&usual);
    let id = checker.require(&key("access_key_id"), said.access_key_id.as_ref());
    let secret = checker.require(&key("secret_access_key"), said.secret_access_key.as_ref());
    if let Some(endpoint) = &said.endpoint {
        let host = |rest: &str| {
            rest.split(['/', '?']).next().and_then(|place| {
                place.rsplit_once(':').map_or(Some(place.to_owned()), |(host, _)| Some(host.to_owned()))
            })
        };
        match endpoint.split_once("://") {
            Some(("https", rest)) if !rest.is_empty() => {}
            Some(("http", rest))
                if said.allow_http == Some(true) || host(rest).is_some_and(|host| is_loopback(&host)) => {}
            Some(("http", _)) => {
                let reason = "whoever is in between would see what is in the backups";
                checker.refuse(key("endpoint"), reason, "write https://, or allow_http = true");
            }
            _ => checker.refuse(
                key("endpoint"),
                "it is no address",
                "for example: endpoint = \"https://s3.example.net\"",
            ),
        }
    }
    let (access_key_id, secret_access_key) = (id?, secret?);
    Some(Place::Bucket(Bucket {
        name: name.to_owned(),
        prefix: prefix.to_owned(),
        endpoint: said.endpoint.clone(),
        region: said.region.clone().unwrap_or_else(|| "us-east-1".to_owned()),
        secrets_mark: mark(&[Some(&secret_access_key), said.session_token.as_ref()]),
        access_key_id,
        secret_access_key,
        session_token: said.session_token.clone(),
        virtual_hosted: said.virtual_hosted.unwrap_or(false),
        ca_file: said.ca_file.as_ref().map(|path| checker.path(path)),
    }))
}
