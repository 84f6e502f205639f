//! A table log in memory: for the suites, which need receipts, and for tests that have no store.
//!
//! Promises: what any table log promises of lanes and positions. Never: keeps segments apart from their records.

use async_trait::async_trait;
use tapedeck_common::commit::{Checkpoint, CommitError, CommitLog, Outcome, Record, StaleLane};

/// The numbered log of one table, in memory.
#[derive(Debug, Default)]
pub struct MemoryLog {
    records: Vec<Record>,
    checkpoint: Checkpoint,
}

impl MemoryLog {
    /// All records, in order.
    pub fn records(&self) -> &[Record] {
        &self.records
    }
}

#[async_trait]
impl CommitLog for MemoryLog {
    async fn checkpoint(&mut self) -> Result<Checkpoint, CommitError> {
        Ok(self.checkpoint.clone())
    }

    async fn append_record(&mut self, record: &Record) -> Result<Outcome, CommitError> {
        let stale = record.advances.iter().filter_map(|advance| {
            let found = self.checkpoint.get(&advance.lane).copied();
            let lane = || StaleLane { lane: advance.lane.clone(), expected: advance.expected, found };
            (found != advance.expected).then(lane)
        });
        let stale: Vec<_> = stale.collect();
        if !stale.is_empty() {
            return Ok(Outcome::Stale(stale));
        }
        for advance in &record.advances {
            self.checkpoint.insert(advance.lane.clone(), advance.span.until());
        }
        self.records.push(record.clone());
        Ok(Outcome::Committed { version: self.records.len() as u64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapedeck_common::commit::{Advance, Appended};
    use tapedeck_common::position::{LaneId, Position, Span};

    fn step(expected: Option<u64>, from: u64, until: u64) -> Record {
        let span = Span::new(Position::new(from), Position::new(until)).expect("forward");
        let lane = LaneId::new("s", 0);
        let advance = Advance { lane, expected: expected.map(Position::new), span, rows: 0, skipped: 0, gap: None };
        Record { advances: vec![advance], segments: Vec::new() }
    }

    #[tokio::test]
    async fn a_record_that_does_not_begin_where_the_lane_stands_is_refused() {
        let mut log = MemoryLog::default();
        assert!(matches!(log.append(&step(Some(0), 0, 1)).await, Ok(Appended::Stale(_))));
        assert!(matches!(log.append(&step(None, 4, 4)).await, Ok(Appended::Committed(_))));
        assert!(matches!(log.append(&step(Some(4), 4, 9)).await, Ok(Appended::Committed(_))));
        assert!(matches!(log.append(&step(Some(4), 4, 9)).await, Ok(Appended::Stale(_))));
        assert_eq!(log.checkpoint().await.expect("in memory").get(&LaneId::new("s", 0)), Some(&Position::new(9)));
    }
}
