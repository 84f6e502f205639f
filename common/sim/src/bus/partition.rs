//! One partition's history: events by position, with holes, cut at both ends.
//! Invariant: a position is given out once; what is deleted leaves a hole, never a shift.

use std::collections::BTreeMap;

use crate::event::BusEvent;

/// A partition of a topic.
#[derive(Debug, Default)]
pub(super) struct Partition {
    events: BTreeMap<u64, BusEvent>,
    begin: u64,
    end: u64,
}

impl Partition {
    /// Appends an event that has its time; answers its position.
    pub(super) fn append(&mut self, event: BusEvent) -> u64 {
        let position = self.end;
        self.events.insert(position, event);
        self.end += 1;
        position
    }

    /// Takes positions that no reader ever sees: control records, aborted events.
    pub(super) fn append_holes(&mut self, count: u64) {
        self.end += count;
    }

    /// Compaction: one event is gone, its position stays.
    pub(super) fn compact(&mut self, position: u64) {
        self.events.remove(&position);
    }

    /// Retention: everything before `begin` is gone.
    pub(super) fn expire(&mut self, begin: u64) {
        assert!(begin <= self.end, "retention never passes the end ({begin} > {})", self.end);
        self.begin = self.begin.max(begin);
        self.events = self.events.split_off(&self.begin);
    }

    /// An unclean election: the tail from `end` on is gone, and its positions are given out again.
    pub(super) fn truncate(&mut self, end: u64) {
        assert!(self.begin <= end && end <= self.end, "a tail is cut within the log");
        self.end = end;
        self.events.split_off(&end);
    }

    /// The first position that it still has.
    pub(super) fn begin(&self) -> u64 {
        self.begin
    }

    /// The position after its last one.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// At most `count` events from `from` on.
    pub(super) fn read(&self, from: u64, count: usize) -> impl Iterator<Item = (u64, &BusEvent)> {
        self.events.range(from..).take(count).map(|(position, event)| (*position, event))
    }
}
