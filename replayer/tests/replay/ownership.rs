//! One job, one worker: leases, takeover, and what a worker that lost its job may still do.

use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStoreExt as _;
use replayer::alive::alive;
use replayer::cursor::{Cursor, LaneCursor, State};
use replayer::hold::Hold;
use replayer::job::{Claim, JobError, Jobs, Owner, StoredPlan};
use replayer::replay::{LedgerError, SILENT_MAX};
use replayer::report::Report;
use replayer::select::Selection;
use tapedeck_common::{Clock, Position};
use tapedeck_sim::{Call, Fault, FaultyStore, ManualClock, When, settle};
use tapedeck_storage::layout;
use tapedeck_storage::store::Store;

use crate::kit::{Event, TEN, World};

async fn claim(world: &World, nonce: &str) -> Result<Claim, JobError> {
    Jobs::of(world.store.clone()).claim("rp-1", nonce, nonce, world.clock.as_ref()).await
}

fn ours(claim: Result<Claim, JobError>) -> (Owner, Cursor) {
    match claim.expect("claimed") {
        Claim::Ours(owner, cursor) => (owner, cursor),
        Claim::Completed(_) => panic!("it is not complete"),
    }
}

fn at(cursor: &Cursor, next: u64, state: State) -> Cursor {
    let mut cursor = Cursor { state, beat: cursor.beat + 1, ..cursor.clone() };
    cursor.lanes.insert("s/0".into(), LaneCursor { next: Position::new(next), events: next });
    cursor
}

#[tokio::test]
async fn a_second_starter_is_told_and_the_first_goes_on() {
    let world = World::new().await;
    let (owner, mut cursor) = ours(claim(&world, "first").await);
    let ledger = owner.ledger();
    let beating = async {
        loop {
            cursor = at(&cursor, cursor.beat, State::Running);
            ledger.save(cursor.clone()).await.expect("it is ours");
            tokio::task::yield_now().await;
        }
    };
    let second = tokio::select! {
        second = claim(&world, "second") => second,
        () = beating => unreachable!("it beats for ever"),
    };
    let error = second.expect_err("the first lives");
    assert!(matches!(error, JobError::Held { lease: 1, .. }), "{error}");
    assert_eq!(tapedeck_daemon::Exit::from(error.kind()).code(), 75);
    assert!(error.to_string().contains("is being run by another replayer (first, lease 1)"), "{error}");
}

#[tokio::test]
async fn a_silent_owner_is_replaced_and_finds_out() {
    let world = World::new().await;
    let (first, cursor) = ours(claim(&world, "first").await);
    first.ledger().save(at(&cursor, 10, State::Running)).await.expect("it is ours");
    let before = world.clock.monotonic();
    let (second, resumed) = ours(claim(&world, "second").await);
    assert!(world.clock.monotonic() - before >= Duration::from_secs(5), "it watched first");
    assert_eq!((resumed.lease, resumed.runs, resumed.lanes["s/0"].next.get()), (2, 2, 10));
    // The first wakes up: it may not move the job back.
    let late = first.ledger().save(at(&cursor, 11, State::Running)).await;
    assert!(matches!(late, Err(LedgerError::Fenced { lease: 2, .. })));
    second.ledger().save(at(&resumed, 30, State::Paused)).await.expect("it is ours");
    let (_, third) = ours(claim(&world, "third").await);
    assert_eq!((third.lease, third.lanes["s/0"].next.get()), (3, 30));
}

#[tokio::test]
async fn two_starters_of_a_paused_job_cannot_have_the_same_lease() {
    for _ in 0..20 {
        let world = World::new().await;
        let (first, cursor) = ours(claim(&world, "first").await);
        first.ledger().save(at(&cursor, 10, State::Paused)).await.expect("it is ours");
        let (a, b) = tokio::join!(claim(&world, "a"), claim(&world, "b"));
        // The one that comes second finds the other silent after a while, since nothing here beats; never do both go on at once.
        let leases: Vec<u32> = [a, b].into_iter().flatten().map(|claim| ours(Ok(claim)).1.lease).collect();
        assert!(matches!(leases.as_slice(), [2] | [2, 3] | [3, 2]), "{leases:?}");
    }
}

#[tokio::test]
async fn a_completed_job_is_not_run_again() {
    let world = World::new().await;
    let (owner, cursor) = ours(claim(&world, "first").await);
    owner.ledger().save(at(&cursor, 10, State::Completed)).await.expect("it is ours");
    assert!(matches!(claim(&world, "second").await, Ok(Claim::Completed(_))));
}

#[tokio::test]
async fn a_job_keeps_its_plan() {
    let mut world = World::new().await;
    world.commit(&[Event::plain(0, 0, TEN), Event::plain(0, 1, TEN)], 8).await;
    let jobs = Jobs::of(world.store.clone());
    let plan = world.plan(Selection::default()).await.expect("plan");
    let other = world
        .plan(Selection { offsets: Some((Position::new(0), Position::new(1))), ..Selection::default() })
        .await
        .expect("plan");
    let stored = |plan: &replayer::plan::Plan, request: &str| StoredPlan { request: Some(request.into()), plan: plan.clone() };
    jobs.settle_plan("rp-1", stored(&plan, "--topic orders"), world.clock.as_ref()).await.expect("new");
    // The same flags resume it, though times that are relative to now have moved on.
    let again = jobs.settle_plan("rp-1", stored(&other, "--topic orders"), world.clock.as_ref()).await.expect("the same");
    assert_eq!(again.plan.hash, plan.hash);
    let error = jobs.settle_plan("rp-1", stored(&other, "--offsets 0..1"), world.clock.as_ref()).await.expect_err("another");
    assert!(error.to_string().contains("exists with another plan (--topic orders)"), "{error}");
    assert_eq!(jobs.list().await.expect("memory"), ["rp-1"]);
    let cursor = Cursor { state: State::Paused, ..Cursor::start("rp-1", world.clock.now()) };
    let report = Report::of(&plan, &cursor);
    jobs.save_report(&report).await.expect("memory");
    assert_eq!(jobs.report("rp-1").await.expect("memory"), Some(report));
    let newest = Arc::new(jobs.newest("rp-1").await.expect("memory"));
    assert!(newest.is_none(), "nobody has begun");
}

#[tokio::test]
async fn what_the_owner_before_wrote_until_it_knew_counts() {
    let world = World::new().await;
    let (first, cursor) = ours(claim(&world, "first").await);
    first.ledger().save(at(&cursor, 10, State::Running)).await.expect("it is ours");
    for (lease, state) in [(2, State::Running), (3, State::Completed)] {
        let before = world.clock.monotonic();
        // A cursor on its way arrives when the new lease is there already.
        let late = async {
            let key = |name: &str| layout::archive_job("rp-1", name);
            while world.store.store.head(&key(&format!("lease-{lease}.json"))).await.is_err() {
                tokio::task::yield_now().await;
            }
            let key = if lease == 2 { key("cursor.json") } else { key("cursor-2.json") };
            let text = serde_json::to_vec(&at(&Cursor { lease: lease - 1, ..cursor.clone() }, 25, state)).expect("plain data");
            world.store.store.put(&key, text.into()).await.expect("memory");
        };
        let nonce = lease.to_string();
        let (claimed, ()) = tokio::join!(claim(&world, &nonce), late);
        assert!(world.clock.monotonic() - before >= Duration::from_secs(5) + SILENT_MAX, "it waited for the last of it");
        match claimed.expect("the one before is silent") {
            Claim::Ours(_, cursor) => assert_eq!((cursor.lease, cursor.lanes["s/0"].next.get()), (2, 25)),
            Claim::Completed(cursor) => assert_eq!((lease, cursor.state), (3, State::Completed)),
        }
    }
}

#[tokio::test]
async fn who_lost_the_job_leaves_its_report_alone() {
    let mut world = World::new().await;
    world.commit(&[Event::plain(0, 0, TEN)], 8).await;
    let plan = world.plan(Selection::default()).await.expect("plan");
    let jobs = Jobs::of(world.store.clone());
    let (first, old) = ours(claim(&world, "first").await);
    let (second, new) = ours(claim(&world, "second").await);
    let done = at(&new, 30, State::Completed);
    let report = jobs.end(&plan, &done, second.ledger().as_ref(), world.clock.as_ref()).await.expect("it is ours");
    let late = jobs.end(&plan, &at(&old, 3, State::Failed), first.ledger().as_ref(), world.clock.as_ref()).await;
    assert!(matches!(late, Err(LedgerError::Fenced { lease: 2, .. })), "{late:?}");
    assert_eq!(jobs.report("rp-1").await.expect("memory"), Some(report));
}

#[tokio::test]
async fn a_cursor_that_was_still_on_its_way_undoes_no_end() {
    for state in [State::Paused, State::Failed, State::Completed] {
        let world = World::new().await;
        let (owner, cursor) = ours(claim(&world, "first").await);
        owner.ledger().save(at(&cursor, 30, state)).await.expect("it is ours");
        let late = serde_json::to_vec(&at(&cursor, 20, State::Running)).expect("plain data");
        world.store.store.put(&layout::archive_job("rp-1", "cursor.json"), late.into()).await.expect("memory");
        let (_, newest) = Jobs::of(world.store.clone()).newest("rp-1").await.expect("memory").expect("it was started");
        assert_eq!((newest.state, newest.lanes["s/0"].next.get()), (state, 30));
        let before = world.clock.monotonic();
        match claim(&world, "second").await.expect("the first has ended") {
            Claim::Ours(_, cursor) => assert_eq!(cursor.lanes["s/0"].next.get(), 30),
            Claim::Completed(_) => assert_eq!(state, State::Completed),
        }
        assert_eq!(world.clock.monotonic(), before, "nobody has to be waited for");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_on_the_pin_takes_no_sign_of_life_away() {
    let store = FaultyStore::default();
    let mut world = World::at(Store::of(Arc::new(store.clone()))).await;
    world.commit(&[Event::plain(0, 0, TEN)], 8).await;
    let plan = Arc::new(world.plan(Selection::default()).await.expect("plan"));
    let clock = ManualClock::default();
    let jobs = Jobs::of(world.store.clone());
    let (owner, cursor) = ours(jobs.claim("rp-1", "first", "first", &clock).await);
    store.inject(When::at(Call::Put).to("_archive/pins/"), Fault::HangBefore);
    let shared: Arc<dyn Clock> = Arc::new(clock.clone());
    let hold = Hold::new(&world.store, "rp-1", &plan, &shared);
    let first = tokio::spawn(async move { alive(hold.begin(), &cursor, owner.ledger().as_ref(), shared.as_ref()).await });
    settle().await;
    assert_eq!(store.hanging(), 1, "the pin is on its way");
    let watching = clock.clone();
    let second = tokio::spawn(async move { jobs.claim("rp-1", "second", "second", &watching).await });
    clock.advance(Duration::from_secs(15)).await;
    let second = second.await.expect("no panic").expect_err("the first lives");
    assert!(matches!(second, JobError::Held { lease: 1, .. }), "{second}");
    assert!(!first.await.expect("no panic").expect("the job is its own"), "it goes on without its pin");
}
