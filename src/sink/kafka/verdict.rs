//! What an error code of the client says about one event. Pure.
//!
//! The rule *guilty only alone*: a produce batch is refused as a whole, so a code that blames a message's content convicts only
//! a message that was alone in flight. A missing topic is named by the error itself: with a template it is the event's own
//! destination, with a constant topic it is everybody's.

use rdkafka::types::RDKafkaErrorCode as Code;

use crate::event::{Reason, Rejection};
use crate::sink::{Fault, Outcome};

/// How a message was sent, as far as the verdict on it depends on that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Circumstances<'a> {
    pub topic: &'a str,
    pub is_topic_constant: bool,
    /// The one that a template gave for it.
    pub partition: Option<i32>,
    /// No other message of this producer was in flight.
    pub was_alone: bool,
}

pub(super) fn outcome(code: Code, circumstances: Circumstances<'_>) -> Outcome {
    let topic = circumstances.topic;
    match code {
        Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge => {
            let detail = format!("the broker finds it too large for topic {topic} (max.message.bytes): {code}");
            blame(Rejection::new(Reason::TooLarge, detail), circumstances.was_alone)
        }
        Code::InvalidMessage
        | Code::InvalidRecord
        | Code::InvalidTimestamp
        | Code::UnsupportedForMessageFormat
        | Code::PolicyViolation => {
            let detail = format!("the broker refuses it for topic {topic}: {code}");
            blame(Rejection::new(Reason::Refused, detail), circumstances.was_alone)
        }
        Code::InvalidDifferentRecord => {
            Outcome::Suspect(Rejection::new(Reason::Refused, format!("refused along with another record: {code}")))
        }
        Code::UnknownPartition if circumstances.partition.is_some() => {
            let partition = circumstances.partition.unwrap_or_default();
            Outcome::Rejected(Rejection::new(Reason::Unroutable, format!("topic {topic} has no partition {partition}")))
        }
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition | Code::InvalidTopic => {
            if circumstances.is_topic_constant {
                Outcome::Unavailable(missing_topic(topic, code))
            } else {
                Outcome::Rejected(Rejection::new(Reason::Unroutable, format!("there is no topic {topic}: {code}")))
            }
        }
        code => Outcome::Unavailable(fault(code, &format!("topic {topic}"))),
    }
}

fn blame(rejection: Rejection, was_alone: bool) -> Outcome {
    if was_alone { Outcome::Rejected(rejection) } else { Outcome::Suspect(rejection) }
}

pub(super) fn missing_topic(topic: &str, code: Code) -> Fault {
    Fault::fatal(format!("there is no topic {topic}: {code}; create it"))
}

/// What a code that blames no message says about the far side.
pub(super) fn fault(code: Code, what: &str) -> Fault {
    match code {
        Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::SSL
        | Code::SecurityDisabled
        | Code::UnsupportedVersion
        | Code::UnsupportedFeature
        | Code::UnsupportedCompressionType
        | Code::InvalidRequiredAcks => Fault::fatal(format!("{what}: {code}")),
        code => Fault::unavailable(format!("{what}: {code}")),
    }
}

/// After such a code the producer sends nothing more, or no more in order: only a new one helps.
pub(super) fn spoils_producer(code: Code) -> bool {
    matches!(
        code,
        Code::Fatal
            | Code::Fenced
            | Code::ProducerFenced
            | Code::GaplessGuarantee
            | Code::Inconsistent
            | Code::OutOfOrderSequenceNumber
            | Code::UnknownProducerId
            | Code::InvalidProducerEpoch
            | Code::InvalidProducerIdMapping
            | Code::PurgeInflight
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::FaultClass;

    fn of(code: Code, is_topic_constant: bool, was_alone: bool) -> String {
        of_partition(code, is_topic_constant, None, was_alone)
    }

    fn of_partition(code: Code, is_topic_constant: bool, partition: Option<i32>, was_alone: bool) -> String {
        match outcome(code, Circumstances { topic: "shop", is_topic_constant, partition, was_alone }) {
            Outcome::Delivered => "delivered".into(),
            Outcome::Rejected(rejection) => format!("rejected {}", rejection.reason.as_str()),
            Outcome::Suspect(rejection) => format!("suspect {}", rejection.reason.as_str()),
            Outcome::Unavailable(Fault { class: FaultClass::Fatal, .. }) => "fatal".into(),
            Outcome::Unavailable(_) => "unavailable".into(),
            Outcome::Behind => "behind".into(),
        }
    }

    #[test]
    fn guilty_only_alone() {
        assert_eq!(of(Code::MessageSizeTooLarge, true, true), "rejected too_large");
        assert_eq!(of(Code::MessageSizeTooLarge, true, false), "suspect too_large");
        assert_eq!(of(Code::InvalidRecord, true, true), "rejected refused");
        assert_eq!(of(Code::InvalidDifferentRecord, true, true), "suspect refused");
    }

    #[test]
    fn a_missing_topic_is_the_templates_or_everybodys() {
        assert_eq!(of(Code::UnknownTopicOrPartition, true, false), "fatal");
        assert_eq!(of(Code::UnknownTopicOrPartition, false, false), "rejected unroutable");
        assert_eq!(of(Code::UnknownPartition, true, false), "fatal");
        assert_eq!(of_partition(Code::UnknownPartition, true, Some(9), false), "rejected unroutable");
    }

    #[test]
    fn what_is_away_blames_nobody() {
        for code in [Code::PurgeQueue, Code::PurgeInflight, Code::BrokerTransportFailure, Code::NotEnoughReplicas] {
            assert_eq!(of(code, false, true), "unavailable");
        }
        assert_eq!(of(Code::TopicAuthorizationFailed, false, true), "fatal");
    }
}
