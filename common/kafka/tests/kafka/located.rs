//! Where lanes begin and go on.

use std::time::Duration;

use tapedeck_common::budget::ByteBudget;
use tapedeck_common::bus::{AssignedLane, Consumer, Incoming, Located, ToLocate};
use tapedeck_common::commit::GapCause;
use tapedeck_common::position::{LaneId, Position, Span};
use tapedeck_common::time::Timestamp;
use tapedeck_kafka::config::{KafkaSettings, Start};
use tapedeck_kafka::consumer::KafkaConsumer;
use tapedeck_testbed::{Event, Loader};

use crate::support::{LIMIT, Member, SharedArchive, admin, broker, consumer, event, next, produce, settings, topic};

async fn assigned(settings: KafkaSettings) -> (KafkaConsumer, Vec<AssignedLane>) {
    let mut consumer = consumer(settings, &ByteBudget::new(64 << 20));
    let incoming = tokio::time::timeout(LIMIT, consumer.next()).await.expect("in time").expect("no failure");
    let Incoming::Assigned(lanes) = incoming else { panic!("{incoming:?}") };
    (consumer, lanes)
}

async fn locate(consumer: &mut KafkaConsumer, lane: &AssignedLane, log: Option<u64>, topic_known: bool) -> Located {
    let question = ToLocate {
        lane: lane.lane.clone(),
        topic: lane.topic.clone(),
        log: log.map(Position::new),
        topic_known,
        table: std::sync::Arc::default(),
    };
    let answer = tokio::time::timeout(LIMIT, consumer.locate(vec![question])).await.expect("in time").expect("located");
    assert_eq!(answer.len(), 1);
    answer[0].1.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_is_located_by_what_the_log_and_the_bus_hold() {
    let name = topic("located", 1);
    produce(&name, 0, 0..100);
    admin().delete_records(&name, 0, 40).expect("deleted");
    let (mut consumer, lanes) = assigned(settings("located", &[&name])).await;
    let at = Position::new;
    let lane = &lanes[0];
    assert!(lane.lane.source.starts_with("kafka/AAAAAAAAAAAAAAAAAAAAAQ/") && lane.lane.source.ends_with("/0"), "{}", lane.lane);
    assert_eq!(locate(&mut consumer, lane, None, false).await, Located::Start(at(40)));
    assert_eq!(locate(&mut consumer, lane, Some(70), true).await, Located::Continue(at(70)));
    assert_eq!(locate(&mut consumer, lane, Some(100), true).await, Located::Continue(at(100)));
    let lost = Span::new(at(10), at(40)).expect("forward");
    assert_eq!(locate(&mut consumer, lane, Some(10), true).await, Located::Gap(lost, GapCause::Retention));
    assert_eq!(locate(&mut consumer, lane, Some(101), true).await, Located::Beyond { log: at(101), bus_end: at(100) });
    Box::new(consumer).close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_lane_begins_where_the_settings_say_but_a_new_partition_at_its_first_event() {
    let name = topic("starts", 1);
    let loader = Loader::new(&broker(), &[]).expect("a producer");
    for number in 0..10 {
        loader.send(&name, Some(0), &Event { timestamp: 1_760_000_000_000 + number * 1_000, ..event("x") }).expect("sent");
    }
    loader.finish().expect("delivered");
    let time = |millis: i64| Start::At(Timestamp::from_millis(1_760_000_000_000 + millis).expect("fits"));
    let cases = [
        (Start::Earliest, false, 0),
        (Start::Latest, false, 10),
        (Start::Latest, true, 0),
        (time(3_000), false, 3),
        (time(3_001), false, 4),
        (time(3_001), true, 0),
        (time(1_000_000), false, 10),
    ];
    for (number, (start, topic_known, expected)) in cases.into_iter().enumerate() {
        let settings = KafkaSettings { start, ..settings(&format!("starts-{number}"), &[&name]) };
        let (mut consumer, lanes) = assigned(settings).await;
        let located = locate(&mut consumer, &lanes[0], None, topic_known).await;
        assert_eq!(located, Located::Start(Position::new(expected)), "{start:?}, topic known: {topic_known}");
        Box::new(consumer).close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_met_for_the_first_time_is_answered_whole() {
    let name = topic("met", 3);
    for partition in 0..3 {
        produce(&name, partition, 0..10 * (partition as u64 + 1));
    }
    for (start, topic_known, others) in [(Start::Latest, false, 2), (Start::Latest, true, 0), (Start::Earliest, false, 0)] {
        let settings = KafkaSettings { start, ..settings(&format!("met-{start:?}-{topic_known}"), &[&name]) };
        let (mut consumer, lanes) = assigned(settings).await;
        let lane = lanes.iter().find(|lane| lane.lane.partition == 1).expect("all three are ours");
        let question = ToLocate {
            lane: lane.lane.clone(),
            topic: lane.topic.clone(),
            log: None,
            topic_known,
            table: std::sync::Arc::default(),
        };
        let answers = tokio::time::timeout(LIMIT, consumer.locate(vec![question])).await.expect("in time").expect("located");
        assert_eq!(answers.len(), 1 + others, "{start:?}, topic known: {topic_known}");
        for (found, located) in answers {
            let end = if start == Start::Latest && !topic_known { 10 * (found.partition as u64 + 1) } else { 0 };
            assert_eq!((located, &found.source), (Located::Start(Position::new(end)), &lane.lane.source));
        }
        Box::new(consumer).close().await;
    }
}

/// Retention overtakes a reader that has no room: the client loses its position, and the gap is found and passed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_that_overtakes_a_reader_becomes_a_gap() {
    let name = topic("overtaken", 1);
    produce(&name, 0, 0..1_000);
    let archive = SharedArchive::default();
    let mut member = Member::join(settings("overtaken", &[&name]), &archive);
    member.until("all is read", |member| member.archive.rows() == 1_000).await;
    Box::new(member.consumer).close().await;
    produce(&name, 0, 1_000..2_000);
    // The member is told a position that retention deletes before the first fetch.
    let (mut consumer, lanes) = assigned(settings("overtaken", &[&name])).await;
    admin().delete_records(&name, 0, 1_500).expect("deleted");
    consumer.resume(vec![(lanes[0].lane.clone(), Position::new(1_000))]).await.expect("resumed");
    let mut member = Member {
        consumer,
        archive,
        lanes: [(lanes[0].lane.clone(), lanes[0].topic.clone())].into(),
        reading: Default::default(),
        halted: Vec::new(),
        gaps: 0,
    };
    member.until("the rest is read", |member| member.archive.rows() == 1_500).await;
    let gap =
        (lanes[0].lane.clone(), Span::new(Position::new(1_000), Position::new(1_500)).expect("forward"), GapCause::Retention);
    assert_eq!(member.archive.look(|archive| archive.gaps.clone()), [gap]);
}

/// What was read before the bus lost its head is on the way into the archive: it must get there first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_retention_overtakes_is_made_safe_before_it_begins_again() {
    let name = topic("displaced", 1);
    produce(&name, 0, 0..100);
    let (mut consumer, lanes) = assigned(settings("displaced", &[&name])).await;
    let lane = lanes[0].lane.clone();
    admin().delete_records(&name, 0, 40).expect("deleted");
    consumer.resume(vec![(lane.clone(), Position::new(10))]).await.expect("taken");
    let incoming = tokio::time::timeout(LIMIT, next(&mut consumer)).await.expect("in time").expect("no failure");
    let Incoming::Revoking(revoked, guard) = incoming else { panic!("{incoming:?}") };
    assert_eq!(revoked, std::slice::from_ref(&lane));
    let early = tokio::time::timeout(Duration::from_secs(1), next(&mut consumer)).await;
    assert!(early.is_err(), "nothing goes on while the guard lives: {early:?}");
    drop(guard);
    let incoming = tokio::time::timeout(LIMIT, next(&mut consumer)).await.expect("in time").expect("no failure");
    let Incoming::Assigned(again) = incoming else { panic!("{incoming:?}") };
    assert_eq!(again[0].lane, lane);
    let lost = Span::new(Position::new(10), Position::new(40)).expect("forward");
    assert_eq!(locate(&mut consumer, &again[0], Some(10), true).await, Located::Gap(lost, GapCause::Retention));
    Box::new(consumer).close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bus_is_asked_again_and_again_where_it_ends() {
    let name = topic("ends", 1);
    produce(&name, 0, 0..10);
    let (mut consumer, lanes) = assigned(settings("ends", &[&name])).await;
    let lane = lanes[0].lane.clone();
    let mut last = Timestamp::default();
    for (end, more) in [(10, 0), (10, 5), (15, 0)] {
        last = told_of_an_end(&mut consumer, &lane, end, last).await;
        assert_eq!(consumer.bounds(&lane).map(|span| span.until()), Some(Position::new(end)));
        produce(&name, 0, 0..more);
    }
}

async fn told_of_an_end(consumer: &mut KafkaConsumer, lane: &LaneId, end: u64, after: Timestamp) -> Timestamp {
    loop {
        let next = tokio::time::timeout(LIMIT, consumer.next()).await.expect("in time").expect("no failure");
        if let Incoming::Ends(ends, asked) = next
            && ends == [(lane.clone(), Position::new(end))]
        {
            assert!(asked > after, "each question has its time");
            return asked;
        }
    }
}
