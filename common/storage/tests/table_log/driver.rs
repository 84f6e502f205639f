//! The log on stores that do as they should: one writer, many writers, readers, broken logs.

use std::sync::Arc;

use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use tapedeck_common::commit::{Appended, CommitLog, GapCause, Record};
use tapedeck_common::{ErrorKind, Timestamp};
use tapedeck_sim::ManualClock;
use tapedeck_storage::log::view::History;
use tapedeck_storage::log::{LogPaths, LogReader, Slice, TableLog, TableOptions, TableView, VerifyOptions, verify_table};
use tapedeck_storage::store::{Store, StoreOptions, open_store};

use crate::kit::*;

fn memory() -> Store {
    Store::of(Arc::new(InMemory::new()))
}

#[tokio::test]
async fn what_one_writer_commits_every_reader_sees() {
    let (store, clock) = (memory(), ManualClock::default());
    let mut log = open(&store, &clock, "a").await;
    assert_eq!((log.version(), log.checkpoint().await.expect("reads").len()), (0, 0));
    assert_eq!(commit(&mut log, &first(0)).await, 1);
    assert_eq!(commit(&mut log, &batch(0, 0, 10)).await, 2);
    let lost = Record {
        advances: vec![tapedeck_common::commit::Advance { rows: 0, gap: Some(GapCause::Retention), ..step(0, 10, 25) }],
        segments: Vec::new(),
    };
    assert_eq!(commit(&mut log, &lost).await, 3);

    let view = view(&store).await;
    assert_eq!((view.version, view.segments.len(), view.commits.len()), (3, 1, 4));
    assert_eq!(view.positions[&lane(0)].get(), 25);
    assert_eq!((view.gaps[0].span, view.gaps[0].cause), (span(10, 25), GapCause::Retention));
    assert_eq!(view.segments[0].segment, batch(0, 0, 10).segments[0]);
    let mut again = open(&store, &clock, "b").await;
    assert_eq!(again.checkpoint().await.expect("reads"), view.positions);
    assert_eq!(again.state().tip(), log.state().tip());
}

#[tokio::test]
async fn a_view_is_one_version_and_selects_by_topic_and_time() {
    let (store, clock) = (memory(), ManualClock::default());
    let mut log = open(&store, &clock, "a").await;
    // Positions of a hundred share an hour, so these lie in hours 0, 1 and 2.
    commit(&mut log, &first(0)).await;
    for from in [0, 100, 200] {
        commit(&mut log, &batch(0, from, from + 100)).await;
    }
    let early = TableView::load(&store, TABLE, Some(2), History::Recent).await.expect("reads");
    assert_eq!((early.version, early.segments.len(), early.positions[&lane(0)].get()), (2, 1, 100));
    let late = TableView::load(&store, TABLE, Some(9), History::Recent).await.expect_err("there is no record 9");
    assert!(late.kind() == ErrorKind::Invalid && late.to_string().contains("has no version 9"), "{late}");

    let chosen = async |topics: &[&str], from: Option<Timestamp>, until: Option<Timestamp>| {
        let slice = Slice { topics: topics.iter().map(ToString::to_string).collect(), from, until };
        let view = TableView::load_matching(&store, TABLE, None, &slice).await.expect("reads");
        view.segments.iter().map(|live| live.segment.window).collect::<Vec<_>>()
    };
    assert_eq!(chosen(&[], None, None).await, [hour(0), hour(1), hour(2)]);
    assert_eq!(chosen(&["orders"], Some(hour(1).start()), Some(hour(2).start())).await, [hour(1)]);
    assert_eq!(chosen(&["clicks"], None, None).await, []);
}

#[tokio::test]
async fn a_record_whose_lane_moved_is_refused_and_leaves_nothing() {
    let (store, clock) = (memory(), ManualClock::default());
    let (mut old, mut new) = (open(&store, &clock, "old").await, open(&store, &clock, "new").await);
    fill(&mut old, 0, 1).await;
    // The lane moves to the new writer, which is further on; the old one does not know yet.
    new.checkpoint().await.expect("reads");
    commit(&mut new, &batch(0, 10, 20)).await;
    let refused = match old.append(&batch(0, 10, 15)).await.expect("the store answers") {
        Appended::Stale(lanes) => lanes,
        Appended::Committed(receipt) => panic!("accepted: {receipt:?}"),
    };
    assert_eq!((&refused[0].lane, refused[0].found.map(|at| at.get())), (&lane(0), Some(20)));
    assert_eq!(refused[0].to_string(), format!("lane {SOURCE}/0 stands at 20, expected at 10"));
    assert_eq!(view(&store).await.segments.len(), 2);
    // And goes on from there, should the lane come back.
    commit(&mut old, &batch(0, 20, 30)).await;
}

#[tokio::test]
async fn a_record_that_contradicts_itself_is_never_sent() {
    let (store, clock) = (memory(), ManualClock::default());
    let mut log = open(&store, &clock, "a").await;
    fill(&mut log, 0, 1).await;
    let cases = [
        ("nothing", Record::default()),
        ("a lane twice", Record { advances: vec![step(0, 10, 20), step(0, 20, 30)], segments: Vec::new() }),
        ("rows without segments", Record { segments: Vec::new(), ..batch(0, 10, 20) }),
        ("a segment outside the span", Record { advances: vec![step(0, 10, 15)], ..batch(0, 10, 20) }),
        ("a step that goes nowhere", Record { advances: vec![step(0, 10, 10)], segments: Vec::new() }),
        ("a start that is a batch", {
            let mut record = batch(1, 0, 10);
            record.advances[0].expected = None;
            record
        }),
    ];
    for (what, record) in cases {
        let error = log.append(&record).await.expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Bug, "{what}: {error}");
    }
    assert_eq!(view(&store).await.version, 2);
}

async fn eight_writers(store: Store, batches: u64) {
    let clock = ManualClock::default();
    let mut tasks = tokio::task::JoinSet::new();
    for partition in 0..8 {
        let (store, clock) = (store.clone(), clock.clone());
        tasks.spawn(async move {
            let mut log = open(&store, &clock, &format!("w{partition}")).await;
            put_objects(&store, &Record { segments: vec![], ..Record::default() }).await;
            commit(&mut log, &first(partition)).await;
            for number in 0..batches {
                let record = batch(partition, number * 10, number * 10 + 10);
                put_objects(&store, &record).await;
                commit(&mut log, &record).await;
            }
        });
    }
    tasks.join_all().await;
    let report = verify_table(&store, TABLE, &VerifyOptions::default()).await.expect("reads");
    assert!(report.is_complete(), "{:?}", report.findings);
    assert_eq!((report.version, report.rows), (8 * (batches + 1), 8 * batches * 10));
    assert_eq!(report.lanes.len(), 8);
}

/// Nobody here waits: a conflict is settled by reading on, so no clock needs to move.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_writers_on_one_log_in_memory() {
    eight_writers(memory(), 25).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_writers_on_one_log_in_a_folder() {
    let dir = tempfile::tempdir().expect("tempdir");
    let url = format!("file://{}", dir.path().join("archive").display());
    eight_writers(open_store(&StoreOptions::at(url)).expect("opens"), 5).await;
}

#[tokio::test]
async fn many_begin_a_table_and_it_begins_once() {
    let (store, clock) = (memory(), ManualClock::default());
    let openings = (0..8).map(|number| {
        let (store, clock) = (store.clone(), clock.clone());
        async move { open(&store, &clock, &format!("w{number}")).await }
    });
    let logs = futures::future::join_all(openings).await;
    let ids: Vec<_> = logs.iter().filter_map(|log| log.state().genesis().map(|genesis| &genesis.table_id)).collect();
    assert_eq!(ids.len(), 8);
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

async fn refusal(store: &Store) -> tapedeck_common::commit::CommitError {
    let (clock, rng) = (Arc::new(ManualClock::default()), fastrand::Rng::with_seed(1));
    TableLog::open(store, TableOptions::of(TABLE, "late"), clock, rng, Arc::new(())).await.expect_err("refused")
}

async fn log_with_five_records() -> (Store, Arc<dyn ObjectStore>, LogPaths) {
    let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let store = Store::of(Arc::clone(&below));
    let mut log = open(&store, &ManualClock::default(), "a").await;
    fill(&mut log, 0, 3).await;
    (store, below, LogPaths::of(TABLE))
}

#[tokio::test]
async fn a_hole_in_the_log_stops_everybody() {
    let (store, below, paths) = log_with_five_records().await;
    below.delete(&paths.record(2)).await.expect("deletes");
    let error = refusal(&store).await;
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("00000000000000000002.json") && error.to_string().contains("hole"), "{error}");
    let error = TableView::load(&store, TABLE, None, History::Recent).await.expect_err("a hole");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_record_that_is_not_ours_stops_the_writer() {
    let (_, below, paths) = log_with_five_records().await;
    let last = below.get(&paths.record(4)).await.expect("there").bytes().await.expect("reads");
    let text = String::from_utf8(last.to_vec()).expect("text");
    let with = |line: &str| format!("{text}{line}\n");
    let cases = [
        (with(r#"{"domainMetadata":{"domain":"x"}}"#), ErrorKind::Invalid, "domainMetadata"),
        (with(r#"{"protocol":{"minReaderVersion":3,"minWriterVersion":7}}"#), ErrorKind::Invalid, "protocol"),
        (text.replace("\"v\":1", "\"v\":2"), ErrorKind::Invalid, "format 2"),
        (text.replace("\"rows\"", "x"), ErrorKind::Corrupt, "chain"),
        (text.replace(":10]]", ":11]]"), ErrorKind::Corrupt, ""),
        ("{".to_owned(), ErrorKind::Corrupt, "unreadable"),
        (String::new(), ErrorKind::Corrupt, "unreadable"),
        (
            r#"{"commitInfo":{"timestamp":1,"operation":"WRITE","isBlindAppend":true,"engineInfo":"spark","txnId":"x"}}"#
                .to_owned()
                + "\n",
            ErrorKind::Invalid,
            "spark",
        ),
    ];
    for (body, kind, part) in cases {
        // A copy of record 4 under number 5 breaks the chain, if nothing else stops the reader before.
        below.put(&paths.record(5), PutPayload::from(body.clone().into_bytes())).await.expect("puts");
        let error = refusal(&Store::of(Arc::clone(&below))).await;
        assert_eq!(error.kind(), kind, "{body}: {error}");
        assert!(error.to_string().contains(part) && error.to_string().contains("00005.json"), "{error}");
    }
}

#[tokio::test]
async fn a_table_is_known_by_its_true_name() {
    let (store, below, paths) = log_with_five_records().await;
    let other = LogPaths::of("payments");
    let genesis = below.get(&paths.record(0)).await.expect("there").bytes().await.expect("reads");
    below.put(&other.record(0), genesis.into()).await.expect("puts");
    let (clock, rng) = (Arc::new(ManualClock::default()), fastrand::Rng::with_seed(1));
    let opened = TableLog::open(&store, TableOptions::of("payments", "a"), clock, rng, Arc::new(())).await;
    let error = opened.expect_err("another table's record 0");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let error = TableView::load(&store, "refunds", None, History::Recent).await.expect_err("no such table");
    assert!(error.to_string().contains("no table refunds"), "{error}");
}

#[tokio::test]
async fn the_newest_record_of_a_moment_is_told_by_the_stores_clock() {
    let (store, clock) = (Store::of(Arc::new(InMemory::new())), ManualClock::default());
    let mut log = open(&store, &clock, "w").await;
    fill(&mut log, 0, 20).await;
    let (paths, reader, tip) = (LogPaths::of(TABLE), LogReader::new(&store, TABLE), log.version());
    let mut times = Vec::new();
    for version in 0..=tip {
        let object = store.store.head(&paths.record(version)).await.expect("there");
        times.push(object.last_modified.timestamp_micros());
    }
    for time in &times {
        for moment in [time - 1, *time, time + 1] {
            let wanted = (0..=tip).rev().find(|version| times[*version as usize] <= moment);
            assert_eq!(reader.newest_at(Timestamp::from_micros(moment), tip).await.expect("answers"), wanted);
        }
    }
    store.store.delete(&paths.record(tip.div_ceil(2))).await.expect("deleted");
    let lost = reader.newest_at(Timestamp::from_micros(times[0]), tip).await.expect_err("a log without a record is damaged");
    assert_eq!(lost.kind(), ErrorKind::Corrupt);
}
