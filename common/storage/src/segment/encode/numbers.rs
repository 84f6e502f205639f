//! Columns of whole numbers, and columns that hardly change.
//! Promise: a column with one value for all rows costs no work per row.

use parquet::basic::{Encoding, Type};
use parquet::bloom_filter::Sbbf;
use parquet::column::writer::ColumnCloseResult;
use parquet::data_type::ByteArray;
use parquet::file::statistics::Statistics;
use parquet::schema::types::ColumnDescPtr;

use super::chunk::{Bounds, Chunk, ChunkBytes, PageFacts, put_constant_levels, put_levels};
use super::codec::Codec;
use super::{delta, rle};

/// Small columns are always packed with level 1: higher ones gain nothing there.
pub(crate) const LEVEL_SMALL: i32 = 1;

/// No column here has a filter.
const NO_FILTER: Option<Sbbf> = None;

/// A column of numbers from zero up, packed as differences.
pub(crate) struct NumberColumn {
    chunk: Chunk,
    narrow: bool,
    indexed: bool,
    /// Numbers of the open page.
    staged: Vec<i64>,
    /// Which rows of the open page are not null; empty while all are.
    valid: Vec<u8>,
    rows: usize,
    bounds: Option<(i64, i64)>,
    body: Vec<u8>,
}

impl NumberColumn {
    /// `indexed` columns have bounds in the page index.
    pub(crate) fn new(column: ColumnDescPtr, indexed: bool) -> Self {
        Self {
            narrow: column.physical_type() == Type::INT32,
            indexed,
            chunk: Chunk::new(column, Encoding::DELTA_BINARY_PACKED, LEVEL_SMALL),
            staged: Vec::new(),
            valid: Vec::new(),
            rows: 0,
            bounds: None,
            body: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, values: &[i64]) {
        self.staged.extend_from_slice(values);
        self.rows += values.len();
    }

    pub(crate) fn push_repeated(&mut self, value: i64, count: usize) {
        self.staged.resize(self.staged.len() + count, value);
        self.rows += count;
    }

    /// Numbers below zero are null.
    pub(crate) fn push_nullable(&mut self, values: &[i32]) {
        let any_null = values.iter().any(|value| *value < 0);
        if any_null || !self.valid.is_empty() {
            self.valid.resize(self.rows, 1);
            self.valid.extend(values.iter().map(|value| u8::from(*value >= 0)));
        }
        self.staged.extend(values.iter().filter(|value| **value >= 0).map(|value| i64::from(*value)));
        self.rows += values.len();
    }

    /// Rows of the open page.
    pub(crate) fn open_rows(&self) -> usize {
        self.rows
    }

    /// Ends the open page, if it has rows.
    pub(crate) fn cut(&mut self, codec: &mut Codec, nullable: bool) {
        if self.rows == 0 {
            return;
        }
        self.body.clear();
        if nullable && self.valid.is_empty() {
            put_constant_levels(1, self.rows, 1, &mut self.body);
        } else if nullable {
            put_levels(&self.valid, 1, &mut self.body);
        }
        delta::encode(&self.staged, &mut self.body);
        let bounds = min_max(&self.staged);
        let nulls = self.rows - self.staged.len();
        let facts = PageFacts {
            rows: self.rows,
            values: self.rows,
            nulls,
            bounds: bounds.filter(|_| self.indexed).map(|bounds| self.bytes_of(bounds)),
        };
        self.chunk.add_page(codec, &self.body, facts);
        self.bounds = match (self.bounds, bounds) {
            (Some(old), Some(new)) => Some((old.0.min(new.0), old.1.max(new.1))),
            (old, new) => old.or(new),
        };
        self.staged.clear();
        self.valid.clear();
        self.rows = 0;
    }

    fn bytes_of(&self, (least, most): (i64, i64)) -> Bounds {
        let bytes = |number: i64| {
            if self.narrow { (number as i32).to_le_bytes().to_vec() } else { number.to_le_bytes().to_vec() }
        };
        (bytes(least), bytes(most))
    }

    /// Bytes held.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.staged.capacity() * 8 + self.valid.capacity() + self.body.capacity() + self.chunk.bytes()
    }

    /// Gives the buffers of the open page back to the system; call after a cut.
    pub(crate) fn free_buffers(&mut self) {
        (self.staged, self.valid, self.body) = (Vec::new(), Vec::new(), Vec::new());
    }

    /// Encoded bytes so far; the open page is guessed at two bytes a row.
    pub(crate) fn encoded_bytes(&self) -> usize {
        self.chunk.bytes() + self.rows * 2
    }

    pub(crate) fn close(self, codec: &mut Codec) -> (ChunkBytes, ColumnCloseResult) {
        let nulls = Some(self.chunk.nulls() as u64);
        let (least, most) = self.bounds.unzip();
        let statistics = if self.narrow {
            let narrow = |number: Option<i64>| number.map(|number| number as i32);
            Statistics::int32(narrow(least), narrow(most), None, nulls, false)
        } else {
            Statistics::int64(least, most, None, nulls, false)
        };
        self.chunk.close(codec, None, Some(statistics), NO_FILTER)
    }
}

fn min_max(values: &[i64]) -> Option<(i64, i64)> {
    let first = *values.first()?;
    // Two plain passes: the compiler turns each into vector instructions.
    let least = values.iter().fold(first, |least, value| least.min(*value));
    let most = values.iter().fold(first, |most, value| most.max(*value));
    Some((least, most))
}

/// A column whose values are few and known beforehand: one byte a row.
pub(crate) struct WordColumn {
    chunk: Chunk,
    words: &'static [&'static str],
    /// Indices of the open page.
    staged: Vec<u8>,
    used: u32,
    body: Vec<u8>,
}

impl WordColumn {
    pub(crate) fn new(column: ColumnDescPtr, words: &'static [&'static str]) -> Self {
        let chunk = Chunk::new(column, Encoding::RLE_DICTIONARY, LEVEL_SMALL);
        Self { chunk, words, staged: Vec::new(), used: 0, body: Vec::new() }
    }

    /// Appends rows by the indices of their words.
    pub(crate) fn push(&mut self, words: impl Iterator<Item = u8>) {
        let from = self.staged.len();
        self.staged.extend(words);
        self.used = self.staged[from..].iter().fold(self.used, |used, word| used | 1 << word);
    }

    pub(crate) fn open_rows(&self) -> usize {
        self.staged.len()
    }

    pub(crate) fn cut(&mut self, codec: &mut Codec) {
        if self.staged.is_empty() {
            return;
        }
        let width = (usize::BITS - (self.words.len() - 1).leading_zeros()) as u8;
        self.body.clear();
        self.body.push(width);
        rle::encode(&self.staged, width, &mut self.body);
        let rows = self.staged.len();
        self.chunk.add_page(codec, &self.body, PageFacts { rows, values: rows, nulls: 0, bounds: None });
        self.staged.clear();
    }

    pub(crate) fn free_buffers(&mut self) {
        (self.staged, self.body) = (Vec::new(), Vec::new());
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.staged.capacity() + self.body.capacity() + self.chunk.bytes()
    }

    pub(crate) fn close(self, codec: &mut Codec) -> (ChunkBytes, ColumnCloseResult) {
        let used = || self.words.iter().enumerate().filter(|(index, _)| self.used >> index & 1 == 1).map(|(_, word)| *word);
        let statistics = text_statistics(used().min(), used().max());
        let dictionary: Vec<u8> = self.words.iter().flat_map(|word| plain_text(word)).collect();
        self.chunk.close(codec, Some((&dictionary, self.words.len())), Some(statistics), NO_FILTER)
    }
}

/// A column with one value for all rows: a dictionary of one entry and a run.
pub(crate) struct ConstantColumn {
    chunk: Chunk,
    dictionary: Vec<u8>,
    statistics: Statistics,
}

impl ConstantColumn {
    pub(crate) fn text(column: ColumnDescPtr, text: &str) -> Self {
        Self::new(column, plain_text(text), text_statistics(Some(text), Some(text)))
    }

    pub(crate) fn number(column: ColumnDescPtr, number: i64) -> Self {
        let statistics = Statistics::int64(Some(number), Some(number), None, Some(0), false);
        Self::new(column, number.to_le_bytes().to_vec(), statistics)
    }

    fn new(column: ColumnDescPtr, dictionary: Vec<u8>, statistics: Statistics) -> Self {
        Self { chunk: Chunk::new(column, Encoding::RLE_DICTIONARY, LEVEL_SMALL), dictionary, statistics }
    }

    pub(crate) fn close(mut self, codec: &mut Codec, rows: usize) -> (ChunkBytes, ColumnCloseResult) {
        // Width 1, though one entry needs no bit: not every reader expects none.
        let mut body = vec![1];
        rle::encode_constant(0, rows, 1, &mut body);
        self.chunk.add_page(codec, &body, PageFacts { rows, values: rows, nulls: 0, bounds: None });
        self.chunk.close(codec, Some((&self.dictionary, 1)), Some(self.statistics), NO_FILTER)
    }
}

/// A string as PLAIN writes it: its length, then its bytes.
fn plain_text(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).expect("names are short");
    [&length.to_le_bytes(), text.as_bytes()].concat()
}

fn text_statistics(least: Option<&str>, most: Option<&str>) -> Statistics {
    Statistics::byte_array(least.map(ByteArray::from), most.map(ByteArray::from), None, Some(0), false)
}
