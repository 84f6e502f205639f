//! What a reader sees: one version of a table, its segments, positions and gaps.
//!
//! Promises: a view is a snapshot that no later commit changes; what is missing is an error, never a shorter list.
//! Commit times stand only in the records, so a view knows them from `history_from` on.

use std::collections::{BTreeMap, BTreeSet};

use tapedeck_common::commit::{Checkpoint, SegmentRef};
use tapedeck_common::error::report;
use tapedeck_common::{ErrorKind, LaneId, Timestamp};
use tracing::warn;

pub use super::notes::GapNote;
use super::record::{LogRecord, Removed};
use super::snapshot::{Above, Snapshot, Start};
use super::state::LiveSegment;
use super::tail::{LogReader, Stop};
use crate::store::{Store, StoreError};

/// One commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitNote {
    /// Its number.
    pub version: u64,
    /// When it was written, by its writer's clock.
    pub at: Timestamp,
    /// Its writer's name.
    pub writer: String,
}

/// How much of a log to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum History {
    /// From the newest checkpoint on: quick, and enough for everything but commits.
    #[default]
    Recent,
    /// Every record: also all commits, and nothing that a checkpoint says.
    Whole,
}

/// A part of a table: the segments of some topics that may hold events of a stretch of time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Slice {
    /// True names of topics; empty means all.
    pub topics: BTreeSet<String>,
    /// Events from this time on.
    pub from: Option<Timestamp>,
    /// Events before this time.
    pub until: Option<Timestamp>,
}

impl Slice {
    /// True if segments of the topic are in it.
    pub fn has_topic(&self, topic: &str) -> bool {
        self.topics.is_empty() || self.topics.contains(topic)
    }

    /// True if the segment is in it.
    pub fn holds(&self, segment: &SegmentRef) -> bool {
        let (first, last) = segment.times;
        self.has_topic(&segment.topic)
            && self.from.is_none_or(|from| last >= from)
            && self.until.is_none_or(|until| first < until)
    }

    fn is_all(&self) -> bool {
        *self == Self::default()
    }
}

/// Takes in one removed segment.
type AddRemoved<'a, T> = dyn Fn(&mut T, &Removed) + Sync + 'a;

/// One version of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableView {
    /// The table's true name.
    pub table: String,
    /// The table's id.
    pub table_id: String,
    /// The newest record that it shows.
    pub version: u64,
    /// When that record was written.
    pub committed_at: Timestamp,
    /// The segments, by hour, topic and path.
    pub segments: Vec<LiveSegment>,
    /// Segments that were taken out and whose files may still lie there, by path. Only a view of the whole table knows them.
    pub removed: BTreeMap<String, Removed>,
    /// Where each lane stands.
    pub positions: Checkpoint,
    /// Gaps, in the log's order.
    pub gaps: Vec<GapNote>,
    /// Events left out by a policy, per lane.
    pub skipped: BTreeMap<LaneId, u64>,
    /// Commits, in the log's order.
    pub commits: Vec<CommitNote>,
    /// The first record that commits were read from.
    pub history_from: u64,
}

impl TableView {
    /// Reads the table at version `at`, or as it is now.
    pub async fn load(store: &Store, table: &str, at: Option<u64>, history: History) -> Result<Self, StoreError> {
        Self::read(store, table, at, history, &Slice::default()).await
    }

    /// Reads the table with the segments of `slice` alone. Of a checkpoint only those row groups are fetched whose statistics
    /// do not rule them out, so this costs what the slice holds and not what the table holds.
    pub async fn load_matching(store: &Store, table: &str, at: Option<u64>, slice: &Slice) -> Result<Self, StoreError> {
        Self::read(store, table, at, History::Recent, slice).await
    }

    /// Everything but segments: where lanes stand, and what is lost.
    pub async fn without_segments(store: &Store, table: &str) -> Result<Self, StoreError> {
        // No event is as late as that, so no segment is read.
        let nothing = Slice { from: Some(Timestamp::CALENDAR_END), ..Slice::default() };
        Self::load_matching(store, table, None, &nothing).await
    }

    /// Adds up all live segments, in no order, in memory that does not grow with the table. The view holds none of them.
    pub async fn tally<T: Send>(
        store: &Store,
        table: &str,
        at: Option<u64>,
        begin: impl Fn() -> T,
        add: impl Fn(&mut T, &SegmentRef) + Sync,
    ) -> Result<(Self, T), StoreError> {
        Self::add_up(store, table, at, begin, add, None).await
    }

    /// As [`Self::tally`], and the removed segments as well.
    pub async fn tally_with_removed<T: Send>(
        store: &Store,
        table: &str,
        at: Option<u64>,
        begin: impl Fn() -> T,
        add: impl Fn(&mut T, &SegmentRef) + Sync,
        add_removed: impl Fn(&mut T, &Removed) + Sync,
    ) -> Result<(Self, T), StoreError> {
        Self::add_up(store, table, at, begin, add, Some(&add_removed)).await
    }

    async fn add_up<T: Send>(
        store: &Store,
        table: &str,
        at: Option<u64>,
        begin: impl Fn() -> T,
        add: impl Fn(&mut T, &SegmentRef) + Sync,
        add_removed: Option<&AddRemoved<'_, T>>,
    ) -> Result<(Self, T), StoreError> {
        let reader = LogReader::new(store, table);
        let mut passed_over = BTreeSet::new();
        loop {
            let Snapshot { base, mut above } = Snapshot::begin(&reader, Start::Checkpoint, at, &mut passed_over).await?;
            let mut commits = Vec::new();
            above.follow(&reader, Stop::at(at), &mut |version, record| commits.push(CommitNote::of(version, record))).await?;
            let mut sum = begin();
            let mut below = above.removed_below();
            let mut take = |segment: SegmentRef| {
                if !below.remove(&segment.path) {
                    add(&mut sum, &segment);
                }
            };
            let visited = match &base {
                Some(base) => base.visit(&reader, &Slice::default(), &mut take).await,
                None => Ok(()),
            };
            let visited = visited.and_then(|()| if below.is_empty() { Ok(()) } else { Err(not_in_it()) });
            let visited = match (&base, add_removed) {
                (Some(base), Some(add)) if visited.is_ok() => {
                    base.visit_removed(&reader, &mut |removed| add(&mut sum, &removed)).await
                }
                _ => visited,
            };
            if let Some(version) = damaged(&reader, base.as_ref().map(|base| base.version), visited)? {
                passed_over.insert(version);
                continue;
            }
            above.segments().live.values().for_each(|live| add(&mut sum, &live.segment));
            if let Some(add) = add_removed {
                above.segments().removed.values().for_each(|removed| add(&mut sum, removed));
            }
            return Ok((Self::of(store, table, above, commits, Vec::new(), BTreeMap::new())?, sum));
        }
    }

    /// Visits the segments that had been removed by version `at`, in no order, and some of them perhaps twice.
    pub async fn visit_removed(
        store: &Store,
        table: &str,
        at: u64,
        mut take: impl FnMut(&Removed) + Send,
    ) -> Result<(), StoreError> {
        let reader = LogReader::new(store, table);
        let mut passed_over = BTreeSet::new();
        loop {
            let Snapshot { base, mut above } = Snapshot::begin(&reader, Start::Checkpoint, Some(at), &mut passed_over).await?;
            above.follow(&reader, Stop::at(Some(at)), &mut |_, _| {}).await?;
            let visited = match &base {
                Some(base) => base.visit_removed(&reader, &mut |removed| take(&removed)).await,
                None => Ok(()),
            };
            if let Some(version) = damaged(&reader, base.as_ref().map(|base| base.version), visited)? {
                passed_over.insert(version);
                continue;
            }
            above.segments().removed.values().for_each(&mut take);
            return Ok(());
        }
    }

    async fn read(store: &Store, table: &str, at: Option<u64>, history: History, slice: &Slice) -> Result<Self, StoreError> {
        let reader = LogReader::new(store, table);
        let start = match history {
            History::Recent => Start::Checkpoint,
            History::Whole => Start::Beginning,
        };
        let mut passed_over = BTreeSet::new();
        loop {
            let Snapshot { base, mut above } = Snapshot::begin(&reader, start, at, &mut passed_over).await?;
            let (mut commits, mut segments) = (Vec::new(), Vec::new());
            let mut seen = |version, record: &LogRecord| commits.push(CommitNote::of(version, record));
            let mut take = |segment| segments.push(LiveSegment { segment, version: None });
            let visit = async {
                match &base {
                    Some(base) => base.visit(&reader, slice, &mut take).await,
                    None => Ok(()),
                }
            };
            let (followed, visited) = futures::join!(above.follow(&reader, Stop::at(at), &mut seen), visit);
            followed?;
            let mut below = above.removed_below();
            segments.retain(|live| !below.remove(&live.segment.path));
            // A slice shows but a part of what was removed.
            let is_whole = below.is_empty() || !slice.is_all();
            let visited = visited.and_then(|()| if is_whole { Ok(()) } else { Err(not_in_it()) });
            let mut removed = BTreeMap::new();
            let visited = match &base {
                Some(base) if slice.is_all() && visited.is_ok() => {
                    let mut take = |one: Removed| drop(removed.insert(one.path.clone(), one));
                    base.visit_removed(&reader, &mut take).await
                }
                _ => visited,
            };
            if let Some(version) = damaged(&reader, base.as_ref().map(|base| base.version), visited)? {
                passed_over.insert(version);
                continue;
            }
            segments.extend(above.segments().live.values().filter(|live| slice.holds(&live.segment)).cloned());
            if slice.is_all() {
                removed.extend(above.segments().removed.clone());
            }
            return Self::of(store, table, above, commits, segments, removed);
        }
    }

    fn of(
        store: &Store,
        table: &str,
        above: Above,
        commits: Vec<CommitNote>,
        mut segments: Vec<LiveSegment>,
        removed: BTreeMap<String, Removed>,
    ) -> Result<Self, StoreError> {
        let (Some(tip), Some(genesis)) = (above.state.tip(), above.state.genesis()) else {
            let what = format!("the archive {} has no table {table}", store.url);
            return Err(StoreError::new(ErrorKind::Invalid, what));
        };
        segments.sort_by(|a, b| order(a).cmp(&order(b)));
        Ok(Self {
            table: genesis.table.clone(),
            table_id: genesis.table_id.clone(),
            version: tip.version,
            committed_at: tip.at,
            segments,
            removed,
            positions: above.state.positions().clone(),
            history_from: commits.first().map_or(tip.version + 1, |commit| commit.version),
            gaps: above.notes.gaps,
            skipped: above.notes.skipped,
            commits,
        })
    }
}

/// The checkpoint to pass over, if one was visited in vain.
fn damaged(reader: &LogReader, version: Option<u64>, visited: Result<(), StoreError>) -> Result<Option<u64>, StoreError> {
    match visited {
        Ok(()) => Ok(None),
        Err(error) if error.kind() == ErrorKind::Corrupt && version.is_some() => {
            warn!(table = %reader.table, version, error = %report(&error), "checkpoint passed over");
            Ok(version)
        }
        Err(error) => Err(error),
    }
}

fn not_in_it() -> StoreError {
    StoreError::new(ErrorKind::Corrupt, "a segment that was removed later is not in it")
}

fn order(live: &LiveSegment) -> (tapedeck_common::Window, &str, &str) {
    (live.segment.window, &live.segment.topic, &live.segment.path)
}

impl CommitNote {
    fn of(version: u64, read: &LogRecord) -> Self {
        let at = Timestamp::from_millis(read.header.timestamp_ms).unwrap_or_default();
        Self { version, at, writer: read.header.writer.clone() }
    }
}
