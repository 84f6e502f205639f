//! What tools ask.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use tapedeck_common::error::ErrorKind;
use tapedeck_common::position::{Position, Span};
use tapedeck_kafka::admin::{Cluster, Created, Ends, check_online};
use tapedeck_kafka::config::ClusterSettings;
use tapedeck_testbed::Transactions;

use crate::support::{broker, cluster, event, produce, settings, topic};

#[test]
fn a_topic_is_made_once_and_described_as_it_was_made() {
    let asked = Cluster::open(&cluster()).expect("a connection");
    let wanted =
        BTreeMap::from([("retention.ms".to_owned(), "-1".to_owned()), ("max.message.bytes".to_owned(), "2000000".to_owned())]);
    assert_eq!(asked.topic("made-here").expect("an answer"), None);
    assert_eq!(asked.create_topic("made-here", 3, 1, &wanted).expect("made"), Created::New);
    assert_eq!(asked.create_topic("made-here", 3, 1, &wanted).expect("answered"), Created::Existed);
    let deadline = std::time::Instant::now() + crate::support::LIMIT;
    let topic = loop {
        // The broker that made it may need a moment to show it.
        if let Some(topic) = asked.topic("made-here").expect("an answer") {
            break topic;
        }
        assert!(std::time::Instant::now() < deadline, "the topic never shows");
    };
    assert_eq!((topic.partitions, topic.replication), (3, 1));
    assert_eq!(topic.settings.get("max.message.bytes").map(String::as_str), Some("2000000"));
    assert!(topic.source.starts_with("kafka/") && topic.source.split('/').count() == 4, "{}", topic.source);
    let error = asked.create_topic("made-wrong", 1, 1, &BTreeMap::from([("no.such.setting".to_owned(), "1".to_owned())]));
    let error = error.expect_err("no such setting");
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("made-wrong"), "{error}");
}

#[test]
fn a_check_names_topics_that_are_missing_and_brokers_that_are_away() {
    let name = topic("checked", 2);
    let report = check_online(&settings("checked", &[&name, "checked-missing", r"^check.d$"])).expect("reachable");
    assert_eq!(report.topics, BTreeMap::from([(name, 2)]));
    assert_eq!(report.missing, ["checked-missing"]);
    assert_eq!(report.cluster, "AAAAAAAAAAAAAAAAAAAAAQ");
    let mut away = settings("checked", &["checked"]);
    away.cluster.brokers = vec!["127.0.0.1:9".to_owned()];
    let error = check_online(&away).expect_err("nobody listens there");
    assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("127.0.0.1:9"), "{error}");
    let unknown = ClusterSettings { client: BTreeMap::from([("no.such.property".to_owned(), "1".to_owned())]), ..cluster() };
    let error = Cluster::open(&unknown).expect_err("no such property");
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("no.such.property"), "{error}");
}

#[test]
fn ranges_are_those_of_a_careful_reader_under_the_topics_own_name() {
    let name = topic("ranges", 2);
    produce(&name, 0, 0..100);
    let transactions = Transactions::new(&broker(), "ranges", &[]).expect("a producer");
    transactions.begin().expect("begun");
    for index in 0..5 {
        transactions.send(&name, Some(1), &event(&format!("aborted {index}"))).expect("sent");
    }
    transactions.abort().expect("ended");
    let asked = Cluster::open(&cluster()).expect("a connection");
    let there = asked.topics_there(&settings("ranges", &[&name, "ranges-missing"])).expect("an answer");
    let [found] = &there.selected[..] else { panic!("{there:?}") };
    let known = asked.topic(&name).expect("an answer").expect("there");
    assert_eq!((&*found.source, found.partitions), (&*known.source, 2));
    assert!(found.source.starts_with(&there.source_prefix()) && there.names.contains(&name), "{there:?}");
    let numbers = |ends: Ends| ends.into_values().map(|end| end.expect("an end").get()).collect::<Vec<_>>();
    assert_eq!(numbers(asked.beginnings(&there.selected).expect("an answer")), [0, 0]);
    // Five events that nobody may see, and the marker that says so.
    assert_eq!(numbers(asked.ends(&there.selected).expect("an answer")), [100, 6]);
    assert!(asked.ends(&[]).expect("an answer").is_empty());
}

#[test]
fn a_topic_is_read_back_as_a_careful_reader_sees_it() {
    let name = topic("read-back", 2);
    produce(&name, 0, 0..1_000);
    let transactions = Transactions::new(&broker(), "read-back", &[]).expect("a producer");
    for commit in [true, false] {
        transactions.begin().expect("begun");
        for index in 0..10 {
            transactions.send(&name, Some(1), &event(&format!("{commit} {index}"))).expect("sent");
        }
        if commit { transactions.commit() } else { transactions.abort() }.expect("ended");
    }
    let asked = Cluster::open(&cluster()).expect("a connection");
    let spans: BTreeMap<i32, Span> =
        (0..2).map(|partition| (partition, asked.watermarks(&name, partition).expect("an end"))).collect();
    assert_eq!(spans[&1].until(), Position::new(22));
    for _ in 0..2 {
        let mut seen: BTreeMap<i32, Vec<u64>> = BTreeMap::new();
        asked
            .read_back(&name, &spans, Duration::from_secs(30), |event| {
                assert!(event.partition() == 0 || event.value().unwrap_or_default().starts_with(b"true"));
                seen.entry(event.partition()).or_default().push(event.position().get());
                ControlFlow::Continue(())
            })
            .expect("read back");
        assert_eq!(seen[&0], (0..1_000).collect::<Vec<_>>());
        assert_eq!(seen[&1], (0..10).collect::<Vec<_>>());
    }
    let part = BTreeMap::from([(0, Span::new(Position::new(5), Position::new(8)).expect("forward"))]);
    let mut few = Vec::new();
    asked
        .read_back(&name, &part, Duration::from_secs(30), |event| {
            few.push(event.position().get());
            ControlFlow::Continue(())
        })
        .expect("read back");
    assert_eq!(few, [5, 6, 7]);
}
