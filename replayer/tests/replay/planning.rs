//! Plans over a real archive are exact, and say why they are not made.

use std::sync::Arc;

use object_store::ObjectStoreExt as _;
use replayer::cursor::Cursor;
use replayer::plan::PlannedLane;
use replayer::planner::PlannerError;
use replayer::select::Selection;
use tapedeck_common::{Clock as _, ErrorKind, Position, Timestamp};
use tapedeck_storage::log::checkpoint::{Shape, write_checkpoint};
use tapedeck_storage::log::{LogPaths, LogReader};

use crate::kit::{Event, HOUR, MINUTE, TEN, World};

/// Three batches over three hours in two partitions, an event a minute.
async fn three_hours() -> (World, Vec<Event>) {
    let mut world = World::new().await;
    let mut all = Vec::new();
    for batch in 0..3_i64 {
        let events: Vec<Event> = (batch * 60..(batch + 1) * 60)
            .flat_map(|minute| (0..2).map(move |partition| Event::plain(partition, minute as u64 + 100, TEN + minute * MINUTE)))
            .collect();
        world.commit(&events, 32).await;
        all.extend(events);
    }
    (world, all)
}

fn between(from: i64, until: i64) -> Selection {
    Selection { from: Some(Timestamp::from_micros(from)), until: Some(Timestamp::from_micros(until)), ..Selection::default() }
}

fn numbers(lanes: &[PlannedLane]) -> Vec<(i32, u64, u64, u64)> {
    lanes.iter().map(|lane| (lane.partition, lane.events, lane.first.get(), lane.last.get())).collect()
}

#[tokio::test]
async fn a_window_is_counted_to_the_event() {
    let (world, all) = three_hours().await;
    for (from, until) in [(0, 180), (0, 60), (30, 150), (59, 61), (60, 120), (61, 62)] {
        let plan = world.plan(between(TEN + from * MINUTE, TEN + until * MINUTE)).await.expect("events lie there");
        let wanted: Vec<&Event> =
            all.iter().filter(|event| (TEN + from * MINUTE..TEN + until * MINUTE).contains(&event.time)).collect();
        let bytes = |event: &&Event| {
            let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
            length(&event.key)
                + length(&event.value)
                + event.headers.iter().map(|(name, value)| name.len() + length(value)).sum::<usize>()
        };
        assert_eq!(plan.totals.events, wanted.len() as u64, "[{from}, {until})");
        assert_eq!(plan.totals.bytes, wanted.iter().map(bytes).sum::<usize>() as u64, "[{from}, {until})");
        let (first, last) = (from as u64 + 100, until as u64 + 99);
        let each = (until - from) as u64;
        assert_eq!(numbers(&plan.lanes), [(0, each, first, last), (1, each, first, last)], "[{from}, {until})");
        assert!(plan.lanes.iter().all(|lane| lane.left_out == 0));
    }
}

#[tokio::test]
async fn only_edges_are_read() {
    let (world, _) = three_hours().await;
    let plan = world.plan(between(TEN + 30 * MINUTE, TEN + 150 * MINUTE)).await.expect("events lie there");
    let whole: Vec<bool> = plan.runs().concat().iter().map(|segment| plan.segments[*segment].whole).collect();
    assert_eq!(whole, [false, true, false]);
}

#[tokio::test]
async fn partitions_offsets_and_keys_narrow_it() {
    let (world, all) = three_hours().await;
    let one = world.plan(Selection { partitions: [1].into(), ..Selection::default() }).await.expect("plan");
    assert_eq!(numbers(&one.lanes), [(1, 180, 100, 279)]);
    let range = Selection { offsets: Some((Position::new(150), Position::new(170))), ..Selection::default() };
    assert_eq!(numbers(&world.plan(range).await.expect("plan").lanes), [(0, 20, 150, 169), (1, 20, 150, 169)]);
    let keyed = world.plan(Selection { key: Some("key-3".into()), ..Selection::default() }).await.expect("plan");
    let expected = all.iter().filter(|event| event.key.as_deref() == Some(b"key-3")).count();
    assert_eq!(keyed.totals.events, expected as u64);
}

#[tokio::test]
async fn nothing_and_nobody_are_explained() {
    let (world, _) = three_hours().await;
    let nothing = world.plan(between(TEN + 10 * HOUR, TEN + 11 * HOUR)).await.expect_err("nothing is there");
    assert!(nothing.is_usage());
    let text = nothing.to_string();
    assert!(text.contains("no event matches [2026-11-20T20:00:00Z, 2026-11-20T21:00:00Z)"), "{text}");
    assert!(text.contains("topic orders has 360 events from 2026-11-20T10:00:00Z to 2026-11-20T12:59:00Z"), "{text}");
    let unknown =
        world.plan(Selection { topics: ["ordres".to_owned()].into(), ..Selection::default() }).await.expect_err("unknown");
    assert!(matches!(unknown, PlannerError::UnknownTopic { .. }));
    assert!(unknown.to_string().contains("topic ordres is not in the archive memory:///; it has: orders"), "{unknown}");
}

#[tokio::test]
async fn the_same_slice_has_the_same_hash_until_the_archive_has_other_files() {
    let (mut world, _) = three_hours().await;
    let ask = || between(TEN, TEN + 2 * HOUR);
    let first = world.plan(ask()).await.expect("plan");
    assert_eq!(first.hash, world.plan(ask()).await.expect("plan").hash);
    world.commit(&[Event::plain(0, 280, TEN + 5 * HOUR)], 32).await;
    assert_eq!(first.hash, world.plan(ask()).await.expect("plan").hash, "what lies outside does not count");
    world.commit(&[Event::plain(0, 281, TEN + HOUR)], 32).await;
    assert_ne!(first.hash, world.plan(ask()).await.expect("plan").hash, "a late event does");
}

fn of_orders() -> Selection {
    Selection { topics: ["orders".to_owned()].into(), ..Selection::default() }
}

#[tokio::test]
async fn a_topic_that_moved_is_planned_from_both_tables_and_each_event_once() {
    let mut world = World::new().await;
    let events = |positions: std::ops::Range<u64>| -> Vec<Event> {
        positions.flat_map(|position| (0..2).map(move |lane| Event::plain(lane, position, TEN + position as i64))).collect()
    };
    world.commit(&events(0..60), 16).await;
    world.commit(&events(60..100), 16).await;
    world.move_topic("orders", "orders-2").await;
    // What the bus still had is archived again.
    world.commit(&events(40..80), 16).await;
    world.commit(&events(80..150), 16).await;
    let plan = Arc::new(world.plan(of_orders()).await.expect("plan"));
    assert_eq!(numbers(&plan.lanes), [(0, 150, 0, 149), (1, 150, 0, 149)]);
    assert_eq!(plan.tables.keys().collect::<Vec<_>>(), ["orders", "orders-2"]);
    let mut read = vec![Vec::new(); 2];
    let mut chunks = world.read_all(&plan, &Cursor::start("rp-1", world.clock.now())).await;
    while let Some(chunk) = chunks.recv().await {
        for piece in chunk.expect("all of it is there") {
            read[piece.lane as usize].extend(piece.rows.map(|row| piece.batch.events.place(row).1.get()));
        }
    }
    assert_eq!(read, vec![(0..150).collect::<Vec<u64>>(); 2]);
}

#[tokio::test]
async fn a_window_of_a_topic_that_moved_holds_each_event_once() {
    let mut world = World::new().await;
    // Twenty positions an hour.
    let time = |position: u64| TEN + (position / 20) as i64 * HOUR + (position % 20) as i64 * MINUTE;
    let events = |positions: std::ops::Range<u64>| positions.map(|position| Event::plain(0, position, time(position))).collect();
    let batch: Vec<Event> = events(0..70);
    world.commit(&batch, 16).await;
    world.move_topic("orders", "orders-2").await;
    let batch: Vec<Event> = events(30..130);
    world.commit(&batch, 16).await;
    for hour in 0..6 {
        let asked = between(TEN + hour * HOUR, TEN + (hour + 1) * HOUR);
        let plan = world.plan(Selection { topics: of_orders().topics, ..asked }).await.expect("plan");
        let first = hour as u64 * 20;
        assert_eq!(numbers(&plan.lanes), [(0, 20, first, first + 19)], "hour {hour}");
    }
}

#[tokio::test]
async fn a_plan_through_a_checkpoint_is_the_same_plan() {
    let (mut world, _) = three_hours().await;
    let asked = || between(TEN + 30 * MINUTE, TEN + 90 * MINUTE);
    let before = world.plan(asked()).await.expect("plan");
    let version = before.tables["orders"];
    let reader = LogReader::new(&world.store, "orders");
    write_checkpoint(&reader, version, Shape { group_rows: 1, ..Shape::default() }).await.expect("writes");
    // Nobody needs what lies below it.
    world.store.store.delete(&LogPaths::of("orders").record(version - 1)).await.expect("memory");
    let after = world.plan(asked()).await.expect("plan");
    assert_eq!((before.hash, before.totals), (after.hash, after.totals));
    world.commit(&[Event::plain(0, 280, TEN + HOUR)], 32).await;
    assert_eq!(world.plan(asked()).await.expect("plan").totals.events, after.totals.events + 1);
    let error = world.plan(between(TEN + 9 * HOUR, TEN + 10 * HOUR)).await.expect_err("nothing lies there");
    assert!(error.to_string().contains("topic orders has 361 events from"), "{error}");
}

#[tokio::test]
async fn a_topic_without_a_home_is_found_and_other_damage_is_told() {
    let (mut world, _) = three_hours().await;
    world.move_topic("orders", "orders").await;
    assert_eq!(world.plan(of_orders()).await.expect("plan").totals.events, 360);
    world.commit(&[Event { topic: "clicks", ..Event::plain(0, 0, TEN) }], 8).await;
    let first = LogPaths::of("clicks").record(0);
    world.store.store.delete(&first).await.expect("memory");
    let plan = world.plan(of_orders()).await.expect("its own tables are whole");
    assert!(plan.warnings.iter().any(|warning| warning.contains(first.as_ref())), "{:?}", plan.warnings);
    let error = world.plan(Selection::default()).await.expect_err("all topics are asked for");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}
