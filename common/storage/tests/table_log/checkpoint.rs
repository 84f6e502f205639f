//! Checkpoints: the same state as the records, quicker; never trusted further than they go.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use object_store::ObjectStoreExt;
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaDataReader, ParquetMetaDataWriter};
use tapedeck_common::ErrorKind;
use tapedeck_common::commit::{Advance, CommitLog, GapCause, Record};
use tapedeck_sim::{Call, Fault, FaultyStore, ManualClock, When};
use tapedeck_storage::log::{History, LogPaths, TableLog, TableOptions, TableView, VerifyOptions, verify_table};
use tapedeck_storage::store::Store;

use crate::kit::*;

fn store(faulty: &FaultyStore) -> Store {
    Store::of(Arc::new(faulty.clone()))
}

/// What both ways of reading must agree on.
fn essence(view: TableView) -> impl PartialEq + std::fmt::Debug {
    let segments: Vec<_> = view.segments.into_iter().map(|live| live.segment).collect();
    (view.version, view.committed_at, view.table_id, view.positions, segments, view.gaps, view.skipped)
}

async fn agree(store: &Store, at: Option<u64>) {
    let recent = TableView::load(store, TABLE, at, History::Recent).await.expect("reads");
    let whole = TableView::load(store, TABLE, at, History::Whole).await.expect("reads");
    assert_eq!(essence(recent), essence(whole));
}

#[tokio::test]
async fn a_checkpoint_says_what_its_records_say() {
    let faulty = FaultyStore::default();
    let store = store(&faulty);
    let mut log = open(&store, &ManualClock::default(), "a").await;
    for partition in 0..4 {
        fill(&mut log, partition, 5).await;
    }
    // What stands only in records: a gap, and events that were left out.
    let gap = Advance { rows: 0, gap: Some(GapCause::Retention), ..step(0, 50, 70) };
    commit(&mut log, &Record { advances: vec![gap], segments: Vec::new() }).await;
    let skipped = Advance { rows: 0, skipped: 9, ..step(1, 50, 60) };
    commit(&mut log, &Record { advances: vec![skipped], segments: Vec::new() }).await;
    fill(&mut log, 4, 2).await;
    for version in [0, 1, 7, 24, 25, 29] {
        checkpoint(&store, version).await;
        for at in [Some(version), Some(29), None] {
            agree(&store, at).await;
        }
    }
}

#[tokio::test]
async fn whoever_reaches_the_multiple_writes_it_and_writers_open_from_it() {
    let (faulty, clock) = (FaultyStore::default(), ManualClock::default());
    let options = |writer: &str| TableOptions { checkpoint_every: 10, ..TableOptions::of(TABLE, writer) };
    let mut log = open_with(&store(&faulty), &clock, options("a")).await;
    commit(&mut log, &first(0)).await;
    for number in 0..24 {
        commit(&mut log, &batch(0, number * 10, number * 10 + 10)).await;
        log.finish_checkpoint().await;
    }
    let paths = LogPaths::of(TABLE);
    let hint = faulty.below().get(&paths.hint()).await.expect("there").bytes().await.expect("reads");
    let hint: serde_json::Value = serde_json::from_slice(&hint).expect("JSON");
    assert_eq!((hint["version"].as_u64(), hint["numOfAddFiles"].as_u64()), (Some(20), Some(19)));

    let fresh = faulty.other_view();
    let mut again = open_with(&store(&fresh), &clock, options("b")).await;
    assert_eq!(again.checkpoint().await.expect("reads"), log.checkpoint().await.expect("reads"));
    assert_eq!(again.state().tip(), log.state().tip());
    assert_eq!(fresh.calls(Call::Get, "00019.json"), 0);
    commit(&mut again, &batch(0, 240, 250)).await;
    agree(&store(&faulty), None).await;
}

#[tokio::test]
async fn many_segments_are_many_row_groups_and_writers_read_only_the_first() {
    let (faulty, clock) = (FaultyStore::default(), ManualClock::default());
    let mut log = open(&store(&faulty), &clock, "a").await;
    commit(&mut log, &first(0)).await;
    let segments = (0..25_000).map(|at| segment(&format!("s{at}"), 0, span(at, at + 1), hour(at as i64 % 48)));
    commit(&mut log, &Record { advances: vec![step(0, 0, 25_000)], segments: segments.collect() }).await;
    checkpoint(&store(&faulty), 2).await;
    agree(&store(&faulty), None).await;

    let key = LogPaths::of(TABLE).checkpoint(2);
    let bytes = faulty.below().get(&key).await.expect("there").bytes().await.expect("reads");
    let file = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes).expect("Parquet");
    let rows: Vec<_> = file.metadata().row_groups().iter().map(|group| group.num_rows()).collect();
    assert_eq!(rows, [3, 10_000, 10_000, 5_000]);
    let again = open(&store(&faulty), &clock, "b").await;
    assert_eq!(again.version(), 2);
    assert!(again.state().segments().is_none());
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_read_is_passed_over_and_reported() {
    let (faulty, clock) = (FaultyStore::default(), ManualClock::default());
    let mut log = open(&store(&faulty), &clock, "a").await;
    fill(&mut log, 0, 8).await;
    checkpoint(&store(&faulty), 6).await;
    let (below, key) = (faulty.below(), LogPaths::of(TABLE).checkpoint(6));
    let whole = below.get(&key).await.expect("there").bytes().await.expect("reads");
    let mut flipped = whole.to_vec();
    flipped[200..260].fill(0xFF);
    for bad in [whole.slice(..whole.len() / 2), flipped.into(), bytes::Bytes::from_static(b"PAR1PAR1")] {
        below.put(&key, bad.into()).await.expect("puts");
        agree(&store(&faulty), None).await;
        assert_eq!(open(&store(&faulty), &clock, "b").await.version(), 9);
        let options = VerifyOptions { times: Some((hour(900).start(), hour(901).start())), ..VerifyOptions::default() };
        let report = verify_table(&store(&faulty), TABLE, &options).await.expect("reads");
        assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
        assert!(report.findings[0].object.ends_with("06.checkpoint.parquet"));
    }
}

/// A Parquet file as another program might put it there.
fn foreign() -> Vec<u8> {
    let column: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
    let batch = RecordBatch::try_from_iter([("txn", column)]).expect("one column");
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).expect("memory");
    writer.write(&batch).expect("memory");
    writer.into_inner().expect("memory")
}

#[tokio::test]
async fn a_checkpoint_of_another_program_is_passed_over_until_ours_takes_its_place() {
    let (faulty, clock) = (FaultyStore::default(), ManualClock::default());
    let mut log = open(&store(&faulty), &clock, "a").await;
    fill(&mut log, 0, 8).await;
    checkpoint(&store(&faulty), 4).await;
    let (below, paths) = (faulty.below(), LogPaths::of(TABLE));
    below.put(&paths.checkpoint(7), foreign().into()).await.expect("puts");
    below.put(&paths.hint(), r#"{"version":7,"size":1}"#.into()).await.expect("puts");
    agree(&store(&faulty), None).await;
    assert_eq!(open(&store(&faulty), &clock, "b").await.version(), 9);
    let nothing = VerifyOptions { times: Some((hour(900).start(), hour(901).start())), ..VerifyOptions::default() };
    assert!(verify_table(&store(&faulty), TABLE, &nothing).await.expect("reads").is_complete());
    checkpoint(&store(&faulty), 7).await;
    let fresh = faulty.other_view();
    agree(&store(&fresh), None).await;
    assert_eq!(fresh.calls(Call::Get, "00004.checkpoint"), 0, "ours serves");
}

#[tokio::test]
async fn a_hint_is_only_a_hint() {
    let (faulty, clock) = (FaultyStore::default(), ManualClock::default());
    let mut log = open(&store(&faulty), &clock, "a").await;
    fill(&mut log, 0, 8).await;
    checkpoint(&store(&faulty), 4).await;
    let below = faulty.below();
    for hint in ["{\"version\":7,\"size\":1}", "{\"version\":700,\"size\":1}", "nonsense", "{\"version\":0,\"size\":1}"] {
        below.put(&LogPaths::of(TABLE).hint(), hint.as_bytes().to_vec().into()).await.expect("puts");
        agree(&store(&faulty), None).await;
        assert_eq!(open(&store(&faulty), &clock, "b").await.version(), 9, "{hint}");
    }
    below.delete(&LogPaths::of(TABLE).hint()).await.expect("deletes");
    agree(&store(&faulty), None).await;
}

/// Puts another number where the footer of `file` says where the columns of its head row group lie.
fn with_head_at(file: &[u8], offset: i64) -> Option<Vec<u8>> {
    let footer_length = u32::from_le_bytes(file[file.len() - 8..file.len() - 4].try_into().ok()?) as usize;
    let (head, footer) = file.split_at(file.len() - 8 - footer_length);
    let metadata = ParquetMetaDataReader::decode_metadata(&footer[..footer_length]).ok()?;
    let mut groups = metadata.row_groups().to_vec();
    let moved = |column: &ColumnChunkMetaData| {
        column.clone().into_builder().set_data_page_offset(offset).set_dictionary_page_offset(None).build().ok()
    };
    let columns: Option<Vec<_>> = groups[0].columns().iter().map(moved).collect();
    groups[0] = groups[0].clone().into_builder().set_column_metadata(columns?).build().ok()?;
    let metadata = metadata.into_builder().set_row_groups(groups).build();
    let mut changed = head.to_vec();
    ParquetMetaDataWriter::new(&mut changed, &metadata).finish().ok()?;
    Some(changed)
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_points_outside_itself_stops_nobody() {
    let (faulty, clock) = (FaultyStore::default(), ManualClock::default());
    let mut log = open(&store(&faulty), &clock, "a").await;
    fill(&mut log, 0, 8).await;
    for version in [4, 6] {
        checkpoint(&store(&faulty), version).await;
    }
    let (below, key) = (faulty.below(), LogPaths::of(TABLE).checkpoint(6));
    let whole = below.get(&key).await.expect("there").bytes().await.expect("reads");
    for offset in [-5, i64::MIN, 1 << 40, i64::MAX] {
        let bad = with_head_at(&whole, offset).expect("a footer");
        below.put(&key, bad.into()).await.expect("puts");
        agree(&store(&faulty), None).await;
        let fresh = faulty.other_view();
        let opening = tokio::spawn({
            let (store, clock) = (store(&fresh), clock.clone());
            async move { open(&store, &clock, "b").await.version() }
        });
        assert!(clock.advance_until(std::time::Duration::from_secs(60), || opening.is_finished()).await, "{offset}: stuck");
        assert_eq!(opening.await.expect("no panic"), 9);
        // The one below serves instead.
        assert_eq!((fresh.calls(Call::Get, "00004.checkpoint"), fresh.calls(Call::Get, "00003.json")), (1, 0), "{offset}");
    }
}

#[tokio::test]
async fn a_checkpoint_without_its_record_stops_everybody() {
    let faulty = FaultyStore::default();
    let store = store(&faulty);
    let mut log = open(&store, &ManualClock::default(), "a").await;
    fill(&mut log, 0, 8).await;
    for version in [4, 9] {
        checkpoint(&store, version).await;
    }
    for gone in [9, 8, 4] {
        faulty.below().delete(&LogPaths::of(TABLE).record(gone)).await.expect("deletes");
        for history in [History::Recent, History::Whole] {
            let error = TableView::load(&store, TABLE, None, history).await.expect_err("the log was cut");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        }
        let rng = fastrand::Rng::with_seed(1);
        let opened = TableLog::open(&store, options("b"), Arc::new(ManualClock::default()), rng, Arc::new(())).await;
        let error = opened.expect_err("it would fork the log");
        assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("00009.json is missing"), "{error}");
    }
}

#[tokio::test]
async fn a_checkpoint_that_may_not_be_read_is_not_passed_over() {
    let faulty = FaultyStore::default();
    let mut log = open(&store(&faulty), &ManualClock::default(), "a").await;
    fill(&mut log, 0, 8).await;
    checkpoint(&store(&faulty), 4).await;
    faulty.inject(When::at(Call::Get).to("checkpoint.parquet"), Fault::Deny);
    let error = TableView::load(&store(&faulty), TABLE, None, History::Recent).await.expect_err("no rights");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}
