//! Decoded events, a thousand at a time, without an object per event.
//!
//! Promise: keys, values and headers are borrowed from the decoded pages. Never: guesses; a column that was not read is
//! asked for only by mistake, and says so.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BinaryViewArray, ByteView, MAX_INLINE_VIEW_LEN, RecordBatch, StringViewArray, StructArray};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use bytes::Bytes;
use tapedeck_common::event::{Header, TimeKind};
use tapedeck_common::{Position, Timestamp};

/// One event of a batch; its headers are [`EventBatch::headers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventRow<'a> {
    /// Its partition.
    pub partition: i32,
    /// Its place in the lane.
    pub position: Position,
    /// Its time.
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

/// Events of one segment, in its order.
#[derive(Debug, Clone)]
pub struct EventBatch {
    times: ScalarBuffer<i64>,
    partitions: ScalarBuffer<i32>,
    positions: ScalarBuffer<i64>,
    archived_at: Option<ScalarBuffer<i64>>,
    payload: Option<Payload>,
    headers: Option<Pairs<BinaryViewArray>>,
}

#[derive(Debug, Clone)]
struct Payload {
    kinds: Vec<TimeKind>,
    epochs: arrow::array::Int32Array,
    keys: BinaryViewArray,
    values: BinaryViewArray,
    /// What the values' views point into, once [`EventBatch::lend`] was called.
    lent: Vec<Bytes>,
    properties: Pairs<StringViewArray>,
}

/// A page that somebody else reads too, and the room that it takes meanwhile.
struct Lent<R> {
    buffer: Buffer,
    _room: Arc<R>,
}

impl<R> AsRef<[u8]> for Lent<R> {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

/// The pairs of each row: row `r` owns `ends[r]..ends[r + 1]`.
#[derive(Debug, Clone)]
struct Pairs<V> {
    ends: OffsetBuffer<i32>,
    names: StringViewArray,
    values: V,
}

impl<V> Pairs<V> {
    fn of(&self, row: usize) -> std::ops::Range<usize> {
        self.ends[row] as usize..self.ends[row + 1] as usize
    }
}

impl EventBatch {
    /// Wraps decoded columns; the error says which value has no meaning.
    pub(crate) fn new(record: &RecordBatch) -> Result<Self, String> {
        let column = |name: &str| record.column_by_name(name);
        let required = |name: &str| column(name).ok_or_else(|| format!("column {name} is missing"));
        let times = required("event_time")?.as_primitive::<TimestampMicrosecondType>().values().clone();
        let partitions = required("source_partition")?.as_primitive::<Int32Type>().values().clone();
        let positions = required("source_offset")?.as_primitive::<Int64Type>().values().clone();
        if let Some(below) = positions.iter().find(|position| **position < 0) {
            return Err(format!("position {below} is below zero"));
        }
        let payload = match column("value") {
            None => None,
            Some(values) => Some(Payload {
                kinds: time_kinds(required("event_time_kind")?.as_string_view())?,
                epochs: required("leader_epoch")?.as_primitive::<Int32Type>().clone(),
                keys: required("key")?.as_binary_view().clone(),
                values: values.as_binary_view().clone(),
                lent: Vec::new(),
                properties: {
                    let map = required("properties")?.as_map();
                    let (names, values) = pair_columns(map.entries());
                    Pairs { ends: map.offsets().clone(), names, values: values.as_string_view().clone() }
                },
            }),
        };
        let headers = column("headers").map(|headers| {
            let list = headers.as_list::<i32>();
            let (names, values) = pair_columns(list.values().as_struct());
            Pairs { ends: list.offsets().clone(), names, values: values.as_binary_view().clone() }
        });
        let archived_at = column("archived_at").map(|times| times.as_primitive::<TimestampMicrosecondType>().values().clone());
        Ok(Self { times, partitions, positions, archived_at, payload, headers })
    }

    /// How many events.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// True without events.
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    /// The place of an event: its partition, position and time.
    pub fn place(&self, row: usize) -> (i32, Position, Timestamp) {
        let position = Position::from_i64(self.positions[row]).expect("checked when the batch was made");
        (self.partitions[row], position, Timestamp::from_micros(self.times[row]))
    }

    /// When an event was archived. Panics if that was not read.
    pub fn archived_at(&self, row: usize) -> Timestamp {
        let times = self.archived_at.as_ref().expect("it is only asked for where the scan reads it");
        Timestamp::from_micros(times[row])
    }

    /// An event. Panics if only places were read.
    pub fn row(&self, row: usize) -> EventRow<'_> {
        let payload = self.payload();
        let (partition, position, time) = self.place(row);
        EventRow {
            partition,
            position,
            time,
            time_kind: payload.kinds[row],
            leader_epoch: payload.epochs.is_valid(row).then(|| payload.epochs.value(row)),
            key: payload.keys.is_valid(row).then(|| payload.keys.value(row)),
            value: payload.values.is_valid(row).then(|| payload.values.value(row)),
        }
    }

    /// Lets values be had without a copy. Each that was taken keeps its page in memory, and `room`, which accounts for that.
    pub fn lend<R: Send + Sync + 'static>(&mut self, room: &Arc<R>) {
        if let Some(Payload { values, lent, .. }) = &mut self.payload {
            let lend = |buffer: &Buffer| Bytes::from_owner(Lent { buffer: buffer.clone(), _room: Arc::clone(room) });
            *lent = values.data_buffers().iter().map(lend).collect();
        }
    }

    /// An event's value without a copy. Panics if only places were read, or before [`Self::lend`].
    pub fn shared_value(&self, row: usize) -> Option<Bytes> {
        let Payload { values, lent, .. } = self.payload();
        if values.is_null(row) {
            return None;
        }
        let view = ByteView::from(values.views()[row]);
        // Values this short lie in their views.
        if view.length <= MAX_INLINE_VIEW_LEN {
            return Some(Bytes::copy_from_slice(values.value(row)));
        }
        let from = view.offset as usize;
        Some(lent[view.buffer_index as usize].slice(from..from + view.length as usize))
    }

    /// Replaces what is in `into` by the headers of an event, in order. Panics if headers were not read.
    pub fn headers<'a>(&'a self, row: usize, into: &mut Vec<Header<'a>>) {
        let headers = self.headers.as_ref().expect("headers are only asked for where the scan reads them");
        into.clear();
        into.extend(headers.of(row).map(|pair| {
            let value = headers.values.is_valid(pair).then(|| headers.values.value(pair));
            (headers.names.value(pair), value)
        }));
    }

    /// The properties of an event, in order. Panics if only places were read.
    pub fn properties(&self, row: usize) -> impl Iterator<Item = (&str, &str)> {
        let properties = &self.payload().properties;
        properties.of(row).map(|pair| (properties.names.value(pair), properties.values.value(pair)))
    }

    /// The property with this name. Panics if only places were read.
    pub fn property(&self, row: usize, name: &str) -> Option<&str> {
        self.properties(row).find(|property| property.0 == name).map(|property| property.1)
    }

    fn payload(&self) -> &Payload {
        self.payload.as_ref().expect("events are only asked for where the scan reads them")
    }
}

fn pair_columns(pairs: &StructArray) -> (StringViewArray, &Arc<dyn Array>) {
    (pairs.column(0).as_string_view().clone(), pairs.column(1))
}

fn time_kinds(words: &StringViewArray) -> Result<Vec<TimeKind>, String> {
    let mut kinds = Vec::with_capacity(words.len());
    // Words this short are their own view: an equal view is an equal word.
    let mut known = (None, TimeKind::Arrival);
    for (row, view) in words.views().iter().enumerate() {
        if known.0 != Some(view) {
            let word = words.value(row);
            known = (Some(view), TimeKind::parse(word).ok_or_else(|| format!("there is no event_time_kind {word:?}"))?);
        }
        kinds.push(known.1);
    }
    Ok(kinds)
}
