//! The rows of a checkpoint as Arrow columns: protocol, metaData and positions; removed segments; live segments.
//! Promises: the same state gives the same rows. Pure.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Date32Array, RecordBatch, StructArray, TimestampMicrosecondArray, new_null_array,
};
use arrow::datatypes::Fields;
use tapedeck_common::commit::SegmentRef;
use tapedeck_common::{Timestamp, Window};

use super::columns::{self, ints, lists, longs, maps, texts};
use crate::log::genesis::Genesis;
use crate::log::record::{self, Removed};
use crate::log::state::LogState;

/// Everything but segments. Nothing for a state before record 0.
pub(super) fn head(state: &LogState) -> Vec<RecordBatch> {
    let Some(genesis) = state.genesis() else { return Vec::new() };
    let batches = [("protocol", protocol(genesis)), ("metaData", meta_data(genesis)), ("txn", txns(state))];
    batches.into_iter().filter(|(_, rows)| !rows.is_empty()).map(|(name, rows)| batch(name, rows)).collect()
}

/// Removed segments.
pub(super) fn removes(removed: &[Removed]) -> RecordBatch {
    batch("remove", removed_rows(removed))
}

/// Live segments.
pub(super) fn adds(segments: &[SegmentRef]) -> RecordBatch {
    batch("add", live_rows(segments))
}

/// Rows of one kind: their own column, and null in all others.
fn batch(name: &str, rows: StructArray) -> RecordBatch {
    let schema = columns::schema();
    let count = rows.len();
    let rows: ArrayRef = Arc::new(rows);
    let arrays = schema
        .fields()
        .iter()
        .map(|field| if field.name() == name { Arc::clone(&rows) } else { new_null_array(field.data_type(), count) });
    let arrays = arrays.collect();
    RecordBatch::try_new(schema, arrays).expect("every column has the schema's type and the same length")
}

fn rows_of(fields: Fields, arrays: Vec<ArrayRef>) -> StructArray {
    StructArray::new(fields, arrays, None)
}

fn protocol(genesis: &Genesis) -> StructArray {
    let protocol = genesis.writers.protocol();
    let number = |version: u32| ints([version as i32]);
    rows_of(
        columns::protocol(),
        vec![
            number(protocol.min_reader_version),
            number(protocol.min_writer_version),
            lists(&[protocol.reader_features]),
            lists(&[protocol.writer_features]),
        ],
    )
}

fn meta_data(genesis: &Genesis) -> StructArray {
    let meta = genesis.meta_data();
    let format = rows_of(columns::format(), vec![texts([meta.format.provider]), maps(&vec![Vec::new()])]);
    rows_of(
        columns::meta_data(),
        vec![
            texts([meta.id]),
            texts([genesis.table.clone()]),
            Arc::new(format),
            texts([meta.schema_string]),
            lists(&[Some(meta.partition_columns)]),
            maps(&vec![meta.configuration.into_iter().collect()]),
            longs([genesis.created_ms]),
        ],
    )
}

fn txns(state: &LogState) -> StructArray {
    let updated = |lane| state.last_updated_ms().get(lane).copied().unwrap_or_default();
    let lanes = || state.positions().iter();
    rows_of(
        columns::txn(),
        vec![
            texts(lanes().map(|(lane, _)| lane.to_string())),
            longs(lanes().map(|(_, next)| next.as_i64())),
            longs(lanes().map(|(lane, _)| updated(lane))),
        ],
    )
}

fn removed_rows(removed: &[Removed]) -> StructArray {
    let rows = || removed.iter();
    rows_of(
        columns::remove(),
        vec![
            texts(rows().map(|removed| removed.path.clone())),
            longs(rows().map(|removed| removed.at_ms)),
            Arc::new(rows().map(|removed| Some(removed.data_change)).collect::<BooleanArray>()),
        ],
    )
}

fn live_rows(segments: &[SegmentRef]) -> StructArray {
    let rows = || segments.iter();
    let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>();
    let partition_values = rows().map(record::partition_values);
    let partition_values = partition_values.map(|v| map(&[("topic", &v.topic), ("date", &v.date), ("hour", &v.hour)])).collect();
    let tags = rows().map(record::tags).map(|tags| {
        let pairs = [("source", &tags.source), ("lanes", &tags.lanes), ("blake3", &tags.blake3)];
        map(&[pairs[0], pairs[1], pairs[2], ("payload_bytes", &tags.payload_bytes)].map(|(k, v)| (k, v.as_str())))
    });
    let stats = rows().map(|segment| serde_json::to_string(&record::stats(segment)).expect("plain data always serialises"));
    rows_of(
        columns::add(),
        vec![
            texts(rows().map(|segment| segment.path.clone())),
            maps(&partition_values),
            longs(rows().map(|segment| segment.size as i64)),
            longs(rows().map(|segment| segment.modified.millis_floor())),
            Arc::new(rows().map(|_| Some(true)).collect::<BooleanArray>()),
            maps(&tags.collect()),
            texts(stats),
            Arc::new(parsed_partition_values(segments)),
            Arc::new(parsed_stats(segments)),
        ],
    )
}

fn parsed_partition_values(segments: &[SegmentRef]) -> StructArray {
    let days = |window: Window| window.start().micros().div_euclid(86_400_000_000) as i32;
    rows_of(
        columns::partition_values(),
        vec![
            texts(segments.iter().map(|segment| segment.topic.to_string())),
            Arc::new(Date32Array::from_iter_values(segments.iter().map(|segment| days(segment.window)))),
            ints(segments.iter().map(|segment| i32::from(segment.window.hour()))),
        ],
    )
}

fn parsed_stats(segments: &[SegmentRef]) -> StructArray {
    let stats: Vec<_> = segments.iter().map(record::stats).collect();
    let bounds: Vec<_> = segments.iter().map(record::time_bounds_ms).collect();
    let times = |millis: Vec<Option<i64>>| {
        let micros = millis.into_iter().map(|ms| ms.and_then(Timestamp::from_millis).map(Timestamp::micros));
        Arc::new(TimestampMicrosecondArray::from_iter(micros).with_timezone("UTC"))
    };
    let side = |times: ArrayRef, pick: &dyn Fn(usize) -> (i32, u64)| {
        let numbers = || (0..stats.len()).map(pick);
        let offsets = longs(numbers().map(|(_, offset)| offset as i64));
        Arc::new(rows_of(columns::bounds(), vec![times, ints(numbers().map(|(partition, _)| partition)), offsets]))
    };
    let minimum = side(times(bounds.iter().map(|(from, _)| Some(*from)).collect()), &|row| {
        (stats[row].min_values.source_partition, stats[row].min_values.source_offset)
    });
    let maximum = side(times(bounds.iter().map(|(_, until)| *until).collect()), &|row| {
        (stats[row].max_values.source_partition, stats[row].max_values.source_offset)
    });
    let nulls = |pick: &dyn Fn(&SegmentRef) -> u64| longs(segments.iter().map(|segment| pick(segment) as i64));
    let null_counts = vec![nulls(&|_| 0), nulls(&|_| 0), nulls(&|_| 0), nulls(&|s| s.null_keys), nulls(&|s| s.null_values)];
    rows_of(
        columns::stats(),
        vec![
            longs(stats.iter().map(|stats| stats.num_records as i64)),
            minimum,
            maximum,
            Arc::new(rows_of(columns::null_counts(), null_counts)),
        ],
    )
}
