//! The end of a file that is opened again: a crash may have torn its last lines.
//!
//! Only what can be a torn write of ours is cut: a last line without its line break, and, for envelopes, lines at the very end
//! that are no JSON (a power cut can leave zeros where lines were to be). Good lines stay, delivered twice if need be. A file in
//! whose tail no good line is found, and that does not look like one first torn group, is not ours and is left alone.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::de::IgnoredAny;

use crate::sink::Fault;
use crate::sink::format::Format;

/// More than a relay's whole window, so that every line that could be torn is seen.
const TAIL_BYTES_MAX: u64 = 80 << 20;

/// Cuts a torn tail and says how long the file is then.
pub(super) fn settle(file: &File, path: &Path, format: Format) -> Result<u64, Fault> {
    let cannot = |error: io::Error| Fault::unavailable(format!("cannot read the end of {}: {error}", path.display()));
    let bytes = file.metadata().map_err(cannot)?.len();
    let from = bytes.saturating_sub(TAIL_BYTES_MAX);
    // Most often the last line is whole, and a small piece shows it.
    for piece in [64 << 10, TAIL_BYTES_MAX] {
        let start = bytes.saturating_sub(piece).max(from);
        let mut tail = vec![0; (bytes - start) as usize];
        file.read_exact_at(&mut tail, start).map_err(cannot)?;
        let Some(good) = good_length(&tail, start == 0, format) else { continue };
        let good_bytes = start + good as u64;
        if good_bytes < bytes {
            tracing::warn!(path = %path.display(), cut_bytes = bytes - good_bytes, "a torn end of the file was cut");
            file.set_len(good_bytes).map_err(cannot)?;
        }
        return Ok(good_bytes);
    }
    Err(Fault::fatal(format!(
        "{} does not end with lines that outboxd writes; give the sink a file of its own",
        path.display()
    )))
}

/// How much of the tail is good; `None` when its start must be seen, or when it is not ours.
pub fn good_length(tail: &[u8], is_whole_file: bool, format: Format) -> Option<usize> {
    let mut end = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    while end > 0 {
        let start = tail[..end - 1].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if start == 0 && !is_whole_file && format == Format::Envelope {
            return None;
        }
        if is_good(&tail[start..end - 1], format) {
            return Some(end);
        }
        end = start;
    }
    let is_torn_start = matches!(tail.first(), None | Some(b'{' | 0)) || format != Format::Envelope;
    (is_whole_file && is_torn_start).then_some(0)
}

fn is_good(line: &[u8], format: Format) -> bool {
    match format {
        Format::Envelope => line.first() == Some(&b'{') && serde_json::from_slice::<IgnoredAny>(line).is_ok(),
        Format::Plain | Format::EventsourcePy => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_torn_end_is_cut() {
        let good = |text: &[u8]| good_length(text, true, Format::Envelope);
        assert_eq!(good(b""), Some(0));
        assert_eq!(good(b"{\"a\":1}\n"), Some(8));
        assert_eq!(good(b"{\"a\":1}\n{\"b\""), Some(8));
        assert_eq!(good(b"{\"a\":1}\n{\"b\"\n\0\0\n\0\0"), Some(8));
        assert_eq!(good(b"{\"a\""), Some(0));
        assert_eq!(good(b"\0\0\0\n"), Some(0));
        assert_eq!(good(b"root:x:0:0\n"), None);
        assert_eq!(good_length(b"plain\nto", true, Format::Plain), Some(6));
    }

    #[test]
    fn a_piece_that_starts_inside_a_line_asks_for_more() {
        assert_eq!(good_length(b"1}\n", false, Format::Envelope), None);
        assert_eq!(good_length(b"1}\n{\"b\":2}\n", false, Format::Envelope), Some(11));
    }
}
