//! Events as columns of bytes: how deliveries travel from the bus to the encoder without a heap object per event.
//!
//! Promises: what was pushed reads back byte for byte, null and empty apart; buffers keep their capacity when cleared, so
//! that a pool of them never touches fresh memory. Never: parse a payload.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::event::{Header, TimeKind};
use crate::limits::{OVERSIZE_ROOM, OVERSIZE_SHARE};
use crate::position::Position;
use crate::time::Timestamp;

/// Bytes that a row costs beside its payload: times, positions, offsets into the byte columns.
pub const ROW_OVERHEAD_BYTES: usize = 64;

/// A column of byte strings that may be null: one buffer, and where each row ends.
#[derive(Debug, Clone)]
pub struct ByteColumn {
    /// `offsets[row]..offsets[row + 1]` is the row; always one longer than the rows.
    offsets: Vec<i32>,
    bytes: Vec<u8>,
    valid: Vec<bool>,
    nulls: usize,
}

impl Default for ByteColumn {
    fn default() -> Self {
        Self { offsets: vec![0], bytes: Vec::new(), valid: Vec::new(), nulls: 0 }
    }
}

impl ByteColumn {
    /// Appends a row. The caller keeps a column below 2 GiB (see [`crate::limits::BLOCK_BYTES_MAX`]).
    pub fn push(&mut self, row: Option<&[u8]>) {
        self.bytes.extend_from_slice(row.unwrap_or_default());
        let end = i32::try_from(self.bytes.len()).expect("blocks are cut far below 2 GiB");
        self.offsets.push(end);
        self.valid.push(row.is_some());
        self.nulls += usize::from(row.is_none());
    }

    /// The row, `None` if it is null.
    pub fn get(&self, row: usize) -> Option<&[u8]> {
        self.valid[row].then(|| &self.bytes[self.offsets[row] as usize..self.offsets[row + 1] as usize])
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.valid.len()
    }

    /// True without rows.
    pub fn is_empty(&self) -> bool {
        self.valid.is_empty()
    }

    /// Where rows begin and end in [`Self::bytes`]: one more than there are rows.
    pub fn offsets(&self) -> &[i32] {
        &self.offsets
    }

    /// All rows, end to end.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Which rows are not null.
    pub fn valid(&self) -> &[bool] {
        &self.valid
    }

    /// How many rows are null.
    pub fn nulls(&self) -> usize {
        self.nulls
    }

    /// Lends the two large buffers (offsets, bytes) to an encoder; [`Self::restore`] takes them back.
    pub fn take_buffers(&mut self) -> (Vec<i32>, Vec<u8>) {
        (std::mem::take(&mut self.offsets), std::mem::take(&mut self.bytes))
    }

    /// Takes buffers back for reuse and clears the column.
    pub fn restore(&mut self, offsets: Vec<i32>, bytes: Vec<u8>) {
        (self.offsets, self.bytes) = (offsets, bytes);
        self.clear();
    }

    fn clear(&mut self) {
        self.offsets.clear();
        self.offsets.push(0);
        self.bytes.clear();
        self.valid.clear();
        self.nulls = 0;
    }

    fn append(&mut self, other: &Self) {
        let base = self.bytes.len() as i32;
        self.bytes.extend_from_slice(&other.bytes);
        i32::try_from(self.bytes.len()).expect("blocks are cut far below 2 GiB");
        self.offsets.extend(other.offsets[1..].iter().map(|end| base + end));
        self.valid.extend_from_slice(&other.valid);
        self.nulls += other.nulls;
    }

    fn row_bytes(&self, rows: Range<usize>) -> usize {
        (self.offsets[rows.end] - self.offsets[rows.start]) as usize
    }

    fn capacity(&self) -> usize {
        self.bytes.capacity() + self.offsets.capacity() * 4 + self.valid.capacity()
    }
}

/// A column of lists of named byte strings: the headers, or the properties, of each row.
#[derive(Debug, Clone)]
pub struct PairColumn {
    /// Row `r` owns the pairs `ends[r]..ends[r + 1]`.
    ends: Vec<i32>,
    /// Names; never null.
    pub names: ByteColumn,
    /// Values; may be null.
    pub values: ByteColumn,
}

impl Default for PairColumn {
    fn default() -> Self {
        Self { ends: vec![0], names: ByteColumn::default(), values: ByteColumn::default() }
    }
}

impl PairColumn {
    fn push(&mut self, name: &str, value: Option<&[u8]>) {
        self.names.push(Some(name.as_bytes()));
        self.values.push(value);
    }

    fn close_row(&mut self) {
        self.ends.push(self.names.len() as i32);
    }

    /// The pairs of a row, in order.
    pub fn row(&self, row: usize) -> impl Iterator<Item = Header<'_>> {
        (self.ends[row] as usize..self.ends[row + 1] as usize).map(|pair| {
            let name = self.names.get(pair).unwrap_or_default();
            (std::str::from_utf8(name).expect("names come in as str"), self.values.get(pair))
        })
    }

    /// Where each row's pairs begin and end: one more than there are rows.
    pub fn offsets(&self) -> &[i32] {
        &self.ends
    }

    fn clear(&mut self) {
        self.ends.clear();
        self.ends.push(0);
        self.names.clear();
        self.values.clear();
    }

    fn append(&mut self, other: &Self) {
        let base = self.names.len() as i32;
        self.ends.extend(other.ends[1..].iter().map(|end| base + end));
        self.names.append(&other.names);
        self.values.append(&other.values);
    }

    fn bytes(&self) -> usize {
        self.names.bytes.len() + self.values.bytes.len()
    }

    fn row_bytes(&self, row: usize) -> usize {
        let pairs = self.ends[row] as usize..self.ends[row + 1] as usize;
        self.names.row_bytes(pairs.clone()) + self.values.row_bytes(pairs)
    }
}

/// The fixed-size fields, key and value of one event, as it is pushed and as it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventFields<'a> {
    /// Its place in the lane.
    pub position: Position,
    /// Its settled time (see [`crate::event::settle_time`]).
    pub time: Timestamp,
    /// Where that time comes from.
    pub time_kind: TimeKind,
    /// The leader epoch, where the bus has one.
    pub leader_epoch: Option<i32>,
    /// The key; null and empty are different.
    pub key: Option<&'a [u8]>,
    /// The value; null is a tombstone.
    pub value: Option<&'a [u8]>,
}

/// Events of one lane, in the order of their positions.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    /// Positions as the files write them.
    pub positions: Vec<i64>,
    /// Event times in microseconds.
    pub times: Vec<i64>,
    /// Kinds of those times.
    pub time_kinds: Vec<TimeKind>,
    /// Leader epochs; below zero is none.
    pub leader_epochs: Vec<i32>,
    /// Keys.
    pub keys: ByteColumn,
    /// Values.
    pub values: ByteColumn,
    /// Headers, in order, duplicates and nulls kept.
    pub headers: PairColumn,
    /// Properties of the bus; values are text.
    pub properties: PairColumn,
}

impl Columns {
    /// Appends an event with its headers and properties.
    pub fn push<'a>(
        &mut self,
        event: EventFields<'_>,
        headers: impl IntoIterator<Item = Header<'a>>,
        properties: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) {
        self.positions.push(event.position.as_i64());
        self.times.push(event.time.micros());
        self.time_kinds.push(event.time_kind);
        self.leader_epochs.push(event.leader_epoch.unwrap_or(-1));
        self.keys.push(event.key);
        self.values.push(event.value);
        for (name, value) in headers {
            self.headers.push(name, value);
        }
        self.headers.close_row();
        for (name, value) in properties {
            self.properties.push(name, Some(value.as_bytes()));
        }
        self.properties.close_row();
    }

    /// How many events.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// True without events.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// The fields of a row; its headers are `headers.row(row)`.
    pub fn get(&self, row: usize) -> EventFields<'_> {
        EventFields {
            position: Position::new(self.positions[row] as u64),
            time: Timestamp::from_micros(self.times[row]),
            time_kind: self.time_kinds[row],
            leader_epoch: Some(self.leader_epochs[row]).filter(|epoch| *epoch >= 0),
            key: self.keys.get(row),
            value: self.values.get(row),
        }
    }

    /// Copies one row of `other` to the end.
    pub fn push_row_of(&mut self, other: &Self, row: usize) {
        let properties = other
            .properties
            .row(row)
            .map(|(name, value)| (name, std::str::from_utf8(value.unwrap_or_default()).unwrap_or_default()));
        self.push(other.get(row), other.headers.row(row), properties);
    }

    /// Copies all rows of `other` to the end.
    pub fn append(&mut self, other: &Self) {
        self.positions.extend_from_slice(&other.positions);
        self.times.extend_from_slice(&other.times);
        self.time_kinds.extend_from_slice(&other.time_kinds);
        self.leader_epochs.extend_from_slice(&other.leader_epochs);
        self.keys.append(&other.keys);
        self.values.append(&other.values);
        self.headers.append(&other.headers);
        self.properties.append(&other.properties);
    }

    /// Payload bytes: keys, values, header names and header values. This is what "bytes" means in plans and metrics.
    pub fn payload_bytes(&self) -> usize {
        self.keys.bytes.len() + self.values.bytes.len() + self.headers.bytes()
    }

    /// The raw size of the rows: payload, properties, and [`ROW_OVERHEAD_BYTES`] a row. Buffers may hold more, see [`Self::held_bytes`].
    pub fn memory_bytes(&self) -> usize {
        self.payload_bytes() + self.properties.bytes() + self.len() * ROW_OVERHEAD_BYTES
    }

    /// The raw size of one row: its part of [`Self::memory_bytes`].
    pub fn row_bytes(&self, row: usize) -> usize {
        let pairs = self.headers.row_bytes(row) + self.properties.row_bytes(row);
        self.keys.row_bytes(row..row + 1) + self.values.row_bytes(row..row + 1) + pairs + ROW_OVERHEAD_BYTES
    }

    /// The room that the rows take in a budget of `capacity`: their size, and for over-size ones what packing them needs besides.
    pub fn room_bytes(&self, capacity: usize) -> usize {
        let size = self.memory_bytes();
        let oversize = capacity / OVERSIZE_SHARE;
        if size < oversize {
            return size;
        }
        let large = (0..self.len()).map(|row| self.row_bytes(row)).filter(|bytes| *bytes >= oversize);
        size + (OVERSIZE_ROOM - 1) * large.sum::<usize>()
    }

    /// Empties all columns and keeps their capacity.
    pub fn clear(&mut self) {
        self.positions.clear();
        self.times.clear();
        self.time_kinds.clear();
        self.leader_epochs.clear();
        self.keys.clear();
        self.values.clear();
        self.headers.clear();
        self.properties.clear();
    }

    /// What the buffers hold in memory, used or not.
    pub fn held_bytes(&self) -> usize {
        let pairs = |pairs: &PairColumn| pairs.names.capacity() + pairs.values.capacity() + pairs.ends.capacity() * 4;
        self.keys.capacity()
            + self.values.capacity()
            + pairs(&self.headers)
            + pairs(&self.properties)
            + self.positions.capacity() * 21
    }
}

/// Used columns, kept for reuse: fresh memory costs three to six times the copy into it.
#[derive(Debug)]
pub struct ColumnsPool {
    idle: Mutex<Vec<Columns>>,
    idle_bytes_max: usize,
}

impl ColumnsPool {
    /// A pool that keeps at most `idle_bytes_max` bytes of idle buffers.
    pub fn new(idle_bytes_max: usize) -> Self {
        Self { idle: Mutex::new(Vec::new()), idle_bytes_max }
    }

    /// Empty columns, used ones if there are any.
    pub fn take(&self) -> Columns {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Gives columns back. Over the limit, or much larger than usual, they are freed instead.
    pub fn give_back(&self, mut columns: Columns) {
        columns.clear();
        let size = columns.held_bytes();
        if size == 0 || size > crate::limits::POOLED_COLUMNS_BYTES_MAX {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let held: usize = idle.iter().map(Columns::held_bytes).sum();
        if held + size <= self.idle_bytes_max {
            idle.push(columns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields<'a>(position: u64, key: Option<&'a [u8]>, value: Option<&'a [u8]>) -> EventFields<'a> {
        EventFields {
            position: Position::new(position),
            time: Timestamp::from_micros(position as i64),
            time_kind: TimeKind::Create,
            leader_epoch: position.is_multiple_of(2).then_some(7),
            key,
            value,
        }
    }

    #[test]
    fn null_empty_and_repeated_headers_read_back_as_they_were() {
        let mut columns = Columns::default();
        columns.push(fields(1, None, Some(b"")), [("a", None), ("a", Some(&b""[..])), ("", Some(b"x"))], []);
        columns.push(fields(4, Some(b""), None), [], [("raw", "9")]);
        assert_eq!(columns.get(0), fields(1, None, Some(b"")));
        assert_eq!(columns.get(1), fields(4, Some(b""), None));
        let headers: Vec<_> = columns.headers.row(0).collect();
        assert_eq!(headers, [("a", None), ("a", Some(&b""[..])), ("", Some(&b"x"[..]))]);
        assert_eq!(columns.properties.row(1).next(), Some(("raw", Some(&b"9"[..]))));
        assert_eq!(columns.headers.row(1).count(), 0);
    }

    #[test]
    fn appending_equals_pushing_row_by_row() {
        let mut source = Columns::default();
        for position in 0..9 {
            let text = position.to_string();
            source.push(fields(position, Some(text.as_bytes()), None), [("h", Some(text.as_bytes()))], [("p", text.as_str())]);
        }
        let (mut whole, mut rows) = (Columns::default(), Columns::default());
        for _ in 0..2 {
            whole.append(&source);
            (0..source.len()).for_each(|row| rows.push_row_of(&source, row));
        }
        assert_eq!(format!("{whole:?}"), format!("{rows:?}"));
    }

    #[test]
    fn rows_add_up_and_large_ones_take_more_room() {
        let mut columns = Columns::default();
        for position in 0..9 {
            let value = vec![b'x'; if position == 4 { 5_000 } else { 10 }];
            let name = "h".repeat(position as usize);
            columns.push(fields(position, Some(b"key"), Some(&value)), [(name.as_str(), Some(&b"v"[..]))], [("p", "q")]);
        }
        let rows: usize = (0..9).map(|row| columns.row_bytes(row)).sum();
        assert_eq!(rows, columns.memory_bytes());
        let large = columns.row_bytes(4);
        assert_eq!(columns.room_bytes(8 * large), rows + (OVERSIZE_ROOM - 1) * large);
        assert_eq!(columns.room_bytes(8 * large + 8), rows, "just not over-size");
    }

    #[test]
    fn a_pool_keeps_no_more_than_its_limit() {
        let pool = ColumnsPool::new(1);
        let mut columns = Columns::default();
        columns.push(fields(0, Some(b"key"), None), [], []);
        pool.give_back(columns);
        assert_eq!(pool.take().held_bytes(), Columns::default().held_bytes());
    }
}
