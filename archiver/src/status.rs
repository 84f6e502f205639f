//! What a running archiver says of itself: one picture, from which the status page, the readiness and the gauges are made.

use serde::Serialize;
use tapedeck_common::position::{LaneId, Position, Span};
use tapedeck_common::time::Timestamp;

use crate::maintain::Done;

/// One lane.
#[derive(Debug, Clone, Serialize)]
pub struct LaneStatus {
    /// Its name.
    pub lane: String,
    /// The topic's true name.
    pub topic: String,
    /// True once it is read; false while its log is being looked up.
    pub reading: bool,
    /// True if it was stopped because the archive is ahead of the bus.
    pub halted: bool,
    /// The position after everything that was taken in.
    pub next: Option<Position>,
    /// The position up to which nothing is missing in the archive, as far as this process knows.
    pub committed: Option<Position>,
    /// The first position that the bus still has.
    pub bus_begin: Option<Position>,
    /// The position after the last event of the bus.
    pub bus_end: Option<Position>,
    /// Everything that the bus held before this moment is in the archive.
    #[serde(serialize_with = "rfc3339")]
    pub watermark: Option<Timestamp>,
}

impl LaneStatus {
    /// A lane of which only the bus has spoken.
    pub fn new(lane: &LaneId, topic: &str, halted: bool, bounds: Option<Span>) -> Self {
        Self {
            lane: lane.to_string(),
            topic: topic.to_owned(),
            reading: false,
            halted,
            next: None,
            committed: None,
            bus_begin: bounds.map(Span::from),
            bus_end: bounds.map(Span::until),
            watermark: None,
        }
    }

    /// Events of the bus that are not in the archive yet, control records included.
    pub fn lag(&self) -> Option<u64> {
        Some(self.bus_end?.get().saturating_sub(self.committed?.get()))
    }
}

/// One source.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SourceStatus {
    /// True once the bus has said which lanes are ours, none perhaps.
    pub joined: bool,
    /// Its lanes that are ours.
    pub lanes: Vec<LaneStatus>,
    /// Events that are taken in and not yet in the log.
    pub buffered_events: u64,
    /// The earliest event time among them.
    #[serde(serialize_with = "rfc3339")]
    pub oldest_unarchived: Option<Timestamp>,
    /// True while a batch is on its way to the store.
    pub storing: bool,
}

impl SourceStatus {
    /// True once the bus has given us our share, and every lane of it is read or was halted on purpose.
    pub fn is_ready(&self) -> bool {
        self.joined && self.lanes.iter().all(|lane| lane.reading || lane.halted)
    }
}

/// A duty of maintenance in the background.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DutyStatus {
    /// True while it is being done.
    pub running: bool,
    /// When it last ended, well or badly.
    #[serde(serialize_with = "rfc3339")]
    pub ended: Option<Timestamp>,
    /// When it last ended well.
    #[serde(serialize_with = "rfc3339")]
    pub succeeded: Option<Timestamp>,
    /// What it did then, in all tables together.
    pub done: Option<Done>,
    /// Why it failed, if it failed the last time.
    pub error: Option<String>,
    /// When it is due again.
    #[serde(serialize_with = "rfc3339")]
    pub next: Option<Timestamp>,
}

fn rfc3339<S: serde::Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(time),
        None => serializer.serialize_none(),
    }
}
