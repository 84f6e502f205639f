//! The bus of a simulated world: lanes with control records in them, who owns which, and the offsets that a group remembers.

use std::sync::Arc;

use tapedeck_common::commit::{SegmentLane, SegmentRef};
use tapedeck_common::{LaneId, Position, Span, Timestamp, Window};

/// What a file holds of each lane, in the lanes' order.
pub(crate) type Parts = [(i32, Span)];

pub(crate) struct Bus {
    lanes: Vec<LaneId>,
    topic: Arc<str>,
    pub(crate) owners: Vec<usize>,
    /// What acknowledging told the group. A courtesy: nothing right reads it back.
    pub(crate) group: Vec<Option<Position>>,
}

impl Bus {
    pub(crate) fn new(owners: Vec<usize>) -> Self {
        let source: Arc<str> = Arc::from("kafka/sim/topic/0");
        let lanes: Vec<_> = (0..owners.len()).map(|partition| LaneId::new(Arc::clone(&source), partition as i32)).collect();
        Self { group: vec![None; lanes.len()], lanes, topic: Arc::from("t"), owners }
    }

    pub(crate) fn lane(&self, partition: i32) -> &LaneId {
        &self.lanes[partition as usize]
    }

    /// What a record says of a file with these parts.
    pub(crate) fn segment(&self, name: &str, parts: &Parts) -> SegmentRef {
        let window = Window::of(Timestamp::from_micros(1_795_000_000_000_000));
        let mut lanes: Vec<SegmentLane> = Vec::with_capacity(parts.len());
        for (partition, span) in parts {
            let (Some(first), Some(last)) = (first_event(*partition, *span), last_event(*partition, *span)) else { continue };
            let rows = count(*partition, *span);
            match lanes.last_mut().filter(|before| before.partition == *partition) {
                Some(before) => {
                    (before.last, before.rows) = (last, before.rows + rows);
                    before.payload_bytes += rows * 100;
                }
                None => lanes.push(SegmentLane { partition: *partition, first, last, rows, payload_bytes: rows * 100 }),
            }
        }
        SegmentRef {
            path: format!("t/{name}"),
            source: Arc::clone(&self.lanes[0].source),
            topic: Arc::clone(&self.topic),
            window,
            rows: lanes.iter().map(|lane| lane.rows).sum(),
            size: 1000,
            blake3: String::new(),
            modified: window.start(),
            times: (window.start(), window.start()),
            null_keys: 0,
            null_values: 0,
            lanes,
        }
    }
}

/// Where a lane begins.
pub(crate) const fn start(partition: i32) -> Position {
    Position::new(10 * (partition as u64 + 1))
}

/// True if no event lies there: the bus wrote a record of its own, about a transaction for example.
pub(crate) fn is_hole(partition: i32, position: u64) -> bool {
    ((position + 977 * partition as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 60) < 2
}

/// The positions of a span that hold events.
pub(crate) fn events(partition: i32, span: Span) -> impl DoubleEndedIterator<Item = u64> {
    (span.from().get()..span.until().get()).filter(move |position| !is_hole(partition, *position))
}

pub(crate) fn count(partition: i32, span: Span) -> u64 {
    events(partition, span).count() as u64
}

pub(crate) fn first_event(partition: i32, span: Span) -> Option<Position> {
    events(partition, span).next().map(Position::new)
}

pub(crate) fn last_event(partition: i32, span: Span) -> Option<Position> {
    events(partition, span).next_back().map(Position::new)
}
