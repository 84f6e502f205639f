//! What a table holds of each topic. Promises: from the live segments that the records leave, and nothing else. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;
use tapedeck_common::commit::SegmentRef;
use tapedeck_common::{Timestamp, Window};

use crate::log::reach::{Reach, Reached};

/// One topic, by the live segments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TopicReport {
    /// Its true name.
    pub topic: String,
    /// Rows that are there.
    pub rows: u64,
    /// Segments that hold them.
    pub segments: u64,
    /// Hours of event time (UTC) with rows.
    pub hours: u64,
    /// The first of them, `YYYY-MM-DDTHH`.
    pub first_hour: String,
    /// The last of them.
    pub last_hour: String,
    /// The earliest event.
    pub first_event: String,
    /// The latest event.
    pub last_event: String,
    /// The sources of the rows: more than one where the topic was made anew, or comes from several clusters.
    pub sources: Vec<String>,
    /// How far all its lanes have come.
    pub reached: Option<Reached>,
}

/// Adds up one topic.
#[derive(Default)]
struct Sum {
    rows: u64,
    segments: u64,
    hours: BTreeSet<Window>,
    times: Option<(Timestamp, Timestamp)>,
    reach: Reach,
}

/// What the segments hold, topic by topic.
pub(super) fn topics<'a>(live: impl Iterator<Item = &'a SegmentRef>) -> Vec<TopicReport> {
    let mut sums: BTreeMap<Arc<str>, Sum> = BTreeMap::new();
    for segment in live {
        let sum = sums.entry(Arc::clone(&segment.topic)).or_default();
        sum.rows += segment.rows;
        sum.segments += 1;
        sum.hours.insert(segment.window);
        let (first, last) = sum.times.unwrap_or(segment.times);
        sum.times = Some((first.min(segment.times.0), last.max(segment.times.1)));
        sum.reach.add(segment);
    }
    sums.into_iter().map(|(topic, sum)| sum.report(&topic)).collect()
}

impl Sum {
    fn report(self, topic: &str) -> TopicReport {
        let hour = |hour: Option<&Window>| hour.map(Window::to_string).unwrap_or_default();
        let time = |time: Option<Timestamp>| time.map(|time| time.to_string()).unwrap_or_default();
        TopicReport {
            topic: topic.to_owned(),
            rows: self.rows,
            segments: self.segments,
            hours: self.hours.len() as u64,
            first_hour: hour(self.hours.first()),
            last_hour: hour(self.hours.last()),
            first_event: time(self.times.map(|times| times.0)),
            last_event: time(self.times.map(|times| times.1)),
            sources: self.reach.sources().iter().map(|source| source.to_string()).collect(),
            reached: self.reach.reached(),
        }
    }
}
