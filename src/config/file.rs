//! What `outboxd.toml` may say: one struct a section, one doc comment a key.
//!
//! These comments are what the reference prints. Everything is optional here; what must be said, what belongs together
//! and what is sane is `resolve`'s to decide, so that all errors are told at once. The keys of
//! each type of sink stand in its own room. `<name>` is a name that the user chooses.

use crate::setting::key::Fallback::{Absent, Required, Value};
use crate::setting::key::{Keyed, Kind, section};
use crate::setting::value::{FilePath, List, Size, Span, Statements};
use crate::source::declared::{Mark, Pending, Take};

section! {
    /// The daemon itself. `admin`, `control` and `log_format` want a restart when they change; a reload refuses that.
    Daemon, "[daemon]" {
        /// Address of metrics, health and status over HTTP. It is read-only, and in this version it must be on loopback.
        admin: String, Absent("not served"), r#""127.0.0.1:9464""#;
        /// The socket that commands talk to, as `unix:PATH`. It is made with mode 0600: who may open it may act.
        control: String, Value(r#""unix:outboxd.sock""#), r#""unix:/run/outboxd/outboxd.sock""#;
        /// How long a stop waits for acknowledgements of what was sent, before it lets go.
        drain_timeout: Span, Value(r#""30s""#), r#""30s""#;
        /// What to do when another daemon works on the same file: `"wait"` until it is gone, or `"refuse"` to start. A relay that a
        /// reload starts waits.
        when_locked: String, Value(r#""wait""#), r#""wait""#;
        /// `"logfmt"`, `"json"`, or `"auto"`: logfmt.
        log_format: String, Value(r#""auto""#), r#""json""#;
        /// `"error"`, `"warn"`, `"info"`, `"debug"`, `"trace"`, or directives such as `"info,outboxd::sink=debug"`.
        log_level: String, Value(r#""info""#), r#""info,outboxd::sink=debug""#;
    }
}

section! {
    /// Where events come from: a table in an application's SQLite file, by a preset or described column by column. docs/SOURCES.md
    /// tells how. A field's value is a column (`"stream_id"`), the first of several that is not NULL (`["key", "stream_id"]`), text made
    /// of columns (`"{stream_id}:{version}"`), or a table: `{ column = "data", path = "$.type", as = "text" }`,
    /// `{ constant = "Order" }`, `{ fields = { id = "id", total = "amount" } }`. Beside a preset, what is said replaces the preset's.
    Source, "[sources.<name>]" {
        /// The SQLite file. It is waited for when it is not there yet.
        path: FilePath, Required, r#""shop.db""#;
        /// Whose tables these are. `outboxd config preset` lists them, `outboxd config preset NAME` prints one.
        preset: String, Absent("the table is described here"), r#""outboxd""#;
        /// Which of the preset's tables is read, where it has several: `"outbox"` or `"events"`.
        read: String, Absent("the preset's only one"), r#""outbox""#;
        /// `"strict"` makes what was read durable before it is sent, so that no power cut can undo a sent event.
        /// `"fast"` leaves that out.
        durability: String, Value(r#""strict""#), r#""strict""#;
        /// Where checkpoints and held events stand: `"beside"` (`<file>-outboxd.db`), `"inside"` the application's file, or a
        /// path. Not said: beside; inside for a table that is read by row (`eventsource-py`'s outbox) and with `durability = "fast"`,
        /// which both are always inside.
        state: String, Absent("see the meaning"), r#""inside""#;
        /// Takes a file, and a state, on NFS, SMB, 9p, FUSE and their like, where SQLite's locks cannot be relied on. Say so only when one kernel
        /// serves everybody who opens the file.
        allow_network_filesystem: bool, Value("false"), "true";
        /// The table or view, as the application calls it.
        table: String, Absent("the preset's"), r#""my_events""#;
        /// A SELECT in place of a table: for joins and conditions. Its columns are what the other keys name. Read by checkpoint only.
        query: String, Absent("`table` is read"), r#""SELECT m.*, s.name FROM messages m JOIN streams s ON s.id = m.stream""#;
        /// SQL that joins others to `table`, which is called `o` in it; columns are then `"o.id"`. Read by row or by feed only.
        join: String, Absent("nothing is joined"), r#""LEFT JOIN events e ON e.id = o.event_id""#;
        /// By checkpoint: the column whose values are unique and grow from commit to commit. By row: a number that grows, if there is one.
        position: Take, Absent("the preset's"), r#""seq""#;
        /// Takes a position that SQLite may give out again after the newest rows were deleted (no AUTOINCREMENT). Say so only when
        /// the newest rows are never deleted.
        allow_reused_positions: bool, Absent("false, or the preset's"), "true";
        /// Reads the table by its feed, for one that has no safe position: `outboxd init --feed TABLE FILE` makes that, and a trigger
        /// that fills it.
        feed: bool, Absent("false, or the preset's"), "true";
        /// Read by checkpoint or by feed: the table with the same columns into which rows are moved; they are read as if they had not moved.
        /// By feed it is called `a` in `join`.
        archive: String, Absent("none"), r#""archived_events""#;
        /// The event's id: what duplicates are recognised by.
        id: Take, Absent("the preset's"), r#""{stream_id}:{version}""#;
        /// What order is kept by.
        key: Take, Absent("`stream_id`; without one each event is a key of its own"), r#"["key", "stream_id"]"#;
        /// The stream, or aggregate, that the event belongs to.
        stream_id: Take, Absent("none"), r#""aggregate_id""#;
        /// Its type.
        stream_type: Take, Absent("none"), r#"{ constant = "Order" }"#;
        /// The event's number within its stream.
        version: Take, Absent("none"), r#""aggregate_version""#;
        /// The event's type.
        r#type: Take, Absent("the preset's"), r#"{ column = "data", path = "$.type" }"#;
        /// What is sent: a column's bytes, the slice at a JSON path as it stands, or an object made of columns.
        payload: Take, Absent("the preset's"), r#"{ column = "data", path = "$.payload" }"#;
        /// The event's own headers: a column with a JSON object (NULL, `null` and nothing at all are none), or `fields`.
        headers: Take, Absent("none"), r#"{ fields = { tenant = "tenant_id" } }"#;
        /// When it happened: text such as `2026-11-21T03:15:20Z`, or a number `as` `"epoch_s"`, `"epoch_ms"` or `"epoch_us"`.
        time: Take, Absent("none"), r#"{ column = "created", as = "epoch_ms" }"#;
        /// A payload that is NULL is sent as nothing, which Kafka takes for a deletion. Otherwise it is a dead letter.
        tombstones: bool, Absent("false, or the preset's"), "true";
        /// Read by row: the unique column that a row is known by when it is marked.
        row: String, Absent("the table is read by checkpoint"), r#""id""#;
        /// Read by row: which rows are to be sent; all of these must hold. A value, a list of values, or a test: `{ null = true }`,
        /// `{ above = 0 }`, `at_least`, `below`, `at_most`, `not`.
        pending: Pending, Absent("the preset's"), r#"{ status = "new", due_at = { at_most = "{now}" } }"#;
        /// The same as SQL, where that is not enough; the table is called `o`.
        pending_sql: String, Absent("`pending` tells"), r#""o.status = 1 AND o.tries < o.tries_max""#;
        /// How long one look may take where `query`, `join`, `pending_sql` or `refuse_if` is said. What runs for longer is stopped, and
        /// the relay halts.
        sql_time_max: Span, Value(r#""10s""#), r#""1m""#;
        /// Read by row: the columns that rows are sent in order of; ties are in order of insertion.
        order: List, Absent("order of insertion"), r#"["created_at"]"#;
        /// Read by row: what becomes of a row that was delivered: `{ set = { ... } }`, `"delete"` or `{ archive = "table" }`. Words in `set`:
        /// `"{now}"` (ISO), `"{now_space}"`, `"{now_s}"`, `"{now_ms}"`, `"{now_us}"`, `"{+1}"`, `"{-1}"`, `"{error}"`, `"{null}"`.
        on_delivered: Mark, Absent("the preset's"), r#"{ set = { status = "sent", sent_at = "{now}" } }"#;
        /// The same for a row that was refused and is tried again.
        on_retry: Mark, Absent("the row stays as it is"), r#"{ set = { tries = "{+1}", last_error = "{error}" } }"#;
        /// The same for a row that has become a dead letter. A row made pending again by the application is tried again.
        on_rejected: Mark, Absent("the row stays as it is, and is passed over"), r#"{ set = { status = "failed" } }"#;
        /// Read by row: an INSERT into a table of the application's own for dead letters, run with `on_rejected` for relays that say
        /// `dead_letter_row = true`. It knows `:row`, `:error`, `:now` and `:consumer`, may read, and write to that table only.
        on_dead_letter: String, Absent("the preset's, if it has one"), r#""INSERT INTO failures SELECT id, :error FROM jobs WHERE id = :row""#;
        /// SQL that finds something in a file which cannot be used; needs `refuse_because`.
        refuse_if: String, Absent("nothing is refused"), r#""SELECT 1 FROM meta WHERE version < 3""#;
        /// What is said then, with the remedy.
        refuse_because: String, Absent("see `refuse_if`"), r#""upgrade the application first""#;
    }
}

section! {
    /// A source, carried to a sink.
    Relay, "[relays.<name>]" {
        /// The name of a `[sources.<name>]` section.
        source: String, Required, r#""shop""#;
        /// The name of a `[sinks.<name>]` section.
        sink: String, Required, r#""bus""#;
        /// Only events of these types are carried; `*` stands for anything.
        types: List, Absent("every type"), r#"["Order*"]"#;
        /// Where to begin when there is no checkpoint: `"first"` event or `"head"` (only what comes from now on). It must be said
        /// when the table already holds events.
        start: String, Absent("must be said when events are already there"), r#""first""#;
        /// What a rejected event does when its attempts are spent: `"hold"` its key (later events of the key wait behind
        /// it), `"skip"` it, or `"halt"` the relay.
        on_reject: String, Value(r#""hold""#), r#""hold""#;
        /// The name of a `[sinks.<name>]` section that gets a copy of each dead letter, at least once, with the headers
        /// `outboxd-dead-letter` (the relay), `outboxd-reason`, `outboxd-detail`, `outboxd-attempts`, `outboxd-failed-at`, `outboxd-source`,
        /// `outboxd-position`, and where it was to go: `outboxd-topic`, or `outboxd-exchange` and `outboxd-routing-key`. The dead letter
        /// itself stays where it is, to be retried or discarded.
        dead_letter_sink: String, Absent("no copies"), r#""graveyard""#;
        /// Writes each dead letter into the application's own table as well, in the same transaction, as the source's `on_dead_letter` says.
        /// For `eventsource-py`'s outbox: a row of `dead_letter_queue` with `projection_name = "relay:<relay>"`, which the application
        /// resolves.
        dead_letter_row: bool, Value("false"), "true";
        /// How often an event is tried before it is a dead letter.
        attempts_max: u64, Value("5"), "5";
        /// After this long without an acknowledgement the sink counts as unavailable.
        ack_timeout: Span, Value(r#""30s""#), r#""30s""#;
        /// How many events of one key may be unacknowledged; 1 keeps a key's order absolute.
        in_flight_per_key: u64, Absent("bounded by the window alone"), "1";
        /// How many events may be read and not yet settled: the most that a crash repeats.
        window_events: u64, Value("10000"), "10000";
        /// The same in bytes.
        window_bytes: Size, Value(r#""32MiB""#), r#""32MiB""#;
        /// How many events are read at once.
        batch_events: u64, Value("1000"), "1000";
        /// How many bytes are read at once.
        batch_bytes: Size, Value(r#""4MiB""#), r#""4MiB""#;
        /// A larger event becomes a dead letter, unread.
        event_bytes_max: Size, Value(r#""16MiB""#), r#""16MiB""#;
        /// Starts paused, until `outboxd resume`.
        paused: bool, Value("false"), "true";
    }
}

section! {
    /// A source, folded into tables by SQL. docs/PROJECTIONS.md tells how, and what the statements may do.
    Projection, "[projections.<name>]" {
        /// The name of a `[sources.<name>]` section that is read by checkpoint or by feed.
        source: String, Required, r#""shop_events""#;
        /// The read model: the SQLite file that the tables stand in. It is made when it is not there. The source's own file is allowed.
        path: FilePath, Required, r#""shop-read.db""#;
        /// The tables that are this projection's own: nothing else writes them, and it writes nothing else.
        tables: List, Required, r#"["order_summary"]"#;
        /// What makes the tables, with their indexes, views and triggers.
        schema: String, Required, r#""CREATE TABLE order_summary (id TEXT PRIMARY KEY, customer TEXT NOT NULL) STRICT""#;
        /// What is done for an event of each type: a statement or a list of them; under `"*"` for every type, behind its own. They may name
        /// `:position :id :stream_id :stream_type :version :type :data :metadata :time`.
        on: Statements, Required, r#"{ OrderPlaced = "INSERT INTO order_summary VALUES (:stream_id, :data ->> 'customer')" }"#;
        /// What order is kept by when an event is refused: `"stream_id"`, or a place in the event's data such as `"$.customer"`.
        key: String, Absent("the source's key"), r#""$.customer""#;
        /// Other tables and views of the same file that its statements may read.
        reads: List, Absent("none"), r#"["customers"]"#;
        /// Event types that it has nothing to do with; `*` stands for anything. Other types that nothing handles are counted and shown.
        ignore: List, Absent("none"), r#"["Order*Viewed"]"#;
        /// What an event does whose SQL fails, when its attempts are spent: `"hold"` its key (later events of the key wait behind
        /// it), `"skip"` it, or `"halt"` the projection.
        on_reject: String, Value(r#""hold""#), r#""hold""#;
        /// How often an event is tried before it is a dead letter.
        attempts_max: u64, Value("5"), "5";
        /// When what makes the tables what they are is another than before: `"refuse"` to run on the old ones, or `"rebuild"` them; until
        /// they are swapped, the old ones stand still.
        on_change: String, Value(r#""refuse""#), r#""rebuild""#;
        /// How long a statement may run for one event. What runs for longer is stopped, and its event refused.
        statement_time_max: Span, Value(r#""5s""#), r#""5s""#;
        /// How many events are read at once: the most that one transaction takes.
        batch_events: u64, Value("4000"), "4000";
        /// The same in bytes.
        batch_bytes: Size, Value(r#""4MiB""#), r#""4MiB""#;
        /// A larger event becomes a dead letter, unread.
        event_bytes_max: Size, Value(r#""16MiB""#), r#""16MiB""#;
        /// Starts paused, until `outboxd resume`.
        paused: bool, Value("false"), "true";
    }
}

impl Keyed for Take {
    const KIND: Kind = Kind::Field;
}

impl Keyed for Pending {
    const KIND: Kind = Kind::Rows;
}

impl Keyed for Mark {
    const KIND: Kind = Kind::Rows;
}
