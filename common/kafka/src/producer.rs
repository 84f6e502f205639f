//! `KafkaProducer`: publishes to explicit partitions, idempotently, and knows how far each lane is confirmed.
//!
//! Promises: events of a lane reach their partition in the order of the calls; a lane counts as confirmed only up to the first
//! event that is not; an event that the bus refuses for good is named, and nothing after it counts.
//! Never: copy a value; allocate per event beyond what the client does and one small box; choose a partition or a time of its own; a thread that only waits for reports.

use std::collections::VecDeque;
use std::ffi::CString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext, PurgeConfig};
use tapedeck_common::bus::{BusError, Confirmed, Outgoing, Producer};
use tapedeck_common::error::ErrorKind;
use tapedeck_common::position::Position;
use tracing::debug;

use crate::config::ClusterSettings;
use crate::ffi::{Lent, RawOutgoing, Topic, produce};
use crate::group::log_line;

/// How a producer trades delay for cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerSettings {
    /// How long the client waits for more events of a batch, in milliseconds: 1 at high rates; at low rates more saves CPU.
    pub linger_ms: u32,
}

impl Default for ProducerSettings {
    fn default() -> Self {
        Self { linger_ms: 1 }
    }
}

#[derive(Debug)]
struct InFlight {
    position: Position,
    confirmed: bool,
}

/// What one lane has in flight, in the order of publishing.
#[derive(Debug, Default)]
struct LaneTrack {
    /// The sequence number of the first one in flight.
    first: u64,
    in_flight: VecDeque<InFlight>,
    next: Option<Position>,
    events: u64,
}

impl LaneTrack {
    fn confirm(&mut self, sequence: u64) -> Option<Position> {
        let index = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        let one = self.in_flight.get_mut(index)?;
        one.confirmed = true;
        let position = one.position;
        while self.in_flight.front().is_some_and(|front| front.confirmed) {
            self.next = self.in_flight.pop_front().map(|front| front.position.next());
            self.first += 1;
            self.events += 1;
        }
        Some(position)
    }

    fn position(&self, sequence: u64) -> Option<Position> {
        let index = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        self.in_flight.get(index).map(|one| one.position)
    }
}

#[derive(Debug, Default)]
struct Track {
    lanes: Vec<LaneTrack>,
    unreported: usize,
    refused: Option<(ErrorKind, String)>,
}

impl Track {
    /// Answers the event's number within its lane.
    fn begin(&mut self, lane: u32, position: Position) -> u64 {
        let index = lane as usize;
        if self.lanes.len() <= index {
            self.lanes.resize_with(index + 1, LaneTrack::default);
        }
        let track = &mut self.lanes[index];
        let sequence = track.first + track.in_flight.len() as u64;
        track.in_flight.push_back(InFlight { position, confirmed: false });
        self.unreported += 1;
        sequence
    }

    /// The client did not take what was begun last.
    fn take_back(&mut self, lane: u32) {
        self.lanes[lane as usize].in_flight.pop_back();
        self.unreported -= 1;
    }

    fn confirmed(&self) -> Vec<Confirmed> {
        let lanes = self.lanes.iter().zip(0_u32..);
        lanes.filter_map(|(track, lane)| Some(Confirmed { lane, next: track.next?, events: track.events })).collect()
    }

    fn failure(&self) -> Option<BusError> {
        self.refused.as_ref().map(|(kind, what)| BusError::new(*kind, what.clone()))
    }
}

/// Learns what became of each event, on the thread that asks what is confirmed.
#[derive(Default)]
struct Reports(Mutex<Track>);

impl Reports {
    fn track(&self) -> MutexGuard<'_, Track> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log_line(level, facility, text);
    }

    fn stats_raw(&self, _statistics: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        // What hurts an event comes with its delivery report.
        debug!(target: "librdkafka", %error, "{reason}");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Lent>;

    fn delivery(&self, result: &DeliveryResult<'_>, lent: Box<Lent>) {
        let (lane, sequence) = (lent.lane as usize, lent.sequence);
        let mut track = self.track();
        track.unreported -= 1;
        match result {
            Ok(_) => {
                if let Some(lane) = track.lanes.get_mut(lane) {
                    lane.confirm(sequence);
                }
            }
            Err((error, message)) => {
                let position = track.lanes.get(lane).and_then(|lane| lane.position(sequence));
                let position = position.map_or_else(|| "?".to_owned(), |position| position.to_string());
                let what = format!(
                    "topic {} partition {} refused the event of position {position}: {error}",
                    message.topic(),
                    message.partition()
                );
                // The first refusal says why; those after it are mostly its consequences.
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                track.refused.get_or_insert((kind_of(code), what));
            }
        }
    }
}

fn kind_of(code: RDKafkaErrorCode) -> ErrorKind {
    use RDKafkaErrorCode as Code;
    match code {
        Code::MessageTimedOut | Code::Fatal | Code::PurgeQueue | Code::PurgeInflight | Code::BrokerTransportFailure => {
            ErrorKind::Unavailable
        }
        _ => ErrorKind::Invalid,
    }
}

/// Publishes events.
pub struct KafkaProducer {
    producer: Arc<BaseProducer<Reports>>,
    /// The topic of the last event, with its name: events come in long runs for one topic.
    topic: Option<(String, Topic<Reports>)>,
}

impl KafkaProducer {
    /// A producer of a cluster. Returns at once; a broker that is away is waited for by the client.
    pub fn start(cluster: &ClusterSettings, settings: ProducerSettings) -> Result<Self, BusError> {
        let mut config = cluster.producer()?;
        if !cluster.client.contains_key("linger.ms") {
            config.set("linger.ms", settings.linger_ms.to_string());
        }
        let producer: BaseProducer<Reports> = config
            .create_with_context(Reports::default())
            .map_err(|error| BusError::new(ErrorKind::Invalid, format!("the Kafka client refuses its settings: {error}")))?;
        Ok(Self { producer: Arc::new(producer), topic: None })
    }
}

/// The client takes zero for "now", so the first millisecond of 1970 is published as the second one.
fn millis_of(event: &Outgoing<'_>) -> i64 {
    event.time.map_or(0, |time| match time.millis_floor() {
        0 => 1,
        millis => millis,
    })
}

impl KafkaProducer {
    fn send<'h>(
        &mut self,
        event: &Outgoing<'_>,
        headers: impl ExactSizeIterator<Item = (&'h [u8], Option<&'h [u8]>)>,
    ) -> Result<bool, BusError> {
        self.open_topic(event.topic)?;
        let (_, topic) = self.topic.as_ref().expect("opened just now");
        let sequence = {
            let mut track = self.producer.context().track();
            if let Some(failure) = track.failure() {
                return Err(failure);
            }
            // Begun before it is sent: the report may come before the call returns.
            track.begin(event.lane, event.position)
        };
        let message = RawOutgoing {
            partition: event.partition,
            time: millis_of(event),
            key: event.key,
            value: event.value,
            lane: event.lane,
            sequence,
        };
        let Err(code) = produce(topic, &message, headers) else { return Ok(true) };
        self.producer.context().track().take_back(event.lane);
        let is_empty = self.unconfirmed() == 0;
        if code == RDKafkaErrorCode::QueueFull && !is_empty {
            return Ok(false);
        }
        let (topic, partition, position) = (event.topic, event.partition, event.position);
        let refused = format!("topic {topic} partition {partition} refused the event of position {position}: {code}");
        if code == RDKafkaErrorCode::QueueFull {
            // Nothing is in the queue, so there will never be more room than now.
            let bytes = event.key.map_or(0, <[u8]>::len) + event.value.map_or(0, Bytes::len);
            let mend =
                format!("it has {bytes} bytes; set the client's queue.buffering.max.kbytes to {} or more", bytes / 512 + 1_024);
            return Err(BusError::new(ErrorKind::Invalid, format!("{refused}; {mend}")));
        }
        Err(BusError::new(kind_of(code), refused))
    }

    /// Takes in all reports that have come. The client frees an event with its report: on the thread that publishes the next one
    /// into the same memory.
    fn take_in_reports(&self) {
        let unreported = || self.producer.context().track().unreported;
        let mut before = unreported();
        while before > 0 {
            // One call brings the reports of one request.
            self.producer.poll(Duration::ZERO);
            let left = unreported();
            if left == before {
                return;
            }
            before = left;
        }
    }

    fn open_topic(&mut self, name: &str) -> Result<(), BusError> {
        if self.topic.as_ref().is_some_and(|(open, _)| open == name) {
            return Ok(());
        }
        let refused = |why: String| BusError::new(ErrorKind::Invalid, format!("topic {name:?}: {why}"));
        let text = CString::new(name).map_err(|_| refused("no topic name".to_owned()))?;
        let topic = Topic::new(&self.producer, &text).map_err(|code| refused(code.to_string()))?;
        self.topic = Some((name.to_owned(), topic));
        Ok(())
    }
}

impl Producer for KafkaProducer {
    fn publish(&mut self, event: &Outgoing<'_>) -> Result<bool, BusError> {
        self.send(event, event.headers.iter().map(|(name, value)| (name.as_bytes(), *value)))
    }

    fn publish_raw(&mut self, event: &Outgoing<'_>, raw_names: &[(usize, &[u8])]) -> Result<bool, BusError> {
        let mut raw = raw_names.iter().peekable();
        let headers = event.headers.iter().enumerate().map(|(index, (name, value))| {
            let name = raw.next_if(|(of, _)| *of == index).map_or(name.as_bytes(), |(_, bytes)| bytes);
            (name, *value)
        });
        self.send(event, headers)
    }

    fn confirmed(&mut self) -> Result<Vec<Confirmed>, BusError> {
        self.take_in_reports();
        let track = self.producer.context().track();
        track.failure().map_or_else(|| Ok(track.confirmed()), Err)
    }

    fn unconfirmed(&self) -> usize {
        self.producer.context().track().unreported
    }
}

impl Drop for KafkaProducer {
    fn drop(&mut self) {
        // What is not confirmed by now is published again by whoever resumes; waiting for it here could last minutes.
        self.producer.purge(PurgeConfig::default().queue().inflight());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_confirmed_up_to_the_first_hole() {
        let mut track = Track::default();
        let sequences: Vec<u64> = [4, 6, 9].into_iter().map(|position| track.begin(3, Position::new(position))).collect();
        let confirm = |track: &mut Track, which: usize| track.lanes[3].confirm(sequences[which]);
        confirm(&mut track, 1);
        assert!(track.confirmed().is_empty());
        confirm(&mut track, 0);
        assert_eq!(track.confirmed(), [Confirmed { lane: 3, next: Position::new(7), events: 2 }]);
        confirm(&mut track, 2);
        assert_eq!(track.confirmed(), [Confirmed { lane: 3, next: Position::new(10), events: 3 }]);
    }

    #[test]
    fn what_the_client_did_not_take_was_never_published() {
        let mut track = Track::default();
        let first = track.begin(0, Position::new(0));
        track.begin(0, Position::new(1));
        track.take_back(0);
        let again = track.begin(0, Position::new(1));
        assert_eq!((first, again), (0, 1));
        assert_eq!(track.unreported, 2);
    }
}
