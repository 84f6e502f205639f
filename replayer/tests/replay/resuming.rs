//! Kills at every step: nothing is lost, what comes twice lies within the stated window, no cursor is ever ahead.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use replayer::cursor::{Cursor, State};
use replayer::job::{Claim, Jobs};
use replayer::pacer::Limits;
use replayer::plan::{CURSOR_EVENTS, Plan};
use replayer::progress::{Counters, Throttled};
use replayer::replay::{Ended, Ledger, LedgerError, ReplayError, Run, run};
use replayer::select::Selection;
use tapedeck_common::bus::Producer as _;
use tapedeck_common::{Clock as _, LaneId};

use crate::kit::{CheckedLedger, Event, HOUR, Nowhere, SeededProducer, TEN, Topics, World, by_lane};

/// Some batches over two hours with interleaved times.
async fn archive(batches: u64, size: u64) -> (World, Vec<Event>) {
    let (mut world, mut chance) = (World::new().await, fastrand::Rng::with_seed(21));
    let mut all = Vec::new();
    for batch in 0..batches {
        let events: Vec<Event> = (batch * size..(batch + 1) * size)
            .flat_map(|position| {
                [(0, chance.i64(0..2 * HOUR)), (1, chance.i64(0..2 * HOUR))]
                    .map(|(lane, time)| Event::plain(lane, position, TEN + time))
            })
            .collect();
        world.commit(&events, 50).await;
        all.extend(events);
    }
    (world, all)
}

enum Fate {
    Killed,
    Ended(Cursor),
}

/// Claims the job and runs it until it ends, or until the producer's crash.
async fn attempt(
    world: &World,
    plan: &Arc<Plan>,
    topics: &Arc<Topics>,
    planned: &BTreeMap<LaneId, Vec<u64>>,
    seed: u64,
    calls: Option<u64>,
) -> Fate {
    let jobs = Jobs::of(world.store.clone());
    let claim = jobs.claim("rp-1", "test", &seed.to_string(), world.clock.as_ref()).await.expect("nobody else works on it");
    let Claim::Ours(owner, cursor) = claim else { panic!("it is not complete") };
    let ledger = CheckedLedger::new(owner.ledger(), topics, planned.clone());
    let mut producer = SeededProducer::new(topics, seed);
    producer.calls_left = calls;
    let crash = Arc::clone(&producer.crash);
    let mut chunks = world.read_all(plan, &cursor).await;
    let job = Run {
        job: "rp-1".into(),
        plan: Arc::clone(plan),
        cursor,
        limits: Limits::default(),
        producer: &mut producer,
        ledger: Arc::clone(&ledger) as _,
        clock: world.clock.as_ref(),
        counters: Arc::new(Counters::default()),
    };
    tokio::select! {
        biased;
        () = crash.notified() => Fate::Killed,
        (ended, cursor) = run(job, &mut chunks, std::future::pending()) => {
            assert_eq!(ended.expect("nothing else fails"), Ended::Completed);
            Fate::Ended(cursor)
        }
    }
}

fn check_all(topics: &Topics, planned: &BTreeMap<LaneId, Vec<u64>>, window: usize) {
    let arrived = topics.arrived();
    for (lane, planned) in planned {
        let mut firsts = Vec::new();
        for position in &arrived[lane] {
            match firsts.binary_search(position) {
                Ok(index) => assert!(firsts.len() - index <= window, "a copy {} events back", firsts.len() - index),
                Err(_) => {
                    assert!(firsts.last().is_none_or(|last| last < position), "{lane}: {position} comes first after later ones");
                    firsts.push(*position);
                }
            }
        }
        assert_eq!(&firsts, planned, "{lane}");
    }
}

#[tokio::test]
async fn killed_at_any_step_it_loses_nothing() {
    let (world, all) = archive(3, 120).await;
    let plan = Arc::new(world.plan(Selection::default()).await.expect("plan"));
    let planned = by_lane(&all);
    for seed in 0..60_u64 {
        let topics = Arc::new(Topics::default());
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut kills = 0;
        let cursor = loop {
            let calls = (kills < 6).then(|| chance.u64(1..900));
            match attempt(&world, &plan, &topics, &planned, seed * 100 + kills, calls).await {
                Fate::Killed => kills += 1,
                Fate::Ended(cursor) => break cursor,
            }
        };
        assert_eq!(cursor.events(), plan.totals.events, "seed {seed}");
        check_all(&topics, &planned, CURSOR_EVENTS as usize + 500);
        delete_job(&world).await;
    }
}

async fn delete_job(world: &World) {
    use futures::TryStreamExt as _;
    use object_store::ObjectStoreExt as _;
    let folder = object_store::path::Path::from("_archive/jobs/rp-1");
    let keys: Vec<_> = world.store.store.list(Some(&folder)).map_ok(|object| object.location).try_collect().await.unwrap();
    for key in keys {
        world.store.store.delete(&key).await.unwrap();
    }
}

#[tokio::test]
async fn a_stop_waits_for_confirms_and_the_next_run_repeats_nothing() {
    let (world, all) = archive(3, 200).await;
    let plan = Arc::new(world.plan(Selection::default()).await.expect("plan"));
    let topics = Arc::new(Topics::default());
    let mut cursor = Cursor::start("rp-1", world.clock.now());
    for (stop_after, seed) in [(Some(40), 1), (Some(25), 2), (None, 3)] {
        let mut producer = SeededProducer::new(&topics, seed);
        let mut chunks = world.read_all(&plan, &cursor).await;
        let counters = Arc::new(Counters::default());
        let seen = Arc::clone(&counters);
        let stop = async move {
            match stop_after {
                Some(events) => {
                    while seen.now().published < events {
                        tokio::task::yield_now().await;
                    }
                }
                None => std::future::pending().await,
            }
        };
        let job = Run {
            job: "rp-1".into(),
            plan: Arc::clone(&plan),
            cursor,
            limits: Limits { events: Some(2_000.0), bytes: None },
            producer: &mut producer,
            ledger: Arc::new(Nowhere),
            clock: world.clock.as_ref(),
            counters,
        };
        let (ended, at) = run(job, &mut chunks, stop).await;
        let expected = if stop_after.is_some() { Ended::Stopped } else { Ended::Completed };
        assert_eq!(ended.expect("no failure"), expected);
        cursor = at;
    }
    assert_eq!(topics.all().len(), all.len(), "every event once");
    check_all(&topics, &by_lane(&all), 0);
}

#[tokio::test]
async fn while_no_cursor_is_saved_a_lane_gets_no_further_than_stated() {
    let mut world = World::new().await;
    let events: Vec<Event> = (0..CURSOR_EVENTS + 6_000).map(|position| Event::plain(0, position, TEN)).collect();
    world.commit(&events, 4_000).await;
    let plan = Arc::new(world.plan(Selection::default()).await.expect("plan"));
    let topics = Arc::new(Topics::default());
    let mut producer = SeededProducer::new(&topics, 4);
    let cursor = Cursor::start("rp-1", world.clock.now());
    let mut chunks = world.read_all(&plan, &cursor).await;
    let ledger = CheckedLedger::new(Arc::new(Nowhere), &topics, BTreeMap::new());
    ledger.grace.store(1, Ordering::SeqCst);
    ledger.away.store(10, Ordering::SeqCst);
    let counters = Arc::new(Counters::default());
    let job = Run {
        job: "rp-1".into(),
        plan: Arc::clone(&plan),
        cursor,
        limits: Limits::default(),
        producer: &mut producer,
        ledger: Arc::clone(&ledger) as _,
        clock: world.clock.as_ref(),
        counters: Arc::clone(&counters),
    };
    let watching = async {
        loop {
            if ledger.away.load(Ordering::SeqCst) > 0 {
                let published = counters.now().published;
                assert!(published <= CURSOR_EVENTS + 500 + 100, "{published} events without a cursor");
            }
            tokio::task::yield_now().await;
        }
    };
    let (ended, _) = tokio::select! {
        ended = run(job, &mut chunks, std::future::pending()) => ended,
        () = watching => unreachable!("it watches for ever"),
    };
    assert_eq!(ended.expect("the store came back"), Ended::Completed);
    assert!(counters.throttled_for(Throttled::Cursor) > std::time::Duration::ZERO, "it waited for the cursor");
    let saved = ledger.saved.lock().unwrap();
    assert!(saved.iter().all(|cursor| cursor.state == State::Running) && !saved.is_empty());
}

#[tokio::test]
async fn without_a_sign_of_life_nothing_is_published() {
    let mut world = World::new().await;
    world.commit(&(0..5_000).map(|position| Event::plain(0, position, TEN)).collect::<Vec<_>>(), 1_000).await;
    let plan = Arc::new(world.plan(Selection::default()).await.expect("plan"));
    let topics = Arc::new(Topics::default());
    let mut producer = SeededProducer::new(&topics, 4);
    let cursor = Cursor::start("rp-1", world.clock.now());
    let mut chunks = world.read_all(&plan, &cursor).await;
    let ledger = CheckedLedger::new(Arc::new(Nowhere), &topics, BTreeMap::new());
    ledger.grace.store(1, Ordering::SeqCst);
    ledger.away.store(1_000_000, Ordering::SeqCst);
    let counters = Arc::new(Counters::default());
    let job = Run {
        job: "rp-1".into(),
        plan,
        cursor,
        limits: Limits { events: Some(100.0), bytes: None },
        producer: &mut producer,
        ledger: Arc::clone(&ledger) as Arc<dyn Ledger>,
        clock: world.clock.as_ref(),
        counters: Arc::clone(&counters),
    };
    let until = world.clock.monotonic() + std::time::Duration::from_secs(20);
    let clock = Arc::clone(&world.clock);
    let stop = async move {
        while clock.monotonic() < until {
            tokio::task::yield_now().await;
        }
    };
    let (ended, _) = run(job, &mut chunks, stop).await;
    assert_eq!(ended.expect("no failure"), Ended::Stopped);
    let published = counters.now().published;
    assert!((250..=330).contains(&published), "3 s at 100/s, then silence: {published}");
}

#[tokio::test]
async fn who_slept_before_the_first_event_looks_at_the_lease_first() {
    let (world, all) = archive(1, 50).await;
    let plan = Arc::new(world.plan(Selection::default()).await.expect("plan"));
    let jobs = Jobs::of(world.store.clone());
    let mut claims = Vec::new();
    for nonce in ["first", "second"] {
        let claim = jobs.claim("rp-1", nonce, nonce, world.clock.as_ref()).await.expect("the one before is silent");
        let Claim::Ours(owner, cursor) = claim else { panic!("it is not complete") };
        claims.push((owner, cursor));
    }
    for ((owner, cursor), is_owner) in claims.into_iter().zip([false, true]) {
        let topics = Arc::new(Topics::default());
        let mut producer = SeededProducer::new(&topics, 4);
        let mut chunks = world.read_all(&plan, &cursor).await;
        let job = Run {
            job: "rp-1".into(),
            plan: Arc::clone(&plan),
            cursor,
            limits: Limits::default(),
            producer: &mut producer,
            ledger: owner.ledger(),
            clock: world.clock.as_ref(),
            counters: Arc::new(Counters::default()),
        };
        let (ended, _) = run(job, &mut chunks, std::future::pending()).await;
        match ended {
            Ok(_) => assert!(is_owner),
            Err(error) => assert!(!is_owner && matches!(error, ReplayError::Ledger(LedgerError::Fenced { lease: 2, .. }))),
        }
        assert_eq!(topics.all().len() + producer.unconfirmed(), if is_owner { all.len() } else { 0 });
    }
}
