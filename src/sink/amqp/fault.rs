//! What an error of the AMQP client says about the far side. Pure.

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::{Error, ErrorKind};

use crate::sink::Fault;

/// The broker's reply codes that matter here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// 404: no such exchange.
    NotFound,
    /// 403, 530: credentials, rights, virtual host.
    Denied,
    /// 406 and 311 on publishing: a message that is refused, most often for its size.
    Refused,
    /// Anything else: the connection, the broker, the network.
    Away,
}

pub(super) fn answer(error: &Error) -> Answer {
    let ErrorKind::ProtocolError(error) = error.kind() else { return Answer::Away };
    match error.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => Answer::NotFound,
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) | AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
            Answer::Denied
        }
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED | AMQPSoftError::CONTENTTOOLARGE) => Answer::Refused,
        _ => Answer::Away,
    }
}

/// The fault behind an error while connecting, declaring or waiting.
pub(super) fn fault(doing: &str, error: &Error) -> Fault {
    let detail = format!("{doing}: {error}");
    // rustls says so in words only: what we hold against the broker's certificate, or the broker against ours.
    let is_untrusted = matches!(error.kind(), ErrorKind::IOError(_))
        && ["certificate", "received fatal alert"].iter().any(|word| detail.contains(word));
    let fatal = |remedy: &str| Fault::fatal(format!("{detail}. Remedy: {remedy}"));
    match answer(error) {
        Answer::NotFound => {
            fatal("make the exchange, with its bindings; or say declare = true, and bind a queue to it")
        }
        Answer::Denied => {
            fatal("look at user, password and virtual host in `uri`, and let that user configure and write there")
        }
        Answer::Refused => fatal("what is there is of another kind: delete it, or leave `declare` out"),
        Answer::Away if is_untrusted => Fault::fatal(detail),
        Answer::Away => Fault::unavailable(detail),
    }
}

/// Soft errors close a channel and leave the connection as it is.
pub(super) fn is_of_a_channel(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if matches!(error.kind(), AMQPErrorKind::Soft(_)))
}

/// The exchange that a 404 names: `NOT_FOUND - no exchange 'x' in vhost '/'`.
pub(super) fn missing_exchange(error: &Error) -> Option<String> {
    exchange_named(&error.to_string()).map(str::to_owned)
}

pub fn exchange_named(text: &str) -> Option<&str> {
    let rest = text.split_once("no exchange '")?.1;
    Some(rest.split_once("' in vhost")?.0)
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPError;

    use super::*;
    use crate::sink::FaultClass;

    fn error(code: u16, text: &str) -> Error {
        ErrorKind::ProtocolError(AMQPError::from_id(code, text.into()).unwrap()).into()
    }

    #[test]
    fn what_a_person_must_mend_is_fatal_and_the_rest_is_waited_for() {
        for (code, class) in [
            (403, FaultClass::Fatal),
            (404, FaultClass::Fatal),
            (530, FaultClass::Fatal),
            (320, FaultClass::Unavailable),
            (541, FaultClass::Unavailable),
        ] {
            assert_eq!(fault("x", &error(code, "why")).class, class, "{code}");
        }
        let refused = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "refused");
        assert_eq!(fault("x", &refused.into()).class, FaultClass::Unavailable);
    }

    #[test]
    fn what_closes_a_channel_is_not_the_connections() {
        assert!(is_of_a_channel(&error(404, "no exchange")) && is_of_a_channel(&error(406, "too large")));
        assert!(!is_of_a_channel(&error(320, "the broker goes down")));
    }

    #[test]
    fn a_missing_exchange_is_named() {
        let error = error(404, "NOT_FOUND - no exchange 'it's' in vhost '/'");
        assert_eq!(missing_exchange(&error).as_deref(), Some("it's"));
    }
}
