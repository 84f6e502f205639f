//! What the log's entries and the segments at the edges give to a plan.
//!
//! Promises: a segment counts by its entry where that proves the numbers, and by its rows where not. Pure. Never: open one.

use std::collections::BTreeMap;

use tapedeck_common::commit::{SegmentLane, SegmentRef};
use tapedeck_common::{Position, Timestamp};

use crate::plan::{PlannedSegment, PlannedShare};
use crate::select::{Selection, Touch};

/// A live segment, and the table it lies in.
#[derive(Debug, Clone)]
pub struct Found {
    /// The table.
    pub table: String,
    /// Its entry in the table's log.
    pub segment: SegmentRef,
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
