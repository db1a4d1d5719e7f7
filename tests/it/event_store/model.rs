//! Any sequence of appends, batches and moves to the archive: answers, streams and log are those of a model.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use outboxd::store::event::{Append, Expected, NewEvent};
use outboxd::store::fault::AppendError;
use proptest::prelude::*;

use super::{Shop, WITHIN};

#[derive(Clone, Debug)]
enum Step {
    /// Appends that are asked for at the same time.
    Appends(Vec<Asked>),
    Archive {
        stream: u8,
        up_to: i64,
    },
}

#[derive(Clone, Debug)]
struct Asked {
    stream: u8,
    stream_type: u8,
    expected: Expected,
    /// An id (the last ones are always new), data, and whether that is JSON.
    events: Vec<(Option<u8>, u8, bool)>,
}

fn expected() -> impl Strategy<Value = Expected> {
    prop_oneof![
        4 => Just(Expected::Any),
        1 => Just(Expected::NoStream),
        1 => Just(Expected::StreamExists),
        3 => (0..6_i64).prop_map(Expected::Exact),
    ]
}

fn asked() -> impl Strategy<Value = Asked> {
    // Only what is new may be no JSON, so that one thing at a time is wrong with an event.
    let event = (proptest::option::weighted(0.3, 0..12_u8), 0..3_u8, proptest::bool::weighted(0.08))
        .prop_map(|(id, data, is_bad)| (id, data, !(is_bad && id.is_none())));
    let events = proptest::collection::vec(event, 1..4);
    (0..3_u8, proptest::bool::weighted(0.05), expected(), events).prop_map(|(stream, other, expected, events)| Asked {
        stream,
        stream_type: stream + 10 * u8::from(other),
        expected,
        events,
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => proptest::collection::vec(asked(), 1..6).prop_map(Step::Appends),
        1 => (0..3_u8, 1..6_i64).prop_map(|(stream, up_to)| Step::Archive { stream, up_to }),
    ]
}

/// What an answer comes to.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Answer {
    Done { first: i64, last: i64, is_repeat: bool },
    Conflict(Option<i64>),
    OtherType,
    IdTaken(String),
    PartlyThere,
    IdTwice,
    NotJson(String),
}

#[derive(Default)]
struct Model {
    /// Type, and events in order of version.
    streams: BTreeMap<String, (String, Vec<NewEvent>)>,
    /// Stream and version, in order of position.
    log: Vec<(String, i64)>,
}

impl Model {
    fn append(&mut self, append: &Append) -> Answer {
        for (n, event) in append.events.iter().enumerate() {
            if append.events[..n].iter().any(|before| before.id == event.id) {
                return Answer::IdTwice;
            }
        }
        let stream = self.streams.get(&append.stream);
        let version = stream.map(|(_, events)| events.len() as i64);
        let is_expected = match append.expected {
            Expected::Any => true,
            Expected::NoStream => version.is_none(),
            Expected::StreamExists => version.is_some(),
            Expected::Exact(expected) => version.unwrap_or(0) == expected,
        };
        if !is_expected {
            return self.found(append).unwrap_or(Answer::Conflict(version));
        }
        if stream.is_some_and(|(stream_type, _)| *stream_type != append.stream_type) {
            return self.found(append).unwrap_or(Answer::OtherType);
        }
        for event in &append.events {
            if self.at(&event.id).is_some() {
                return self.found(append).unwrap();
            }
            if event.data == "{" {
                return Answer::NotJson(event.id.clone());
            }
        }
        let stream = self.streams.entry(append.stream.clone());
        let (_, events) = stream.or_insert_with(|| (append.stream_type.clone(), Vec::new()));
        let first = events.len() as i64 + 1;
        for event in &append.events {
            events.push(event.clone());
            self.log.push((append.stream.clone(), events.len() as i64));
        }
        Answer::Done { first, last: events.len() as i64, is_repeat: false }
    }

    fn at(&self, id: &str) -> Option<(&str, i64)> {
        self.streams.iter().find_map(|(stream, (_, events))| {
            let index = events.iter().position(|event| event.id == id)?;
            Some((stream.as_str(), index as i64 + 1))
        })
    }

    /// The answer, when one of the events is there.
    fn found(&self, append: &Append) -> Option<Answer> {
        let places: Vec<_> = append.events.iter().map(|event| self.at(&event.id)).collect();
        places.iter().flatten().next()?;
        let mut last = None;
        for (event, place) in append.events.iter().zip(&places) {
            let Some((stream, version)) = *place else { return Some(Answer::PartlyThere) };
            let (stream_type, events) = &self.streams[stream];
            let is_same = stream == append.stream
                && *stream_type == append.stream_type
                && events[version as usize - 1] == *event
                && last.is_none_or(|last: i64| version == last + 1);
            if !is_same {
                return Some(Answer::IdTaken(event.id.clone()));
            }
            last = Some(version);
        }
        let first = places[0].unwrap().1;
        Some(Answer::Done { first, last: last.unwrap(), is_repeat: true })
    }
}

fn append_of(asked: &Asked, fresh: &mut u32) -> Append {
    let events = asked.events.iter().map(|(id, data, is_json)| {
        let id = id.map_or_else(
            || {
                *fresh += 1;
                format!("fresh-{fresh}")
            },
            |id| format!("id-{id}"),
        );
        let data = if *is_json { format!("{{\"data\":{data}}}") } else { "{".to_owned() };
        NewEvent::new("Placed", data).with_id(id)
    });
    let events = events.collect();
    Append::new(format!("s{}", asked.stream), format!("T{}", asked.stream_type), asked.expected, events)
}

async fn play(steps: &[Step]) {
    let shop = Shop::open().await;
    let mut model = Model::default();
    let mut fresh = 0;
    for step in steps {
        match step {
            Step::Archive { stream, up_to } => {
                let stream = format!("s{stream}");
                let newest = model.streams.get(&stream).map_or(0, |(_, events)| events.len() as i64);
                shop.archive(&stream, (*up_to).min(newest - 1));
            }
            Step::Appends(asked) => {
                let appends: Vec<Append> = asked.iter().map(|asked| append_of(asked, &mut fresh)).collect();
                let answers = join_all(appends.iter().map(|append| shop.store.append(append.clone(), WITHIN))).await;
                for (append, answer) in appends.iter().zip(answers) {
                    let answer = match answer {
                        Ok(done) => Answer::Done {
                            first: done.first_version,
                            last: done.last_version,
                            is_repeat: done.is_repeat,
                        },
                        Err(AppendError::Conflict { actual, .. }) => Answer::Conflict(actual),
                        Err(AppendError::OtherType { .. }) => Answer::OtherType,
                        Err(AppendError::IdTaken { id, .. }) => Answer::IdTaken(id),
                        Err(AppendError::PartlyThere { .. }) => Answer::PartlyThere,
                        Err(AppendError::IdTwice { .. }) => Answer::IdTwice,
                        Err(AppendError::NotJson { id, .. }) => Answer::NotJson(id),
                        Err(error) => panic!("{error}"),
                    };
                    assert_eq!(answer, model.append(append), "{append:?}");
                }
            }
        }
    }
    for (stream, (stream_type, events)) in &model.streams {
        let read = shop.store.load(stream, 1).await.unwrap();
        let read = read.into_iter().map(|event| {
            assert_eq!(event.stream_type, *stream_type);
            NewEvent { id: event.id, kind: event.kind, data: event.data, metadata: event.metadata, time: None }
        });
        assert_eq!(&read.collect::<Vec<_>>(), events);
    }
    let all = shop.store.read_all(0, 10_000).await.unwrap();
    let all: Vec<_> = all.into_iter().map(|event| (event.stream, event.version)).collect();
    assert_eq!(all, model.log);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn appends_are_those_of_the_model(steps in proptest::collection::vec(step(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(play(&steps));
    }
}
