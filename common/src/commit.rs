//! What makes events true: the commit record that a writer asks for, and the receipt that proves it.
//!
//! A record is all or nothing: its segments become visible, and its lanes advance, at the same instant or never.
//! Only [`CommitLog::append`] can mint a [`Receipt`], and only a receipt can be acknowledged, so "acknowledged before
//! committed" does not compile.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::error::{BoxError, ErrorKind};
use crate::position::{LaneId, Position, Span, SpanSet};
use crate::time::{Timestamp, Window};

/// Where each lane stands: the position that comes next. A lane that is absent has never been committed.
pub type Checkpoint = BTreeMap<LaneId, Position>;

/// The part of one lane that lies in one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentLane {
    /// The partition.
    pub partition: i32,
    /// Its first position in the segment.
    pub first: Position,
    /// Its last position in the segment.
    pub last: Position,
    /// Its rows in the segment. Fewer than `last - first + 1` where the lane has holes or other hours.
    pub rows: u64,
    /// Payload bytes of those rows: keys, values, header names and values.
    pub payload_bytes: u64,
}

/// One immutable object with the events of one group (a topic's hour).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentRef {
    /// Its path below the table's folder, as the store knows it.
    pub path: String,
    /// The source that all its lanes belong to.
    pub source: Arc<str>,
    /// The topic's true name.
    pub topic: Arc<str>,
    /// The hour of all its events.
    pub window: Window,
    /// Rows.
    pub rows: u64,
    /// Bytes of the object.
    pub size: u64,
    /// BLAKE3 of the whole object, 64 hex digits.
    pub blake3: String,
    /// When it was stored.
    pub modified: Timestamp,
    /// The earliest and the latest event time.
    pub times: (Timestamp, Timestamp),
    /// Rows with a null key, and with a null value.
    pub null_keys: u64,
    /// Rows with a null value.
    pub null_values: u64,
    /// Its lanes, by partition.
    pub lanes: Vec<SegmentLane>,
}

/// Why positions of a lane are lost for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GapCause {
    /// The bus deleted them before they were archived.
    Retention,
    /// The topic was deleted and made again.
    Recreated,
    /// The bus lost its tail.
    Truncated,
}

impl GapCause {
    /// The word in records and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::Recreated => "recreated",
            Self::Truncated => "truncated",
        }
    }

    /// The cause behind a word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Retention, Self::Recreated, Self::Truncated].into_iter().find(|cause| cause.as_str() == word)
    }
}

/// One lane's step in a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advance {
    /// The lane.
    pub lane: LaneId,
    /// Where the log must stand for the record to be accepted; `None` if it must not know the lane yet.
    pub expected: Option<Position>,
    /// What the record covers. Begins at `expected`; for a lane's start record it is empty, at the start position.
    pub span: Span,
    /// Rows that its segments hold for the span.
    pub rows: u64,
    /// Events of the span that a policy left out on purpose (copies that a replay published).
    pub skipped: u64,
    /// Set if the span's events are lost, and why; then there are no rows.
    pub gap: Option<GapCause>,
}

/// What a writer asks the table log to make true, all or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// The lanes that move.
    pub advances: Vec<Advance>,
    /// The segments that become visible.
    pub segments: Vec<SegmentRef>,
}

/// A lane that does not stand where a record expects it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleLane {
    /// The lane.
    pub lane: LaneId,
    /// Where the record expected it.
    pub expected: Option<Position>,
    /// Where the log has it.
    pub found: Option<Position>,
}

impl fmt::Display for StaleLane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |at: Option<Position>| at.map_or_else(|| "nowhere".to_owned(), |at| at.to_string());
        write!(f, "lane {} stands at {}, expected at {}", self.lane, text(self.found), text(self.expected))
    }
}

/// Proof that a record is durable and visible. Only [`CommitLog::append`] makes one.
#[derive(Debug)]
#[must_use = "until a receipt is acknowledged the bus keeps waiting"]
pub struct Receipt {
    spans: SpanSet,
    version: u64,
}

impl Receipt {
    /// What was committed, lane by lane.
    pub fn spans(&self) -> &SpanSet {
        &self.spans
    }

    /// The number of the record.
    pub fn version(&self) -> u64 {
        self.version
    }
}

/// How asking for a record ended. Every unknown outcome has been settled by reading back before this is returned.
#[derive(Debug)]
pub enum Appended {
    /// The record is in the log.
    Committed(Receipt),
    /// It was refused, and nothing of it will ever be visible: these lanes have moved.
    Stale(Vec<StaleLane>),
}

/// What an implementer of [`CommitLog::append_record`] answers.
#[derive(Debug)]
pub enum Outcome {
    /// The record is in the log, under this number.
    Committed {
        /// The number of the record.
        version: u64,
    },
    /// It was refused.
    Stale(Vec<StaleLane>),
}

/// A failure of the log that waiting inside did not cure.
#[derive(Debug, thiserror::Error)]
#[error("table {table}: {what}")]
pub struct CommitError {
    /// The table.
    pub table: String,
    /// What failed, with the object's name.
    pub what: String,
    /// What to do about it.
    pub kind: ErrorKind,
    /// The cause below, if there is one.
    #[source]
    pub source: Option<BoxError>,
}

impl CommitError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// The numbered log of one table.
#[async_trait]
pub trait CommitLog: Send {
    /// Catches up with the log and says where every lane stands. Waits out an absent store, without end.
    /// Cancel safe.
    async fn checkpoint(&mut self) -> Result<Checkpoint, CommitError>;

    /// Implementers only; callers use [`Self::append`].
    async fn append_record(&mut self, record: &Record) -> Result<Outcome, CommitError>;

    /// Makes `record` true, or learns that it can never be. Waits out an absent store, without end.
    /// If the call is dropped the record may still land; [`Self::checkpoint`] then tells.
    async fn append(&mut self, record: &Record) -> Result<Appended, CommitError> {
        match self.append_record(record).await? {
            Outcome::Committed { version } => {
                let spans = record.advances.iter().map(|advance| (advance.lane.clone(), advance.span)).collect();
                Ok(Appended::Committed(Receipt { spans, version }))
            }
            Outcome::Stale(lanes) => Ok(Appended::Stale(lanes)),
        }
    }
}
