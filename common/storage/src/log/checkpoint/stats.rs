//! Which row groups of a checkpoint may hold what is asked for, by the statistics in its footer.
//!
//! Promises: a group is left out only where its statistics prove that no segment of it is asked for. Pure.

use std::sync::LazyLock;

use parquet::arrow::ArrowSchemaConverter;
use parquet::file::metadata::ParquetStatisticsPolicy;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::statistics::Statistics;
use parquet::schema::types::SchemaDescriptor;
use tapedeck_common::Timestamp;

use super::columns;
use crate::log::view::Slice;

pub(super) const TOPIC: &str = "add.partitionValues_parsed.topic";
pub(super) const FIRST_TIME: &str = "add.stats_parsed.minValues.event_time";
pub(super) const LAST_TIME: &str = "add.stats_parsed.maxValues.event_time";

/// The columns that have statistics: what we plan by, what engines plan by, and for each kind of row one column by whose null
/// count readers see that a group holds none of it. Of all others they would only be bytes that every reader fetches.
pub(super) const COLUMNS: [&str; 10] = [
    TOPIC,
    "add.partitionValues_parsed.date",
    "add.partitionValues_parsed.hour",
    FIRST_TIME,
    LAST_TIME,
    "add.path",
    "remove.path",
    "txn.appId",
    "metaData.id",
    "protocol.minReaderVersion",
];

/// The columns of every checkpoint of ours, as Parquet names them.
static SCHEMA: LazyLock<SchemaDescriptor> = LazyLock::new(|| {
    ArrowSchemaConverter::new().convert(&columns::schema()).expect("Delta's checkpoints have only types that Parquet knows")
});

fn leaf(path: &str) -> usize {
    let columns = SCHEMA.columns().iter();
    columns.map(|column| column.path().string()).position(|found| found == path).expect("a column of the schema")
}

/// Which statistics of a footer to decode.
pub(super) fn policy() -> ParquetStatisticsPolicy {
    static POLICY: LazyLock<ParquetStatisticsPolicy> = LazyLock::new(|| ParquetStatisticsPolicy::skip_except(&COLUMNS.map(leaf)));
    POLICY.clone()
}

/// For each column whether its statistics are in a footer and are decoded.
pub(super) fn has_statistics() -> &'static [bool] {
    static HAS: LazyLock<Vec<bool>> = LazyLock::new(|| {
        let with = COLUMNS.map(leaf);
        (0..SCHEMA.num_columns()).map(|leaf| with.contains(&leaf)).collect()
    });
    &HAS
}

/// Refuses a footer whose columns are not exactly ours, whatever its mark says.
pub(super) fn check_columns(metadata: &ParquetMetaData) -> Result<(), String> {
    let found = metadata.file_metadata().schema_descr();
    if found.columns() == SCHEMA.columns() { Ok(()) } else { Err("its columns are not those of a checkpoint".to_owned()) }
}

/// False if no segment of `group` can be in `slice`.
pub(super) fn may_hold(group: &RowGroupMetaData, slice: &Slice) -> bool {
    static LEAVES: LazyLock<[usize; 3]> = LazyLock::new(|| [TOPIC, FIRST_TIME, LAST_TIME].map(leaf));
    let [topic, first, last] = LEAVES.map(|leaf| group.column(leaf).statistics());
    let no_topic = topic.and_then(bounds).is_some_and(|(low, high)| {
        let within = |topic: &String| (low..=high).contains(&topic.as_bytes());
        !slice.topics.is_empty() && !slice.topics.iter().any(within)
    });
    let time = |micros: i64| Timestamp::from_micros(micros);
    let too_early = slice.from.zip(last.and_then(longs)).is_some_and(|(from, (_, latest))| time(latest) < from);
    let too_late = slice.until.zip(first.and_then(longs)).is_some_and(|(until, (earliest, _))| time(earliest) >= until);
    !(no_topic || too_early || too_late)
}

/// The bounds of a column without nulls. They may be shortened, but then outwards.
fn bounds(statistics: &Statistics) -> Option<(&[u8], &[u8])> {
    let whole = statistics.null_count_opt() == Some(0);
    statistics.min_bytes_opt().zip(statistics.max_bytes_opt()).filter(|_| whole)
}

/// The bounds of a column of numbers without nulls: a segment without a latest time may be as late as its hour.
fn longs(statistics: &Statistics) -> Option<(i64, i64)> {
    let whole = statistics.null_count_opt() == Some(0);
    match statistics {
        Statistics::Int64(values) => values.min_opt().copied().zip(values.max_opt().copied()).filter(|_| whole),
        _ => None,
    }
}
