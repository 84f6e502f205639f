//! Looks for the ends of a stream, by reading there on channels of its own.
//!
//! Promises: what it says of a begin was the first event that the broker handed over, and of an end that it is not before that;
//! every look is bounded. Never: leaves a position with the broker.

use std::time::Duration;

use futures::StreamExt as _;
use lapin::options::BasicAckOptions;
use lapin::types::{AMQPValue, LongString};
use tapedeck_common::bus::BusError;
use tapedeck_common::clock::Clock;
use tapedeck_common::position::Position;
use tapedeck_common::time::Timestamp;

use super::amqp::{self, no_stream};
use super::place::Ends;
use crate::intake::cancelled;
use crate::link::{Link, leave};
use crate::trouble::trouble;

/// How long the first event of a look may take. A broker that takes longer is asked once more (`LookAgain`).
const PATIENCE: Duration = Duration::from_secs(2);
/// The last chunk is read until nothing came for so long.
const SILENCE: Duration = Duration::from_millis(300);
/// A stream that is written all the time has no last chunk for long.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// Events on their way while the last chunk is read. Few: the client holds them all, and nobody knows their size.
const PREFETCH: u16 = 64;

/// Asks about one stream.
pub(crate) struct Probe<'p> {
    pub(crate) link: &'p Link,
    pub(crate) stream: &'p str,
    pub(crate) clock: &'p dyn Clock,
}

impl Probe<'_> {
    /// Its first event, if one is handed over.
    pub(crate) async fn begin(&self) -> Result<Option<Position>, BusError> {
        self.first(AMQPValue::LongString(LongString::from("first"))).await
    }

    /// Its ends. The end need not be looked for beyond `enough`.
    pub(crate) async fn ends(&self, enough: Option<Position>) -> Result<Ends, BusError> {
        let first = self.begin().await?;
        let end = if first.is_some() { self.end(enough).await? } else { None };
        Ok(Ends { first, end, counted: self.link.ready(self.stream).await? })
    }

    /// The first event of the chunk in which `time` lies: never a later one.
    pub(crate) async fn since(&self, time: Timestamp) -> Result<Option<Position>, BusError> {
        let seconds = time.millis_floor().div_euclid(1_000).max(0) as u64;
        self.first(AMQPValue::Timestamp(seconds)).await
    }

    async fn first(&self, at: AMQPValue) -> Result<Option<Position>, BusError> {
        let (channel, mut consumer) = amqp::consume(self.link, self.stream, at, 1).await?;
        let delivery = tokio::select! {
            delivery = consumer.next() => Some(delivery.ok_or_else(|| cancelled(self.stream))?),
            () = self.clock.sleep(PATIENCE) => None,
        };
        let position = match delivery {
            None => None,
            Some(delivery) => Some(amqp::position(self.stream, &delivery)?.ok_or_else(|| no_stream(self.stream))?),
        };
        leave(&channel).await;
        Ok(position)
    }

    /// After the last event of the last chunk.
    async fn end(&self, enough: Option<Position>) -> Result<Option<Position>, BusError> {
        let last = AMQPValue::LongString(LongString::from("last"));
        let (channel, mut consumer) = amqp::consume(self.link, self.stream, last, PREFETCH).await?;
        let deadline = self.clock.monotonic() + END_PATIENCE;
        let (mut end, mut credit) = (None, 0);
        while end.is_none_or(|end| Some(end) < enough || enough.is_none()) && self.clock.monotonic() < deadline {
            let delivery = tokio::select! {
                biased;
                delivery = consumer.next() => delivery.ok_or_else(|| cancelled(self.stream))?,
                () = self.clock.sleep(if end.is_some() { SILENCE } else { PATIENCE }) => break,
            };
            let position = amqp::position(self.stream, &delivery)?.ok_or_else(|| no_stream(self.stream))?;
            end = Some(position.next());
            credit += 1;
            if credit >= PREFETCH / 2
                && let Ok(delivery) = &delivery
            {
                let acked = channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await;
                acked.map_err(|error| trouble(format_args!("stream {}", self.stream), error))?;
                credit = 0;
            }
        }
        leave(&channel).await;
        Ok(end)
    }
}
