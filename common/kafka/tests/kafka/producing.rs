//! Publishing: order, confirmation, refusals.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tapedeck_common::bus::{Outgoing, Producer};
use tapedeck_common::error::ErrorKind;
use tapedeck_common::position::Position;
use tapedeck_kafka::config::ClusterSettings;
use tapedeck_kafka::producer::{KafkaProducer, ProducerSettings};
use tapedeck_testbed::{Isolation, read_all};

use crate::support::{LIMIT, broker, cluster, drain, topic};

fn outgoing<'a>(topic: &'a str, partition: i32, number: u64, value: &'a Bytes) -> Outgoing<'a> {
    let position = Position::new(number);
    Outgoing { topic, partition, time: None, key: None, value: Some(value), headers: &[], lane: partition as u32, position }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_arrive_in_order_and_are_confirmed_to_their_last_event() {
    let name = topic("published", 3);
    let mut producer = KafkaProducer::start(&cluster(), ProducerSettings::default()).expect("a producer");
    let padding = vec![b'x'; 2_000];
    let mut full = 0;
    for number in 0..30_000_u64 {
        let value = Bytes::from([number.to_string().as_bytes(), b" ", padding.as_slice()].concat());
        let event = outgoing(&name, (number % 3) as i32, number, &value);
        let deadline = Instant::now() + LIMIT;
        while !producer.publish(&event).expect("sent") {
            full += 1;
            assert!(Instant::now() < deadline, "the queue never empties");
            producer.confirmed().expect("no refusal");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    assert!(full > 0, "60 MB do not fit a queue of 8 MB");
    for confirmed in drain(&mut producer).await.expect("no refusal") {
        assert_eq!((confirmed.events, confirmed.next.get()), (10_000, 29_998 + u64::from(confirmed.lane)));
    }
    let mut next: BTreeMap<i32, u64> = (0..3).map(|partition| (partition, partition as u64)).collect();
    for (partition, received) in read_all(&broker(), &name, Isolation::Committed).expect("read back") {
        for one in received {
            let value = one.event.value.expect("a value");
            let number: u64 =
                std::str::from_utf8(value.split(|byte| *byte == b' ').next().expect("a number")).unwrap().parse().unwrap();
            let expected = next.get_mut(&partition).expect("one of three");
            assert_eq!(number, *expected);
            *expected += 3;
        }
    }
    assert!(next.values().all(|number| *number >= 30_000), "{next:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_the_topic_refuses_is_named_and_nothing_after_it_counts() {
    let name = topic("refused", 1);
    let mut producer = KafkaProducer::start(&cluster(), ProducerSettings::default()).expect("a producer");
    producer.publish(&outgoing(&name, 0, 7, &Bytes::from_static(b"small"))).expect("sent");
    drain(&mut producer).await.expect("confirmed");
    let large = vec![b'x'; 3 << 20];
    producer.publish(&outgoing(&name, 0, 8, &Bytes::from(large))).expect("taken by the client");
    let error = drain(&mut producer).await.expect_err("the broker takes 1 MB");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    for part in [name.as_str(), "partition 0", "position 8", "too large"] {
        assert!(error.to_string().to_lowercase().contains(part), "{error} lacks {part}");
    }
    assert!(producer.confirmed().is_err() && producer.publish(&outgoing(&name, 0, 9, &Bytes::from_static(b"x"))).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_the_queue_can_never_hold_is_named_and_not_waited_for() {
    let name = topic("giant", 1);
    let mut producer = KafkaProducer::start(&cluster(), ProducerSettings::default()).expect("a producer");
    let giant = Bytes::from(vec![b'x'; 10 << 20]);
    assert!(producer.publish(&outgoing(&name, 0, 1, &Bytes::from_static(b"small"))).expect("sent"));
    assert!(!producer.publish(&outgoing(&name, 0, 2, &giant)).expect("room may still come"));
    drain(&mut producer).await.expect("confirmed");
    let error = producer.publish(&outgoing(&name, 0, 2, &giant)).expect_err("a queue of 8 MiB");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    for part in ["position 2", "10485760 bytes", "queue.buffering.max.kbytes"] {
        assert!(error.to_string().contains(part), "{error} lacks {part}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_or_partition_that_is_not_there_is_refused() {
    let name = topic("no-such-partition", 1);
    let quick = BTreeMap::from([("message.timeout.ms".to_owned(), "3000".to_owned())]);
    let settings = ClusterSettings { client: quick, ..cluster() };
    for (topic, partition) in [(name.as_str(), 9), ("there-is-no-such-topic", 0)] {
        let mut producer = KafkaProducer::start(&settings, ProducerSettings::default()).expect("a producer");
        let error = match producer.publish(&outgoing(topic, partition, 1, &Bytes::from_static(b"x"))) {
            Ok(_) => drain(&mut producer).await.expect_err("nobody takes it"),
            Err(error) => error,
        };
        assert!(error.to_string().contains(topic), "{error}");
    }
}
