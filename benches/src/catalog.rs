//! Logs of very many segments, on disk, without the segments: what planning and checkpoints are measured on.
//! Promise: the same log for the same number, made in memory that does not grow with it. Never: an event.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use tapedeck_common::commit::{Advance, Record, SegmentLane, SegmentRef};
use tapedeck_common::{LaneId, Position, Span, Timestamp, Window};
use tapedeck_storage::log::checkpoint::{Shape, write_checkpoint};
use tapedeck_storage::log::genesis::{Genesis, Writers};
use tapedeck_storage::log::record::{self, Header};
use tapedeck_storage::log::{LogPaths, LogReader};
use tapedeck_storage::store::{Store, StoreOptions, open_store};

/// The table, and its one topic.
pub const TABLE: &str = "bench";

/// Segments of an hour: twelve writers that commit every 43 seconds.
pub const SEGMENTS_PER_HOUR: u64 = 1_000;

/// Segments of a record while the log is made; real ones are far smaller.
const SEGMENTS_PER_RECORD: u64 = 10_000;

/// Segments between two checkpoints while the log is made: few enough to hold, many enough that copying does not take hours.
const SEGMENTS_PER_CHECKPOINT: u64 = 250_000;

/// Events of a segment.
const ROWS: u64 = 10_000;

const SOURCE: &str = "kafka/2YoQeSRIQDGPlyJtbUoeAw/Xk2nBqVTR2aXk7XQ0vJtEQ/0";

/// The first hour, in hours since 1970.
const FIRST_HOUR: i64 = 480_000;

/// A log on its way.
#[derive(Debug)]
pub struct Catalog {
    /// The archive's folder.
    pub folder: PathBuf,
    /// The number of the next record.
    pub next: u64,
    prev: Option<String>,
    segments: u64,
    /// The last hour that was begun.
    pub newest: Window,
}

/// The archive in `folder`.
pub fn open(folder: &Path) -> Result<Store> {
    Ok(open_store(&StoreOptions::at(format!("file://{}", folder.display())))?)
}

impl Catalog {
    /// A log of `segments` in `folder`, with a checkpoint at its end.
    pub fn make(folder: &Path, segments: u64) -> Result<Self> {
        let mut catalog = Self { folder: folder.to_owned(), next: 0, prev: None, segments: 0, newest: hour(0) };
        std::fs::create_dir_all(catalog.path(&LogPaths::of(TABLE).record(0)).parent().context("a folder")?)?;
        let genesis = Genesis { table_id: TABLE.to_owned(), table: TABLE.to_owned(), created_ms: 0, writers: Writers::OnlyUs };
        catalog.put(&record::encode_genesis(&catalog.header(), &genesis))?;
        let start = Advance { lane: lane(), expected: None, span: span(0, 0)?, rows: 0, skipped: 0, gap: None };
        catalog.put(&record::encode(&catalog.header(), &Record { advances: vec![start], segments: Vec::new() }))?;
        while catalog.segments < segments {
            let until = segments.min(catalog.segments + SEGMENTS_PER_CHECKPOINT);
            while catalog.segments < until {
                let count = SEGMENTS_PER_RECORD.min(until - catalog.segments);
                catalog.commit((0..count).map(|_| 0))?;
            }
            // A record of ordinary size at the end, since every reader reads that one.
            catalog.commit(std::iter::once(0))?;
            let shape = Shape { changes_max: usize::MAX, ..Shape::default() };
            catalog.checkpoint(shape)?;
            catalog.forget()?;
        }
        Ok(catalog)
    }

    /// A hundred ordinary records: eleven segments of the newest hours, and a late one.
    pub fn hundred_records(&mut self) -> Result<()> {
        for _ in 0..100 {
            self.commit([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 7].into_iter())?;
        }
        Ok(())
    }

    /// The checkpoint of the newest record.
    pub fn checkpoint(&self, shape: Shape) -> Result<()> {
        let store = open(&self.folder)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
        Ok(runtime.block_on(write_checkpoint(&LogReader::new(&store, TABLE), self.next - 1, shape))?)
    }

    /// Takes the newest checkpoint away, and the hint to it.
    pub fn drop_checkpoint(&self) -> Result<()> {
        std::fs::remove_file(self.path(&LogPaths::of(TABLE).checkpoint(self.next - 1)))?;
        Ok(std::fs::remove_file(self.path(&LogPaths::of(TABLE).hint()))?)
    }

    /// How large the newest checkpoint is.
    pub fn checkpoint_bytes(&self) -> Result<u64> {
        Ok(std::fs::metadata(self.path(&LogPaths::of(TABLE).checkpoint(self.next - 1)))?.len())
    }

    /// Takes everything away that the newest checkpoint makes needless: the disk is small.
    fn forget(&self) -> Result<()> {
        let paths = LogPaths::of(TABLE);
        let newest = [paths.record(self.next - 1), paths.checkpoint(self.next - 1), paths.hint()].map(|key| self.path(&key));
        for entry in std::fs::read_dir(self.folder.join(paths.folder().as_ref()))? {
            let path = entry?.path();
            if !newest.contains(&path) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn path(&self, key: &impl AsRef<str>) -> PathBuf {
        self.folder.join(key.as_ref())
    }

    fn header(&self) -> Header {
        Header {
            timestamp_ms: 1_795_168_800_000 + self.next as i64,
            engine: "tapedeck/bench".to_owned(),
            writer: "bench".to_owned(),
            txn_id: format!("txn-{}", self.next),
            prev: self.prev.clone(),
        }
    }

    fn put(&mut self, body: &[u8]) -> Result<()> {
        self.prev = Some(record::hash(body));
        std::fs::write(self.path(&LogPaths::of(TABLE).record(self.next)), body)?;
        self.next += 1;
        Ok(())
    }

    /// A record with a segment for each number: so many hours before the newest.
    fn commit(&mut self, hours_ago: impl Iterator<Item = i64>) -> Result<()> {
        let from = self.segments * ROWS;
        let mut segments = Vec::new();
        for ago in hours_ago {
            self.newest = hour((self.segments / SEGMENTS_PER_HOUR) as i64);
            segments.push(segment(self.segments, hour((self.segments / SEGMENTS_PER_HOUR) as i64 - ago)));
            self.segments += 1;
        }
        let span = span(from, self.segments * ROWS)?;
        let advance = Advance { lane: lane(), expected: Some(span.from()), span, rows: span.len(), skipped: 0, gap: None };
        self.put(&record::encode(&self.header(), &Record { advances: vec![advance], segments }))
    }
}

fn hour(number: i64) -> Window {
    Window::of(Timestamp::from_micros((FIRST_HOUR + number) * 3_600_000_000))
}

fn lane() -> LaneId {
    LaneId::new(SOURCE, 0)
}

fn span(from: u64, until: u64) -> Result<Span> {
    Ok(Span::new(Position::new(from), Position::new(until))?)
}

/// As hard to compress as real ones: names and checksums are noise.
fn segment(number: u64, window: Window) -> SegmentRef {
    let noise = record::hash(&number.to_le_bytes());
    let at = |second: u64| Timestamp::from_micros(window.start().micros() + (number % 3_000 + second) as i64 * 1_000_000);
    let name = format!("{}-{}-7{}-b{}-{}", &noise[..8], &noise[8..12], &noise[12..15], &noise[15..18], &noise[18..30]);
    SegmentRef {
        path: format!("topic={TABLE}/date={}/hour={:02}/{name}.parquet", window.date(), window.hour()),
        source: Arc::from(SOURCE),
        topic: Arc::from(TABLE),
        window,
        rows: ROWS,
        size: 2_000_000 + number % 100_000,
        blake3: noise,
        modified: at(700),
        times: (at(0), at(599)),
        null_keys: 0,
        null_values: number % 7,
        lanes: vec![SegmentLane {
            partition: 0,
            first: Position::new(number * ROWS),
            last: Position::new(number * ROWS + ROWS - 1),
            rows: ROWS,
            payload_bytes: 11_000_000 + number % 1_000_000,
        }],
    }
}

/// Keys of the layout are what the bench writes by itself, so they are checked against it once.
#[test]
fn paths_are_those_of_the_layout() {
    let segment = segment(7, hour(3));
    assert_eq!(tapedeck_storage::layout::segment_window(&segment.path), Some(hour(3)));
}
