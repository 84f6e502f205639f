//! Reads a checkpoint back: all of it for readers, the footer and the head row group for writers.
//! Never: panics on a file that is not one, or asks the store for bytes outside it; every column is looked up by name and type.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::array::{Array, AsArray, RecordBatch, StructArray};
use arrow::datatypes::{Int32Type, Int64Type};
use bytes::{Buf, Bytes};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::KeyValue;
use parquet::file::reader::{ChunkReader, Length};
use tapedeck_common::{LaneId, Position};

use super::{MARK, unanswered, unreadable};
use crate::log::decode;
use crate::log::genesis::Genesis;
use crate::log::record::Removed;
use crate::log::state::{LiveSegment, Segments};
use crate::log::tail::LogReader;
use crate::log::wire;
use crate::store::StoreError;

/// Enough for the footer of a checkpoint of some ten million files; a larger one is asked for again.
const FOOTER_GUESS: u64 = 256 * 1024;

/// More than any column of a row group of ours decodes to; past it a footer is not believed.
const CHUNK_BYTES_MAX: i64 = 8 * 1024 * 1024 * 1024;

/// What a checkpoint holds.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) genesis: Genesis,
    pub(super) lanes: Vec<(LaneId, Position, i64)>,
    pub(super) segments: Segments,
}

/// Everything in a checkpoint.
pub(super) fn all(bytes: Bytes) -> Result<Content, String> {
    let length = bytes.len() as u64;
    let opened = open(Sparse { length, pieces: vec![(0, bytes)] }).map_err(|error| error.to_string())?;
    let groups = 0..opened.metadata().num_row_groups();
    for group in groups.clone() {
        place_of(&opened, group, length)?;
    }
    content(opened, groups.collect())
}

/// The head row group, with two ranged reads.
pub(super) async fn head(reader: &LogReader, key: &Path) -> Result<Content, StoreError> {
    let failed = |error| unanswered(reader, key, error);
    let bad = |what: String| unreadable(reader, key, what);
    let mut ask = FOOTER_GUESS;
    let (mut file, opened) = loop {
        let options = GetOptions { range: Some(GetRange::Suffix(ask)), ..GetOptions::default() };
        let answer = reader.store.get_opts(key, options).await.map_err(failed)?;
        let (length, from) = (answer.meta.size, answer.range.start);
        let file = Sparse { length, pieces: vec![(from, answer.bytes().await.map_err(failed)?)] };
        match open(file.clone()) {
            Ok(opened) => break (file, opened),
            Err(ParquetError::NeedMoreData(_)) if from > 0 => ask = ask.saturating_mul(8),
            Err(error) => return Err(bad(error.to_string())),
        }
    };
    check_mark(&opened).map_err(bad)?;
    let range = place_of(&opened, 0, file.length).map_err(bad)?;
    let bytes = reader.store.get_range(key, range.clone()).await.map_err(failed)?;
    file.pieces.push((range.start, bytes));
    let opened = open(file).map_err(|error| bad(error.to_string()))?;
    content(opened, vec![0]).map_err(bad)
}

type Opened = ParquetRecordBatchReaderBuilder<Sparse>;

/// Whatever the decoder does with damaged bytes, it ends here.
fn guarded<T>(decode: impl FnOnce() -> T) -> Result<T, &'static str> {
    catch_unwind(AssertUnwindSafe(decode)).map_err(|_| "the decoder gave up on it")
}

fn open(file: Sparse) -> ParquetResult<Opened> {
    guarded(|| Opened::try_new(file)).unwrap_or_else(|what| Err(ParquetError::General(what.to_owned())))
}

fn check_mark(opened: &Opened) -> Result<(), String> {
    let marks = opened.metadata().file_metadata().key_value_metadata();
    let is_ours = |pair: &KeyValue| pair.key == MARK.0 && pair.value.as_deref() == Some(MARK.1);
    if marks.into_iter().flatten().any(is_ours) { Ok(()) } else { Err("it was not written by tapedeck".to_owned()) }
}

/// Where a row group lies: within the file, or its footer is damaged.
fn place_of(opened: &Opened, group: usize, size: u64) -> Result<Range<u64>, String> {
    let group = opened.metadata().row_groups().get(group).ok_or("it has no row group")?;
    let mut whole: Option<Range<u64>> = None;
    for chunk in group.columns() {
        let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
        let place = u64::try_from(start).ok().zip(u64::try_from(chunk.compressed_size()).ok());
        let place = place.and_then(|(start, length)| Some(start..start.checked_add(length)?)).filter(|place| place.end <= size);
        let is_sane = group.num_rows() >= 0 && (0..=CHUNK_BYTES_MAX).contains(&chunk.uncompressed_size());
        let place =
            place.filter(|_| is_sane).ok_or_else(|| format!("{}: its size or place is impossible", chunk.column_path()))?;
        whole = Some(whole.map_or(place.clone(), |whole| whole.start.min(place.start)..whole.end.max(place.end)));
    }
    whole.ok_or_else(|| "it has no columns".to_owned())
}

fn content(opened: Opened, groups: Vec<usize>) -> Result<Content, String> {
    guarded(|| read_content(opened, groups)).unwrap_or_else(|what| Err(what.to_owned()))
}

fn read_content(opened: Opened, groups: Vec<usize>) -> Result<Content, String> {
    let batches = opened.with_row_groups(groups).build().map_err(|error| error.to_string())?;
    let mut rows = Rows::default();
    for batch in batches {
        rows.take(&batch.map_err(|error| error.to_string())?)?;
    }
    let (protocol, meta) = rows.protocol.zip(rows.meta).ok_or("it has no protocol or no metaData")?;
    let genesis = Genesis::from_wire(&protocol, &meta).map_err(|error| error.to_string())?;
    Ok(Content { genesis, lanes: rows.lanes, segments: rows.segments })
}

#[derive(Default)]
struct Rows {
    protocol: Option<wire::Protocol>,
    meta: Option<wire::MetaData>,
    lanes: Vec<(LaneId, Position, i64)>,
    segments: Segments,
}

impl Rows {
    fn take(&mut self, batch: &RecordBatch) -> Result<(), String> {
        for (column, row) in rows_of(batch, "protocol")? {
            self.protocol = Some(protocol(column, row)?);
        }
        for (column, row) in rows_of(batch, "metaData")? {
            self.meta = Some(meta_data(column, row)?);
        }
        for (column, row) in rows_of(batch, "txn")? {
            self.lanes.push(txn(column, row)?);
        }
        for (column, row) in rows_of(batch, "remove")? {
            let removed = Removed {
                path: text(column, "path", row)?,
                at_ms: long(column, "deletionTimestamp", row)?,
                data_change: boolean(column, "dataChange", row)?,
            };
            self.segments.removed.insert(removed.path.clone(), removed);
        }
        for (column, row) in rows_of(batch, "add")? {
            let segment = decode::segment(&add(column, row)?).map_err(|error| error.to_string())?;
            self.segments.live.insert(segment.path.clone(), LiveSegment { segment, version: None });
        }
        Ok(())
    }
}

/// The rows in which the struct column `name` is filled.
fn rows_of<'a>(batch: &'a RecordBatch, name: &str) -> Result<impl Iterator<Item = (&'a StructArray, usize)> + use<'a>, String> {
    let column = batch.column_by_name(name).and_then(|column| column.as_struct_opt());
    let column = column.ok_or_else(|| format!("it has no column {name}"))?;
    Ok((0..column.len()).filter(|row| column.is_valid(*row)).map(move |row| (column, row)))
}

fn child<'a>(column: &'a StructArray, name: &str, row: usize) -> Result<&'a dyn Array, String> {
    let child = column.column_by_name(name).filter(|child| child.is_valid(row));
    child.map(|child| child.as_ref()).ok_or_else(|| format!("a row has no {name}"))
}

fn text(column: &StructArray, name: &str, row: usize) -> Result<String, String> {
    let texts = child(column, name, row)?.as_string_opt::<i32>();
    texts.map(|texts| texts.value(row).to_owned()).ok_or_else(|| format!("{name} is no string"))
}

fn long(column: &StructArray, name: &str, row: usize) -> Result<i64, String> {
    let longs = child(column, name, row)?.as_primitive_opt::<Int64Type>();
    longs.map(|longs| longs.value(row)).ok_or_else(|| format!("{name} is no long"))
}

fn int(column: &StructArray, name: &str, row: usize) -> Result<u32, String> {
    let ints = child(column, name, row)?.as_primitive_opt::<Int32Type>();
    ints.and_then(|ints| u32::try_from(ints.value(row)).ok()).ok_or_else(|| format!("{name} is no version"))
}

fn boolean(column: &StructArray, name: &str, row: usize) -> Result<bool, String> {
    let flags = child(column, name, row)?.as_boolean_opt();
    flags.map(|flags| flags.value(row)).ok_or_else(|| format!("{name} is no boolean"))
}

fn list(column: &StructArray, name: &str, row: usize) -> Result<Option<Vec<String>>, String> {
    let Ok(list) = child(column, name, row) else { return Ok(None) };
    let values = list.as_list_opt::<i32>().map(|list| list.value(row));
    let values = values.as_ref().and_then(|values| values.as_string_opt::<i32>());
    let values = values.ok_or_else(|| format!("{name} is no list of strings"))?;
    Ok(Some(values.iter().flatten().map(str::to_owned).collect()))
}

fn map(column: &StructArray, name: &str, row: usize) -> Result<BTreeMap<String, String>, String> {
    let wrong = || format!("{name} is no map of strings");
    let entries = child(column, name, row)?.as_map_opt().ok_or_else(wrong)?.value(row);
    let keys = entries.column(0).as_string_opt::<i32>().ok_or_else(wrong)?;
    let values = entries.column(1).as_string_opt::<i32>().ok_or_else(wrong)?;
    Ok(keys.iter().zip(values).filter_map(|(key, value)| Some((key?.to_owned(), value?.to_owned()))).collect())
}

fn protocol(column: &StructArray, row: usize) -> Result<wire::Protocol, String> {
    Ok(wire::Protocol {
        min_reader_version: int(column, "minReaderVersion", row)?,
        min_writer_version: int(column, "minWriterVersion", row)?,
        reader_features: list(column, "readerFeatures", row)?,
        writer_features: list(column, "writerFeatures", row)?,
    })
}

fn meta_data(column: &StructArray, row: usize) -> Result<wire::MetaData, String> {
    let format = child(column, "format", row)?.as_struct_opt().ok_or("format is no struct")?;
    Ok(wire::MetaData {
        id: text(column, "id", row)?,
        name: text(column, "name", row).ok(),
        format: wire::Format { provider: text(format, "provider", row)?, options: map(format, "options", row)? },
        schema_string: text(column, "schemaString", row)?,
        partition_columns: list(column, "partitionColumns", row)?.unwrap_or_default(),
        configuration: map(column, "configuration", row)?,
        created_time: long(column, "createdTime", row).ok(),
    })
}

fn txn(column: &StructArray, row: usize) -> Result<(LaneId, Position, i64), String> {
    let lane = text(column, "appId", row)?;
    let next = Position::from_i64(long(column, "version", row)?);
    let known = LaneId::parse(&lane).zip(next);
    let (lane, next) = known.ok_or_else(|| format!("{lane:?} is no lane, or stands nowhere"))?;
    Ok((lane, next, long(column, "lastUpdated", row)?))
}

fn add(column: &StructArray, row: usize) -> Result<wire::Add, String> {
    let values = map(column, "partitionValues", row)?;
    let tags = map(column, "tags", row)?;
    let of = |map: &BTreeMap<String, String>, key: &str| map.get(key).cloned().ok_or_else(|| format!("an add has no {key}"));
    Ok(wire::Add {
        path: text(column, "path", row)?,
        partition_values: wire::PartitionValues {
            topic: of(&values, "topic")?,
            date: of(&values, "date")?,
            hour: of(&values, "hour")?,
        },
        size: u64::try_from(long(column, "size", row)?).map_err(|_| "an add has no size")?,
        modification_time: long(column, "modificationTime", row)?,
        data_change: boolean(column, "dataChange", row)?,
        stats: text(column, "stats", row)?,
        tags: wire::Tags {
            source: of(&tags, "source")?,
            lanes: of(&tags, "lanes")?,
            blake3: of(&tags, "blake3")?,
            payload_bytes: of(&tags, "payload_bytes")?,
        },
        deletion_vector: None,
    })
}

/// A file of which only some pieces are here. Asking for more than that is an answer of its own.
#[derive(Debug, Clone)]
struct Sparse {
    length: u64,
    pieces: Vec<(u64, Bytes)>,
}

impl Length for Sparse {
    fn len(&self) -> u64 {
        self.length
    }
}

impl Sparse {
    /// What is known from `start` on.
    fn from(&self, start: u64) -> ParquetResult<Bytes> {
        let holds = |piece: &&(u64, Bytes)| piece.0 <= start && start < piece.0 + piece.1.len() as u64;
        let (at, bytes) = self.pieces.iter().find(holds).ok_or(ParquetError::NeedMoreData(1))?;
        Ok(bytes.slice((start - at) as usize..))
    }
}

impl ChunkReader for Sparse {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let bytes = self.from(start)?;
        if bytes.len() < length { Err(ParquetError::NeedMoreData(length)) } else { Ok(bytes.slice(..length)) }
    }
}
