//! Records that are handed on instead of being written and read: cheaper than their text, and the same story, which is checked
//! (`run_and_compare` in `main`).
//!
//! What stands for the BLAKE3 of the bytes is a hash of the header. That tells any two records apart as long as one id never asks
//! for two contents, and a machine, which has one id, has one goal.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use tapedeck_common::commit::Record;
use tapedeck_storage::log::form::{Content, Form};
use tapedeck_storage::log::record::{Header, LogRecord, RecordError, Removed};
use tapedeck_storage::log::rewrite::Operation;

#[derive(Debug, Clone)]
pub(crate) struct Shared;

impl Form for Shared {
    type Body = Arc<LogRecord>;

    fn write(header: &Header, content: Content<'_>) -> Arc<LogRecord> {
        let mut record = LogRecord {
            header: header.clone(),
            record: Record::default(),
            removes: Vec::new(),
            sweep: Vec::new(),
            genesis: None,
            rewrite: false,
            hash: hash(header),
        };
        match content {
            Content::Genesis(genesis) => record.genesis = Some(genesis.clone()),
            Content::Events(events) => record.record = events.clone(),
            Content::Rewrite(rewrite) => {
                let (at_ms, data_change) = (header.timestamp_ms, rewrite.operation == Operation::Expire);
                record.removes = rewrite.removes.iter().map(|path| Removed { path: path.clone(), at_ms, data_change }).collect();
                record.record.segments.clone_from(&rewrite.adds);
                record.sweep.clone_from(&rewrite.sweep);
                record.rewrite = true;
            }
        }
        Arc::new(record)
    }

    fn read(body: &Arc<LogRecord>) -> Result<Arc<LogRecord>, RecordError> {
        Ok(Arc::clone(body))
    }

    fn hash(body: &Arc<LogRecord>) -> String {
        body.hash.clone()
    }
}

fn hash(header: &Header) -> String {
    let mut hasher = DefaultHasher::new();
    (header.timestamp_ms, &header.writer, &header.txn_id, &header.prev).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
