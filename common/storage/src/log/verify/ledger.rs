//! Follows the records one by one and notes what does not fit, without ever stopping.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use object_store::path::Path;
use tapedeck_common::commit::{Advance, Checkpoint, SegmentRef, StaleLane};
use tapedeck_common::{LaneId, Position, Window};

use super::{Finding, FindingKind, GapReport, LaneReport, about};
use crate::log::record::{self, LogRecord, RecordError};
use crate::log::tail::LogReader;

/// What the records up to now add up to.
pub(super) struct Ledger<'a> {
    reader: &'a LogReader,
    next: u64,
    /// The hash of the record before; `None` if that was missing.
    prev: Option<String>,
    txn_ids: BTreeSet<String>,
    pub(super) lanes: BTreeMap<LaneId, LaneTally>,
    /// Live segments by path, with the record that added them.
    pub(super) live: BTreeMap<String, (u64, SegmentRef)>,
    gone: BTreeSet<String>,
    /// Hours of topics with segments that hold rows of several records.
    pub(super) rewritten: BTreeSet<Hour>,
    pub(super) findings: Vec<Finding>,
}

/// One hour of one topic.
pub(super) type Hour = (Window, Arc<str>);

pub(super) fn hour_of(segment: &SegmentRef) -> Hour {
    (segment.window, Arc::clone(&segment.topic))
}

/// The rows that a record moves, per hour and lane: what it takes must be what it gives.
#[derive(Debug, Default)]
struct Balance(BTreeMap<(Hour, LaneId), Held>);

/// Rows and payload bytes, and the outermost positions.
#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    taken: (u64, u64),
    given: (u64, u64),
    taken_ends: Option<(Position, Position)>,
    given_ends: Option<(Position, Position)>,
}

impl Balance {
    fn out(&mut self, segment: &SegmentRef) {
        self.count(segment, |held| (&mut held.taken, &mut held.taken_ends));
    }

    fn back(&mut self, segment: &SegmentRef) {
        self.count(segment, |held| (&mut held.given, &mut held.given_ends));
    }

    fn count(&mut self, segment: &SegmentRef, side: impl Fn(&mut Held) -> (&mut (u64, u64), &mut Option<(Position, Position)>)) {
        for part in &segment.lanes {
            let lane = LaneId::new(Arc::clone(&segment.source), part.partition);
            let (sums, ends) = side(self.0.entry((hour_of(segment), lane)).or_default());
            *sums = (sums.0 + part.rows, sums.1 + part.payload_bytes);
            let (first, last) = ends.unwrap_or((part.first, part.last));
            *ends = Some((first.min(part.first), last.max(part.last)));
        }
    }

    fn is_even(&self) -> bool {
        self.0.values().all(|held| held.taken == held.given && held.taken_ends == held.given_ends)
    }
}

/// What the records say of one lane.
#[derive(Debug, Default)]
pub(super) struct LaneTally {
    from: Position,
    next: Position,
    covered: u64,
    rows: u64,
    skipped: u64,
    lost: u64,
    expired: u64,
    gaps: Vec<GapReport>,
}

impl LaneTally {
    pub(super) fn report(self, lane: &LaneId) -> LaneReport {
        LaneReport {
            lane: lane.to_string(),
            from: self.from.get(),
            next: self.next.get(),
            rows: self.rows,
            skipped: self.skipped,
            lost: self.lost,
            expired: self.expired,
            empty: self.covered.saturating_sub(self.rows + self.skipped + self.lost),
            gaps: self.gaps,
        }
    }
}

impl<'a> Ledger<'a> {
    pub(super) fn new(reader: &'a LogReader) -> Self {
        Self {
            reader,
            next: 0,
            prev: None,
            txn_ids: BTreeSet::new(),
            lanes: BTreeMap::new(),
            live: BTreeMap::new(),
            gone: BTreeSet::new(),
            rewritten: BTreeSet::new(),
            findings: Vec::new(),
        }
    }

    /// Takes the next record's bytes, `None` if it is missing, and answers its number.
    pub(super) fn take(&mut self, body: Option<&[u8]>) -> u64 {
        let version = self.next;
        self.next += 1;
        let Some(body) = body else {
            self.prev = None;
            let text = "it is missing, although the log holds more";
            self.find(FindingKind::Hole, &self.reader.paths.record(version), text);
            return version;
        };
        match record::decode(body) {
            Ok(read) => self.apply(version, &read),
            Err(error) => self.find_error(version, &error),
        }
        self.prev = Some(record::hash(body));
        version
    }

    pub(super) fn positions(&self) -> Checkpoint {
        self.lanes.iter().map(|(lane, tally)| (lane.clone(), tally.next)).collect()
    }

    /// Segments of one record stand together, in the log's order.
    pub(super) fn live_in_commit_order(&self) -> Vec<(u64, SegmentRef)> {
        let mut live: Vec<_> = self.live.values().cloned().collect();
        live.sort_by(|a, b| (a.0, &a.1.path).cmp(&(b.0, &b.1.path)));
        live
    }

    pub(super) fn find(&mut self, kind: FindingKind, key: &Path, text: impl Into<String>) {
        let table = self.reader.table.clone();
        self.findings.push(Finding { kind, table, object: key.to_string(), text: text.into() });
    }

    fn find_in(&mut self, kind: FindingKind, version: u64, text: impl Into<String>) {
        self.find(kind, &self.reader.paths.record(version), text);
    }

    fn find_error(&mut self, version: u64, error: &RecordError) {
        self.find_in(FindingKind::Record, version, error.to_string());
    }

    fn apply(&mut self, version: u64, read: &LogRecord) {
        let known = version == 0 || self.prev.is_some();
        if known && read.header.prev != self.prev {
            self.find_in(FindingKind::Chain, version, "it does not name the record before it: one of the two was changed");
        }
        if read.genesis.is_some() != (version == 0) {
            self.find_in(FindingKind::Record, version, "protocol and metaData belong into record 0, and only there");
        }
        if !self.txn_ids.insert(read.header.txn_id.clone()) {
            self.find_in(FindingKind::Record, version, format!("the id {} occurs twice", read.header.txn_id));
        }
        for advance in &read.record.advances {
            self.advance(version, advance);
        }
        let mut moved = Balance::default();
        for removed in &read.removes {
            match self.live.remove(&removed.path) {
                None => self.find_in(FindingKind::Segment, version, format!("it removes {}, which is not live", removed.path)),
                Some((_, segment)) if removed.data_change => self.expire(&segment),
                Some((_, segment)) => moved.out(&segment),
            }
            self.gone.insert(removed.path.clone());
        }
        if read.rewrite {
            read.record.segments.iter().for_each(|segment| moved.back(segment));
            if !moved.is_even() {
                self.find_in(FindingKind::Rows, version, "the segments that it adds hold other rows than those that it removes");
            }
            self.rewritten.extend(read.record.segments.iter().map(hour_of));
        }
        for added in &read.record.segments {
            let twice = self.live.insert(added.path.clone(), (version, added.clone())).is_some();
            if twice || self.gone.contains(&added.path) {
                let table = self.reader.table.clone();
                self.findings.push(about(FindingKind::Segment, &table, &added.path, format!("record {version} adds it again")));
            }
        }
    }

    fn expire(&mut self, segment: &SegmentRef) {
        for part in &segment.lanes {
            let lane = LaneId::new(Arc::clone(&segment.source), part.partition);
            self.lanes.entry(lane).or_default().expired += part.rows;
        }
    }

    /// What was archived and has not expired is live: compaction neither loses rows nor makes some.
    pub(super) fn check_rows(&mut self) {
        let mut live: BTreeMap<LaneId, u64> = BTreeMap::new();
        for (_, segment) in self.live.values() {
            for part in &segment.lanes {
                *live.entry(LaneId::new(Arc::clone(&segment.source), part.partition)).or_default() += part.rows;
            }
        }
        let mut wrong = Vec::new();
        for (lane, tally) in &self.lanes {
            let (held, wanted) = (live.get(lane).copied().unwrap_or(0), tally.rows.saturating_sub(tally.expired));
            if held != wanted {
                wrong.push(format!("lane {lane}: its live segments hold {held} rows where the records leave {wanted}"));
            }
        }
        for text in wrong {
            self.find(FindingKind::Rows, &self.reader.paths.record(self.next.saturating_sub(1)), text);
        }
    }

    fn advance(&mut self, version: u64, advance: &Advance) {
        let found = self.lanes.get(&advance.lane).map(|tally| tally.next);
        if found != advance.expected {
            let stale = StaleLane { lane: advance.lane.clone(), expected: advance.expected, found };
            self.find_in(FindingKind::Tiling, version, format!("its spans do not tile: {stale}"));
        }
        let span = advance.span;
        let begun = || LaneTally { from: span.from(), ..LaneTally::default() };
        let tally = self.lanes.entry(advance.lane.clone()).or_insert_with(begun);
        tally.next = span.until();
        tally.covered += span.len();
        tally.rows += advance.rows;
        tally.skipped += advance.skipped;
        if let Some(cause) = advance.gap {
            let (from, until) = (span.from().get(), span.until().get());
            tally.lost += span.len();
            tally.gaps.push(GapReport { from, until, cause: cause.as_str(), version });
        }
    }
}
