//! Writes one segment: events of one topic and hour in, whole parts of an object out.
//!
//! Promises: synchronous and without I/O; memory stays at one open row group and the parts that were not taken yet; the
//! BLAKE3 and the statistics cover exactly what came out. Never: reorders the rows of a lane; keeps the blocks it is given.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use tapedeck_common::columns::Columns;
use tapedeck_common::commit::{SegmentLane, SegmentRef};
use tapedeck_common::{Timestamp, Window, limits};

use super::encode::codec::{Codec, Codecs};
use super::encode::{GroupEncoder, GroupPlan};
use super::sink::{PartPool, PartSink};
use super::stats::Stats;
use crate::schema::{self, metadata};

/// What all segments of a process have in common. Clone it: the zstd contexts are then shared.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// Raw bytes of a row group.
    pub row_group_bytes: usize,
    /// Bytes of a part.
    pub part_bytes: usize,
    /// Whether a bloom filter on the key is kept where keys exist.
    pub key_filter: bool,
    /// Name and version of the program, for the metadata.
    pub writer: Arc<str>,
    /// zstd contexts, shared by all segments.
    pub codecs: Arc<Codecs>,
    /// Used part buffers, shared by all segments.
    pub parts: Arc<PartPool>,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            row_group_bytes: limits::ROW_GROUP_BYTES,
            part_bytes: limits::PART_BYTES,
            key_filter: true,
            writer: Arc::from(concat!("tapedeck/", env!("CARGO_PKG_VERSION"))),
            codecs: Arc::default(),
            parts: Arc::new(PartPool::new(limits::PART_BYTES)),
        }
    }
}

/// A segment in the making.
pub struct SegmentWriter {
    topic: Arc<str>,
    source: Arc<str>,
    window: Window,
    /// When all rows were archived; `None` if each block says so.
    archived_at: Option<Timestamp>,
    options: WriterOptions,
    /// `None` until the first row: an idle writer costs nothing.
    file: Option<SerializedFileWriter<PartSink>>,
    group: Option<GroupEncoder>,
    group_raw_bytes: usize,
    stats: Stats,
}

impl fmt::Debug for SegmentWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SegmentWriter({} {} {} rows)", self.topic, self.window, self.stats.rows)
    }
}

impl SegmentWriter {
    /// A segment for events of `topic` in the hour `window`, all of lanes of `source`.
    pub fn new(topic: Arc<str>, source: Arc<str>, window: Window, archived_at: Timestamp, options: &WriterOptions) -> Self {
        Self::begin(topic, source, window, Some(archived_at), options)
    }

    /// A segment for rows that were archived before, at different moments: [`Self::write_merged`] takes them.
    pub fn merging(topic: Arc<str>, source: Arc<str>, window: Window, options: &WriterOptions) -> Self {
        Self::begin(topic, source, window, None, options)
    }

    fn begin(topic: Arc<str>, source: Arc<str>, window: Window, archived_at: Option<Timestamp>, options: &WriterOptions) -> Self {
        let (file, group, stats) = (None, None, Stats::default());
        Self { topic, source, window, archived_at, options: options.clone(), file, group, group_raw_bytes: 0, stats }
    }

    /// Encodes blocks of lanes, by partition, and gives the emptied columns back. Blocks of one partition keep their order.
    /// Panics if the positions of a lane do not grow over the whole segment, or an event belongs to another hour.
    pub fn write_chunk(&mut self, blocks: Vec<(i32, Columns)>) -> Vec<Columns> {
        let archived_at = self.archived_at.expect("a merging writer is told with each block");
        self.write_merged(blocks.into_iter().map(|(partition, block)| (partition, archived_at, block)).collect())
    }

    /// As [`Self::write_chunk`], each block with the moment at which its rows were archived.
    pub fn write_merged(&mut self, mut blocks: Vec<(i32, Timestamp, Columns)>) -> Vec<Columns> {
        // Stable, so that a lane's blocks stay in their order.
        blocks.sort_by_key(|(partition, ..)| *partition);
        let codecs = Arc::clone(&self.options.codecs);
        let mut codec = codecs.take();
        for (partition, archived_at, block) in &blocks {
            self.stats.add(self.window, *partition, block);
            self.write_block(&mut codec, *partition, *archived_at, block);
        }
        codecs.give_back(codec);
        let emptied = |(_, _, mut block): (i32, Timestamp, Columns)| {
            block.clear();
            block
        };
        blocks.into_iter().map(emptied).collect()
    }

    fn write_block(&mut self, codec: &mut Codec, partition: i32, archived_at: Timestamp, block: &Columns) {
        let mut at = 0;
        let row_bytes = (block.memory_bytes() / block.len().max(1)).max(1);
        while at < block.len() {
            let room = self.options.row_group_bytes.saturating_sub(self.group_raw_bytes);
            let rows = (room / row_bytes).clamp(1, block.len() - at);
            let group = self.group.get_or_insert_with(|| {
                let plan = GroupPlan::of(block, self.options.row_group_bytes, self.options.key_filter);
                GroupEncoder::new(plan, &self.source, self.archived_at)
            });
            group.push(codec, partition, archived_at, block, at..at + rows);
            at += rows;
            self.group_raw_bytes += rows * row_bytes;
            if self.group_raw_bytes >= self.options.row_group_bytes {
                self.close_group(codec);
            }
        }
    }

    fn close_group(&mut self, codec: &mut Codec) {
        let Some(group) = self.group.take() else { return };
        let options = &self.options;
        let file = self.file.get_or_insert_with(|| open_file(options.part_bytes, Arc::clone(&options.parts)));
        group.close(codec, file);
        self.group_raw_bytes = 0;
    }

    /// Sets the size of row groups from now on: memory pressure lowers it.
    pub fn set_row_group_bytes(&mut self, bytes: usize) {
        self.options.row_group_bytes = bytes.max(1);
    }

    fn end_row_group(&mut self) {
        let codecs = Arc::clone(&self.options.codecs);
        let mut codec = codecs.take();
        self.close_group(&mut codec);
        codecs.give_back(codec);
    }

    /// Compresses the open pages now and frees their buffers, without ending the row group: for segments that fell idle.
    pub fn shrink(&mut self) {
        let Some(group) = &mut self.group else { return };
        let mut codec = self.options.codecs.take();
        group.shrink(&mut codec);
        self.options.codecs.give_back(codec);
    }

    /// Takes finished parts, if there are at least `bytes_min` of them. All but the very last part have the same size.
    pub fn take_parts(&mut self, bytes_min: usize) -> Vec<Bytes> {
        match &mut self.file {
            Some(file) if file.inner().ready_bytes() >= bytes_min.max(1) => file.inner_mut().take_ready(),
            _ => Vec::new(),
        }
    }

    /// Bytes held: the open row group, and output that was not taken.
    pub fn memory_bytes(&self) -> usize {
        let group = self.group.as_ref().map_or(0, GroupEncoder::memory_bytes);
        group + self.file.as_ref().map_or(0, |file| file.inner().memory_bytes() + FILE_BYTES)
    }

    /// Bytes of the object so far, taken ones included, with a guess at the open pages.
    pub fn encoded_bytes(&self) -> u64 {
        let group = self.group.as_ref().map_or(0, GroupEncoder::encoded_bytes) as u64;
        group + self.file.as_ref().map_or(0, |file| file.inner().written())
    }

    /// Raw bytes in the open row group.
    pub fn open_group_bytes(&self) -> usize {
        self.group_raw_bytes
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.stats.rows
    }

    /// The hour.
    pub fn window(&self) -> Window {
        self.window
    }

    /// The topic's true name.
    pub fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// Ends the segment. Panics without a row: an empty segment has no place in the archive.
    pub fn finish(mut self) -> FinishedSegment {
        assert!(self.stats.rows > 0, "a segment without rows is never stored");
        self.end_row_group();
        let mut file = self.file.take().expect("a row group was closed just now");
        for (key, value) in [
            (metadata::LAYOUT, schema::LAYOUT.to_string()),
            (metadata::WRITER, self.options.writer.to_string()),
            (metadata::TOPIC, self.topic.to_string()),
            (metadata::LANES, self.stats.lanes_text()),
        ] {
            file.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        }
        let sink = file.into_inner().expect("a buffer takes every byte");
        let (parts, size, blake3) = sink.finish();
        FinishedSegment { topic: self.topic, source: self.source, window: self.window, parts, size, blake3, stats: self.stats }
    }
}

/// Structures of an open file: descriptors, metadata of its row groups, a small write buffer.
const FILE_BYTES: usize = 16 * 1024;

fn open_file(part_bytes: usize, parts: Arc<PartPool>) -> SerializedFileWriter<PartSink> {
    let properties = WriterProperties::builder().set_created_by(concat!("tapedeck ", env!("CARGO_PKG_VERSION")).to_owned());
    let root = schema::parquet_schema().root_schema_ptr();
    SerializedFileWriter::new(PartSink::new(part_bytes, parts), root, Arc::new(properties.build()))
        .expect("a buffer takes every byte")
}

/// A segment whose last byte is written.
#[derive(Debug)]
pub struct FinishedSegment {
    topic: Arc<str>,
    source: Arc<str>,
    window: Window,
    parts: Vec<Bytes>,
    size: u64,
    blake3: blake3::Hash,
    stats: Stats,
}

impl FinishedSegment {
    /// Takes the parts that were not taken before.
    pub fn take_parts(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.parts)
    }

    /// Bytes of the parts that were not taken.
    pub fn memory_bytes(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    /// Bytes of the whole object.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Rows.
    pub fn rows(&self) -> u64 {
        self.stats.rows
    }

    /// The lanes, by partition.
    pub fn lanes(&self) -> Vec<SegmentLane> {
        self.stats.lanes()
    }

    /// What a record says about the segment, once it lies at `path` below its table's folder.
    pub fn into_ref(self, path: String, modified: Timestamp) -> SegmentRef {
        SegmentRef {
            path,
            rows: self.stats.rows,
            size: self.size,
            blake3: self.blake3.to_hex().to_string(),
            modified,
            times: self.stats.times(),
            null_keys: self.stats.null_keys,
            null_values: self.stats.null_values,
            lanes: self.stats.lanes(),
            source: self.source,
            topic: self.topic,
            window: self.window,
        }
    }
}
