//! The proof that a table is complete: every record is there and linked, spans tile, and what they vouch for lies in the store.
//!
//! Promises: reads every record from 0, trusts no checkpoint; goes on after a finding, so that one report names them all.
//! An absent store is an error, never a finding. Never: mends anything.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use tapedeck_common::commit::SegmentRef;
use tapedeck_common::{ErrorKind, Timestamp};

use self::ledger::Ledger;
use super::checkpoint;
use super::tail::LogReader;
use crate::layout;
use crate::store::{Store, StoreError};

mod ledger;
mod objects;
mod topics;

pub use topics::TopicReport;

/// Records read at once.
const RECORDS_AT_ONCE: usize = 16;

/// What to verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Read every segment back: its checksum, its rows, the order of its positions. Otherwise only that it exists in full.
    pub deep: bool,
    /// Only segments with events from the first moment until before the second. Records are always verified from 0.
    pub times: Option<(Timestamp, Timestamp)>,
    /// Objects looked at together.
    pub objects_at_once: usize,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self { deep: false, times: None, objects_at_once: 8 }
    }
}

/// What kind of thing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// A record is missing below the newest that there is, or was.
    Hole,
    /// A record cannot be read, or is not ours.
    Record,
    /// A record does not name the one before it.
    Chain,
    /// A lane's spans leave positions out, or cover them twice.
    Tiling,
    /// A segment is added or removed twice.
    Segment,
    /// The newest checkpoint says something else than the records.
    Checkpoint,
    /// A live segment's object is not in the store.
    Missing,
    /// An object has another size than the record says.
    Size,
    /// An object has another checksum than the record says.
    Checksum,
    /// A segment cannot be decoded, or holds other events than the record says.
    Rows,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of thing.
    pub kind: FindingKind,
    /// The table.
    pub table: String,
    /// The object's key.
    pub object: String,
    /// What is wrong with it.
    pub text: String,
}

/// One lane, by its records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LaneReport {
    /// The lane.
    pub lane: String,
    /// Where its first record begins.
    pub from: u64,
    /// Where it stands.
    pub next: u64,
    /// Rows archived.
    pub rows: u64,
    /// Events left out by a policy.
    pub skipped: u64,
    /// Positions lost, as its gaps say.
    pub lost: u64,
    /// Rows of hours that were taken out by a policy.
    pub expired: u64,
    /// Positions that never held an event for us: control records, aborted or compacted events.
    pub empty: u64,
    /// Its gaps.
    pub gaps: Vec<GapReport>,
}

/// One gap of a lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GapReport {
    /// The first lost position.
    pub from: u64,
    /// The first position after it.
    pub until: u64,
    /// Why.
    pub cause: &'static str,
    /// The record that says so.
    pub version: u64,
}

/// What was verified, and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableReport {
    /// The table.
    pub table: String,
    /// The newest record.
    pub version: u64,
    /// Live segments.
    pub segments: u64,
    /// Rows in them.
    pub rows: u64,
    /// Bytes of them in the store.
    pub bytes: u64,
    /// How many of them were looked at.
    pub objects: u64,
    /// Rows that were read back and compared (deep).
    pub rows_read: u64,
    /// What it holds of each topic.
    pub topics: Vec<TopicReport>,
    /// The lanes.
    pub lanes: Vec<LaneReport>,
    /// Everything that is wrong; empty if the table is complete.
    pub findings: Vec<Finding>,
}

impl TableReport {
    /// True if nothing is wrong.
    pub fn is_complete(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Verifies one table as it is now.
pub async fn verify_table(store: &Store, table: &str, options: &VerifyOptions) -> Result<TableReport, StoreError> {
    let reader = LogReader::new(store, table);
    let listing = reader.list(0).await?;
    if !reader.is_there().await? {
        return Err(StoreError::new(ErrorKind::Invalid, format!("the archive {} has no table {table}", store.url)));
    }
    let mut ledger = Ledger::new(&reader);
    let checkpoint = listing.checkpoints.last().copied();
    // Of a log without any record at least the first is missed.
    let newest = listing.records.last().copied().unwrap_or(0);
    let versions = futures::stream::iter(0..=newest);
    let mut bodies = versions.map(|version| reader.get(version)).buffered(RECORDS_AT_ONCE);
    while let Some(body) = bodies.try_next().await? {
        let version = ledger.take(body.as_deref());
        if checkpoint == Some(version) {
            compare_checkpoint(&reader, version, &mut ledger).await?;
        }
    }
    drop(bodies);
    if let Some(above) = checkpoint.filter(|checkpoint| *checkpoint > newest) {
        find_cut(&reader, newest, above, &mut ledger).await?;
    }
    ledger.check_rows();
    let live = ledger.live_in_commit_order();
    let chosen: Vec<_> = live.iter().filter(|(_, segment)| overlaps(segment, options.times)).cloned().collect();
    let objects = chosen.len() as u64;
    let looked = objects::look(store, table, chosen, &ledger.rewritten, options).await?;
    let mut findings = ledger.findings;
    findings.extend(looked.findings);
    Ok(TableReport {
        table: table.to_owned(),
        version: newest,
        segments: live.len() as u64,
        rows: live.iter().map(|(_, segment)| segment.rows).sum(),
        bytes: live.iter().map(|(_, segment)| segment.size).sum(),
        objects,
        rows_read: looked.rows_read,
        topics: topics::topics(live.iter().map(|(_, segment)| segment)),
        lanes: ledger.lanes.into_iter().map(|(lane, tally)| tally.report(&lane)).collect(),
        findings,
    })
}

fn overlaps(segment: &SegmentRef, times: Option<(Timestamp, Timestamp)>) -> bool {
    times.is_none_or(|(from, until)| segment.times.1 >= from && segment.times.0 < until)
}

/// A checkpoint above the newest record proves that there were more of them, unless they came after the listing.
async fn find_cut(reader: &LogReader, newest: u64, above: u64, ledger: &mut Ledger<'_>) -> Result<(), StoreError> {
    if reader.get(above).await?.is_none() {
        let text = format!("it and all records above {newest} are missing, although the checkpoint of record {above} exists");
        ledger.find(FindingKind::Hole, &reader.paths.record(above), text);
    }
    Ok(())
}

/// I8, for the newest checkpoint. One that cannot be read harms nobody but is worth knowing.
async fn compare_checkpoint(reader: &LogReader, version: u64, ledger: &mut Ledger<'_>) -> Result<(), StoreError> {
    let tip = match checkpoint::tip_at(reader, version).await {
        Ok(tip) => tip,
        Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
        // What is wrong with the record itself was found before.
        Err(_) => return Ok(()),
    };
    let text = match checkpoint::read_state(reader, tip).await {
        Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
        Err(error) => error.to_string(),
        // Nobody reads what another program wrote.
        Ok(None) => return Ok(()),
        Ok(Some(state)) => {
            let live = state.segments().map(|segments| &segments.live);
            let live: BTreeMap<&String, &SegmentRef> =
                live.into_iter().flatten().map(|(path, live)| (path, &live.segment)).collect();
            let same = *state.positions() == ledger.positions()
                && live.into_iter().eq(ledger.live.iter().map(|(path, (_, segment))| (path, segment)));
            if same {
                return Ok(());
            }
            "it says something else than the records".to_owned()
        }
    };
    ledger.find(FindingKind::Checkpoint, &reader.paths.checkpoint(version), text);
    Ok(())
}

/// A finding about a segment of `table`.
fn about(kind: FindingKind, table: &str, path: &str, text: impl Into<String>) -> Finding {
    let object = layout::table_object(table, path).to_string();
    Finding { kind, table: table.to_owned(), object, text: text.into() }
}
