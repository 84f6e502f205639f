//! Layout 1: the columns of every segment, for ever.
//!
//! Promises: every file has exactly these columns, names, types and field ids; golden files in `tests/golden` hold them.
//! Never: changes. New needs get a new layout number.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use parquet::arrow::{ArrowSchemaConverter, PARQUET_FIELD_ID_META_KEY};
use parquet::schema::types::SchemaDescPtr;

/// The number of this layout, in the metadata of every segment.
pub const LAYOUT: u32 = 1;

/// Keys of a segment's own metadata.
pub mod metadata {
    /// The layout's number.
    pub const LAYOUT: &str = "tapedeck.layout";
    /// Name and version of the program that wrote the segment.
    pub const WRITER: &str = "tapedeck.writer";
    /// The topic's true name.
    pub const TOPIC: &str = "tapedeck.topic";
    /// The lanes: `<partition>:<first>-<last>:<rows>`, joined by `;`.
    pub const LANES: &str = "tapedeck.lanes";
}

/// Leaf columns in the order of the files. The numbers are those of the Parquet schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub(crate) enum Leaf {
    EventTime,
    EventTimeKind,
    ArchivedAt,
    Source,
    SourcePartition,
    SourceOffset,
    LeaderEpoch,
    Key,
    Value,
    HeaderKey,
    HeaderValue,
    PropertyKey,
    PropertyValue,
}

/// How many leaf columns there are.
pub(crate) const LEAVES: usize = 13;

static ARROW: LazyLock<SchemaRef> = LazyLock::new(|| Arc::new(Schema::new(columns(DataType::Utf8, DataType::Binary))));

static VIEWS: LazyLock<SchemaRef> = LazyLock::new(|| Arc::new(Schema::new(columns(DataType::Utf8View, DataType::BinaryView))));

static PARQUET: LazyLock<SchemaDescPtr> = LazyLock::new(|| {
    let converter = ArrowSchemaConverter::new().schema_root("event");
    Arc::new(converter.convert(&ARROW).expect("layout 1 has only types that Parquet knows"))
});

/// The columns as Arrow sees them.
pub fn arrow_schema() -> SchemaRef {
    Arc::clone(&ARROW)
}

/// The same columns with byte strings as views, as the reader decodes them: views share the page instead of copying out of it.
pub(crate) fn view_schema() -> SchemaRef {
    Arc::clone(&VIEWS)
}

/// The columns as Parquet writes them.
pub fn parquet_schema() -> SchemaDescPtr {
    Arc::clone(&PARQUET)
}

fn columns(text: DataType, bytes: DataType) -> Vec<Field> {
    let time = || DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC")));
    let pair = |ids: (i32, i32), value: DataType| {
        Fields::from(vec![field(ids.0, "key", text.clone(), false), field(ids.1, "value", value, true)])
    };
    let header = field(11, "element", DataType::Struct(pair((12, 13), bytes.clone())), false);
    // The group around key and value is Parquet's own and carries no field id in any table format.
    let property = Field::new("key_value", DataType::Struct(pair((15, 16), text.clone())), false);
    vec![
        field(1, "event_time", time(), false),
        field(2, "event_time_kind", text.clone(), false),
        field(3, "archived_at", time(), false),
        field(4, "source", text.clone(), false),
        field(5, "source_partition", DataType::Int32, false),
        field(6, "source_offset", DataType::Int64, false),
        field(7, "leader_epoch", DataType::Int32, true),
        field(8, "key", bytes.clone(), true),
        field(9, "value", bytes.clone(), true),
        field(10, "headers", DataType::List(Arc::new(header)), false),
        field(14, "properties", DataType::Map(Arc::new(property), false), false),
    ]
}

fn field(id: i32, name: &str, data_type: DataType, nullable: bool) -> Field {
    let id = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())]);
    Field::new(name, data_type, nullable).with_metadata(id)
}
