//! How far the lanes of a topic have come, told by the hours of their events. The log alone knows no more: it says what was archived,
//! not what the bus held.
//!
//! Promises: says which lane is the furthest behind, so that nobody takes the newest hour of all for the hour of each.
//! Never: calls an hour complete, since a late event may come for any hour. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use tapedeck_common::commit::SegmentRef;
use tapedeck_common::{LaneId, Window};

use crate::layout::counts_arrivals;

/// The newest hour of each lane's events.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach(BTreeMap<LaneId, Window>);

/// How far all lanes have come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reached {
    /// The newest hour of which, or of a later one, every lane has events: `YYYY-MM-DDTHH`, UTC.
    pub hour: String,
    /// The lane that holds it back, the first of them.
    pub slowest: String,
    /// How many lanes were asked: those of the topic's newest source that hold events.
    pub lanes: u64,
}

impl Reach {
    /// Takes in a segment: each of its lanes has events of its hour.
    pub fn add(&mut self, segment: &SegmentRef) {
        for part in &segment.lanes {
            let lane = LaneId::new(Arc::clone(&segment.source), part.partition);
            let newest = self.0.entry(lane).or_insert(segment.window);
            *newest = segment.window.max(*newest);
        }
    }

    /// The sources that the events come from, in order.
    pub fn sources(&self) -> Vec<Arc<str>> {
        let mut sources: Vec<Arc<str>> = self.0.keys().map(|lane| Arc::clone(&lane.source)).collect();
        sources.dedup();
        sources
    }

    /// How far all lanes have come. A topic that was made anew has several sources, and the old ones stand still for ever: only the
    /// one with the newest events counts. So do the earlier lanes of a queue, of which only the newest counts.
    pub fn reached(&self) -> Option<Reached> {
        let newest = self.0.iter().max_by_key(|(_, hour)| **hour).map(|(lane, _)| lane)?;
        let counts = |lane: &LaneId| lane.source == newest.source && (lane == newest || !counts_arrivals(&lane.source));
        let lanes = || self.0.iter().filter(|(lane, _)| counts(lane));
        let (slowest, hour) = lanes().min_by_key(|(_, hour)| **hour)?;
        Some(Reached { hour: hour.to_string(), slowest: slowest.to_string(), lanes: lanes().count() as u64 })
    }
}

#[cfg(test)]
mod tests {
    use tapedeck_common::commit::SegmentLane;
    use tapedeck_common::{Position, Timestamp};

    use super::*;

    fn segment(source: &str, partitions: &[i32], hour: i64) -> SegmentRef {
        let window = Window::of(Timestamp::from_micros(hour * 3_600_000_000));
        let lane = |partition: &i32| SegmentLane {
            partition: *partition,
            first: Position::new(0),
            last: Position::new(0),
            rows: 1,
            payload_bytes: 0,
        };
        SegmentRef {
            path: String::new(),
            source: Arc::from(source),
            topic: Arc::from("t"),
            window,
            rows: partitions.len() as u64,
            size: 0,
            blake3: String::new(),
            modified: Timestamp::default(),
            times: (window.start(), window.start()),
            null_keys: 0,
            null_values: 0,
            lanes: partitions.iter().map(lane).collect(),
        }
    }

    #[test]
    fn the_slowest_lane_of_the_newest_source_counts() {
        let mut reach = Reach::default();
        assert_eq!(reach.reached(), None);
        // Late events of an earlier hour do not take a lane back.
        for (source, partitions, hour) in
            [("old", &[0, 1][..], 5), ("new", &[0, 1, 2], 7), ("new", &[0, 2], 9), ("new", &[1], 8), ("new", &[1], 6)]
        {
            reach.add(&segment(source, partitions, hour));
        }
        let reached = Reached { hour: "1970-01-01T08".to_owned(), slowest: "new/1".to_owned(), lanes: 3 };
        assert_eq!(reach.reached(), Some(reached));
        assert_eq!(reach.sources(), [Arc::from("new"), Arc::from("old")]);
    }

    #[test]
    fn of_a_queue_the_newest_lane_counts() {
        let mut reach = Reach::default();
        for (partition, hour) in [(12, 5), (7, 9), (99, 6)] {
            reach.add(&segment("rabbitmq/c/%2F/jobs", &[partition], hour));
        }
        let reached = Reached { hour: "1970-01-01T09".to_owned(), slowest: "rabbitmq/c/%2F/jobs/7".to_owned(), lanes: 1 };
        assert_eq!(reach.reached(), Some(reached));
    }
}
