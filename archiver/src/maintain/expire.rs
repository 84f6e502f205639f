//! Takes whole hours out of a table, by their age.
//! Promises: an hour leaves in one record, or not at all; its files stay for the readers' grace, until the sweep; a clock that is
//! ahead, ours or the store's, takes no hour out before its time. Only the segments of one record are held at a time.

use std::collections::BTreeMap;
use std::time::Duration;

use tapedeck_common::commit::SegmentRef;
use tapedeck_common::{Timestamp, Window};
use tapedeck_storage::log::TableView;
use tapedeck_storage::log::rewrite::Rewrite;

use super::choose::{bunches, expired, is_over};
use super::{Keeper, MaintainError};

/// A record takes out about so many segments; an hour with more has a record of its own.
const SEGMENTS_PER_RECORD: u64 = 1_000;

/// What expiry did to a table, or would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Expired {
    /// Hours that left.
    pub hours: u64,
    /// Segments that left with them.
    pub segments: u64,
    /// Records that somebody else made unnecessary, for now.
    pub refused: u64,
}

impl Keeper {
    /// Takes out all hours that have been over for `keep`. With `dry_run` it only says what it would take.
    pub async fn expire(&mut self, keep: Duration, dry_run: bool) -> Result<Expired, MaintainError> {
        let now = self.clock.now().min(self.store_time().await?);
        let hours = self.expired_hours(keep, now).await?;
        if dry_run {
            return Ok(Expired { hours: hours.len() as u64, segments: hours.values().sum(), refused: 0 });
        }
        let mut done = Expired::default();
        for (first, last) in bunches(&hours, SEGMENTS_PER_RECORD) {
            let view = self.hours(first, last).await?;
            let live = view.segments.iter().map(|live| &live.segment);
            let mut leaving = expired(live, now, keep);
            leaving.retain(|hour, _| (first..=last).contains(hour));
            let in_record = leaving.len() as u64;
            let paths: Vec<String> = leaving.into_values().flatten().collect();
            if paths.is_empty() {
                continue;
            }
            let segments = paths.len() as u64;
            self.log.watch(paths.iter().cloned(), []);
            if self.rewrite(&Rewrite::expire(paths)).await? {
                done.hours += in_record;
                done.segments += segments;
            } else {
                done.refused += 1;
            }
        }
        Ok(done)
    }

    /// The hours that have been over for `keep`, with the number of their segments.
    async fn expired_hours(&mut self, keep: Duration, now: Timestamp) -> Result<BTreeMap<Window, u64>, MaintainError> {
        let version = self.log.catch_up().await?;
        let add = |hours: &mut BTreeMap<Window, u64>, segment: &SegmentRef| {
            if is_over(segment.window, now, keep) {
                *hours.entry(segment.window).or_default() += 1;
            }
        };
        Ok(TableView::tally(&self.archive.store, &self.table, Some(version), BTreeMap::new, add).await?.1)
    }
}
