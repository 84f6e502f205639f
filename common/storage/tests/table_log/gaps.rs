//! The derived table of gaps: each gap of the records once, whoever derives it, whatever the store does meanwhile.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, Int64Array, RecordBatch, StringArray};
use object_store::ObjectStoreExt;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tapedeck_common::commit::{Advance, GapCause, Record};
use tapedeck_common::{Clock, ErrorKind};
use tapedeck_sim::store::Chaos;
use tapedeck_sim::{Call, Fault, FaultyStore, ManualClock, When};
use tapedeck_storage::archive::{Archive, TABLE_PER_TOPIC};
use tapedeck_storage::gap_table::{Derived, derive};
use tapedeck_storage::layout;
use tapedeck_storage::log::{TableLog, TableOptions};
use tapedeck_storage::store::{Store, StoreError};

use crate::kit::{TABLE, commit, first, lane, open, span, step};

fn store(faulty: &FaultyStore) -> Store {
    Store::of(Arc::new(faulty.clone()))
}

fn lost(partition: i32, from: u64, until: u64) -> Record {
    let span = span(from, until);
    let expected = Some(span.from());
    let gap = Some(GapCause::Retention);
    Record { advances: vec![Advance { lane: lane(partition), expected, span, rows: 0, skipped: 0, gap }], segments: Vec::new() }
}

/// An archive in whose one table each of two writers has noted gaps, in turn.
async fn damaged(faulty: &FaultyStore, clock: &ManualClock) -> Archive {
    let mut rng = fastrand::Rng::with_seed(1);
    let archive = Archive::open_or_create(store(faulty), TABLE_PER_TOPIC, clock, &mut rng).await.expect("made");
    archive.settle_topic(TABLE, TABLE, clock, &mut rng).await.expect("settled");
    let (mut a, mut b) = (open(&archive.store, clock, "a").await, open(&archive.store, clock, "b").await);
    commit(&mut a, &first(0)).await;
    commit(&mut b, &first(1)).await;
    commit(&mut a, &lost(0, 0, 7)).await;
    commit(&mut b, &lost(1, 0, 5)).await;
    archive
}

async fn run(archive: &Archive, clock: &ManualClock, seed: u64) -> Result<Derived, StoreError> {
    derive(archive, TABLE, false, clock, &mut fastrand::Rng::with_seed(seed)).await
}

/// What any Delta reader finds: the rows of all files that the log adds, in order.
async fn rows(faulty: &FaultyStore) -> Vec<(String, i64, i64, i64)> {
    let below = faulty.below();
    let mut found = Vec::new();
    for version in 0.. {
        let Ok(record) = below.get(&layout::gap_table_record(version)).await else { break };
        let text = record.bytes().await.expect("reads");
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let action: serde_json::Value = serde_json::from_slice(line).expect("JSON");
            let Some(path) = action["add"]["path"].as_str() else { continue };
            let bytes = below.get(&layout::gap_table_file(path)).await.expect("there").bytes().await.expect("reads");
            assert_eq!(action["add"]["size"], bytes.len());
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).expect("Parquet").build().expect("readable");
            reader.for_each(|batch| found.extend(rows_of(&batch.expect("decodes"))));
        }
    }
    found.sort();
    found
}

fn rows_of(batch: &RecordBatch) -> Vec<(String, i64, i64, i64)> {
    let texts = |name| batch.column_by_name(name).expect("a column").as_any().downcast_ref::<StringArray>().expect("text");
    let longs = |name| batch.column_by_name(name).expect("a column").as_any().downcast_ref::<Int64Array>().expect("numbers");
    let (lanes, from, until, record) = (texts("lane"), longs("from_position"), longs("until_position"), longs("record"));
    assert!((0..batch.num_rows()).all(|row| texts("table_name").value(row) == TABLE && texts("cause").value(row) == "retention"));
    let row = |row| (lanes.value(row).to_owned(), from.value(row), until.value(row), record.value(row));
    (0..lanes.len()).map(row).collect()
}

fn expected(gaps: &[(i32, i64, i64, i64)]) -> Vec<(String, i64, i64, i64)> {
    gaps.iter().map(|(partition, from, until, record)| (lane(*partition).to_string(), *from, *until, *record)).collect()
}

#[tokio::test]
async fn gaps_of_two_writers_derived_twice_at_once_are_there_once_each() {
    let (faulty, clock) = (FaultyStore::default(), ManualClock::default());
    let archive = damaged(&faulty, &clock).await;
    // One of them hangs right before its record while the other goes all the way.
    let view = faulty.other_view();
    view.inject(When::at(Call::Put).to("_gaps/_delta_log").once(), Fault::HangBefore);
    let slow = tokio::spawn({
        let (archive, clock) = (Archive { store: store(&view), ..archive.clone() }, clock.clone());
        async move { run(&archive, &clock, 8).await }
    });
    view.until_hanging().await;
    let one = run(&archive, &clock, 7).await.expect("derived");
    view.release();
    let other = slow.await.expect("no panic").expect("derived");
    assert_eq!((one.added.len(), one.known, other.added.len(), other.known), (2, 0, 0, 2), "{one:?} {other:?}");
    assert_eq!(rows(&faulty).await, expected(&[(0, 0, 7, 3), (1, 0, 5, 4)]));
    assert!(one.added.iter().all(|row| row.noticed_at == clock.now() && row.table == TABLE), "{:?}", one.added);
    // More is lost later, in records without gaps between.
    let mut a = open(&archive.store, &clock, "c").await;
    commit(&mut a, &Record { advances: vec![Advance { rows: 0, ..step(0, 7, 8) }], segments: Vec::new() }).await;
    commit(&mut a, &lost(0, 8, 9)).await;
    for (added, known) in [(1, 2), (0, 3)] {
        let derived = run(&archive, &clock, 9).await.expect("derived");
        assert_eq!((derived.added.len(), derived.known), (added, known));
    }
    assert_eq!(rows(&faulty).await, expected(&[(0, 0, 7, 3), (0, 8, 9, 6), (1, 0, 5, 4)]));
    assert_eq!(archive.tables().await.expect("lists"), [TABLE], "it is no table of a topic");
}

#[tokio::test]
async fn a_dry_run_writes_nothing_and_a_table_without_gaps_makes_an_empty_one() {
    let (faulty, clock) = (FaultyStore::default(), ManualClock::default());
    let mut rng = fastrand::Rng::with_seed(1);
    let archive = damaged(&faulty, &clock).await;
    let dry = derive(&archive, TABLE, true, &clock, &mut rng).await.expect("derived");
    assert_eq!((dry.added.len(), dry.known), (2, 0));
    assert!(faulty.below().get(&layout::gap_table_record(0)).await.is_err());
    let options = TableOptions::of("whole", "a");
    TableLog::open(&archive.store, options, Arc::new(clock.clone()), rng.fork(), Arc::new(())).await.expect("opens");
    for _ in 0..2 {
        let none = derive(&archive, "whole", false, &clock, &mut rng).await.expect("derived");
        assert_eq!(none, Derived::default());
    }
    assert!(faulty.below().get(&layout::gap_table_record(0)).await.is_ok());
    assert!(faulty.below().get(&layout::gap_table_record(1)).await.is_err());
    assert_eq!(derive(&archive, TABLE, false, &clock, &mut rng).await.expect("derived"), dry);
}

/// Faults at every step, among them answers that are lost after the fact; then whoever gave up comes again.
#[tokio::test(start_paused = true)]
async fn whatever_the_store_does_each_gap_is_there_once() {
    for seed in 0..300 {
        let (faulty, clock) = (FaultyStore::default(), ManualClock::default());
        let archive = damaged(&faulty, &clock).await;
        let faults = vec![Fault::FailBefore, Fault::FailAfter, Fault::Conflict, Fault::Late];
        faulty.unleash(Chaos { rng: fastrand::Rng::with_seed(seed), rate: 0.3, faults });
        let keepers = (0..2).map(|keeper| {
            let (archive, clock) = (archive.clone(), clock.clone());
            // An error of the store ends a run, as a crash would.
            tokio::spawn(async move { run(&archive, &clock, seed * 2 + keeper).await.map_err(|error| error.kind()) })
        });
        let keepers: Vec<_> = keepers.collect();
        let all_done = || keepers.iter().all(tokio::task::JoinHandle::is_finished);
        assert!(clock.advance_until(Duration::from_secs(600), all_done).await, "seed {seed}: stuck");
        for keeper in keepers {
            let ended = keeper.await.expect("no panic");
            assert!(matches!(ended, Ok(_) | Err(ErrorKind::Unavailable)), "seed {seed}: {ended:?}");
        }
        faulty.heal();
        // What was still on its way arrives after all.
        faulty.land().await;
        run(&archive, &clock, 999).await.expect("derived");
        assert_eq!(rows(&faulty).await, expected(&[(0, 0, 7, 3), (1, 0, 5, 4)]), "seed {seed}");
    }
}

#[tokio::test]
async fn a_record_of_another_program_stops_it_with_the_mend() {
    let (faulty, clock) = (FaultyStore::default(), ManualClock::default());
    let archive = damaged(&faulty, &clock).await;
    let foreign = r#"{"commitInfo":{"timestamp":1,"operation":"OPTIMIZE"}}"#;
    faulty.below().put(&layout::gap_table_record(0), foreign.into()).await.expect("puts");
    let error = run(&archive, &clock, 1).await.expect_err("not ours");
    let text = error.to_string();
    assert!(
        error.kind() == ErrorKind::Corrupt && text.contains("_gaps/_delta_log") && text.contains("delete the folder"),
        "{text}"
    );
}
