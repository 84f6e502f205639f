//! The columns of a checkpoint, as the Delta protocol lays them out for classic single-file checkpoints.
//! Everything may be null, since each row fills one of the five structs.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, ListArray, MapArray, StringArray, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};

/// A map's pairs, row by row.
pub(super) type Pairs = Vec<Vec<(String, String)>>;

pub(super) fn schema() -> SchemaRef {
    let column = |name: &str, fields: Fields| Field::new(name, DataType::Struct(fields), true);
    Arc::new(Schema::new(vec![
        column("txn", txn()),
        column("add", add()),
        column("remove", remove()),
        column("metaData", meta_data()),
        column("protocol", protocol()),
    ]))
}

fn field(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}

fn structure(name: &str, fields: Fields) -> Field {
    field(name, DataType::Struct(fields))
}

pub(super) fn txn() -> Fields {
    Fields::from(vec![field("appId", DataType::Utf8), field("version", DataType::Int64), field("lastUpdated", DataType::Int64)])
}

pub(super) fn add() -> Fields {
    Fields::from(vec![
        field("path", DataType::Utf8),
        field("partitionValues", map_type()),
        field("size", DataType::Int64),
        field("modificationTime", DataType::Int64),
        field("dataChange", DataType::Boolean),
        field("tags", map_type()),
        field("stats", DataType::Utf8),
        structure("partitionValues_parsed", partition_values()),
        structure("stats_parsed", stats()),
    ])
}

pub(super) fn partition_values() -> Fields {
    Fields::from(vec![field("topic", DataType::Utf8), field("date", DataType::Date32), field("hour", DataType::Int32)])
}

pub(super) fn stats() -> Fields {
    Fields::from(vec![
        field("numRecords", DataType::Int64),
        structure("minValues", bounds()),
        structure("maxValues", bounds()),
        structure("nullCount", null_counts()),
    ])
}

pub(super) fn bounds() -> Fields {
    Fields::from(vec![
        field("event_time", DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC")))),
        field("source_partition", DataType::Int32),
        field("source_offset", DataType::Int64),
    ])
}

pub(super) fn null_counts() -> Fields {
    let names = ["event_time", "source_partition", "source_offset", "key", "value"];
    names.iter().map(|name| field(name, DataType::Int64)).collect()
}

pub(super) fn remove() -> Fields {
    Fields::from(vec![
        field("path", DataType::Utf8),
        field("deletionTimestamp", DataType::Int64),
        field("dataChange", DataType::Boolean),
    ])
}

pub(super) fn meta_data() -> Fields {
    Fields::from(vec![
        field("id", DataType::Utf8),
        field("name", DataType::Utf8),
        structure("format", format()),
        field("schemaString", DataType::Utf8),
        field("partitionColumns", list_type()),
        field("configuration", map_type()),
        field("createdTime", DataType::Int64),
    ])
}

pub(super) fn format() -> Fields {
    Fields::from(vec![field("provider", DataType::Utf8), field("options", map_type())])
}

pub(super) fn protocol() -> Fields {
    Fields::from(vec![
        field("minReaderVersion", DataType::Int32),
        field("minWriterVersion", DataType::Int32),
        field("readerFeatures", list_type()),
        field("writerFeatures", list_type()),
    ])
}

fn pair() -> Fields {
    Fields::from(vec![Field::new("key", DataType::Utf8, false), field("value", DataType::Utf8)])
}

fn entries() -> Arc<Field> {
    Arc::new(Field::new("key_value", DataType::Struct(pair()), false))
}

fn map_type() -> DataType {
    DataType::Map(entries(), false)
}

fn element() -> Arc<Field> {
    Arc::new(field("element", DataType::Utf8))
}

fn list_type() -> DataType {
    DataType::List(element())
}

pub(super) fn texts(rows: impl IntoIterator<Item = String>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(rows))
}

pub(super) fn longs(rows: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(rows))
}

pub(super) fn ints(rows: impl IntoIterator<Item = i32>) -> ArrayRef {
    Arc::new(Int32Array::from_iter_values(rows))
}

pub(super) fn maps(rows: &Pairs) -> ArrayRef {
    let offsets = OffsetBuffer::from_lengths(rows.iter().map(Vec::len));
    let keys = texts(rows.iter().flatten().map(|(key, _)| key.clone()));
    let values = texts(rows.iter().flatten().map(|(_, value)| value.clone()));
    let entries_array = StructArray::new(pair(), vec![keys, values], None);
    Arc::new(MapArray::new(entries(), offsets, entries_array, None, false))
}

/// One list per row; a row may have none.
pub(super) fn lists(rows: &[Option<Vec<String>>]) -> ArrayRef {
    let offsets = OffsetBuffer::from_lengths(rows.iter().map(|row| row.as_ref().map_or(0, Vec::len)));
    let elements = texts(rows.iter().flatten().flatten().cloned());
    let valid = rows.iter().map(Option::is_some).collect();
    Arc::new(ListArray::new(element(), offsets, elements, Some(valid)))
}
