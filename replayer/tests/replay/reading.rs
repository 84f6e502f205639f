//! The stream gives every planned event once and in order, whatever the archiver did with time, and stops at damage.

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::ObjectStoreExt as _;
use replayer::cursor::{Cursor, LaneCursor};
use replayer::plan::Plan;
use replayer::select::Selection;
use replayer::stream::{Chunk, StreamError};
use tapedeck_common::{ErrorKind, Position, Timestamp, Window};
use tapedeck_storage::layout;
use tokio::sync::mpsc;

use crate::kit::{Event, HOUR, MINUTE, TEN, World, by_lane};

async fn positions(
    plan: &Plan,
    mut chunks: mpsc::Receiver<Result<Chunk, StreamError>>,
) -> Result<BTreeMap<String, Vec<u64>>, StreamError> {
    let mut lanes: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    while let Some(chunk) = chunks.recv().await {
        for piece in chunk? {
            let lane = plan.lanes[piece.lane as usize].id().to_string();
            lanes.entry(lane).or_default().extend(piece.rows.map(|row| piece.batch.events.place(row).1.get()));
        }
    }
    Ok(lanes)
}

/// Batches whose events have random times over three hours, so that their segments interleave position by position.
async fn disorderly(seed: u64, batches: u64, size: u64) -> (World, Vec<Event>) {
    let (mut world, mut chance) = (World::new().await, fastrand::Rng::with_seed(seed));
    let mut all = Vec::new();
    for batch in 0..batches {
        let events: Vec<Event> = (batch * size..(batch + 1) * size)
            .flat_map(|position| {
                let times = [chance.i64(0..3 * HOUR), chance.i64(0..3 * HOUR), chance.i64(0..3 * HOUR)];
                times
                    .into_iter()
                    .zip(0..)
                    .map(move |(time, partition)| Event::plain(partition, position, TEN + time))
                    .collect::<Vec<_>>()
            })
            .collect();
        world.commit(&events, 64).await;
        all.extend(events);
    }
    (world, all)
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_come_in_the_order_of_their_positions() {
    for seed in 0..4 {
        let (world, all) = disorderly(seed, 4, 150).await;
        for selection in [
            Selection::default(),
            Selection {
                from: Some(Timestamp::from_micros(TEN + 40 * MINUTE)),
                until: Some(Timestamp::from_micros(TEN + 130 * MINUTE)),
                ..Selection::default()
            },
            Selection { key: Some("key-2".into()), ..Selection::default() },
            Selection { partitions: [2].into(), offsets: Some((Position::new(33), Position::new(401))), ..Selection::default() },
        ] {
            let plan = Arc::new(world.plan(selection.clone()).await.expect("plan"));
            let key = selection.key_bytes().expect("text");
            let wanted: Vec<Event> = all
                .iter()
                .filter(|event| {
                    selection.has_time(Timestamp::from_micros(event.time))
                        && selection.has_partition(event.partition)
                        && selection.has_position(Position::new(event.position))
                        && key.is_none_or_equal(event.key.as_deref())
                })
                .cloned()
                .collect();
            let expected: BTreeMap<String, Vec<u64>> =
                by_lane(&wanted).into_iter().map(|(lane, positions)| (lane.to_string(), positions)).collect();
            let start = Cursor::start("j", Timestamp::default());
            // A budget in which no object fits forces ranged reads; a large one fetches all ahead.
            for budget in [1 << 10, 1 << 30] {
                let read = positions(&plan, world.read(&plan, &start, budget)).await.expect("sound");
                assert_eq!(read, expected, "seed {seed}, budget {budget}, {selection:?}");
            }
        }
    }
}

trait KeyFilter {
    fn is_none_or_equal(&self, key: Option<&[u8]>) -> bool;
}

impl KeyFilter for Option<Vec<u8>> {
    fn is_none_or_equal(&self, key: Option<&[u8]>) -> bool {
        self.as_deref().is_none_or(|wanted| key == Some(wanted))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_lane_begins_at_its_cursor_and_finished_segments_are_not_read() {
    let (world, all) = disorderly(9, 3, 120).await;
    let plan = Arc::new(world.plan(Selection::default()).await.expect("plan"));
    let lanes = by_lane(&all);
    let mut chance = fastrand::Rng::with_seed(1);
    for _ in 0..10 {
        let mut cursor = Cursor::start("j", Timestamp::default());
        let mut expected = BTreeMap::new();
        for (lane, positions) in &lanes {
            let done = chance.usize(0..=positions.len());
            if done > 0 {
                let at = LaneCursor { next: Position::new(positions[done - 1] + 1), events: done as u64 };
                cursor.lanes.insert(lane.to_string(), at);
            }
            if done < positions.len() {
                expected.insert(lane.to_string(), positions[done..].to_vec());
            }
        }
        assert_eq!(positions(&plan, world.read(&plan, &cursor, 1 << 20)).await.expect("sound"), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_event_of_a_damaged_object_comes_out() {
    let (world, _) = disorderly(5, 2, 100).await;
    let plan = Arc::new(world.plan(Selection::default()).await.expect("plan"));
    let second_batch = plan.runs()[1][0];
    let key = layout::table_object("orders", &plan.segments[second_batch].path);
    let mut bytes = world.store.store.get(&key).await.unwrap().bytes().await.unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    world.store.store.put(&key, bytes.into()).await.unwrap();
    let hour = Window::of(plan.segments[second_batch].earliest.unwrap());
    let is_damaged = |(_, position, time): (i32, Position, Timestamp)| position.get() >= 100 && Window::of(time) == hour;
    for budget in [1 << 10, 1 << 30] {
        let mut chunks = world.read(&plan, &Cursor::start("j", Timestamp::default()), budget);
        let error = loop {
            match chunks.recv().await.expect("it ends in the error") {
                Ok(chunk) => {
                    assert!(!chunk.iter().any(|piece| piece.rows.clone().any(|row| is_damaged(piece.batch.events.place(row)))))
                }
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(key.as_ref()), "{error}");
        assert!(chunks.recv().await.is_none());
    }
    world.store.store.delete(&key).await.unwrap();
    let gone = positions(&plan, world.read(&plan, &Cursor::start("j", Timestamp::default()), 1 << 20)).await.expect_err("gone");
    assert_eq!(gone.kind(), ErrorKind::Corrupt);
    assert!(gone.to_string().contains("since the plan was made, at 2026-11-20T10:0"), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_interleave_by_time_run_by_run() {
    let mut world = World::new().await;
    for hour in 0..3 {
        for topic in ["orders", "clicks"] {
            let events: Vec<Event> =
                (0..5).map(|n| Event { topic, ..Event::plain(0, hour as u64 * 5 + n, TEN + hour * HOUR) }).collect();
            world.commit(&events, 32).await;
        }
    }
    let plan = Arc::new(world.plan(Selection::default()).await.expect("plan"));
    let hours: Vec<i64> = plan.runs().iter().map(|run| (plan.segments[run[0]].earliest.unwrap().micros() - TEN) / HOUR).collect();
    assert_eq!(hours, [0, 0, 1, 1, 2, 2]);
}
