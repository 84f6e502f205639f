//! A delivery as a row of columns: key, value, headers, time, properties.
//!
//! Promises: payloads, names and typed values arrive bit for bit; what the broker itself writes into the headers of a delivery is
//! left out. Never: parses a body.

use std::borrow::Cow;

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, DecimalValue, FieldTable, ShortString};
use tapedeck_common::bus::Replayed;
use tapedeck_common::columns::{Columns, EventFields};
use tapedeck_common::event::{HEADER_REPLAY_JOB, TimeKind, settle_time};
use tapedeck_common::position::Position;
use tapedeck_common::time::Timestamp;

use crate::names::{self, Scalar};
use crate::table;

/// The header in which a stream's broker tells where a delivery stands.
pub(crate) const STREAM_OFFSET: &str = "x-stream-offset";
/// The header in which exchanges and clients keep the milliseconds, which the property `timestamp` has no room for.
const MILLIS: &str = "timestamp_in_ms";

/// The headers in which a queue's broker counts how often a message was handed over before.
const COUNTS: [(&str, &str); 2] = [("x-delivery-count", names::DELIVERY_COUNT), ("x-acquired-count", names::ACQUIRED_COUNT)];

/// Where deliveries come from; it decides which of their headers are the broker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Stream,
    Queue,
}

impl Origin {
    fn is_brokers(self, header: &str) -> bool {
        match self {
            Self::Stream => header == STREAM_OFFSET,
            Self::Queue => COUNTS.iter().any(|(name, _)| *name == header),
        }
    }
}

/// Turns deliveries into rows.
#[derive(Debug)]
pub(crate) struct Converter {
    origin: Origin,
    replayed: Replayed,
    typed: String,
}

impl Converter {
    pub(crate) const fn new(origin: Origin, replayed: Replayed) -> Self {
        Self { origin, replayed, typed: String::new() }
    }

    /// Appends the delivery; answers the memory of its row, `None` if it was left out as the copy that it is.
    pub(crate) fn push(
        &mut self,
        to: &mut Columns,
        delivery: &Delivery,
        position: Position,
        arrival: Timestamp,
    ) -> Option<usize> {
        let properties = &delivery.properties;
        let table = properties.headers().as_ref();
        if self.replayed == Replayed::Skip && table.is_some_and(|table| table.contains_key(HEADER_REPLAY_JOB)) {
            return None;
        }
        let (time, time_kind) = settle_time(time_of(properties), arrival);
        let fields = EventFields {
            position,
            time,
            time_kind,
            leader_epoch: None,
            key: Some(delivery.routing_key.as_str().as_bytes()),
            value: Some(&delivery.data),
        };
        let own = || entries(self.origin, table);
        let headers: Vec<_> = own().map(|(name, value)| (name.as_str(), bytes_of(value))).collect();
        let mut typed = std::mem::take(&mut self.typed);
        typed.clear();
        // An empty table is none only where it holds what the broker wrote: then nobody can tell.
        if !headers.is_empty() || table.is_some_and(|table| table.inner().is_empty()) {
            table::write(own(), &mut typed);
        }
        let texts = texts_of(self.origin, delivery, &typed);
        to.push(
            fields,
            headers.iter().map(|(name, value)| (*name, value.as_deref())),
            texts.iter().map(|(name, text)| (*name, text.as_ref())),
        );
        drop(texts);
        self.typed = typed;
        Some(to.row_bytes(to.len() - 1))
    }
}

/// The headers that are the message's own.
fn entries(origin: Origin, table: Option<&FieldTable>) -> impl Iterator<Item = (&ShortString, &AMQPValue)> {
    table.into_iter().flatten().filter(move |(name, _)| !origin.is_brokers(name.as_str()))
}

/// What the broker says of earlier deliveries of a queue's message.
fn marks<'d>(origin: Origin, delivery: &'d Delivery) -> impl Iterator<Item = (&'static str, Cow<'d, str>)> {
    let table = delivery.properties.headers().as_ref().filter(|_| origin == Origin::Queue);
    let count = move |(header, name): (&str, &'static str)| {
        let count = integer(table?.inner().get(header)?)?;
        Some((name, decimal(u64::try_from(count).ok()?)))
    };
    let redelivered = (origin == Origin::Queue && delivery.redelivered).then_some((names::REDELIVERED, Cow::Borrowed("true")));
    redelivered.into_iter().chain(COUNTS.into_iter().filter_map(count))
}

fn texts_of<'d>(origin: Origin, delivery: &'d Delivery, typed: &'d str) -> Vec<(&'static str, Cow<'d, str>)> {
    let exchange = Some((names::EXCHANGE, Cow::Borrowed(delivery.exchange.as_str()))).filter(|(_, name)| !name.is_empty());
    let headers = Some((names::HEADERS, Cow::Borrowed(typed))).filter(|(_, typed)| !typed.is_empty());
    let scalars = names::scalars(&delivery.properties).map(|(name, value)| match value {
        Scalar::Text(text) => (name, Cow::Borrowed(text)),
        Scalar::Number(number) => (name, decimal(number)),
    });
    exchange.into_iter().chain(scalars).chain(headers).chain(marks(origin, delivery)).collect()
}

/// Most numbers here have one digit.
fn decimal(number: u64) -> Cow<'static, str> {
    match usize::try_from(number) {
        Ok(digit @ 0..10) => Cow::Borrowed(&"0123456789"[digit..=digit]),
        _ => Cow::Owned(number.to_string()),
    }
}

/// The property `timestamp` counts seconds; the header is believed where it tells the same second more finely.
fn time_of(properties: &BasicProperties) -> Option<(Timestamp, TimeKind)> {
    let seconds = i64::try_from((*properties.timestamp())?).ok()?;
    let header = properties.headers().as_ref().and_then(|table| integer(table.inner().get(MILLIS)?));
    let time = match header.filter(|millis| millis.div_euclid(1_000) == seconds) {
        Some(millis) => Timestamp::from_millis(millis)?,
        None => Timestamp::from_millis(seconds.checked_mul(1_000)?)?,
    };
    Some((time, TimeKind::Create))
}

fn integer(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::LongLongInt(value) => Some(*value),
        AMQPValue::LongInt(value) => Some(i64::from(*value)),
        AMQPValue::LongUInt(value) => Some(i64::from(*value)),
        AMQPValue::Timestamp(value) => i64::try_from(*value).ok(),
        _ => None,
    }
}

/// The position that a stream's broker gives a delivery; `None` if it is from no stream.
pub(crate) fn stream_position(delivery: &Delivery) -> Option<Position> {
    let offset = delivery.properties.headers().as_ref()?.inner().get(STREAM_OFFSET)?;
    Position::from_i64(integer(offset)?)
}

/// What the column `headers` holds of a value: strings and bytes as they are, scalars as text, lists and tables as JSON.
fn bytes_of(value: &AMQPValue) -> Option<Cow<'_, [u8]>> {
    let text = match value {
        AMQPValue::Void => return None,
        AMQPValue::LongString(value) => return Some(Cow::Borrowed(value.as_bytes())),
        AMQPValue::ByteArray(value) => return Some(Cow::Borrowed(value.as_slice())),
        AMQPValue::ShortString(value) => return Some(Cow::Borrowed(value.as_str().as_bytes())),
        AMQPValue::Boolean(value) => value.to_string(),
        AMQPValue::ShortShortInt(value) => value.to_string(),
        AMQPValue::ShortShortUInt(value) => value.to_string(),
        AMQPValue::ShortInt(value) => value.to_string(),
        AMQPValue::ShortUInt(value) => value.to_string(),
        AMQPValue::LongInt(value) => value.to_string(),
        AMQPValue::LongUInt(value) => value.to_string(),
        AMQPValue::LongLongInt(value) => value.to_string(),
        AMQPValue::Timestamp(value) => value.to_string(),
        AMQPValue::Float(value) => format!("{value:?}"),
        AMQPValue::Double(value) => format!("{value:?}"),
        AMQPValue::DecimalValue(value) => scaled(*value),
        AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) => {
            let mut text = String::new();
            table::write_value(value, &mut text);
            // Without the tag around it: `["F",...]`.
            text[5..text.len() - 1].to_owned()
        }
    };
    Some(Cow::Owned(text.into_bytes()))
}

/// `scale` digits stand behind the point.
fn scaled(value: DecimalValue) -> String {
    let scale = usize::from(value.scale);
    if scale == 0 {
        return value.value.to_string();
    }
    let digits = format!("{:0>width$}", value.value, width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    format!("{whole}.{fraction}")
}

#[cfg(test)]
mod tests {
    use lapin::types::{FieldArray, LongString};

    use super::*;

    const ARRIVAL: Timestamp = Timestamp::from_micros(77);

    fn delivery(properties: BasicProperties) -> Delivery {
        let mut delivery = Delivery::mock(1, "shop".into(), "eu.orders".into(), false, b"body".to_vec());
        delivery.properties = properties;
        delivery
    }

    fn headers(entries: &[(&str, AMQPValue)]) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in entries {
            table.insert((*name).into(), value.clone());
        }
        table
    }

    fn text(text: &str) -> AMQPValue {
        AMQPValue::LongString(LongString::from(text))
    }

    fn row(delivery: &Delivery) -> Columns {
        row_of(Origin::Stream, delivery)
    }

    fn row_of(origin: Origin, delivery: &Delivery) -> Columns {
        let mut columns = Columns::default();
        let bytes = Converter::new(origin, Replayed::Skip).push(&mut columns, delivery, Position::new(5), ARRIVAL);
        assert_eq!(bytes, Some(columns.memory_bytes()));
        columns
    }

    fn properties(columns: &Columns) -> Vec<(&str, &str)> {
        let text = |value: Option<&'_ [u8]>| std::str::from_utf8(value.expect("never null")).expect("text").to_owned();
        let pairs: Vec<_> = columns.properties.row(0).map(|(name, value)| (name, text(value))).collect();
        pairs.into_iter().map(|(name, value)| (name, &*value.leak())).collect()
    }

    #[test]
    fn all_that_a_message_says_has_its_place() {
        let table = headers(&[("b", AMQPValue::Void), ("a", text("x")), (STREAM_OFFSET, AMQPValue::LongLongInt(5))]);
        let columns = row(&delivery(
            BasicProperties::default()
                .with_content_type("text/plain".into())
                .with_delivery_mode(2)
                .with_message_id("m-1".into())
                .with_timestamp(12)
                .with_headers(table),
        ));
        let fields = columns.get(0);
        assert_eq!((fields.key, fields.value, fields.position), (Some(&b"eu.orders"[..]), Some(&b"body"[..]), Position::new(5)));
        assert_eq!((fields.time, fields.time_kind), (Timestamp::from_micros(12_000_000), TimeKind::Create));
        let headers: Vec<_> = columns.headers.row(0).collect();
        assert_eq!(headers, [("a", Some(&b"x"[..])), ("b", None)]);
        let expected = [
            ("exchange", "shop"),
            ("content_type", "text/plain"),
            ("delivery_mode", "2"),
            ("message_id", "m-1"),
            ("timestamp", "12"),
            ("headers", r#"{"a":["S","x"],"b":["V",null]}"#),
        ];
        assert_eq!(properties(&columns), expected);
    }

    #[test]
    fn what_comes_again_is_marked_and_the_counts_are_no_headers() {
        let counts =
            [("a", text("x")), ("x-acquired-count", AMQPValue::LongLongInt(12)), ("x-delivery-count", AMQPValue::LongLongInt(3))];
        let mut again = delivery(BasicProperties::default().with_headers(headers(&counts)));
        again.redelivered = true;
        let columns = row_of(Origin::Queue, &again);
        assert_eq!(columns.headers.row(0).collect::<Vec<_>>(), [("a", Some(&b"x"[..]))]);
        let expected = [
            ("exchange", "shop"),
            ("headers", r#"{"a":["S","x"]}"#),
            ("redelivered", "true"),
            ("delivery_count", "3"),
            ("acquired_count", "12"),
        ];
        assert_eq!(properties(&columns), expected);
        assert_eq!(row(&again).headers.row(0).count(), 3, "in a stream they are what somebody published");
    }

    #[test]
    fn what_is_not_there_takes_no_place() {
        let mut bare = delivery(BasicProperties::default());
        (bare.exchange, bare.routing_key, bare.data) = ("".into(), "".into(), Vec::new());
        let columns = row(&bare);
        assert_eq!((columns.get(0).key, columns.get(0).value), (Some(&b""[..]), Some(&b""[..])), "empty, and never null");
        assert_eq!(properties(&columns), []);
        assert_eq!((columns.get(0).time, columns.get(0).time_kind), (ARRIVAL, TimeKind::Arrival));
    }

    #[test]
    fn milliseconds_are_believed_within_the_second() {
        let at = |seconds: u64, millis: AMQPValue| {
            let table = headers(&[(MILLIS, millis)]);
            let columns = row(&delivery(BasicProperties::default().with_timestamp(seconds).with_headers(table)));
            columns.get(0).time.micros()
        };
        assert_eq!(at(12, AMQPValue::LongLongInt(12_345)), 12_345_000);
        assert_eq!(at(12, AMQPValue::LongLongInt(13_000)), 12_000_000, "another second");
        assert_eq!(at(12, text("12345")), 12_000_000, "no number");
        assert_eq!(at(1 << 63, AMQPValue::LongLongInt(1)), ARRIVAL.micros(), "no calendar holds it");
    }

    #[test]
    fn headers_are_bytes_whatever_their_type() {
        let cases = [
            (AMQPValue::Boolean(true), "true"),
            (AMQPValue::ShortShortInt(-1), "-1"),
            (AMQPValue::Double(0.1), "0.1"),
            (AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 314 }), "3.14"),
            (AMQPValue::DecimalValue(DecimalValue { scale: 3, value: 7 }), "0.007"),
            (AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::Void])), r#"[["V",null]]"#),
            (AMQPValue::FieldTable(FieldTable::default()), "{}"),
        ];
        for (value, text) in cases {
            assert_eq!(bytes_of(&value).as_deref(), Some(text.as_bytes()), "{value:?}");
        }
    }

    #[test]
    fn copies_of_a_replay_are_left_out_unless_wanted() {
        let copy = delivery(BasicProperties::default().with_headers(headers(&[(HEADER_REPLAY_JOB, text("j"))])));
        let mut columns = Columns::default();
        assert_eq!(Converter::new(Origin::Queue, Replayed::Skip).push(&mut columns, &copy, Position::new(5), ARRIVAL), None);
        assert!(columns.is_empty());
        assert!(Converter::new(Origin::Queue, Replayed::Archive).push(&mut columns, &copy, Position::new(5), ARRIVAL).is_some());
    }
}
