//! Why a segment could not be stored or read.

use tapedeck_common::ErrorKind;
use tapedeck_common::error::BoxError;

use crate::store::{Outcome, classify};

/// A failure with one segment; the text names it.
#[derive(Debug, thiserror::Error)]
#[error("segment {key}: {what}")]
pub struct SegmentError {
    /// The object's key.
    pub key: String,
    /// What failed.
    pub what: String,
    /// What to do about it.
    pub kind: ErrorKind,
    /// The cause below, if there is one.
    #[source]
    pub source: Option<BoxError>,
}

impl SegmentError {
    pub(crate) fn new(kind: ErrorKind, key: impl Into<String>, what: impl Into<String>) -> Self {
        Self { key: key.into(), what: what.into(), kind, source: None }
    }

    pub(crate) fn corrupt(key: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, key, what)
    }

    pub(crate) fn because(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Reading from the machine's own disk failed.
    pub(crate) fn stopped(key: &object_store::path::Path, source: impl Into<BoxError>) -> Self {
        Self::new(ErrorKind::Unavailable, key.as_ref(), "cannot be read").because(source)
    }

    /// A failed read of an object that the log vouches for: gone is corrupt, refused needs a person, the rest may pass.
    pub(crate) fn read(key: &object_store::path::Path, source: object_store::Error) -> Self {
        match classify(&source) {
            Outcome::NotFound => Self::corrupt(key.as_ref(), "the store does not have it").because(source),
            Outcome::Denied => Self::new(ErrorKind::Invalid, key.as_ref(), "the store refuses to read it").because(source),
            _ => Self::new(ErrorKind::Unavailable, key.as_ref(), "cannot be read").because(source),
        }
    }

    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

#[cfg(test)]
mod tests {
    use object_store::Error;
    use object_store::path::Path;

    use super::*;

    #[test]
    fn a_refused_read_is_the_operators_and_no_trouble_that_passes() {
        let path = || "x".to_owned();
        let denied = |code: &str| Error::PermissionDenied { path: path(), source: code.to_owned().into() };
        let cases = [
            (Error::NotFound { path: path(), source: "404".into() }, ErrorKind::Corrupt),
            (denied("403, AccessDenied"), ErrorKind::Invalid),
            (denied("403, ExpiredToken"), ErrorKind::Unavailable),
            (Error::Generic { store: "s3", source: "503".into() }, ErrorKind::Unavailable),
        ];
        for (source, kind) in cases {
            let error = SegmentError::read(&Path::from("x"), source);
            assert_eq!(error.kind(), kind, "{error:?}");
        }
    }
}
