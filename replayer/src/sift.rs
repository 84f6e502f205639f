//! What the log's entries and the segments at the edges give to a plan.
//!
//! Promises: a segment counts by its entry where that proves the numbers, and by its rows where not; what lies in two tables
//! counts once. Pure. Never: open one.

use std::collections::BTreeMap;
use std::sync::Arc;

use tapedeck_common::commit::{SegmentLane, SegmentRef};
use tapedeck_common::{LaneId, Position, Timestamp};

use crate::plan::{PlannedSegment, PlannedShare};
use crate::select::{Selection, Touch};

/// A live segment, and the table it lies in.
#[derive(Debug, Clone)]
pub struct Found {
    /// The table.
    pub table: String,
    /// Its entry in the table's log.
    pub segment: SegmentRef,
    /// Lanes of which other tables hold a part too: only positions from the first to the second are taken from this one.
    pub only: BTreeMap<i32, (Position, Position)>,
}

impl Found {
    /// A segment that is alone in holding what it holds.
    pub fn new(table: impl Into<String>, segment: SegmentRef) -> Self {
        Self { table: table.into(), segment, only: BTreeMap::new() }
    }
}

/// Positions from the first to the second, both included.
type Run = (u64, u64);

/// Cuts what an earlier table holds too, so that no event is planned twice: a topic that moved to another table and was read
/// again lies in both. The earlier table is the one that holds the lower positions of a lane. Answers the lane of a segment
/// that would fall into pieces.
pub fn once(found: Vec<Found>) -> Result<Vec<Found>, LaneId> {
    let taken = taken_before(&found);
    let mut cut = Vec::with_capacity(found.len());
    for Found { table, mut segment, mut only } in found {
        let lanes = std::mem::take(&mut segment.lanes);
        for lane in lanes {
            let id = LaneId::new(Arc::clone(&segment.source), lane.partition);
            let whole = (lane.first.get(), lane.last.get());
            let taken = taken.get(&(table.clone(), id.clone())).map_or(&[][..], Vec::as_slice);
            match without(whole, taken).as_slice() {
                [] => {
                    // Nothing of it is wanted, and so its entry no longer tells what is.
                    only.insert(lane.partition, (Position::new(1), Position::new(0)));
                    continue;
                }
                [left] if *left == whole => {}
                [(first, last)] => drop(only.insert(lane.partition, (Position::new(*first), Position::new(*last)))),
                _ => return Err(id),
            }
            segment.lanes.push(lane);
        }
        if !segment.lanes.is_empty() {
            cut.push(Found { table, segment, only });
        }
    }
    Ok(cut)
}

/// For each table and lane: what tables before it hold. Nothing for lanes of one table.
fn taken_before(found: &[Found]) -> BTreeMap<(String, LaneId), Vec<Run>> {
    let mut lanes: BTreeMap<LaneId, BTreeMap<&str, Vec<Run>>> = BTreeMap::new();
    for Found { table, segment, .. } in found {
        for lane in &segment.lanes {
            let id = LaneId::new(Arc::clone(&segment.source), lane.partition);
            lanes.entry(id).or_default().entry(table).or_default().push((lane.first.get(), lane.last.get()));
        }
    }
    let mut before = BTreeMap::new();
    for (lane, tables) in lanes.into_iter().filter(|(_, tables)| tables.len() > 1) {
        let mut in_order: Vec<(Vec<Run>, &str)> = tables.into_iter().map(|(table, runs)| (joined(runs), table)).collect();
        in_order.sort_unstable();
        let mut taken = Vec::new();
        for (runs, table) in in_order {
            before.insert((table.to_owned(), lane.clone()), taken.clone());
            taken = joined([taken, runs].concat());
        }
    }
    before
}

fn joined(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable();
    let mut joined: Vec<Run> = Vec::new();
    for (first, last) in runs {
        match joined.last_mut() {
            Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// What is left of a run; `taken` is [`joined`].
fn without((first, last): Run, taken: &[Run]) -> Vec<Run> {
    let (mut at, mut left) = (first, Vec::new());
    for (from, to) in taken.iter().filter(|(from, to)| *to >= first && *from <= last) {
        if *from > at {
            left.push((at, from - 1));
        }
        at = to + 1;
    }
    if at <= last {
        left.push((at, last));
    }
    left
}

/// Counts the selected rows of one lane of a segment that is read.
#[derive(Debug, Clone, Copy, Default)]
pub struct LaneCount {
    events: u64,
    bytes: u64,
    first: Option<Position>,
    last: Position,
    times: Option<(Timestamp, Timestamp)>,
    backwards: u64,
}

impl LaneCount {
    /// Takes in a selected row; rows come by growing position.
    pub fn add(&mut self, position: Position, time: Timestamp, bytes: u64) {
        self.events += 1;
        self.bytes += bytes;
        self.first = self.first.or(Some(position));
        self.last = self.last.max(position);
        let (earliest, latest) = self.times.unwrap_or((time, time));
        self.backwards += u64::from(time < latest);
        self.times = Some((earliest.min(time), latest.max(time)));
    }
}

/// The counts of one segment that was read, by partition.
pub type SegmentCounts = BTreeMap<i32, LaneCount>;

/// Segments sorted by what their entries say.
#[derive(Debug, Default)]
pub struct Sifted {
    /// Segments whose entry tells all.
    pub whole: Vec<PlannedSegment>,
    /// Segments that must be read to know.
    pub to_read: Vec<Found>,
}

/// Sorts live segments by what their entries say about the selection.
pub fn sift(selection: &Selection, found: impl IntoIterator<Item = Found>) -> Sifted {
    let mut sifted = Sifted::default();
    for found in found {
        match selection.touch(&found.segment) {
            Touch::Nothing => {}
            // An entry counts whole segments only.
            Touch::Whole(_) if !found.only.is_empty() => sifted.to_read.push(found),
            Touch::Look(_) => sifted.to_read.push(found),
            Touch::Whole(lanes) => {
                let share = |lane: &SegmentLane| PlannedShare {
                    partition: lane.partition,
                    first: lane.first,
                    last: lane.last,
                    events: lane.rows,
                    bytes: lane.payload_bytes,
                };
                let (shares, times) = (lanes.iter().map(share).collect(), found.segment.times);
                sifted.whole.push(planned(found, true, times, shares));
            }
        }
    }
    sifted
}

/// What a segment that was read gives to the plan; `None` if it holds nothing of it.
pub fn counted(found: Found, counts: &SegmentCounts) -> Option<PlannedSegment> {
    let times = counts.values().filter_map(|count| count.times).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))?;
    let share = |(partition, count): (&i32, &LaneCount)| {
        let first = count.first?;
        Some(PlannedShare { partition: *partition, first, last: count.last, events: count.events, bytes: count.bytes })
    };
    let shares = counts.iter().filter_map(share).collect();
    Some(planned(found, false, times, shares))
}

fn planned(found: Found, whole: bool, times: (Timestamp, Timestamp), lanes: Vec<PlannedShare>) -> PlannedSegment {
    let segment = found.segment;
    PlannedSegment {
        table: found.table,
        path: segment.path,
        size: segment.size,
        blake3: segment.blake3,
        rows: segment.rows,
        topic: segment.topic.to_string(),
        source: segment.source.to_string(),
        earliest: Some(times.0),
        latest: Some(times.1),
        whole,
        lanes,
    }
}

/// Events of a segment that was read whose time lies before that of an event with a lower position.
pub fn out_of_time_order(counts: &SegmentCounts) -> u64 {
    counts.values().map(|count| count.backwards).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_tables_hold_is_taken_out() {
        let cases: [(Run, &[Run], &[Run]); 6] = [
            ((5, 9), &[], &[(5, 9)]),
            ((5, 9), &[(0, 4), (10, 11)], &[(5, 9)]),
            ((5, 9), &[(0, 6)], &[(7, 9)]),
            ((5, 9), &[(8, 20)], &[(5, 7)]),
            ((5, 9), &[(0, 9)], &[]),
            ((5, 9), &[(7, 7)], &[(5, 6), (8, 9)]),
        ];
        for (whole, taken, left) in cases {
            assert_eq!(without(whole, taken), left, "{whole:?} without {taken:?}");
        }
        assert_eq!(joined(vec![(9, 12), (0, 3), (4, 5), (2, 4)]), [(0, 5), (9, 12)]);
    }
}
