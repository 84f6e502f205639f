//! Many writers on one table, at the distance of an object store: how often a commit is tried, and how long it takes.
//!
//! Each writer does what an archiver does with a batch: it catches up with the log while its segment is on the way, then appends.
//! Time is virtual, so the figures are the protocol's own, the same on every machine: that is why this is a test and no bench.
//! `CONTENTION_MINUTES` lets each load run longer.
#![allow(clippy::disallowed_methods, reason = "a paused runtime's time is no real time")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tapedeck_common::Timestamp;
use tapedeck_common::clock::Clock;
use tapedeck_common::commit::{CommitLog, Outcome};
use tapedeck_sim::{Distance, FaultyStore, GENESIS};
use tapedeck_storage::log::protocol::Tally;
use tapedeck_storage::log::{LogObserver, TableLog, TableOptions};
use tapedeck_storage::store::Store;
use tokio::time::Instant;

use crate::kit::*;

/// What one request to the store takes, in microseconds.
const REQUEST_MICROS: std::ops::RangeInclusive<u64> = 20_000..=60_000;

/// The time of a paused runtime, which goes on by itself whenever everybody waits.
#[derive(Clone, Copy)]
struct PausedClock(Instant);

#[async_trait]
impl Clock for PausedClock {
    fn now(&self) -> Timestamp {
        GENESIS + self.monotonic()
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    async fn sleep_until(&self, deadline: Duration) {
        tokio::time::sleep_until(self.0 + deadline).await;
    }
}

/// Counts what was tried.
#[derive(Default)]
struct Attempts(AtomicU64);

impl LogObserver for Attempts {
    fn settled(&self, _table: &str, _took: Duration, tally: Tally, _outcome: &Outcome) {
        self.0.fetch_add(tally.creates, Ordering::Relaxed);
    }
}

/// So many writers, and how long each lets pass between the beginnings of two batches.
#[derive(Clone, Copy)]
struct Load {
    writers: u64,
    every: Duration,
    lasts: Duration,
}

#[derive(Debug)]
struct Figures {
    commits: u64,
    attempts: f64,
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

struct Writer {
    log: TableLog,
    clock: PausedClock,
    rng: fastrand::Rng,
    partition: i32,
}

impl Writer {
    async fn begin(store: &FaultyStore, clock: PausedClock, attempts: &Arc<Attempts>, number: u64) -> Self {
        let (mut rng, partition) = (fastrand::Rng::with_seed(number), number as i32);
        let view = store.other_view();
        let options = TableOptions::of(TABLE, format!("writer-{number}"));
        let observer: Arc<dyn LogObserver> = Arc::clone(attempts) as _;
        let store = Store::of(Arc::new(view.clone()));
        // Where each stands is known before the store moves away.
        let log = TableLog::open(&store, options, Arc::new(clock), rng.fork(), observer).await;
        let mut log = log.expect("memory");
        commit(&mut log, &first(partition)).await;
        view.move_away(Distance { clock: Arc::new(clock), rng: rng.fork(), micros: REQUEST_MICROS });
        Self { log, clock, rng, partition }
    }

    /// Commits batches until `end`; answers how long each took from its last event to its commit.
    async fn work(mut self, every: Duration, end: Duration) -> Vec<Duration> {
        let (mut took, mut position) = (Vec::new(), 0);
        let mut due = self.clock.monotonic() + every.mul_f64(self.rng.f64());
        while due < end {
            self.clock.sleep_until(due).await;
            let begun = self.clock.monotonic();
            let upload = self.clock.sleep(Duration::from_micros(self.rng.u64(REQUEST_MICROS)));
            let ((), caught_up) = futures::join!(upload, self.log.checkpoint());
            caught_up.expect("the store answers");
            commit(&mut self.log, &batch(self.partition, position, position + 10)).await;
            position += 10;
            took.push(self.clock.monotonic() - begun);
            due = (due + every).max(self.clock.monotonic());
        }
        took
    }
}

async fn measure(load: Load) -> Figures {
    let (store, clock) = (FaultyStore::default(), PausedClock(Instant::now()));
    let attempts = Arc::new(Attempts::default());
    let mut writers = Vec::new();
    for number in 0..load.writers {
        writers.push(Writer::begin(&store, clock, &attempts, number).await);
    }
    attempts.0.store(0, Ordering::Relaxed);
    let (begun, all) = (clock.monotonic(), Arc::new(Mutex::new(Vec::new())));
    let work = writers.into_iter().map(|writer| {
        let all = Arc::clone(&all);
        tokio::spawn(async move {
            let took = writer.work(load.every, begun + load.lasts).await;
            all.lock().expect("nobody panicked").extend(took);
        })
    });
    for ended in futures::future::join_all(work).await {
        ended.expect("no panic");
    }
    let mut took = std::mem::take(&mut *all.lock().expect("nobody panicked"));
    took.sort_unstable();
    let commits = took.len() as u64;
    let view = view(&Store::of(store.below())).await;
    assert_eq!(view.segments.len() as u64, commits, "each commit is there, once");
    Figures {
        commits,
        attempts: attempts.0.load(Ordering::Relaxed) as f64 / commits as f64,
        per_second: commits as f64 / (clock.monotonic() - begun).as_secs_f64(),
        p50: took[took.len() / 2],
        p99: took[took.len() * 99 / 100],
    }
}

fn lasting(minutes: u64) -> Duration {
    let asked = std::env::var("CONTENTION_MINUTES").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(60 * asked.unwrap_or(minutes))
}

fn show(load: Load, figures: &Figures) {
    let Figures { commits, attempts, per_second, p50, p99 } = figures;
    println!(
        "{} writers, a batch every {:?}: {commits} commits, {per_second:.1}/s, {attempts:.3} attempts each, \
         {} ms in the middle, {} ms at p99",
        load.writers,
        load.every,
        p50.as_millis(),
        p99.as_millis()
    );
}

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn thirty_six_writers_once_a_minute_hardly_ever_try_twice() {
    let load = Load { writers: 36, every: MINUTE, lasts: lasting(20) };
    let figures = measure(load).await;
    show(load, &figures);
    assert!(figures.attempts <= 1.1, "{figures:?}");
    assert!(figures.p99 <= Duration::from_secs(1), "{figures:?}");
}

#[tokio::test(start_paused = true)]
async fn three_hundred_writers_once_a_minute_are_served() {
    let load = Load { writers: 300, every: MINUTE, lasts: lasting(3) };
    let figures = measure(load).await;
    show(load, &figures);
    assert!(figures.attempts <= 2.0, "{figures:?}");
    assert!(figures.p99 <= Duration::from_secs(3), "{figures:?}");
}

/// What a table can take at most, whoever asks for it.
#[tokio::test(start_paused = true)]
async fn one_table_takes_about_ten_commits_a_second() {
    let load = Load { writers: 36, every: Duration::ZERO, lasts: lasting(1) };
    let figures = measure(load).await;
    show(load, &figures);
    assert!(figures.per_second >= 8.0, "{figures:?}");
}
