//! Encodes blocks of events as the column chunks of one row group.
//!
//! Our own page encoder, because the general one copies a value three times and works per row on columns that never
//! change. Promises: nothing per row but what the row itself needs; every buffer is reused; pages of the value, the time,
//! the partition and the offset end at the same rows, so that a range of time is read without a page too many.
//! Never: keeps a block; input is copied out before the call returns.

mod chunk;
pub(crate) mod codec;
mod delta;
mod numbers;
mod rle;
mod strings;

use std::io::Write;
use std::ops::Range;

use parquet::column::writer::ColumnCloseResult;
use parquet::file::writer::SerializedFileWriter;
use tapedeck_common::Timestamp;
use tapedeck_common::columns::{Columns, PairColumn};
use tapedeck_common::event::TimeKind;

use crate::schema::{Leaf, parquet_schema};
use chunk::ChunkBytes;
use codec::Codec;
use numbers::{ConstantColumn, LEVEL_SMALL, NumberColumn, WordColumn};
use strings::{StringColumn, list_rows_within, rows_within};

/// Bytes of a value page: 256 KiB would make ranges cheaper to read but the archive 2 to 8 % larger.
const PAGE_BYTES: usize = 1024 * 1024;

/// Rows of a page, for columns whose rows are small.
const PAGE_ROWS: usize = 20_000;

/// Header entries of a page.
const PAGE_PAIRS: usize = 60_000;

/// A key or header page ends with the value page once it is this large: smaller ones would pack badly.
const PAGE_BYTES_SOFT: usize = 64 * 1024;

/// Values of this mean size and more gain 16 % from zstd 3; smaller ones would pay 25 to 40 % of the speed for 1 %.
const VALUE_BYTES_LEVEL_3: usize = 2048;

const TIME_KINDS: [&str; 3] = [TimeKind::Create.as_str(), TimeKind::Append.as_str(), TimeKind::Arrival.as_str()];

const fn kind_index(kind: TimeKind) -> u8 {
    match kind {
        TimeKind::Create => 0,
        TimeKind::Append => 1,
        TimeKind::Arrival => 2,
    }
}

/// What a row group is told before its first row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupPlan {
    /// The zstd level of values.
    pub(crate) value_level: i32,
    /// How many keys the bloom filter has to hold; `None` without one.
    pub(crate) filter_keys: Option<usize>,
}

impl GroupPlan {
    /// Looks at the events to come.
    pub(crate) fn of(block: &Columns, group_bytes: usize, filter: bool) -> Self {
        let rows = block.len().max(1);
        let value_mean = block.values.bytes().len() / rows;
        let has_keys = block.keys.nulls() < block.len();
        // Rows that the group will hold if those to come are like these, with some to spare.
        let group_rows = group_bytes / (block.memory_bytes() / rows).max(1);
        Self {
            value_level: if value_mean >= VALUE_BYTES_LEVEL_3 { 3 } else { LEVEL_SMALL },
            filter_keys: (filter && has_keys).then_some((group_rows + group_rows / 4).max(block.len())),
        }
    }
}

/// When the rows of a row group were archived: a batch knows one moment, a merged segment has those of many.
enum ArchivedAt {
    Same(ConstantColumn),
    Each(NumberColumn),
}

/// A row group in the making.
pub(crate) struct GroupEncoder {
    rows: usize,
    event_time: NumberColumn,
    event_time_kind: WordColumn,
    archived_at: ArchivedAt,
    source: ConstantColumn,
    source_partition: NumberColumn,
    source_offset: NumberColumn,
    leader_epoch: NumberColumn,
    key: StringColumn,
    value: StringColumn,
    headers: (StringColumn, StringColumn),
    properties: (StringColumn, StringColumn),
}

impl GroupEncoder {
    /// `archived_at` is that of all rows; `None` if each is told with its rows.
    pub(crate) fn new(plan: GroupPlan, source: &str, archived_at: Option<Timestamp>) -> Self {
        let schema = parquet_schema();
        let leaf = |leaf: Leaf| schema.column(leaf as usize);
        let strings = |name: Leaf| StringColumn::new(leaf(name), LEVEL_SMALL);
        let key = strings(Leaf::Key);
        Self {
            rows: 0,
            event_time: NumberColumn::new(leaf(Leaf::EventTime), true),
            event_time_kind: WordColumn::new(leaf(Leaf::EventTimeKind), &TIME_KINDS),
            archived_at: match archived_at {
                Some(at) => ArchivedAt::Same(ConstantColumn::number(leaf(Leaf::ArchivedAt), at.micros())),
                None => ArchivedAt::Each(NumberColumn::new(leaf(Leaf::ArchivedAt), false)),
            },
            source: ConstantColumn::text(leaf(Leaf::Source), source),
            source_partition: NumberColumn::new(leaf(Leaf::SourcePartition), true),
            source_offset: NumberColumn::new(leaf(Leaf::SourceOffset), true),
            leader_epoch: NumberColumn::new(leaf(Leaf::LeaderEpoch), false),
            key: match plan.filter_keys {
                Some(keys) => key.with_filter(keys),
                None => key,
            },
            value: StringColumn::new(leaf(Leaf::Value), plan.value_level),
            headers: (strings(Leaf::HeaderKey), strings(Leaf::HeaderValue)),
            properties: (strings(Leaf::PropertyKey), strings(Leaf::PropertyValue)),
        }
    }

    /// Appends rows of a block of one partition, archived at one moment.
    pub(crate) fn push(
        &mut self,
        codec: &mut Codec,
        partition: i32,
        archived_at: Timestamp,
        block: &Columns,
        rows: Range<usize>,
    ) {
        let mut at = rows.start;
        while at < rows.end {
            let next = at + self.rows_that_fit(block, at..rows.end);
            self.push_rows(partition, block, at..next);
            if let ArchivedAt::Each(column) = &mut self.archived_at {
                column.push_repeated(archived_at.micros(), next - at);
            }
            self.cut_full_pages(codec);
            at = next;
        }
    }

    /// Rows until the first page is full.
    fn rows_that_fit(&self, block: &Columns, rows: Range<usize>) -> usize {
        let room = |column: &StringColumn| PAGE_BYTES.saturating_sub(column.open_bytes());
        let by_rows = PAGE_ROWS - self.value.open_rows();
        let by_value = rows_within(block.values.offsets(), rows.clone(), room(&self.value));
        let by_key = rows_within(block.keys.offsets(), rows.clone(), room(&self.key));
        let lists = |pairs: &PairColumn, columns: &(StringColumn, StringColumn)| {
            list_rows_within(pairs, rows.clone(), room(&columns.0).min(room(&columns.1)))
        };
        let by_lists = lists(&block.headers, &self.headers).min(lists(&block.properties, &self.properties));
        rows.len().min(by_rows).min(by_value).min(by_key).min(by_lists).max(1)
    }

    fn push_rows(&mut self, partition: i32, block: &Columns, rows: Range<usize>) {
        self.event_time.push(&block.times[rows.clone()]);
        self.event_time_kind.push(block.time_kinds[rows.clone()].iter().map(|kind| kind_index(*kind)));
        self.source_partition.push_repeated(i64::from(partition), rows.len());
        self.source_offset.push(&block.positions[rows.clone()]);
        self.leader_epoch.push_nullable(&block.leader_epochs[rows.clone()]);
        self.key.push(&block.keys, rows.clone());
        self.value.push(&block.values, rows.clone());
        for (pairs, columns) in [(&block.headers, &mut self.headers), (&block.properties, &mut self.properties)] {
            columns.0.push_lists(pairs.offsets(), &pairs.names, rows.clone());
            columns.1.push_lists(pairs.offsets(), &pairs.values, rows.clone());
        }
        self.rows += rows.len();
    }

    fn cut_full_pages(&mut self, codec: &mut Codec) {
        let value_is_full = self.value.open_bytes() >= PAGE_BYTES_FULL || self.value.open_rows() >= PAGE_ROWS;
        if value_is_full {
            self.cut_aligned(codec);
        }
        let soft = |bytes: usize| bytes >= if value_is_full { PAGE_BYTES_SOFT } else { PAGE_BYTES_FULL };
        if soft(self.key.open_bytes()) || self.key.open_rows() >= PAGE_ROWS {
            self.key.cut(codec);
        }
        for (names, values) in [&mut self.headers, &mut self.properties] {
            let bytes = names.open_bytes() + values.open_bytes();
            if soft(bytes) || names.open_rows() >= PAGE_ROWS || names.open_values() >= PAGE_PAIRS {
                names.cut(codec);
                values.cut(codec);
            }
        }
        if self.event_time_kind.open_rows() >= PAGE_ROWS {
            self.event_time_kind.cut(codec);
        }
        if self.leader_epoch.open_rows() >= PAGE_ROWS {
            self.leader_epoch.cut(codec, true);
        }
        if let ArchivedAt::Each(column) = &mut self.archived_at
            && column.open_rows() >= PAGE_ROWS
        {
            column.cut(codec, false);
        }
    }

    fn cut_aligned(&mut self, codec: &mut Codec) {
        self.value.cut(codec);
        for column in [&mut self.event_time, &mut self.source_partition, &mut self.source_offset] {
            column.cut(codec, false);
        }
    }

    fn cut_all(&mut self, codec: &mut Codec) {
        self.cut_aligned(codec);
        self.event_time_kind.cut(codec);
        self.leader_epoch.cut(codec, true);
        if let ArchivedAt::Each(column) = &mut self.archived_at {
            column.cut(codec, false);
        }
        for column in self.strings_mut() {
            column.cut(codec);
        }
    }

    fn strings_mut(&mut self) -> [&mut StringColumn; 6] {
        let (headers, properties) = (&mut self.headers, &mut self.properties);
        [&mut self.key, &mut self.value, &mut headers.0, &mut headers.1, &mut properties.0, &mut properties.1]
    }

    fn strings(&self) -> [&StringColumn; 6] {
        let (headers, properties) = (&self.headers, &self.properties);
        [&self.key, &self.value, &headers.0, &headers.1, &properties.0, &properties.1]
    }

    fn numbers(&self) -> [&NumberColumn; 4] {
        [&self.event_time, &self.source_partition, &self.source_offset, &self.leader_epoch]
    }

    /// Compresses what is open and frees its buffers: smaller pages, far less memory.
    pub(crate) fn shrink(&mut self, codec: &mut Codec) {
        self.cut_all(codec);
        for column in self.strings_mut() {
            column.free_buffers();
        }
        let numbers = [&mut self.event_time, &mut self.source_partition, &mut self.source_offset, &mut self.leader_epoch];
        for column in numbers {
            column.free_buffers();
        }
        self.event_time_kind.free_buffers();
    }

    /// Bytes held.
    pub(crate) fn memory_bytes(&self) -> usize {
        let strings: usize = self.strings().iter().map(|column| column.memory_bytes()).sum();
        let numbers: usize = self.numbers().iter().map(|column| column.memory_bytes()).sum();
        strings + numbers + self.event_time_kind.memory_bytes() + FIXED_BYTES
    }

    /// Encoded bytes, finished pages and a guess at the open ones.
    pub(crate) fn encoded_bytes(&self) -> usize {
        let strings: usize = self.strings().iter().map(|column| column.encoded_bytes()).sum();
        let numbers: usize = self.numbers().iter().map(|column| column.encoded_bytes()).sum();
        strings + numbers
    }

    /// Ends the row group and writes it into `file`.
    pub(crate) fn close<W: Write + Send>(mut self, codec: &mut Codec, file: &mut SerializedFileWriter<W>) {
        self.cut_all(codec);
        let rows = self.rows;
        let mut group = file.next_row_group().expect("the row group before is closed");
        let mut append = |(bytes, close): (ChunkBytes, ColumnCloseResult)| {
            group.append_column(&bytes, close).expect("chunks come in the schema's order and a buffer takes every byte");
        };
        append(self.event_time.close(codec));
        append(self.event_time_kind.close(codec));
        append(match self.archived_at {
            ArchivedAt::Same(column) => column.close(codec, rows),
            ArchivedAt::Each(column) => column.close(codec),
        });
        append(self.source.close(codec, rows));
        for column in [self.source_partition, self.source_offset, self.leader_epoch] {
            append(column.close(codec));
        }
        append(self.key.close(codec));
        append(self.value.close(codec));
        for (names, values) in [self.headers, self.properties] {
            append(names.close(codec));
            append(values.close(codec));
        }
        group.close().expect("every column is there");
    }
}

/// A page counts as full a little before its limit: the row that would pass it stays out.
const PAGE_BYTES_FULL: usize = PAGE_BYTES - PAGE_BYTES / 16;

/// Structures of a row group that hold no data: descriptors, empty vectors.
const FIXED_BYTES: usize = 8 * 1024;
