//! What an event looks like after it was read.

use bytes::Bytes;
use tapedeck_common::budget::ByteBudget;
use tapedeck_common::bus::{Consumer, Deliveries, Incoming, Outgoing, Producer};
use tapedeck_common::event::{HEADER_REPLAY_JOB, PROPERTY_RAW_TIME, TimeKind};
use tapedeck_common::position::{LaneId, Position};
use tapedeck_common::time::Timestamp;
use tapedeck_kafka::config::{KafkaSettings, Replayed};
use tapedeck_kafka::consumer::KafkaConsumer;
use tapedeck_kafka::producer::{KafkaProducer, ProducerSettings};
use tapedeck_testbed::{Event, Loader, Transactions};

use crate::support::{LIMIT, broker, cluster, consumer, drain, event, settings, topic, topic_with};

/// Reads the only partition from its start until the bus says that it ends at `end` or later.
async fn read_to(settings: KafkaSettings, end: u64) -> (KafkaConsumer, Vec<Deliveries>, Position) {
    let budget = ByteBudget::new(256 << 20);
    let mut consumer = consumer(settings, &budget);
    let mut all = Vec::new();
    loop {
        match tokio::time::timeout(LIMIT, consumer.next()).await.expect("in time").expect("no failure") {
            Incoming::Assigned(lanes) => {
                consumer.resume(lanes.into_iter().map(|lane| (lane.lane, Position::new(0))).collect()).await.expect("resumed");
            }
            Incoming::Deliveries(runs) => all.extend(runs),
            Incoming::Idle(lanes) if lanes[0].1.get() >= end => return (consumer, all, lanes[0].1),
            Incoming::Idle(_) | Incoming::Ends(..) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn values(runs: &[Deliveries]) -> Vec<Option<Vec<u8>>> {
    runs.iter().flat_map(|run| (0..run.events.len()).map(|row| run.events.values.get(row).map(<[u8]>::to_vec))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_values_headers_and_times_arrive_as_they_were() {
    let later = &[("message.timestamp.after.max.ms", "9223372036854775807")];
    let name = topic_with("as-they-were", 1, later);
    let mut producer = KafkaProducer::start(&cluster(), ProducerSettings::default()).expect("a producer");
    let time = Timestamp::from_millis(1_700_000_000_123);
    let base =
        Outgoing { topic: &name, partition: 0, time, key: None, value: None, headers: &[], lane: 0, position: Position::new(0) };
    let headers: &[(&str, Option<&[u8]>)] = &[("a", Some(b"1")), ("a", None), ("", Some(b"")), ("?", Some(b"raw")), ("é", None)];
    assert!(producer.publish(&Outgoing { key: Some(b""), value: None, ..base }).expect("sent"));
    assert!(producer.publish(&Outgoing { key: None, value: Some(&Bytes::new()), ..base }).expect("sent"));
    let odd = Outgoing { key: Some(b"\x00\xff"), value: Some(&Bytes::from_static(b"v")), headers, ..base };
    assert!(producer.publish_raw(&odd, &[(3, b"n\xffm")]).expect("sent"));
    let far = Timestamp::from_millis(400_000_000_000_000).expect("fits");
    assert!(producer.publish(&Outgoing { time: Some(far), ..base }).expect("sent"));
    drain(&mut producer).await.expect("confirmed");

    let (_consumer, runs, end) = read_to(settings("as-they-were", &[&name]), 4).await;
    assert_eq!(end, Position::new(4));
    let mut events = tapedeck_common::columns::Columns::default();
    runs.iter().for_each(|run| events.append(&run.events));
    assert_eq!((events.get(0).key, events.get(0).value), (Some(&b""[..]), None));
    assert_eq!((events.get(1).key, events.get(1).value), (None, Some(&b""[..])));
    assert_eq!((events.get(2).key, events.get(2).value), (Some(&b"\x00\xff"[..]), Some(&b"v"[..])));
    assert_eq!((Some(events.get(2).time), events.get(2).time_kind), (time, TimeKind::Create));
    assert_eq!(events.get(2).leader_epoch, Some(0));
    let read: Vec<_> = events.headers.row(2).collect();
    assert_eq!(read, [("a", Some(&b"1"[..])), ("a", None), ("", Some(&b""[..])), ("n\\xFFm", Some(&b"raw"[..])), ("é", None)]);
    // Base64 of the three bytes.
    assert_eq!(events.properties.row(2).collect::<Vec<_>>(), [("raw_header_name.3", Some(&b"bv9t"[..]))]);
    assert_eq!(events.get(3).time_kind, TimeKind::Arrival);
    assert_eq!(events.properties.row(3).collect::<Vec<_>>(), [(PROPERTY_RAW_TIME, Some(&b"400000000000000"[..]))]);
    assert!(events.get(3).time.is_calendar());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_brokers_time_is_marked_as_such() {
    let name = topic_with("append-time", 1, &[("message.timestamp.type", "LogAppendTime")]);
    let loader = Loader::new(&broker(), &[]).expect("a producer");
    loader.send(&name, Some(0), &event("x")).expect("sent");
    loader.finish().expect("delivered");
    let (_consumer, runs, _) = read_to(settings("append-time", &[&name]), 1).await;
    assert_eq!(runs[0].events.get(0).time_kind, TimeKind::Append);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborted_transactions_are_never_seen_and_the_end_lies_past_their_markers() {
    let name = topic("transactional", 1);
    let transactions = Transactions::new(&broker(), "transactional", &[]).expect("a producer");
    for (number, commit) in [(0, true), (1, false), (2, true), (3, false)] {
        transactions.begin().expect("begun");
        for index in 0..5 {
            transactions.send(&name, Some(0), &event(&format!("{number}.{index}"))).expect("sent");
        }
        if commit { transactions.commit() } else { transactions.abort() }.expect("ended");
    }
    // Four times five events and a marker.
    let (_consumer, runs, end) = read_to(settings("transactional", &[&name]), 24).await;
    assert_eq!(end, Position::new(24));
    let expected: Vec<_> =
        [0, 2].iter().flat_map(|number| (0..5).map(move |index| Some(format!("{number}.{index}").into_bytes()))).collect();
    assert_eq!(values(&runs), expected);
    let mut next = Position::new(0);
    for run in &runs {
        assert!(run.span.from() >= next, "spans do not overlap");
        next = run.span.until();
    }
    drop(transactions);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_that_a_replay_published_are_skipped_and_counted_or_read_if_asked_for() {
    let name = topic("replayed", 1);
    let loader = Loader::new(&broker(), &[]).expect("a producer");
    for number in 0..9 {
        let mark = (HEADER_REPLAY_JOB.to_owned(), Some(b"rp-1".to_vec()));
        let headers = if number % 3 == 1 { vec![mark] } else { Vec::new() };
        loader.send(&name, Some(0), &Event { headers, ..event(&number.to_string()) }).expect("sent");
    }
    loader.finish().expect("delivered");
    let (_consumer, runs, end) = read_to(settings("replayed-skip", &[&name]), 9).await;
    assert_eq!((runs.iter().map(|run| run.skipped).sum::<u64>(), values(&runs).len(), end.get()), (3, 6, 9));
    assert_eq!(runs.iter().map(|run| run.span.len()).sum::<u64>(), 9, "what was skipped is part of the spans");
    let all = KafkaSettings { replayed: Replayed::Archive, ..settings("replayed-all", &[&name]) };
    let (_consumer, runs, _) = read_to(all, 9).await;
    assert_eq!(values(&runs).len(), 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_values_get_through_and_room_is_counted_for_what_is_there() {
    let name = topic_with("large", 1, &[("max.message.bytes", "8388608")]);
    let loader = Loader::new(&broker(), &[("message.max.bytes", "8388608")]).expect("a producer");
    let large: Vec<u8> = (0..3 << 20).map(|index| (index * 7 % 251) as u8).collect();
    for _ in 0..8 {
        loader.send(&name, Some(0), &Event { value: Some(large.clone()), ..event("") }).expect("sent");
        loader.send(&name, Some(0), &event("small")).expect("sent");
    }
    loader.finish().expect("delivered");
    let (_consumer, runs, _) = read_to(settings("large", &[&name]), 16).await;
    assert_eq!(values(&runs).iter().filter(|value| value.as_deref() == Some(&large)).count(), 8);
    for run in &runs {
        assert_eq!(run.permit.bytes(), run.events.memory_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bounds_of_a_lane_are_known_without_asking() {
    let name = topic("bounds", 1);
    crate::support::produce(&name, 0, 0..50);
    let (mut consumer, runs, _) = read_to(settings("bounds", &[&name]), 50).await;
    let lane: &LaneId = &runs[0].lane;
    while !matches!(consumer.next().await, Ok(Incoming::Ends(..))) {}
    assert_eq!(consumer.bounds(lane).map(|span| span.until()), Some(Position::new(50)));
    assert_eq!(consumer.bounds(&LaneId::new("kafka/x/y/0", 0)), None);
    assert_eq!(consumer.counters().events(), 50);
}
