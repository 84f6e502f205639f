//! Columns of byte strings, plain or in lists: DELTA_LENGTH_BYTE_ARRAY, all lengths first, then all bytes end to end.
//!
//! Promise: the bytes of a run of rows are copied once, as one piece, from the block into the page.

use parquet::basic::Encoding;
use parquet::bloom_filter::Sbbf;
use parquet::column::writer::ColumnCloseResult;
use parquet::data_type::ByteArray;
use parquet::file::statistics::Statistics;
use parquet::schema::types::ColumnDescPtr;
use std::ops::Range;
use tapedeck_common::columns::{ByteColumn, PairColumn};

use super::chunk::{Chunk, ChunkBytes, PageFacts, put_constant_levels, put_levels};
use super::codec::{BUFFER_BYTES_KEPT, Codec};
use super::delta;

/// The first guess at the room for levels and lengths in front of a page's bytes.
const ROOM_FIRST: usize = 256;

/// Bits that levels up to `max` need.
const fn width_of(max: u8) -> u8 {
    if max > 1 { 2 } else { 1 }
}

/// A column of byte strings.
pub(crate) struct StringColumn {
    chunk: Chunk,
    /// The open page: `room` bytes that levels and lengths will fill from their end, then the bytes of its strings.
    page: Vec<u8>,
    room: usize,
    /// Lengths of the page's strings.
    lengths: Vec<i32>,
    /// Definition levels of the page. Outside lists it stays empty while no row is null.
    defined: Vec<u8>,
    /// Repetition levels; only in lists.
    repeated: Vec<u8>,
    /// The definition level of a string.
    level_max: u8,
    in_list: bool,
    rows: usize,
    values: usize,
    filter: KeyFilter,
    prefix: Vec<u8>,
}

/// A bloom filter of a column's strings. It is made when the first page ends, so that a quiet segment has none in memory
/// and gets one of its own size.
enum KeyFilter {
    Without,
    /// For this many strings, should the row group fill up.
    Planned(usize),
    Open(Sbbf),
}

impl KeyFilter {
    /// Adds the strings of a page that ends.
    fn add(&mut self, lengths: &[i32], mut bytes: &[u8]) {
        if let Self::Planned(planned) = *self {
            // A page that was cut short comes from a segment that is idle or ends: the plan would be far too large.
            let expected = if bytes.len() < FILTER_PAGE_BYTES { lengths.len() * 4 } else { planned };
            let filter = Sbbf::new_with_ndv_fpp(expected.max(32) as u64, FILTER_FALSE_POSITIVES);
            *self = filter.map_or(Self::Without, Self::Open);
        }
        let Self::Open(filter) = self else { return };
        for length in lengths {
            let (string, rest) = bytes.split_at(*length as usize);
            filter.insert(string);
            bytes = rest;
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Open(filter) => filter.num_blocks() * 32,
            Self::Without | Self::Planned(_) => 0,
        }
    }

    fn close(self) -> Option<Sbbf> {
        let Self::Open(mut filter) = self else { return None };
        filter.fold_to_target_fpp(FILTER_FALSE_POSITIVES);
        Some(filter)
    }
}

impl StringColumn {
    pub(crate) fn new(column: ColumnDescPtr, level: i32) -> Self {
        let level_max = u8::try_from(column.max_def_level()).expect("the layout nests two deep");
        let in_list = column.max_rep_level() > 0;
        Self {
            chunk: Chunk::new(column, Encoding::DELTA_LENGTH_BYTE_ARRAY, level),
            page: Vec::new(),
            room: ROOM_FIRST,
            lengths: Vec::new(),
            defined: Vec::new(),
            repeated: Vec::new(),
            level_max,
            in_list,
            rows: 0,
            values: 0,
            filter: KeyFilter::Without,
            prefix: Vec::new(),
        }
    }

    /// Keeps a bloom filter, planned for `distinct` strings; it shrinks to fit when the chunk is closed.
    pub(crate) fn with_filter(self, distinct: usize) -> Self {
        Self { filter: KeyFilter::Planned(distinct), ..self }
    }

    /// Appends rows of a column; nulls take no bytes there, so all bytes of the run are one piece.
    pub(crate) fn push(&mut self, column: &ByteColumn, rows: Range<usize>) {
        let any_null = column.nulls() > 0 && !column.valid()[rows.clone()].iter().all(|valid| *valid);
        if any_null || !self.defined.is_empty() {
            self.defined.resize(self.rows, 1);
            self.defined.extend(column.valid()[rows.clone()].iter().map(|valid| u8::from(*valid)));
        }
        self.append(column, rows.clone());
        self.rows += rows.len();
        self.values += rows.len();
    }

    /// Appends the rows of lists: `strings` is one side of the pairs.
    pub(crate) fn push_lists(&mut self, ends: &[i32], strings: &ByteColumn, rows: Range<usize>) {
        let pairs = ends[rows.start] as usize..ends[rows.end] as usize;
        self.rows += rows.len();
        if pairs.is_empty() {
            self.values += rows.len();
            self.repeated.resize(self.values, 0);
            self.defined.resize(self.values, 0);
            return;
        }
        for row in ends[rows.start..=rows.end].windows(2) {
            let (from, until) = (row[0] as usize, row[1] as usize);
            self.repeated.push(0);
            if from == until {
                self.defined.push(0);
                continue;
            }
            self.repeated.resize(self.repeated.len() + until - from - 1, 1);
            let level = self.level_max;
            if strings.nulls() == 0 {
                self.defined.resize(self.defined.len() + until - from, level);
            } else {
                self.defined.extend(strings.valid()[from..until].iter().map(|valid| level - u8::from(!valid)));
            }
        }
        self.values = self.defined.len();
        self.append(strings, pairs);
    }

    fn append(&mut self, column: &ByteColumn, rows: Range<usize>) {
        if self.page.len() < self.room {
            self.page.resize(self.room, 0);
        }
        let offsets = &column.offsets()[rows.start..=rows.end];
        let bytes = &column.bytes()[offsets[0] as usize..offsets[rows.len()] as usize];
        self.page.extend_from_slice(bytes);
        let lengths = offsets.windows(2).map(|pair| pair[1] - pair[0]);
        if column.nulls() == 0 {
            self.lengths.extend(lengths);
        } else {
            let valid = &column.valid()[rows];
            self.lengths.extend(lengths.zip(valid).filter(|(_, valid)| **valid).map(|(length, _)| length));
        }
    }

    /// Bytes of the open page's strings.
    pub(crate) fn open_bytes(&self) -> usize {
        self.page.len().saturating_sub(self.room)
    }

    pub(crate) fn open_rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn open_values(&self) -> usize {
        self.values
    }

    /// Ends the open page, if it has rows.
    pub(crate) fn cut(&mut self, codec: &mut Codec) {
        if self.rows == 0 {
            return;
        }
        self.fill_prefix();
        self.filter.add(&self.lengths, self.page.get(self.room..).unwrap_or_default());
        let facts = PageFacts { rows: self.rows, values: self.values, nulls: self.values - self.lengths.len(), bounds: None };
        let length = self.prefix.len();
        if self.page.len() < self.room {
            self.chunk.add_page(codec, &self.prefix, facts);
        } else if let Some(start) = self.room.checked_sub(length) {
            self.page[start..self.room].copy_from_slice(&self.prefix);
            self.chunk.add_page(codec, &self.page[start..], facts);
        } else {
            // The guess was too small, once: the next page gets the room that this one needed.
            let whole = [&self.prefix, &self.page[self.room..]].concat();
            self.chunk.add_page(codec, &whole, facts);
        }
        self.room = self.room.max(length + length / 4);
        self.page.clear();
        if self.page.capacity() > BUFFER_BYTES_KEPT {
            self.page = Vec::new();
        }
        self.lengths.clear();
        self.defined.clear();
        self.repeated.clear();
        (self.rows, self.values) = (0, 0);
    }

    fn fill_prefix(&mut self) {
        self.prefix.clear();
        if self.in_list {
            put_levels(&self.repeated, 1, &mut self.prefix);
        }
        if self.defined.is_empty() {
            put_constant_levels(self.level_max, self.values, width_of(self.level_max), &mut self.prefix);
        } else {
            put_levels(&self.defined, width_of(self.level_max), &mut self.prefix);
        }
        delta::encode(&self.lengths, &mut self.prefix);
    }

    /// Bytes held.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.page.capacity()
            + self.lengths.capacity() * 4
            + self.defined.capacity()
            + self.repeated.capacity()
            + self.prefix.capacity()
            + self.filter.bytes()
            + self.chunk.bytes()
    }

    /// Encoded bytes so far; the open page is guessed to pack as the finished ones did, or four to one.
    pub(crate) fn encoded_bytes(&self) -> usize {
        self.chunk.bytes() + self.open_bytes() / 4
    }

    /// Gives the buffers of the open page back to the system; call after a cut.
    pub(crate) fn free_buffers(&mut self) {
        self.page = Vec::new();
        self.lengths = Vec::new();
        self.defined = Vec::new();
        self.repeated = Vec::new();
        self.prefix = Vec::new();
    }

    pub(crate) fn close(self, codec: &mut Codec) -> (ChunkBytes, ColumnCloseResult) {
        let nulls = self.chunk.nulls() as u64;
        // In lists an absent string is no null of the column.
        let statistics = (!self.in_list).then(|| Statistics::byte_array(None::<ByteArray>, None, None, Some(nulls), false));
        self.chunk.close(codec, None, statistics, self.filter.close())
    }
}

/// Pages of keys that are smaller ended early.
const FILTER_PAGE_BYTES: usize = 16 * 1024;

/// One row group in twenty is read in vain when a key is looked for.
const FILTER_FALSE_POSITIVES: f64 = 0.05;

/// How many rows from `rows.start` on fit into `room` bytes: at least one.
pub(crate) fn rows_within(offsets: &[i32], rows: Range<usize>, room: usize) -> usize {
    let start = offsets[rows.start] as usize;
    let fits = |end: &i32| *end as usize - start <= room;
    offsets[rows.start + 1..=rows.end].partition_point(fits).max(1)
}

/// The same for lists of pairs.
pub(crate) fn list_rows_within(pairs: &PairColumn, rows: Range<usize>, room: usize) -> usize {
    let (names, values) = (pairs.names.offsets(), pairs.values.offsets());
    let at = |end: i32| names[end as usize] as usize + values[end as usize] as usize;
    let start = at(pairs.offsets()[rows.start]);
    let fits = |end: &i32| at(*end) - start <= room;
    pairs.offsets()[rows.start + 1..=rows.end].partition_point(fits).max(1)
}
