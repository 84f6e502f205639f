//! Writes the Parquet file of a checkpoint, row group by row group: encoded anew, or copied as they are.
//!
//! Promises: the bytes come off in parts while the file grows, so that it is never held whole; each row group's checksum goes
//! into the footer. Never: I/O.

use std::io::{self, Write};

use arrow::array::RecordBatch;
use bytes::{Buf, Bytes};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{ArrowRowGroupWriterFactory, ArrowWriterOptions, compute_leaves};
use parquet::basic::{Compression, ZstdLevel};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;
use tapedeck_common::error::BoxError;
use tapedeck_common::{ErrorKind, limits};

use super::columns;
use super::index::{Group, Holds, Index, Place};
use super::stats;
use crate::log::notes::Notes;
use crate::store::StoreError;

/// Columns whose values mostly repeat. In all others nearly every value is new, and a dictionary would only cost.
const REPEATING: [&str; 7] = [
    stats::TOPIC,
    "add.partitionValues_parsed.date",
    "add.partitionValues_parsed.hour",
    "add.partitionValues.key_value.key",
    "add.partitionValues.key_value.value",
    "add.tags.key_value.key",
    "add.stats_parsed.minValues.source_partition",
];

/// A checkpoint that is being written.
pub(super) struct CheckpointWriter {
    file: SerializedFileWriter<Parts>,
    encoders: ArrowRowGroupWriterFactory,
    groups: Vec<Group>,
    /// Rows of all groups, and of those that hold live segments.
    pub(super) rows: u64,
    pub(super) adds: u64,
}

impl CheckpointWriter {
    /// A file that comes off in parts of `part_bytes`.
    pub(super) fn new(part_bytes: usize) -> Result<Self, StoreError> {
        let begin = || {
            let options = ArrowWriterOptions::new().with_properties(properties()?).with_skip_arrow_metadata(true);
            let parts = Parts::of(part_bytes);
            ArrowWriter::try_new_with_options(parts, columns::schema(), options)?.into_serialized_writer()
        };
        let (file, encoders) = begin().map_err(failed)?;
        Ok(Self { file, encoders, groups: Vec::new(), rows: 0, adds: 0 })
    }

    /// Encodes a row group. `first` is where its first segment stands, if it holds live ones.
    pub(super) fn encode(&mut self, holds: Holds, batches: &[RecordBatch], first: Option<Place>) -> Result<(), StoreError> {
        self.hash_from_here().and_then(|()| self.encode_rows(batches)).map_err(failed)?;
        let blake3 = self.hash_until_here().map_err(failed)?;
        self.note(Group { holds, blake3, first }, batches.iter().map(|batch| batch.num_rows() as u64).sum());
        Ok(())
    }

    /// Copies a row group of another checkpoint. `bytes`, all of it, lie at `start` there.
    pub(super) fn copy(&mut self, group: Group, from: &RowGroupMetaData, start: u64, bytes: Bytes) -> Result<(), StoreError> {
        self.copy_columns(from, &Shifted { start, bytes }).map_err(failed)?;
        self.note(group, from.num_rows().unsigned_abs());
        Ok(())
    }

    /// Takes the parts that are complete.
    pub(super) fn take_parts(&mut self) -> Result<Vec<Bytes>, StoreError> {
        self.file.flush().map_err(failed)?;
        Ok(std::mem::take(&mut self.file.inner_mut().full))
    }

    /// Ends the file: what is left of it, and how many bytes it has in all.
    pub(super) fn finish(mut self, notes: &Notes) -> Result<(Vec<Bytes>, u64), StoreError> {
        let row_groups = self.file.flushed_row_groups().iter();
        for pair in Index::metadata(&self.groups, notes, row_groups) {
            self.file.append_key_value_metadata(pair);
        }
        let parts = self.file.into_inner().map_err(failed)?;
        Ok((parts.full.into_iter().chain([parts.open.into()]).collect(), parts.bytes))
    }

    fn note(&mut self, group: Group, rows: u64) {
        self.rows += rows;
        self.adds += if group.holds == Holds::Add { rows } else { 0 };
        self.groups.push(group);
    }

    fn encode_rows(&mut self, batches: &[RecordBatch]) -> Result<()> {
        let mut encoders = self.encoders.create_column_writers(self.groups.len())?;
        for batch in batches {
            let mut leaves = encoders.iter_mut();
            for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
                for leaf in compute_leaves(field, column)? {
                    leaves.next().expect("an encoder for each leaf").write(&leaf)?;
                }
            }
        }
        let mut group = self.file.next_row_group()?;
        for encoder in encoders {
            let mut chunk = encoder.close()?;
            let plain = without_extras(&chunk.close().metadata)?;
            chunk.close_mut().metadata = plain;
            chunk.append_to_row_group(&mut group)?;
        }
        group.close().map(drop)
    }

    fn copy_columns(&mut self, from: &RowGroupMetaData, bytes: &Shifted) -> Result<()> {
        let mut group = self.file.next_row_group()?;
        for column in from.columns() {
            let close = ColumnCloseResult {
                bytes_written: column.compressed_size().unsigned_abs(),
                rows_written: from.num_rows().unsigned_abs(),
                metadata: without_extras(column)?,
                bloom_filter: None,
                column_index: None,
                offset_index: None,
            };
            group.append_column(bytes, close)?;
        }
        group.close().map(drop)
    }

    fn hash_from_here(&mut self) -> Result<()> {
        self.file.flush()?;
        self.file.inner_mut().hasher.reset();
        Ok(())
    }

    fn hash_until_here(&mut self) -> Result<String> {
        self.file.flush()?;
        Ok(self.file.inner_mut().hasher.finalize().to_hex().to_string())
    }
}

fn failed(error: impl Into<BoxError>) -> StoreError {
    StoreError { what: "cannot encode a checkpoint".to_owned(), kind: ErrorKind::Bug, source: Some(error.into()) }
}

fn properties() -> Result<WriterProperties> {
    let path = |name: &str| ColumnPath::new(name.split('.').map(str::to_owned).collect());
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        // Groups are small enough to be read whole.
        .set_offset_index_disabled(true);
    for name in stats::COLUMNS {
        properties = properties.set_column_statistics_enabled(path(name), EnabledStatistics::Chunk);
    }
    for name in REPEATING {
        properties = properties.set_column_dictionary_enabled(path(name), true);
    }
    Ok(properties.build())
}

/// What a footer can do without: nobody plans by it, and it would be a third of its bytes.
fn without_extras(column: &ColumnChunkMetaData) -> Result<ColumnChunkMetaData> {
    let column = column.clone().into_builder().clear_page_encoding_stats().set_unencoded_byte_array_data_bytes(None);
    column.set_repetition_level_histogram(None).set_definition_level_histogram(None).build()
}

/// The file so far, cut into parts.
struct Parts {
    part_bytes: usize,
    full: Vec<Bytes>,
    open: Vec<u8>,
    bytes: u64,
    hasher: blake3::Hasher,
}

impl Parts {
    fn of(part_bytes: usize) -> Self {
        let part_bytes = part_bytes.clamp(1, limits::PART_BYTES);
        Self { part_bytes, full: Vec::new(), open: Vec::new(), bytes: 0, hasher: blake3::Hasher::new() }
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.part_bytes - self.open.len());
        self.open.extend_from_slice(&bytes[..taken]);
        self.hasher.update(&bytes[..taken]);
        self.bytes += taken as u64;
        if self.open.len() == self.part_bytes {
            // There will be more of that size.
            let next = Vec::with_capacity(self.part_bytes);
            self.full.push(std::mem::replace(&mut self.open, next).into());
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A row group's bytes, addressed as in the file that they come from.
struct Shifted {
    start: u64,
    bytes: Bytes,
}

impl Length for Shifted {
    fn len(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl ChunkReader for Shifted {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        self.get_bytes(start, 0).map(|_| self.bytes.slice((start - self.start) as usize..).reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let at = start.checked_sub(self.start).and_then(|at| usize::try_from(at).ok());
        let range = at.and_then(|at| Some(at..at.checked_add(length)?)).filter(|range| range.end <= self.bytes.len());
        range.map(|range| self.bytes.slice(range)).ok_or(ParquetError::NeedMoreData(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_all_of_one_size_but_the_last() {
        let mut parts = Parts::of(10);
        for bytes in [&[1_u8; 7][..], &[2; 25], &[3; 3]] {
            parts.write_all(bytes).expect("memory");
        }
        assert_eq!(parts.full.iter().map(Bytes::len).collect::<Vec<_>>(), [10, 10, 10]);
        assert_eq!((parts.open.len(), parts.bytes), (5, 35));
    }
}
