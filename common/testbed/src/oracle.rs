//! The judge: holds what the bus showed against what a reader of the archive, or of a replayed topic, yields.
//!
//! It shares no code with the judged; it knows topics, partitions, offsets and a digest of each event, 16 bytes an event and a
//! bit. It counts every kind of fault apart, since "some events differ" helps nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::Result;

use crate::events::Event;
use crate::read::{Isolation, read_each};

/// Topic and partition.
pub type Lane = (String, i32);

/// How many faults of each kind there were, and a few of them by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Events that were compared, good or bad.
    pub events: u64,
    /// In the truth, and never yielded.
    pub lost: u64,
    /// Yielded again.
    pub duplicate: u64,
    /// Yielded, and never in the truth.
    pub phantom: u64,
    /// Yielded after an event that comes later in the same lane.
    pub reordered: u64,
    /// Yielded with another key, value, header or time.
    pub corrupted: u64,
    /// The first few faults, in words.
    pub examples: Vec<String>,
}

impl Report {
    /// Nothing lost, doubled, invented, reordered or changed?
    pub fn is_clean(&self) -> bool {
        self.lost + self.duplicate + self.phantom + self.reordered + self.corrupted == 0
    }

    fn note(&mut self, fault: &str, (topic, partition): (&str, i32), offset: i64) {
        if self.examples.len() < 10 {
            self.examples.push(format!("{fault} {topic}/{partition}@{offset}"));
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} events: {} lost, {} duplicate, {} phantom, {} reordered, {} corrupted",
            self.events, self.lost, self.duplicate, self.phantom, self.reordered, self.corrupted
        )?;
        if !self.examples.is_empty() {
            write!(out, " ({})", self.examples.join("; "))?;
        }
        Ok(())
    }
}

/// Every event that the bus showed: per lane offset and digest, in order of offset.
#[derive(Debug, Clone, Default)]
pub struct Truth {
    lanes: BTreeMap<Lane, Vec<(i64, u64)>>,
}

impl Truth {
    /// An empty truth, to be filled by [`Self::add`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the visible events of `topics` from the bus (read committed).
    pub fn from_bus(bootstrap: &str, topics: &[&str]) -> Result<Self> {
        let mut truth = Self::new();
        for topic in topics {
            read_each(bootstrap, topic, Isolation::Committed, |received| {
                let digest = received.event.digest();
                truth.add(topic, received.partition, received.offset, digest);
                Ok(())
            })?;
        }
        Ok(truth)
    }

    /// Adds one event. Within a lane offsets must grow.
    pub fn add(&mut self, topic: &str, partition: i32, offset: i64, digest: u64) {
        let lane = self.lanes.entry((topic.to_owned(), partition)).or_default();
        debug_assert!(lane.last().is_none_or(|(last, _)| *last < offset));
        lane.push((offset, digest));
    }

    /// The same without the events that `gone` names by partition and offset, as where a gap is on record.
    #[must_use]
    pub fn without(&self, gone: impl Fn(i32, i64) -> bool) -> Self {
        let rest = |((topic, partition), lane): (&Lane, &Vec<(i64, u64)>)| {
            let left = lane.iter().filter(|(offset, _)| !gone(*partition, *offset)).copied().collect();
            ((topic.clone(), *partition), left)
        };
        Self { lanes: self.lanes.iter().map(rest).collect() }
    }

    /// The same with what the bus shows beyond it, where that is an event of the truth once more: a producer whose broker died
    /// before it answered sends again, and the broker may have forgotten that it has the event. Also answers how many there are.
    #[must_use]
    pub fn with_twins(&self, bus: &Self) -> (Self, u64) {
        let mut all = self.clone();
        for (name, lane) in &mut all.lanes {
            let known: BTreeMap<i64, u64> = lane.iter().copied().collect();
            let digests: BTreeSet<u64> = known.values().copied().collect();
            let beyond = bus.lanes.get(name).into_iter().flatten();
            lane.extend(beyond.filter(|(offset, digest)| !known.contains_key(offset) && digests.contains(digest)));
            lane.sort_unstable();
        }
        let twins = all.len() - self.len();
        (all, twins)
    }

    /// How many events there are.
    pub fn len(&self) -> u64 {
        self.lanes.values().map(|lane| lane.len() as u64).sum()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sum of all digests: equal for equal multisets, whatever the order.
    pub fn digest_sum(&self) -> u64 {
        let digests = self.lanes.values().flatten().map(|(_, digest)| *digest);
        digests.fold(0, u64::wrapping_add)
    }

    /// Per lane the digests in order: what a replay should bring.
    pub fn sequences(&self) -> BTreeMap<Lane, Vec<u64>> {
        let digests = |lane: &Vec<(i64, u64)>| lane.iter().map(|(_, digest)| *digest).collect();
        self.lanes.iter().map(|(name, lane)| (name.clone(), digests(lane))).collect()
    }

    /// Begins to judge a reader.
    pub fn judge(&self) -> Judge<'_> {
        let unseen = |lane: &Vec<(i64, u64)>| vec![false; lane.len()];
        let seen = self.lanes.iter().map(|(name, lane)| (name, unseen(lane))).collect();
        Judge { truth: self, seen, last: BTreeMap::new(), report: Report::default() }
    }

    /// Judges a whole reader at once: `(topic, partition, offset, digest)` in the order in which it yields them.
    pub fn compare<S: AsRef<str>>(&self, yielded: impl IntoIterator<Item = (S, i32, i64, u64)>) -> Report {
        let mut judge = self.judge();
        for (topic, partition, offset, digest) in yielded {
            judge.see(topic.as_ref(), partition, offset, digest);
        }
        judge.verdict()
    }
}

/// Sees events one by one and says at the end what was wrong.
#[derive(Debug)]
pub struct Judge<'a> {
    truth: &'a Truth,
    seen: BTreeMap<&'a Lane, Vec<bool>>,
    last: BTreeMap<Lane, i64>,
    report: Report,
}

impl Judge<'_> {
    /// The reader yields this event now.
    pub fn see(&mut self, topic: &str, partition: i32, offset: i64, digest: u64) {
        let lane = (topic.to_owned(), partition);
        self.report.events += 1;
        let place = (topic, partition);
        let Some(known) = self.truth.lanes.get(&lane) else {
            self.report.phantom += 1;
            self.report.note("phantom", place, offset);
            return;
        };
        let Ok(index) = known.binary_search_by_key(&offset, |(offset, _)| *offset) else {
            self.report.phantom += 1;
            self.report.note("phantom", place, offset);
            return;
        };
        let seen = self.seen.get_mut(&lane).map(|seen| std::mem::replace(&mut seen[index], true));
        if seen == Some(true) {
            self.report.duplicate += 1;
            self.report.note("duplicate", place, offset);
            return;
        }
        if known[index].1 != digest {
            self.report.corrupted += 1;
            self.report.note("corrupted", place, offset);
        }
        let last = self.last.entry(lane).or_insert(offset);
        if offset < *last {
            self.report.reordered += 1;
            self.report.note("reordered", place, offset);
        }
        *last = offset.max(*last);
    }

    /// The reader is through: what is missing now is lost.
    pub fn verdict(mut self) -> Report {
        for (lane, seen) in &self.seen {
            for (index, _) in seen.iter().enumerate().filter(|(_, seen)| !**seen) {
                self.report.lost += 1;
                self.report.note("lost", (&lane.0, lane.1), self.truth.lanes[*lane][index].0);
            }
        }
        self.report
    }
}

/// Judges a replay, where offsets are new: per lane the same digests must arrive in the same order.
///
/// A repeat of what came before is a duplicate, not a reordering; that is what at-least-once may do.
pub fn compare_replay(expected: &BTreeMap<Lane, Vec<u64>>, arrived: &BTreeMap<Lane, Vec<u64>>) -> Report {
    let mut report = Report::default();
    let nothing = Vec::new();
    for (lane, wanted) in expected {
        let came = arrived.get(lane).unwrap_or(&nothing);
        compare_lane(lane, wanted, came, &mut report);
    }
    for (lane, came) in arrived.iter().filter(|(lane, _)| !expected.contains_key(*lane)) {
        report.phantom += came.len() as u64;
        report.note("phantom lane", (&lane.0, lane.1), 0);
    }
    report
}

fn compare_lane(lane: &Lane, wanted: &[u64], came: &[u64], report: &mut Report) {
    // Equal digests may stand at several places; each place is taken once, the earliest first.
    let mut places: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (place, digest) in wanted.iter().enumerate().rev() {
        places.entry(*digest).or_default().push(place);
    }
    let mut furthest = None;
    for (offset, digest) in came.iter().enumerate() {
        report.events += 1;
        let name = (lane.0.as_str(), lane.1);
        match places.get_mut(digest).map(Vec::pop) {
            None => {
                report.phantom += 1;
                report.note("phantom", name, offset as i64);
            }
            Some(None) => {
                report.duplicate += 1;
                report.note("duplicate", name, offset as i64);
            }
            Some(Some(place)) => {
                if furthest.is_some_and(|furthest| place < furthest) {
                    report.reordered += 1;
                    report.note("reordered", name, offset as i64);
                }
                furthest = furthest.max(Some(place));
            }
        }
    }
    for place in places.values().flatten() {
        report.lost += 1;
        report.note("lost", (&lane.0, lane.1), *place as i64);
    }
}

/// 64 bits of BLAKE3 over everything that must survive: key, value, headers in order, time. Null and empty differ.
pub fn digest<'a>(
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: impl IntoIterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    timestamp: i64,
) -> u64 {
    let mut hasher = blake3::Hasher::new();
    let mut field = |bytes: Option<&[u8]>| {
        // One more than the length, so that null is 0 and empty is 1.
        let length = bytes.map_or(0, |bytes| bytes.len() as u64 + 1);
        hasher.update(&length.to_le_bytes());
        hasher.update(bytes.unwrap_or_default());
    };
    field(Some(&timestamp.to_le_bytes()));
    field(key);
    field(value);
    for (name, value) in headers {
        field(Some(name));
        field(value);
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}

impl Event {
    /// What the judge knows of this event.
    pub fn digest(&self) -> u64 {
        let headers = self.headers.iter();
        let headers = headers.map(|(name, value)| (name.as_bytes(), value.as_deref()));
        digest(self.key.as_deref(), self.value.as_deref(), headers, self.timestamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth() -> Truth {
        let mut truth = Truth::new();
        // Offset 2 is a control record: nobody sees it.
        for offset in [0, 1, 3, 4] {
            truth.add("orders", 0, offset, 100 + offset as u64);
        }
        truth.add("orders", 1, 0, 7);
        truth
    }

    type Yielded = (&'static str, i32, i64, u64);

    fn all() -> Vec<Yielded> {
        vec![("orders", 0, 0, 100), ("orders", 1, 0, 7), ("orders", 0, 1, 101), ("orders", 0, 3, 103), ("orders", 0, 4, 104)]
    }

    fn faults(report: &Report) -> [u64; 5] {
        [report.lost, report.duplicate, report.phantom, report.reordered, report.corrupted]
    }

    #[test]
    fn only_what_the_bus_has_twice_may_be_there_twice() {
        let mut bus = truth();
        bus.add("orders", 0, 5, 103);
        bus.add("orders", 0, 6, 999);
        let (with_twins, twins) = truth().with_twins(&bus);
        // 999 is no event of the truth, and 8 is not on the bus.
        let yielded = [("orders", 0, 5, 103), ("orders", 0, 6, 999), ("orders", 0, 8, 103)];
        let report = with_twins.compare(all().into_iter().chain(yielded));
        assert_eq!((twins, faults(&report)), (1, [0, 0, 2, 0, 0]), "{report}");
        assert_eq!(with_twins.compare(all()).lost, 1);
    }

    #[test]
    fn a_whole_archive_is_clean() {
        let report = truth().compare(all());
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.events, 5);
    }

    #[test]
    fn each_fault_is_counted_as_what_it_is() {
        let spoilt = |spoil: fn(&mut Vec<Yielded>)| {
            let mut yielded = all();
            spoil(&mut yielded);
            faults(&truth().compare(yielded))
        };
        assert_eq!(spoilt(|all| all.truncate(4)), [1, 0, 0, 0, 0]);
        assert_eq!(spoilt(|all| all.push(all[0])), [0, 1, 0, 0, 0]);
        assert_eq!(spoilt(|all| all.push(("orders", 0, 2, 102))), [0, 0, 1, 0, 0]);
        assert_eq!(spoilt(|all| all.push(("clicks", 0, 0, 1))), [0, 0, 1, 0, 0]);
        assert_eq!(spoilt(|all| all.swap(2, 3)), [0, 0, 0, 1, 0]);
        assert_eq!(spoilt(|all| all[1].3 = 8), [0, 0, 0, 0, 1]);
    }

    #[test]
    fn what_is_known_to_be_gone_is_not_lost_and_must_not_be_there() {
        let truth = truth().without(|partition, offset| partition == 0 && offset < 3);
        assert_eq!(truth.len(), 3);
        let yielded = all().into_iter().filter(|(_, partition, offset, _)| *partition == 1 || *offset >= 1);
        assert_eq!(faults(&truth.compare(yielded)), [0, 0, 1, 0, 0]);
    }

    #[test]
    fn a_replay_is_judged_without_offsets() {
        let lane = |digests: &[u64]| BTreeMap::from([(("orders".to_owned(), 0), digests.to_vec())]);
        let judged = |came: &[u64]| faults(&compare_replay(&lane(&[1, 2, 2, 3, 4]), &lane(came)));
        assert_eq!(judged(&[1, 2, 2, 3, 4]), [0, 0, 0, 0, 0]);
        assert_eq!(judged(&[1, 2, 2, 3]), [1, 0, 0, 0, 0]);
        assert_eq!(judged(&[1, 2, 2, 3, 2, 3, 4]), [0, 2, 0, 0, 0]);
        assert_eq!(judged(&[1, 2, 2, 3, 4, 5]), [0, 0, 1, 0, 0]);
        assert_eq!(judged(&[1, 2, 3, 2, 4]), [0, 0, 0, 1, 0]);
    }

    #[test]
    fn the_digest_tells_null_from_empty_and_keeps_header_order() {
        let plain = digest(None, None, [], 5);
        let mut all = vec![
            plain,
            digest(Some(b""), None, [], 5),
            digest(None, Some(b""), [], 5),
            digest(None, None, [], 6),
            digest(None, None, [(&b"a"[..], None)], 5),
            digest(None, None, [(&b"a"[..], Some(&b""[..]))], 5),
            digest(None, None, [(&b"a"[..], None), (&b"b"[..], None)], 5),
            digest(None, None, [(&b"b"[..], None), (&b"a"[..], None)], 5),
        ];
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 8);
    }
}
