//! The JSON of a record's lines, field by field in the order in which they are written.
//!
//! Promises: the same value always gives the same bytes. Keys that Delta lets others add inside an action are passed over;
//! whether an action itself is known is judged in `decode`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One line. An action that is not listed here fails to parse, on purpose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Action {
    CommitInfo(Box<CommitInfo>),
    Protocol(Protocol),
    MetaData(Box<MetaData>),
    Txn(Txn),
    Remove(Remove),
    Add(Box<Add>),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CommitInfo {
    pub(super) timestamp: i64,
    pub(super) operation: String,
    #[serde(default)]
    pub(super) operation_parameters: BTreeMap<String, String>,
    pub(super) is_blind_append: bool,
    pub(super) engine_info: String,
    pub(super) txn_id: String,
    /// Absent in commits of foreign writers, which are refused with a better text than a missing key.
    pub(super) tapedeck: Option<Tapedeck>,
}

/// What only we understand. Lanes are named once, in `lanes`, and meant by their number in it everywhere else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Tapedeck {
    pub(super) v: u32,
    pub(super) writer: String,
    pub(super) lanes: Vec<String>,
    /// Lane, expected, from, until, rows.
    pub(super) advance: Vec<(usize, Option<u64>, u64, u64, u64)>,
    /// Lane, events left out by a policy.
    pub(super) skipped: Vec<(usize, u64)>,
    /// Lane, from, until, cause.
    pub(super) gaps: Vec<(usize, u64, u64, String)>,
    pub(super) sweep: Vec<String>,
    /// Null in record 0.
    pub(super) prev: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Protocol {
    pub(super) min_reader_version: u32,
    pub(super) min_writer_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reader_features: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) writer_features: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MetaData {
    pub(super) id: String,
    pub(super) name: Option<String>,
    pub(super) format: Format,
    pub(super) schema_string: String,
    pub(super) partition_columns: Vec<String>,
    pub(super) configuration: BTreeMap<String, String>,
    pub(super) created_time: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Format {
    pub(super) provider: String,
    #[serde(default)]
    pub(super) options: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Txn {
    pub(super) app_id: String,
    pub(super) version: i64,
    pub(super) last_updated: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Add {
    pub(super) path: String,
    pub(super) partition_values: PartitionValues,
    pub(super) size: u64,
    pub(super) modification_time: i64,
    pub(super) data_change: bool,
    /// JSON in a string, as Delta wants it.
    pub(super) stats: String,
    pub(super) tags: Tags,
    /// Never written; met, it means that rows are hidden, so it is refused.
    #[serde(default, skip_serializing)]
    pub(super) deletion_vector: Option<serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PartitionValues {
    pub(super) topic: String,
    pub(super) date: String,
    pub(super) hour: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Tags {
    pub(super) source: String,
    /// `<partition>:<first>-<last>:<rows>`, joined by `;`.
    pub(super) lanes: String,
    pub(super) blake3: String,
    /// `<partition>:<bytes>`, joined by `;`: an addition to Delta's own fields, so that plans tell exact bytes per lane.
    pub(super) payload_bytes: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Remove {
    pub(super) path: String,
    pub(super) deletion_timestamp: Option<i64>,
    pub(super) data_change: bool,
}

/// The statistics that engines skip files by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stats {
    pub(super) num_records: u64,
    pub(super) min_values: Bounds,
    pub(super) max_values: Bounds,
    pub(super) null_count: NullCounts,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Bounds {
    /// Milliseconds, rounded outwards. Absent where that would leave the calendar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) event_time: Option<String>,
    pub(super) source_partition: i32,
    pub(super) source_offset: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct NullCounts {
    pub(super) event_time: u64,
    pub(super) source_partition: u64,
    pub(super) source_offset: u64,
    pub(super) key: u64,
    pub(super) value: u64,
}
