//! What a log means: the state that follows from applying its records one by one.
//!
//! Promises: [`LogState::apply`] accepts a record only if it is the very next one of this chain and every lane moves on from
//! where it stood (I1, I2). Pure: no store, no clock. Never: half applies a record.

use std::collections::{BTreeMap, BTreeSet};

use tapedeck_common::commit::{Advance, Checkpoint, Record, SegmentRef, StaleLane};
use tapedeck_common::{LaneId, Position, Timestamp};

use super::genesis::Genesis;
use super::record::{LogRecord, RecordError, Removed};
use super::rewrite::Rewrite;

/// The newest record that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tip {
    /// Its number.
    pub version: u64,
    /// The BLAKE3 of its bytes, which the next record must name.
    pub hash: String,
    /// When it was written, by its writer's clock.
    pub at: Timestamp,
}

/// A segment that is part of the table now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveSegment {
    /// The segment.
    pub segment: SegmentRef,
    /// The record that made it true; `None` if it was read from a checkpoint, which does not tell.
    pub version: Option<u64>,
}

/// What readers need and writers never read: the segments.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Segments {
    /// The live ones, by path.
    pub live: BTreeMap<String, LiveSegment>,
    /// The removed ones, by path, until they are cleaned up.
    pub removed: BTreeMap<String, Removed>,
    /// Of those, the ones that only the checkpoint below knows as live. `None` where there is none below: then all are here.
    pub(super) below: Option<BTreeSet<String>>,
}

impl Segments {
    /// What records change over a checkpoint, whose own segments stay where they are.
    pub(super) fn above_checkpoint() -> Self {
        Self { below: Some(BTreeSet::new()), ..Self::default() }
    }

    /// One more live segment, as a checkpoint tells of it.
    pub(super) fn add(&mut self, segment: SegmentRef) {
        self.live.insert(segment.path.clone(), LiveSegment { segment, version: None });
    }

    /// How many there are, live and removed.
    pub(super) fn changes(&self) -> usize {
        self.live.len() + self.removed.len()
    }

    /// True if `path` may be taken out: it is here, or may be in the checkpoint below.
    fn may_remove(&self, path: &str) -> bool {
        self.live.contains_key(path) || (self.below.is_some() && !self.removed.contains_key(path))
    }

    fn check(&self, record: &LogRecord) -> Result<(), String> {
        let known = |path: &String| self.live.contains_key(path) || self.removed.contains_key(path);
        if let Some(added) = record.record.segments.iter().find(|added| known(&added.path)) {
            return Err(format!("it adds {} a second time", added.path));
        }
        let mut seen = BTreeSet::new();
        let mut wrong = |removed: &Removed| !self.may_remove(&removed.path) || !seen.insert(removed.path.clone());
        match record.removes.iter().find(|removed| wrong(removed)) {
            Some(removed) => Err(format!("it removes {}, which is not live", removed.path)),
            None => Ok(()),
        }
    }

    fn apply(&mut self, version: u64, record: &LogRecord) {
        for removed in &record.removes {
            let known = self.live.remove(&removed.path).is_some();
            if let Some(below) = self.below.as_mut().filter(|_| !known) {
                below.insert(removed.path.clone());
            }
            self.removed.insert(removed.path.clone(), removed.clone());
        }
        for added in &record.record.segments {
            let live = LiveSegment { segment: added.clone(), version: Some(version) };
            self.live.insert(added.path.clone(), live);
        }
    }
}

/// What has become of a watched path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// No record names it.
    Unknown,
    Live,
    Removed,
}

/// The state of one table's log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogState {
    tip: Option<Tip>,
    genesis: Option<Genesis>,
    positions: Checkpoint,
    last_updated_ms: BTreeMap<LaneId, i64>,
    swept: BTreeSet<String>,
    segments: Option<Segments>,
    watched: BTreeMap<String, Standing>,
}

impl LogState {
    /// Before record 0, for a writer.
    pub fn for_writer() -> Self {
        Self::default()
    }

    /// Before record 0, for a reader.
    pub fn for_reader() -> Self {
        Self { segments: Some(Segments::default()), ..Self::default() }
    }

    /// The state that a checkpoint tells. `tip` is the record that it stands at; `segments` are none for a writer, and what
    /// changes from here on for a reader.
    pub(super) fn from_checkpoint(
        tip: Tip,
        genesis: Genesis,
        lanes: impl IntoIterator<Item = (LaneId, Position, i64)>,
        segments: Option<Segments>,
    ) -> Self {
        let mut state = Self { tip: Some(tip), genesis: Some(genesis), segments, ..Self::default() };
        for (lane, next, updated_ms) in lanes {
            state.last_updated_ms.insert(lane.clone(), updated_ms);
            state.positions.insert(lane, next);
        }
        state
    }

    /// The newest record, `None` before record 0.
    pub fn tip(&self) -> Option<&Tip> {
        self.tip.as_ref()
    }

    /// The number that the next record gets.
    pub fn next_version(&self) -> u64 {
        self.tip.as_ref().map_or(0, |tip| tip.version + 1)
    }

    /// What record 0 says, once it was applied.
    pub fn genesis(&self) -> Option<&Genesis> {
        self.genesis.as_ref()
    }

    /// Where each lane stands.
    pub fn positions(&self) -> &Checkpoint {
        &self.positions
    }

    /// When each lane last moved, in milliseconds since 1970 UTC.
    pub(super) fn last_updated_ms(&self) -> &BTreeMap<LaneId, i64> {
        &self.last_updated_ms
    }

    /// The segments; `None` for a writer.
    pub fn segments(&self) -> Option<&Segments> {
        self.segments.as_ref()
    }

    /// Follows from now on what becomes of these paths, and of no others: of segments that are live at the tip, and of files that
    /// no record up to the tip names. What a rewrite may touch must be watched, so that it can be fenced without knowing all segments.
    pub fn watch(&mut self, live: impl IntoIterator<Item = String>, unknown: impl IntoIterator<Item = String>) {
        let live = live.into_iter().map(|path| (path, Standing::Live));
        self.watched = live.chain(unknown.into_iter().map(|path| (path, Standing::Unknown))).collect();
    }

    /// The paths of `rewrite` that do not stand where it wants them, or are not watched.
    pub fn fence_rewrite(&self, rewrite: &Rewrite) -> Vec<String> {
        let stands = |path: &String, wanted: Standing| self.watched.get(path) == Some(&wanted);
        let removes = rewrite.removes.iter().filter(|path| !stands(path, Standing::Live));
        let sweep = rewrite.sweep.iter().filter(|path| !stands(path, Standing::Unknown));
        let swept = rewrite.adds.iter().map(|segment| &segment.path).filter(|path| self.swept.contains(*path));
        removes.chain(sweep).chain(swept).cloned().collect()
    }

    /// Takes the segments away from here; afterwards this is a state for a writer.
    pub(super) fn take_segments(&mut self) -> Option<Segments> {
        self.segments.take()
    }

    /// Applies the next record.
    pub fn apply(&mut self, record: &LogRecord) -> Result<(), RecordError> {
        let version = self.next_version();
        let prev = self.tip.as_ref().map(|tip| tip.hash.as_str());
        if record.header.prev.as_deref() != prev {
            return Err(broken(version, "it does not name the record before it: the chain is cut, forged or swapped"));
        }
        if record.genesis.is_some() != (version == 0) {
            return Err(RecordError::foreign("protocol and metaData anywhere but in record 0"));
        }
        for advance in &record.record.advances {
            self.check_advance(version, advance)?;
        }
        self.apply_segments(version, record)?;
        for advance in &record.record.advances {
            self.positions.insert(advance.lane.clone(), advance.span.until());
            self.last_updated_ms.insert(advance.lane.clone(), record.header.timestamp_ms);
        }
        self.swept.extend(record.sweep.iter().cloned());
        if let Some(genesis) = &record.genesis {
            self.genesis = Some(genesis.clone());
        }
        let at = Timestamp::from_millis(record.header.timestamp_ms).unwrap_or_default();
        self.tip = Some(Tip { version, hash: record.hash.clone(), at });
        Ok(())
    }

    fn check_advance(&self, version: u64, advance: &Advance) -> Result<(), RecordError> {
        let stands = self.positions.get(&advance.lane).copied();
        if stands == advance.expected {
            return Ok(());
        }
        let stale = StaleLane { lane: advance.lane.clone(), expected: advance.expected, found: stands };
        Err(broken(version, &format!("its spans do not tile: {stale}")))
    }

    fn apply_segments(&mut self, version: u64, record: &LogRecord) -> Result<(), RecordError> {
        let swept = record.record.segments.iter().find(|segment| self.swept.contains(&segment.path));
        if let Some(segment) = swept {
            return Err(broken(version, &format!("it adds {}, which was swept", segment.path)));
        }
        let removed = record.removes.iter().map(|removed| (&removed.path, Standing::Removed));
        let added = record.record.segments.iter().map(|segment| (&segment.path, Standing::Live));
        for (path, standing) in removed.chain(added) {
            if let Some(watched) = self.watched.get_mut(path) {
                *watched = standing;
            }
        }
        let Some(segments) = &mut self.segments else { return Ok(()) };
        segments.check(record).map_err(|what| broken(version, &what))?;
        segments.apply(version, record);
        Ok(())
    }

    /// The lanes of `record` that do not stand where it expects them, and those whose segments were swept (C2).
    pub fn fence(&self, record: &Record) -> Vec<StaleLane> {
        let swept: BTreeSet<LaneId> = record
            .segments
            .iter()
            .filter(|segment| self.swept.contains(&segment.path))
            .flat_map(|segment| segment.lanes.iter().map(|part| LaneId::new(segment.source.clone(), part.partition)))
            .collect();
        record
            .advances
            .iter()
            .map(|a| StaleLane { lane: a.lane.clone(), expected: a.expected, found: self.positions.get(&a.lane).copied() })
            .filter(|lane| lane.found != lane.expected || swept.contains(&lane.lane))
            .collect()
    }
}

fn broken(version: u64, what: &str) -> RecordError {
    RecordError::Broken(format!("record {version}: {what}"))
}
