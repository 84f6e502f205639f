//! Why a segment could not be stored or read.

use tapedeck_common::ErrorKind;
use tapedeck_common::error::BoxError;

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

    /// A failed read of an object that the log vouches for: gone is corrupt, everything else may pass.
    pub(crate) fn read(key: &object_store::path::Path, source: object_store::Error) -> Self {
        match source {
            object_store::Error::NotFound { .. } => Self::corrupt(key.as_ref(), "the store does not have it").because(source),
            _ => Self::new(ErrorKind::Unavailable, key.as_ref(), "cannot be read").because(source),
        }
    }

    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}
