//! Values that stand in files of their own: any text key `x` may be given as `x_file`.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A secret is a line or two; what is larger is some other file.
const BYTES_MAX: u64 = 64 << 10;

/// Who may read the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    Anybody,
    /// Not everybody on this machine.
    NotOthers,
}

/// What stands in the file, without the white space around it. The error says why not, and what to do.
pub fn read(path: &Path, audience: Audience) -> Result<String, (String, Option<String>)> {
    let unreadable = |error: std::io::Error| (format!("{} cannot be read: {error}", path.display()), None);
    // Before it is opened: opening a pipe would wait for its writer.
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err((format!("{} is not a file", path.display()), None));
    }
    refuse_open_to_all(path, &metadata, audience)?;
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > BYTES_MAX {
        return Err((format!("{} is larger than {} KiB", path.display(), BYTES_MAX >> 10), None));
    }
    match text.trim() {
        "" => Err((format!("{} is empty", path.display()), None)),
        trimmed => Ok(trimmed.to_owned()),
    }
}

fn refuse_open_to_all(
    path: &Path,
    metadata: &std::fs::Metadata,
    audience: Audience,
) -> Result<(), (String, Option<String>)> {
    if audience == Audience::NotOthers && metadata.mode() & 0o007 != 0 {
        let reason =
            format!("{} may be read by anybody on this machine (mode {:o})", path.display(), metadata.mode() & 0o777);
        let remedy = format!("chmod 600 {} (in Kubernetes: defaultMode: 0440 for the secret)", path.display());
        return Err((reason, Some(remedy)));
    }
    Ok(())
}
