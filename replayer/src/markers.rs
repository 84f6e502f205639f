//! The headers that mark a replayed event, after its own: how they are written, and how `verify` takes them off again.
//!
//! Promises: an event's own headers stay first and as they were; the event id is the same in every replay.
//! Pure, and free of allocation per event. Never: touch an original header.

use std::io::Write as _;

use tapedeck_common::event::{HEADER_REPLAY_JOB, Header};
use tapedeck_common::{LaneId, Position};

/// The event's address in the archive.
pub const HEADER_EVENT_ID: &str = "x-replay-event-id";
/// The topic in which the event was first.
pub const HEADER_TOPIC: &str = "x-replay-topic";
/// The original timestamp in milliseconds.
pub const HEADER_TIME: &str = "x-replay-ts";
/// How often the event has been replayed: 1, or one more than the copy that was archived says.
pub const HEADER_COUNT: &str = "x-replay-count";

/// The markers, in the order in which they are written.
const MARKERS: [&str; 5] = [HEADER_REPLAY_JOB, HEADER_EVENT_ID, HEADER_TOPIC, HEADER_TIME, HEADER_COUNT];

/// What the markers of one lane have in common.
#[derive(Debug, Clone)]
pub struct LaneMarks {
    id_prefix: Vec<u8>,
    topic: Vec<u8>,
}

impl LaneMarks {
    /// The marks of a lane of `topic`.
    pub fn new(lane: &LaneId, topic: &str) -> Self {
        Self { id_prefix: format!("{lane}/").into_bytes(), topic: topic.as_bytes().to_vec() }
    }
}

/// The varying texts of one event's markers; reused from event to event.
#[derive(Debug, Default)]
pub struct MarkText {
    text: Vec<u8>,
    id_end: usize,
    time_end: usize,
}

impl MarkText {
    /// Writes the texts for an event whose own headers are `headers`.
    pub fn write(&mut self, lane: &LaneMarks, position: Position, time_millis: i64, headers: &[Header<'_>]) {
        self.text.clear();
        self.text.extend_from_slice(&lane.id_prefix);
        put_number(&mut self.text, position.as_i64());
        self.id_end = self.text.len();
        put_number(&mut self.text, time_millis);
        self.time_end = self.text.len();
        put_number(&mut self.text, 1 + replays_before(headers));
    }

    /// Appends the markers to the event's own headers.
    pub fn append<'a>(&'a self, job: &'a str, lane: &'a LaneMarks, headers: &mut Vec<Header<'a>>) {
        let values = [
            job.as_bytes(),
            &self.text[..self.id_end],
            lane.topic.as_slice(),
            &self.text[self.id_end..self.time_end],
            &self.text[self.time_end..],
        ];
        headers.extend(MARKERS.into_iter().zip(values.into_iter().map(Some)));
    }
}

fn put_number(text: &mut Vec<u8>, number: i64) {
    write!(text, "{number}").expect("writing to memory");
}

/// How often an archived copy says that it was replayed before.
fn replays_before(headers: &[Header<'_>]) -> i64 {
    let count = headers.iter().rev().find(|(name, _)| *name == HEADER_COUNT);
    let text = count.and_then(|(_, value)| std::str::from_utf8((*value)?).ok());
    text.and_then(|text| text.parse().ok()).filter(|count| (0..i64::MAX).contains(count)).unwrap_or(0)
}

/// A replayed event's headers, taken apart again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// The job.
    pub job: String,
    /// The lane that it came from.
    pub lane: LaneId,
    /// Its position there.
    pub position: Position,
    /// Its original time in milliseconds.
    pub time_millis: i64,
    /// How many of the headers are its own.
    pub own_headers: usize,
}

/// Takes the markers off; `None` if the event does not end in them. Names are bytes, since an event's own may be no text.
pub fn read(headers: &[(&[u8], Option<&[u8]>)]) -> Option<Marked> {
    let own_headers = headers.len().checked_sub(MARKERS.len())?;
    let tail = &headers[own_headers..];
    if tail.iter().zip(MARKERS).any(|((name, _), marker)| *name != marker.as_bytes()) {
        return None;
    }
    let text = |marker: usize| std::str::from_utf8(tail[marker].1?).ok();
    let (lane, position) = text(1)?.rsplit_once('/')?;
    let position = position.parse().ok().and_then(Position::from_i64)?;
    let time_millis = text(3)?.parse().ok()?;
    Some(Marked { job: text(0)?.to_owned(), lane: LaneId::parse(lane)?, position, time_millis, own_headers })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked<'a>(text: &'a mut MarkText, lane: &'a LaneMarks, own: &[Header<'a>]) -> Vec<Header<'a>> {
        text.write(lane, Position::new(184_467), 1_763_640_000_123, own);
        let mut headers = own.to_vec();
        text.append("rp-1", lane, &mut headers);
        headers
    }

    fn as_bytes<'a>(headers: &[Header<'a>]) -> Vec<(&'a [u8], Option<&'a [u8]>)> {
        headers.iter().map(|(name, value)| (name.as_bytes(), *value)).collect()
    }

    #[test]
    fn markers_follow_the_events_own_headers_and_come_off_again() {
        let lane = LaneId::new("kafka/c/t/0", 3);
        let (mut text, marks) = (MarkText::default(), LaneMarks::new(&lane, "orders"));
        let own: [Header<'_>; 3] = [("a", None), ("a", Some(b"")), ("x-replay-job", Some(b"rp-0"))];
        let headers = marked(&mut text, &marks, &own);
        assert_eq!(&headers[..3], &own);
        let values: Vec<_> =
            headers[3..].iter().map(|(name, value)| (*name, std::str::from_utf8(value.expect("set")).expect("text"))).collect();
        let expected = [
            ("x-replay-job", "rp-1"),
            ("x-replay-event-id", "kafka/c/t/0/3/184467"),
            ("x-replay-topic", "orders"),
            ("x-replay-ts", "1763640000123"),
            ("x-replay-count", "1"),
        ];
        assert_eq!(values, expected);
        let read = read(&as_bytes(&headers)).expect("marked");
        assert_eq!(
            read,
            Marked { job: "rp-1".into(), lane, position: Position::new(184_467), time_millis: 1_763_640_000_123, own_headers: 3 }
        );
    }

    #[test]
    fn a_copy_of_a_copy_counts_on() {
        let (mut text, marks) = (MarkText::default(), LaneMarks::new(&LaneId::new("s", 0), "t"));
        for (before, after) in [("1", "2"), ("x", "1"), ("-4", "1"), ("41", "42")] {
            let own = [(HEADER_COUNT, Some(before.as_bytes()))];
            assert_eq!(marked(&mut text, &marks, &own)[5].1, Some(after.as_bytes()), "{before}");
        }
    }

    #[test]
    fn other_events_are_not_taken_for_ours() {
        assert_eq!(read(&[]), None);
        let (mut text, marks) = (MarkText::default(), LaneMarks::new(&LaneId::new("s", 0), "t"));
        let headers = as_bytes(&marked(&mut text, &marks, &[]));
        assert_eq!(read(&headers[1..]), None);
        let mut broken = headers;
        broken[1].1 = Some(b"no-address");
        assert_eq!(read(&broken), None);
    }
}
