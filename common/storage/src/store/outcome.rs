//! What a store's answers mean, and the error that carries them.
//!
//! Promises: an answer that leaves open what was stored is `Unknown`, never a failure that is certain. Never: asks a store.

use tapedeck_common::ErrorKind;
use tapedeck_common::error::BoxError;

/// A failure in the archive's store, or in what lies there.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct StoreError {
    /// What failed, with the names of store, object and operation.
    pub what: String,
    /// What to do about it.
    pub kind: ErrorKind,
    /// The cause below, if there is one.
    #[source]
    pub source: Option<BoxError>,
}

impl StoreError {
    /// An error without a cause below it.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { what: what.into(), kind, source: None }
    }

    /// A failed request: what to do follows from the store's answer.
    pub fn request(what: impl Into<String>, source: object_store::Error) -> Self {
        let kind = match classify(&source) {
            Outcome::Denied => ErrorKind::Invalid,
            Outcome::Exists | Outcome::NotFound | Outcome::Unknown => ErrorKind::Unavailable,
        };
        Self { what: what.into(), kind, source: Some(Box::new(source)) }
    }

    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// What a store's error says about the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Something lies at the key. After a create it may be ours: only reading it back tells.
    Exists,
    /// Nothing lies at the key at this moment. After a lost create it may still appear.
    NotFound,
    /// Anything may have happened.
    Unknown,
    /// The store refuses for good: rights, or an operation that it does not know.
    Denied,
}

/// Refusals that mend themselves: clocks are set, tokens are renewed. Codes of S3, then texts of Azure.
const PASSING_REFUSALS: [&str; 9] = [
    "RequestTimeTooSkewed",
    "ExpiredToken",
    "RequestExpired",
    "TokenRefreshRequired",
    "SlowDown",
    "Request date header too old",
    "ExpiredAuthenticationToken",
    "Lifetime validation failed",
    "not valid in the specified time frame",
];

/// Sorts an answer that was no success.
pub fn classify(error: &object_store::Error) -> Outcome {
    use object_store::Error as E;
    match error {
        E::AlreadyExists { .. } | E::Precondition { .. } | E::NotModified { .. } => Outcome::Exists,
        E::NotFound { .. } => Outcome::NotFound,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
            if says_one_of(error, &PASSING_REFUSALS) {
                Outcome::Unknown
            } else {
                Outcome::Denied
            }
        }
        E::NotImplemented { .. } | E::NotSupported { .. } | E::InvalidPath { .. } => Outcome::Denied,
        _ => Outcome::Unknown,
    }
}

/// Words of a store that paces its clients: the request was not carried out.
const THROTTLED: [&str; 4] = ["429 Too Many Requests", "rateLimitExceeded", "SlowDown", "ServerBusy"];

/// True if the store only asked for fewer requests. Google allows about one change of an object a second.
pub fn is_throttled(error: &object_store::Error) -> bool {
    classify(error) == Outcome::Unknown && says_one_of(error, &THROTTLED)
}

/// Words of a store that no longer has an upload, or not its parts as we know them: no repetition mends that. The store
/// client tells only Amazon's first one by its kind of error.
const UPLOAD_LOST: [&str; 4] = ["NoSuchUpload", "InvalidPart", "InvalidBlockList", "InvalidBlockId"];

/// True if an upload in parts cannot be ended any more, so that its object must be written anew.
pub fn is_upload_lost(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotFound { .. }) || says_one_of(error, &UPLOAD_LOST)
}

fn says_one_of(error: &object_store::Error, words: &[&str]) -> bool {
    let text = error.to_string();
    words.iter().any(|word| text.contains(word))
}

#[cfg(test)]
mod tests {
    use object_store::Error;

    use super::*;

    fn generic(text: &str) -> Error {
        Error::Generic { store: "any", source: text.into() }
    }

    #[test]
    fn refusals_that_pass_are_not_final() {
        let denied = |text: &str| Error::PermissionDenied { path: "k".to_owned(), source: text.into() };
        assert_eq!(classify(&denied("AccessDenied")), Outcome::Denied);
        for passing in PASSING_REFUSALS {
            assert_eq!(classify(&denied(&format!("<Code>{passing}</Code>"))), Outcome::Unknown, "{passing}");
        }
    }

    #[test]
    fn a_store_that_asks_for_patience_is_told_from_one_that_fails() {
        assert!(is_throttled(&generic("Server returned non-2xx status code: 429 Too Many Requests: ")));
        assert!(is_throttled(&generic("503 Service Unavailable: <Code>SlowDown</Code>")));
        assert!(!is_throttled(&generic("503 Service Unavailable")));
        let exists = Error::AlreadyExists { path: "k".to_owned(), source: "SlowDown".into() };
        assert!(!is_throttled(&exists));
    }

    #[test]
    fn an_upload_that_no_repetition_ends_is_lost_whatever_the_client_calls_it() {
        assert!(is_upload_lost(&Error::NotFound { path: "k".to_owned(), source: "404".into() }));
        for (code, lost) in [("NoSuchUpload", true), ("InvalidPart", true), ("InvalidBlockList", true), ("InternalError", false)]
        {
            assert_eq!(is_upload_lost(&generic(&format!("<Error><Code>{code}</Code></Error>"))), lost, "{code}");
        }
    }
}
