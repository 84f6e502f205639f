//! The rows of `_gaps` as a Parquet file. Promises: the same rows always give the same bytes, so a file can be named after them. Pure.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::Result;
use parquet::file::properties::WriterProperties;
use tapedeck_common::ErrorKind;

use super::GapRow;
use super::wire::COLUMNS;
use crate::store::StoreError;

pub(super) fn encode(rows: &[GapRow]) -> std::result::Result<Vec<u8>, StoreError> {
    written(rows).map_err(|error| StoreError {
        what: "the rows of _gaps cannot be encoded".to_owned(),
        kind: ErrorKind::Bug,
        source: Some(Box::new(error)),
    })
}

fn written(rows: &[GapRow]) -> Result<Vec<u8>> {
    let texts = |of: fn(&GapRow) -> &str| Arc::new(rows.iter().map(|row| Some(of(row))).collect::<StringArray>()) as ArrayRef;
    let longs =
        |of: fn(&GapRow) -> u64| Arc::new(rows.iter().map(|row| of(row).cast_signed()).collect::<Int64Array>()) as ArrayRef;
    let times: TimestampMicrosecondArray = rows.iter().map(|row| row.noticed_at.micros()).collect::<Vec<_>>().into();
    let columns: [ArrayRef; COLUMNS.len()] = [
        texts(|row| &row.table),
        texts(|row| &row.lane),
        longs(|row| row.from),
        longs(|row| row.until),
        texts(|row| row.cause),
        Arc::new(times.with_timezone("UTC")),
        longs(|row| row.record),
    ];
    let schema = Arc::new(Schema::new(Vec::from(COLUMNS.map(|(name, kind)| Field::new(name, data_type(kind), true)))));
    let batch = RecordBatch::try_new(Arc::clone(&schema), Vec::from(columns))?;
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?)).build();
    let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
    let mut writer = ArrowWriter::try_new_with_options(Vec::new(), schema, options)?;
    writer.write(&batch)?;
    writer.into_inner()
}

fn data_type(kind: &str) -> DataType {
    match kind {
        "long" => DataType::Int64,
        "timestamp" => DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC"))),
        _ => DataType::Utf8,
    }
}
