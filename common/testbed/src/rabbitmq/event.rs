//! An AMQP 0-9-1 event as a publisher hands it to the broker, and what the judge knows of it.

use std::fmt;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

/// One event.
#[derive(Clone, Default, PartialEq)]
pub struct RabbitEvent {
    /// The exchange that it is published to; empty is the default one, which routes by the queue's name.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// All fourteen properties, the typed headers among them.
    pub properties: BasicProperties,
    /// The payload.
    pub body: Vec<u8>,
}

impl RabbitEvent {
    /// An event without properties that goes straight to a queue or stream.
    pub fn to_queue(queue: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { routing_key: queue.to_owned(), body: body.into(), ..Self::default() }
    }

    /// What it takes in memory, about.
    pub fn size(&self) -> usize {
        self.body.len() + 512
    }

    /// 64 bits of BLAKE3 over everything that must survive: exchange, key, properties with the types of the headers, body.
    /// Floats by their bits; a property that is empty is not one that is absent.
    pub fn digest(&self) -> u64 {
        let mut hasher = blake3::Hasher::new();
        let mut head = Vec::new();
        put_bytes(&mut head, self.exchange.as_bytes());
        put_bytes(&mut head, self.routing_key.as_bytes());
        put_properties(&mut head, &self.properties);
        put_bytes(&mut head, &self.body);
        hasher.update(&head);
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }
}

/// Bodies may be large, so only their length is shown.
impl fmt::Debug for RabbitEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitEvent")
            .field("exchange", &self.exchange)
            .field("routing_key", &self.routing_key)
            .field("properties", &self.properties)
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

fn put_properties(out: &mut Vec<u8>, properties: &BasicProperties) {
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.expiration(),
        properties.message_id(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
        properties.cluster_id(),
    ];
    for text in texts {
        put_option(out, text.as_ref(), |out, text: &ShortString| put_bytes(out, text.as_str().as_bytes()));
    }
    for byte in [properties.delivery_mode(), properties.priority()] {
        put_option(out, byte.as_ref(), |out, byte| out.push(*byte));
    }
    put_option(out, properties.timestamp().as_ref(), |out, seconds| out.extend(seconds.to_be_bytes()));
    put_option(out, properties.headers().as_ref(), put_table);
}

fn put_option<T>(out: &mut Vec<u8>, value: Option<&T>, put: impl Fn(&mut Vec<u8>, &T)) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_be_bytes());
    out.extend(bytes);
}

fn put_table(out: &mut Vec<u8>, table: &FieldTable) {
    out.extend((table.inner().len() as u64).to_be_bytes());
    for (name, value) in table {
        put_bytes(out, name.as_str().as_bytes());
        put_value(out, value);
    }
}

fn put_value(out: &mut Vec<u8>, value: &AMQPValue) {
    out.push(value.get_type().get_id() as u8);
    match value {
        AMQPValue::Boolean(value) => out.push(u8::from(*value)),
        AMQPValue::ShortShortInt(value) => out.extend(value.to_be_bytes()),
        AMQPValue::ShortShortUInt(value) => out.push(*value),
        AMQPValue::ShortInt(value) => out.extend(value.to_be_bytes()),
        AMQPValue::ShortUInt(value) => out.extend(value.to_be_bytes()),
        AMQPValue::LongInt(value) => out.extend(value.to_be_bytes()),
        AMQPValue::LongUInt(value) => out.extend(value.to_be_bytes()),
        AMQPValue::LongLongInt(value) => out.extend(value.to_be_bytes()),
        AMQPValue::Float(value) => out.extend(value.to_bits().to_be_bytes()),
        AMQPValue::Double(value) => out.extend(value.to_bits().to_be_bytes()),
        AMQPValue::DecimalValue(value) => {
            out.push(value.scale);
            out.extend(value.value.to_be_bytes());
        }
        AMQPValue::ShortString(value) => put_bytes(out, value.as_str().as_bytes()),
        AMQPValue::LongString(value) => put_bytes(out, value.as_bytes()),
        AMQPValue::FieldArray(values) => {
            out.extend((values.as_slice().len() as u64).to_be_bytes());
            values.as_slice().iter().for_each(|value| put_value(out, value));
        }
        AMQPValue::Timestamp(value) => out.extend(value.to_be_bytes()),
        AMQPValue::FieldTable(table) => put_table(out, table),
        AMQPValue::ByteArray(value) => put_bytes(out, value.as_slice()),
        AMQPValue::Void => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_header(value: AMQPValue) -> RabbitEvent {
        let mut headers = FieldTable::default();
        headers.insert("h".into(), value);
        RabbitEvent { properties: BasicProperties::default().with_headers(headers), ..RabbitEvent::default() }
    }

    #[test]
    fn the_digest_sees_each_property_and_each_type() {
        let plain = BasicProperties::default;
        let mut digests: Vec<u64> = [
            plain(),
            plain().with_content_type("".into()),
            plain().with_content_encoding("".into()),
            plain().with_headers(FieldTable::default()),
            plain().with_delivery_mode(0),
            plain().with_priority(0),
            plain().with_correlation_id("".into()),
            plain().with_reply_to("".into()),
            plain().with_expiration("".into()),
            plain().with_message_id("".into()),
            plain().with_timestamp(0),
            plain().with_type("".into()),
            plain().with_user_id("".into()),
            plain().with_app_id("".into()),
            plain().with_cluster_id("".into()),
        ]
        .map(|properties| RabbitEvent { properties, ..RabbitEvent::default() }.digest())
        .into();
        let zeros = [
            AMQPValue::Boolean(false),
            AMQPValue::ShortShortInt(0),
            AMQPValue::ShortShortUInt(0),
            AMQPValue::ShortInt(0),
            AMQPValue::ShortUInt(0),
            AMQPValue::LongInt(0),
            AMQPValue::LongUInt(0),
            AMQPValue::LongLongInt(0),
            AMQPValue::Timestamp(0),
            AMQPValue::Float(0.0),
            AMQPValue::Float(-0.0),
            AMQPValue::Double(0.0),
            AMQPValue::LongString("".into()),
            AMQPValue::ByteArray(Vec::new().into()),
            AMQPValue::FieldArray(Vec::new().into()),
            AMQPValue::FieldTable(FieldTable::default()),
            AMQPValue::Void,
        ];
        digests.extend(zeros.map(|zero| with_header(zero).digest()));
        let distinct: std::collections::BTreeSet<u64> = digests.iter().copied().collect();
        assert_eq!(distinct.len(), digests.len());
    }

    #[test]
    fn key_and_body_do_not_run_into_each_other() {
        let event = |key: &str, body: &str| RabbitEvent::to_queue(key, body).digest();
        assert_ne!(event("ab", "c"), event("a", "bc"));
        assert_eq!(event("ab", "c"), event("ab", "c"));
    }
}
