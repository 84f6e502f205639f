//! What to do about an error of the client. Pure.

use std::fmt;

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::{Error, ErrorKind as Kind};
use tapedeck_common::bus::BusError;
use tapedeck_common::error::ErrorKind;

/// What to do about it.
pub(crate) fn kind_of(error: &Error) -> ErrorKind {
    match error.kind() {
        // A name that is no UTF-8, above all: the message comes again, and the client cannot read it.
        Kind::ParsingError(_) => ErrorKind::Corrupt,
        Kind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => ErrorKind::Invalid,
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED | AMQPHardError::NOTIMPLEMENTED) => ErrorKind::Invalid,
            // Among them 404, since a queue may come to be, and 406, with which a node without a replica of a stream refuses it.
            _ => ErrorKind::Unavailable,
        },
        Kind::InvalidProtocolVersion(_) => ErrorKind::Invalid,
        _ => ErrorKind::Unavailable,
    }
}

/// True if what is to be read is of a kind that does not know an argument of ours. The same code is for other refusals.
pub(crate) fn refuses_argument(error: &BusError) -> bool {
    let cause = error.source.as_ref().and_then(|source| source.downcast_ref::<Error>());
    let refuses = |error: &Error| match error.kind() {
        Kind::ProtocolError(error) => {
            *error.kind() == AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)
                && error.get_message().as_str().contains("invalid arg")
        }
        _ => false,
    };
    cause.is_some_and(refuses)
}

/// `what` failed.
pub(crate) fn trouble(what: impl fmt::Display, error: Error) -> BusError {
    BusError { what: what.to_string(), kind: kind_of(&error), source: Some(Box::new(error)) }
}

#[cfg(test)]
mod tests {
    use std::io;

    use lapin::protocol::AMQPError;

    use super::*;

    #[test]
    fn errors_are_sorted_by_what_to_do_about_them() {
        let code = |id| Error::from(Kind::ProtocolError(AMQPError::from_id(id, "why".into()).expect("a code of AMQP")));
        let cases = [
            (code(403), ErrorKind::Invalid),
            (code(530), ErrorKind::Invalid),
            (code(540), ErrorKind::Invalid),
            (code(404), ErrorKind::Unavailable),
            (code(406), ErrorKind::Unavailable),
            (code(320), ErrorKind::Unavailable),
            (code(541), ErrorKind::Unavailable),
            (Error::from(io::Error::from(io::ErrorKind::ConnectionReset)), ErrorKind::Unavailable),
            (Error::from(Kind::MissingHeartbeatError), ErrorKind::Unavailable),
        ];
        for (error, kind) in cases {
            assert_eq!(kind_of(&error), kind, "{error}");
        }
        let said = |what: &str| Error::from(Kind::ProtocolError(AMQPError::from_id(406, what.into()).expect("a code of AMQP")));
        let of_its_kind = said("PRECONDITION_FAILED - invalid arg 'x-stream-offset' for queue 'q' in vhost '/'");
        assert!(refuses_argument(&trouble("", of_its_kind)));
        assert!(!refuses_argument(&trouble("", said("does not have a running replica on the local node"))));
        let text = tapedeck_common::error::report(&trouble("queue jobs", code(404)));
        assert!(text.starts_with("queue jobs: ") && text.contains("why"), "{text}");
    }
}
