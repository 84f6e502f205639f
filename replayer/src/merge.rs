//! Decides which rows of a run's segments go out next, and which segment must be read on before any can.
//!
//! Promises: every kept row once, each lane in the order of its positions, whatever the number of segments; a segment is
//! asked for only when a lane cannot go on without it. Pure: batches are handed in, nothing is opened, nothing waits.
//! Never: copy a row; the pieces that come out point into the batches that went in.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// A decoded batch, as the merge sees it.
pub trait Rows {
    /// How many rows.
    fn len(&self) -> usize;
    /// True without rows.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The partition of a row.
    fn partition(&self, row: usize) -> i32;
    /// The position of a row in its lane.
    fn position(&self, row: usize) -> i64;
    /// True if the row belongs to the selection.
    fn is_selected(&self, row: usize) -> bool;
}

/// One lane's share of one segment, as the plan has it.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// The lane, by the caller's number.
    pub lane: u32,
    /// Its partition, as the rows name it.
    pub partition: i32,
    /// The first and the last selected position.
    pub first: i64,
    /// See `first`.
    pub last: i64,
    /// Selected rows.
    pub rows: u64,
    /// Positions below this were published already.
    pub resume_at: i64,
}

/// Rows of one lane that lie together in one batch.
#[derive(Debug)]
pub struct Piece<B> {
    /// The lane, by the caller's number.
    pub lane: u32,
    /// The batch.
    pub batch: Arc<B>,
    /// Its rows, in the order of their positions.
    pub rows: Range<usize>,
}

/// What has to happen next.
#[derive(Debug)]
pub enum Step<B> {
    /// These rows go out.
    Publish(Piece<B>),
    /// The segment (by its index in the run) must be read on: [`Merge::add`] or [`Merge::end`].
    Read(usize),
    /// All rows have gone out.
    Done,
}

/// The archive does not hold what the log vouches for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// A lane's positions do not grow.
    #[error("partition {partition}: position {found} stands after {before}")]
    Backwards {
        /// The partition.
        partition: i32,
        /// The position before.
        before: i64,
        /// The position after it.
        found: i64,
    },
    /// Two live segments hold the same position.
    #[error("lane {lane}: position {position} lies in two live segments")]
    Twice {
        /// The lane's number.
        lane: u32,
        /// The position.
        position: i64,
    },
    /// A segment has other rows than the plan counted.
    #[error("partition {partition}: {found} selected rows found where the plan counted {expected}")]
    Count {
        /// The partition.
        partition: i32,
        /// What the plan says.
        expected: u64,
        /// What was read.
        found: u64,
    },
}

/// One lane in one segment.
#[derive(Debug)]
struct Part<B> {
    segment: usize,
    share: Share,
    /// Selected rows read so far.
    seen: u64,
    /// No unread row stands before this.
    bound: i64,
    held: VecDeque<(Arc<B>, Range<usize>)>,
}

impl<B: Rows> Part<B> {
    fn head(&self) -> Option<i64> {
        self.held.front().map(|(batch, rows)| batch.position(rows.start))
    }

    /// True if nothing of it can come any more.
    fn is_read(&self) -> bool {
        self.bound > self.share.last
    }

    /// Once all is read, the rows must be as many as the plan counted. A resumed lane was not read from its start.
    fn check_count(&self) -> Result<(), Mismatch> {
        let Share { partition, rows: expected, first, resume_at, .. } = self.share;
        let counts = resume_at <= first && self.seen != expected;
        if counts { Err(Mismatch::Count { partition, expected, found: self.seen }) } else { Ok(()) }
    }

    /// What the next row's position is, at least; `None` once all rows are out.
    fn next_at_least(&self) -> Option<i64> {
        self.head().or_else(|| (!self.is_read()).then_some(self.bound))
    }
}

/// Merges the segments of one run.
#[derive(Debug)]
pub struct Merge<B> {
    /// For each lane of the run, its parts.
    lanes: Vec<Vec<Part<B>>>,
    /// For each segment, the rows of it that are held.
    held: Vec<usize>,
    /// For each segment, its partitions in order, and where the part of each is: (lane, part).
    index: Vec<Vec<(i32, usize, usize)>>,
    /// The lane that went out last; a lane is drained before the next one is looked at.
    current: usize,
}

impl<B: Rows> Merge<B> {
    /// A merge of segments, each with its lanes' shares.
    pub fn new(segments: &[Vec<Share>]) -> Self {
        let mut numbers: Vec<u32> = segments.iter().flatten().map(|share| share.lane).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut lanes: Vec<Vec<Part<B>>> = numbers.iter().map(|_| Vec::new()).collect();
        let mut index = Vec::with_capacity(segments.len());
        for (segment, shares) in segments.iter().enumerate() {
            let mut places = Vec::with_capacity(shares.len());
            for share in shares {
                let lane = numbers.binary_search(&share.lane).expect("every lane was listed");
                places.push((share.partition, lane, lanes[lane].len()));
                let bound = share.first.max(share.resume_at);
                lanes[lane].push(Part { segment, share: *share, seen: 0, bound, held: VecDeque::new() });
            }
            places.sort_unstable();
            index.push(places);
        }
        Self { lanes, held: vec![0; segments.len()], index, current: 0 }
    }

    /// Says what to do next.
    pub fn step(&mut self) -> Result<Step<B>, Mismatch> {
        for turn in 0..self.lanes.len() {
            let lane = (self.current + turn) % self.lanes.len();
            if let Some(piece) = self.take(lane)? {
                self.current = lane;
                return Ok(Step::Publish(piece));
            }
        }
        Ok(self.segment_to_read().map_or(Step::Done, Step::Read))
    }

    /// Takes in the next batch of a segment.
    pub fn add(&mut self, segment: usize, batch: &Arc<B>) -> Result<(), Mismatch> {
        let mut row = 0;
        while row < batch.len() {
            let partition = batch.partition(row);
            let end = (row..batch.len()).find(|next| batch.partition(*next) != partition).unwrap_or(batch.len());
            let places = &self.index[segment];
            if let Ok(found) = places.binary_search_by_key(&partition, |place| place.0) {
                let (_, lane, part) = places[found];
                self.held[segment] += self.lanes[lane][part].hold(batch, row..end)?;
            }
            row = end;
        }
        Ok(())
    }

    /// Takes in that a segment has ended.
    pub fn end(&mut self, segment: usize) -> Result<(), Mismatch> {
        for (partition, lane, part) in &self.index[segment] {
            let part = &self.lanes[*lane][*part];
            if !part.is_read() {
                return Err(Mismatch::Count { partition: *partition, expected: part.share.rows, found: part.seen });
            }
        }
        Ok(())
    }

    /// Rows read and not gone out yet.
    pub fn held_rows(&self) -> usize {
        self.held.iter().sum()
    }

    /// The rows of a lane that can go out together, if any can.
    fn take(&mut self, lane: usize) -> Result<Option<Piece<B>>, Mismatch> {
        let parts = &self.lanes[lane];
        let first = parts.iter().enumerate().filter_map(|(part, state)| Some((state.head()?, part))).min();
        let Some((head, chosen)) = first else { return Ok(None) };
        let mut limit = i64::MAX;
        for (part, state) in parts.iter().enumerate() {
            let Some(at_least) = state.next_at_least().filter(|_| part != chosen) else { continue };
            if at_least == head && state.head().is_some() {
                return Err(Mismatch::Twice { lane: state.share.lane, position: head });
            }
            limit = limit.min(at_least);
        }
        if limit <= head {
            return Ok(None);
        }
        let part = &mut self.lanes[lane][chosen];
        let piece = part.take_before(limit);
        self.held[part.segment] -= piece.rows.len();
        Ok(Some(piece))
    }

    /// The segment that holds up the others and holds least itself, so that what is held grows evenly and stays near one
    /// sorted chunk a segment. Where nothing is held at all: the one with the lowest position in the first lane with rows.
    fn segment_to_read(&self) -> Option<usize> {
        let mut blocking: Option<(usize, usize)> = None;
        for parts in &self.lanes {
            let Some(head) = parts.iter().filter_map(Part::head).min() else { continue };
            for part in parts.iter().filter(|part| part.held.is_empty() && !part.is_read() && part.bound <= head) {
                let candidate = (self.held[part.segment], part.segment);
                blocking = Some(blocking.map_or(candidate, |best| best.min(candidate)));
            }
        }
        let untouched = || {
            let unread = |parts: &Vec<Part<B>>| {
                parts.iter().filter(|part| !part.is_read()).min_by_key(|part| part.bound).map(|part| part.segment)
            };
            self.lanes.iter().find_map(unread)
        };
        blocking.map(|(_, segment)| segment).or_else(untouched)
    }
}

impl<B: Rows> Part<B> {
    /// Keeps the selected rows of a stretch of one partition; answers how many.
    fn hold(&mut self, batch: &Arc<B>, rows: Range<usize>) -> Result<usize, Mismatch> {
        let mut held = 0;
        let mut open: Option<usize> = None;
        for row in rows.clone() {
            let position = batch.position(row);
            let wanted = position >= self.share.resume_at && batch.is_selected(row);
            if wanted {
                if position < self.bound {
                    return Err(Mismatch::Backwards { partition: self.share.partition, before: self.bound - 1, found: position });
                }
                self.seen += 1;
                self.bound = position + 1;
            }
            match (wanted, open) {
                (true, None) => open = Some(row),
                (false, Some(start)) => {
                    held += self.push(batch, start..row);
                    open = None;
                }
                _ => {}
            }
        }
        if let Some(start) = open {
            held += self.push(batch, start..rows.end);
        }
        if self.is_read() {
            self.check_count()?;
        }
        Ok(held)
    }

    fn push(&mut self, batch: &Arc<B>, rows: Range<usize>) -> usize {
        let count = rows.len();
        self.held.push_back((Arc::clone(batch), rows));
        count
    }

    /// Takes the rows at its head whose positions lie below `limit`.
    fn take_before(&mut self, limit: i64) -> Piece<B> {
        let (batch, rows) = self.held.front_mut().expect("the part was chosen for its head");
        let until = first_at_least(batch.as_ref(), rows, limit);
        let piece = Piece { lane: self.share.lane, batch: Arc::clone(batch), rows: rows.start..until };
        rows.start = until;
        if rows.start == rows.end {
            self.held.pop_front();
        }
        piece
    }
}

/// The first of `rows` (sorted by position) at `limit` or past it.
fn first_at_least<B: Rows>(batch: &B, rows: &Range<usize>, limit: i64) -> usize {
    if limit == i64::MAX || batch.position(rows.end - 1) < limit {
        return rows.end;
    }
    let (mut low, mut high) = (rows.start, rows.end);
    while low < high {
        let middle = low + (high - low) / 2;
        if batch.position(middle) < limit { low = middle + 1 } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// (partition, position, selected)
    #[derive(Debug)]
    struct Batch(Vec<(i32, i64, bool)>);

    impl Rows for Batch {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn partition(&self, row: usize) -> i32 {
            self.0[row].0
        }
        fn position(&self, row: usize) -> i64 {
            self.0[row].1
        }
        fn is_selected(&self, row: usize) -> bool {
            self.0[row].2
        }
    }

    type Row = (i32, i64, bool);

    fn shares(rows: &[Row], resume_at: i64) -> Vec<Share> {
        let mut partitions: Vec<i32> = rows.iter().filter(|row| row.2).map(|row| row.0).collect();
        partitions.sort_unstable();
        partitions.dedup();
        let share = |partition: i32| {
            let positions: Vec<i64> = rows.iter().filter(|row| row.0 == partition && row.2).map(|row| row.1).collect();
            let (first, last) = (positions[0], positions[positions.len() - 1]);
            Share { lane: partition as u32, partition, first, last, rows: positions.len() as u64, resume_at }
        };
        partitions.into_iter().map(share).collect()
    }

    /// Merges `segments` read in batches of `size`; answers what went out and the most rows that were ever held.
    fn merge(segments: &[Vec<Row>], size: usize, resume_at: i64) -> Result<(Vec<(u32, i64)>, usize), Mismatch> {
        let mut readers: Vec<_> = segments.iter().map(|rows| rows.chunks(size)).collect();
        let mut merge = Merge::<Batch>::new(&segments.iter().map(|rows| shares(rows, resume_at)).collect::<Vec<_>>());
        let (mut out, mut most) = (Vec::new(), 0);
        loop {
            match merge.step()? {
                Step::Done => return Ok((out, most)),
                Step::Publish(piece) => out.extend(piece.rows.map(|row| (piece.lane, piece.batch.position(row)))),
                Step::Read(segment) => match readers[segment].next() {
                    Some(rows) => merge.add(segment, &Arc::new(Batch(rows.to_vec())))?,
                    None => merge.end(segment)?,
                },
            }
            most = most.max(merge.held_rows());
        }
    }

    /// Rows of `lanes` lanes dealt to `hours` segments by `deal`, each sorted in chunks of `chunk` rows as the writer does.
    fn dealt(lanes: i32, rows: i64, hours: usize, chunk: usize, mut deal: impl FnMut(i64) -> (usize, bool)) -> Vec<Vec<Row>> {
        let mut segments = vec![Vec::new(); hours];
        for position in 0..rows {
            for partition in 0..lanes {
                let (hour, selected) = deal(position);
                segments[hour].push((partition, position, selected));
            }
        }
        for segment in &mut segments {
            segment.chunks_mut(chunk).for_each(|chunk| chunk.sort_unstable());
        }
        segments
    }

    proptest! {
        #[test]
        fn every_selected_row_goes_out_once_and_in_order(
            seed in any::<u64>(), lanes in 1..6i32, rows in 0..80i64, hours in 1..7usize,
            chunk in 1..90usize, size in 1..40usize, resume_at in 0..60i64,
        ) {
            let mut chance = fastrand::Rng::with_seed(seed);
            let segments = dealt(lanes, rows, hours, chunk, |_| (chance.usize(0..hours), chance.u8(0..4) > 0));
            let (out, _) = merge(&segments, size, resume_at).expect("a sound archive");
            for lane in 0..lanes {
                let got: Vec<i64> = out.iter().filter(|row| row.0 == lane as u32).map(|row| row.1).collect();
                let mut expected: Vec<i64> =
                    segments.iter().flatten().filter(|row| row.0 == lane && row.2 && row.1 >= resume_at).map(|row| row.1).collect();
                expected.sort_unstable();
                prop_assert_eq!(got, expected);
            }
        }
    }

    #[test]
    fn what_is_held_stays_near_one_chunk_a_segment() {
        // One busy hour, and one rare hour whose single chunk spans the whole run: the case in which a merge that reads
        // on the wrong side would hold everything.
        let segments = dealt(16, 4_000, 2, 4_096, |position| (usize::from(position % 40 == 0), true));
        let (out, most) = merge(&segments, 256, 0).expect("sound");
        assert_eq!(out.len(), 64_000);
        assert!(most <= 3 * 4_096, "{most} rows held");
    }

    #[test]
    fn a_segment_alone_passes_straight_through() {
        let segments = dealt(4, 1_000, 1, 500, |_| (0, true));
        let (_, most) = merge(&segments, 128, 0).expect("sound");
        assert!(most <= 128, "{most}");
    }

    #[test]
    fn segments_are_opened_only_when_a_lane_needs_them() {
        let segments = [vec![(0, 0, true), (0, 1, true)], vec![(0, 2, true)]];
        let mut merge = Merge::<Batch>::new(&segments.iter().map(|rows| shares(rows, 0)).collect::<Vec<_>>());
        assert!(matches!(merge.step(), Ok(Step::Read(0))));
        merge.add(0, &Arc::new(Batch(segments[0].clone()))).expect("sound");
        assert!(matches!(merge.step(), Ok(Step::Publish(piece)) if piece.rows == (0..2)));
        assert!(matches!(merge.step(), Ok(Step::Read(1))));
    }

    #[test]
    fn what_the_log_does_not_vouch_for_is_refused() {
        let twice = merge(&[vec![(0, 4, true)], vec![(0, 4, true)]], 8, 0);
        assert_eq!(twice.expect_err("twins"), Mismatch::Twice { lane: 0, position: 4 });
        let mut merge = Merge::<Batch>::new(&[shares(&[(3, 5, true), (3, 7, true)], 0)]);
        let backwards = merge.add(0, &Arc::new(Batch(vec![(3, 7, true), (3, 5, true)])));
        assert_eq!(backwards, Err(Mismatch::Backwards { partition: 3, before: 7, found: 5 }));
        let mut short = Merge::<Batch>::new(&[shares(&[(3, 5, true), (3, 7, true)], 0)]);
        short.add(0, &Arc::new(Batch(vec![(3, 5, true)]))).expect("so far so good");
        assert_eq!(short.end(0), Err(Mismatch::Count { partition: 3, expected: 2, found: 1 }));
    }
}
