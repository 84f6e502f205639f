//! One read: copies what librdkafka lends into pooled columns, one run per lane, and notes ends and failures.
//!
//! Promises: within a run offsets strictly grow and never fall below the lane's position; what comes twice, or for a lane that
//! is not being read, is dropped and counted; payloads, names and order arrive byte for byte.
//! Never: wait, allocate per event (but for headers whose names are not UTF-8), touch the lanes.

use std::ops::ControlFlow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rdkafka::error::RDKafkaErrorCode;
use tapedeck_common::columns::{Columns, ColumnsPool, EventFields, ROW_OVERHEAD_BYTES};
use tapedeck_common::error::ErrorKind;
use tapedeck_common::event::{HEADER_REPLAY_JOB, Header, PROPERTY_RAW_HEADER, PROPERTY_RAW_TIME, TimeKind, settle_time};
use tapedeck_common::limits::READ_BATCH_EVENTS;
use tapedeck_common::position::Position;
use tapedeck_common::time::Timestamp;
use tracing::debug;

use crate::config::Replayed;
use crate::ffi::{RawMessage, StampedBy};
use crate::lanes::{Lanes, Phase};

/// The usual room for a read: 256 events of 4 KB.
pub(crate) const READ_BYTES: usize = 1 << 20;

/// Words of the client for a leader whose log, under the epoch of the last event that was read, ends before that event. The code
/// is that of any position that is not there.
const TRUNCATED: &str = "log truncation detected at";

/// How much a read may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The room that is reserved for it.
    pub(crate) bytes: usize,
    /// The memory that the largest of the latest events took: with less room left the read ends. Only an event that is larger
    /// can exceed the room, since the client shows none before it hands it over.
    pub(crate) largest: usize,
}

/// Why a lane cannot go on as it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Its position is not on the bus: it must be located again.
    OutOfRange,
    /// Before its position lies another event than the one that was archived.
    Truncated(String),
    /// The client handed over a failure behind which it goes on, or never: what to do about it, and what it says.
    Damaged(ErrorKind, String),
}

/// What one read brought of one partition.
#[derive(Debug)]
pub(crate) struct Run {
    topic_key: usize,
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    /// The lane's generation when the read began; `None` if the lane is not being read.
    pub(crate) generation: Option<u64>,
    pub(crate) from: Position,
    pub(crate) next: Position,
    pub(crate) events: Columns,
    pub(crate) skipped: u64,
    pub(crate) stale: u64,
    /// Where the partition ends, if nothing came after that was seen.
    pub(crate) end: Option<Position>,
    pub(crate) trouble: Option<Trouble>,
    /// See [`crate::lanes::Lane::proof`]; gone once something was read.
    pub(crate) proof: Option<i32>,
}

impl Run {
    /// True for the event before the lane's position, which is read once more only to see that it is the one that was archived.
    /// Where it is not visible, a mark of a transaction for example, there is nothing to compare.
    fn looks_at(&mut self, offset: Option<Position>, epoch: Option<i32>) -> bool {
        if self.generation.is_none() || self.trouble.is_some() {
            return false;
        }
        let Some(archived) = self.proof.take() else { return false };
        if offset.map(Position::next) != Some(self.next) {
            return false;
        }
        if let Some(epoch) = epoch.filter(|epoch| *epoch != archived) {
            self.trouble = Some(Trouble::Truncated(format!(
                "the event before offset {} has leader epoch {epoch}, the one that was archived had {archived}",
                self.next
            )));
        }
        true
    }
}

/// Takes in one read.
pub(crate) struct Reading<'r> {
    lanes: &'r Lanes,
    pool: &'r ColumnsPool,
    replayed: Replayed,
    arrival: Timestamp,
    runs: Vec<Run>,
    current: usize,
    events: usize,
    bytes: usize,
    limits: Limits,
    largest: usize,
    headers: Vec<Header<'static>>,
}

impl<'r> Reading<'r> {
    pub(crate) fn new(lanes: &'r Lanes, pool: &'r ColumnsPool, replayed: Replayed, arrival: Timestamp, limits: Limits) -> Self {
        let (runs, headers) = (Vec::new(), Vec::new());
        Self { lanes, pool, replayed, arrival, runs, current: 0, events: 0, bytes: 0, limits, largest: 0, headers }
    }

    /// What was read, in the order of the first message of each partition, and the memory of its largest event.
    pub(crate) fn finish(self) -> (Vec<Run>, usize) {
        (self.runs, self.largest)
    }

    /// Takes in one message; breaks once the read is full.
    pub(crate) fn visit(&mut self, message: &RawMessage<'_>) -> ControlFlow<()> {
        let current = self.run_of(message);
        match message.error() {
            None => self.take_in(current, message),
            Some(code) => note_event(&mut self.runs[current], code, message),
        }
        let full = self.events >= READ_BATCH_EVENTS || self.bytes + self.limits.largest.max(self.largest) > self.limits.bytes;
        if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Messages of a partition come in clusters, so the last run is looked at first.
    fn run_of(&mut self, message: &RawMessage<'_>) -> usize {
        let (key, partition) = (message.topic_key(), message.partition());
        let is_run = |run: &Run| run.topic_key == key && run.partition == partition;
        if self.runs.get(self.current).is_some_and(is_run) {
            return self.current;
        }
        self.current = self.runs.iter().position(is_run).unwrap_or_else(|| {
            self.runs.push(self.new_run(key, &message.topic(), partition));
            self.runs.len() - 1
        });
        self.current
    }

    fn new_run(&self, topic_key: usize, topic: &str, partition: i32) -> Run {
        let lane = self.lanes.get(topic, partition);
        let reading = lane.filter(|lane| lane.phase == Phase::Active);
        let at = reading.map_or(Position::default(), |lane| lane.next);
        Run {
            topic_key,
            topic: lane.map_or_else(|| Arc::from(topic), |lane| Arc::clone(&lane.topic)),
            partition,
            generation: reading.map(|lane| lane.generation),
            from: at,
            next: at,
            events: if reading.is_some() { self.pool.take() } else { Columns::default() },
            skipped: 0,
            stale: 0,
            end: None,
            trouble: None,
            proof: reading.and_then(|lane| lane.proof),
        }
    }

    fn take_in(&mut self, current: usize, message: &RawMessage<'_>) {
        let run = &mut self.runs[current];
        self.events += 1;
        let offset = Position::from_i64(message.offset());
        if run.looks_at(offset, message.leader_epoch()) {
            return;
        }
        let Some(position) = offset.filter(|offset| run.generation.is_some() && run.trouble.is_none() && *offset >= run.next)
        else {
            run.stale += 1;
            return;
        };
        run.next = position.next();
        run.end = None;
        let mut headers = recycled(std::mem::take(&mut self.headers));
        let odd = collect_headers(message, &mut headers);
        if self.replayed == Replayed::Skip && headers.iter().any(|(name, _)| *name == HEADER_REPLAY_JOB) {
            run.skipped += 1;
        } else {
            let header_bytes: usize = headers.iter().map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len)).sum();
            let (key, value) = (message.key(), message.value());
            let bytes = ROW_OVERHEAD_BYTES + header_bytes + key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
            self.bytes += bytes;
            self.largest = self.largest.max(bytes);
            push(&mut run.events, message, position, self.arrival, &headers, odd);
        }
        self.headers = recycled(headers);
    }
}

fn push(
    events: &mut Columns,
    message: &RawMessage<'_>,
    position: Position,
    arrival: Timestamp,
    headers: &[Header<'_>],
    odd: bool,
) {
    let from_bus = message.time();
    let known = from_bus.and_then(|(millis, by)| Some((Timestamp::from_millis(millis)?, kind_of(by))));
    let (time, time_kind) = settle_time(known, arrival);
    let fields = EventFields {
        position,
        time,
        time_kind,
        leader_epoch: message.leader_epoch(),
        key: message.key(),
        value: message.value(),
    };
    let raw_time = from_bus.filter(|_| time_kind == TimeKind::Arrival).map(|(millis, _)| millis.to_string());
    let raw_time = raw_time.as_deref().map(|millis| (PROPERTY_RAW_TIME, millis));
    if !odd {
        events.push(fields, headers.iter().copied(), raw_time);
        return;
    }
    let escaped = EscapedHeaders::of(message.headers());
    let properties = raw_time.into_iter().chain(escaped.raw.iter().map(|(name, bytes)| (name.as_str(), bytes.as_str())));
    let names = escaped.names.iter().map(String::as_str);
    events.push(fields, names.zip(message.headers().map(|(_, value)| value)), properties);
}

const fn kind_of(by: StampedBy) -> TimeKind {
    match by {
        StampedBy::Producer => TimeKind::Create,
        StampedBy::Broker => TimeKind::Append,
    }
}

/// Collects the headers; true if a name is not UTF-8 (then that one is missing).
fn collect_headers<'m>(message: &RawMessage<'m>, into: &mut Vec<Header<'m>>) -> bool {
    let mut odd = false;
    for (name, value) in message.headers() {
        match std::str::from_utf8(name) {
            Ok(name) => into.push((name, value)),
            Err(_) => odd = true,
        }
    }
    odd
}

/// Header names made into text, and the raw bytes of those that were none.
struct EscapedHeaders {
    names: Vec<String>,
    raw: Vec<(String, String)>,
}

impl EscapedHeaders {
    fn of<'m>(headers: impl Iterator<Item = (&'m [u8], Option<&'m [u8]>)>) -> Self {
        let mut escaped = Self { names: Vec::new(), raw: Vec::new() };
        for (index, (name, _)) in headers.enumerate() {
            if std::str::from_utf8(name).is_err() {
                escaped.raw.push((format!("{PROPERTY_RAW_HEADER}{index}"), STANDARD.encode(name)));
            }
            escaped.names.push(escape(name));
        }
        escaped
    }
}

/// Bytes that are no UTF-8 become `\xNN`; the rest stays.
fn escape(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02X}"));
        }
    }
    text
}

fn note_event(run: &mut Run, code: RDKafkaErrorCode, message: &RawMessage<'_>) {
    if run.generation.is_none() || run.trouble.is_some() {
        return;
    }
    match code {
        RDKafkaErrorCode::PartitionEOF => run.end = Position::from_i64(message.offset()).filter(|end| *end >= run.next),
        RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange => {
            let text = message.error_text();
            run.trouble = Some(if text.contains(TRUNCATED) { Trouble::Truncated(text) } else { Trouble::OutOfRange });
        }
        code => {
            let text = format!("at offset {}: {}", message.offset(), message.error_text());
            match damage(code) {
                Some(kind) => run.trouble = Some(Trouble::Damaged(kind, text)),
                // The client mends it itself and loses nothing, so the run goes on.
                None => debug!(topic = &*run.topic, partition = run.partition, %code, "{text}"),
            }
        }
    }
}

/// Failures of one partition after which the client would go on behind our back, or never.
fn damage(code: RDKafkaErrorCode) -> Option<ErrorKind> {
    use RDKafkaErrorCode as Code;
    match code {
        Code::BadMessage | Code::BadCompression | Code::InvalidMessage | Code::NotImplemented => Some(ErrorKind::Corrupt),
        Code::MessageSizeTooLarge | Code::TopicAuthorizationFailed => Some(ErrorKind::Invalid),
        _ => None,
    }
}

/// An empty list that reuses the memory of `used`: collecting in place keeps the allocation while the lifetime changes.
fn recycled<'n>(mut used: Vec<Header<'_>>) -> Vec<Header<'n>> {
    used.clear();
    used.into_iter().map(|_| unreachable!("the list is empty")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_text_are_escaped_and_kept_raw() {
        let headers: [(&[u8], Option<&[u8]>); 3] =
            [(b"plain", None), (b"a\xFFb\xC3", Some(b"v")), ("gr\u{fc}n".as_bytes(), None)];
        let escaped = EscapedHeaders::of(headers.into_iter());
        assert_eq!(escaped.names, ["plain", "a\\xFFb\\xC3", "gr\u{fc}n"]);
        assert_eq!(escaped.raw, [("raw_header_name.1".to_owned(), STANDARD.encode(b"a\xFFb\xC3"))]);
    }

    #[test]
    fn another_event_before_the_position_is_trouble_and_none_is_not() {
        let look = |offset: u64, epoch| {
            let mut run = Run {
                topic_key: 0,
                topic: Arc::from("t"),
                partition: 0,
                generation: Some(1),
                from: Position::new(10),
                next: Position::new(10),
                events: Columns::default(),
                skipped: 0,
                stale: 0,
                end: None,
                trouble: None,
                proof: Some(3),
            };
            let only_looked_at = run.looks_at(Some(Position::new(offset)), epoch);
            assert_eq!(run.proof, None, "once is enough");
            (only_looked_at, run.trouble.is_some())
        };
        assert_eq!(look(9, Some(3)), (true, false));
        assert_eq!(look(9, Some(5)), (true, true));
        assert_eq!(look(9, None), (true, false), "a bus without epochs");
        assert_eq!(look(10, Some(5)), (false, false), "the one before is not visible");
    }

    #[test]
    fn a_recycled_list_keeps_its_memory() {
        let mut list: Vec<Header<'_>> = Vec::with_capacity(40);
        list.push(("a", None));
        let again = recycled(list);
        assert_eq!((again.len(), again.capacity()), (0, 40));
    }
}
