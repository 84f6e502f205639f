//! Reads streams and queues back, for the judge. Its own plain client, so that the judge shares no code with the judged.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel};

use super::client::{Client, answer};
use super::event::RabbitEvent;
use crate::wait::wait_for;

/// Deliveries of a stream that may be on their way.
const PREFETCH: u16 = 1_000;
/// How long a consumer may be quiet before the queue is asked whether it is empty.
const QUIET: Duration = Duration::from_millis(200);
/// What a broker adds to the headers of a stream's event.
const OFFSET: &str = "x-stream-offset";

/// An event that was taken from a queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// Somebody may have had it before.
    pub redelivered: bool,
    /// The event itself.
    pub event: RabbitEvent,
}

/// The events of a stream from the offset `from` on, before the offset `until`, which must be there or come: the last of them
/// or one beyond ends it. What the broker itself adds to the headers is taken off again.
pub fn read_stream(uri: &str, stream: &str, from: u64, until: u64) -> Result<Vec<(u64, RabbitEvent)>> {
    let mut events = Vec::new();
    if from < until {
        read_stream_while(uri, stream, from, |offset, event| {
            if offset < until {
                events.push((offset, event));
            }
            Ok(offset + 1 < until)
        })?;
    }
    Ok(events)
}

/// Hands the events of a stream to `each`, with their offsets, from `from` on and as long as it answers true.
pub fn read_stream_while(
    uri: &str,
    stream: &str,
    from: u64,
    mut each: impl FnMut(u64, RabbitEvent) -> Result<bool>,
) -> Result<()> {
    let client = Client::connect(uri, "tapedeck testbed reader")?;
    let channel = client.channel();
    answer("prefetch", channel.basic_qos(PREFETCH, BasicQosOptions::default()))?;
    let mut arguments = FieldTable::default();
    arguments.insert(OFFSET.into(), AMQPValue::LongLongInt(i64::try_from(from)?));
    let options = BasicConsumeOptions::default();
    let queue = ShortString::try_new(stream)?;
    let mut consumer = answer("a consumer", channel.basic_consume(queue, "".into(), options, arguments))?;
    loop {
        let next = answer(&format!("an event of stream {stream}"), async { consumer.next().await.transpose() })?;
        let mut delivery = next.with_context(|| format!("stream {stream} is gone"))?;
        let offset = take_offset(&mut delivery.properties)?;
        let tag = delivery.delivery_tag;
        if offset >= from && !each(offset, event(delivery))? {
            return client.close();
        }
        if tag % u64::from(PREFETCH / 2) == 0 {
            answer("acknowledging", channel.basic_ack(tag, BasicAckOptions { multiple: true }))?;
        }
    }
}

/// Takes everything that is ready out of a queue, in its order; what another consumer holds stays there. Not for streams.
///
/// A consumer is fast but never hears that there is no more, so one is given up when it is quiet; only a queue that says itself
/// that it is empty ends it.
pub fn read_queue(uri: &str, queue: &str) -> Result<Vec<Taken>> {
    let client = Client::connect(uri, "tapedeck testbed reader")?;
    let channel = client.channel();
    answer("prefetch", channel.basic_qos(PREFETCH, BasicQosOptions::default()))?;
    let name = ShortString::try_new(queue)?;
    let mut taken = Vec::new();
    loop {
        consume(channel, &name, &mut taken)?;
        let asked = channel.basic_get(name.clone(), BasicGetOptions { no_ack: true });
        match answer(&format!("an event of queue {queue}"), asked)? {
            Some(message) => taken.push(message.delivery.into()),
            None => break,
        }
    }
    client.close()?;
    Ok(taken)
}

/// Takes until nothing comes for a moment. What is on its way when the consumer is cancelled still arrives before the broker's yes.
fn consume(channel: &Channel, queue: &ShortString, taken: &mut Vec<Taken>) -> Result<()> {
    let consuming = channel.basic_consume(queue.clone(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
    let mut consumer = answer("a consumer", consuming)?;
    while let Ok(next) = wait_for("an event", QUIET, consumer.next()) {
        take(channel, next.context("the queue is gone")??, taken)?;
    }
    answer("an end", channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()))?;
    while let Some(delivery) = answer("the last events", async { consumer.next().await.transpose() })? {
        take(channel, delivery, taken)?;
    }
    Ok(())
}

fn take(channel: &Channel, delivery: Delivery, taken: &mut Vec<Taken>) -> Result<()> {
    let tag = delivery.delivery_tag;
    taken.push(delivery.into());
    answer("acknowledging", channel.basic_ack(tag, BasicAckOptions::default()))
}

impl From<Delivery> for Taken {
    fn from(delivery: Delivery) -> Self {
        Self { redelivered: delivery.redelivered, event: event(delivery) }
    }
}

fn event(delivery: Delivery) -> RabbitEvent {
    RabbitEvent {
        exchange: delivery.exchange.into(),
        routing_key: delivery.routing_key.into(),
        properties: delivery.properties,
        body: delivery.data,
    }
}

/// The offset of a stream's event. Headers that held nothing else were not there when it was published.
fn take_offset(properties: &mut BasicProperties) -> Result<u64> {
    let mut headers = properties.headers().as_ref().map(|table| table.inner().clone()).unwrap_or_default();
    let offset = headers.remove(OFFSET).and_then(|offset| offset.as_long_long_int());
    let offset = offset.with_context(|| format!("an event without {OFFSET} is from no stream"))?;
    let bare = without_headers(properties);
    *properties = if headers.is_empty() { bare } else { bare.with_headers(headers.into()) };
    Ok(u64::try_from(offset)?)
}

fn without_headers(properties: &BasicProperties) -> BasicProperties {
    let mut bare = BasicProperties::default();
    macro_rules! carry {
        ($($name:ident => $with:ident),*) => {
            $(if let Some(value) = properties.$name().clone() { bare = bare.$with(value); })*
        };
    }
    carry!(
        content_type => with_content_type, content_encoding => with_content_encoding, delivery_mode => with_delivery_mode,
        priority => with_priority, correlation_id => with_correlation_id, reply_to => with_reply_to,
        expiration => with_expiration, message_id => with_message_id, timestamp => with_timestamp, kind => with_type,
        user_id => with_user_id, app_id => with_app_id, cluster_id => with_cluster_id
    );
    bare
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_goes_and_everything_else_stays() {
        let mut headers = FieldTable::default();
        headers.insert(OFFSET.into(), AMQPValue::LongLongInt(7));
        let full = BasicProperties::default()
            .with_content_type("a".into())
            .with_content_encoding("b".into())
            .with_delivery_mode(2)
            .with_priority(3)
            .with_correlation_id("c".into())
            .with_reply_to("d".into())
            .with_expiration("4".into())
            .with_message_id("e".into())
            .with_timestamp(5)
            .with_type("f".into())
            .with_user_id("g".into())
            .with_app_id("h".into())
            .with_cluster_id("i".into());
        let mut seen = full.clone().with_headers(headers.clone());
        assert_eq!(take_offset(&mut seen).expect("it is there"), 7);
        assert_eq!(seen, full);

        let mut own = FieldTable::default();
        own.insert("own".into(), AMQPValue::Void);
        headers.insert("own".into(), AMQPValue::Void);
        let mut seen = full.clone().with_headers(headers);
        take_offset(&mut seen).expect("it is there");
        assert_eq!(seen, full.with_headers(own));
        assert!(take_offset(&mut seen).is_err());
    }
}
