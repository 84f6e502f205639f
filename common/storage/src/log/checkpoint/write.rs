//! Encodes a state as a checkpoint: everything but adds in the head row group, then the adds by hour and topic.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Date32Array, RecordBatch, StructArray, TimestampMicrosecondArray, new_null_array,
};
use arrow::datatypes::Fields;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use tapedeck_common::commit::SegmentRef;
use tapedeck_common::error::BoxError;
use tapedeck_common::{ErrorKind, Timestamp, Window};

use super::MARK;
use super::columns::{self, ints, lists, longs, maps, texts};
use crate::log::record;
use crate::log::state::{LogState, Segments};
use crate::store::StoreError;

/// Adds of a row group: small enough that a plan for one hour reads little, large enough to compress.
const ADDS_PER_GROUP: usize = 10_000;

/// An encoded checkpoint.
pub(super) struct Encoded {
    pub(super) bytes: Bytes,
    /// How many actions it holds.
    pub(super) actions: u64,
}

pub(super) fn encode(state: &LogState) -> Result<Encoded, StoreError> {
    encode_rows(state).map_err(|source: BoxError| StoreError {
        what: "cannot encode a checkpoint".to_owned(),
        kind: ErrorKind::Bug,
        source: Some(source),
    })
}

fn encode_rows(state: &LogState) -> Result<Encoded, BoxError> {
    let none = Segments::default();
    let segments = state.segments().unwrap_or(&none);
    let mut writer = ArrowWriter::try_new(Vec::new(), columns::schema(), Some(properties()?))?;
    let mut actions = 0;
    let mut put = |writer: &mut ArrowWriter<Vec<u8>>, name: &str, rows: StructArray| {
        actions += rows.len() as u64;
        if rows.is_empty() { Ok(()) } else { writer.write(&batch(name, rows)) }
    };
    let genesis = state.genesis().ok_or("a checkpoint needs a record 0")?;
    put(&mut writer, "protocol", protocol(genesis))?;
    put(&mut writer, "metaData", meta_data(genesis))?;
    put(&mut writer, "txn", txns(state))?;
    put(&mut writer, "remove", removes(segments))?;
    writer.flush()?;
    let mut adds: Vec<&SegmentRef> = segments.live.values().map(|live| &live.segment).collect();
    adds.sort_by(|a, b| (a.window, &a.topic, &a.path).cmp(&(b.window, &b.topic, &b.path)));
    for group in adds.chunks(ADDS_PER_GROUP) {
        put(&mut writer, "add", adds_of(group))?;
        writer.flush()?;
    }
    Ok(Encoded { bytes: writer.into_inner()?.into(), actions })
}

fn properties() -> Result<WriterProperties, ParquetError> {
    let mark = KeyValue { key: MARK.0.to_owned(), value: Some(MARK.1.to_owned()) };
    let zstd = Compression::ZSTD(ZstdLevel::try_new(1)?);
    Ok(WriterProperties::builder().set_compression(zstd).set_key_value_metadata(Some(vec![mark])).build())
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

fn protocol(genesis: &crate::log::genesis::Genesis) -> StructArray {
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

fn meta_data(genesis: &crate::log::genesis::Genesis) -> StructArray {
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

fn removes(segments: &Segments) -> StructArray {
    let rows = || segments.removed.values();
    rows_of(
        columns::remove(),
        vec![
            texts(rows().map(|removed| removed.path.clone())),
            longs(rows().map(|removed| removed.at_ms)),
            Arc::new(rows().map(|removed| Some(removed.data_change)).collect::<BooleanArray>()),
        ],
    )
}

fn adds_of(segments: &[&SegmentRef]) -> StructArray {
    let rows = || segments.iter().copied();
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

fn parsed_partition_values(segments: &[&SegmentRef]) -> StructArray {
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

fn parsed_stats(segments: &[&SegmentRef]) -> StructArray {
    let stats: Vec<_> = segments.iter().map(|segment| record::stats(segment)).collect();
    let bounds: Vec<_> = segments.iter().map(|segment| record::time_bounds_ms(segment)).collect();
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
