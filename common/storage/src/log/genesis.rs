//! What record 0 says for ever: who may write the table, and the columns of layout 1.
//!
//! Promises: golden; a log that says anything else is refused. Never: changes once a table exists, a new layout is a new table.

use std::collections::BTreeMap;

use serde_json::Value;

use super::record::RecordError;
use super::wire;

/// The writer feature that makes other writers refuse the table while readers read it.
pub const PRIVATE_FEATURE: &str = "tapedeckArchive";

/// The partition columns, in order.
pub const PARTITION_COLUMNS: [&str; 3] = ["topic", "date", "hour"];

/// Names, Delta types and nullability of layout 1, in order: the partition columns, then the columns of every segment.
const SCHEMA: &str = concat!(
    r#"{"type":"struct","fields":["#,
    r#"{"name":"topic","type":"string","nullable":true,"metadata":{}},"#,
    r#"{"name":"date","type":"date","nullable":true,"metadata":{}},"#,
    r#"{"name":"hour","type":"integer","nullable":true,"metadata":{}},"#,
    r#"{"name":"event_time","type":"timestamp","nullable":false,"metadata":{}},"#,
    r#"{"name":"event_time_kind","type":"string","nullable":true,"metadata":{}},"#,
    r#"{"name":"archived_at","type":"timestamp","nullable":true,"metadata":{}},"#,
    r#"{"name":"source","type":"string","nullable":true,"metadata":{}},"#,
    r#"{"name":"source_partition","type":"integer","nullable":true,"metadata":{}},"#,
    r#"{"name":"source_offset","type":"long","nullable":true,"metadata":{}},"#,
    r#"{"name":"leader_epoch","type":"integer","nullable":true,"metadata":{}},"#,
    r#"{"name":"key","type":"binary","nullable":true,"metadata":{}},"#,
    r#"{"name":"value","type":"binary","nullable":true,"metadata":{}},"#,
    r#"{"name":"headers","type":{"type":"array","elementType":{"type":"struct","fields":["#,
    r#"{"name":"key","type":"string","nullable":true,"metadata":{}},"#,
    r#"{"name":"value","type":"binary","nullable":true,"metadata":{}}]},"#,
    r#""containsNull":true},"nullable":true,"metadata":{}},"#,
    r#"{"name":"properties","type":{"type":"map","keyType":"string","valueType":"string","#,
    r#""valueContainsNull":true},"nullable":true,"metadata":{}}]}"#,
);

/// Configuration of every table. Never `delta.appendOnly`: expiry removes.
const CONFIGURATION: [(&str, &str); 2] =
    [("delta.checkpoint.writeStatsAsStruct", "true"), ("delta.enableExpiredLogCleanup", "false")];

/// Who may write a table beside us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Writers {
    /// Nobody: writer version 7 with a private feature. The default.
    #[default]
    OnlyUs,
    /// The log does not stop other Delta writers (writer version 2), for readers that refuse features they do not know.
    AnyDelta,
}

impl Writers {
    pub(super) fn protocol(self) -> wire::Protocol {
        let features = ["appendOnly", "invariants", PRIVATE_FEATURE];
        match self {
            Self::OnlyUs => wire::Protocol {
                min_reader_version: 1,
                min_writer_version: 7,
                reader_features: None,
                writer_features: Some(features.map(str::to_owned).to_vec()),
            },
            Self::AnyDelta => {
                wire::Protocol { min_reader_version: 1, min_writer_version: 2, reader_features: None, writer_features: None }
            }
        }
    }
}

/// What record 0 holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Genesis {
    /// The table's id, a UUID.
    pub table_id: String,
    /// The table's true name.
    pub table: String,
    /// When it was made, in milliseconds since 1970 UTC.
    pub created_ms: i64,
    /// Who may write it.
    pub writers: Writers,
}

impl Genesis {
    pub(super) fn meta_data(&self) -> wire::MetaData {
        wire::MetaData {
            id: self.table_id.clone(),
            name: Some(self.table.clone()),
            format: wire::Format { provider: "parquet".to_owned(), options: BTreeMap::new() },
            schema_string: SCHEMA.to_owned(),
            partition_columns: PARTITION_COLUMNS.map(str::to_owned).to_vec(),
            configuration: CONFIGURATION.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            created_time: Some(self.created_ms),
        }
    }

    /// Accepts exactly what [`Self::meta_data`] and [`Writers::protocol`] write, and nothing newer or foreign.
    pub(super) fn from_wire(protocol: &wire::Protocol, meta: &wire::MetaData) -> Result<Self, RecordError> {
        let writers = [Writers::OnlyUs, Writers::AnyDelta].into_iter().find(|writers| writers.protocol() == *protocol);
        let writers = writers.ok_or_else(|| RecordError::foreign(format!("protocol {protocol:?}")))?;
        let genesis = Self {
            table_id: meta.id.clone(),
            table: meta.name.clone().unwrap_or_default(),
            created_ms: meta.created_time.unwrap_or_default(),
            writers,
        };
        let ours = genesis.meta_data();
        if same_json(&meta.schema_string, &ours.schema_string)
            && meta.partition_columns == ours.partition_columns
            && meta.configuration == ours.configuration
            && meta.format.provider == ours.format.provider
        {
            return Ok(genesis);
        }
        Err(RecordError::foreign("metaData that is not layout 1 (schema, partition columns or configuration)"))
    }
}

fn same_json(left: &str, right: &str) -> bool {
    let value = |text| serde_json::from_str::<Value>(text).ok();
    value(left).is_some() && value(left) == value(right)
}
