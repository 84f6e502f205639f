//! How a record lies in the store: the one form of the product, and the seam at which a simulation puts a cheaper one.
//!
//! Promises: the same input always gives the same body, and what was written reads as the same record. Never: decides what a
//! record says, or when it is sent.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tapedeck_common::commit::Record;

use super::genesis::Genesis;
use super::record::{self, Header, LogRecord, RecordError};
use super::rewrite::{self, Rewrite};

/// What one record is to say.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// A table begins.
    Genesis(&'a Genesis),
    /// Lanes advance. It has passed [`record::check`].
    Events(&'a Record),
    /// What is there is moved or taken out. It has passed [`rewrite::check`].
    Rewrite(&'a Rewrite),
}

/// A way in which records are written and read.
pub trait Form {
    /// A record as it is sent.
    type Body: Clone + fmt::Debug + PartialEq + Eq;

    /// What is sent.
    fn write(header: &Header, content: Content<'_>) -> Self::Body;

    /// The record as every reader will see it.
    fn read(body: &Self::Body) -> Result<Arc<LogRecord>, RecordError>;

    /// What the next record must name, and by which a writer knows its own record again.
    fn hash(body: &Self::Body) -> String;
}

/// The text of [`record`], named by its BLAKE3: what the product stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text;

impl Form for Text {
    type Body = Bytes;

    fn write(header: &Header, content: Content<'_>) -> Bytes {
        let text = match content {
            Content::Genesis(genesis) => record::encode_genesis(header, genesis),
            Content::Events(record) => record::encode(header, record),
            Content::Rewrite(rewrite) => rewrite::encode(header, rewrite),
        };
        text.into()
    }

    fn read(body: &Bytes) -> Result<Arc<LogRecord>, RecordError> {
        record::decode(body).map(Arc::new)
    }

    fn hash(body: &Bytes) -> String {
        record::hash(body)
    }
}
