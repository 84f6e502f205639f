//! The log on stores that lose answers, hang, refuse and come back: every record lands exactly once, whatever happened to its
//! request, and time goes on only when the test says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use object_store::ObjectStoreExt;
use tapedeck_common::commit::{CommitLog, Outcome};
use tapedeck_common::{Clock, ErrorKind};
use tapedeck_sim::{Call, Fault, FaultyStore, ManualClock, When, settle};
use tapedeck_storage::log::protocol::Tally;
use tapedeck_storage::log::{LogObserver, LogPaths, TableLog};
use tapedeck_storage::store::Store;

use crate::kit::*;

const LONG: Duration = Duration::from_secs(4 * 3600);

/// Counts what the driver reports.
#[derive(Default)]
struct Counts {
    settled: AtomicU64,
    unknown: AtomicU64,
    conflicts: AtomicU64,
    failed: AtomicU64,
}

impl LogObserver for Counts {
    fn settled(&self, _: &str, _: Duration, tally: Tally, _: &Outcome) {
        self.settled.fetch_add(1, Ordering::Relaxed);
        self.unknown.fetch_add(tally.unknown, Ordering::Relaxed);
        self.conflicts.fetch_add(tally.conflicts, Ordering::Relaxed);
    }

    fn store_failed(&self, _: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }
}

struct World {
    faulty: FaultyStore,
    clock: ManualClock,
    counts: Arc<Counts>,
}

impl World {
    fn new() -> Self {
        Self { faulty: FaultyStore::default(), clock: ManualClock::default(), counts: Arc::default() }
    }

    fn store(&self) -> Store {
        Store::of(Arc::new(self.faulty.clone()))
    }

    async fn open(&self) -> TableLog {
        // The same for both worlds of a test: even writers that draw the same chance tell their records apart.
        let (rng, clock) = (fastrand::Rng::with_seed(7), Arc::new(self.clock.clone()));
        let observer = Arc::clone(&self.counts);
        TableLog::open(&self.store(), options("a"), clock, rng, observer).await.expect("opens")
    }

    /// Appends the second batch of lane 0 while time passes, and lets late and hanging requests come in half way.
    async fn append_in_trouble(&self, mut log: TableLog) -> u64 {
        let task = tokio::spawn(async move { commit(&mut log, &batch(0, 10, 20)).await });
        self.clock.advance(Duration::from_secs(45)).await;
        self.faulty.land().await;
        self.faulty.release();
        assert!(self.clock.advance_until(LONG, || task.is_finished()).await, "never settled");
        task.await.expect("no panic")
    }

    /// What is really there: exactly one record more, and the lane where it should be.
    async fn exactly_once(&self) {
        let view = view(&Store::of(self.faulty.below())).await;
        assert_eq!((view.version, view.segments.len(), view.positions[&lane(0)].get()), (3, 2, 20));
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_to_its_request_a_record_lands_once() {
    let faults =
        [Fault::FailBefore, Fault::FailAfter, Fault::Conflict, Fault::Late, Fault::HangBefore, Fault::HangAfter, Fault::Deny];
    for fault in faults {
        for times in [1, 4] {
            let world = World::new();
            let mut log = world.open().await;
            fill(&mut log, 0, 1).await;
            world.faulty.inject(When::at(Call::Put).to("00003.json").times(times), fault);
            assert_eq!(world.append_in_trouble(log).await, 3, "{fault} {times}");
            world.exactly_once().await;
            assert!(world.counts.unknown.load(Ordering::Relaxed) >= 1, "{fault}");
            assert_eq!(world.counts.settled.load(Ordering::Relaxed), 3);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn reads_that_fail_while_settling_are_repeated() {
    for fault in [Fault::FailBefore, Fault::HangBefore, Fault::HangAfter, Fault::Deny] {
        let world = World::new();
        let mut log = world.open().await;
        fill(&mut log, 0, 1).await;
        world.faulty.inject(When::at(Call::Put).to("00003.json").once(), Fault::FailAfter);
        world.faulty.inject(When::at(Call::Get).to("00003.json").times(3), fault);
        assert_eq!(world.append_in_trouble(log).await, 3, "{fault}");
        world.exactly_once().await;
        assert!(world.counts.failed.load(Ordering::Relaxed) >= 1, "{fault}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_for_hours_is_waited_for() {
    let world = World::new();
    let mut log = world.open().await;
    fill(&mut log, 0, 1).await;
    world.faulty.inject(When::always(), Fault::FailBefore);
    let task = tokio::spawn(async move { commit(&mut log, &batch(0, 10, 20)).await });
    world.clock.advance(LONG).await;
    assert!(!task.is_finished());
    // Patient, not frantic: a request every ten seconds or so.
    let requests = world.counts.failed.load(Ordering::Relaxed);
    assert!((1_000..4_000).contains(&requests), "{requests} requests in {LONG:?}");
    world.faulty.heal();
    assert!(world.clock.advance_until(Duration::from_secs(60), || task.is_finished()).await);
    world.exactly_once().await;
}

#[tokio::test(start_paused = true)]
async fn opening_waits_for_the_store_too() {
    let world = World::new();
    fill(&mut world.open().await, 0, 2).await;
    world.faulty.inject(When::at(Call::List).times(3), Fault::FailBefore);
    world.faulty.inject(When::at(Call::Get).times(5), Fault::FailBefore);
    let (store, clock) = (world.store(), world.clock.clone());
    let task = tokio::spawn(async move { open(&store, &clock, "b").await.version() });
    assert!(world.clock.advance_until(LONG, || task.is_finished()).await);
    assert_eq!(task.await.expect("no panic"), 3);
}

#[tokio::test(start_paused = true)]
async fn an_append_that_is_dropped_may_land_and_the_log_tells() {
    for (fault, lands) in [(Fault::HangAfter, true), (Fault::FailBefore, false)] {
        let world = World::new();
        let mut log = world.open().await;
        fill(&mut log, 0, 1).await;
        world.faulty.inject(When::at(Call::Put).to("00003.json"), fault);
        {
            let record = batch(0, 10, 20);
            let mut append = Box::pin(log.append(&record));
            assert!(futures::poll!(append.as_mut()).is_pending());
            settle().await;
            let _ = futures::poll!(append.as_mut());
        }
        world.faulty.heal();
        let stands = log.checkpoint().await.expect("reads")[&lane(0)].get();
        assert_eq!(stands, if lands { 20 } else { 10 });
        commit(&mut log, &batch(0, stands, stands + 10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_slept_looks_below_before_it_trusts_itself() {
    for cut in [false, true] {
        let world = World::new();
        let mut log = world.open().await;
        fill(&mut log, 0, 1).await;
        world.clock.advance(Duration::from_secs(3600)).await;
        let paths = LogPaths::of(TABLE);
        if cut {
            for version in 0..=2 {
                world.faulty.below().delete(&paths.record(version)).await.expect("deletes");
            }
        }
        let before = world.faulty.calls(Call::List, "");
        let appended = log.append(&batch(0, 10, 20)).await;
        assert_eq!(world.faulty.calls(Call::List, ""), before + 1);
        match appended {
            Ok(_) => {
                assert!(!cut);
                world.exactly_once().await;
            }
            Err(error) => {
                assert!(cut, "{error}");
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                assert!(error.to_string().contains("the log was cut"), "{error}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn two_writers_with_bad_connections_share_a_log() {
    let world = World::new();
    let other = World { faulty: world.faulty.other_view(), clock: world.clock.clone(), counts: Arc::default() };
    let mut tasks = Vec::new();
    for (number, side) in [&world, &other].into_iter().enumerate() {
        let mut log = side.open().await;
        let partition = number as i32;
        side.faulty.unleash(tapedeck_sim::store::Chaos {
            rng: fastrand::Rng::with_seed(number as u64),
            rate: 0.3,
            faults: vec![Fault::FailBefore, Fault::FailAfter, Fault::Conflict, Fault::Late, Fault::HangAfter],
        });
        tasks.push(tokio::spawn(async move { fill(&mut log, partition, 40).await }));
    }
    for _ in 0..10_000 {
        world.clock.advance(Duration::from_secs(1)).await;
        world.faulty.land().await;
        other.faulty.land().await;
        if tasks.iter().all(tokio::task::JoinHandle::is_finished) {
            break;
        }
    }
    for task in tasks {
        assert!(task.is_finished(), "stuck");
        task.await.expect("every record was accepted");
    }
    let view = view(&Store::of(world.faulty.below())).await;
    assert_eq!((view.version, view.segments.len()), (82, 80));
    assert!(world.counts.unknown.load(Ordering::Relaxed) > 5);
    assert!(world.clock.monotonic() > Duration::ZERO);
}
