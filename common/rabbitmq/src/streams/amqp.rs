//! Reads a stream over AMQP 0-9-1: one channel, one consumer, from an offset on.
//!
//! Promises: positions strictly grow and never fall below where the reading began; no leap is passed over before it was allowed; what the client holds beyond what was taken in
//! is bounded by the window; acknowledgements are credit for more and mean nothing else.
//! Never: waits between a delivery that was taken and the row that it becomes, so a reading may be dropped at any moment.

use std::collections::BTreeMap;

use futures::{FutureExt as _, StreamExt as _};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use tapedeck_common::budget::BytePermit;
use tapedeck_common::bus::{BusError, Deliveries};
use tapedeck_common::columns::Columns;
use tapedeck_common::error::ErrorKind;
use tapedeck_common::limits::{OVERSIZE_SHARE, READ_BATCH_EVENTS};
use tapedeck_common::position::{LaneId, Position, Span};
use tracing::debug;

use crate::convert::{Converter, STREAM_OFFSET, stream_position};
use crate::keeper::Means;
use crate::link::Link;
use crate::trouble::trouble;
use crate::window::Window;

/// The usual room for a read: 256 events of 4 KB.
const READ_BYTES: usize = 1 << 20;

/// A consumer of the stream from `at` on, on a channel of its own.
pub(crate) async fn consume(link: &Link, stream: &str, at: AMQPValue, prefetch: u16) -> Result<(Channel, Consumer), BusError> {
    let failed = |error| trouble(format_args!("reading stream {stream}"), error);
    let channel = link.channel(stream).await?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await.map_err(failed)?;
    let arguments = FieldTable::from(BTreeMap::from([(STREAM_OFFSET.into(), at)]));
    let consumer = channel.basic_consume(stream.into(), "".into(), BasicConsumeOptions::default(), arguments).await;
    Ok((channel, consumer.map_err(failed)?))
}

/// Gives a channel up. Broken or not, it is not used again.
pub(crate) async fn leave(channel: &Channel) {
    if let Err(error) = channel.close(200, "OK".into()).await {
        debug!(%error, "a channel was gone before it was closed");
    }
}

/// Where a delivery stands; `None` if it is from no stream.
pub(crate) fn position(stream: &str, delivery: &Result<Delivery, lapin::Error>) -> Result<Option<Position>, BusError> {
    match delivery {
        Ok(delivery) => Ok(stream_position(delivery)),
        Err(error) => Err(trouble(format_args!("reading stream {stream}"), error.clone())),
    }
}

pub(crate) fn cancelled(stream: &str) -> BusError {
    let what = format!("stream {stream}: the broker ended the reading: the stream was deleted, or its node went away");
    BusError::new(ErrorKind::Unavailable, what)
}

pub(crate) fn no_stream(stream: &str) -> BusError {
    BusError::new(ErrorKind::Invalid, format!("{stream} is a queue and no stream: it has no positions to archive it by"))
}

/// What one read brought.
#[derive(Debug)]
pub(crate) struct Run {
    span: Span,
    events: Columns,
    skipped: u64,
    /// Positions inside of the span at which nothing came.
    pub(crate) holes: u64,
    /// The broker leaps to there: the reading goes on once it is known whether it lost what lies between.
    pub(crate) leap: Option<Position>,
    /// The last delivery's, and how many deliveries there were.
    last_tag: u64,
    taken: u16,
    bytes: usize,
    room: BytePermit,
}

impl Run {
    pub(crate) fn until(&self) -> Position {
        self.span.until()
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.span.is_empty()
    }

    pub(crate) fn into_events(self) -> Columns {
        self.events
    }

    /// For the pipeline. Its room is what its rows take.
    pub(crate) fn into_deliveries(mut self, lane: LaneId, topic: std::sync::Arc<str>, capacity: usize) -> Deliveries {
        let bytes = self.events.room_bytes(capacity);
        let mut permit = self.room.split(bytes);
        permit.resize(bytes);
        Deliveries { lane, topic, span: self.span, events: self.events, skipped: self.skipped, permit }
    }
}

/// A stream that is being read.
pub(crate) struct Subscription {
    stream: String,
    channel: Channel,
    consumer: Consumer,
    next: Position,
    window: u16,
    /// Deliveries since the last credit was given.
    owed: u16,
    /// The memory of the largest of the latest events.
    largest: usize,
    failed: Option<BusError>,
    /// The delivery behind a leap, until that is [allowed](Self::allow).
    held: Option<Delivery>,
    allowed: Position,
}

impl Subscription {
    pub(crate) async fn open(link: &Link, stream: &str, next: Position, window: u16) -> Result<Self, BusError> {
        let (channel, consumer) = consume(link, stream, AMQPValue::LongLongInt(next.as_i64()), window).await?;
        Ok(Self {
            stream: stream.to_owned(),
            channel,
            consumer,
            next,
            window,
            owed: 0,
            largest: 0,
            failed: None,
            held: None,
            allowed: next,
        })
    }

    pub(crate) fn window(&self) -> u16 {
        self.window
    }

    pub(crate) async fn leave(self) {
        leave(&self.channel).await;
    }

    /// Waits for room and for events. Cancel safe. An error comes after everything that the broker handed over before it.
    pub(crate) async fn read(&mut self, means: &Means, to: &mut Converter, window: &mut Window) -> Result<Run, BusError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let room = self.room(means).await;
        let first = match self.held.take() {
            Some(delivery) => Some(Ok(delivery)),
            None => self.consumer.next().await,
        };
        // Nothing is waited for from here on.
        let arrival = means.clock.now();
        let mut run = Run {
            span: Span::empty_at(self.next),
            events: means.pool.take(),
            skipped: 0,
            holes: 0,
            leap: None,
            last_tag: 0,
            taken: 0,
            bytes: 0,
            room,
        };
        let mut next = first;
        loop {
            match next {
                Some(Ok(delivery)) => {
                    let Some(position) = stream_position(&delivery) else { return Err(no_stream(&self.stream)) };
                    if position > self.next.max(self.allowed) {
                        (run.leap, self.held) = (Some(position), Some(delivery));
                        break;
                    }
                    window.observe(delivery.data.len());
                    self.take_in(&mut run, &delivery, position, |run| to.push(&mut run.events, &delivery, position, arrival));
                }
                Some(Err(error)) => self.failed = Some(trouble(format_args!("reading stream {}", self.stream), error)),
                None => self.failed = Some(cancelled(&self.stream)),
            }
            if let Some(error) = self.failed.take_if(|_| run.taken == 0) {
                return Err(error);
            }
            let is_full = usize::from(run.taken) >= READ_BATCH_EVENTS || run.bytes + self.largest > run.room.bytes();
            if is_full || self.failed.is_some() {
                break;
            }
            match self.consumer.next().now_or_never() {
                Some(delivery) => next = delivery,
                None => break,
            }
        }
        // Forgotten bit by bit, so that one giant does not hold room for ever.
        self.largest -= self.largest / 16;
        Ok(run)
    }

    /// What lies before `position` was no event.
    pub(crate) fn allow(&mut self, position: Position) {
        self.allowed = position;
    }

    fn take_in(&mut self, run: &mut Run, delivery: &Delivery, position: Position, push: impl FnOnce(&mut Run) -> Option<usize>) {
        (run.last_tag, run.taken) = (delivery.delivery_tag, run.taken + 1);
        if position < self.next {
            debug!(stream = %self.stream, %position, next = %self.next, "an event from before the reading began, passed over");
            return;
        }
        run.holes += position.get() - self.next.get();
        self.next = position.next();
        run.span = run.span.stretched_to(self.next);
        match push(run) {
            None => run.skipped += 1,
            Some(bytes) => {
                run.bytes += bytes;
                self.largest = self.largest.max(bytes);
            }
        }
    }

    /// Room for the worst read of usual events. Over-size ones are not waited for: one at a time gets in beside it.
    async fn room(&self, means: &Means) -> BytePermit {
        let capacity = means.budget.capacity();
        let bytes = READ_BYTES.min(capacity / 16) + self.largest.min(capacity / OVERSIZE_SHARE);
        if let Some(room) = means.budget.try_reserve(bytes) {
            return room;
        }
        let began = means.clock.monotonic();
        let room = means.budget.reserve(bytes).await;
        means.figures.add_backpressure(means.clock.monotonic().saturating_sub(began));
        room
    }

    /// Lets the broker send more, once half of the window was taken in.
    pub(crate) async fn credit(&mut self, run: &Run) -> Result<(), BusError> {
        self.owed += run.taken;
        if self.owed < (self.window / 2).max(1) {
            return Ok(());
        }
        self.owed = 0;
        let acked = self.channel.basic_ack(run.last_tag, BasicAckOptions { multiple: true }).await;
        acked.map_err(|error| trouble(format_args!("reading stream {}", self.stream), error))
    }
}
