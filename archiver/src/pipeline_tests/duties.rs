//! Maintenance in the background: beside an archiver that goes on, beside another one's, and where everything fails.

use std::sync::Arc;
use std::time::Duration;

use tapedeck_common::clock::Clock;
use tapedeck_sim::{Call, Fault, FaultyStore, When, settle};
use tapedeck_storage::archive::Archive;
use tapedeck_storage::store::Store;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::maintenance::{HOUR, files, many_segments, view};
use super::world::{AGE_MAX, Process, TICK, World};
use crate::maintain::choose::CompactPolicy;
use crate::maintain::duties::{Duties, Pictures, Place};
use crate::maintain::{Done, Means, SweepPolicy, Work};

/// The duties of one process, at work.
struct Keeping {
    store: FaultyStore,
    stop: CancellationToken,
    task: JoinHandle<()>,
    pictures: Arc<watch::Sender<Pictures>>,
    means: Means,
}

const COMPACT: (Work, Duration) =
    (Work::Compact(CompactPolicy { closed_for: Duration::from_secs(7200), small_below: 128 << 20, bytes_max: 512 << 20 }), HOUR);

async fn keeping(world: &World, process: &Process, duties: &[(Work, Duration)], rate: Option<f64>, seed: u64) -> Keeping {
    let (store, clock): (_, Arc<dyn Clock>) = (world.other_view(), Arc::new(world.clock.clone()));
    let archive = Archive::open(Store::of(Arc::new(store.clone()))).await.expect("it exists");
    let means = Means::new(64 << 20, rate, Arc::clone(&clock));
    let place = Place { archive, is_ours: Arc::new(|topic: &str| topic == "orders"), means: means.clone(), clock };
    let (pictures, stop) = (Arc::default(), CancellationToken::new());
    let chance = fastrand::Rng::with_seed(seed);
    let duties = Duties::new(place, duties, chance, process.metrics.maintain(), Arc::clone(&pictures));
    let task = tokio::spawn(duties.run(stop.clone()));
    Keeping { store, stop, task, pictures, means }
}

impl Keeping {
    fn picture(&self, duty: &str) -> crate::status::DutyStatus {
        self.pictures.borrow().get(duty).cloned().expect("every duty has one from the start")
    }

    /// It ends with no time passing.
    async fn leave(self) {
        self.stop.cancel();
        settle().await;
        assert!(self.task.is_finished(), "told to stop it must stop at once");
        self.task.await.expect("no panic");
    }
}

#[tokio::test(start_paused = true)]
async fn duties_keep_a_table_in_shape_while_the_archiver_goes_on() {
    let (world, process, running) = many_segments().await;
    let at_once = SweepPolicy { orphans_after: Duration::ZERO, removed_after: Duration::ZERO };
    let duties = [COMPACT, (Work::Expire(12 * HOUR), HOUR), (Work::Sweep(at_once), HOUR)];
    let keeping = keeping(&world, &process, &duties, None, 1).await;
    assert!(keeping.picture("compact").next.is_some());
    for _ in 0..5 {
        world.advance(HOUR).await;
        world.publish("orders", 1);
    }
    world.advance(AGE_MAX + TICK).await;
    // Eight segments of the first hour became one, and their files are gone.
    assert_eq!(world.check_all_archived().await.events.len(), 48 + 10);
    assert_eq!((view(&world).await.segments.len(), files(&world).await.len()), (6, 6));
    world.advance(10 * HOUR).await;
    assert!(view(&world).await.segments.len() < 6, "the first hour is over for more than twelve");
    for duty in ["compact", "expire", "sweep"] {
        let picture = keeping.picture(duty);
        assert!(picture.error.is_none() && picture.succeeded.is_some() && !picture.running, "{duty}: {picture:?}");
        assert!((10.0..=25.0).contains(&process.metric("maintain_runs_total", duty)), "{duty} is done about once an hour");
    }
    assert_eq!(process.metric("maintain_segments_merged_total", ""), 8.0);
    assert!(process.metric("maintain_files_deleted_total", "") >= 8.0);
    assert!(process.metric("maintain_io_bytes_total", "") > 0.0);
    keeping.leave().await;
    assert!(running.leave(&world).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn duties_of_many_replicas_do_not_all_begin_at_once_and_do_no_harm_together() {
    let (world, process, running) = many_segments().await;
    let mut replicas = Vec::new();
    for seed in 0..5 {
        replicas.push(keeping(&world, &process, &[COMPACT], None, seed).await);
    }
    let mut firsts: Vec<_> = replicas.iter().filter_map(|one| one.picture("compact").next).collect();
    firsts.sort_unstable();
    firsts.dedup();
    assert_eq!(firsts.len(), 5);
    world.advance(5 * HOUR).await;
    assert_eq!(world.check_all_archived().await.events.len(), 48);
    assert_eq!(view(&world).await.segments.len(), 1);
    assert_eq!(process.metric("maintain_segments_merged_total", ""), 8.0, "one did it, the others found it done");
    for replica in replicas {
        replica.leave().await;
    }
    assert!(running.leave(&world).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_holds_up_a_duty_and_nothing_else() {
    let (world, process, running) = many_segments().await;
    let keeping = keeping(&world, &process, &[COMPACT], None, 1).await;
    keeping.store.inject(When::at(Call::Put).to("orders/"), Fault::HangBefore);
    world.advance(5 * HOUR).await;
    assert!(keeping.picture("compact").running && keeping.store.hanging() > 0);
    let before = view(&world).await.version;
    world.publish("orders", 3);
    world.advance(AGE_MAX + TICK).await;
    assert_eq!(world.check_all_archived().await.events.len(), 54);
    assert!(view(&world).await.version > before, "commits go on");
    keeping.leave().await;
    assert!(running.leave(&world).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_duty_that_fails_says_why_and_is_tried_again_ever_more_slowly() {
    let (world, process, _running) = many_segments().await;
    let keeping = keeping(&world, &process, &[COMPACT], None, 1).await;
    keeping.store.inject(When::at(Call::List), Fault::Deny);
    world.advance(3 * HOUR).await;
    let failed = process.metric("maintain_runs_total", "failed");
    assert!((5.0..=12.0).contains(&failed), "{failed} tries in three hours, with waits from a minute to an hour");
    assert!(keeping.picture("compact").error.is_some_and(|error| error.contains("403")));
    keeping.store.heal();
    world.advance(HOUR + TICK).await;
    let picture = keeping.picture("compact");
    assert!(picture.error.is_none(), "{picture:?}");
    assert!(matches!(picture.done, Some(Done::Compacted(done)) if done.outputs == 1), "{picture:?}");
    keeping.leave().await;
}

#[tokio::test(start_paused = true)]
async fn duties_keep_to_their_rate() {
    let (world, process, _running) = many_segments().await;
    world.advance(3 * HOUR).await;
    let began = world.clock.monotonic();
    let keeping = keeping(&world, &process, &[COMPACT], Some(100.0), 1).await;
    let done = || keeping.picture("compact").succeeded.is_some();
    assert!(world.clock.advance_until(24 * HOUR, done).await);
    let passed = keeping.means.passed() as f64;
    let took = (world.clock.monotonic() - began).as_secs_f64();
    // What was let through last is not waited for.
    assert!(passed > 10_000.0 && took > passed * 0.5 / 100.0, "{passed} bytes in {took} s");
    keeping.leave().await;
}

#[tokio::test(start_paused = true)]
async fn tables_of_topics_that_are_not_ours_are_left_alone() {
    let (world, process, _running) = many_segments().await;
    world.bus.make_topic("theirs", 1);
    world.bus.rebalance();
    for _ in 0..3 {
        world.publish("theirs", 2);
        world.advance(AGE_MAX + TICK).await;
    }
    let keeping = keeping(&world, &process, &[COMPACT, (Work::Expire(HOUR), HOUR)], None, 1).await;
    world.advance(8 * HOUR).await;
    assert_eq!(view(&world).await.segments.len(), 0, "ours has expired");
    let theirs = tapedeck_storage::log::TableView::load(&Store::of(world.below()), "theirs", None, Default::default()).await;
    assert_eq!(theirs.expect("it can be read").segments.len(), 3);
    keeping.leave().await;
}
