//! Tables are kept in shape while archivers go on: the committed view stays what the bus showed, and nothing needed is deleted.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tapedeck_common::Timestamp;
use tapedeck_common::clock::Clock;
use tapedeck_common::error::ErrorKind;
use tapedeck_sim::{BusEvent, Call, Fault, When, settle};
use tapedeck_storage::archive::Archive;
use tapedeck_storage::log::view::History;
use tapedeck_storage::log::{TableView, VerifyOptions, verify_table};
use tapedeck_storage::pins::{self, Pin};
use tapedeck_storage::store::Store;

use super::world::{AGE_MAX, Process, Running, Setup, TICK, World};
use crate::maintain::choose::CompactPolicy;
use crate::maintain::{Compacted, Keeper, Means, SweepPolicy};

pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// Whatever is not needed goes at once.
const AT_ONCE: SweepPolicy = SweepPolicy { orphans_after: Duration::ZERO, removed_after: Duration::ZERO };

/// Long before any store's clock, so that all is old by the store's time.
fn long_ago() -> Setup {
    Setup { begins: Timestamp::from_micros(1_000_000_000_000_000), ..Setup::default() }
}

/// A table of an hour in many small segments, and an archiver that goes on.
pub(super) async fn many_segments() -> (World, Process, Running) {
    let (world, process, running) = World::reading(long_ago(), 2).await;
    for _ in 0..8 {
        world.publish("orders", 3);
        world.advance(AGE_MAX + TICK).await;
    }
    world.check_all_archived().await;
    (world, process, running)
}

async fn archive(world: &World) -> Archive {
    Archive::open(Store::of(world.below())).await.expect("it exists")
}

fn means(clock: &Arc<dyn Clock>) -> Means {
    Means::new(64 << 20, None, Arc::clone(clock))
}

async fn keeper(world: &World, archive: &Archive, seed: u64) -> Keeper {
    let clock: Arc<dyn Clock> = Arc::new(world.clock.clone());
    let means = means(&clock);
    Keeper::open(archive, "orders", clock, fastrand::Rng::with_seed(seed), means).await.expect("it opens")
}

async fn compact(world: &World) -> Compacted {
    let archive = archive(world).await;
    keeper(world, &archive, 1).await.compact(&CompactPolicy::default(), false).await.expect("nothing is in the way")
}

pub(super) async fn view(world: &World) -> TableView {
    TableView::load(&Store::of(world.below()), "orders", None, History::Whole).await.expect("it can be read")
}

/// The segment files that lie in the store.
pub(super) async fn files(world: &World) -> Vec<Path> {
    let listed = world.below().list(Some(&Path::from("orders"))).map_ok(|object| object.location);
    let files: Vec<Path> = listed.try_collect().await.expect("it can be listed");
    files.into_iter().filter(|path| path.as_ref().ends_with(".parquet") && !path.as_ref().contains("_delta_log")).collect()
}

#[tokio::test(start_paused = true)]
async fn a_closed_hour_becomes_one_segment_with_the_same_rows_and_the_archiver_goes_on() {
    let (world, _process, running) = many_segments().await;
    assert_eq!(compact(&world).await, Compacted::default(), "the hour is not over");
    world.advance(3 * HOUR).await;
    let before = world.check_all_archived().await;
    let done = compact(&world).await;
    assert_eq!((done.inputs, done.outputs, done.rows, done.refused), (8, 1, 48, 0));
    let after = world.check_all_archived().await;
    assert_eq!(after.events, before.events);
    assert_eq!(view(&world).await.segments.len(), 1);
    assert_eq!(compact(&world).await, Compacted::default(), "there is nothing left to do");
    world.publish("orders", 5);
    world.advance(AGE_MAX + TICK).await;
    assert_eq!(world.check_all_archived().await.events.len(), 58);
    assert!(running.leave(&world).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn of_two_that_compact_at_once_one_is_refused_and_no_row_is_lost_or_doubled() {
    let (world, _process, _running) = many_segments().await;
    world.advance(3 * HOUR).await;
    let slow = world.other_view();
    slow.inject(When::at(Call::Put).to("_delta_log/").once(), Fault::HangBefore);
    let (store, clock): (_, Arc<dyn Clock>) = (Store::of(Arc::new(slow.clone())), Arc::new(world.clock.clone()));
    let one = tokio::spawn(async move {
        let archive = Archive::open(store).await.expect("it exists");
        let means = means(&clock);
        let keeper = Keeper::open(&archive, "orders", clock, fastrand::Rng::with_seed(2), means).await;
        keeper.expect("it opens").compact(&CompactPolicy::default(), false).await.expect("being second is no error")
    });
    settle().await;
    assert!(slow.hanging() > 0, "its record is on the way");
    assert_eq!(compact(&world).await.outputs, 1);
    slow.release();
    world.advance(AGE_MAX).await;
    let one = one.await.expect("no panic");
    assert_eq!((one.outputs, one.refused), (0, 1));
    assert_eq!(world.check_all_archived().await.events.len(), 48);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_segment_is_never_merged() {
    let (world, _process, _running) = many_segments().await;
    world.advance(3 * HOUR).await;
    let version = view(&world).await.version;
    let damaged = files(&world).await[3].clone();
    let mut bytes = world.below().get(&damaged).await.expect("there").bytes().await.expect("read").to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    world.below().put(&damaged, bytes.into()).await.expect("stored");
    let archive = archive(&world).await;
    let refused = keeper(&world, &archive, 1).await.compact(&CompactPolicy::default(), false).await.expect_err("it is damaged");
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    assert!(refused.to_string().contains(damaged.filename().expect("a file")), "{refused}");
    assert_eq!(view(&world).await.version, version);
}

#[tokio::test(start_paused = true)]
async fn expired_hours_leave_and_their_files_follow_once_nobody_reads_them() {
    let (world, _process, _running) = many_segments().await;
    world.advance(3 * HOUR).await;
    world.publish("orders", 1);
    world.advance(AGE_MAX + TICK).await;
    let archive = archive(&world).await;
    let mut keeper = keeper(&world, &archive, 1).await;
    let would = keeper.expire(2 * HOUR, true).await.expect("only looked");
    assert_eq!((would.hours, would.segments, view(&world).await.segments.len()), (1, 8, 9));
    let done = keeper.expire(2 * HOUR, false).await.expect("expired");
    assert_eq!((done.hours, done.segments), (1, 8));
    let report = verify_table(&archive.store, "orders", &VerifyOptions { deep: true, ..VerifyOptions::default() }).await;
    let report = report.expect("it can be read");
    assert!(report.is_complete(), "{:?}", report.findings);
    assert_eq!((report.rows, report.lanes.iter().map(|lane| lane.expired).sum::<u64>()), (2, 48));

    let far = Timestamp::from_micros(i64::MAX / 2).millis_floor();
    let pin = Pin { holder: "rp-1".to_owned(), tables: [("orders".to_owned(), 3)].into(), expires_ms: far };
    pins::set(&archive.store, "rp-1", &pin).await.expect("pinned");
    let swept = keeper.sweep(&AT_ONCE, false).await.expect("swept");
    assert_eq!((swept.pinned, swept.removed, files(&world).await.len()), (8, 0, 9));
    pins::release(&archive.store, "rp-1").await.expect("released");
    let swept = keeper.sweep(&AT_ONCE, true).await.expect("only looked");
    assert_eq!((swept.removed, files(&world).await.len()), (8, 9));
    keeper.sweep(&AT_ONCE, false).await.expect("swept");
    assert_eq!(files(&world).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_files_of_an_archiver_that_slept_are_given_up_and_it_archives_their_events_again() {
    let (world, process, running) = World::reading(long_ago(), 1).await;
    world.publish("orders", 2);
    world.advance(AGE_MAX + TICK).await;
    world.publish("orders", 3);
    settle().await;
    // Its segment is stored, its record on the way.
    process.store.inject(When::at(Call::Put).to("_delta_log/").once(), Fault::HangBefore);
    world.advance(AGE_MAX + TICK).await;
    process.must_hang().await;
    assert_eq!(files(&world).await.len(), 2);
    let archive = archive(&world).await;
    let mut keeper = keeper(&world, &archive, 1).await;
    let young = keeper.sweep(&SweepPolicy::default(), false).await.expect("swept");
    assert_eq!((young.orphans, young.young), (0, 1), "by default it has a week");
    let swept = keeper.sweep(&AT_ONCE, false).await.expect("swept");
    assert_eq!((swept.orphans, files(&world).await.len()), (1, 1));
    process.store.release();
    world.advance(2 * AGE_MAX).await;
    assert_eq!(world.check_all_archived().await.events.len(), 5);
    assert!(running.leave(&world).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_no_record_names_is_swept_and_nothing_else_is_touched() {
    let (world, _process, _running) = many_segments().await;
    let stray = Path::from("orders/topic=orders/date=2001-09-09/hour=01/stray.parquet");
    let foreign = Path::from("orders/notes.txt");
    for key in [&stray, &foreign] {
        world.below().put(key, "x".into()).await.expect("stored");
    }
    let archive = archive(&world).await;
    let swept = keeper(&world, &archive, 1).await.sweep(&AT_ONCE, false).await.expect("swept");
    assert_eq!((swept.orphans, swept.removed, swept.bytes), (1, 0, 1));
    assert!(world.below().head(&stray).await.is_err() && world.below().head(&foreign).await.is_ok());
    world.check_all_archived().await;
}

#[tokio::test(start_paused = true)]
async fn more_files_than_a_record_takes_are_given_up_in_several() {
    let (world, _process, _running) = many_segments().await;
    let (count, before) = (1_234, view(&world).await.version);
    for number in 0..count {
        let stray = Path::from(format!("orders/topic=orders/date=2001-09-09/hour=01/stray-{number}.parquet"));
        world.below().put(&stray, "x".into()).await.expect("stored");
    }
    let archive = archive(&world).await;
    let swept = keeper(&world, &archive, 1).await.sweep(&AT_ONCE, false).await.expect("swept");
    assert_eq!((swept.orphans, swept.bytes, swept.left), (count, count, 0));
    assert_eq!((view(&world).await.version - before, files(&world).await.len()), (3, 8));
    world.check_all_archived().await;
}

#[tokio::test(start_paused = true)]
async fn a_keeper_whose_clock_is_far_behind_makes_no_removal_look_old() {
    let (world, _process, _running) = many_segments().await;
    world.advance(3 * HOUR).await;
    assert_eq!(compact(&world).await.inputs, 8);
    // By its record the removal is 25 years old, by the store it is of this moment.
    let archive = archive(&world).await;
    let mut keeper = keeper(&world, &archive, 1).await;
    let swept = keeper.sweep(&SweepPolicy::default(), false).await.expect("swept");
    assert_eq!((swept.removed, swept.young, files(&world).await.len()), (0, 0, 9));
    let swept = keeper.sweep(&AT_ONCE, false).await.expect("swept");
    assert_eq!((swept.removed, files(&world).await.len()), (8, 1));
}

#[tokio::test(start_paused = true)]
async fn a_keeper_whose_clock_is_far_ahead_keeps_removed_files_longer_and_no_shorter() {
    let (world, _process, _running) = many_segments().await;
    world.advance(3 * HOUR).await;
    let before = world.clock.now();
    world.clock.set_wall(Timestamp::from_micros(4_000_000_000_000_000));
    assert_eq!(compact(&world).await.inputs, 8);
    world.clock.set_wall(before);
    let archive = archive(&world).await;
    let swept = keeper(&world, &archive, 1).await.sweep(&AT_ONCE, false).await.expect("swept");
    assert_eq!((swept.removed, swept.orphans, files(&world).await.len()), (0, 0, 9));
}

#[tokio::test(start_paused = true)]
async fn a_merge_of_more_than_the_memory_holds_stays_within_it() {
    const MEMORY: usize = 32 << 20;
    let (world, _process, running) = World::reading(long_ago(), 1).await;
    let mut chance = fastrand::Rng::with_seed(3);
    for _ in 0..12 {
        for _ in 0..64 {
            // Nothing that compresses.
            let value: Vec<u8> = std::iter::repeat_with(|| chance.u8(..)).take(64 << 10).collect();
            world.bus.publish("orders", 0, BusEvent::of(value));
        }
        world.advance(AGE_MAX + TICK).await;
    }
    world.advance(3 * HOUR).await;
    let (archive, clock): (_, Arc<dyn Clock>) = (archive(&world).await, Arc::new(world.clock.clone()));
    let means = Means::new(MEMORY, None, Arc::clone(&clock));
    let keeper = Keeper::open(&archive, "orders", clock, fastrand::Rng::with_seed(1), means.clone()).await;
    let done = keeper.expect("it opens").compact(&CompactPolicy::default(), false).await.expect("merged");
    assert_eq!((done.inputs, done.outputs, done.rows), (12, 1, 12 * 64));
    assert!(done.bytes_after > MEMORY as u64, "{done:?}");
    assert!((1..=MEMORY as u64).contains(&done.memory_max), "{done:?}");
    assert_eq!(means.memory().used(), 0, "all of it was given back");
    world.check_all_archived().await;
    assert!(running.leave(&world).await.is_ok());
}
