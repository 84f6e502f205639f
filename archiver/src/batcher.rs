//! Collects the deliveries of one table into a batch: contiguous spans by lane, rows by group (topic and hour).
//!
//! Promises: the batches of a lane, laid end to end, cover every position exactly once; a delivery that does not begin where
//! its lane stands is refused, never fitted in; an over-size event is a group of its own (`apart`). Pure: takes the time, never
//! asks for it. Never: encode, store, log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tapedeck_common::budget::BytePermit;
use tapedeck_common::bus::Deliveries;
use tapedeck_common::columns::{Columns, ColumnsPool};
use tapedeck_common::commit::{Advance, Record, SegmentRef};
use tapedeck_common::limits::OVERSIZE_SHARE;
use tapedeck_common::position::{LaneId, NotContiguous, Position, Span};
use tapedeck_common::time::{Timestamp, Window};

mod apart;

/// Blocks smaller than this are copied onto the end of their lane's previous block: many tiny blocks pack badly.
const SMALL_BLOCK_BYTES: usize = 64 << 10;

/// A block that has grown to this size takes no more small ones.
const GROWN_BLOCK_BYTES: usize = 512 << 10;

/// Blocks looked through for the previous one of a lane.
const LANES_REMEMBERED: usize = 64;

/// What shares a segment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupKey {
    /// The source.
    pub source: Arc<str>,
    /// The topic's true name.
    pub topic: Arc<str>,
    /// The hour.
    pub window: Window,
    /// Partition and position of an over-size event, which shares with none.
    pub lone: Option<(i32, Position)>,
}

/// Rows of one group that leave for the encoder together, with the room that they take.
#[derive(Debug)]
pub struct Chunk {
    /// Blocks by partition, in the order in which they came in.
    pub blocks: Vec<(i32, Columns)>,
    /// Their room.
    pub permit: BytePermit,
}

/// Rows of one group that wait for the encoder.
#[derive(Debug, Default)]
struct Group {
    blocks: Vec<(i32, Columns)>,
    permit: Option<BytePermit>,
    /// Raw bytes of the rows.
    bytes: usize,
    /// Bytes of the buffers that hold them.
    held: usize,
    touched: Duration,
}

impl Group {
    /// Adds a block. Its permit is made to hold what the buffers really take, which for reused ones is more than the rows need.
    fn push(&mut self, partition: i32, columns: Columns, permit: BytePermit, pool: &ColumnsPool) {
        let size = columns.memory_bytes();
        self.bytes += size;
        let held = match &mut self.permit {
            Some(held) => {
                held.merge(permit);
                held
            }
            None => self.permit.insert(permit),
        };
        if size >= SMALL_BLOCK_BYTES {
            self.held += columns.held_bytes();
            self.blocks.push((partition, columns));
        } else {
            let last = self.blocks.iter_mut().rev().take(LANES_REMEMBERED).find(|(of, _)| *of == partition);
            let room = last.filter(|(_, last)| last.memory_bytes() < GROWN_BLOCK_BYTES);
            let before = room.as_ref().map_or(0, |(_, last)| last.held_bytes());
            let grown = match room {
                Some((_, last)) => last,
                None => {
                    self.blocks.push((partition, Columns::default()));
                    &mut self.blocks.last_mut().expect("pushed just now").1
                }
            };
            // A small block often sits in large reused buffers: those go back to where the bus needs them.
            grown.append(&columns);
            self.held += grown.held_bytes() - before;
            pool.give_back(columns);
        }
        held.resize(self.held);
    }

    fn take(&mut self) -> Option<Chunk> {
        (self.bytes, self.held) = (0, 0);
        Some(Chunk { blocks: std::mem::take(&mut self.blocks), permit: self.permit.take()? })
    }
}

/// What a batch does to one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LaneShare {
    span: Span,
    rows: u64,
    skipped: u64,
    /// See [`Deliveries::window`].
    window: Option<u64>,
}

/// A batch that is being collected.
#[derive(Debug)]
pub struct OpenBatch {
    /// When it was opened, by the wall clock: the `archived_at` of its events.
    pub opened_at: Timestamp,
    /// The same, on the clock that never jumps.
    pub opened: Duration,
    /// The earliest event time in it.
    pub oldest: Option<Timestamp>,
    /// Events in it.
    pub rows: u64,
    /// Payload bytes in it.
    pub payload_bytes: u64,
    lanes: BTreeMap<LaneId, LaneShare>,
    groups: BTreeMap<GroupKey, Group>,
}

impl OpenBatch {
    fn new(opened_at: Timestamp, opened: Duration) -> Self {
        let (lanes, groups) = (BTreeMap::new(), BTreeMap::new());
        Self { opened_at, opened, oldest: None, rows: 0, payload_bytes: 0, lanes, groups }
    }

    /// The lanes that it touches.
    pub fn lanes(&self) -> impl Iterator<Item = &LaneId> {
        self.lanes.keys()
    }

    /// True if it touches the lane.
    pub fn touches(&self, lane: &LaneId) -> bool {
        self.lanes.contains_key(lane)
    }

    /// True once a lane holds half of what its bus hands over unacknowledged: while that is committed, the other half keeps coming.
    pub fn is_window_half_used(&self) -> bool {
        let half_used = |share: &LaneShare| share.window.is_some_and(|window| share.span.len() >= (window / 2).max(1));
        self.lanes.values().any(half_used)
    }

    /// Topics and hours in it.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Each group with the bytes of its rows that wait for the encoder.
    pub fn waiting(&self) -> impl Iterator<Item = (&GroupKey, usize)> {
        self.groups.iter().map(|(key, group)| (key, group.bytes)).filter(|(_, bytes)| *bytes > 0)
    }

    /// Groups whose waiting rows have reached `chunk_bytes`, and over-size events.
    pub fn full_groups(&self, chunk_bytes: usize) -> Vec<GroupKey> {
        let is_full = |(key, group): &(&GroupKey, &Group)| group.bytes >= chunk_bytes || (key.lone.is_some() && group.bytes > 0);
        self.groups.iter().filter(is_full).map(|(key, _)| key.clone()).collect()
    }

    /// The group among `open` to which nothing was added for the longest time.
    pub fn stalest_group<'a>(&self, open: impl Iterator<Item = &'a GroupKey>) -> Option<&'a GroupKey> {
        open.min_by_key(|key| self.groups.get(*key).map(|group| group.touched))
    }

    /// Takes a group's waiting rows for the encoder.
    pub fn take_chunk(&mut self, key: &GroupKey) -> Option<Chunk> {
        self.groups.get_mut(key)?.take()
    }

    /// Takes the waiting rows of all groups.
    pub fn take_all(&mut self) -> Vec<(GroupKey, Chunk)> {
        let chunks = self.groups.iter_mut().filter_map(|(key, group)| Some((key.clone(), group.take()?)));
        chunks.collect()
    }

    /// The record that makes the batch true, given the segments that hold its rows.
    pub fn into_record(self, segments: Vec<SegmentRef>) -> Record {
        let advances = self.lanes.into_iter().map(|(lane, share)| Advance {
            expected: Some(share.span.from()),
            span: share.span,
            rows: share.rows,
            skipped: share.skipped,
            gap: None,
            lane,
        });
        Record { advances: advances.collect(), segments }
    }
}

/// Where a lane stands between batches.
#[derive(Debug, Clone, Copy)]
struct LaneState {
    /// The position after everything that was taken in.
    next: Position,
    /// The last position at which the bus said it has nothing more.
    idle: Option<Position>,
}

/// Collects the batches of one table.
#[derive(Debug, Default)]
pub struct Batcher {
    lanes: BTreeMap<LaneId, LaneState>,
    open: Option<OpenBatch>,
    /// The size from which on an event is over-size, if there is any.
    oversize: Option<usize>,
}

impl Batcher {
    /// Sets events apart that are over-size in a budget of `capacity` bytes.
    pub fn within(capacity: usize) -> Self {
        Self { oversize: Some(capacity / OVERSIZE_SHARE), ..Self::default() }
    }

    /// A lane of this table is read from `position` on.
    pub fn resume(&mut self, lane: &LaneId, position: Position) {
        self.lanes.insert(lane.clone(), LaneState { next: position, idle: None });
    }

    /// A lane is not read any more; deliveries that still come are passed over.
    pub fn forget(&mut self, lane: &LaneId) {
        self.lanes.remove(lane);
    }

    /// The lanes that are read.
    pub fn lanes(&self) -> impl Iterator<Item = &LaneId> {
        self.lanes.keys()
    }

    /// True if the lane is read.
    pub fn reads(&self, lane: &LaneId) -> bool {
        self.lanes.contains_key(lane)
    }

    /// The position after everything that was taken in of a lane.
    pub fn next(&self, lane: &LaneId) -> Option<Position> {
        self.lanes.get(lane).map(|state| state.next)
    }

    /// The position up to which the lane was looked at: past the last event if nothing but control records came after it.
    pub fn seen_to(&self, lane: &LaneId) -> Option<Position> {
        self.lanes.get(lane).map(|state| state.idle.map_or(state.next, |idle| idle.max(state.next)))
    }

    /// The batch that is being collected.
    pub fn open(&self) -> Option<&OpenBatch> {
        self.open.as_ref()
    }

    /// The batch that is being collected.
    pub fn open_mut(&mut self) -> Option<&mut OpenBatch> {
        self.open.as_mut()
    }

    /// Closes the batch. The next delivery opens another.
    pub fn seal(&mut self) -> Option<OpenBatch> {
        self.open.take()
    }

    /// Drops the open batch and forgets every lane of the table: all of them must be looked up and resumed.
    pub fn abandon(&mut self) -> Option<OpenBatch> {
        self.lanes.clear();
        self.open.take()
    }

    /// The bus has nothing more in this lane up to `position`, which may lie past the last event: control records, compacted tails.
    pub fn note_idle(&mut self, lane: &LaneId, position: Position) {
        let Some(state) = self.lanes.get_mut(lane) else { return };
        state.idle = Some(position);
        let share = self.open.as_mut().and_then(|open| open.lanes.get_mut(lane));
        if let Some(share) = share
            && position > share.span.until()
        {
            // Only an open batch is stretched: a record for nothing but a control record would be one more object for no event.
            share.span = share.span.stretched_to(position);
            state.next = position;
        }
    }

    /// Adds a run of deliveries. Runs of lanes that are not read any more are dropped.
    pub fn take_in(&mut self, run: Deliveries, now: (Timestamp, Duration), pool: &ColumnsPool) -> Result<(), NotContiguous> {
        let Some(state) = self.lanes.get_mut(&run.lane) else {
            pool.give_back(run.events);
            return Ok(());
        };
        let from = run.span.from();
        // What lies between `next` and the position where the bus was idle holds no event.
        if from != state.next && state.idle != Some(from) {
            return Err(NotContiguous { lane: run.lane, expected: state.next, found: from });
        }
        let piece = Span::empty_at(state.next).stretched_to(run.span.until());
        state.next = piece.until();
        state.idle = None;
        let open = self.open.get_or_insert_with(|| OpenBatch::new(now.0, now.1));
        open.add(run, piece, now.1, self.oversize, pool);
        Ok(())
    }
}

impl OpenBatch {
    fn add(&mut self, mut run: Deliveries, piece: Span, now: Duration, oversize: Option<usize>, pool: &ColumnsPool) {
        let rows = run.events.len() as u64;
        let share = self.lanes.entry(run.lane.clone()).or_insert(LaneShare {
            span: Span::empty_at(piece.from()),
            rows: 0,
            skipped: 0,
            window: None,
        });
        share.span = share.span.stretched_to(piece.until());
        share.rows += rows;
        share.skipped += run.skipped;
        share.window = run.window;
        self.rows += rows;
        self.payload_bytes += run.events.payload_bytes() as u64;
        let first = run.events.times.iter().min().map(|first| Timestamp::from_micros(*first));
        self.oldest = self.oldest.into_iter().chain(first).min();
        if let Some(oversize) = oversize.filter(|oversize| run.events.memory_bytes() >= *oversize) {
            self.set_apart(&mut run, oversize, now, pool);
        }
        let (Some(first), Some(last)) = (run.events.times.iter().min(), run.events.times.iter().max()) else {
            pool.give_back(run.events);
            return;
        };
        let (first, last) = (Timestamp::from_micros(*first), Timestamp::from_micros(*last));
        let key = |window| GroupKey { source: Arc::clone(&run.lane.source), topic: Arc::clone(&run.topic), window, lone: None };
        if Window::of(first) == Window::of(last) {
            let group = self.groups.entry(key(Window::of(first))).or_default();
            group.touched = now;
            group.push(run.lane.partition, run.events, run.permit, pool);
            return;
        }
        let mut permit = run.permit;
        for (window, columns) in split_by_window(&run.events) {
            let share = permit.split(columns.memory_bytes());
            let group = self.groups.entry(key(window)).or_default();
            group.touched = now;
            group.push(run.lane.partition, columns, share, pool);
        }
        pool.give_back(run.events);
    }
}

/// The rows of each hour, in their order.
fn split_by_window(events: &Columns) -> BTreeMap<Window, Columns> {
    let mut split: BTreeMap<Window, Columns> = BTreeMap::new();
    for row in 0..events.len() {
        let window = Window::of(Timestamp::from_micros(events.times[row]));
        split.entry(window).or_default().push_row_of(events, row);
    }
    split
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapedeck_common::budget::ByteBudget;
    use tapedeck_common::columns::EventFields;
    use tapedeck_common::event::TimeKind;

    const HOUR: i64 = 3_600_000_000;

    struct Bench {
        batcher: Batcher,
        pool: ColumnsPool,
        budget: ByteBudget,
        lane: LaneId,
        window: Option<u64>,
    }

    impl Bench {
        fn resumed_at(position: u64) -> Self {
            let lane = LaneId::new("kafka/c/t/0", 3);
            let mut batcher = Batcher::default();
            batcher.resume(&lane, Position::new(position));
            Self { batcher, pool: ColumnsPool::new(1 << 20), budget: ByteBudget::new(1 << 20), lane, window: None }
        }

        /// One event at each position, at `position` hours.
        fn deliver(&mut self, from: u64, events: &[u64], until: u64) -> Result<(), NotContiguous> {
            let mut columns = Columns::default();
            for position in events {
                let time = Timestamp::from_micros(*position as i64 * HOUR);
                let (key, value) = (None, Some(&b"value"[..]));
                let position = Position::new(*position);
                columns.push(EventFields { position, time, time_kind: TimeKind::Create, leader_epoch: None, key, value }, [], []);
            }
            let permit = self.budget.force(columns.memory_bytes());
            let span = Span::new(Position::new(from), Position::new(until)).expect("forward");
            let run = Deliveries {
                lane: self.lane.clone(),
                topic: "orders".into(),
                span,
                events: columns,
                skipped: 0,
                permit,
                window: self.window,
            };
            self.batcher.take_in(run, (Timestamp::from_micros(0), Duration::ZERO), &self.pool)
        }

        fn sealed_spans(&mut self) -> Vec<(u64, u64, u64)> {
            let record = self.batcher.seal().expect("a batch is open").into_record(Vec::new());
            record.advances.iter().map(|step| (step.span.from().get(), step.span.until().get(), step.rows)).collect()
        }
    }

    #[test]
    fn batches_laid_end_to_end_cover_every_position_once() {
        let mut bench = Bench::resumed_at(5);
        bench.deliver(5, &[5, 7], 8).expect("begins where the lane stands");
        bench.deliver(8, &[9], 10).expect("meets");
        assert_eq!(bench.sealed_spans(), [(5, 10, 3)]);
        bench.deliver(10, &[10], 11).expect("meets");
        assert_eq!(bench.sealed_spans(), [(10, 11, 1)]);
    }

    #[test]
    fn half_a_window_is_noticed_and_a_bus_that_does_not_wait_has_none() {
        for (window, runs, half_used) in [
            (None, 9, false),
            (Some(8), 3, false),
            (Some(8), 4, true),
            (Some(9), 3, false),
            (Some(9), 4, true),
            (Some(1), 1, true),
        ] {
            let mut bench = Bench { window, ..Bench::resumed_at(5) };
            for position in 5..5 + runs {
                bench.deliver(position, &[position], position + 1).expect("meets");
            }
            let open = bench.batcher.open().expect("a batch is open");
            assert_eq!(open.is_window_half_used(), half_used, "{runs} of {window:?}");
        }
    }

    #[test]
    fn a_run_that_overlaps_or_leaves_a_hole_is_refused() {
        for from in [4, 6] {
            let mut bench = Bench::resumed_at(5);
            assert!(bench.deliver(from, &[from], from + 1).is_err());
            assert!(bench.batcher.open().is_none(), "nothing of it is taken in");
        }
    }

    #[test]
    fn a_tail_without_events_is_covered_by_the_batch_that_is_open() {
        let mut bench = Bench::resumed_at(0);
        bench.deliver(0, &[0], 1).expect("meets");
        bench.batcher.note_idle(&bench.lane.clone(), Position::new(2));
        bench.deliver(2, &[2], 3).expect("the bus was idle at 2");
        assert_eq!(bench.sealed_spans(), [(0, 3, 2)]);
    }

    #[test]
    fn a_tail_without_events_opens_no_batch_and_is_covered_by_the_next() {
        let mut bench = Bench::resumed_at(1);
        bench.batcher.note_idle(&bench.lane.clone(), Position::new(2));
        assert!(bench.batcher.open().is_none());
        bench.deliver(2, &[2], 3).expect("the bus was idle at 2");
        assert_eq!(bench.sealed_spans(), [(1, 3, 1)]);
    }

    #[test]
    fn rows_go_to_the_group_of_their_hour_and_memory_follows_them() {
        let mut bench = Bench::resumed_at(0);
        bench.deliver(0, &[0, 1, 2], 3).expect("meets");
        let used = bench.budget.used();
        let chunks = bench.batcher.open_mut().expect("open").take_all();
        assert_eq!(chunks.len(), 3);
        let held = |chunk: &Chunk| chunk.blocks.iter().map(|(_, block)| block.held_bytes()).sum::<usize>();
        assert!(chunks.iter().all(|(_, chunk)| chunk.permit.bytes() == held(chunk)));
        assert_eq!(chunks.iter().map(|(_, chunk)| held(chunk)).sum::<usize>(), used);
        drop(chunks);
        assert_eq!(bench.budget.used(), 0);
    }

    #[test]
    fn deliveries_of_a_forgotten_lane_are_passed_over_and_give_their_room_back() {
        let mut bench = Bench::resumed_at(0);
        bench.batcher.forget(&bench.lane.clone());
        bench.deliver(7, &[7], 8).expect("passed over");
        assert!(bench.batcher.open().is_none());
        assert_eq!(bench.budget.used(), 0);
    }
}
