//! Puts the segments of a plan into runs: what has to be read together, and what may come after what.
//!
//! One batch of the archiver makes a segment per hour, and their positions interleave; such segments are one run, merged
//! by position. Promises: in every lane, all of a run's positions lie before those of the runs after it; among runs that no
//! lane binds, the one with the earliest event comes first. Pure. Never: open a segment.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use tapedeck_common::{Position, Timestamp};

/// What ordering needs to know about one segment.
#[derive(Debug, Clone)]
pub struct Extent {
    /// Its earliest event.
    pub earliest: Timestamp,
    /// Its lanes (by the caller's numbers), each with the first and the last position.
    pub lanes: Vec<(usize, Position, Position)>,
}

/// Groups segments (by their index) into runs and orders these.
pub fn runs(segments: &[Extent]) -> Vec<Vec<usize>> {
    let by_lane = sorted_by_lane(segments);
    let groups = join_overlapping(segments.len(), &by_lane);
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (segment, group) in groups.iter().enumerate() {
        members.entry(*group).or_default().push(segment);
    }
    in_order(segments, &groups, &by_lane, members)
}

/// One part of a lane: first and last position, and the segment.
type Part = (Position, Position, usize);

fn sorted_by_lane(segments: &[Extent]) -> BTreeMap<usize, Vec<Part>> {
    let mut by_lane: BTreeMap<usize, Vec<Part>> = BTreeMap::new();
    for (segment, extent) in segments.iter().enumerate() {
        for (lane, first, last) in &extent.lanes {
            by_lane.entry(*lane).or_default().push((*first, *last, segment));
        }
    }
    by_lane.values_mut().for_each(|parts| parts.sort_unstable());
    by_lane
}

/// The group of each segment: segments whose positions overlap in any lane share one.
fn join_overlapping(segments: usize, by_lane: &BTreeMap<usize, Vec<Part>>) -> Vec<usize> {
    let mut parent: Vec<usize> = (0..segments).collect();
    for parts in by_lane.values() {
        let mut reach: Option<(Position, usize)> = None;
        for (first, last, segment) in parts {
            reach = Some(match reach {
                Some((end, other)) if *first <= end => {
                    let (a, b) = (root(&mut parent, other), root(&mut parent, *segment));
                    parent[a.max(b)] = a.min(b);
                    (end.max(*last), *segment)
                }
                _ => (*last, *segment),
            });
        }
    }
    (0..segments).map(|segment| root(&mut parent, segment)).collect()
}

fn root(parent: &mut [usize], mut node: usize) -> usize {
    while parent[node] != node {
        parent[node] = parent[parent[node]];
        node = parent[node];
    }
    node
}

/// Lists the groups so that every lane is served in order, the earliest event first where lanes leave a choice.
fn in_order(
    segments: &[Extent],
    groups: &[usize],
    by_lane: &BTreeMap<usize, Vec<Part>>,
    mut members: BTreeMap<usize, Vec<usize>>,
) -> Vec<Vec<usize>> {
    let mut after: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    let mut waits_for: BTreeMap<usize, usize> = BTreeMap::new();
    for parts in by_lane.values() {
        for pair in parts.windows(2) {
            let (before, next) = (groups[pair[0].2], groups[pair[1].2]);
            if before != next && after.entry(before).or_default().insert(next) {
                *waits_for.entry(next).or_default() += 1;
            }
        }
    }
    let earliest = |members: &[usize]| members.iter().map(|segment| segments[*segment].earliest).min().unwrap_or_default();
    let mut free: BinaryHeap<_> = members
        .iter()
        .filter(|(group, _)| !waits_for.contains_key(group))
        .map(|(group, members)| Reverse((earliest(members), *group)))
        .collect();
    let mut ordered = Vec::with_capacity(members.len());
    while let Some(Reverse((_, group))) = free.pop() {
        ordered.extend(members.remove(&group));
        for next in after.get(&group).into_iter().flatten() {
            let waits = waits_for.get_mut(next).expect("every follower was counted");
            *waits -= 1;
            if *waits == 0 {
                free.push(Reverse((earliest(&members[next]), *next)));
            }
        }
    }
    // Compacted hours can stand in a circle: A before B in one lane, B before A in another. The merge opens a segment only
    // when a lane needs it, so the rest of such a plan is one run and still reads in order.
    if !members.is_empty() {
        ordered.push(members.into_values().flatten().collect());
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(earliest: i64, lanes: &[(usize, u64, u64)]) -> Extent {
        let lanes = lanes.iter().map(|(lane, first, last)| (*lane, Position::new(*first), Position::new(*last)));
        Extent { earliest: Timestamp::from_micros(earliest), lanes: lanes.collect() }
    }

    #[test]
    fn hours_of_one_batch_are_one_run_and_batches_follow_each_other() {
        let segments =
            [extent(30, &[(0, 100, 199), (1, 60, 80)]), extent(10, &[(0, 0, 99)]), extent(20, &[(0, 5, 50), (1, 0, 50)])];
        assert_eq!(runs(&segments), [vec![1, 2], vec![0]]);
    }

    #[test]
    fn order_in_a_lane_outranks_time_and_time_settles_the_rest() {
        let segments = [extent(90, &[(0, 0, 9)]), extent(10, &[(0, 10, 19)]), extent(50, &[(7, 0, 3)]), extent(5, &[(8, 4, 4)])];
        assert_eq!(runs(&segments), [vec![3], vec![2], vec![0], vec![1]]);
    }

    #[test]
    fn a_circle_becomes_one_run() {
        let segments = [extent(1, &[(0, 0, 9), (1, 10, 19)]), extent(2, &[(0, 10, 19), (1, 0, 9)]), extent(0, &[(2, 0, 0)])];
        assert_eq!(runs(&segments), [vec![2], vec![0, 1]]);
    }

    #[test]
    fn nothing_gives_no_run() {
        assert!(runs(&[]).is_empty());
    }
}
