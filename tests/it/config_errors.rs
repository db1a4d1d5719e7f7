//! Every error of a configuration is told: all at once, each with its place, its reason, and what to do.

use crate::config::{Folder, SMALL};

/// The small configuration with one passage replaced.
fn small(from: &str, to: &str) -> String {
    assert!(SMALL.contains(from), "{from:?} is not in the small configuration");
    SMALL.replace(from, to)
}

/// The small configuration with its sink replaced.
fn sink(keys: &str) -> String {
    small("type = \"file\"\npath = \"events.ndjson\"", keys)
}

/// The errors without the closing line.
fn errors(text: &str) -> String {
    let all = Folder::with(text).errors(&[]);
    all.rsplit_once("\n\n").map_or(all.clone(), |(blocks, _)| blocks.to_owned())
}

#[test]
fn not_toml() {
    assert_eq!(
        errors(&small("[sinks.lines]", "[sinks.lines")),
        r#"error: outboxd.toml, line 7
       this is not TOML: unclosed table, expected `]`
  fix: mend this line; text stands in quotes, a section in [brackets]"#
    );
    assert_eq!(
        errors(
            &(format!(
                "{SMALL}{}",
                r#"[daemon]
admin = "a"
admin = "b"
"#
            ))
        ),
        r#"error: outboxd.toml, line 16
       this is not TOML: duplicate key
  fix: mend this line; text stands in quotes, a section in [brackets]"#
    );
}

#[test]
fn unknown_keys_are_all_told() {
    assert_eq!(
        errors(
            &(format!(
                "{SMALL}{}",
                r#"[daemn]
[daemon]
admim = "x"
colour = 1
"#
            ))
        ),
        r#"error: daemn  (outboxd.toml, line 14)
       there is no such key
  fix: did you mean `daemon`?

error: daemon.admim  (outboxd.toml, line 16)
       there is no such key
  fix: did you mean `admin`?

error: daemon.colour  (outboxd.toml, line 17)
       there is no such key
  fix: write `admin`, `control`, `drain_timeout`, `when_locked`, `log_format` or `log_level`, or leave it out"#
    );
    assert_eq!(
        errors(
            &(small(
                r#"path = "shop.db""#,
                r#"path = "shop.db"
durabilty = "fast""#
            ))
        ),
        r#"error: sources.shop.durabilty  (outboxd.toml, line 4)
       there is no such key
  fix: did you mean `durability`?"#
    );
}

#[test]
fn wrong_kinds() {
    assert_eq!(
        errors(
            &(format!(
                "{SMALL}{}",
                r#"[daemon]
admin = 9464
drain_timeout = 30
log_level = ["info"]
"#
            ))
        ),
        r#"error: daemon.admin  (outboxd.toml, line 15)
       this is a whole number; wanted is text in quotes
  fix: for example: admin = "127.0.0.1:9464"

error: daemon.drain_timeout  (outboxd.toml, line 16)
       this is a whole number; wanted is a duration in quotes, as in "30s"
  fix: for example: drain_timeout = "30s"

error: daemon.log_level  (outboxd.toml, line 17)
       this is a list; wanted is text in quotes
  fix: for example: log_level = "info,outboxd::sink=debug""#
    );
    assert_eq!(
        errors(
            &(small(
                r#"sink = "lines"
"#,
                r#"sink = "lines"
attempts_max = "five"
paused = "no"
window_bytes = "32"
types = "Order*"
window_events = -1
"#
            ))
        ),
        r#"error: relays.shop_to_lines.attempts_max  (outboxd.toml, line 14)
       this is text; wanted is a whole number, not negative
  fix: for example: attempts_max = 5

error: relays.shop_to_lines.paused  (outboxd.toml, line 15)
       this is text; wanted is true or false
  fix: for example: paused = true

error: relays.shop_to_lines.window_bytes  (outboxd.toml, line 16)
       "32" is not a size: write a number and a unit, as in "64MiB", "500kB" or "100B"
  fix: for example: window_bytes = "32MiB"

error: relays.shop_to_lines.types  (outboxd.toml, line 17)
       this is text; wanted is a list of texts, as in ["a", "b"]
  fix: for example: types = ["Order*"]

error: relays.shop_to_lines.window_events  (outboxd.toml, line 18)
       this is a negative number; wanted is a whole number, not negative
  fix: for example: window_events = 10000"#
    );
    assert_eq!(
        errors(&small("[sources.shop]", "[sinks]\nx = 5\n[sources.shop]")),
        r#"error: sinks.x.type  (outboxd.toml, line 3)
       must be said
  fix: write `kafka`, `amqp`, `http`, `file` or `stdout`"#
    );
}

#[test]
fn what_must_be_said() {
    assert_eq!(
        errors(
            &(small(
                r#"path = "shop.db"
preset = "outboxd"
"#,
                ""
            ))
        ),
        r#"error: sources.shop.path  (outboxd.toml, line 2)
       must be said
  fix: for example: path = "shop.db"

error: sources.shop.preset  (outboxd.toml, line 2)
       must be said
  fix: for example: preset = "outboxd""#
    );
    assert_eq!(
        errors(
            &(small(
                r#"type = "file"
"#,
                ""
            ))
        ),
        r#"error: sinks.lines.type  (outboxd.toml, line 7)
       must be said
  fix: write `kafka`, `amqp`, `http`, `file` or `stdout`"#
    );
    assert_eq!(
        errors(
            &(small(
                r#"source = "shop"
"#,
                ""
            ))
        ),
        r#"error: relays.shop_to_lines.source  (outboxd.toml, line 11)
       must be said
  fix: for example: source = "shop""#
    );
    assert_eq!(
        errors("[daemon]\n"),
        r#"error: relays  (outboxd.toml)
       there is no relay, no projection and no job: there would be nothing to do
  fix: write a section [relays.a_name_you_choose] with `source` and `sink`"#
    );
}

#[test]
fn names() {
    assert_eq!(
        errors(&SMALL.replace("shop_to_lines", "\"Shop-to\"")),
        r#"error: relays.Shop-to  (outboxd.toml, line 11)
       this name cannot be used
  fix: choose a name of a-z, 0-9 and _, without __, of at most 64 characters"#
    );
    assert_eq!(
        errors(&SMALL.replace("shop_to_lines", "shop__lines")),
        r#"error: relays.shop__lines  (outboxd.toml, line 11)
       this name cannot be used
  fix: choose a name of a-z, 0-9 and _, without __, of at most 64 characters"#
    );
}

#[test]
fn sections_that_are_not_there() {
    assert_eq!(
        errors(&small(r#"source = "shop""#, r#"source = "shp""#)),
        r#"error: relays.shop_to_lines.source  (outboxd.toml, line 12)
       there is no section [sources.shp]
  fix: did you mean "shop"?"#
    );
    assert_eq!(
        errors(&small(r#"sink = "lines""#, r#"sink = "kafka""#)),
        r#"error: relays.shop_to_lines.sink  (outboxd.toml, line 13)
       there is no section [sinks.kafka]
  fix: known are `lines`"#
    );
}

#[test]
fn later_versions() {
    assert_eq!(
        errors(
            &(format!(
                "{SMALL}{}",
                r#"[daemon]
token_file = "t"
"#
            ))
        ),
        r#"error: daemon.token_file  (outboxd.toml, line 15)
       tokens are not in this version: HTTP changes nothing; use the commands
  fix: leave it out"#
    );
    assert_eq!(
        errors(&small(r#"preset = "outboxd""#, r#"preset = "zzz""#)),
        r#"error: sources.shop.preset  (outboxd.toml, line 4)
       "zzz" is not a choice here
  fix: write `debezium`, `django-outbox-pattern`, `emmett`, `eventsource-py`, `eventsourcing`, `flightdeck` or `outboxd`"#
    );
}

#[test]
fn daemon() {
    assert_eq!(
        errors(
            &(format!(
                "{SMALL}{}",
                r#"[daemon]
admin = "0.0.0.0:9464"
"#
            ))
        ),
        r#"error: daemon.admin  (outboxd.toml, line 15)
       0.0.0.0 is not loopback: others could reach it, and TLS and tokens are not in this version
  fix: write "127.0.0.1:9464", and let a proxy or an agent on this machine carry it on"#
    );
    assert_eq!(
        errors(
            &(format!(
                "{SMALL}{}",
                r#"[daemon]
admin = "9464"
"#
            ))
        ),
        r#"error: daemon.admin  (outboxd.toml, line 15)
       "9464" is not an address and a port
  fix: write "127.0.0.1:9464""#
    );
    assert_eq!(
        errors(
            &(format!(
                "{SMALL}{}",
                r#"[daemon]
control = "outboxd.sock"
"#
            ))
        ),
        r#"error: daemon.control  (outboxd.toml, line 15)
       "outboxd.sock" does not name a socket
  fix: write "unix:outboxd.sock""#
    );
    assert_eq!(
        errors(&format!("{SMALL}[daemon]\ncontrol = \"unix:/{}\"\n", "x".repeat(110))),
        r#"error: daemon.control  (outboxd.toml, line 15)
       /xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx is longer than the 107 bytes that a socket's path may have
  fix: write a shorter one, as in "unix:/run/outboxd/outboxd.sock""#
    );
    assert_eq!(
        errors(
            &(format!(
                "{SMALL}{}",
                r#"[daemon]
drain_timeout = "2h"
when_locked = "wate"
log_format = "xml"
log_level = "chatty"
"#
            ))
        ),
        r#"error: daemon.drain_timeout  (outboxd.toml, line 15)
       2h is out of bounds
  fix: write something from 100ms to 1h

error: daemon.when_locked  (outboxd.toml, line 16)
       "wate" is not a choice here
  fix: did you mean "wait"?

error: daemon.log_format  (outboxd.toml, line 17)
       "xml" is not a choice here
  fix: write `auto`, `logfmt` or `json`

error: daemon.log_level  (outboxd.toml, line 18)
       "chatty" is neither a level nor a list of directives
  fix: write "info" or "info,outboxd::sink=debug"; levels are error, warn, info, debug and trace"#
    );
}

#[test]
fn sources() {
    assert_eq!(
        errors(&small(r#""shop.db""#, r#"":memory:""#)),
        r#"error: sources.shop.path  (outboxd.toml, line 3)
       a database in memory belongs to one process: nobody else can read it
  fix: let the application write to a file, and name that"#
    );
    assert_eq!(
        errors(&small(r#""shop.db""#, r#""""#)),
        r#"error: sources.shop.path  (outboxd.toml, line 3)
       the path is empty
  fix: name the application's SQLite file"#
    );
    assert_eq!(
        errors(&small(r#""shop.db""#, r#""file:shop.db?mode=ro""#)),
        r#"error: sources.shop.path  (outboxd.toml, line 3)
       a URI is not taken here
  fix: write the plain path of the file"#
    );
    assert_eq!(
        errors(&small(r#""outboxd""#, r#""outbox""#)),
        r#"error: sources.shop.preset  (outboxd.toml, line 4)
       "outbox" is not a choice here
  fix: did you mean "outboxd"?"#
    );
    assert_eq!(
        errors(&small(r#"read = "outbox""#, r#"read = "event""#)),
        r#"error: sources.shop.read  (outboxd.toml, line 5)
       "event" is not a choice here
  fix: did you mean "events"?"#
    );
    assert_eq!(
        errors(
            &(small(
                r#"read = "outbox""#,
                r#"read = "outbox"
durability = "sync""#
            ))
        ),
        r#"error: sources.shop.durability  (outboxd.toml, line 6)
       "sync" is not a choice here
  fix: write `strict` or `fast`"#
    );
    assert_eq!(
        errors(
            &(small(
                r#"read = "outbox""#,
                r#"read = "outbox"
state = "besides""#
            ))
        ),
        r#"error: sources.shop.state  (outboxd.toml, line 6)
       "besides" is neither a word known here nor a path
  fix: did you mean "beside"?"#
    );
    assert_eq!(
        errors(
            &(small(
                r#"read = "outbox""#,
                r#"read = "outbox"
state = "./shop.db""#
            ))
        ),
        r#"error: sources.shop.state  (outboxd.toml, line 6)
       this is the source's own file
  fix: write state = "inside""#
    );
}

#[test]
fn state_that_must_stand_inside() {
    assert_eq!(
        errors(
            &(SMALL.replace(
                "\"outboxd\"\nread = \"outbox\"",
                "\"eventsource-py\"\nread = \"outbox\"\nstate = \"beside\""
            ))
        ),
        r#"error: sources.shop.state  (outboxd.toml, line 6)
       this table is read by row: progress is marked in the application's own file, and so state stands there too
  fix: leave `state` out, or write state = "inside""#
    );
    assert_eq!(
        errors(
            &(small(
                r#"read = "outbox""#,
                r#"read = "outbox"
durability = "fast"
state = "beside""#
            ))
        ),
        r#"error: sources.shop.state  (outboxd.toml, line 7)
       with durability = "fast" state stands in the application's own file, so that a power cut takes both back together
  fix: leave `state` out, or write state = "inside""#
    );
}

#[test]
fn relays() {
    assert_eq!(
        errors(
            &(small(
                r#"sink = "lines"
"#,
                r#"sink = "lines"
start = "now"
on_reject = "drop"
types = []
"#
            ))
        ),
        r#"error: relays.shop_to_lines.start  (outboxd.toml, line 14)
       "now" is not a choice here
  fix: write `first` or `head`

error: relays.shop_to_lines.on_reject  (outboxd.toml, line 15)
       "drop" is not a choice here
  fix: write `hold`, `skip` or `halt`

error: relays.shop_to_lines.types  (outboxd.toml, line 16)
       this list would let nothing through
  fix: name types, as in ["Order*"], or leave it out"#
    );
    assert_eq!(
        errors(
            &(small(
                r#"sink = "lines"
"#,
                r#"sink = "lines"
attempts_max = 0
window_events = 0
ack_timeout = "1ms"
in_flight_per_key = 0
window_bytes = "2TiB"
"#
            ))
        ),
        r#"error: relays.shop_to_lines.attempts_max  (outboxd.toml, line 14)
       0 is out of bounds
  fix: write something from 1 to 1000

error: relays.shop_to_lines.window_events  (outboxd.toml, line 15)
       0 is out of bounds
  fix: write something from 1 to 1000000

error: relays.shop_to_lines.ack_timeout  (outboxd.toml, line 16)
       1ms is out of bounds
  fix: write something from 100ms to 1h

error: relays.shop_to_lines.in_flight_per_key  (outboxd.toml, line 17)
       0 is out of bounds
  fix: write something from 1 to 1000000

error: relays.shop_to_lines.window_bytes  (outboxd.toml, line 18)
       2TiB is out of bounds
  fix: write something from 1KiB to 1GiB"#
    );
    assert_eq!(
        errors(
            &(small(
                r#"sink = "lines"
"#,
                r#"sink = "lines"
window_events = 10
batch_events = 11
window_bytes = "1MiB"
event_bytes_max = "2MiB"
"#
            ))
        ),
        r#"error: relays.shop_to_lines.batch_events  (outboxd.toml, line 15)
       `batch_events` is larger than `window_events`, which it must fit into
  fix: make `window_events` larger, or `batch_events` smaller

error: relays.shop_to_lines.event_bytes_max  (outboxd.toml, line 17)
       `event_bytes_max` is larger than `window_bytes`, which it must fit into
  fix: make `window_bytes` larger, or `event_bytes_max` smaller"#
    );
    assert_eq!(
        errors(&(small("\"outboxd\"", "\"eventsource-py\"") + "start = \"head\"\n")),
        r#"error: relays.shop_to_lines.start  (outboxd.toml, line 14)
       [sources.shop] is read by row: its rows say themselves what is still to be sent
  fix: leave `start` out"#
    );
}

#[test]
fn two_relays_of_a_table_read_by_row() {
    assert_eq!(
        errors(
            &(small("\"outboxd\"", "\"eventsource-py\"")
                + "[sinks.more]\ntype = \"stdout\"\n[relays.b]\nsource = \"shop\"\nsink = \"more\"\n")
        ),
        r#"error: relays.shop_to_lines.source  (outboxd.toml, line 12)
       relay `b` reads the same table, whose rows are marked when they are delivered: each event would reach only one of the two
  fix: read the log instead (a source with read = "events" carries to as many relays as you like), or let the second one read from the first one's broker"#
    );
}

#[test]
fn two_relays_to_one_file() {
    assert_eq!(
        errors(
            &(format!(
                "{SMALL}{}",
                r#"[relays.b]
source = "shop"
sink = "lines"
"#
            ))
        ),
        r#"error: relays.shop_to_lines.sink  (outboxd.toml, line 13)
       relay `b` writes to the same file events.ndjson
  fix: give each relay, and its copies of dead letters, a file of their own"#
    );
}

#[test]
fn file_sinks() {
    assert_eq!(
        errors(&small(r#"path = "events.ndjson""#, r#"path = """#)),
        r#"error: sinks.lines.path  (outboxd.toml, line 9)
       the path is empty
  fix: name the file that is to be written"#
    );
    assert_eq!(
        errors(
            &(small(
                r#"path = "events.ndjson""#,
                r#"path = "e"
format = "plain""#
            ))
        ),
        r#"error: sinks.lines.format  (outboxd.toml, line 10)
       a payload as it is may hold a line break, and its line would then be two
  fix: leave `format` out, or write format = "envelope""#
    );
    assert_eq!(
        errors(&small(r#"type = "file""#, r#"type = "fiel""#)),
        r#"error: sinks.lines.type  (outboxd.toml, line 8)
       there is no such type of sink
  fix: did you mean `file`?"#
    );
}

#[cfg(feature = "kafka")]
#[test]
fn kafka() {
    assert_eq!(
        errors(&sink(r#"type = "kafka""#)),
        r#"error: sinks.lines.bootstrap_servers  (outboxd.toml, line 7)
       must be said
  fix: for example: bootstrap_servers = ["127.0.0.1:9092"]

error: sinks.lines.topic  (outboxd.toml, line 7)
       must be said
  fix: for example: topic = "shop.{stream_type}""#
    );
    assert_eq!(
        errors(
            &(sink(
                r#"type = "kafka"
bootstrap_servers = ["kafka"]
topic = "t"
topic_x = 1"#
            ))
        ),
        r#"error: sinks.lines.bootstrap_servers  (outboxd.toml, line 9)
       "kafka" is not a host and a port
  fix: write ["host:9092"]

error: sinks.lines.topic_x  (outboxd.toml, line 11)
       there is no such key
  fix: did you mean `topic`?"#
    );
    assert_eq!(
        errors(
            &(sink(
                r#"type = "kafka"
bootstrap_servers = []
topic = "a b"
"#
            ))
        ),
        r#"error: sinks.lines.bootstrap_servers  (outboxd.toml, line 9)
       this list is empty
  fix: write ["host:9092"]

error: sinks.lines.topic  (outboxd.toml, line 10)
       the topic's name "a b" has characters other than a-z A-Z 0-9 . _ -
  fix: write 1 to 249 letters, digits, dots, _ and -"#
    );
    assert_eq!(
        errors(
            &(sink(
                r#"type = "kafka"
bootstrap_servers = ["127.0.0.1:9092"]
topic = "shop.{strem_type}"
"#
            ))
        ),
        r#"error: sinks.lines.topic  (outboxd.toml, line 10)
       in "shop.{strem_type}": unknown field {strem_type} at character 6; did you mean {stream_type}?
  fix: write {stream_type}"#
    );
    assert_eq!(
        errors(
            &(sink(
                r#"type = "kafka"
bootstrap_servers = ["127.0.0.1:9092"]
topic = "t"
key = "{id"
format = "cloudevents"
headers = ["time", "time", "stream"]"#
            ))
        ),
        r#"error: sinks.lines.key  (outboxd.toml, line 11)
       in "{id": `{` at character 1 is never closed; write `{{` for a brace
  fix: close every field, and write {{ and }} for braces

error: sinks.lines.format  (outboxd.toml, line 12)
       format "cloudevents" is not in this version
  fix: write `plain`, `eventsource-py` or `envelope`

error: sinks.lines.headers  (outboxd.toml, line 13)
       "time" is said twice
  fix: say it once

error: sinks.lines.headers  (outboxd.toml, line 13)
       there is no header "stream"
  fix: known are `stream_id`, `stream_type`, `version`, `source`, `position`, `time` or `event`"#
    );
    assert_eq!(
        errors(
            &(sink(
                r#"type = "kafka"
bootstrap_servers = ["127.0.0.1:9092"]
topic = "t"
properties = { acks = 1, message = { timeout.ms = 5 }, "lingr.ms" = 5, "linger.ms" = "soon" }"#
            ))
        ),
        r#"error: sinks.lines.properties.acks  (outboxd.toml, line 11)
       `acks` is outboxd's own: always "all": an event counts as delivered when every in-sync replica has it
  fix: leave it out

error: sinks.lines.properties."linger.ms"  (outboxd.toml, line 11)
       librdkafka does not take this value for `linger.ms`
  fix: see librdkafka's CONFIGURATION.md for the names and values of properties

error: sinks.lines.properties."lingr.ms"  (outboxd.toml, line 11)
       librdkafka has no property `lingr.ms`
  fix: see librdkafka's CONFIGURATION.md for the names and values of properties

error: sinks.lines.properties."message.timeout.ms"  (outboxd.toml, line 11)
       `message.timeout.ms` is outboxd's own: an event is tried for ever; set the relay's `ack_timeout`
  fix: leave it out"#
    );
    assert_eq!(
        errors(
            &(sink(
                r#"type = "kafka"
bootstrap_servers = ["127.0.0.1:9092"]
topic = "t"
properties = { "linger.ms" = 5, linger.ms = 6 }"#
            ))
        ),
        r#"error: sinks.lines.properties  (outboxd.toml, line 11)
       `linger.ms` is said twice: once dotted, once as a nested table
  fix: for example: properties = { "linger.ms" = 5 }"#
    );
}

#[cfg(feature = "kafka")]
#[test]
fn kafka_security() {
    assert_eq!(
        errors(
            &(sink(
                r#"type = "kafka"
bootstrap_servers = ["kafka.example.com:9092"]
topic = "t"
sasl = { mechanism = "PLAIN", username = "u", password = "p" }"#
            ))
        ),
        r#"error: sinks.lines.sasl  (outboxd.toml, line 11)
       the password would travel unencrypted to kafka.example.com:9092
  fix: write tls = {}; or write allow_plaintext = true if the network between is safe"#
    );
    assert_eq!(
        errors(
            &(sink(
                r#"type = "kafka"
bootstrap_servers = ["127.0.0.1:9092"]
topic = "t"
sasl = { mechanism = "GSSAPI", username = "u" }"#
            ))
        ),
        r#"error: sinks.lines.sasl.mechanism  (outboxd.toml, line 11)
       "GSSAPI" is not a choice here
  fix: write `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`

error: sinks.lines.sasl.password  (outboxd.toml, line 11)
       must be said
  fix: for example: password = "secret""#
    );
    assert_eq!(
        errors(
            &(sink(
                r#"type = "kafka"
bootstrap_servers = ["127.0.0.1:9092"]
topic = "t"
tls = { ca_file = "missing.pem", cert_file = "missing.pem" }"#
            ))
        ),
        r#"error: sinks.lines.tls.ca_file  (outboxd.toml, line 11)
       missing.pem cannot be read: No such file or directory (os error 2)
  fix: name a file in PEM that outboxd may read

error: sinks.lines.tls.cert_file  (outboxd.toml, line 11)
       missing.pem cannot be read: No such file or directory (os error 2)
  fix: name a file in PEM that outboxd may read

error: sinks.lines.tls.cert_file  (outboxd.toml, line 11)
       `cert_file` is said without `key_file`
  fix: add `key_file`, or leave both out"#
    );
    assert_eq!(
        errors(
            &(sink(
                r#"type = "kafka"
bootstrap_servers = ["127.0.0.1:9092"]
topic = "t"
sasl = { mechanism = "PLAIN", username = "u", password = "p", password_file = "q" }"#
            ))
        ),
        r#"error: sinks.lines.sasl.password_file  (outboxd.toml, line 11)
       `password` and `password_file` are both said
  fix: keep one of them"#
    );
    assert_eq!(
        errors(
            &(sink(
                r#"type = "kafka"
bootstrap_servers = ["127.0.0.1:9092"]
topic = "t"
sasl = { mechanism = "PLAIN", username = "u", password_file = "missing" }"#
            ))
        ),
        r#"error: sinks.lines.sasl.password_file  (outboxd.toml, line 11)
       missing cannot be read: No such file or directory (os error 2)
  fix: write the value into that file, readable for the user that outboxd runs as"#
    );
}

#[cfg(feature = "amqp")]
#[test]
fn amqp() {
    assert_eq!(
        errors(&sink(r#"type = "amqp""#)),
        r#"error: sinks.lines.uri  (outboxd.toml, line 7)
       must be said
  fix: for example: uri = "amqp://127.0.0.1"

error: sinks.lines.exchange  (outboxd.toml, line 7)
       must be said
  fix: for example: exchange = "events"

error: sinks.lines.routing_key  (outboxd.toml, line 7)
       must be said
  fix: for example: routing_key = "{stream_type}.{type}""#
    );
    assert_eq!(
        errors(
            &(sink(
                r#"type = "amqp"
exchange = "e"
routing_key = "k"
uri = "127.0.0.1""#
            ))
        ),
        r#"error: sinks.lines.uri  (outboxd.toml, line 11)
       this is not an address
  fix: write amqp://user:password@host:5672/vhost, or amqps:// for TLS; in a name or password write %40 for @, %2f for /"#
    );
    assert_eq!(
        errors(
            &(sink(
                r#"type = "amqp"
exchange = "e"
routing_key = "k"
uri = "kafka://127.0.0.1""#
            ))
        ),
        r#"error: sinks.lines.uri  (outboxd.toml, line 11)
       this is not an address of AMQP
  fix: write amqp://user:password@host:5672/vhost, or amqps:// for TLS; in a name or password write %40 for @, %2f for /"#
    );
    assert_eq!(
        errors(
            &(sink(
                r#"type = "amqp"
exchange = "e"
routing_key = "k"
uri = "amqp://""#
            ))
        ),
        r#"error: sinks.lines.uri  (outboxd.toml, line 11)
       this address cannot be read
  fix: write amqp://user:password@host:5672/vhost, or amqps:// for TLS; in a name or password write %40 for @, %2f for /"#
    );
    assert_eq!(
        errors(
            &(sink(
                r#"type = "amqp"
exchange = "e"
routing_key = "k"
uri = "amqp://127.0.0.1"
heartbeat = "1500ms"
tls = {}"#
            ))
        ),
        r#"error: sinks.lines.heartbeat  (outboxd.toml, line 12)
       AMQP counts heartbeats in whole seconds
  fix: write whole seconds, as in "10s"

error: sinks.lines.tls  (outboxd.toml, line 13)
       `tls` is said, but the address begins with amqp://
  fix: write amqps://"#
    );
    assert_eq!(
        errors(
            &(sink(
                r#"type = "amqp"
exchange = "e"
routing_key = "k"
uri = "amqp://u:p@rabbit.example.com""#
            ))
        ),
        r#"error: sinks.lines.uri  (outboxd.toml, line 11)
       the password would travel unencrypted to rabbit.example.com
  fix: write amqps://; or write allow_plaintext = true if the network between is safe"#
    );
    for (address, told) in [
        ("http://rabbit.example.com:15672", "the password would travel unencrypted to rabbit.example.com"),
        ("https://u:p@rabbit.example.com", "there is a user in the address"),
        ("rabbit.example.com:15672", "this is not an address of HTTP"),
        ("http://:15672", "this address cannot be read"),
        ("https://rabbit.example.com?x", "this address cannot be read"),
    ] {
        let said = errors(&sink(&format!(
            "type = \"amqp\"\nexchange = \"e\"\nrouting_key = \"k\"\nuri = \"amqps://u:p@rabbit.example.com\"\nmanagement = \"{address}\""
        )));
        assert!(said.starts_with("error: sinks.lines.management") && said.contains(told), "{said}");
        assert!(!said.contains("u:p"), "no password is told: {said}");
    }
    assert_eq!(
        errors(
            &(sink(
                r#"type = "amqp"
exchange = "e"
routing_key = "{typ}"
uri = "amqp://127.0.0.1"
exchange_file = "x""#
            ))
        ),
        r#"error: sinks.lines.routing_key  (outboxd.toml, line 10)
       in "{typ}": unknown field {typ} at character 1; did you mean {type}?
  fix: write {type}

error: sinks.lines.exchange_file  (outboxd.toml, line 12)
       `exchange` and `exchange_file` are both said
  fix: keep one of them"#
    );
}

#[cfg(feature = "amqp")]
#[test]
fn an_eventsource_py_form_needs_its_source() {
    assert_eq!(
        errors(
            &(sink(
                r#"type = "amqp"
exchange = "e"
routing_key = "k"
uri = "amqp://127.0.0.1"
format = "eventsource-py""#
            ))
        ),
        r#"error: sinks.lines.format  (outboxd.toml, line 12)
       relay `shop_to_lines` brings events from [sources.shop], whose preset is not eventsource-py: they have no such form
  fix: write format = "plain" or "envelope""#
    );
}

#[test]
fn the_environment() {
    let variables = [
        ("OUTBOXD_DAEMON_ADMIN", "x"),
        ("OUTBOXD_SINK__LINES__PATH", "x"),
        ("OUTBOXD_SINKS__LINES__", "x"),
        ("OUTBOXD_RELAYS__SHOP_TO_LINES__PAUSED", "yes"),
        ("OUTBOXD_RELAYS__SHOP_TO_LINES__ATTEMPTS_MAX", "many"),
    ];
    assert_eq!(
        Folder::with(SMALL).errors(&variables),
        r#"error: environment variable OUTBOXD_DAEMON_ADMIN
       this looks like an override but is not one
  fix: join the parts with two underscores: OUTBOXD_DAEMON__ADMIN, OUTBOXD_SINKS__BUS__TOPIC

error: relays.shop_to_lines.attempts_max  (environment variable OUTBOXD_RELAYS__SHOP_TO_LINES__ATTEMPTS_MAX)
       "many" is not a whole number

error: relays.shop_to_lines.paused  (environment variable OUTBOXD_RELAYS__SHOP_TO_LINES__PAUSED)
       "yes" is neither `true` nor `false`

error: environment variable OUTBOXD_SINKS__LINES__
       one part of this name is empty

error: environment variable OUTBOXD_SINK__LINES__PATH
       there is no section `sink`
  fix: did you mean `sinks`?

The configuration has 5 errors; nothing was started or changed."#
    );
    let variables = [("OUTBOXD_SINKS__LINES__PAHT", "x"), ("OUTBOXD_RELAYS__SHOP_TO_LINES__ACK_TIMEOUT", "30")];
    assert_eq!(
        Folder::with(SMALL).errors(&variables),
        r#"error: relays.shop_to_lines.ack_timeout  (environment variable OUTBOXD_RELAYS__SHOP_TO_LINES__ACK_TIMEOUT)
       "30" is not a duration: write a number and a unit, as in "30s", "5ms" or "2h"
  fix: for example: ack_timeout = "30s"

error: sinks.lines.paht  (environment variable OUTBOXD_SINKS__LINES__PAHT)
       there is no such key
  fix: did you mean `path`?

The configuration has 2 errors; nothing was started or changed."#
    );
}

#[test]
fn files() {
    let folder = Folder::with(SMALL);
    std::fs::remove_file(folder.path("outboxd.toml")).unwrap();
    assert_eq!(
        folder.errors(&[]),
        r#"error: outboxd.toml
       there is no such file
  fix: name the file with -c FILE, or make one with `outboxd init`

The configuration has 1 error; nothing was started or changed."#
    );
    let folder = Folder::with(SMALL);
    let path = folder.write("conf.d/a.toml", "[daemon]\nadmn = \"x\"\n");
    assert_eq!(
        folder.errors(&[]),
        r#"error: daemon.admn  (conf.d/a.toml, line 2)
       there is no such key
  fix: did you mean `admin`?

The configuration has 1 error; nothing was started or changed."#
    );
    open_to_all(&path, 0o666);
    assert_eq!(
        folder.errors(&[]),
        r#"error: conf.d/a.toml
       anybody on this machine may write to this file
  fix: chmod o-w it

The configuration has 1 error; nothing was started or changed."#
    );
}

#[cfg(feature = "amqp")]
#[test]
fn files_of_secrets() {
    let folder = Folder::with(&sink("type = \"amqp\"\nexchange = \"e\"\nrouting_key = \"k\"\nuri_file = \"uri\""));
    let path = folder.write("uri", "amqp://u:p@127.0.0.1");
    open_to_all(&path, 0o644);
    let told = folder.errors(&[]).replace(&folder.dir.path().display().to_string(), "DIR");
    assert_eq!(
        told,
        r#"error: sinks.lines.uri_file  (outboxd.toml, line 11)
       uri may be read by anybody on this machine (mode 644)
  fix: chmod 600 uri (in Kubernetes: defaultMode: 0440 for the secret)

The configuration has 1 error; nothing was started or changed."#
    );
    folder.write("uri", " \n");
    assert_eq!(
        folder.errors(&[]),
        r#"error: sinks.lines.uri_file  (outboxd.toml, line 11)
       uri is empty
  fix: write the value into that file, readable for the user that outboxd runs as

The configuration has 1 error; nothing was started or changed."#
    );
    folder.write("uri", "amqp://u:p@127.0.0.1\n");
    folder.load(&[]).unwrap();
}

fn open_to_all(path: &std::path::Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[cfg(not(feature = "kafka"))]
#[test]
fn a_build_without_kafka_says_so() {
    assert_eq!(
        errors(&sink("type = \"kafka\"\nbootstrap_servers = [\"127.0.0.1:9092\"]\ntopic = \"t\"")),
        r#"error: sinks.lines.type  (outboxd.toml, line 8)
       this build of outboxd cannot do kafka: it was built without the feature `kafka`
  fix: build it with `cargo build --release --features kafka`, or use a release"#
    );
}

#[test]
fn http() {
    let http = |lines: &str| small("type = \"file\"\npath = \"events.ndjson\"", &format!("type = \"http\"\n{lines}"));
    for (lines, told) in [
        ("", "sinks.lines.url"),
        ("url = \"https://u:secret@h/\"", "a user in the address is not sent"),
        ("url = \"ftp://h/\"", "this is not an address of HTTP"),
        ("url = \"http://169.254.169.254/\"", "link-local or metadata address"),
        ("url = \"http://h.example/\"\nauthorization = \"secret\"", "would travel unencrypted to h.example"),
        ("url = \"http://h/\"\ntls = {}", "the address begins with http://"),
        ("url = \"http://h/\"\nbatch_events = 5", "payloads alone could not be told apart"),
        ("url = \"http://h/\"\nreject_statuses = [\"200\"]", "is not a status of a failure"),
        ("url = \"http://h/\"\nformat = \"eventsource-py\"", "\"eventsource-py\" is not a choice here"),
        ("url = \"http://h/\"\nconnections = 0", "0 is out of bounds"),
    ] {
        let errors = errors(&http(lines));
        assert!(errors.contains(told) && errors.contains("fix:"), "{lines}: {errors}");
        assert!(!errors.contains("secret"), "{errors}");
    }
}

/// Keys of sinks whose values have bounds or forms.
#[cfg(all(feature = "kafka", feature = "amqp"))]
#[test]
fn properties_partitions_and_rotation() {
    let file = "type = \"file\"\npath = \"e\"\n";
    let kafka = "type = \"kafka\"\nbootstrap_servers = [\"k:1\"]\ntopic = \"t\"\n";
    let amqp = "type = \"amqp\"\nuri = \"amqp://127.0.0.1\"\nexchange = \"x\"\nrouting_key = \"k\"\n";
    let long = format!("properties.type = \"{}\"", "t".repeat(256));
    for (sink, line, told) in [
        (file, "rotate_bytes = \"1B\"", ["sinks.lines.rotate_bytes", "1B is out of bounds", "from 1KiB to 1TiB"]),
        (file, "rotate_bytes = 5", ["sinks.lines.rotate_bytes", "a whole number", "a size in quotes"]),
        (file, "rotate_every = \"0s\"", ["sinks.lines.rotate_every", "0s is out of bounds", "from 1s to 366d"]),
        (kafka, "partition = -1", ["sinks.lines.partition", "\"-1\" is no partition", "from 0 on"]),
        (kafka, "partition = true", ["sinks.lines.partition", "true or false", "text in quotes or a whole number"]),
        (kafka, "partition = \"{shard}\"", ["sinks.lines.partition", "unknown field {shard}", "fix: "]),
        (amqp, "properties.priority = 256", ["sinks.lines.properties.priority", "\"256\" cannot be", "0 to 255"]),
        (
            amqp,
            "properties.expiration = \"50d\"",
            ["sinks.lines.properties.expiration", "cannot be", "at most 49 days"],
        ),
        (
            amqp,
            "properties.timestamp = \"now\"",
            ["sinks.lines.properties.timestamp", "\"now\" is not a choice", "`sent`"],
        ),
        (amqp, "properties.reply_to = \"q\"", ["sinks.lines.properties.reply_to", "no such key", "`correlation_id`"]),
        (amqp, &long, ["sinks.lines.properties.type", "cannot be this property", "255 bytes"]),
    ] {
        let errors = errors(&self::sink(&format!("{sink}{line}")));
        assert!(told.iter().all(|word| errors.contains(word)), "{line}: {told:?} is not in {errors}");
    }
    for (sink, line) in [
        (file, "rotate_bytes = \"1KiB\"\nrotate_every = \"1d\""),
        (kafka, "partition = 3"),
        (kafka, "partition = \"{header.shard}\""),
        (amqp, "properties = { type = \"a.{type}\", expiration = \"49d\", priority = 255, timestamp = \"none\" }"),
        (
            amqp,
            "properties = { expiration = \"{header.ttl}\", priority = \"{header.priority}\", correlation_id = \"{id}\" }",
        ),
    ] {
        Folder::with(&self::sink(&format!("{sink}{line}"))).load(&[]).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

/// What a section says of itself, and what two say of each other.
#[test]
fn projections() {
    let base = format!(
        "{}\n{}",
        SMALL.replace("read = \"outbox\"", "read = \"events\""),
        r#"[projections.p]
source = "shop"
path = "read.db"
tables = ["a"]
schema = "CREATE TABLE a (id TEXT)"
on.Placed = "INSERT INTO a VALUES (:id)"
"#
    );
    Folder::with(&base).load(&[]).unwrap();
    for (from, to, told) in [
        ("tables = [\"a\"]", "tables = []", "no table is named"),
        ("tables = [\"a\"]", "tables = [\"a\", \"b\"]", "`schema` makes no table b"),
        ("tables = [\"a\"]", "tables = [\"outboxd_held\"]", "not a table of the application's"),
        ("source = \"shop\"\npath", "source = \"shpo\"\npath", "did you mean \"shop\"?"),
        ("path = \"read.db\"", "path = \"read.db\"\nkey = \"customer\"", "is not a path"),
        ("path = \"read.db\"", "path = \"read.db\"\non_reject = \"skipp\"", "did you mean \"skip\"?"),
        ("path = \"read.db\"", "path = \"read.db\"\nstatement_time_max = \"1ms\"", "out of bounds"),
        ("path = \"read.db\"", "path = \"shop.db-outboxd.db\"", "is the state of"),
        ("[projections.p]", "[projections.shop_to_lines]", "a relay has the same name"),
        ("(id TEXT)\"", "(id TEXT REFERENCES a DEFERRABLE INITIALLY DEFERRED)\"", "deferred"),
        ("on.Placed = \"INSERT INTO a VALUES (:id)\"", "on.Placed = []", "without a statement"),
        ("on.Placed = \"INSERT INTO a VALUES (:id)\"", "on = 7", "wanted is"),
    ] {
        let text = base.replacen(from, to, 1);
        assert_ne!(text, base, "{from}");
        let error = Folder::with(&text).load(&[]).unwrap_err().to_string();
        assert!(error.contains(told), "{to}: {error}");
    }
    let twice = format!(
        "{base}{}",
        base[base.find("[projections.p]").unwrap()..].replace("[projections.p]", "[projections.q]")
    );
    let error = Folder::with(&twice).load(&[]).unwrap_err().to_string();
    assert!(error.contains("projection `p` has a in the same file"), "{error}");
}
