//! Where copies of backups lie off this host: a folder of another file system, or a bucket of a server that speaks S3.
//!
//! A backup lies there under its name: its files, those that are larger than a piece in numbered pieces, and last its `manifest.json`. What has no
//! manifest there is no backup. Nothing that is there is overwritten (a conditional put). Each request has a time, and a stop ends it.
//! Tested for both kinds by one suite, `tests/it/backups_leave_the_host`.

mod keys;
#[cfg(feature = "s3")]
mod s3;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Error, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use tokio::runtime::Runtime;

pub use self::keys::{S3, Said, folder, resolve};
use super::shelf::Shelf;
use crate::maintenance::{Failure, Stop};
use crate::sqlite::place;

/// So often a request that is under way looks whether it has to end.
const LOOK: Duration = Duration::from_millis(50);
/// Not more is read by one request.
const WINDOW: u64 = 8 << 20;
const REACHED: &str = "Remedy: see that it can be reached; the next run sends what is missing";
/// What a server says who does not let us in.
const DENIED: [&str; 5] =
    ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403 Forbidden", "401 Unauthorized"];
/// Of what a server says, so many characters are told.
const TOLD_MAX: usize = 300;

/// A resolved `target` beside a `folder`.
#[derive(Debug)]
pub struct Target {
    /// As it was said.
    pub url: String,
    place: Place,
    /// What is larger goes in pieces.
    pub piece_bytes: u64,
    /// Of one request, with its repetitions.
    timeout: Duration,
}

#[derive(Debug)]
enum Place {
    Folder(PathBuf),
    #[cfg(feature = "s3")]
    Bucket(s3::Bucket),
}

/// A target that is being talked to.
pub struct Session<'a> {
    line: Line<'a>,
    store: Arc<dyn ObjectStore>,
    /// Everything of ours lies below it.
    root: Path,
}

/// What waits for answers.
struct Line<'a> {
    target: &'a Target,
    stop: Stop,
    /// `None` once it has ended.
    runtime: Option<Runtime>,
}

/// What came of a put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    New,
    /// Something is there, and stays.
    There,
}

/// Why there is no answer.
enum Cut {
    Late,
    Stopped,
}

impl Target {
    pub fn open(&self, stop: &Stop) -> Result<Session<'_>, Failure> {
        // Its one thread looks after connections while nobody waits.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|error| self.failed(&error.to_string()))?;
        let line = Line { target: self, stop: stop.clone(), runtime: Some(runtime) };
        let (store, root): (Arc<dyn ObjectStore>, Path) = match &self.place {
            Place::Folder(folder) => {
                let (folder, url) = (folder.clone(), self.url.clone());
                (Arc::new(line.aside(move || open_folder(folder, &url))??), Path::default())
            }
            #[cfg(feature = "s3")]
            Place::Bucket(bucket) => (bucket.store(self.timeout).map_err(|what| self.failed(&what))?, bucket.prefix()),
        };
        Ok(Session { line, store, root })
    }

    /// Whether it is this folder.
    pub fn is_folder(&self, path: &std::path::Path) -> bool {
        matches!(&self.place, Place::Folder(folder) if place::is_same(folder, path))
    }

    fn failed(&self, what: &str) -> Failure {
        Failure::Unavailable(format!("{}: {what}", self.url))
    }

    fn told(&self, error: &Error) -> Failure {
        let chain = chain(error);
        // A list that is refused says so in words alone.
        let is = |words: &[&str]| words.iter().any(|word| chain.contains(word));
        let is_denied = matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. }) || is(&DENIED);
        let is_missing = matches!(error, Error::NotFound { .. }) || is(&["NoSuchBucket"]);
        let said = shown(&chain);
        self.failed(&match error {
            _ if is_denied => format!(
                "access is denied ({said}). Remedy: look at access_key_id, secret_access_key and region, and let the key list, get, put and delete there"
            ),
            _ if is_missing => {
                format!("it is not there ({said}). Remedy: make the bucket, or mend its name in `target`")
            }
            Error::NotImplemented { .. } => format!(
                "the server cannot do what is needed ({said}). Remedy: use one that knows conditional writes (If-None-Match)"
            ),
            _ => format!("{said}. {REACHED}"),
        })
    }
}

/// One that others could put something into is refused, as the local folder would be.
fn open_folder(folder: PathBuf, url: &str) -> Result<LocalFileSystem, Failure> {
    let failed = |what: &str| Failure::Unavailable(format!("{url}: {what}"));
    if std::fs::symlink_metadata(&folder).is_err() {
        return Err(failed(
            "it is not there, and is not made: the place of a mount that is missing looks the same. Remedy: mount it, or make the folder",
        ));
    }
    let shelf = Shelf { folder, job: String::new() };
    shelf.prepare().map_err(|what| failed(&what))?;
    let opened = LocalFileSystem::new_with_prefix(&shelf.folder).map_err(|error| failed(&chain(&error)))?;
    Ok(opened.with_fsync(true))
}

/// What went wrong, and why.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

/// The same without the server's whole page.
fn shown(chain: &str) -> String {
    let part = |tag: &str| Some(chain.split_once(&format!("<{tag}>"))?.1.split_once("</")?.0);
    let told = match (part("Code"), part("Message")) {
        (Some(code), message) => format!("{code}: {}", message.unwrap_or_default()),
        _ => chain.split_whitespace().collect::<Vec<_>>().join(" "),
    };
    told.chars().take(TOLD_MAX).collect::<String>().trim_end_matches('.').to_owned()
}

async fn bounded<T>(work: impl Future<Output = T>, time: Duration, stop: &Stop) -> Result<T, Cut> {
    let mut work = std::pin::pin!(work);
    for _ in 0..time.as_millis().div_ceil(LOOK.as_millis()) {
        if stop.is_asked() {
            return Err(Cut::Stopped);
        }
        if let Ok(done) = tokio::time::timeout(LOOK, &mut work).await {
            return Ok(done);
        }
    }
    Err(Cut::Late)
}

impl Line<'_> {
    fn attempt<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let runtime = self.runtime.as_ref().expect("it is taken out at the end");
        // The client ends by itself before: it begins its last attempt within the time. What does not has a bound all the same.
        let time = self.target.timeout * 3;
        runtime.block_on(bounded(work, time, &self.stop)).map_err(|cut| match cut {
            Cut::Stopped => Failure::Aborted,
            Cut::Late => self.target.failed(&format!("there was no answer in {}s. {REACHED}", time.as_secs_f32())),
        })
    }

    /// An answer, in the time that there is.
    fn wait<T>(&self, work: impl Future<Output = object_store::Result<T>>) -> Result<T, Failure> {
        self.attempt(work)?.map_err(|error| self.target.told(&error))
    }

    /// For what may hang: whoever asks a dead mount.
    fn aside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
        let done = self.attempt(async { tokio::task::spawn_blocking(work).await })?;
        done.map_err(|error| Failure::Bug(error.to_string()))
    }
}

impl Drop for Line<'_> {
    /// What hangs is let go of.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Session<'_> {
    /// The names of what lies there, whole or not.
    pub fn names(&self) -> Result<Vec<String>, Failure> {
        let root = (!self.root.as_ref().is_empty()).then_some(&self.root);
        let listed = self.line.wait(self.store.list_with_delimiter(root))?;
        Ok(listed.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned)).collect())
    }

    /// The parts of one, by their names, with their sizes.
    pub fn parts(&self, backup: &str) -> Result<Vec<(String, u64)>, Failure> {
        let listed = self.line.wait(self.store.list_with_delimiter(Some(&self.root.clone().join(backup))))?;
        let part = |meta: &ObjectMeta| Some((meta.location.filename()?.to_owned(), meta.size));
        let mut parts: Vec<(String, u64)> = listed.objects.iter().filter_map(part).collect();
        parts.sort();
        Ok(parts)
    }

    /// How a part's name comes back in a list.
    pub fn listed_as(&self, part: &str) -> String {
        Path::default().join(part).as_ref().to_owned()
    }

    /// A part of at most so many bytes; `None` where it is not there.
    pub fn small(&self, backup: &str, part: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, Failure> {
        let path = self.path(backup, part);
        let meta = match self.line.attempt(self.store.head(&path))? {
            Ok(meta) => meta,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(self.target().told(&error)),
        };
        if meta.size > bytes_max {
            return Err(Failure::Data(format!(
                "{}/{path} has {} bytes, and at most {bytes_max} are read",
                self.target().url,
                meta.size
            )));
        }
        let mut bytes = Vec::new();
        self.read(backup, part, meta.size, |window| {
            bytes.extend_from_slice(window);
            Ok(())
        })?;
        Ok(Some(bytes))
    }

    /// Hands out a part that has so many bytes.
    pub fn read(
        &self,
        backup: &str,
        part: &str,
        bytes: u64,
        mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let path = self.path(backup, part);
        let mut from = 0;
        while from < bytes {
            let to = bytes.min(from + WINDOW);
            let window = self.line.wait(self.store.get_range(&path, from..to))?;
            if window.len() as u64 != to - from {
                return Err(self.target().failed(&format!("{part} of {backup} was not handed out whole")));
            }
            take(&window)?;
            from = to;
        }
        Ok(())
    }

    /// Puts a part where nothing is.
    pub fn put(&self, backup: &str, part: &str, bytes: Vec<u8>) -> Result<Put, Failure> {
        let path = self.path(backup, part);
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.line.attempt(self.store.put_opts(&path, bytes.into(), options))? {
            Ok(_) => Ok(Put::New),
            Err(Error::AlreadyExists { .. }) => Ok(Put::There),
            Err(error) => Err(self.target().told(&error)),
        }
    }

    /// Takes a part away; one that is not there is no fault.
    pub fn remove(&self, backup: &str, part: &str) -> Result<(), Failure> {
        match self.line.attempt(self.store.delete(&self.path(backup, part)))? {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.target().told(&error)),
        }
    }

    /// Takes away what a folder has beside the parts: itself, and what a put that was killed left.
    pub fn sweep(&self, backup: &str) -> Result<(), Failure> {
        let path = match &self.target().place {
            Place::Folder(folder) => folder.join(backup),
            #[cfg(feature = "s3")]
            Place::Bucket(_) => return Ok(()),
        };
        let swept = self.line.aside(move || match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
            _ => Ok(()),
        })?;
        swept.map_err(|what| self.target().failed(&what))
    }

    fn target(&self) -> &Target {
        self.line.target
    }

    fn path(&self, backup: &str, part: &str) -> Path {
        self.root.clone().join(backup).join(part)
    }
}
