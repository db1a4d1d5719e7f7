//! A source's section, as far as it describes a table: what belongs together, and what each field may be.

use std::time::Duration;

use crate::config::file::Source;
use crate::source::declared::{Declared, DeclaredRows, Form, From, Literal, Mark, Pending, Refuse, Take, Test, Word};
use crate::source::marking::ends_pending;

/// How long one look may take that runs SQL of a person's own.
const SQL_TIME_MAX: Duration = Duration::from_secs(10);

/// Takes a key, what is wrong with it, and the remedy.
type Complain<'a> = dyn FnMut(&str, String, String) + 'a;

/// The table that a section describes; what is wrong is told, and then there is none.
pub fn declared(section: &Source, complain: &mut Complain<'_>) -> Option<Declared> {
    let mut wrong = 0;
    let mut complain = |key: &str, reason: &str, remedy: &str| {
        wrong += 1;
        complain(key, reason.to_owned(), remedy.to_owned());
    };
    let from = from(section, &mut complain);
    let rows = rows(section, &mut complain);
    fed(section, &mut complain);
    fields(section, is_by_row(section) || section.feed == Some(true), &mut complain);
    let refuse = match (&section.refuse_if, &section.refuse_because) {
        (Some(when), Some(because)) => Some(Refuse { when: when.clone(), because: because.clone() }),
        (None, None) => None,
        (Some(_), None) => {
            complain("refuse_because", "must be said beside `refuse_if`", "say what is wrong, and the remedy");
            None
        }
        (None, Some(_)) => {
            complain("refuse_if", "must be said beside `refuse_because`", "write the SELECT that finds what is wrong");
            None
        }
    };
    let sql_time_max = section.sql_time_max.map_or(SQL_TIME_MAX, |span| span.0);
    if sql_time_max.is_zero() {
        complain("sql_time_max", "nothing could be read in no time", "write something from 1ms on");
    }
    let declared = Declared {
        from: from?,
        position: section.position.clone(),
        allow_reused_positions: section.allow_reused_positions.unwrap_or(false),
        id: section.id.clone()?,
        key: section.key.clone().or_else(|| section.stream_id.clone()),
        stream_id: section.stream_id.clone(),
        stream_type: section.stream_type.clone(),
        version: section.version.clone(),
        kind: section.r#type.clone()?,
        payload: section.payload.clone()?,
        headers: section.headers.clone(),
        time: section.time.clone(),
        tombstones: section.tombstones.unwrap_or(false),
        rows,
        refuse,
        sql_time_max,
    };
    (wrong == 0).then_some(declared)
}

fn from(section: &Source, complain: &mut impl FnMut(&str, &str, &str)) -> Option<From> {
    let join = section.join.clone();
    match (&section.table, &section.query) {
        (Some(table), None) if !table.is_empty() && section.feed == Some(true) => {
            Some(From::Fed { table: table.clone(), archive: section.archive.clone(), join })
        }
        (Some(table), None) if !table.is_empty() => {
            Some(From::Table { name: table.clone(), join, archive: section.archive.clone() })
        }
        (None, Some(query)) if !begins_with(query, &["SELECT", "WITH", "VALUES"]) => {
            let remedy = "write a SELECT; where a table is meant, name it with `table`";
            complain("query", "this is no SELECT, and nothing else has rows that are events", remedy);
            None
        }
        (None, Some(query)) => Some(From::Query(query.clone())),
        (Some(_), Some(_)) => {
            complain("query", "`table` and `query` are both said", "keep one of them");
            None
        }
        (Some(_), None) => {
            complain("table", "the name is empty", "name the application's table");
            None
        }
        (None, None) => {
            complain("table", "must be said", "name the application's table, or use a `preset`");
            None
        }
    }
}

/// Whether SQL begins with one of these words, behind its comments.
fn begins_with(sql: &str, words: &[&str]) -> bool {
    let mut rest = sql.trim_start();
    loop {
        let behind = match rest.get(..2) {
            Some("--") => rest.split_once('\n'),
            Some("/*") => rest.split_once("*/"),
            _ => break,
        };
        rest = behind.map_or("", |(_, behind)| behind).trim_start();
    }
    let first = rest.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
    words.iter().any(|word| first.eq_ignore_ascii_case(word))
}

/// What does not go together with a feed.
fn fed(section: &Source, complain: &mut impl FnMut(&str, &str, &str)) {
    if section.feed != Some(true) {
        if section.archive.is_some() && (is_by_row(section) || section.table.is_none()) {
            let what = "only a table that is read by checkpoint, or by its feed, is looked for in an archive";
            complain("archive", what, "leave it out");
        }
        return;
    }
    for (key, is_said) in [
        ("position", section.position.is_some()),
        ("allow_reused_positions", section.allow_reused_positions.is_some()),
        ("query", section.query.is_some()),
        ("row", is_by_row(section)),
    ] {
        if is_said {
            let remedy = "leave it out, or leave `feed` out";
            complain(key, "this table is read by its feed, in the order of the feed's own position", remedy);
        }
    }
}

/// Whether anything tells that rows are marked.
fn is_by_row(section: &Source) -> bool {
    section.row.is_some()
        || section.pending.is_some()
        || section.pending_sql.is_some()
        || section.on_delivered.is_some()
        || section.on_retry.is_some()
        || section.on_rejected.is_some()
        || section.on_dead_letter.is_some()
}

fn rows(section: &Source, complain: &mut impl FnMut(&str, &str, &str)) -> Option<DeclaredRows> {
    if !is_by_row(section) {
        let is_fed = section.feed == Some(true);
        for (key, is_said) in [("join", section.join.is_some() && !is_fed), ("order", section.order.is_some())] {
            if is_said {
                let remedy = "leave it out; with `query` a SELECT may join what it needs";
                complain(key, "this table is read by checkpoint, in the order of its position", remedy);
            }
        }
        return None;
    }
    if section.query.is_some() {
        complain(
            "query",
            "a table that is marked row by row is read itself",
            "say `table`, and `join` where others are needed",
        );
    }
    if section.allow_reused_positions.is_some() {
        complain("allow_reused_positions", "a table read by row is not read by position", "leave it out");
    }
    if section.row.is_none() {
        complain(
            "row",
            "must be said: by it a row is known when it is marked",
            "name a unique column, as in row = \"id\"",
        );
    }
    let pending = match (&section.pending, &section.pending_sql) {
        (Some(pending), None) => Some(pending.clone()),
        (None, Some(sql)) if !sql.trim().is_empty() => Some(Pending::Sql(sql.trim().to_owned())),
        (Some(_), Some(_)) => {
            complain("pending_sql", "`pending` and `pending_sql` are both said", "keep one of them");
            None
        }
        _ => {
            complain(
                "pending",
                "must be said: which rows are to be sent",
                "for example: pending = { status = \"new\" }",
            );
            None
        }
    };
    if let Some(Pending::All(tests)) = &pending {
        let marks = |literal: &Literal| matches!(literal, Literal::Word(Word::Error | Word::Plus | Word::Minus));
        let is_wrong = |test: &Test| match test {
            Test::In(values) => values.iter().any(marks),
            Test::Compare(_, value) => marks(value),
            Test::Null(_) => false,
        };
        if tests.iter().any(|(_, test)| is_wrong(test)) {
            complain("pending", "{error}, {+1} and {-1} are for marking rows", "compare with a value or with {now}");
        }
    }
    if section.on_delivered.is_none() {
        let remedy = "for example: on_delivered = { set = { status = \"sent\" } }, or on_delivered = \"delete\"";
        complain("on_delivered", "must be said: without it a delivered row would be sent again and again", remedy);
    }
    for (key, mark) in [("on_delivered", &section.on_delivered), ("on_rejected", &section.on_rejected)] {
        if let (Some(pending), Some(mark)) = (&pending, mark)
            && !ends_pending(pending, mark)
        {
            complain(
                key,
                "this changes nothing that `pending` looks at: the row would stay pending",
                "set one of those columns",
            );
        }
    }
    if let Some(Mark::Delete | Mark::Archive(_)) = &section.on_retry {
        complain("on_retry", "an event that is tried again needs its row", "write { set = { ... } }, or leave it out");
    }
    if section.on_dead_letter.as_ref().is_some_and(|sql| !begins_with(sql, &["INSERT", "WITH"])) {
        let reason = "it runs in the transaction that records the dead letter, and may only add a row";
        complain("on_dead_letter", reason, "write one INSERT");
    }
    Some(DeclaredRows {
        row: section.row.clone()?,
        pending: pending?,
        order: section.order.clone().unwrap_or_default().0,
        on_delivered: section.on_delivered.clone()?,
        on_retry: section.on_retry.clone(),
        on_rejected: section.on_rejected.clone(),
        on_dead_letter: section.on_dead_letter.clone(),
    })
}

fn fields(section: &Source, has_position: bool, complain: &mut impl FnMut(&str, &str, &str)) {
    use Form::{Blob, Epoch, Hex, Integer, Iso, Json, Jsonb, Text, Uuid, UuidMixed};
    const NAMES: &[Form] = &[Text, Integer, Uuid, UuidMixed, Hex];
    let any = [
        ("id", &section.id, NAMES),
        ("key", &section.key, &[Text, Integer, Uuid, UuidMixed, Hex, Blob]),
        ("stream_id", &section.stream_id, NAMES),
        ("stream_type", &section.stream_type, NAMES),
        ("version", &section.version, &[Integer, Text]),
        ("type", &section.r#type, NAMES),
        ("payload", &section.payload, &[Text, Blob, Json, Jsonb, Hex]),
        ("headers", &section.headers, &[Json, Jsonb]),
        ("time", &section.time, &[Text, Iso, Epoch(1), Epoch(1_000), Epoch(1_000_000)]),
    ];
    for (key, take, forms) in any {
        match take {
            None if ["id", "type", "payload"].contains(&key) => {
                let example = crate::config::reference::key_at(&crate::config::KeyPath::of(["sources", "x", key]));
                let example = example.map_or("...", |key| key.example);
                complain(key, "must be said", &format!("for example: {key} = {example}"));
            }
            Some(Take::Fields(members)) => {
                if !["payload", "headers"].contains(&key) {
                    complain(key, "`fields` make an object, for `payload` and `headers`", "name a column");
                } else if members.iter().any(|(_, take)| matches!(take, Take::Fields(_))) {
                    complain(key, "`fields` within `fields` are not known here", "name columns");
                }
            }
            Some(take) => {
                if let Some(form) = take.form().filter(|form| !forms.contains(form)) {
                    let word = form.word();
                    let known: Vec<&str> = forms.iter().map(|form| form.word()).collect();
                    let reason = format!("as = {word:?} makes no sense here");
                    complain(key, &reason, &format!("write one of {}, or leave `as` out", known.join(", ")));
                }
            }
            None => {}
        }
    }
    match &section.position {
        None if has_position => {}
        None => complain(
            "position",
            "must be said: the column whose values grow from commit to commit",
            "for example: position = \"id\"; for a table whose rows are marked instead, say `row`, `pending` and `on_delivered`",
        ),
        Some(Take::Column { path: None, form: None, .. }) => {}
        Some(Take::First(_)) if has_position => {}
        Some(_) => complain("position", "this must be a column, as it is", "name the column"),
    }
}
