//! What was read from log and archive, made one: pure.

use super::event::StoredEvent;
use super::fault::ReadError;

/// A stream's events behind version `after`, in order of version and position, up to the `newest` that it has.
pub fn of_stream(
    stream: &str,
    after: i64,
    newest: i64,
    found: Vec<StoredEvent>,
) -> Result<Vec<StoredEvent>, ReadError> {
    let mut events: Vec<StoredEvent> = Vec::with_capacity(found.len());
    for event in found {
        let last = events.last().map_or(after, |last| last.version);
        match (events.last(), event.version - last) {
            // Of another file's archive: it was copied there, and not yet deleted here.
            (Some(before), 0) if is_same(before, &event) => {}
            (Some(before), 0) => {
                let (one, other) = (before.id.clone(), event.id);
                return Err(ReadError::Doubled { stream: stream.to_owned(), version: last, one, other });
            }
            (_, 1) => events.push(event),
            _ => return Err(ReadError::Hole { stream: stream.to_owned(), missing: last + 1, there: event.version }),
        }
    }
    let last = events.last().map_or(after, |last| last.version);
    if last < newest {
        return Err(ReadError::Hole { stream: stream.to_owned(), missing: last + 1, there: newest });
    }
    Ok(events)
}

/// Events of all streams, in order of position.
pub fn of_all(found: Vec<StoredEvent>) -> Result<Vec<StoredEvent>, ReadError> {
    let mut events: Vec<StoredEvent> = Vec::with_capacity(found.len());
    for event in found {
        match events.last().filter(|last| last.position == event.position) {
            Some(last) if is_same(last, &event) => {}
            Some(last) => {
                let (one, other) = (last.id.clone(), event.id);
                return Err(ReadError::PositionTwice { position: event.position, one, other });
            }
            None => events.push(event),
        }
    }
    Ok(events)
}

fn is_same(one: &StoredEvent, other: &StoredEvent) -> bool {
    (one.position, &one.id) == (other.position, &other.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(position: i64, version: i64, id: &str) -> StoredEvent {
        StoredEvent {
            position,
            id: id.into(),
            stream: "s".into(),
            stream_type: "S".into(),
            version,
            kind: "K".into(),
            data: "{}".into(),
            metadata: None,
            time: String::new(),
        }
    }

    #[test]
    fn a_copy_counts_once() {
        let found = vec![event(1, 1, "a"), event(1, 1, "a"), event(2, 2, "b")];
        assert_eq!(of_stream("s", 0, 2, found.clone()).unwrap().len(), 2);
        assert_eq!(of_all(found).unwrap().len(), 2);
    }

    #[test]
    fn holes_and_doubles_are_told() {
        let told = |after, newest, found| of_stream("s", after, newest, found).unwrap_err().to_string();
        assert!(told(0, 3, vec![event(1, 1, "a"), event(3, 3, "c")]).contains("no event of version 2, though 3"));
        assert!(told(0, 3, vec![event(2, 2, "b")]).contains("no event of version 1, though 2"));
        assert!(told(0, 3, vec![event(1, 1, "a")]).contains("no event of version 2, though 3"));
        assert!(told(4, 5, vec![]).contains("no event of version 5, though 5"));
        assert!(told(0, 1, vec![event(1, 1, "a"), event(9, 1, "b")]).contains("two events of version 1: a and b"));
        let twice = of_all(vec![event(1, 1, "a"), event(1, 1, "b")]).unwrap_err().to_string();
        assert!(twice.contains("position 1 stands for two events: a and b"), "{twice}");
    }
}
