//! What a reader sees: one version of a table, its segments, positions and gaps.
//!
//! Promises: a view is a snapshot that no later commit changes; what is missing is an error, never a shorter list.
//! Gaps, skipped counts and commit times stand only in the records, so a view knows them from `history_from` on.

use std::collections::BTreeMap;

use tapedeck_common::commit::{Checkpoint, GapCause};
use tapedeck_common::{ErrorKind, LaneId, Span, Timestamp};

use super::record::{LogRecord, Removed};
use super::state::{LiveSegment, LogState};
use super::tail::{LogReader, Start};
use crate::store::{Store, StoreError};

/// Positions that are lost for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GapNote {
    /// The lane.
    pub lane: LaneId,
    /// What is lost.
    pub span: Span,
    /// Why.
    pub cause: GapCause,
    /// The record that says so.
    pub version: u64,
}

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
    /// From the newest checkpoint on: quick, and enough for segments and positions.
    #[default]
    Recent,
    /// Every record: also all gaps, skipped counts and commit times.
    Whole,
}

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
    /// Segments that were taken out and whose files may still lie there, by path.
    pub removed: BTreeMap<String, Removed>,
    /// Where each lane stands.
    pub positions: Checkpoint,
    /// Gaps, in the log's order.
    pub gaps: Vec<GapNote>,
    /// Events left out by a policy, per lane.
    pub skipped: BTreeMap<LaneId, u64>,
    /// Commits, in the log's order.
    pub commits: Vec<CommitNote>,
    /// The first record that gaps, skipped counts and commits were read from.
    pub history_from: u64,
}

impl TableView {
    /// Reads the table at version `at`, or as it is now.
    pub async fn load(store: &Store, table: &str, at: Option<u64>, history: History) -> Result<Self, StoreError> {
        let reader = LogReader::new(store, table);
        let start = match history {
            History::Recent => Start::Checkpoint,
            History::Whole => Start::Beginning,
        };
        let mut notes = Notes::default();
        let mut seen = |version, record: &LogRecord| notes.take(version, record);
        let state = reader.replay(LogState::for_reader(), start, at, &mut seen).await?;
        let (Some(tip), Some(genesis)) = (state.tip(), state.genesis()) else {
            let what = format!("the archive {} has no table {table}", store.url);
            return Err(StoreError::new(ErrorKind::Invalid, what));
        };
        let live = state.segments().map(|segments| &segments.live);
        let mut segments: Vec<LiveSegment> = live.into_iter().flat_map(BTreeMap::values).cloned().collect();
        segments.sort_by(|a, b| order(a).cmp(&order(b)));
        Ok(Self {
            table: genesis.table.clone(),
            table_id: genesis.table_id.clone(),
            version: tip.version,
            committed_at: tip.at,
            segments,
            removed: state.segments().map(|segments| segments.removed.clone()).unwrap_or_default(),
            positions: state.positions().clone(),
            history_from: notes.commits.first().map_or(tip.version + 1, |commit| commit.version),
            gaps: notes.gaps,
            skipped: notes.skipped,
            commits: notes.commits,
        })
    }

    /// The segments of `topics` (all, if there are none) that may hold events of `[from, until)`.
    pub fn select(
        &self,
        topics: &[&str],
        from: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> impl Iterator<Item = &LiveSegment> {
        self.segments.iter().filter(move |live| {
            let (first, last) = live.segment.times;
            (topics.is_empty() || topics.contains(&&*live.segment.topic))
                && from.is_none_or(|from| last >= from)
                && until.is_none_or(|until| first < until)
        })
    }
}

fn order(live: &LiveSegment) -> (tapedeck_common::Window, &str, &str) {
    (live.segment.window, &live.segment.topic, &live.segment.path)
}

#[derive(Default)]
struct Notes {
    gaps: Vec<GapNote>,
    skipped: BTreeMap<LaneId, u64>,
    commits: Vec<CommitNote>,
}

impl Notes {
    fn take(&mut self, version: u64, read: &LogRecord) {
        for advance in &read.record.advances {
            if let Some(cause) = advance.gap {
                self.gaps.push(GapNote { lane: advance.lane.clone(), span: advance.span, cause, version });
            }
            if advance.skipped > 0 {
                *self.skipped.entry(advance.lane.clone()).or_default() += advance.skipped;
            }
        }
        let at = Timestamp::from_millis(read.header.timestamp_ms).unwrap_or_default();
        self.commits.push(CommitNote { version, at, writer: read.header.writer.clone() });
    }
}
