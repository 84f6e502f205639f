//! Nasty events for RabbitMQ: everything that AMQP 0-9-1 allows and an archive may get wrong.
//!
//! Every type of header at its bounds, tables in arrays in tables, two hundred headers, names and keys that are empty, 255 bytes
//! long or look like paths; each of the fourteen properties alone, none and all of them; bodies around the size of a frame and of
//! 1 and 10 MiB; times at the ends of their range. Left out is what no broker takes: floats that are no numbers or infinite (its
//! parser knows only finite ones and drops the connection), the type `ShortString`, a foreign `user_id`, an `expiration` that
//! is no number. So are names and keys that are no UTF-8, which kill clients: see [`crate::rabbitmq::raw`].

use anyhow::Result;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, DecimalValue, FieldTable};
use serde_json::json;

use super::rng;
use crate::rabbitmq::{RabbitEvent, RabbitLoader, RabbitServer};

/// One mebibyte.
const MIB: usize = 1 << 20;
/// What a frame holds of a body: the negotiated 128 KiB less the frame's own eight bytes.
const FRAME: usize = 131_072 - 8;
/// Tables within arrays within tables.
const DEPTH: usize = 8;

/// How much of it there should be.
#[derive(Debug, Clone)]
pub struct NastyAmqp {
    /// Chance.
    pub seed: u64,
    /// The exchange that they go through; whatever the key, all queues bound to it get them.
    pub exchange: String,
    /// How many events.
    pub count: u64,
    /// How many of them have a body of 1 MiB; the last of these has 10 MiB.
    pub large: u64,
    /// With decimals among the headers. A queue takes them; a stream does not: it holds AMQP 1.0, the broker (4.3) knows no decimal
    /// there and drops the publisher's connection.
    pub decimals: bool,
}

impl Default for NastyAmqp {
    fn default() -> Self {
        Self { seed: 13, exchange: "nasty".to_owned(), count: 5_000, large: 8, decimals: true }
    }
}

impl NastyAmqp {
    /// Makes the exchange, binds `queues` to it, which are there already, and publishes all events in order of their index.
    pub fn load(&self, server: &RabbitServer, queues: &[&str]) -> Result<()> {
        let admin = server.admin();
        admin.declare_exchange(&self.exchange, "fanout", json!({}))?;
        for queue in queues {
            admin.bind(&self.exchange, queue, "")?;
        }
        let mut loader = RabbitLoader::new(&server.uri())?;
        for index in 0..self.count {
            loader.send(self.event(index))?;
        }
        loader.finish()
    }

    /// The event with this index.
    pub fn event(&self, index: u64) -> RabbitEvent {
        RabbitEvent {
            exchange: self.exchange.clone(),
            routing_key: routing_key(index),
            properties: properties(index, headers(index, self.decimals)),
            body: self.body(index),
        }
    }

    fn body(&self, index: u64) -> Vec<u8> {
        let mut rng = rng(self.seed, index);
        let mut bytes = |length: usize| {
            let mut bytes = vec![0; length];
            rng.fill(&mut bytes);
            bytes
        };
        let every = self.count / self.large.max(1);
        if self.large > 0 && every > 0 && index % every == every / 2 && index / every < self.large {
            return bytes(if index / every + 1 == self.large { 10 * MIB } else { MIB });
        }
        match index % 101 {
            0 => bytes(FRAME - 1),
            1 => bytes(FRAME),
            2 => bytes(FRAME + 1),
            _ => match index % 5 {
                0 => Vec::new(),
                1 => bytes(1),
                2 => bytes(300),
                _ => format!("{{\"number\":{index},\"text\":\"täglich 日々 \\u0000\"}}").into_bytes(),
            },
        }
    }
}

fn routing_key(index: u64) -> String {
    match index % 13 {
        0 => String::new(),
        1 => longest("k"),
        2 => longest("ü"),
        3 => "../a//b%2F..".to_owned(),
        4 => "nul\0 and\nline".to_owned(),
        5 => "größe.日".to_owned(),
        6 => "#.*".to_owned(),
        _ => format!("key.{}", index % 1_000),
    }
}

/// As many as fit into the 255 bytes of a short string.
fn longest(letter: &str) -> String {
    letter.repeat(255 / letter.len())
}

/// None, all, each alone, and then the headers with a name.
fn properties(index: u64, headers: FieldTable) -> BasicProperties {
    let none = BasicProperties::default();
    match index % 31 {
        0 => none,
        1 => everything(headers),
        2 => none.with_content_type("application/json".into()),
        3 => none.with_content_encoding("".into()),
        4 => none.with_headers(FieldTable::default()),
        5 => none.with_delivery_mode(if index.is_multiple_of(2) { 1 } else { 2 }),
        6 => none.with_priority(if index.is_multiple_of(2) { 0 } else { 255 }),
        7 => none.with_correlation_id(longest("c").into()),
        8 => none.with_reply_to("a queue/../%".into()),
        9 => none.with_expiration("4294967295".into()),
        10 => none.with_message_id(format!("id-{index}").into()),
        11 => none.with_timestamp([0, 1, 1 << 63, 1_795_082_400][(index / 31 % 4) as usize]),
        12 => none.with_type("".into()),
        13 => none.with_user_id(RabbitServer::USER.into()),
        14 => none.with_app_id("größe\0".into()),
        15 => none.with_cluster_id("somewhere".into()),
        _ => none.with_headers(headers).with_message_id(format!("id-{index}").into()),
    }
}

fn everything(headers: FieldTable) -> BasicProperties {
    BasicProperties::default()
        .with_content_type(longest("t").into())
        .with_content_encoding("gzip".into())
        .with_headers(headers)
        .with_delivery_mode(2)
        .with_priority(9)
        .with_correlation_id("".into())
        .with_reply_to("answers".into())
        .with_expiration("3600000".into())
        .with_message_id("not one of its kind".into())
        .with_timestamp(1_795_082_400)
        .with_type("order.placed".into())
        .with_user_id(RabbitServer::USER.into())
        .with_app_id("shop".into())
        .with_cluster_id("".into())
}

fn headers(index: u64, decimals: bool) -> FieldTable {
    let mut bounds = bounds();
    bounds.retain(|value| decimals || !matches!(value, AMQPValue::DecimalValue(_)));
    match index % 7 {
        0 => table(bounds.into_iter().enumerate().map(|(number, value)| (format!("bound-{number:02}"), value))),
        1 => table((0..200).map(|number| (format!("h{number}"), AMQPValue::LongString("x".into())))),
        2 => table([
            (String::new(), AMQPValue::LongString("nameless".into())),
            (longest("n"), AMQPValue::Boolean(true)),
            (longest("ü"), AMQPValue::Void),
            ("a/../b%2F\0".to_owned(), AMQPValue::LongString(vec![0, 255, 254, 10].into())),
            ("größe".to_owned(), AMQPValue::LongString("日".into())),
        ]),
        3 => table([("deep".to_owned(), deep(DEPTH))]),
        4 => table([("all".to_owned(), AMQPValue::FieldArray(bounds.into()))]),
        5 => table([("timestamp_in_ms".to_owned(), AMQPValue::LongLongInt(1_795_082_400_123))]),
        _ => table([("schema".to_owned(), AMQPValue::LongString("shop/3".into()))]),
    }
}

fn table(entries: impl IntoIterator<Item = (String, AMQPValue)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(name.into(), value);
    }
    table
}

fn deep(depth: usize) -> AMQPValue {
    if depth == 0 {
        return AMQPValue::Void;
    }
    let inner =
        table([("empty".to_owned(), AMQPValue::FieldTable(FieldTable::default())), ("deeper".to_owned(), deep(depth - 1))]);
    AMQPValue::FieldArray(vec![AMQPValue::FieldArray(Vec::new().into()), AMQPValue::FieldTable(inner)].into())
}

/// Every type that goes over the wire, at its bounds.
fn bounds() -> Vec<AMQPValue> {
    let decimal = |scale, value| AMQPValue::DecimalValue(DecimalValue { scale, value });
    vec![
        AMQPValue::Boolean(false),
        AMQPValue::Boolean(true),
        AMQPValue::ShortShortInt(i8::MIN),
        AMQPValue::ShortShortInt(i8::MAX),
        AMQPValue::ShortShortUInt(u8::MAX),
        AMQPValue::ShortInt(i16::MIN),
        AMQPValue::ShortUInt(u16::MAX),
        AMQPValue::LongInt(i32::MIN),
        AMQPValue::LongUInt(u32::MAX),
        AMQPValue::LongLongInt(i64::MIN),
        AMQPValue::LongLongInt(i64::MAX),
        AMQPValue::Float(-0.0),
        AMQPValue::Float(f32::from_bits(1)),
        AMQPValue::Float(f32::MAX),
        AMQPValue::Double(-0.0),
        AMQPValue::Double(f64::from_bits(1)),
        AMQPValue::Double(0.1),
        AMQPValue::Double(f64::MIN),
        decimal(0, 0),
        decimal(u8::MAX, u32::MAX),
        AMQPValue::LongString("".into()),
        AMQPValue::LongString(vec![0xff, 0xfe, 0].into()),
        AMQPValue::LongString("x".repeat(10_000).into()),
        AMQPValue::ByteArray(Vec::new().into()),
        AMQPValue::ByteArray(vec![0, 0xff].into()),
        AMQPValue::FieldArray(Vec::new().into()),
        AMQPValue::FieldTable(FieldTable::default()),
        AMQPValue::Timestamp(0),
        AMQPValue::Timestamp(1 << 63),
        AMQPValue::Timestamp(u64::MAX),
        AMQPValue::Void,
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn all() -> Vec<RabbitEvent> {
        let nasty = NastyAmqp { count: 2_500, large: 3, ..NastyAmqp::default() };
        (0..nasty.count).map(|index| nasty.event(index)).collect()
    }

    /// One bit for each of the fourteen properties.
    fn mask(event: &RabbitEvent) -> u16 {
        event.properties.bitmask()
    }

    fn types_in(value: &AMQPValue, found: &mut BTreeSet<char>) {
        found.insert(value.get_type().get_id());
        match value {
            AMQPValue::FieldArray(values) => values.as_slice().iter().for_each(|value| types_in(value, found)),
            AMQPValue::FieldTable(table) => table.inner().values().for_each(|value| types_in(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_property_comes_alone_and_with_all_others_and_not_at_all() {
        let masks: BTreeSet<u16> = all().iter().map(mask).collect();
        let alone = masks.iter().filter(|mask| mask.count_ones() == 1).count();
        assert_eq!(alone, 14);
        assert!(masks.contains(&0) && masks.iter().any(|mask| mask.count_ones() == 14));
    }

    #[test]
    fn every_type_of_the_wire_is_among_the_headers() {
        let mut found = BTreeSet::new();
        for event in all() {
            if let Some(headers) = event.properties.headers() {
                headers.inner().values().for_each(|value| types_in(value, &mut found));
            }
        }
        assert_eq!(found, BTreeSet::from_iter("tbBsuIilfdDSATFxV".chars()));
    }

    #[test]
    fn keys_and_bodies_reach_their_bounds() {
        let events = all();
        let keys: BTreeSet<usize> = events.iter().map(|event| event.routing_key.len()).collect();
        assert!(keys.contains(&0) && keys.last() == Some(&255));
        let bodies: BTreeSet<usize> = events.iter().map(|event| event.body.len()).collect();
        for size in [0, 1, FRAME - 1, FRAME, FRAME + 1, MIB, 10 * MIB] {
            assert!(bodies.contains(&size), "{size}");
        }
        assert_eq!(events.iter().filter(|event| event.body.len() >= MIB).count(), 3);
    }

    #[test]
    fn the_same_seed_makes_the_same_events() {
        let digests = |seed| -> Vec<u64> {
            let nasty = NastyAmqp { seed, count: 300, large: 0, ..NastyAmqp::default() };
            (0..nasty.count).map(|index| nasty.event(index).digest()).collect()
        };
        assert_eq!(digests(1), digests(1));
        assert_ne!(digests(1), digests(2));
    }
}
