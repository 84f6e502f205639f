//! Reads a record, strictly: an action, feature or column that is not ours stops the reader instead of being passed over.
//!
//! Promises: whatever decodes is whole and agrees with itself. Never: panics, whatever the bytes.

use std::sync::Arc;

use tapedeck_common::commit::{Advance, GapCause, Record, SegmentLane, SegmentRef};
use tapedeck_common::{LaneId, Position, Span, Timestamp, Window};

use super::genesis::Genesis;
use super::record::{self, FORMAT, Header, LogRecord, RecordError, Removed};
use super::wire::{self, Action};
use crate::layout;

/// Reads the bytes of one record.
pub fn decode(bytes: &[u8]) -> Result<LogRecord, RecordError> {
    let mut lines = Lines::default();
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        lines.take(action(line)?)?;
    }
    if bytes.last() != Some(&b'\n') {
        return Err(unreadable("its last line has no end"));
    }
    lines.finish(record::hash(bytes))
}

fn unreadable(what: impl Into<String>) -> RecordError {
    RecordError::Unreadable(what.into())
}

fn action(line: &[u8]) -> Result<Action, RecordError> {
    const KNOWN: [&str; 6] = ["commitInfo", "protocol", "metaData", "txn", "remove", "add"];
    serde_json::from_slice(line).map_err(|error| {
        let object: Option<serde_json::Map<String, serde_json::Value>> = serde_json::from_slice(line).ok();
        match object.iter().flat_map(|object| object.keys()).find(|key| !KNOWN.contains(&key.as_str())) {
            Some(unknown) => RecordError::foreign(format!("the action {unknown}")),
            None => unreadable(error.to_string()),
        }
    })
}

#[derive(Default)]
struct Lines {
    info: Option<wire::CommitInfo>,
    protocol: Option<wire::Protocol>,
    meta: Option<wire::MetaData>,
    txns: Vec<wire::Txn>,
    removes: Vec<Removed>,
    segments: Vec<SegmentRef>,
    /// Whether some segment holds rows that are new, and whether some holds rows that were there before.
    adds_new: bool,
    adds_moved: bool,
}

impl Lines {
    fn take(&mut self, action: Action) -> Result<(), RecordError> {
        let twice = match action {
            Action::CommitInfo(info) => self.info.replace(*info).is_some(),
            Action::Protocol(protocol) => self.protocol.replace(protocol).is_some(),
            Action::MetaData(meta) => self.meta.replace(*meta).is_some(),
            Action::Txn(txn) => {
                self.txns.push(txn);
                false
            }
            Action::Remove(remove) => {
                self.removes.push(removed(remove));
                false
            }
            Action::Add(add) => {
                self.adds_new |= add.data_change;
                self.adds_moved |= !add.data_change;
                self.segments.push(segment(&add)?);
                false
            }
        };
        if twice { Err(unreadable("an action that may stand there once stands there twice")) } else { Ok(()) }
    }

    fn finish(self, hash: String) -> Result<LogRecord, RecordError> {
        let info = self.info.ok_or_else(|| unreadable("it has no commitInfo"))?;
        let ours = info.tapedeck.ok_or_else(|| RecordError::foreign(format!("a commit by {:?}", info.engine_info)))?;
        if ours.v != FORMAT {
            return Err(RecordError::foreign(format!("a record of format {}", ours.v)));
        }
        let genesis = match (&self.protocol, &self.meta) {
            (Some(protocol), Some(meta)) => Some(Genesis::from_wire(protocol, meta)?),
            (None, None) => None,
            _ => return Err(RecordError::foreign("a change of protocol or metaData")),
        };
        let mut named = self.removes.iter().map(|removed| &removed.path).chain(&ours.sweep);
        if let Some(path) = named.find(|path| !layout::is_segment_path(path)) {
            return Err(unreadable(format!("{path:?} is no path of a segment")));
        }
        let record = Record { advances: advances(&ours)?, segments: self.segments };
        check_txns(&record, &self.txns)?;
        let rewrite = self.adds_moved || !self.removes.is_empty() || !ours.sweep.is_empty();
        if !rewrite {
            record::check(&record)?;
        } else if self.adds_new || !record.advances.is_empty() {
            return Err(RecordError::Broken("it archives events and rewrites others at once".to_owned()));
        }
        Ok(LogRecord {
            header: Header {
                timestamp_ms: info.timestamp,
                engine: info.engine_info,
                writer: ours.writer,
                txn_id: info.txn_id,
                prev: ours.prev,
            },
            record,
            removes: self.removes,
            sweep: ours.sweep,
            genesis,
            rewrite,
            hash,
        })
    }
}

fn check_txns(record: &Record, txns: &[wire::Txn]) -> Result<(), RecordError> {
    let told = txns.iter().map(|txn| (txn.app_id.clone(), txn.version));
    let meant = record.advances.iter().map(|advance| (advance.lane.to_string(), advance.span.until().as_i64()));
    if told.eq(meant) { Ok(()) } else { Err(RecordError::Broken("its txn lines do not say what its advances say".to_owned())) }
}

fn advances(ours: &wire::Tapedeck) -> Result<Vec<Advance>, RecordError> {
    let lane = |number: usize| {
        let text = ours.lanes.get(number).ok_or_else(|| unreadable(format!("there is no lane {number}")))?;
        LaneId::parse(text).ok_or_else(|| unreadable(format!("{text:?} is no lane")))
    };
    let mut advances = Vec::with_capacity(ours.advance.len());
    for (at, (number, expected, from, until, rows)) in ours.advance.iter().copied().enumerate() {
        if number != at {
            return Err(unreadable("its lanes and its advances stand in different order"));
        }
        let expected = expected.map(position).transpose()?;
        advances.push(Advance { lane: lane(number)?, expected, span: span(from, until)?, rows, skipped: 0, gap: None });
    }
    let unknown = || unreadable("a lane that does not advance");
    for (number, events) in &ours.skipped {
        advances.get_mut(*number).ok_or_else(unknown)?.skipped = *events;
    }
    for (number, from, until, cause) in &ours.gaps {
        let advance = advances.get_mut(*number).ok_or_else(unknown)?;
        let cause = GapCause::parse(cause).ok_or_else(|| RecordError::foreign(format!("the gap cause {cause:?}")))?;
        if advance.span != span(*from, *until)? {
            return Err(RecordError::Broken(format!("the gap [{from}, {until}) is not the whole step of its lane")));
        }
        advance.gap = Some(cause);
    }
    Ok(advances)
}

fn position(number: u64) -> Result<Position, RecordError> {
    let fits = i64::try_from(number).is_ok_and(|number| number < i64::MAX);
    if fits { Ok(Position::new(number)) } else { Err(unreadable(format!("{number} is no position"))) }
}

fn span(from: u64, until: u64) -> Result<Span, RecordError> {
    Span::new(position(from)?, position(until)?).map_err(|error| unreadable(error.to_string()))
}

fn removed(remove: wire::Remove) -> Removed {
    Removed { path: remove.path, at_ms: remove.deletion_timestamp.unwrap_or_default(), data_change: remove.data_change }
}

/// A segment out of an add line. The true event times were rounded outwards to milliseconds.
pub(super) fn segment(add: &wire::Add) -> Result<SegmentRef, RecordError> {
    if add.deletion_vector.as_ref().is_some_and(|vector| !vector.is_null()) {
        return Err(RecordError::foreign("a deletion vector"));
    }
    let wrong = |what: &str| unreadable(format!("segment {}: {what}", add.path));
    if !layout::is_segment_path(&add.path) {
        return Err(wrong("that is no path"));
    }
    let stats: wire::Stats = serde_json::from_str(&add.stats).map_err(|error| wrong(&format!("stats: {error}")))?;
    let values = &add.partition_values;
    let window = hour_of(&values.date, &values.hour).ok_or_else(|| wrong("date and hour are no hour"))?;
    let bound = |text: &Option<String>, absent: Timestamp| match text {
        Some(text) => parse_iso(text).ok_or_else(|| wrong("a bound of event_time is no time")),
        None => Ok(absent),
    };
    let last_moment = Timestamp::from_micros(window.end().micros() - 1);
    let segment = SegmentRef {
        path: add.path.clone(),
        source: Arc::from(add.tags.source.as_str()),
        topic: Arc::from(values.topic.as_str()),
        window,
        rows: stats.num_records,
        size: add.size,
        blake3: add.tags.blake3.clone(),
        modified: Timestamp::from_millis(add.modification_time).ok_or_else(|| wrong("modificationTime is no time"))?,
        times: (bound(&stats.min_values.event_time, window.start())?, bound(&stats.max_values.event_time, last_moment)?),
        null_keys: stats.null_count.key,
        null_values: stats.null_count.value,
        lanes: lanes(&add.tags).ok_or_else(|| wrong("its lanes cannot be read"))?,
    };
    record::check_segment(&segment).map_err(RecordError::Broken)?;
    if !same_places(&stats, &segment.lanes) {
        return Err(RecordError::Broken(format!("segment {}: its statistics do not say what its lanes say", segment.path)));
    }
    Ok(segment)
}

/// Outside engines leave out files by these; what our own readers go by stands in the tags.
fn same_places(said: &wire::Stats, lanes: &[SegmentLane]) -> bool {
    let (min, max, nulls) = (&said.min_values, &said.max_values, &said.null_count);
    let partitions = || lanes.iter().map(|lane| lane.partition);
    Some(min.source_partition) == partitions().min()
        && Some(max.source_partition) == partitions().max()
        && Some(min.source_offset) == lanes.iter().map(|lane| lane.first.get()).min()
        && Some(max.source_offset) == lanes.iter().map(|lane| lane.last.get()).max()
        && (nulls.event_time, nulls.source_partition, nulls.source_offset) == (0, 0, 0)
}

fn lanes(tags: &wire::Tags) -> Option<Vec<SegmentLane>> {
    let mut bytes = tags.payload_bytes.split(';');
    let mut lanes = Vec::new();
    for text in tags.lanes.split(';') {
        let (partition, rest) = text.split_once(':')?;
        let (first, rest) = rest.split_once('-')?;
        let (last, rows) = rest.split_once(':')?;
        let (same_partition, payload_bytes) = bytes.next()?.split_once(':')?;
        (partition == same_partition).then_some(())?;
        lanes.push(SegmentLane {
            partition: partition.parse().ok()?,
            first: position(first.parse().ok()?).ok()?,
            last: position(last.parse().ok()?).ok()?,
            rows: rows.parse().ok()?,
            payload_bytes: payload_bytes.parse().ok()?,
        });
    }
    bytes.next().is_none().then_some(lanes)
}

/// Only four-digit years: anything longer would overflow a calendar's arithmetic.
fn hour_of(date: &str, hour: &str) -> Option<Window> {
    (date.len() == 10).then(|| Window::parse(date, hour))?
}

/// The one form of time that we write into statistics: `YYYY-MM-DDTHH:MM:SS.mmmZ`.
pub(super) fn parse_iso(text: &str) -> Option<Timestamp> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (clock, millis) = time.split_once('.')?;
    let mut parts = clock.split(':');
    let hour = hour_of(date, parts.next()?)?;
    let mut sixty = || parts.next()?.parse::<i64>().ok().filter(|number| (0..60).contains(number));
    let (minute, second) = (sixty()?, sixty()?);
    let millis = millis.parse::<i64>().ok().filter(|number| millis.len() == 3 && (0..1000).contains(number))?;
    let into_hour = (minute * 60 + second) * 1_000_000 + millis * 1_000;
    parts.next().is_none().then(|| Timestamp::from_micros(hour.start().micros() + into_hour))
}
