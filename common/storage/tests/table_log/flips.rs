//! P8: whatever single bit of a segment or of a record is wrong, somebody says so before an event leaves the archive.
//!
//! Every bit, not a sample. Segments are looked at as `archiver verify --deep` does it and as readers open them; records as both
//! read them. The newest record has no successor yet that vouches for it: what nobody finds there must be words that nobody
//! acts on, and the next record finds those too. A checkpoint that is damaged is passed over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::Value;
use tapedeck_common::ErrorKind;
use tapedeck_common::columns::{Columns, EventFields};
use tapedeck_common::commit::{Advance, Checkpoint, GapCause, Record, SegmentRef};
use tapedeck_common::event::TimeKind;
use tapedeck_common::{LaneId, Position, Timestamp};
use tapedeck_sim::ManualClock;
use tapedeck_storage::layout;
use tapedeck_storage::log::verify::{FindingKind, TableReport};
use tapedeck_storage::log::view::GapNote;
use tapedeck_storage::log::{History, LogPaths, Slice, TableView, VerifyOptions, verify_table};
use tapedeck_storage::segment::{SegmentError, SegmentReader, SegmentWriter, WriterOptions, verify_object};
use tapedeck_storage::store::{Store, StoreError};

use crate::kit::*;

/// Rows that make about 20 KiB.
const ROWS: u64 = 300;

/// A table with its objects in memory.
struct World {
    store: Store,
    below: Arc<dyn ObjectStore>,
    segments: Vec<SegmentRef>,
}

impl World {
    /// Record 1 begins the lanes, record 2 holds a segment of about 20 KiB; with `rows_after` there is a record 3, with a gap,
    /// an event left out, and a small segment.
    async fn of_writer(writer: &str, rows_after: u64) -> Self {
        let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let mut world = Self { store: Store::of(Arc::clone(&below)), below, segments: Vec::new() };
        let mut log = open(&world.store, &ManualClock::default(), writer).await;
        commit(&mut log, &Record { advances: vec![start(0, 0), start(1, 5)], segments: Vec::new() }).await;
        let segment = world.segment("a", 0, 0..ROWS).await;
        commit(&mut log, &Record { advances: vec![step(0, 0, ROWS)], segments: vec![segment] }).await;
        if rows_after > 0 {
            let segment = world.segment("b", 0, ROWS..ROWS + rows_after).await;
            let skipping = Advance { rows: rows_after, skipped: 1, ..step(0, ROWS, ROWS + rows_after + 4) };
            let gap = Advance { rows: 0, gap: Some(GapCause::Retention), ..step(1, 5, 90) };
            commit(&mut log, &Record { advances: vec![skipping, gap], segments: vec![segment] }).await;
        }
        world
    }

    async fn new(rows_after: u64) -> Self {
        Self::of_writer("a", rows_after).await
    }

    /// A stored segment with everything that a segment may hold, and values that do not compress.
    async fn segment(&mut self, name: &str, partition: i32, positions: std::ops::Range<u64>) -> SegmentRef {
        let mut noise = fastrand::Rng::with_seed(positions.start);
        let mut columns = Columns::default();
        for position in positions {
            let mut value = vec![0; 56];
            noise.fill(&mut value);
            let event = EventFields {
                position: Position::new(position),
                time: Timestamp::from_micros(hour(0).start().micros() + 7_001 * position as i64),
                time_kind: TimeKind::Create,
                leader_epoch: (position % 5 > 0).then_some(3),
                key: (position % 3 > 0).then_some(&value[..8]),
                value: (position % 11 > 0).then_some(&value[..]),
            };
            columns.push(event, [("trace", Some(&b"abc"[..])), ("null", None)], []);
        }
        let mut writer = SegmentWriter::new("orders".into(), SOURCE.into(), hour(0), hour(0).start(), &WriterOptions::default());
        writer.write_chunk(vec![(partition, columns)]);
        let mut finished = writer.finish();
        let object = finished.take_parts().concat();
        let path = segment(name, partition, span(0, 1), hour(0)).path;
        self.put(&layout::table_object(TABLE, &path), object).await;
        let segment = finished.into_ref(path, Timestamp::from_micros(1_795_168_800_000_000));
        self.segments.push(segment.clone());
        segment
    }

    fn key(&self, segment: usize) -> Path {
        layout::table_object(TABLE, &self.segments[segment].path)
    }

    async fn get(&self, key: &Path) -> Bytes {
        self.below.get(key).await.expect("it is there").bytes().await.expect("memory")
    }

    async fn put(&self, key: &Path, object: impl Into<Bytes>) {
        let bytes: Bytes = object.into();
        self.below.put(key, bytes.into()).await.expect("memory");
    }

    async fn verify(&self) -> TableReport {
        let deep = VerifyOptions { deep: true, ..VerifyOptions::default() };
        verify_table(&self.store, TABLE, &deep).await.expect("memory answers")
    }

    /// As a replay begins: the table's view.
    async fn load(&self) -> Result<TableView, StoreError> {
        TableView::load(&self.store, TABLE, None, History::Recent).await
    }

    /// Opens a segment as readers do.
    async fn open(&self, segment: usize) -> Result<SegmentReader, SegmentError> {
        SegmentReader::open_vouched(Arc::clone(&self.store.store), self.key(segment), &self.segments[segment]).await
    }
}

fn kinds(report: &TableReport) -> Vec<FindingKind> {
    report.findings.iter().map(|finding| finding.kind).collect()
}

fn flipped(object: &[u8], bit: usize) -> Vec<u8> {
    let mut flipped = object.to_vec();
    flipped[bit / 8] ^= 1 << (bit % 8);
    flipped
}

/// Checks every number below `count`, on all cores, each with a world of its own.
fn each(count: usize, begin: impl AsyncFn() -> World + Sync, check: impl AsyncFn(&World, usize) + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for first in 0..threads {
            let (begin, check) = (&begin, &check);
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
                runtime.block_on(async {
                    let world = begin().await;
                    for number in (first..count).step_by(threads) {
                        check(&world, number).await;
                    }
                });
            });
        }
    });
}

async fn small() -> World {
    World::new(0).await
}

async fn larger() -> World {
    World::new(3).await
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(work)
}

/// An object of the world that [`each`] makes; it is the same in every thread.
fn object_of(begin: impl AsyncFn() -> World, key: impl Fn(&World) -> Path) -> Bytes {
    block_on(async {
        let world = begin().await;
        assert!(world.verify().await.is_complete());
        world.get(&key(&world)).await
    })
}

#[test]
fn every_wrong_bit_of_a_segment_is_found() {
    let whole = object_of(small, |world| world.key(0));
    assert!((18_000..24_000).contains(&whole.len()), "{} bytes", whole.len());
    each(whole.len() * 8, small, async |world, bit| {
        let key = world.key(0);
        world.put(&key, flipped(&whole, bit)).await;
        let found = verify_object(world.below.as_ref(), &key, &world.segments[0]).await.expect_err("it is broken");
        assert_eq!(found.kind(), ErrorKind::Corrupt, "bit {bit}: {found}");
        let refused = world.open(0).await.expect_err("nobody reads it");
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "bit {bit}: {refused}");
        // The whole of `archiver verify --deep` does nothing else with it, and takes a hundred times as long.
        if bit % 61 == 0 {
            let report = world.verify().await;
            assert_eq!(kinds(&report), [FindingKind::Checksum], "bit {bit}");
            assert_eq!(report.findings[0].object, key.to_string());
        }
    });
    println!("all {} flips of a segment of {} bytes were found", whole.len() * 8, whole.len());
}

#[test]
fn every_wrong_bit_of_a_record_that_has_a_successor_stops_every_reader() {
    let record = LogPaths::of(TABLE).record(2);
    let whole = object_of(larger, |_| record.clone());
    each(whole.len() * 8, larger, async |world, bit| {
        world.put(&record, flipped(&whole, bit)).await;
        assert!(world.load().await.is_err(), "bit {bit}");
        assert!(!world.verify().await.is_complete(), "bit {bit}");
    });
    println!("all {} flips of a record of {} bytes were found", whole.len() * 8, whole.len());
}

/// What a record says that somebody acts on: without times and names for people, and without counts that only reports show.
fn acted_on(record: &[u8]) -> Vec<Vec<Value>> {
    const ALL: [(&str, &[&str]); 3] = [
        ("/commitInfo/tapedeck", &["v", "lanes", "advance", "gaps", "sweep", "prev"]),
        ("/txn", &["appId", "version"]),
        ("/add", &["path", "partitionValues", "size", "dataChange", "stats", "tags"]),
    ];
    let lines = record.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let said = |line: &[u8]| {
        let action: Value = serde_json::from_slice(line).expect("it was read before");
        let found = ALL.iter().filter_map(|(place, keys)| Some((action.pointer(place)?, keys)));
        found.flat_map(|(of, keys)| keys.iter().map(|key| of[*key].clone()).collect::<Vec<_>>()).collect()
    };
    lines.map(said).collect()
}

#[test]
fn every_wrong_bit_of_the_newest_record_is_found_or_is_in_words_that_nobody_acts_on() {
    let record = LogPaths::of(TABLE).record(3);
    let whole = object_of(larger, |_| record.clone());
    let meant = acted_on(&whole);
    let (refused, found, harmless) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    each(whole.len() * 8, larger, async |world, bit| {
        let wrong = flipped(&whole, bit);
        world.put(&record, wrong.clone()).await;
        let (reads, complete) = (world.load().await.is_ok(), world.verify().await.is_complete());
        match (reads, complete) {
            (false, false) => refused.fetch_add(1, Ordering::Relaxed),
            (true, false) => found.fetch_add(1, Ordering::Relaxed),
            (true, true) => {
                assert_eq!(acted_on(&wrong), meant, "bit {bit}: {:?}", String::from_utf8_lossy(&wrong));
                harmless.fetch_add(1, Ordering::Relaxed)
            }
            (false, true) => panic!("bit {bit}: readers refuse what verify calls complete"),
        };
    });
    println!(
        "{} flips of the newest record: {} stop every reader, {} are found by verify --deep, {} are in words for people",
        whole.len() * 8,
        refused.into_inner(),
        found.into_inner(),
        harmless.into_inner()
    );
}

/// What a view shows: its version, segments, positions, gaps, and events left out.
type Shown = (u64, Vec<SegmentRef>, Checkpoint, Vec<GapNote>, BTreeMap<LaneId, u64>);

/// What readers get out of a table by way of its checkpoint: all of it, and one hour.
async fn seen(world: &World) -> Result<[Shown; 2], StoreError> {
    let (from, until) = (Some(hour(0).start()), Some(hour(0).end()));
    let slice = Slice { topics: ["orders".to_owned()].into(), from, until };
    let (all, some) = (world.load().await?, TableView::load_matching(&world.store, TABLE, None, &slice).await?);
    let shown = |view: TableView| {
        let segments = view.segments.into_iter().map(|live| live.segment).collect();
        (view.version, segments, view.positions, view.gaps, view.skipped)
    };
    Ok([shown(all), shown(some)])
}

async fn with_checkpoint() -> World {
    let world = larger().await;
    checkpoint(&world.store, 3).await;
    world
}

/// Each flip takes two looks at the whole table, so only one in 47 is tried; `FLIPS_OF_CHECKPOINT=1` tries all of them.
#[test]
fn no_wrong_bit_of_a_checkpoint_changes_what_readers_see() {
    let step: usize = std::env::var("FLIPS_OF_CHECKPOINT").ok().and_then(|text| text.parse().ok()).unwrap_or(47);
    let key = LogPaths::of(TABLE).checkpoint(3);
    let whole = object_of(with_checkpoint, |_| key.clone());
    let meant = block_on(async { seen(&with_checkpoint().await).await.expect("whole") });
    let refused = AtomicUsize::new(0);
    each(whole.len() * 8 / step, with_checkpoint, async |world, number| {
        let bit = number * step;
        world.put(&key, flipped(&whole, bit)).await;
        match seen(world).await {
            Ok(found) => assert_eq!(found, meant, "bit {bit} of {}", whole.len() * 8),
            Err(_) => {
                refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let (flips, refused) = (whole.len() * 8 / step, refused.into_inner());
    println!("{flips} flips of a checkpoint of {} bytes: none changes what readers see, {refused} stop them", whole.len());
}

#[tokio::test]
async fn what_was_cut_short_is_found() {
    let world = World::new(3).await;
    let key = world.key(0);
    let whole = world.get(&key).await;
    for length in (0..whole.len()).step_by(7).chain([whole.len() - 1]) {
        world.put(&key, whole.slice(..length)).await;
        assert_eq!(kinds(&world.verify().await), [FindingKind::Size], "{length} bytes");
        assert!(world.open(0).await.is_err(), "{length} bytes");
    }
    world.put(&key, whole).await;
    for version in [2, 3] {
        let record = LogPaths::of(TABLE).record(version);
        let whole = world.get(&record).await;
        for length in 0..whole.len() {
            world.put(&record, whole.slice(..length)).await;
            assert!(world.load().await.is_err(), "{length} bytes of record {version}");
            assert!(!world.verify().await.is_complete(), "{length} bytes of record {version}");
        }
        world.put(&record, whole).await;
    }
    assert!(world.verify().await.is_complete());
}

#[tokio::test]
async fn two_objects_that_changed_places_are_found() {
    // As many rows, so that only the bytes differ.
    let world = World::new(ROWS).await;
    let paths = LogPaths::of(TABLE);
    for (one, other) in [(world.key(0), world.key(1)), (paths.record(2), paths.record(3))] {
        let (first, second) = (world.get(&one).await, world.get(&other).await);
        world.put(&one, second.clone()).await;
        world.put(&other, first.clone()).await;
        assert!(world.verify().await.findings.len() >= 2, "{one} and {other}");
        if one == world.key(0) {
            for segment in [0, 1] {
                assert_eq!(world.open(segment).await.expect_err("another's").kind(), ErrorKind::Corrupt);
            }
        } else {
            assert!(world.load().await.is_err(), "{one} and {other}");
        }
        world.put(&one, first).await;
        world.put(&other, second).await;
    }
    assert!(world.verify().await.is_complete());
}

/// A store that brings back what once stood there, or a neighbour.
#[tokio::test]
async fn a_stale_record_is_found() {
    let (world, elsewhere) = (World::new(3).await, World::of_writer("b", 3).await);
    let paths = LogPaths::of(TABLE);
    for version in [1, 2, 3] {
        let record = paths.record(version);
        let honest = world.get(&record).await;
        for stale in [world.get(&paths.record(version - 1)).await, elsewhere.get(&record).await] {
            world.put(&record, stale).await;
            assert!(world.load().await.is_err(), "record {version}");
            assert!(!world.verify().await.is_complete(), "record {version}");
        }
        world.put(&record, honest).await;
    }
    assert!(world.verify().await.is_complete());
}
