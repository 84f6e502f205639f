//! The archive's own machinery on a store: probe, two writers of one log, segments in one request and in parts, verification.

use std::sync::Arc;

use object_store::ObjectStoreExt;
use tapedeck_common::commit::{Appended, CommitLog, Record};
use tapedeck_common::error::report;
use tapedeck_storage::archive::{Archive, TABLE_PER_TOPIC};
use tapedeck_storage::layout;
use tapedeck_storage::log::{History, LogPaths, TableLog, TableOptions, TableView, VerifyOptions, verify_table};
use tapedeck_storage::probe::probe;
use tapedeck_storage::segment::{SegmentError, SegmentStore};
use tapedeck_storage::store::Store;

use crate::kit::{Given, Made, advance, segment};

const WRITERS: i32 = 2;

/// Batches of each writer; the first holds a segment of several parts.
const BATCHES: u64 = 12;
const ROWS: u64 = 20;
const LARGE: usize = 1 << 20;
const SMALL: usize = 100;

pub(super) async fn the_probe_lets_it_pass(given: &mut Given) {
    let probed = probe(&given.store, &*given.clock, &mut given.rng).await.unwrap_or_else(|error| panic!("{}", report(&error)));
    assert_eq!(probed.refused + probed.throttled, probed.creators - 1, "{probed}");
    println!("{}: {probed}", given.store.kind);
}

/// Brings a segment into the store, as the archiver does: whole parts on the way, the rest at the end.
pub(crate) async fn store_segment(
    store: &SegmentStore,
    table: &str,
    made: &Made,
    rng: fastrand::Rng,
) -> Result<(), SegmentError> {
    let mut upload = store.upload(layout::table_object(table, &made.by.path), rng);
    let (last, before) = made.parts.split_last().expect("not empty");
    for part in before {
        upload.push(part.clone(), None).await?;
    }
    upload.finish(vec![last.clone()], made.by.size).await
}

async fn writer(mut given: Given, table: String, partition: i32) {
    let options = TableOptions { checkpoint_every: 10, ..TableOptions::of(&table, format!("w{partition}")) };
    let (clock, rng) = (Arc::clone(&given.clock), given.rng.fork());
    let mut log = TableLog::open(&given.store, options, clock, rng, Arc::new(())).await.expect("opens");
    let segments = given.store.segments(Arc::clone(&given.clock));
    append(&mut log, Record { advances: vec![advance(partition, None, 0, 0)], segments: Vec::new() }).await;
    for batch in 0..BATCHES {
        let from = batch * ROWS;
        let made = segment(&mut given, partition, from, ROWS, if batch == 0 { LARGE } else { SMALL });
        store_segment(&segments, &table, &made, given.rng.fork()).await.expect("stores");
        let advances = vec![advance(partition, Some(from), from + ROWS, ROWS)];
        append(&mut log, Record { advances, segments: vec![made.by] }).await;
    }
    log.finish_checkpoint().await;
}

async fn append(log: &mut TableLog, record: Record) {
    let appended = log.append(&record).await.expect("answers");
    assert!(matches!(appended, Appended::Committed(_)), "{appended:?}");
}

pub(super) async fn writers_share_a_log_and_their_segments_verify(given: &mut Given) {
    let (store, table) = (given.store.clone(), format!("orders {}", given.name()));
    let archive = Archive::open_or_create(store.clone(), TABLE_PER_TOPIC, &*given.clock, &mut given.rng).await.expect("opens");
    archive.settle_topic(&table, &table, &*given.clock, &mut given.rng).await.expect("settles");
    let writers: Vec<_> = (0..WRITERS)
        .map(|partition| {
            let own = Given { store: store.clone(), clock: Arc::clone(&given.clock), rng: given.rng.fork() };
            tokio::spawn(writer(own, table.clone(), partition))
        })
        .collect();
    for writer in writers {
        writer.await.expect("it committed everything");
    }
    verified(&store, &table).await;
    let recent = TableView::load(&store, &table, None, History::Recent).await.expect("reads");
    let whole = TableView::load(&store, &table, None, History::Whole).await.expect("reads");
    assert_eq!((&recent.positions, recent.segments.len()), (&whole.positions, whole.segments.len()));
    assert!(recent.history_from > whole.history_from, "a checkpoint was used");
    store.patient.head(&LogPaths::of(&table).hint()).await.expect("a hint");
    assert!(Archive::open(store).await.expect("opens").tables().await.expect("lists").contains(&table));
}

async fn verified(store: &Store, table: &str) {
    let report = verify_table(store, table, &VerifyOptions { deep: true, ..VerifyOptions::default() }).await.expect("reads");
    assert!(report.is_complete(), "{:?}", report.findings);
    let (writers, rows) = (WRITERS as u64, WRITERS as u64 * BATCHES * ROWS);
    assert_eq!((report.version, report.rows, report.rows_read), (writers * (BATCHES + 1), rows, rows));
}
