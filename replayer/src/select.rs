//! Which events are asked for, and what a segment's entry in the log already says about that.
//!
//! Promises: a segment is called whole or untouched only when its entry proves it; in doubt it is read. Time is half open,
//! `[from, until)`, and means the event's time. Pure. Never: open a segment.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tapedeck_common::commit::{SegmentLane, SegmentRef};
use tapedeck_common::{Position, Timestamp};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// True names of topics; empty means all.
    pub topics: BTreeSet<String>,
    /// Events from this time on.
    #[serde(with = "text_time")]
    pub from: Option<Timestamp>,
    /// Events before this time.
    #[serde(with = "text_time")]
    pub until: Option<Timestamp>,
    /// Only these partitions; empty means all.
    pub partitions: BTreeSet<i32>,
    /// Only positions from the first up to, and without, the second.
    pub offsets: Option<(Position, Position)>,
    /// Only events with this key, written as text or as `base64:...`.
    pub key: Option<String>,
}

/// What a segment's entry says about a selection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touch {
    /// No row of it is asked for.
    Nothing,
    /// All rows of these lanes are asked for, and no other row.
    Whole(Vec<SegmentLane>),
    /// Rows of these lanes may be asked for; only reading tells which.
    Look(Vec<SegmentLane>),
}

impl Selection {
    /// True if the topic is asked for.
    pub fn has_topic(&self, topic: &str) -> bool {
        self.topics.is_empty() || self.topics.contains(topic)
    }

    /// What `segment` holds of the selection, as far as its entry tells.
    pub fn touch(&self, segment: &SegmentRef) -> Touch {
        let (earliest, latest) = segment.times;
        let apart = self.from.is_some_and(|from| latest < from) || self.until.is_some_and(|until| earliest >= until);
        if apart || !self.has_topic(&segment.topic) {
            return Touch::Nothing;
        }
        let lanes: Vec<SegmentLane> = segment.lanes.iter().filter(|lane| self.may_want(lane)).copied().collect();
        if lanes.is_empty() {
            return Touch::Nothing;
        }
        let in_time = self.from.is_none_or(|from| from <= earliest) && self.until.is_none_or(|until| latest < until);
        let in_range = lanes.iter().all(|lane| self.has_position(lane.first) && self.has_position(lane.last));
        if in_time && in_range && self.key.is_none() { Touch::Whole(lanes) } else { Touch::Look(lanes) }
    }

    fn may_want(&self, lane: &SegmentLane) -> bool {
        let in_range = self.offsets.is_none_or(|(from, until)| lane.last >= from && lane.first < until);
        self.has_partition(lane.partition) && in_range
    }

    /// True if the partition is asked for.
    pub fn has_partition(&self, partition: i32) -> bool {
        self.partitions.is_empty() || self.partitions.contains(&partition)
    }

    /// True if the position is asked for.
    pub fn has_position(&self, position: Position) -> bool {
        self.offsets.is_none_or(|(from, until)| from <= position && position < until)
    }

    /// True if the time is asked for.
    pub fn has_time(&self, time: Timestamp) -> bool {
        self.from.is_none_or(|from| from <= time) && self.until.is_none_or(|until| time < until)
    }

    /// The bytes of the key that is asked for.
    pub fn key_bytes(&self) -> Result<Option<Vec<u8>>, base64::DecodeError> {
        use base64::Engine as _;
        let Some(key) = &self.key else { return Ok(None) };
        match key.strip_prefix("base64:") {
            Some(code) => base64::engine::general_purpose::STANDARD.decode(code).map(Some),
            None => Ok(Some(key.as_bytes().to_vec())),
        }
    }
}

/// Times in JSON as people read them: what [`Timestamp`] prints, and nothing else, over the whole calendar.
pub(crate) mod text_time {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use tapedeck_common::{Timestamp, Window};

    pub(crate) fn serialize<S: Serializer>(time: &Option<Timestamp>, out: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => out.collect_str(time),
            None => out.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
        let Some(text) = Option::<String>::deserialize(from)? else { return Ok(None) };
        let wrong = || D::Error::custom(format!("{text:?} is no time like 2026-11-20T10:00:00.123Z"));
        read(&text).map(Some).ok_or_else(wrong)
    }

    fn read(text: &str) -> Option<Timestamp> {
        let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
        let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
        let mut parts = clock.split(':');
        let hour = Window::parse(date, parts.next()?)?;
        let mut sixtieth = || parts.next()?.parse::<i64>().ok().filter(|part| (0..60).contains(part));
        let seconds = sixtieth()? * 60 + sixtieth()?;
        let micros = format!("{fraction:0<6}").parse::<i64>().ok().filter(|_| fraction.len() <= 6)?;
        parts.next().is_none().then(|| Timestamp::from_micros(hour.start().micros() + seconds * 1_000_000 + micros))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn what_a_time_prints_reads_back_over_the_whole_calendar() {
            for micros in [0, 1, 123_000, 1_795_082_400_123_456, 253_402_300_799_999_999, -1] {
                let time = Timestamp::from_micros(micros);
                assert_eq!(read(&time.to_string()), Some(time), "{time}");
            }
            for bad in
                ["", "2026-11-20", "2026-11-20T10:00Z", "2026-11-20T10:00:60Z", "2026-11-20T24:00:00Z", "2026-11-20T10:00:00"]
            {
                assert_eq!(read(bad), None, "{bad}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tapedeck_common::Window;

    use super::*;

    fn lane(partition: i32, first: u64, last: u64) -> SegmentLane {
        SegmentLane {
            partition,
            first: Position::new(first),
            last: Position::new(last),
            rows: last - first + 1,
            payload_bytes: 100,
        }
    }

    fn time(minute: i64) -> Timestamp {
        Timestamp::from_micros(minute * 60_000_000)
    }

    /// An hour's segment with events from minute 10 to minute 50 in two lanes.
    fn segment() -> SegmentRef {
        SegmentRef {
            path: "x.parquet".into(),
            source: "kafka/c/t/0".into(),
            topic: "orders".into(),
            window: Window::of(time(10)),
            rows: 31,
            size: 1_000,
            blake3: String::new(),
            modified: time(0),
            times: (time(10), time(50)),
            null_keys: 0,
            null_values: 0,
            lanes: vec![lane(0, 100, 119), lane(1, 40, 50)],
        }
    }

    fn asked(change: impl FnOnce(&mut Selection)) -> Touch {
        let mut selection = Selection::default();
        change(&mut selection);
        selection.touch(&segment())
    }

    #[test]
    fn an_entry_proves_whole_or_nothing_and_else_the_segment_is_read() {
        let both = vec![lane(0, 100, 119), lane(1, 40, 50)];
        assert_eq!(asked(|_| ()), Touch::Whole(both.clone()));
        assert_eq!(asked(|ask| ask.from = Some(time(10))), Touch::Whole(both.clone()));
        assert_eq!(asked(|ask| ask.from = Some(time(11))), Touch::Look(both.clone()));
        assert_eq!(asked(|ask| ask.from = Some(time(51))), Touch::Nothing);
        assert_eq!(asked(|ask| ask.until = Some(time(51))), Touch::Whole(both.clone()));
        assert_eq!(asked(|ask| ask.until = Some(time(50))), Touch::Look(both.clone()), "until is out");
        assert_eq!(asked(|ask| ask.until = Some(time(10))), Touch::Nothing);
        assert_eq!(asked(|ask| ask.key = Some("k".into())), Touch::Look(both));
        assert_eq!(asked(|ask| ask.topics = ["other".to_owned()].into()), Touch::Nothing);
    }

    #[test]
    fn partitions_and_positions_narrow_the_lanes() {
        let range = |from, until| Some((Position::new(from), Position::new(until)));
        assert_eq!(asked(|ask| ask.partitions = [1].into()), Touch::Whole(vec![lane(1, 40, 50)]));
        assert_eq!(asked(|ask| ask.partitions = [2].into()), Touch::Nothing);
        assert_eq!(asked(|ask| ask.offsets = range(100, 120)), Touch::Whole(vec![lane(0, 100, 119)]));
        assert_eq!(asked(|ask| ask.offsets = range(100, 119)), Touch::Look(vec![lane(0, 100, 119)]));
        assert_eq!(asked(|ask| ask.offsets = range(51, 100)), Touch::Nothing);
    }

    #[test]
    fn a_selection_reads_back_from_json() {
        let selection = Selection {
            topics: ["orders".to_owned()].into(),
            from: Some(time(1)),
            until: None,
            partitions: [3, 1].into(),
            offsets: Some((Position::new(1), Position::new(9))),
            key: Some("base64:AAE=".into()),
        };
        let text = serde_json::to_string(&selection).expect("plain data");
        assert!(text.contains(r#""from":"1970-01-01T00:01:00Z""#), "{text}");
        assert_eq!(serde_json::from_str::<Selection>(&text).expect("our own"), selection);
        assert_eq!(selection.key_bytes(), Ok(Some(vec![0, 1])));
    }
}
