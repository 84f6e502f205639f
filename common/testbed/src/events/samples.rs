//! Sample topics for the demo: what a shop's services might really send, mixed as they mix it.
//!
//! `orders` and `clicks` as JSON, `payments-proto` as Protobuf, `inventory-avro` as Avro with a schema id in front, tombstones
//! among them. Encoded by hand: the archive takes payloads as bytes, and so may we.

use fastrand::Rng;

use super::{Event, Generator, Workload, rng};

/// The sample topics, and of a hundred events how many go to each.
pub const TOPICS: [(&str, u64); 4] = [("orders", 20), ("clicks", 50), ("payments-proto", 20), ("inventory-avro", 10)];

/// What the Avro payloads were "registered" as: the five bytes before each.
const AVRO_SCHEMA_ID: u32 = 42;

/// `count` events of one sample topic, their times spread over `hours` from `from_ms` on. Not a sample topic: no events.
pub fn events(topic: &str, count: u64, from_ms: i64, hours: f64) -> Box<dyn Iterator<Item = Event>> {
    let times = Generator::new(Workload::Orders, 21, count).over(from_ms, hours);
    let make: fn(&mut Rng, u64, i64) -> Event = match topic {
        "orders" => return Box::new((0..count).map(move |index| order(times.event(index), index))),
        "clicks" => click,
        "payments-proto" => payment,
        "inventory-avro" => stock,
        _ => return Box::new(std::iter::empty()),
    };
    let step = hours * super::HOUR_MS as f64 / count.max(1) as f64;
    let at = move |index: u64| from_ms + (index as f64 * step) as i64;
    Box::new((0..count).map(move |index| make(&mut rng(21, index), index, at(index))))
}

fn order(mut event: Event, index: u64) -> Event {
    event.headers = vec![text("type", "order.changed"), text("source", "checkout")];
    // Now and then a customer asks to be forgotten.
    if index % 50 == 49 {
        event.value = None;
        event.headers = vec![text("type", "customer.forgotten")];
    }
    event
}

fn click(rng: &mut Rng, index: u64, at: i64) -> Event {
    let session = rng.u32(0..400);
    let page = ["home", "search", "product", "basket", "checkout"][rng.usize(0..5)];
    let value = format!(
        r#"{{"session":"s{session:04}","page":"{page}","item":{},"seq":{index},"ts":{at},"ms":{}}}"#,
        rng.u32(1..9_000),
        rng.u32(20..2_000)
    );
    Event {
        key: Some(format!("s{session:04}").into_bytes()),
        value: Some(value.into_bytes()),
        headers: Vec::new(),
        timestamp: at,
    }
}

/// `message Payment { string id = 1; string order = 2; int64 cents = 3; string currency = 4; int32 state = 5; int64 at = 6; }`
fn payment(rng: &mut Rng, index: u64, at: i64) -> Event {
    let id = format!("P-{index:08}");
    let mut value = Vec::with_capacity(64);
    proto_text(&mut value, 1, &id);
    proto_text(&mut value, 2, &format!("O-{:010}", index / 2));
    proto_number(&mut value, 3, rng.u64(100..500_000));
    proto_text(&mut value, 4, ["EUR", "USD", "GBP"][rng.usize(0..3)]);
    proto_number(&mut value, 5, rng.u64(1..4));
    proto_number(&mut value, 6, at as u64);
    let headers = vec![text("content-type", "application/x-protobuf"), text("message", "shop.Payment")];
    Event { key: Some(id.into_bytes()), value: Some(value), headers, timestamp: at }
}

/// `{"name":"Stock","fields":[{"name":"sku","type":"string"},{"name":"house","type":"string"},{"name":"left","type":"int"},{"name":"at","type":"long"}]}`
fn stock(rng: &mut Rng, index: u64, at: i64) -> Event {
    let sku = format!("SKU-{:05}", rng.u32(0..800));
    let mut value = vec![0];
    value.extend_from_slice(&AVRO_SCHEMA_ID.to_be_bytes());
    for field in [sku.as_str(), ["berlin", "lyon", "porto"][rng.usize(0..3)]] {
        zigzag(&mut value, field.len() as i64);
        value.extend_from_slice(field.as_bytes());
    }
    zigzag(&mut value, rng.i64(0..5_000));
    zigzag(&mut value, at);
    // Sold for good: a tombstone.
    let gone = index % 25 == 24;
    Event { key: Some(sku.into_bytes()), value: (!gone).then_some(value), headers: Vec::new(), timestamp: at }
}

fn text(name: &str, value: &str) -> (String, Option<Vec<u8>>) {
    (name.to_owned(), Some(value.as_bytes().to_vec()))
}

fn proto_text(out: &mut Vec<u8>, field: u64, value: &str) {
    varint(out, field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value.as_bytes());
}

fn proto_number(out: &mut Vec<u8>, field: u64, value: u64) {
    varint(out, field << 3);
    varint(out, value);
}

fn zigzag(out: &mut Vec<u8>, value: i64) {
    varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{BASE_MS, HOUR_MS};

    #[test]
    fn each_sample_topic_has_events_over_all_its_hours() {
        for (topic, _) in TOPICS {
            let all: Vec<Event> = events(topic, 200, BASE_MS, 6.0).collect();
            assert_eq!(all.len(), 200, "{topic}");
            assert!(all[199].timestamp > BASE_MS + 5 * HOUR_MS, "{topic}");
        }
        assert_eq!(events("elsewhere", 200, BASE_MS, 6.0).count(), 0);
    }

    #[test]
    fn tombstones_are_among_them_and_binary_payloads_are_well_formed() {
        assert!(events("inventory-avro", 50, BASE_MS, 1.0).any(|event| event.value.is_none()));
        let payment = events("payments-proto", 1, BASE_MS, 1.0).next().and_then(|event| event.value);
        assert_eq!(&payment.expect("a payment")[..12], b"\x0a\x0aP-00000000");
        let mut number = Vec::new();
        zigzag(&mut number, -3);
        varint(&mut number, 300);
        assert_eq!(number, [5, 0xac, 2]);
    }
}
