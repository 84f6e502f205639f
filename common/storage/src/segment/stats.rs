//! What a segment's record says about it: rows, times, nulls, lanes.
//! Law: the positions of a lane grow over the whole segment; a block that breaks it is a bug of ours and stops the process.

use std::collections::BTreeMap;

use tapedeck_common::columns::Columns;
use tapedeck_common::commit::SegmentLane;
use tapedeck_common::{Position, Timestamp, Window};

#[derive(Debug, Clone, Default)]
pub(crate) struct Stats {
    pub(crate) rows: u64,
    pub(crate) times: Option<(i64, i64)>,
    pub(crate) null_keys: u64,
    pub(crate) null_values: u64,
    lanes: BTreeMap<i32, SegmentLane>,
}

impl Stats {
    /// Counts a block of one partition. Panics if its positions do not grow, or its events belong to another hour.
    pub(crate) fn add(&mut self, window: Window, partition: i32, block: &Columns) {
        let (Some(first), Some(last)) = (block.positions.first(), block.positions.last()) else { return };
        assert!(block.positions.windows(2).all(|pair| pair[0] < pair[1]), "positions of partition {partition} do not grow");
        let position = |number: i64| Position::from_i64(number).expect("positions count from zero");
        let (first, last) = (position(*first), position(*last));
        let least = block.times.iter().fold(i64::MAX, |least, time| least.min(*time));
        let most = block.times.iter().fold(i64::MIN, |most, time| most.max(*time));
        let in_window = window.start().micros() <= least && most < window.end().micros();
        assert!(in_window, "an event of partition {partition} lies outside the hour {window}");

        let rows = block.len() as u64;
        let payload_bytes = block.payload_bytes() as u64;
        let new = SegmentLane { partition, first, last, rows, payload_bytes };
        self.lanes
            .entry(partition)
            .and_modify(|lane| {
                assert!(lane.last < first, "partition {partition} goes back from {} to {first}", lane.last);
                lane.last = last;
                lane.rows += rows;
                lane.payload_bytes += payload_bytes;
            })
            .or_insert(new);
        self.rows += rows;
        self.null_keys += block.keys.nulls() as u64;
        self.null_values += block.values.nulls() as u64;
        self.times = Some(self.times.map_or((least, most), |(a, b)| (a.min(least), b.max(most))));
    }

    /// The earliest and the latest event time.
    pub(crate) fn times(&self) -> (Timestamp, Timestamp) {
        let (least, most) = self.times.unwrap_or_default();
        (Timestamp::from_micros(least), Timestamp::from_micros(most))
    }

    /// The lanes, by partition.
    pub(crate) fn lanes(&self) -> Vec<SegmentLane> {
        self.lanes.values().copied().collect()
    }

    /// The lanes as tags and metadata write them.
    pub(crate) fn lanes_text(&self) -> String {
        let text = |lane: &SegmentLane| format!("{}:{}-{}:{}", lane.partition, lane.first, lane.last, lane.rows);
        self.lanes.values().map(text).collect::<Vec<_>>().join(";")
    }
}
