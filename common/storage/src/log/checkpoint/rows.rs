//! What the rows of a checkpoint say: everything but segments in its head, live segments and removed ones in groups of their own.
//! Never: trusts a type; every column is looked up by name and type.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, AsArray, BooleanArray, Int64Array, MapArray, RecordBatch, StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use tapedeck_common::commit::SegmentRef;
use tapedeck_common::{LaneId, Position, Timestamp};

use super::stats::{FIRST_TIME, LAST_TIME, TOPIC};
use crate::log::decode;
use crate::log::genesis::Genesis;
use crate::log::record::Removed;
use crate::log::view::Slice;
use crate::log::wire;

/// The rows of one row group.
pub(super) type Batches = ParquetRecordBatchReader;

/// The columns of a head.
pub(super) const HEAD: &[&str] = &["protocol", "metaData", "txn"];

/// The columns of removed segments.
pub(super) const REMOVE: &[&str] = &["remove"];

/// The columns of live segments that are read: all that a segment is made from, and what tells that it is not wanted.
pub(super) const ADD: &[&str] = &[
    "add.path",
    "add.partitionValues",
    "add.size",
    "add.modificationTime",
    "add.dataChange",
    "add.tags",
    "add.stats",
    TOPIC,
    FIRST_TIME,
    LAST_TIME,
];

/// Everything in a checkpoint but segments.
#[derive(Debug)]
pub(in crate::log) struct Head {
    pub(in crate::log) genesis: Genesis,
    /// Each lane, where it stands, and when it last moved.
    pub(in crate::log) lanes: Vec<(LaneId, Position, i64)>,
}

/// Reads the head.
pub(super) fn head(batches: &mut Batches) -> Result<Head, String> {
    let (mut found_protocol, mut found_meta, mut lanes) = (None, None, Vec::new());
    for batch in batches {
        let batch = batch.map_err(|error| error.to_string())?;
        for (column, row) in rows_of(&batch, "protocol")? {
            found_protocol = Some(protocol(column, row)?);
        }
        for (column, row) in rows_of(&batch, "metaData")? {
            found_meta = Some(meta_data(column, row)?);
        }
        for (column, row) in rows_of(&batch, "txn")? {
            lanes.push(txn(column, row)?);
        }
    }
    let (protocol, meta) = found_protocol.zip(found_meta).ok_or("it has no protocol or no metaData")?;
    Ok(Head { genesis: Genesis::from_wire(&protocol, &meta).map_err(|error| error.to_string())?, lanes })
}

/// Reads removed segments.
pub(super) fn removes(batches: &mut Batches) -> Result<Vec<Removed>, String> {
    let mut removes = Vec::new();
    for batch in batches {
        let batch = batch.map_err(|error| error.to_string())?;
        for (column, row) in rows_of(&batch, "remove")? {
            removes.push(Removed {
                path: text(column, "path", row)?,
                at_ms: long(column, "deletionTimestamp", row)?,
                data_change: boolean(column, "dataChange", row)?,
            });
        }
    }
    Ok(removes)
}

/// Reads the live segments of a slice.
pub(super) fn adds(batches: &mut Batches, slice: &Slice, take: &mut (dyn FnMut(SegmentRef) + Send)) -> Result<(), String> {
    let mut names = Names::default();
    for batch in batches {
        let batch = batch.map_err(|error| error.to_string())?;
        let column = batch.column_by_name("add").and_then(|column| column.as_struct_opt()).ok_or("it has no column add")?;
        let adds = Adds::of(column)?;
        for row in (0..column.len()).filter(|row| column.is_valid(*row)) {
            if !adds.may_be_in(slice, row) {
                continue;
            }
            let segment = decode::segment(&adds.get(row)?).map_err(|error| error.to_string())?;
            if slice.holds(&segment) {
                take(names.shared(segment));
            }
        }
    }
    Ok(())
}

/// Neighbours mostly have the same topic and source, so they share the names.
#[derive(Default)]
struct Names {
    topic: Option<Arc<str>>,
    source: Option<Arc<str>>,
}

impl Names {
    fn shared(&mut self, mut segment: SegmentRef) -> SegmentRef {
        share(&mut self.topic, &mut segment.topic);
        share(&mut self.source, &mut segment.source);
        segment
    }
}

fn share(known: &mut Option<Arc<str>>, name: &mut Arc<str>) {
    match known {
        Some(known) if known == name => *name = Arc::clone(known),
        known => *known = Some(Arc::clone(name)),
    }
}

/// The columns of live segments, found once for many rows.
struct Adds<'a> {
    path: &'a StringArray,
    partition_values: Pairs<'a>,
    size: &'a Int64Array,
    modified: &'a Int64Array,
    data_change: &'a BooleanArray,
    tags: Pairs<'a>,
    stats: &'a StringArray,
    topic: &'a StringArray,
    first: &'a TimestampMicrosecondArray,
    last: &'a TimestampMicrosecondArray,
}

impl<'a> Adds<'a> {
    fn of(rows: &'a StructArray) -> Result<Self, String> {
        let column = |name: &str| rows.column_by_name(name).ok_or_else(|| format!("its adds have no {name}"));
        let strings = |name: &str| column(name)?.as_string_opt::<i32>().ok_or_else(|| format!("{name} is no string"));
        let longs = |name: &str| column(name)?.as_primitive_opt::<Int64Type>().ok_or_else(|| format!("{name} is no long"));
        let pairs = |name: &str| Pairs::of(column(name)?.as_ref()).ok_or_else(|| format!("{name} is no map of strings"));
        let inner = |names: &[&str]| {
            let child = |at: Option<&'a StructArray>, name: &&str| at?.column_by_name(name)?.as_struct_opt();
            let (leaf, groups) = names.split_last()?;
            groups.iter().fold(Some(rows), child)?.column_by_name(leaf)
        };
        let time = |side: &str| {
            let times = inner(&["stats_parsed", side, "event_time"]);
            times.and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>()).ok_or("its adds have no event_time")
        };
        let topic = inner(&["partitionValues_parsed", "topic"]).and_then(|topic| topic.as_string_opt::<i32>());
        Ok(Self {
            path: strings("path")?,
            partition_values: pairs("partitionValues")?,
            size: longs("size")?,
            modified: longs("modificationTime")?,
            data_change: column("dataChange")?.as_boolean_opt().ok_or("dataChange is no boolean")?,
            tags: pairs("tags")?,
            stats: strings("stats")?,
            topic: topic.ok_or("its adds have no topic")?,
            first: time("minValues")?,
            last: time("maxValues")?,
        })
    }

    /// False where the parsed columns tell at once that a row is not in `slice`: most rows are told apart by this.
    fn may_be_in(&self, slice: &Slice, row: usize) -> bool {
        let time = |times: &TimestampMicrosecondArray| times.is_valid(row).then(|| Timestamp::from_micros(times.value(row)));
        let is_other = self.topic.is_valid(row) && !slice.has_topic(self.topic.value(row));
        let too_early = slice.from.zip(time(self.last)).is_some_and(|(from, latest)| latest < from);
        let too_late = slice.until.zip(time(self.first)).is_some_and(|(until, earliest)| earliest >= until);
        !(is_other || too_early || too_late)
    }

    fn get(&self, row: usize) -> Result<wire::Add, String> {
        let missing = |name: &str| format!("an add has no {name}");
        let string = |column: &StringArray, name: &str| {
            column.is_valid(row).then(|| column.value(row).to_owned()).ok_or_else(|| missing(name))
        };
        let long = |column: &Int64Array, name: &str| column.is_valid(row).then(|| column.value(row)).ok_or_else(|| missing(name));
        let pair = |pairs: &Pairs<'_>, key: &str| pairs.get(row, key).map(str::to_owned).ok_or_else(|| missing(key));
        Ok(wire::Add {
            path: string(self.path, "path")?,
            partition_values: wire::PartitionValues {
                topic: pair(&self.partition_values, "topic")?,
                date: pair(&self.partition_values, "date")?,
                hour: pair(&self.partition_values, "hour")?,
            },
            size: u64::try_from(long(self.size, "size")?).map_err(|_| missing("size"))?,
            modification_time: long(self.modified, "modificationTime")?,
            data_change: self.data_change.is_valid(row) && self.data_change.value(row),
            stats: string(self.stats, "stats")?,
            tags: wire::Tags {
                source: pair(&self.tags, "source")?,
                lanes: pair(&self.tags, "lanes")?,
                blake3: pair(&self.tags, "blake3")?,
                payload_bytes: pair(&self.tags, "payload_bytes")?,
            },
            deletion_vector: None,
        })
    }
}

/// A column of maps of strings.
struct Pairs<'a> {
    rows: &'a MapArray,
    keys: &'a StringArray,
    values: &'a StringArray,
}

impl<'a> Pairs<'a> {
    fn of(column: &'a dyn Array) -> Option<Self> {
        let rows = column.as_map_opt()?;
        Some(Self { rows, keys: rows.keys().as_string_opt()?, values: rows.values().as_string_opt()? })
    }

    fn get(&self, row: usize, key: &str) -> Option<&'a str> {
        let offsets = self.rows.offsets();
        let (from, until) = (offsets[row] as usize, offsets[row + 1] as usize);
        let at = (from..until).filter(|_| self.rows.is_valid(row)).find(|at| self.keys.value(*at) == key)?;
        self.values.is_valid(at).then(|| self.values.value(at))
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
