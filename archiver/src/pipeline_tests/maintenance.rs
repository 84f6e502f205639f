//! Tables are kept in shape while archivers go on: the committed view stays what the bus showed, and nothing needed is deleted.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tapedeck_common::Timestamp;
use tapedeck_common::clock::Clock;
use tapedeck_common::error::ErrorKind;
use tapedeck_sim::{Call, Fault, When, settle};
use tapedeck_storage::archive::Archive;
use tapedeck_storage::log::view::History;
use tapedeck_storage::log::{TableView, VerifyOptions, verify_table};
use tapedeck_storage::pins::{self, Pin};
use tapedeck_storage::store::Store;

use super::world::{AGE_MAX, Process, Running, Setup, TICK, World};
use crate::maintain::choose::CompactPolicy;
use crate::maintain::{Compacted, Keeper, SweepPolicy};

const HOUR: Duration = Duration::from_secs(3600);

/// Whatever is not needed goes at once.
const AT_ONCE: SweepPolicy = SweepPolicy { orphans_after: Duration::ZERO, removed_after: Duration::ZERO };

/// Long before any store's clock, so that all is old by the store's time.
fn long_ago() -> Setup {
    Setup { begins: Timestamp::from_micros(1_000_000_000_000_000), ..Setup::default() }
}

/// A table of an hour in many small segments, and an archiver that goes on.
async fn many_segments() -> (World, Process, Running) {
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

async fn keeper<'a>(world: &World, archive: &'a Archive, seed: u64) -> Keeper<'a> {
    let clock: Arc<dyn Clock> = Arc::new(world.clock.clone());
    Keeper::open(archive, "orders", clock, fastrand::Rng::with_seed(seed)).await.expect("it opens")
}

async fn compact(world: &World) -> Compacted {
    let archive = archive(world).await;
    keeper(world, &archive, 1).await.compact(&CompactPolicy::default()).await.expect("nothing is in the way")
}

async fn view(world: &World) -> TableView {
    TableView::load(&Store::of(world.below()), "orders", None, History::Whole).await.expect("it can be read")
}

/// The segment files that lie in the store.
async fn files(world: &World) -> Vec<Path> {
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
    let (store, clock) = (Store::of(Arc::new(slow.clone())), world.clock.clone());
    let one = tokio::spawn(async move {
        let archive = Archive::open(store).await.expect("it exists");
        let mut keeper = Keeper::open(&archive, "orders", Arc::new(clock), fastrand::Rng::with_seed(2)).await.expect("it opens");
        keeper.compact(&CompactPolicy::default()).await.expect("being second is no error")
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
    let refused = keeper(&world, &archive, 1).await.compact(&CompactPolicy::default()).await.expect_err("it is damaged");
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
