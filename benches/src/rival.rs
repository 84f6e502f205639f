//! The general Parquet writer, set up as like ours as its settings allow: same columns, encodings, codec, pages, row groups,
//! filter and statistics. Our own page encoder has to earn its place beside it.

use std::io::Write;
use std::sync::Arc;

use anyhow::Result;
use arrow::array::TimestampMicrosecondArray;
use arrow::array::{ArrayRef, BinaryArray, Int32Array, Int64Array, ListArray, MapArray, RecordBatch, StringArray, StructArray};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Fields};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use tapedeck_common::columns::{ByteColumn, Columns, PairColumn};
use tapedeck_storage::schema::arrow_schema;
use tapedeck_testbed::events::BASE_MS;

use crate::rows::source;

const PAGE_BYTES: usize = 1 << 20;
const PAGE_ROWS: usize = 20_000;
/// Rows between two looks at the size of a page: so few that pages of values end near their limit.
const LOOK_ROWS: usize = 64;
const FALSE_POSITIVES: f64 = 0.05;

/// A writer of row groups of `group_rows`, values at zstd `value_level`.
pub fn writer<W: Write + Send>(sink: W, value_level: i32, group_rows: usize) -> Result<ArrowWriter<W>> {
    Ok(ArrowWriter::try_new(sink, arrow_schema(), Some(properties(value_level, group_rows)?))?)
}

fn properties(value_level: i32, group_rows: usize) -> Result<WriterProperties> {
    let path = |name: &str| ColumnPath::from(name.split('.').map(str::to_owned).collect::<Vec<_>>());
    let zstd = |level| Ok::<_, parquet::errors::ParquetError>(Compression::ZSTD(ZstdLevel::try_new(level)?));
    let mut builder = WriterProperties::builder()
        .set_compression(zstd(1)?)
        .set_column_compression(path("value"), zstd(value_level)?)
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_data_page_size_limit(PAGE_BYTES)
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_write_batch_size(LOOK_ROWS)
        .set_max_row_group_row_count(Some(group_rows))
        .set_column_bloom_filter_enabled(path("key"), true)
        .set_column_bloom_filter_fpp(path("key"), FALSE_POSITIVES)
        .set_column_bloom_filter_max_ndv(path("key"), group_rows as u64);
    for number in ["event_time", "source_partition", "source_offset", "leader_epoch"] {
        builder = builder.set_column_encoding(path(number), Encoding::DELTA_BINARY_PACKED);
    }
    for indexed in ["event_time", "source_partition", "source_offset"] {
        builder = builder.set_column_statistics_enabled(path(indexed), EnabledStatistics::Page);
    }
    for constant in ["event_time_kind", "archived_at", "source"] {
        builder = builder.set_column_dictionary_enabled(path(constant), true);
    }
    let header = ["headers.list.element.key", "headers.list.element.value"];
    for string in ["key", "value", header[0], header[1], "properties.key_value.key", "properties.key_value.value"] {
        builder = builder.set_column_encoding(path(string), Encoding::DELTA_LENGTH_BYTE_ARRAY);
    }
    Ok(builder.build())
}

/// A block as the general writer wants it.
pub fn record_batch(partition: i32, block: &Columns) -> Result<RecordBatch> {
    let rows = block.len();
    let schema = arrow_schema();
    let kinds = block.time_kinds.iter().map(|kind| kind.as_str());
    let epochs = block.leader_epochs.iter().map(|epoch| (*epoch >= 0).then_some(*epoch));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(TimestampMicrosecondArray::from(block.times.clone()).with_timezone("UTC")),
        Arc::new(StringArray::from_iter_values(kinds)),
        Arc::new(TimestampMicrosecondArray::from(vec![BASE_MS * 1_000; rows]).with_timezone("UTC")),
        Arc::new(StringArray::from_iter_values(std::iter::repeat_n(source(), rows))),
        Arc::new(Int32Array::from(vec![partition; rows])),
        Arc::new(Int64Array::from(block.positions.clone())),
        Arc::new(Int32Array::from_iter(epochs)),
        Arc::new(binary(&block.keys)?),
        Arc::new(binary(&block.values)?),
        headers(schema.field(9).data_type(), &block.headers)?,
        properties_column(schema.field(10).data_type(), &block.properties)?,
    ];
    Ok(RecordBatch::try_new(schema, columns)?)
}

fn offsets(offsets: &[i32]) -> OffsetBuffer<i32> {
    OffsetBuffer::new(ScalarBuffer::from(offsets.to_vec()))
}

fn binary(column: &ByteColumn) -> Result<BinaryArray> {
    let nulls = (column.nulls() > 0).then(|| NullBuffer::from(column.valid().to_vec()));
    Ok(BinaryArray::try_new(offsets(column.offsets()), Buffer::from_slice_ref(column.bytes()), nulls)?)
}

fn text(column: &ByteColumn) -> Result<StringArray> {
    Ok(StringArray::try_new(offsets(column.offsets()), Buffer::from_slice_ref(column.bytes()), None)?)
}

fn pair_fields(data_type: &DataType) -> &Fields {
    match data_type {
        DataType::Struct(fields) => fields,
        other => unreachable!("layout 1 has pairs here, not {other}"),
    }
}

fn headers(data_type: &DataType, pairs: &PairColumn) -> Result<ArrayRef> {
    let DataType::List(element) = data_type else { unreachable!("headers are a list") };
    let columns: Vec<ArrayRef> = vec![Arc::new(text(&pairs.names)?), Arc::new(binary(&pairs.values)?)];
    let pairs_of = StructArray::try_new(pair_fields(element.data_type()).clone(), columns, None)?;
    Ok(Arc::new(ListArray::try_new(Arc::clone(element), offsets(pairs.offsets()), Arc::new(pairs_of), None)?))
}

fn properties_column(data_type: &DataType, pairs: &PairColumn) -> Result<ArrayRef> {
    let DataType::Map(entry, ordered) = data_type else { unreachable!("properties are a map") };
    let columns: Vec<ArrayRef> = vec![Arc::new(text(&pairs.names)?), Arc::new(text(&pairs.values)?)];
    let pairs_of = StructArray::try_new(pair_fields(entry.data_type()).clone(), columns, None)?;
    Ok(Arc::new(MapArray::try_new(Arc::clone(entry), offsets(pairs.offsets()), pairs_of, None, *ordered)?))
}
