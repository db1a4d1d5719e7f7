//! The command's end of the control socket: one line of JSON there, one line back.
//!
//! The answer is `{"ok": true, ...}`, or `{"ok": false, "error": "...", "remedy": "...", "exit": 69}`.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::exit::{Exit, Failure};
pub use crate::admin::request::{Consumer, DeadLetters, Filter, Job, Place, Position, Rebuild, Replay, Request};

const ANSWER_WAIT: Duration = Duration::from_secs(60);
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// What became of a request.
#[derive(Debug)]
pub enum Answer {
    Given(Value),
    /// Nobody listens: the daemon does not run.
    NotRunning,
}

/// Asks the daemon behind the socket.
pub fn ask(socket: &Path, request: &Request) -> anyhow::Result<Answer> {
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            return Ok(Answer::NotRunning);
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let reason = format!("the control socket {} may not be opened", socket.display());
            return Err(Failure::new(Exit::Permission, reason, "run this as the user that outboxd runs as").into());
        }
        Err(error) => {
            return Err(anyhow::Error::new(error).context(format!("connect to {}", socket.display())));
        }
    };
    // A reload takes as long as the consumers need to drain, a job as long as it has work, a rebuild's end as long as there are rows; a
    // daemon that dies closes the connection.
    let takes_its_time = matches!(request, Request::Reload | Request::Job(Job::Run { .. }) | Request::Rebuild(_));
    stream.set_read_timeout((!takes_its_time).then_some(ANSWER_WAIT))?;
    stream.set_write_timeout(Some(ANSWER_WAIT))?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    let mut answer = String::new();
    let sent = stream.write_all(line.as_bytes());
    sent.and_then(|()| BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut answer))
        .map_err(|error| unanswered(&error.to_string()))?;
    read(&answer).map(Answer::Given)
}

fn unanswered(why: &str) -> Failure {
    Failure::new(Exit::Unavailable, format!("the daemon did not answer: {why}"), "see its log")
}

/// The answer, or the failure that it tells.
fn read(line: &str) -> anyhow::Result<Value> {
    let answer: Value = serde_json::from_str(line).map_err(|_| unanswered("it closed the connection"))?;
    if answer["ok"].as_bool() == Some(true) {
        return Ok(answer);
    }
    let text = |field: &str| answer[field].as_str().map(str::to_owned);
    let exit = answer["exit"].as_u64().and_then(Exit::of_code).unwrap_or(Exit::Unavailable);
    let reason = text("error").unwrap_or_else(|| "the daemon refused, and did not say why".to_owned());
    Err(Failure { exit, reason, remedy: text("remedy") }.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_look_as_the_daemon_expects_them() {
        let filter = Filter { consumer: Some("a".into()), older_than_seconds: Some(3600), ..Filter::default() };
        for (request, expected) in [
            (Request::Status, json!({"command": "status"})),
            (Request::Pause { consumer: "a".into() }, json!({"command": "pause", "consumer": "a"})),
            (
                Request::DeadLetters(DeadLetters::Discard { filter, reason: "old".into() }),
                json!({"command": "dead-letters", "action": "discard", "consumer": "a", "key": null, "id": null,
                       "older_than_seconds": 3600, "reason": "old"}),
            ),
            (
                Request::Position(Position::Set { consumer: "a".into(), to: Place::Position(7) }),
                json!({"command": "position", "action": "set", "consumer": "a", "to": {"position": 7}}),
            ),
            (
                Request::Position(Position::Set { consumer: "a".into(), to: Place::Head }),
                json!({"command": "position", "action": "set", "consumer": "a", "to": "head"}),
            ),
            (Request::Consumer(Consumer::List), json!({"command": "consumer", "action": "list"})),
        ] {
            assert_eq!(serde_json::to_value(&request).unwrap(), expected);
            assert_eq!(serde_json::from_value::<Request>(expected).unwrap(), request);
        }
    }

    #[test]
    fn a_refusal_brings_its_exit_code_and_remedy() {
        let error = read(r#"{"ok":false,"error":"held","remedy":"wait","exit":75}"#).unwrap_err();
        assert_eq!(Exit::of(&error), Exit::Locked);
        assert_eq!(error.to_string(), "held\n  fix: wait");
        assert_eq!(Exit::of(&read("").unwrap_err()), Exit::Unavailable);
    }
}
