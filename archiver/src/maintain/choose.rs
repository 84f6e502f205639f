//! Which segments to merge, and which hours have expired. Pure.
//!
//! Promises: only hours that are closed are touched; what is merged is of one topic, hour and source, and its rows stay in the
//! order of their lanes. Never: looks at a clock or a store.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use tapedeck_common::commit::SegmentRef;
use tapedeck_common::{Position, Timestamp, Window};

/// What compaction aims at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactPolicy {
    /// An hour is left alone until it has been over for so long: late events still come.
    pub closed_for: Duration,
    /// Segments of this size and more stay as they are, in bytes.
    pub small_below: u64,
    /// No merged segment is made of more than this, in bytes.
    pub bytes_max: u64,
}

impl Default for CompactPolicy {
    fn default() -> Self {
        Self { closed_for: Duration::from_secs(2 * 3600), small_below: 128 << 20, bytes_max: 512 << 20 }
    }
}

/// Segments that become one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merge {
    /// Their topic.
    pub topic: Arc<str>,
    /// Their source.
    pub source: Arc<str>,
    /// Their hour.
    pub window: Window,
    /// They, in the order in which their rows follow one another.
    pub inputs: Vec<SegmentRef>,
}

impl Merge {
    /// The paths of the inputs.
    pub fn paths(&self) -> Vec<String> {
        self.inputs.iter().map(|input| input.path.clone()).collect()
    }

    /// The bytes of the inputs.
    pub fn bytes(&self) -> u64 {
        self.inputs.iter().map(|input| input.size).sum()
    }
}

/// Hours in which there may be something to merge, from small segments that come one by one in any order. Holds a few bytes for each
/// hour of a topic, however many segments it has.
#[derive(Debug, Default)]
pub struct SmallSegments {
    /// Hash by hash of topic and source: two that are alike cost a look at the hour, and nothing else.
    seen: BTreeSet<(Window, u64)>,
    hours: BTreeSet<Window>,
}

impl SmallSegments {
    /// One more.
    pub fn add(&mut self, segment: &SegmentRef) {
        let mut hasher = DefaultHasher::new();
        (&segment.topic, &segment.source).hash(&mut hasher);
        if !self.seen.insert((segment.window, hasher.finish())) {
            self.hours.insert(segment.window);
        }
    }

    /// The hours that have more than one of a topic and source, oldest first.
    pub fn into_hours(self) -> BTreeSet<Window> {
        self.hours
    }
}

/// One hour of one topic and source, in the order of hours.
type Group<'a> = (Window, &'a Arc<str>, &'a Arc<str>);

/// True once an hour is over for `since`.
pub fn is_over(window: Window, now: Timestamp, since: Duration) -> bool {
    let since = i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
    window.end().micros().saturating_add(since) <= now.micros()
}

/// What is to be merged of these live segments. An error names segments of one hour that hold the same positions.
pub fn merges<'a>(
    segments: impl Iterator<Item = &'a SegmentRef>,
    now: Timestamp,
    policy: &CompactPolicy,
) -> Result<Vec<Merge>, String> {
    let mut groups: BTreeMap<Group<'_>, Vec<&SegmentRef>> = BTreeMap::new();
    for segment in segments.filter(|segment| is_over(segment.window, now, policy.closed_for)) {
        groups.entry((segment.window, &segment.topic, &segment.source)).or_default().push(segment);
    }
    let mut merges = Vec::new();
    for ((window, topic, source), group) in groups {
        for inputs in runs(in_lane_order(&group)?, policy) {
            merges.push(Merge { topic: Arc::clone(topic), source: Arc::clone(source), window, inputs });
        }
    }
    Ok(merges)
}

/// Neighbours that together are not too large. What is large enough ends a run.
fn runs(ordered: Vec<&SegmentRef>, policy: &CompactPolicy) -> Vec<Vec<SegmentRef>> {
    let (mut runs, mut run, mut bytes) = (Vec::new(), Vec::new(), 0);
    for segment in ordered {
        let large = segment.size >= policy.small_below;
        if large || bytes + segment.size > policy.bytes_max {
            runs.push(std::mem::take(&mut run));
            bytes = 0;
        }
        if !large {
            bytes += segment.size;
            run.push(segment.clone());
        }
    }
    runs.push(run);
    runs.retain(|run| run.len() > 1);
    runs
}

/// The segments such that the rows of every lane follow one another. There is such an order, since each batch of a table went on
/// where the one before had ended.
fn in_lane_order<'a>(segments: &[&'a SegmentRef]) -> Result<Vec<&'a SegmentRef>, String> {
    let mut lanes: BTreeMap<i32, Vec<(Position, Position, usize)>> = BTreeMap::new();
    for (number, segment) in segments.iter().enumerate() {
        for lane in &segment.lanes {
            lanes.entry(lane.partition).or_default().push((lane.first, lane.last, number));
        }
    }
    let mut after: Vec<Vec<usize>> = vec![Vec::new(); segments.len()];
    let mut waits_for = vec![0_usize; segments.len()];
    for (partition, parts) in &mut lanes {
        parts.sort_unstable();
        for pair in parts.windows(2) {
            let ((_, last, one), (first, _, other)) = (pair[0], pair[1]);
            if last >= first {
                let (one, other) = (&segments[one].path, &segments[other].path);
                return Err(format!("{one} and {other} both hold positions {first} to {last} of partition {partition}"));
            }
            after[one].push(other);
            waits_for[other] += 1;
        }
    }
    let free = |number: usize| (&segments[number].path, number);
    let mut next: BTreeSet<_> = (0..segments.len()).filter(|number| waits_for[*number] == 0).map(free).collect();
    let mut ordered = Vec::with_capacity(segments.len());
    while let Some((_, number)) = next.pop_first() {
        ordered.push(segments[number]);
        for other in &after[number] {
            waits_for[*other] -= 1;
            if waits_for[*other] == 0 {
                next.insert(free(*other));
            }
        }
    }
    if ordered.len() < segments.len() {
        return Err(format!("the segments of {} stand in no order", segments[0].window));
    }
    Ok(ordered)
}

/// Whole hours that are over for longer than `keep`, with the paths of their segments, oldest first.
pub fn expired<'a>(
    segments: impl Iterator<Item = &'a SegmentRef>,
    now: Timestamp,
    keep: Duration,
) -> BTreeMap<Window, Vec<String>> {
    let mut hours: BTreeMap<Window, Vec<String>> = BTreeMap::new();
    for segment in segments.filter(|segment| is_over(segment.window, now, keep)) {
        hours.entry(segment.window).or_default().push(segment.path.clone());
    }
    hours
}

/// Neighbouring hours that together have up to `most` segments, as first and last; an hour with more stands alone.
pub fn bunches(hours: &BTreeMap<Window, u64>, most: u64) -> Vec<(Window, Window)> {
    let mut bunches: Vec<(Window, Window)> = Vec::new();
    let mut held = 0;
    for (hour, segments) in hours {
        held += segments;
        match bunches.last_mut() {
            Some(bunch) if held <= most => bunch.1 = *hour,
            _ => {
                held = *segments;
                bunches.push((*hour, *hour));
            }
        }
    }
    bunches
}

#[cfg(test)]
mod tests {
    use tapedeck_common::commit::SegmentLane;

    use super::*;

    const HOUR: i64 = 3_600_000_000;

    fn segment(path: &str, hour: i64, size: u64, lanes: &[(i32, u64, u64)]) -> SegmentRef {
        let window = Window::of(Timestamp::from_micros(hour * HOUR));
        let lane = |(partition, first, last): &(i32, u64, u64)| SegmentLane {
            partition: *partition,
            first: Position::new(*first),
            last: Position::new(*last),
            rows: last - first + 1,
            payload_bytes: 1,
        };
        SegmentRef {
            path: path.to_owned(),
            source: "s".into(),
            topic: "t".into(),
            window,
            rows: lanes.iter().map(|(_, first, last)| last - first + 1).sum(),
            size,
            blake3: String::new(),
            modified: window.start(),
            times: (window.start(), window.start()),
            null_keys: 0,
            null_values: 0,
            lanes: lanes.iter().map(lane).collect(),
        }
    }

    fn chosen(segments: &[SegmentRef], at_hour: i64) -> Vec<Vec<String>> {
        let policy = CompactPolicy { closed_for: Duration::from_secs(3600), small_below: 100, bytes_max: 200 };
        let merges = merges(segments.iter(), Timestamp::from_micros(at_hour * HOUR), &policy).expect("no overlap");
        merges.iter().map(Merge::paths).collect()
    }

    #[test]
    fn small_neighbours_of_a_closed_hour_are_merged_in_the_order_of_their_lanes() {
        let segments = [
            segment("c", 0, 40, &[(0, 20, 29), (1, 5, 9)]),
            segment("a", 0, 40, &[(0, 10, 19)]),
            segment("b", 0, 40, &[(0, 0, 9), (1, 0, 4)]),
            segment("open", 9, 1, &[(0, 40, 49)]),
            segment("open too", 9, 1, &[(0, 50, 59)]),
        ];
        assert_eq!(chosen(&segments, 10), [["b", "a", "c"]]);
        assert_eq!(chosen(&segments, 1), Vec::<Vec<String>>::new(), "the hour is over for no hour yet");
    }

    #[test]
    fn what_is_large_stays_and_no_result_is_too_large() {
        let at = |path: &str, size, first| segment(path, 0, size, &[(0, first, first + 9)]);
        let segments = [at("a", 90, 0), at("b", 90, 10), at("c", 90, 20), at("d", 90, 30), at("large", 100, 40), at("e", 1, 50)];
        assert_eq!(chosen(&segments, 5), [["a", "b"], ["c", "d"]]);
    }

    #[test]
    fn segments_that_hold_the_same_positions_are_refused() {
        let segments = [segment("a", 0, 1, &[(0, 0, 9)]), segment("b", 0, 1, &[(0, 9, 12)])];
        let refused = merges(segments.iter(), Timestamp::from_micros(9 * HOUR), &CompactPolicy::default());
        assert_eq!(refused, Err("a and b both hold positions 9 to 9 of partition 0".to_owned()));
    }

    #[test]
    fn hours_with_more_than_one_small_segment_of_a_topic_are_looked_at() {
        let mut small = SmallSegments::default();
        let other = SegmentRef { topic: "other".into(), ..segment("c", 1, 1, &[(0, 0, 1)]) };
        [segment("a", 0, 1, &[(0, 0, 1)]), segment("b", 1, 1, &[(0, 2, 3)]), other].iter().for_each(|one| small.add(one));
        small.add(&segment("d", 0, 1, &[(0, 4, 5)]));
        assert_eq!(small.into_hours(), BTreeSet::from([Window::of(Timestamp::from_micros(0))]));
    }

    #[test]
    fn hours_are_bunched_up_to_a_limit() {
        let hour = |hour: i64| Window::of(Timestamp::from_micros(hour * HOUR));
        let hours = BTreeMap::from([(hour(0), 3), (hour(1), 4), (hour(5), 3), (hour(6), 50), (hour(7), 1)]);
        assert_eq!(bunches(&hours, 10), [(hour(0), hour(5)), (hour(6), hour(6)), (hour(7), hour(7))]);
        assert!(bunches(&BTreeMap::new(), 10).is_empty());
    }

    #[test]
    fn hours_expire_whole_and_not_before_their_time() {
        let segments = [segment("a", 0, 1, &[(0, 0, 9)]), segment("b", 0, 1, &[(0, 10, 12)]), segment("c", 1, 1, &[(0, 13, 14)])];
        let at = |hour: i64| expired(segments.iter(), Timestamp::from_micros(hour * HOUR), Duration::from_secs(7200));
        assert_eq!(at(2).len(), 0);
        assert_eq!(at(3).into_values().collect::<Vec<_>>(), [["a", "b"]]);
        assert_eq!(at(4).len(), 2);
    }
}
