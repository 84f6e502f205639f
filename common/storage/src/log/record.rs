//! The exact text of a commit record: newline JSON, `commitInfo` first, then `txn`, then `add` lines.
//!
//! Promises: the same input always gives the same bytes; what was encoded decodes to the same record; anything unknown stops
//! the reader. Never: encodes a record whose segments do not fill exactly the spans that it claims.

use std::collections::{BTreeMap, BTreeSet};

use tapedeck_common::ErrorKind;
use tapedeck_common::commit::{Advance, Record, SegmentLane, SegmentRef};
use tapedeck_common::{LaneId, Timestamp};

use super::genesis::Genesis;
use super::rewrite::Rewrite;
use super::wire::{self, Action};

pub use super::decode::decode;

/// The version of the `tapedeck` object in `commitInfo`.
pub(super) const FORMAT: u32 = 1;

/// A record that cannot be read, or may not be acted upon.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes are no record.
    #[error("unreadable: {0}")]
    Unreadable(String),
    /// It is one, by somebody else or of a later version.
    #[error("it holds {0}, which this version does not know; nothing is written until it does")]
    Foreign(String),
    /// It contradicts itself or the log before it.
    #[error("{0}")]
    Broken(String),
}

impl RecordError {
    pub(super) fn foreign(what: impl Into<String>) -> Self {
        Self::Foreign(what.into())
    }

    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Foreign(_) => ErrorKind::Invalid,
            Self::Unreadable(_) | Self::Broken(_) => ErrorKind::Corrupt,
        }
    }
}

/// Who writes a record, and where it stands in the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// When it was encoded, in milliseconds since 1970 UTC.
    pub timestamp_ms: i64,
    /// The program, `tapedeck/<version>`.
    pub engine: String,
    /// The writer's own name.
    pub writer: String,
    /// A fresh UUID for each batch: how a writer knows its own record again.
    pub txn_id: String,
    /// The BLAKE3 of the record before, 64 hex digits; `None` for record 0.
    pub prev: Option<String>,
}

/// A segment that a record takes out of the live set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Its path below the table's folder.
    pub path: String,
    /// When, in milliseconds since 1970 UTC.
    pub at_ms: i64,
    /// False if its rows live on in another segment.
    pub data_change: bool,
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Who wrote it, and its link to the record before.
    pub header: Header,
    /// What it made true.
    pub record: Record,
    /// What it took out.
    pub removes: Vec<Removed>,
    /// Paths that no later record may bring to life.
    pub sweep: Vec<String>,
    /// Set in record 0, and only there.
    pub genesis: Option<Genesis>,
    /// True if its adds only move rows that were archived before.
    pub rewrite: bool,
    /// The BLAKE3 of its bytes, 64 hex digits: what the next record's `prev` must say.
    pub hash: String,
}

/// The BLAKE3 of a record's bytes, as the next record names it.
pub fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// The text of record 0.
pub fn encode_genesis(header: &Header, genesis: &Genesis) -> Vec<u8> {
    let mut text = Vec::new();
    let info = commit_info(header, &Record::default(), "CREATE TABLE");
    push(&mut text, &Action::CommitInfo(Box::new(info)));
    push(&mut text, &Action::Protocol(genesis.writers.protocol()));
    push(&mut text, &Action::MetaData(Box::new(genesis.meta_data())));
    text
}

/// The text of an ordinary record. `record` has passed [`check`].
pub fn encode(header: &Header, record: &Record) -> Vec<u8> {
    let mut text = Vec::with_capacity(512 + 256 * record.advances.len() + 1024 * record.segments.len());
    push(&mut text, &Action::CommitInfo(Box::new(commit_info(header, record, "WRITE"))));
    for advance in &record.advances {
        push(
            &mut text,
            &Action::Txn(wire::Txn {
                app_id: advance.lane.to_string(),
                version: advance.span.until().as_i64(),
                last_updated: Some(header.timestamp_ms),
            }),
        );
    }
    for segment in &record.segments {
        push(&mut text, &Action::Add(Box::new(add(segment))));
    }
    text
}

pub(super) fn push(text: &mut Vec<u8>, action: &Action) {
    serde_json::to_writer(&mut *text, action).expect("plain data always serialises");
    text.push(b'\n');
}

fn commit_info(header: &Header, record: &Record, operation: &str) -> wire::CommitInfo {
    let advances = || record.advances.iter().enumerate();
    wire::CommitInfo {
        timestamp: header.timestamp_ms,
        operation: operation.to_owned(),
        operation_parameters: BTreeMap::new(),
        is_blind_append: true,
        engine_info: header.engine.clone(),
        txn_id: header.txn_id.clone(),
        tapedeck: Some(wire::Tapedeck {
            v: FORMAT,
            writer: header.writer.clone(),
            lanes: advances().map(|(_, advance)| advance.lane.to_string()).collect(),
            advance: advances()
                .map(|(lane, a)| (lane, a.expected.map(|at| at.get()), a.span.from().get(), a.span.until().get(), a.rows))
                .collect(),
            skipped: advances().filter(|(_, a)| a.skipped > 0).map(|(lane, a)| (lane, a.skipped)).collect(),
            gaps: advances()
                .filter_map(|(lane, a)| Some((lane, a.span, a.gap?)))
                .map(|(lane, span, cause)| (lane, span.from().get(), span.until().get(), cause.as_str().to_owned()))
                .collect(),
            sweep: Vec::new(),
            prev: header.prev.clone(),
        }),
    }
}

/// As [`commit_info`], for a record in which no lane advances.
pub(super) fn rewrite_info(header: &Header, rewrite: &Rewrite) -> wire::CommitInfo {
    let info = commit_info(header, &Record::default(), rewrite.operation.as_str());
    let tapedeck = info.tapedeck.map(|tapedeck| wire::Tapedeck { sweep: rewrite.sweep.clone(), ..tapedeck });
    wire::CommitInfo { is_blind_append: false, tapedeck, ..info }
}

pub(super) fn add(segment: &SegmentRef) -> wire::Add {
    let stats = serde_json::to_string(&stats(segment)).expect("plain data always serialises");
    wire::Add {
        path: segment.path.clone(),
        partition_values: partition_values(segment),
        size: segment.size,
        modification_time: segment.modified.millis_floor(),
        data_change: true,
        stats,
        tags: tags(segment),
        deletion_vector: None,
    }
}

pub(super) fn partition_values(segment: &SegmentRef) -> wire::PartitionValues {
    wire::PartitionValues {
        topic: segment.topic.to_string(),
        date: segment.window.date(),
        hour: segment.window.hour().to_string(),
    }
}

pub(super) fn tags(segment: &SegmentRef) -> wire::Tags {
    let joined = |text: &dyn Fn(&SegmentLane) -> String| segment.lanes.iter().map(text).collect::<Vec<_>>().join(";");
    wire::Tags {
        source: segment.source.to_string(),
        lanes: joined(&|lane| format!("{}:{}-{}:{}", lane.partition, lane.first, lane.last, lane.rows)),
        blake3: segment.blake3.clone(),
        payload_bytes: joined(&|lane| format!("{}:{}", lane.partition, lane.payload_bytes)),
    }
}

/// The statistics of a segment: the outermost of its lanes, times rounded outwards.
pub(super) fn stats(segment: &SegmentRef) -> wire::Stats {
    let lanes = &segment.lanes;
    let bounds = |time: Option<String>, partition: Option<i32>, offset: Option<u64>| wire::Bounds {
        event_time: time,
        source_partition: partition.unwrap_or_default(),
        source_offset: offset.unwrap_or_default(),
    };
    let (from, until) = time_bounds_ms(segment);
    wire::Stats {
        num_records: segment.rows,
        min_values: bounds(
            Some(iso_millis(from)),
            lanes.iter().map(|lane| lane.partition).min(),
            lanes.iter().map(|lane| lane.first.get()).min(),
        ),
        max_values: bounds(
            until.map(iso_millis),
            lanes.iter().map(|lane| lane.partition).max(),
            lanes.iter().map(|lane| lane.last.get()).max(),
        ),
        null_count: wire::NullCounts {
            event_time: 0,
            source_partition: 0,
            source_offset: 0,
            key: segment.null_keys,
            value: segment.null_values,
        },
    }
}

/// The event times in milliseconds, rounded outwards. The last millisecond of year 9999 would round up out of every calendar,
/// so there is no upper bound then; engines read the file, which is always right.
pub(crate) fn time_bounds_ms(segment: &SegmentRef) -> (i64, Option<i64>) {
    let until = segment.times.1.millis_ceil();
    (segment.times.0.millis_floor(), (until < Timestamp::CALENDAR_END.millis_floor()).then_some(until))
}

/// As Delta writes times in statistics: always three digits of a second.
fn iso_millis(millis: i64) -> String {
    let text = Timestamp::from_millis(millis).unwrap_or_default().to_string();
    if text.contains('.') { text } else { text.replace('Z', ".000Z") }
}

/// Refuses a record that would break the tiling of its lanes or whose segments do not hold exactly its rows.
pub fn check(record: &Record) -> Result<(), RecordError> {
    check_advances(record).and_then(|()| check_segments(record)).map_err(RecordError::Broken)
}

pub(super) fn check_advances(record: &Record) -> Result<(), String> {
    let mut lanes = BTreeSet::new();
    for advance in &record.advances {
        let (lane, span) = (&advance.lane, advance.span);
        if !lanes.insert(lane) {
            return Err(format!("lane {lane} advances twice"));
        }
        match advance.expected {
            None if !span.is_empty() || advance.gap.is_some() => {
                return Err(format!("lane {lane} is new, so its start record must be empty, not {span}"));
            }
            Some(expected) if expected != span.from() || span.is_empty() => {
                return Err(format!("lane {lane} is expected at {expected} but advances over {span}"));
            }
            _ => {}
        }
        let events = advance.rows.saturating_add(advance.skipped);
        if events > span.len() || (advance.gap.is_some() && events > 0) {
            return Err(format!("lane {lane} claims {events} events in {span}"));
        }
    }
    Ok(())
}

fn check_segments(record: &Record) -> Result<(), String> {
    let mut filled: BTreeMap<&LaneId, (&Advance, u64)> =
        record.advances.iter().map(|advance| (&advance.lane, (advance, 0))).collect();
    let mut paths = BTreeSet::new();
    for segment in &record.segments {
        let path = &segment.path;
        if !paths.insert(path) {
            return Err(format!("segment {path} is added twice"));
        }
        check_segment(segment)?;
        for part in &segment.lanes {
            let lane = LaneId::new(segment.source.clone(), part.partition);
            let entry = filled.get_mut(&lane);
            let covered = |advance: &Advance| advance.span.contains(part.first) && advance.span.contains(part.last);
            match entry.filter(|(advance, _)| covered(advance)) {
                Some((_, rows)) => *rows = rows.saturating_add(part.rows),
                None => {
                    return Err(format!("segment {path} holds {}-{} of lane {lane}, outside its span", part.first, part.last));
                }
            }
        }
    }
    match filled.values().find(|(advance, found)| advance.rows != *found) {
        Some((advance, found)) => Err(format!("lane {} claims {} rows, its segments hold {found}", advance.lane, advance.rows)),
        None => Ok(()),
    }
}

/// What must hold within one segment, whatever record it stands in.
pub(super) fn check_segment(segment: &SegmentRef) -> Result<(), String> {
    let rows = segment.lanes.iter().fold(0_u64, |rows, lane| rows.saturating_add(lane.rows));
    if rows != segment.rows || segment.lanes.is_empty() {
        return Err(format!("segment {} has {} rows, its lanes {rows}", segment.path, segment.rows));
    }
    for lane in &segment.lanes {
        let room = lane.last.get().checked_sub(lane.first.get()).map(|distance| distance + 1);
        if room.is_none_or(|room| lane.rows == 0 || lane.rows > room) {
            return Err(format!("segment {} has {} rows in {}-{}", segment.path, lane.rows, lane.first, lane.last));
        }
    }
    Ok(())
}
