//! Lanes, records and segments made by hand.

use std::sync::Arc;

use object_store::ObjectStoreExt;
use tapedeck_common::commit::{Advance, Appended, CommitLog, Record, SegmentLane, SegmentRef};
use tapedeck_common::{LaneId, Position, Span, Timestamp, Window};
use tapedeck_sim::ManualClock;
use tapedeck_storage::layout;
use tapedeck_storage::log::checkpoint::{Shape, write_checkpoint};
use tapedeck_storage::log::{History, LogReader, TableLog, TableOptions, TableView};
use tapedeck_storage::store::Store;

pub(crate) const TABLE: &str = "orders";
pub(crate) const SOURCE: &str = "kafka/cluster/AAAAAAAAAAAAAAAAAAAAAA/0";

pub(crate) fn lane(partition: i32) -> LaneId {
    LaneId::new(SOURCE, partition)
}

pub(crate) fn span(from: u64, until: u64) -> Span {
    Span::new(Position::new(from), Position::new(until)).expect("forward")
}

pub(crate) fn hour(number: i64) -> Window {
    Window::of(Timestamp::from_micros((495_000 + number) * 3_600_000_000))
}

/// A segment that holds all of `span` of one lane. No object lies behind it.
pub(crate) fn segment(name: &str, partition: i32, span: Span, hour: Window) -> SegmentRef {
    let rows = span.len();
    SegmentRef {
        path: format!("topic=orders/date={}/hour={:02}/{name}.parquet", hour.date(), hour.hour()),
        source: Arc::from(SOURCE),
        topic: Arc::from("orders"),
        window: hour,
        rows,
        size: 5,
        blake3: blake3::hash(name.as_bytes()).to_hex().to_string(),
        modified: Timestamp::from_micros(1_795_168_800_123_000),
        times: (hour.start(), Timestamp::from_micros(hour.start().micros() + 1_000 * rows as i64)),
        null_keys: 1,
        null_values: 0,
        lanes: vec![SegmentLane {
            partition,
            first: span.from(),
            last: Position::new(span.until().get() - 1),
            rows,
            payload_bytes: 100 * rows,
        }],
    }
}

pub(crate) fn start(partition: i32, at: u64) -> Advance {
    Advance { lane: lane(partition), expected: None, span: span(at, at), rows: 0, skipped: 0, gap: None }
}

pub(crate) fn step(partition: i32, from: u64, until: u64) -> Advance {
    let span = span(from, until);
    Advance { lane: lane(partition), expected: Some(span.from()), span, rows: span.len(), skipped: 0, gap: None }
}

/// The lane's start record.
pub(crate) fn first(partition: i32) -> Record {
    Record { advances: vec![start(partition, 0)], segments: Vec::new() }
}

/// A batch of one lane, with its one segment.
pub(crate) fn batch(partition: i32, from: u64, until: u64) -> Record {
    let name = format!("p{partition}-{from}");
    let segment = segment(&name, partition, span(from, until), hour(from as i64 / 100));
    Record { advances: vec![step(partition, from, until)], segments: vec![segment] }
}

pub(crate) fn options(writer: &str) -> TableOptions {
    TableOptions { checkpoint_every: 1_000_000, ..TableOptions::of(TABLE, writer) }
}

pub(crate) async fn open(store: &Store, clock: &ManualClock, writer: &str) -> TableLog {
    open_with(store, clock, options(writer)).await
}

pub(crate) async fn open_with(store: &Store, clock: &ManualClock, options: TableOptions) -> TableLog {
    let seed = options.writer.bytes().fold(0, |seed, byte| seed * 31 + u64::from(byte));
    let rng = fastrand::Rng::with_seed(seed);
    TableLog::open(store, options, Arc::new(clock.clone()), rng, Arc::new(())).await.expect("opens")
}

/// Appends, and expects it to be accepted.
pub(crate) async fn commit(log: &mut TableLog, record: &Record) -> u64 {
    match log.append(record).await.expect("the store answers") {
        Appended::Committed(receipt) => receipt.version(),
        Appended::Stale(lanes) => panic!("refused: {lanes:?}"),
    }
}

/// A lane with its start record and `batches` of 10 positions.
pub(crate) async fn fill(log: &mut TableLog, partition: i32, batches: u64) {
    commit(log, &first(partition)).await;
    for number in 0..batches {
        commit(log, &batch(partition, number * 10, number * 10 + 10)).await;
    }
}

pub(crate) async fn view(store: &Store) -> TableView {
    TableView::load(store, TABLE, None, History::Whole).await.expect("reads")
}

/// Writes the checkpoint of records 0 to `version`.
pub(crate) async fn checkpoint(store: &Store, version: u64) {
    write_checkpoint(&LogReader::new(store, TABLE), version, Shape::default()).await.expect("writes");
}

/// Puts something of the right size where the segments of `record` say that an object lies.
pub(crate) async fn put_objects(store: &Store, record: &Record) {
    for segment in &record.segments {
        let key = layout::table_object(TABLE, &segment.path);
        store.store.put(&key, vec![b'x'; segment.size as usize].into()).await.expect("puts");
    }
}
