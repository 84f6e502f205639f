//! What an event is, and how its time is known.

use std::fmt;

use crate::position::{LaneId, Position};
use crate::time::Timestamp;

/// Where an event's time comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimeKind {
    /// The producer set it.
    Create,
    /// The bus set it when it appended the event.
    Append,
    /// Nobody set one that a calendar holds; it is when the event reached us.
    Arrival,
}

impl TimeKind {
    /// The word in the `event_time_kind` column.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Append => "append",
            Self::Arrival => "arrival",
        }
    }

    /// The kind behind a word of that column.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Create, Self::Append, Self::Arrival].into_iter().find(|kind| kind.as_str() == word)
    }
}

/// One header: a name, and a value that may be null. Order and duplicates matter.
pub type Header<'a> = (&'a str, Option<&'a [u8]>);

/// An event's address in the archive, `<source>/<source_partition>/<source_offset>`: unique for ever, the same in every replay.
pub struct EventId<'a> {
    /// The lane it came in by.
    pub lane: &'a LaneId,
    /// Its place there.
    pub position: Position,
}

impl fmt::Display for EventId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.lane, self.position)
    }
}

/// The property that keeps a raw event time which no calendar holds.
pub const PROPERTY_RAW_TIME: &str = "raw_timestamp";

/// The property that keeps the raw bytes (base64) of the names of headers that are not UTF-8, as `<index>` appended.
pub const PROPERTY_RAW_HEADER: &str = "raw_header_name.";

/// The property that an over-size event carries, which lies in a segment of its own: its size in bytes.
pub const PROPERTY_OVERSIZE: &str = "oversize";

/// The header that marks an event as a copy that a replay published.
pub const HEADER_REPLAY_JOB: &str = "x-replay-job";

/// Settles an event's time: the bus's, if a calendar holds it, else the arrival.
pub fn settle_time(from_bus: Option<(Timestamp, TimeKind)>, arrival: Timestamp) -> (Timestamp, TimeKind) {
    match from_bus {
        Some((time, kind)) if time.is_calendar() => (time, kind),
        _ => (arrival, TimeKind::Arrival),
    }
}
