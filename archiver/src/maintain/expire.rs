//! Takes whole hours out of a table, by their age.
//! Promise: an hour leaves in one record, or not at all; its files stay for the readers' grace, until the sweep.

use std::time::Duration;

use tapedeck_storage::log::rewrite::Rewrite;

use super::choose::expired;
use super::{Keeper, MaintainError};

/// A record takes out about so many segments; an hour with more has a record of its own.
const SEGMENTS_PER_RECORD: usize = 1_000;

/// What expiry did to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Expired {
    /// Hours that left.
    pub hours: u64,
    /// Segments that left with them.
    pub segments: u64,
    /// Records that somebody else made unnecessary, for now.
    pub refused: u64,
}

impl Keeper<'_> {
    /// Takes out all hours that have been over for `keep`. With `dry_run` it only says what it would take.
    pub async fn expire(&mut self, keep: Duration, dry_run: bool) -> Result<Expired, MaintainError> {
        let view = self.view().await?;
        let hours = expired(view.segments.iter().map(|live| &live.segment), self.clock.now(), keep);
        self.log.watch(hours.values().flatten().cloned(), []);
        let mut done = Expired::default();
        let (mut paths, mut count) = (Vec::new(), 0);
        let mut hours = hours.into_values().peekable();
        while let Some(hour) = hours.next() {
            paths.extend(hour);
            count += 1;
            if paths.len() < SEGMENTS_PER_RECORD && hours.peek().is_some() {
                continue;
            }
            let rewrite = Rewrite::expire(std::mem::take(&mut paths));
            let (in_record, segments) = (std::mem::take(&mut count), rewrite.removes.len() as u64);
            if dry_run || self.rewrite(&rewrite).await? {
                done.hours += in_record;
                done.segments += segments;
            } else {
                done.refused += 1;
            }
        }
        Ok(done)
    }
}
