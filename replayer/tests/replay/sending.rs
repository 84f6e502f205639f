//! What reaches the bus: byte for byte, marked, in the partition it came from, at the rate that was asked for.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use replayer::cursor::Cursor;
use replayer::digest::Digest;
use replayer::pacer::Limits;
use replayer::progress::{Counters, Throttled};
use replayer::replay::{Ended, ReplayError, Run, run};
use replayer::select::Selection;
use tapedeck_common::event::{PROPERTY_RAW_HEADER, PROPERTY_RAW_TIME, TimeKind};
use tapedeck_common::{Clock as _, ErrorKind, Timestamp};

use crate::kit::{Event, MINUTE, Nowhere, SeededProducer, TEN, Topics, World};

struct Outcome {
    ended: Result<Ended, ReplayError>,
    cursor: Cursor,
    topics: Arc<Topics>,
    took: Duration,
    counters: Arc<Counters>,
}

async fn replay(world: &World, limits: Limits, change: impl FnOnce(&mut SeededProducer)) -> Outcome {
    let plan = Arc::new(world.plan(Selection::default()).await.expect("plan"));
    let topics = Arc::new(Topics::default());
    let mut producer = SeededProducer::new(&topics, 11);
    change(&mut producer);
    let cursor = Cursor::start("rp-1", world.clock.now());
    let mut chunks = world.read_all(&plan, &cursor).await;
    let counters = Arc::new(Counters::default());
    let before = world.clock.monotonic();
    let job = Run {
        job: "rp-1".into(),
        plan,
        cursor,
        limits,
        producer: &mut producer,
        ledger: Arc::new(Nowhere),
        clock: world.clock.as_ref(),
        counters: Arc::clone(&counters),
    };
    let (ended, cursor) = run(job, &mut chunks, std::future::pending()).await;
    let took = world.clock.monotonic() - before;
    Outcome { ended, cursor, topics, took, counters }
}

/// Null and empty, repeated and null headers, names that are no text, times that no calendar holds, copies of copies.
fn nasty() -> Vec<Event> {
    let plain = |position| Event::plain(0, position, TEN + position as i64 * MINUTE);
    let header = |name: &str, value: Option<&[u8]>| (name.to_owned(), value.map(<[u8]>::to_vec));
    let mut events: Vec<Event> = (0..8).map(plain).collect();
    (events[0].key, events[0].value) = (None, None);
    (events[1].key, events[1].value) = (Some(vec![]), Some(vec![]));
    events[2].headers = vec![header("a", None), header("a", Some(b"")), header("", Some(b"x")), header("a", None)];
    events[3].headers = vec![header("plain", None), header("odd\\xFF", Some(b"1"))];
    let raw = base64::engine::general_purpose::STANDARD.encode(b"odd\xFF");
    events[3].properties = vec![(format!("{PROPERTY_RAW_HEADER}1"), raw)];
    events[4].kind = TimeKind::Arrival;
    events[4].properties = vec![(PROPERTY_RAW_TIME.into(), "-1".into())];
    events[5].kind = TimeKind::Arrival;
    events[5].properties = vec![(PROPERTY_RAW_TIME.into(), "253402300800000".into())];
    events[6].headers = vec![header("x-replay-job", Some(b"rp-0")), header("x-replay-count", Some(b"1"))];
    events[7].headers = vec![];
    events
}

#[tokio::test]
async fn events_go_out_as_they_came_in_and_marked() {
    let (mut world, events) = (World::new().await, nasty());
    world.commit(&events, 4).await;
    let outcome = replay(&world, Limits::default(), |_| ()).await;
    assert_eq!(outcome.ended.expect("all of it"), Ended::Completed);
    let sent = outcome.topics.all();
    assert_eq!(sent.len(), events.len());
    for (sent, event) in sent.iter().zip(&events) {
        let marked = sent.marked();
        assert_eq!((sent.topic.as_str(), sent.partition), ("orders.replay.rp-1", 0));
        assert_eq!((&sent.key, &sent.value), (&event.key, &event.value));
        assert_eq!((marked.job.as_str(), marked.lane, marked.position.get()), ("rp-1", event.lane(), event.position));
        assert_eq!(marked.own_headers, event.headers.len());
        let own: Vec<_> = sent.headers[..marked.own_headers].to_vec();
        let expected: Vec<_> = event
            .headers
            .iter()
            .map(|(name, value)| (if name == "odd\\xFF" { b"odd\xFF".to_vec() } else { name.as_bytes().to_vec() }, value.clone()))
            .collect();
        assert_eq!(own, expected);
        let ids: Vec<_> = sent.headers.iter().filter(|(name, _)| name == b"x-replay-event-id").collect();
        assert_eq!(ids[0].1.as_deref(), Some(event.id().as_bytes()));
    }
    let times: Vec<_> = sent.iter().map(|sent| sent.time).collect();
    assert_eq!(times[0], Some(Timestamp::from_micros(TEN)));
    assert_eq!(times[4], None, "the bus takes no time before 1970");
    assert_eq!(times[5], Timestamp::from_millis(253_402_300_800_000), "the bus's own time, not that of the arrival");
    assert_eq!(sent[4].marked().time_millis, -1);
    let count = |sent: &crate::kit::Sent| sent.headers.last().cloned().expect("marked");
    assert_eq!(count(&sent[6]), (b"x-replay-count".to_vec(), Some(b"2".to_vec())));
    assert_eq!(count(&sent[7]), (b"x-replay-count".to_vec(), Some(b"1".to_vec())));
    // What verify compares is the same on both sides.
    let mut digest = Digest::default();
    digest.begin(-1, None);
    let archived = digest.finish();
    digest.begin(-1, Some(world.clock.now().millis_floor()));
    assert_eq!(archived, digest.finish());
}

#[tokio::test]
async fn a_rate_takes_its_time_and_says_why_it_waited() {
    let mut world = World::new().await;
    let events: Vec<Event> =
        (0..4_000).flat_map(|position| (0..2).map(move |partition| Event::plain(partition, position, TEN))).collect();
    world.commit(&events, 1_000).await;
    let limits = Limits { events: Some(1_000.0), bytes: None };
    let outcome = replay(&world, limits, |_| ()).await;
    assert_eq!(outcome.ended.expect("all of it"), Ended::Completed);
    let seconds = outcome.took.as_secs_f64();
    assert!((7.9..8.3).contains(&seconds), "8000 events at 1000/s took {seconds} s");
    assert!(outcome.counters.throttled_for(Throttled::Limit) > Duration::from_secs(7));
    assert_eq!(outcome.counters.now().confirmed, 8_000);
}

#[tokio::test]
async fn a_refusal_stops_it_where_the_bus_stopped() {
    let mut world = World::new().await;
    world.commit(&(0..2_000).map(|position| Event::plain(0, position, TEN)).collect::<Vec<_>>(), 500).await;
    let outcome = replay(&world, Limits::default(), |producer| producer.refuses = Some(700)).await;
    let error = outcome.ended.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("position 5: too large"));
    let confirmed = outcome.cursor.events();
    assert!(confirmed <= outcome.topics.all().len() as u64, "{confirmed}");
}
