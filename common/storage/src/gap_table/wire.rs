//! The records of `_gaps`: Delta actions, one a line. Promises: what others wrote into it is told from ours. Pure.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use tapedeck_common::Timestamp;

use super::GapRow;
use crate::log::genesis::PRIVATE_FEATURE;

/// Names and Delta types of the columns, in order.
pub(super) const COLUMNS: [(&str, &str); 7] = [
    ("table_name", "string"),
    ("lane", "string"),
    ("from_position", "long"),
    ("until_position", "long"),
    ("cause", "string"),
    ("noticed_at", "timestamp"),
    ("record", "long"),
];

/// In front of the names of tables, among the ids of Delta transactions.
const TAKEN: &str = "gaps/";

/// Marks our commits.
const MARK: &str = "tapedeckGaps";

/// A record that is being written.
pub(super) struct Commit {
    now_ms: i64,
    actions: Vec<Json>,
}

impl Commit {
    pub(super) fn new(now: Timestamp, txn_id: String) -> Self {
        let now_ms = now.millis_floor();
        let info = json!({ "commitInfo": {
            "timestamp": now_ms,
            "operation": "WRITE",
            "operationParameters": {},
            "isBlindAppend": false,
            "engineInfo": concat!("tapedeck/", env!("CARGO_PKG_VERSION")),
            "txnId": txn_id,
            MARK: { "v": 1 },
        } });
        Self { now_ms, actions: vec![info] }
    }

    /// What record 0 says for ever. As with the tables of topics, other writers refuse it and readers need no feature.
    pub(super) fn begin(&mut self, table_id: String) {
        let features = ["appendOnly", "invariants", PRIVATE_FEATURE];
        self.actions.push(json!({ "protocol": { "minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": features } }));
        self.actions.push(json!({ "metaData": {
            "id": table_id,
            "name": super::FOLDER,
            "format": { "provider": "parquet", "options": {} },
            "schemaString": schema_string(),
            "partitionColumns": [],
            "configuration": { "delta.enableExpiredLogCleanup": "false" },
            "createdTime": self.now_ms,
        } }));
    }

    /// The file with the rows, and for each table in them how far its gaps are taken over.
    pub(super) fn add(&mut self, rows: &[GapRow], path: &str, size: usize) {
        let mut taken: BTreeMap<&str, u64> = BTreeMap::new();
        for row in rows {
            let newest = taken.entry(&row.table).or_default();
            *newest = row.record.max(*newest);
        }
        for (table, record) in taken {
            let txn = json!({ "appId": format!("{TAKEN}{table}"), "version": record, "lastUpdated": self.now_ms });
            self.actions.push(json!({ "txn": txn }));
        }
        let stats = json!({ "numRecords": rows.len() }).to_string();
        self.actions.push(json!({ "add": {
            "path": path,
            "partitionValues": {},
            "size": size,
            "modificationTime": self.now_ms,
            "dataChange": true,
            "stats": stats,
        } }));
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        self.actions.iter().flat_map(|action| format!("{action}\n").into_bytes()).collect()
    }
}

fn schema_string() -> String {
    let field = |(name, kind): (&str, &str)| format!(r#"{{"name":"{name}","type":"{kind}","nullable":true,"metadata":{{}}}}"#);
    format!(r#"{{"type":"struct","fields":[{}]}}"#, COLUMNS.map(field).join(","))
}

/// What a record brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) rows: u64,
    pub(super) taken: BTreeMap<String, u64>,
}

pub(super) fn decode(body: &[u8]) -> Result<Read, String> {
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let actions: Vec<Json> = lines.map(serde_json::from_slice).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    if !actions.iter().any(|action| action["commitInfo"][MARK]["v"] == 1) {
        return Err("it was written by another program, or by a later version".to_owned());
    }
    let mut read = Read::default();
    for action in &actions {
        if let Some(table) = action["txn"]["appId"].as_str().and_then(|id| id.strip_prefix(TAKEN)) {
            let version = action["txn"]["version"].as_u64().ok_or("a txn without a version")?;
            read.taken.insert(table.to_owned(), version);
        }
        if let Some(stats) = action["add"]["stats"].as_str() {
            let stats: Json = serde_json::from_str(stats).map_err(|error| error.to_string())?;
            read.rows += stats["numRecords"].as_u64().ok_or("a file without its number of rows")?;
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(table: &str, record: u64) -> GapRow {
        let noticed_at = Timestamp::from_micros(1_795_168_800_000_000);
        GapRow { table: table.to_owned(), lane: "s/0".to_owned(), from: 3, until: 9, cause: "retention", noticed_at, record }
    }

    /// Golden: a change of it makes tables that differ from those that exist. The order of keys is no part of it.
    #[test]
    fn a_record_is_written_as_it_always_was() {
        let mut commit = Commit::new(Timestamp::from_micros(1_795_168_800_000_000), "x".to_owned());
        commit.begin("t".to_owned());
        commit.add(&[row("a", 4), row("a", 7), row("b", 2)], "gaps-1.parquet", 5);
        let text = String::from_utf8(commit.encode()).expect("text");
        let golden = include_str!("golden_record.json").replace("VERSION", env!("CARGO_PKG_VERSION"));
        let parsed = |text: &str| text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect::<Vec<Json>>();
        assert_eq!(parsed(&text), parsed(&golden));
        let taken = BTreeMap::from([("a".to_owned(), 7), ("b".to_owned(), 2)]);
        assert_eq!(decode(text.as_bytes()), Ok(Read { rows: 3, taken }));
    }

    #[test]
    fn what_others_wrote_is_told_from_ours() {
        for body in ["", "{", r#"{"commitInfo":{"operation":"OPTIMIZE"}}"#] {
            assert!(decode(body.as_bytes()).is_err(), "{body}");
        }
    }
}
