//! Reads segments back: by ranges, pruned by the page index, decoded a row group at a time.
//!
//! Promises: exactly the asked events, in the segment's order; only pages that can hold one are fetched; what cannot be
//! decoded is `Corrupt` and names the object. Never: trusts a footer before its numbers were looked at.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use bytes::Bytes;
use futures::FutureExt;
use object_store::ObjectStore;
use object_store::path::Path;
use parquet::DecodeResult;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowPredicateFn, ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, RowFilter, RowSelection,
};
use parquet::arrow::push_decoder::{ParquetPushDecoder, ParquetPushDecoderBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataPushDecoder};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use tapedeck_common::commit::SegmentRef;
use tapedeck_common::{ErrorKind, Span, Timestamp};
use tokio::task::JoinHandle;

use super::batch::EventBatch;
use super::error::SegmentError;
use super::fetch::{ObjectBytes, verify_bytes};
use crate::schema::{LEAVES, Leaf, metadata, parquet_schema, view_schema};

/// Rows decoded at once: eight times as many no longer fit the CPU's cache and cost 12 % more.
const BATCH_ROWS: usize = 1024;

/// The end of the object that is fetched first: footers of most segments, page index included, fit.
const TAIL_BYTES: u64 = 128 * 1024;

/// Limits that no segment of ours comes near; past them a footer is refused before anything is allocated for it.
const FOOTER_BYTES_MAX: u64 = 256 * 1024 * 1024;
const ROW_GROUPS_MAX: usize = 65_536;
const CHUNK_BYTES_MAX: i64 = 8 * 1024 * 1024 * 1024;

/// Which columns a scan reads. The source is the same for a whole segment and never read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Projection {
    /// Whole events.
    #[default]
    Events,
    /// Whole events, and when each was archived.
    Rows,
    /// Events without headers: a third faster where headers weigh much.
    WithoutHeaders,
    /// Partitions, positions and times.
    Places,
}

/// Which events of a segment are wanted, and how they are read.
#[derive(Debug, Clone)]
pub struct Scan {
    /// The columns.
    pub projection: Projection,
    /// Event times from the first moment until before the second.
    pub times: Option<(Timestamp, Timestamp)>,
    /// Only these partitions, and of each only these positions.
    pub lanes: Option<BTreeMap<i32, Span>>,
    /// Rows of a batch.
    pub batch_rows: usize,
    /// The next row group is fetched ahead if its bytes in the store are not more than this.
    pub ahead_bytes: u64,
}

impl Default for Scan {
    fn default() -> Self {
        Self { projection: Projection::Events, times: None, lanes: None, batch_rows: BATCH_ROWS, ahead_bytes: 0 }
    }
}

impl Scan {
    fn leaves(&self) -> Vec<usize> {
        let wanted = |leaf: usize| {
            let places = [Leaf::EventTime, Leaf::SourcePartition, Leaf::SourceOffset];
            let is = |leaves: &[Leaf]| leaves.iter().any(|other| *other as usize == leaf);
            match self.projection {
                Projection::Places => is(&places),
                Projection::WithoutHeaders => !is(&[Leaf::ArchivedAt, Leaf::Source, Leaf::HeaderKey, Leaf::HeaderValue]),
                Projection::Rows => !is(&[Leaf::Source]),
                Projection::Events => !is(&[Leaf::ArchivedAt, Leaf::Source]),
            }
        };
        (0..LEAVES).filter(|leaf| wanted(*leaf)).collect()
    }

    fn is_filtered(&self) -> bool {
        self.times.is_some() || self.lanes.is_some()
    }

    fn wants(&self, time: i64, partition: i32, position: i64) -> bool {
        let in_time = self.times.is_none_or(|(from, until)| from.micros() <= time && time < until.micros());
        let in_lane = |lanes: &BTreeMap<i32, Span>| {
            lanes.get(&partition).is_some_and(|span| span.from().as_i64() <= position && position < span.until().as_i64())
        };
        in_time && self.lanes.as_ref().is_none_or(in_lane)
    }

    /// Whether a page with these bounds, ends included, can hold a wanted event.
    fn may_want(&self, times: (i64, i64), partitions: (i32, i32), positions: (i64, i64)) -> bool {
        let in_time = self.times.is_none_or(|(from, until)| from.micros() <= times.1 && times.0 < until.micros());
        let in_lanes = |lanes: &BTreeMap<i32, Span>| {
            let meets = |span: &Span| span.from().as_i64() <= positions.1 && positions.0 < span.until().as_i64();
            partitions.0 <= partitions.1 && lanes.range(partitions.0..=partitions.1).any(|(_, span)| meets(span))
        };
        in_time && self.lanes.as_ref().is_none_or(in_lanes)
    }
}

/// An open segment: its footer and page index are in memory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SegmentReader {
    object: ObjectBytes,
    metadata: ArrowReaderMetadata,
}

impl SegmentReader {
    /// Opens a segment of `size` bytes. A small one is fetched whole.
    pub async fn open(store: Arc<dyn ObjectStore>, key: Path, size: u64) -> Result<Self, SegmentError> {
        Self::of(ObjectBytes::open(store, key, size).await?).await
    }

    /// Opens a segment that the log vouches for, at `key`. One that is fetched whole is checked against its BLAKE3.
    pub async fn open_vouched(store: Arc<dyn ObjectStore>, key: Path, by: &SegmentRef) -> Result<Self, SegmentError> {
        let object = ObjectBytes::open(store, key, by.size).await?;
        if let Some(whole) = object.whole() {
            verify_bytes(&object.key, whole, by)?;
        }
        let reader = Self::of(object).await?;
        if reader.rows() != by.rows {
            let what = format!("it has {} rows, the log says {}", reader.rows(), by.rows);
            return Err(SegmentError::corrupt(reader.object.key.as_ref(), what));
        }
        Ok(reader)
    }

    /// Opens a segment in memory; `name` is for errors.
    pub fn from_bytes(name: &str, bytes: Bytes) -> Result<Self, SegmentError> {
        Self::of(ObjectBytes::in_memory(Path::from(name), bytes)).now_or_never().expect("memory never waits")
    }

    async fn of(object: ObjectBytes) -> Result<Self, SegmentError> {
        let metadata = read_footer(&object).await?;
        check_footer(&object, &metadata)?;
        let options = ArrowReaderOptions::new().with_schema(view_schema());
        let metadata = ArrowReaderMetadata::try_new(Arc::new(metadata), options).map_err(|error| undecodable(&object, error))?;
        Ok(Self { object, metadata })
    }

    /// Rows.
    pub fn rows(&self) -> u64 {
        self.metadata.metadata().file_metadata().num_rows().max(0) as u64
    }

    /// The topic's true name, as the segment itself says.
    pub fn topic(&self) -> Option<&str> {
        self.note(metadata::TOPIC)
    }

    /// An entry of the segment's own metadata, by a name in [`crate::schema::metadata`].
    pub fn note(&self, key: &str) -> Option<&str> {
        let notes = self.metadata.metadata().file_metadata().key_value_metadata()?;
        notes.iter().find(|note| note.key == key)?.value.as_deref()
    }

    /// The segment's footer.
    pub fn footer(&self) -> &ParquetMetaData {
        self.metadata.metadata()
    }

    /// Reads the wanted events.
    pub fn scan(&self, scan: Scan) -> SegmentScan {
        let groups = (0..self.footer().num_row_groups()).filter_map(|group| self.prune(group, &scan)).collect();
        SegmentScan { reader: self.clone(), scan: Arc::new(scan), groups, open: None, ahead: None }
    }

    /// Reads the wanted events of a segment that is in memory, on the caller's thread.
    pub fn batches(&self, scan: Scan) -> impl Iterator<Item = Result<EventBatch, SegmentError>> + use<> {
        let mut scan = self.scan(scan);
        std::iter::from_fn(move || scan.next_held().transpose())
    }

    /// The pages of a row group that can hold a wanted event; `None` if there are none.
    fn prune(&self, group: usize, scan: &Scan) -> Option<GroupToRead> {
        let whole = GroupToRead { group, selection: None, bytes: self.bytes_of(group, scan) };
        if !scan.is_filtered() {
            return Some(whole);
        }
        let Some(pages) = PageBounds::read(self.footer(), group) else { return Some(whole) };
        let wanted: Vec<Range<usize>> = pages
            .0
            .into_iter()
            .filter(|page| scan.may_want(page.times, page.partitions, page.positions))
            .map(|page| page.rows)
            .collect();
        if wanted.is_empty() {
            return None;
        }
        let rows = self.footer().row_group(group).num_rows() as usize;
        let selection = RowSelection::from_consecutive_ranges(wanted.into_iter(), rows);
        Some(GroupToRead { selection: Some(selection), ..whole })
    }

    fn bytes_of(&self, group: usize, scan: &Scan) -> u64 {
        let columns = self.footer().row_group(group).columns();
        scan.leaves().iter().map(|leaf| columns[*leaf].compressed_size().max(0) as u64).sum()
    }

    fn decoder(&self, group: &GroupToRead, scan: &Arc<Scan>) -> Result<ParquetPushDecoder, ParquetError> {
        let schema = self.metadata.parquet_schema();
        let mut builder = ParquetPushDecoderBuilder::new_with_metadata(self.metadata.clone())
            .with_batch_size(scan.batch_rows)
            .with_row_groups(vec![group.group])
            .with_projection(ProjectionMask::leaves(schema, scan.leaves()));
        if let Some(selection) = &group.selection {
            builder = builder.with_row_selection(selection.clone());
        }
        if scan.is_filtered() {
            let places = [Leaf::EventTime, Leaf::SourcePartition, Leaf::SourceOffset].map(|leaf| leaf as usize);
            let scan = Arc::clone(scan);
            let predicate =
                ArrowPredicateFn::new(ProjectionMask::leaves(schema, places), move |record| Ok(filter(&scan, &record)));
            builder = builder.with_row_filter(RowFilter::new(vec![Box::new(predicate)]));
        }
        builder.build()
    }

    async fn read_group(self, group: GroupToRead, scan: Arc<Scan>) -> Result<GroupBatches, SegmentError> {
        let mut decoder = self.decoder(&group, &scan).map_err(|error| undecodable(&self.object, error))?;
        loop {
            match self.step(&mut decoder)? {
                Step::Ready(batches) => return Ok(batches),
                Step::Needs(ranges) => {
                    let bytes = self.object.ranges(&ranges).await?;
                    decoder.push_ranges(ranges, bytes).map_err(|error| undecodable(&self.object, error))?;
                }
            }
        }
    }

    fn step(&self, decoder: &mut ParquetPushDecoder) -> Result<Step, SegmentError> {
        let object = &self.object;
        match guarded(object, || decoder.try_next_reader())? {
            DecodeResult::NeedsData(ranges) => Ok(Step::Needs(ranges)),
            DecodeResult::Data(reader) => Ok(Step::Ready(GroupBatches { object: object.clone(), reader: Some(reader) })),
            DecodeResult::Finished => Ok(Step::Ready(GroupBatches { object: object.clone(), reader: None })),
        }
    }
}

enum Step {
    Ready(GroupBatches),
    Needs(Vec<Range<u64>>),
}

#[derive(Debug, Clone)]
struct GroupToRead {
    group: usize,
    selection: Option<RowSelection>,
    bytes: u64,
}

/// The wanted events of a segment, row group by row group.
#[derive(Debug)]
pub struct SegmentScan {
    reader: SegmentReader,
    scan: Arc<Scan>,
    groups: VecDeque<GroupToRead>,
    open: Option<GroupBatches>,
    ahead: Option<JoinHandle<Result<GroupBatches, SegmentError>>>,
}

impl SegmentScan {
    /// Bytes in the store that are still to be fetched, at most.
    pub fn bytes_to_read(&self) -> u64 {
        self.groups.iter().map(|group| group.bytes).sum()
    }

    /// Bytes in the store of the row group that is fetched next.
    pub fn next_group_bytes(&self) -> Option<u64> {
        self.groups.front().map(|group| group.bytes)
    }

    /// The next batch, decoded on this thread; `None` at the end. Not cancel safe.
    pub async fn next(&mut self) -> Result<Option<EventBatch>, SegmentError> {
        loop {
            if let Some(open) = &mut self.open {
                if let Some(batch) = open.next() {
                    return batch.map(Some);
                }
                self.open = None;
            }
            match self.next_group().await? {
                Some(group) => self.open = Some(group),
                None => return Ok(None),
            }
        }
    }

    /// The next row group's batches, fetched but not decoded: take them to a thread of your choice. `None` at the end.
    pub async fn next_group(&mut self) -> Result<Option<GroupBatches>, SegmentError> {
        let group = match self.ahead.take() {
            Some(ahead) => ahead.await.map_err(|error| {
                SegmentError::new(ErrorKind::Bug, self.reader.object.key.as_ref(), "reading stopped").because(error)
            })??,
            None => match self.groups.pop_front() {
                Some(group) => self.reader.clone().read_group(group, Arc::clone(&self.scan)).await?,
                None => return Ok(None),
            },
        };
        if self.groups.front().is_some_and(|next| next.bytes <= self.scan.ahead_bytes) {
            let next = self.groups.pop_front().expect("looked at just now");
            self.ahead = Some(tokio::spawn(self.reader.clone().read_group(next, Arc::clone(&self.scan))));
        }
        Ok(Some(group))
    }

    fn next_held(&mut self) -> Result<Option<EventBatch>, SegmentError> {
        loop {
            if let Some(batch) = self.open.as_mut().and_then(Iterator::next) {
                return batch.map(Some);
            }
            self.open = None;
            let Some(group) = self.groups.pop_front() else { return Ok(None) };
            let read = self.reader.clone().read_group(group, Arc::clone(&self.scan));
            self.open = Some(read.now_or_never().expect("memory never waits")?);
        }
    }
}

impl Drop for SegmentScan {
    fn drop(&mut self) {
        if let Some(ahead) = &self.ahead {
            ahead.abort();
        }
    }
}

/// The batches of one fetched row group; decodes as it is asked.
pub struct GroupBatches {
    object: ObjectBytes,
    reader: Option<ParquetRecordBatchReader>,
}

impl std::fmt::Debug for GroupBatches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GroupBatches({})", self.object.key)
    }
}

impl Iterator for GroupBatches {
    type Item = Result<EventBatch, SegmentError>;

    fn next(&mut self) -> Option<Self::Item> {
        let reader = self.reader.as_mut()?;
        let decoded = guarded(&self.object, || reader.next().transpose().map_err(ParquetError::from));
        let batch = decoded.and_then(|record| {
            let batch = record.map(|record| EventBatch::new(&record)).transpose();
            batch.map_err(|what| SegmentError::corrupt(self.object.key.as_ref(), what))
        });
        if batch.is_err() {
            // What comes after an error cannot be trusted.
            self.reader = None;
        }
        batch.transpose()
    }
}

/// Runs the decoder. Some of its checks are panics: on bytes from outside they mean corruption like any other.
fn guarded<T>(object: &ObjectBytes, decode: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, SegmentError> {
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(decoded) => decoded.map_err(|error| undecodable(object, error)),
        Err(_) => Err(SegmentError::corrupt(object.key.as_ref(), "the decoder gave up on it")),
    }
}

fn undecodable(object: &ObjectBytes, error: ParquetError) -> SegmentError {
    SegmentError::corrupt(object.key.as_ref(), "cannot be decoded").because(error)
}

fn filter(scan: &Scan, record: &RecordBatch) -> BooleanArray {
    let times = record.column(0).as_primitive::<TimestampMicrosecondType>().values();
    let partitions = record.column(1).as_primitive::<Int32Type>().values();
    let positions = record.column(2).as_primitive::<Int64Type>().values();
    let places = times.iter().zip(partitions.iter()).zip(positions.iter());
    places.map(|((time, partition), position)| Some(scan.wants(*time, *partition, *position))).collect()
}

async fn read_footer(object: &ObjectBytes) -> Result<ParquetMetaData, SegmentError> {
    let fail = |error| undecodable(object, error);
    let mut decoder = ParquetMetaDataPushDecoder::try_new(object.size).map_err(fail)?;
    decoder = decoder.with_page_index_policy(PageIndexPolicy::Optional);
    let tail = object.size.saturating_sub(TAIL_BYTES)..object.size;
    let mut wanted = vec![tail];
    loop {
        let total: u64 = wanted.iter().map(|range| range.end.saturating_sub(range.start)).sum();
        if total > FOOTER_BYTES_MAX {
            return Err(SegmentError::corrupt(object.key.as_ref(), format!("its footer claims {total} bytes")));
        }
        let bytes = object.ranges(&wanted).await?;
        decoder.push_ranges(wanted, bytes).map_err(fail)?;
        match guarded(object, || decoder.try_decode())? {
            DecodeResult::NeedsData(ranges) => wanted = ranges,
            DecodeResult::Data(metadata) => return Ok(metadata),
            DecodeResult::Finished => return Err(SegmentError::corrupt(object.key.as_ref(), "it has no footer")),
        }
    }
}

fn check_footer(object: &ObjectBytes, footer: &ParquetMetaData) -> Result<(), SegmentError> {
    let fail = |what: String| Err(SegmentError::corrupt(object.key.as_ref(), what));
    if footer.file_metadata().schema() != parquet_schema().root_schema() {
        return fail("its columns are not those of layout 1".to_owned());
    }
    if footer.num_row_groups() > ROW_GROUPS_MAX {
        return fail(format!("it claims {} row groups", footer.num_row_groups()));
    }
    for (number, group) in footer.row_groups().iter().enumerate() {
        for chunk in group.columns() {
            let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
            let end = start.checked_add(chunk.compressed_size()).filter(|end| *end as u64 <= object.size);
            let sane = start >= 0
                && chunk.compressed_size() >= 0
                && (0..=CHUNK_BYTES_MAX).contains(&chunk.uncompressed_size())
                && group.num_rows() >= 0;
            if !sane || end.is_none() {
                return fail(format!("row group {number}, column {}: its size or place is impossible", chunk.column_path()));
            }
        }
    }
    Ok(())
}

struct PageBound {
    rows: Range<usize>,
    times: (i64, i64),
    partitions: (i32, i32),
    positions: (i64, i64),
}

/// The bounds of a row group's pages. Pages of time, partition and offset end at the same rows; where a file is otherwise,
/// nothing is pruned.
struct PageBounds(Vec<PageBound>);

impl PageBounds {
    fn read(footer: &ParquetMetaData, group: usize) -> Option<Self> {
        let index = footer.page_index_for_row_group(group);
        let longs = |leaf: Leaf| match index.column_index(leaf as usize)? {
            ColumnIndexMetaData::INT64(index) => Some((index.min_values().to_vec(), index.max_values().to_vec())),
            _ => None,
        };
        let ColumnIndexMetaData::INT32(partitions) = index.column_index(Leaf::SourcePartition as usize)? else { return None };
        let (times, positions) = (longs(Leaf::EventTime)?, longs(Leaf::SourceOffset)?);
        let starts = |leaf: Leaf| {
            let pages = index.page_locations(leaf as usize)?;
            Some(pages.iter().map(|page| page.first_row_index as usize).collect::<Vec<_>>())
        };
        let first = starts(Leaf::EventTime)?;
        let aligned = starts(Leaf::SourcePartition)? == first && starts(Leaf::SourceOffset)? == first;
        let counts = [times.0.len(), times.1.len(), positions.0.len(), positions.1.len()];
        let partition_counts = [partitions.min_values().len(), partitions.max_values().len()];
        if !aligned || counts.iter().chain(&partition_counts).any(|count| *count != first.len()) {
            return None;
        }
        let rows = footer.row_group(group).num_rows() as usize;
        let in_order = first.windows(2).all(|pair| pair[0] < pair[1]) && first.last().is_some_and(|last| *last < rows);
        if !in_order || first.first() != Some(&0) {
            return None;
        }
        let bound = |page: usize| PageBound {
            rows: first[page]..first.get(page + 1).copied().unwrap_or(rows),
            times: (times.0[page], times.1[page]),
            partitions: (partitions.min_values()[page], partitions.max_values()[page]),
            positions: (positions.0[page], positions.1[page]),
        };
        Some(Self((0..first.len()).map(bound).collect()))
    }
}
