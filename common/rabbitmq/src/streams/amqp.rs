//! Reads a stream over AMQP 0-9-1: one channel, one consumer, from an offset on.
//!
//! Promises: positions strictly grow and never fall below where the reading began; no leap is passed over before it was allowed;
//! acknowledgements are credit for more and mean nothing else.

use std::collections::BTreeMap;

use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use tapedeck_common::bus::BusError;
use tapedeck_common::error::ErrorKind;
use tapedeck_common::position::Position;
use tracing::debug;

use crate::convert::{Converter, STREAM_OFFSET, stream_position};
use crate::intake::{Consumers, Intake, Run, Taken};
use crate::keeper::Means;
use crate::link::{Link, leave};
use crate::trouble::{refuses_argument, trouble};
use crate::window::Window;

/// A consumer of the stream from `at` on, on a channel of its own.
pub(crate) async fn consume(link: &Link, stream: &str, at: AMQPValue, prefetch: u16) -> Result<(Channel, Consumer), BusError> {
    let consuming = consume_from(link, stream, at, prefetch).await;
    consuming.map_err(|error| if refuses_argument(&error) { no_stream(stream) } else { error })
}

/// As [`consume`], of something that may be no stream.
pub(crate) async fn consume_from(
    link: &Link,
    stream: &str,
    at: AMQPValue,
    prefetch: u16,
) -> Result<(Channel, Consumer), BusError> {
    let failed = |error| trouble(format_args!("reading {stream}"), error);
    let channel = link.channel(stream).await?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await.map_err(failed)?;
    let arguments = FieldTable::from(BTreeMap::from([(STREAM_OFFSET.into(), at)]));
    let consumer = channel.basic_consume(stream.into(), "".into(), BasicConsumeOptions::default(), arguments).await;
    Ok((channel, consumer.map_err(failed)?))
}

/// Where a delivery stands; `None` if it is from no stream.
pub(crate) fn position(stream: &str, delivery: &Result<Delivery, lapin::Error>) -> Result<Option<Position>, BusError> {
    match delivery {
        Ok(delivery) => Ok(stream_position(delivery)),
        Err(error) => Err(trouble(format_args!("reading stream {stream}"), error.clone())),
    }
}

pub(crate) fn no_stream(stream: &str) -> BusError {
    BusError::new(ErrorKind::Invalid, format!("{stream} is a queue and no stream: name it as `queue`"))
}

/// A stream that is being read.
pub(crate) struct Subscription {
    stream: String,
    channel: Channel,
    consumers: Consumers,
    intake: Intake,
    next: Position,
    window: u16,
    /// Deliveries since the last credit was given.
    owed: u16,
    /// Up to there a leap was [allowed](Self::allow).
    allowed: Position,
}

impl Subscription {
    pub(crate) async fn open(link: &Link, stream: &str, next: Position, window: u16) -> Result<Self, BusError> {
        let (channel, consumer) = consume(link, stream, AMQPValue::LongLongInt(next.as_i64()), window).await?;
        let mut consumers = Consumers::default();
        consumers.add(consumer);
        let (stream, intake) = (stream.to_owned(), Intake::default());
        Ok(Self { stream, channel, consumers, intake, next, window, owed: 0, allowed: next })
    }

    pub(crate) fn window(&self) -> u16 {
        self.window
    }

    pub(crate) async fn leave(self) {
        leave(&self.channel).await;
    }

    /// Waits for room and for events. Cancel safe. An error comes after everything that the broker handed over before it.
    pub(crate) async fn read(&mut self, means: &Means, to: &mut Converter, window: &mut Window) -> Result<Run, BusError> {
        let Self { stream, next, allowed, consumers, intake, .. } = self;
        let from = *next;
        let take = |run: &mut Run, delivery: &Delivery| {
            let position = stream_position(delivery).ok_or_else(|| no_stream(stream))?;
            if position > (*next).max(*allowed) {
                run.leap = Some(position);
                return Ok(Taken::Later);
            }
            if position < *next {
                window.observe(delivery.data.len());
                debug!(%stream, %position, %next, "an event from before the reading began, passed over");
                return Ok(Taken::Left);
            }
            run.holes += position.get() - next.get();
            *next = position.next();
            run.span = run.span.stretched_to(*next);
            let row = to.push(&mut run.events, delivery, position, run.arrival);
            // Headers take memory too.
            window.observe(row.unwrap_or(delivery.data.len()));
            run.skipped += u64::from(row.is_none());
            Ok(row.map_or(Taken::Left, Taken::Row))
        };
        intake.read(&format!("stream {stream}"), from, consumers, means, take).await
    }

    /// What lies before `position` was no event.
    pub(crate) fn allow(&mut self, position: Position) {
        self.allowed = position;
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
