//! Records: whatever becomes of a create, each record is in the log once, and the log is dense.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tapedeck_common::commit::{Appended, CommitLog, Outcome, Record};
use tapedeck_storage::log::protocol::Tally;
use tapedeck_storage::log::{LogObserver, TableLog, TableOptions, VerifyOptions, verify_table};
use tapedeck_testbed::{FaultProxy, HttpFault, Which};

use super::{Behind, after, before};
use crate::kit::{Given, advance};

const WRITERS: i32 = 4;
const STEPS: u64 = 12;

/// Creates whose outcome the protocol had to read back.
#[derive(Default)]
struct Unknown(AtomicU64);

impl LogObserver for Unknown {
    fn settled(&self, _: &str, _: Duration, tally: Tally, _: &Outcome) {
        self.0.fetch_add(tally.unknown, Ordering::Relaxed);
    }
}

/// Creates of records, one object each.
fn creates() -> Which {
    Which::of("PUT").with("_delta_log/0")
}

/// A lane that goes on step by step, each in a record of its own. Segments are another room's.
async fn write_lane(
    store: tapedeck_storage::store::Store,
    mut given: Given,
    table: String,
    partition: i32,
    unknown: Arc<Unknown>,
) {
    let options = TableOptions { checkpoint_every: 1_000_000, ..TableOptions::of(&table, format!("w{partition}")) };
    let (clock, rng) = (Arc::clone(&given.clock), given.rng.fork());
    let mut log = TableLog::open(&store, options, clock, rng, unknown).await.expect("opens");
    for step in 0..=STEPS {
        let advances = vec![advance(partition, step.checked_sub(1), step, 0)];
        match log.append(&Record { advances, segments: Vec::new() }).await.expect("waits as long as it takes") {
            Appended::Committed(_) => {}
            Appended::Stale(lanes) => panic!("the lane is nobody else's: {lanes:?}"),
        }
    }
}

/// Several writers of one log behind the proxy; meanwhile what is late lands, now and then.
async fn writers_commit(behind: &mut Behind, lands: bool) -> (String, u64) {
    let (table, unknown) = (behind.direct.name(), Arc::<Unknown>::default());
    let mut tasks = tokio::task::JoinSet::new();
    for partition in 0..WRITERS {
        let own =
            Given { store: behind.given.store.clone(), clock: Arc::clone(&behind.given.clock), rng: behind.direct.rng.fork() };
        tasks.spawn(write_lane(own.store.clone(), own, table.clone(), partition, Arc::clone(&unknown)));
    }
    while !tasks.is_empty() {
        tokio::select! {
            done = tasks.join_next() => done.expect("not empty").expect("no panic"),
            () = behind.direct.clock.sleep(Duration::from_millis(5)), if lands => land(&behind.proxy),
        }
    }
    land(&behind.proxy);
    (table, unknown.0.load(Ordering::Relaxed))
}

fn land(proxy: &FaultProxy) {
    tokio::task::block_in_place(|| proxy.land());
}

/// Each record once: the lanes tile, the log is dense and linked, and there are as many records as were accepted.
async fn every_record_is_there_once(behind: &Behind, table: &str) {
    let report = verify_table(&behind.direct.store, table, &VerifyOptions::default()).await.expect("reads");
    assert!(report.is_complete(), "{:?}", report.findings);
    assert_eq!((report.version, report.lanes.len()), (WRITERS as u64 * (STEPS + 1), WRITERS as usize));
    assert!(report.lanes.iter().all(|lane| (lane.from, lane.next) == (0, STEPS)), "{:?}", report.lanes);
}

/// S1, S2, S15: answers that are lost, wrong, or refuse for a while. Also a conflict that nobody won (S1, last row).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by records_and_segments_survive_what_lies_between"]
async fn each_fault_of_a_create_leaves_every_record_once() {
    let conflict = HttpFault::instead(409, "ConditionalRequestConflict");
    for fault in before().into_iter().chain(after()).chain([conflict.clone()]) {
        let mut behind = Behind::new();
        for skip in [0, 3, 9, 30] {
            behind.proxy.strike(creates().after(skip).times(1), fault.clone());
        }
        let (table, unknown) = writers_commit(&mut behind, false).await;
        every_record_is_there_once(&behind, &table).await;
        assert_eq!(behind.proxy.struck(), 4, "{fault:?}");
        assert!(unknown >= 4, "{fault:?}: {unknown}");
    }
}

/// S1: nobody but the protocol repeats a create, and never without having looked first. A client that repeated it by itself
/// would be told of its own success as somebody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by records_and_segments_survive_what_lies_between"]
async fn a_create_is_looked_for_before_it_is_sent_again() {
    for fault in before().into_iter().chain(after()).chain([HttpFault::Late]) {
        let mut behind = Behind::new();
        let record = "00000000000000000002.json";
        behind.proxy.strike(creates().with(record).times(3), fault.clone());
        let own = Given { store: behind.given.store.clone(), clock: behind.given.clock.clone(), rng: behind.direct.rng.fork() };
        let table = behind.direct.name();
        write_lane(own.store.clone(), own, table, 0, Arc::default()).await;
        let seen = behind.proxy.seen();
        let methods: Vec<&str> =
            seen.iter().filter(|seen| seen.target.ends_with(record)).map(|seen| seen.method.as_str()).collect();
        assert!(methods.contains(&"PUT") && !methods.windows(2).any(|two| two == ["PUT", "PUT"]), "{fault:?}: {methods:?}");
    }
}

/// S2: a create that was given up lands later, before or after its repetition, and between records of others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by records_and_segments_survive_what_lies_between"]
async fn late_creates_land_among_writers_and_every_record_is_once() {
    let mut behind = Behind::new();
    let seed = behind.direct.rng.u64(..);
    println!("seed {seed}");
    behind.proxy.unleash(creates(), seed, 0.3, &[HttpFault::Late]);
    let (table, unknown) = writers_commit(&mut behind, true).await;
    every_record_is_there_once(&behind, &table).await;
    assert!(behind.proxy.struck() >= 3 && unknown >= 3, "{} late, {unknown} unknown", behind.proxy.struck());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by records_and_segments_survive_what_lies_between"]
async fn writers_in_a_storm_leave_every_record_once() {
    let mut behind = Behind::new();
    let seed = behind.direct.rng.u64(..);
    println!("seed {seed}");
    let conflict = HttpFault::instead(409, "ConditionalRequestConflict");
    let faults: Vec<_> = before().into_iter().chain(after()).chain([conflict, HttpFault::Late, HttpFault::Cut(20)]).collect();
    // Reads and listings suffer as well: settling an unknown outcome is reading.
    behind.proxy.unleash(Which::all().with("_delta_log"), seed, 0.2, &faults);
    let (table, unknown) = writers_commit(&mut behind, true).await;
    every_record_is_there_once(&behind, &table).await;
    assert!(behind.proxy.struck() >= 10 && unknown >= 3, "{} struck, {unknown} unknown", behind.proxy.struck());
}
