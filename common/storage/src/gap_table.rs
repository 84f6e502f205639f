//! `_gaps`: one small Delta table of all positions that are known to be lost, for engines, which read no records of ours.
//!
//! Promises: derived from the `gaps` of the records and from nothing else; each of them is in it once, whoever derives it, however
//! often, two at a time, killed anywhere. For each table of the archive its log remembers (as a Delta `txn`) up to which record gaps
//! were taken over, and a record of it lands by put-if-absent, as everywhere. Never: decides anything; it may be deleted and made anew.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::Serialize;
use tapedeck_common::backoff::Backoff;
use tapedeck_common::{Clock, ErrorKind, Timestamp};

use crate::archive::Archive;
use crate::ids::fresh_uuid;
use crate::layout;
use crate::log::{LogReader, TableView, record};
use crate::store::{Outcome, Store, StoreError, classify};

mod file;
mod wire;

/// Its folder. No table of a topic has this name: an underscore in front is escaped.
pub const FOLDER: &str = "_gaps";

/// Tries of one create before the caller hears of it.
const TRIES: u32 = 8;

/// One row: positions of a lane that are lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GapRow {
    /// The table of the archive whose log says so.
    pub table: String,
    /// The lane.
    pub lane: String,
    /// The first lost position.
    pub from: u64,
    /// The first position after it.
    pub until: u64,
    /// Why.
    pub cause: &'static str,
    /// When it was written into the log, by its writer's clock.
    #[serde(serialize_with = "text")]
    pub noticed_at: Timestamp,
    /// The record that says so.
    pub record: u64,
}

fn text<S: serde::Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

/// What a derivation found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Derived {
    /// Rows that were missing, in the order of the log. With a dry run they still are.
    pub added: Vec<GapRow>,
    /// Rows of all tables that were there before.
    pub known: u64,
}

/// How far the table has come.
#[derive(Debug, Default)]
struct Known {
    /// The number of the next record.
    next: u64,
    rows: u64,
    /// For each table of the archive the newest record whose gaps are here.
    taken: BTreeMap<String, u64>,
}

/// Brings `_gaps` up to date with the log of `table`. With `dry_run` it only says what is missing.
pub async fn derive(
    archive: &Archive,
    table: &str,
    dry_run: bool,
    clock: &dyn Clock,
    rng: &mut fastrand::Rng,
) -> Result<Derived, StoreError> {
    loop {
        let known = read(&archive.store).await?;
        let added = missing(&archive.store, table, known.taken.get(table).copied()).await?;
        // The first run makes the table even if nothing is lost, so that statements which name it work from then on.
        let is_done = dry_run || (added.is_empty() && known.next > 0);
        if is_done || append(&archive.store, &known, &added, clock, rng).await? {
            return Ok(Derived { added, known: known.rows });
        }
        // Somebody else was first, and has brought what they found.
    }
}

/// Reads its log from the beginning: it has a record for each run that found something.
async fn read(store: &Store) -> Result<Known, StoreError> {
    let mut known = Known::default();
    while let Some(body) = get(store, known.next).await? {
        let key = layout::gap_table_record(known.next);
        let read = wire::decode(&body).map_err(|what| {
            let mend = "it holds nothing that the records of the tables do not: delete the folder and derive it again";
            StoreError::new(ErrorKind::Corrupt, format!("{key} in {}: {what}; {mend}", store.url))
        })?;
        known.rows += read.rows;
        known.taken.extend(read.taken);
        known.next += 1;
    }
    Ok(known)
}

async fn get(store: &Store, version: u64) -> Result<Option<Bytes>, StoreError> {
    let key = layout::gap_table_record(version);
    let read = async { store.patient.get(&key).await?.bytes().await };
    match read.await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if classify(&error) == Outcome::NotFound => Ok(None),
        Err(error) => Err(StoreError::request(format!("cannot read {key}"), error)),
    }
}

/// The gaps of a table's log after record `taken`.
async fn missing(store: &Store, table: &str, taken: Option<u64>) -> Result<Vec<GapRow>, StoreError> {
    let view = TableView::without_segments(store, table).await?;
    let reader = LogReader::new(store, table);
    let (mut rows, mut noticed) = (Vec::new(), BTreeMap::new());
    for gap in view.gaps.iter().filter(|gap| taken.is_none_or(|taken| gap.version > taken)) {
        let noticed_at = match noticed.get(&gap.version) {
            Some(at) => *at,
            None => written_at(&reader, table, gap.version).await?,
        };
        noticed.insert(gap.version, noticed_at);
        let (from, until) = (gap.span.from().get(), gap.span.until().get());
        let (table, lane) = (table.to_owned(), gap.lane.to_string());
        rows.push(GapRow { table, lane, from, until, cause: gap.cause.as_str(), noticed_at, record: gap.version });
    }
    Ok(rows)
}

async fn written_at(reader: &LogReader, table: &str, version: u64) -> Result<Timestamp, StoreError> {
    let failed =
        |what: String| StoreError::new(ErrorKind::Corrupt, format!("table {table}: record {version}, which notes a gap: {what}"));
    let body = reader.get(version).await?.ok_or_else(|| failed("it is missing".to_owned()))?;
    let read = record::decode(&body).map_err(|error| failed(error.to_string()))?;
    Ok(Timestamp::from_millis(read.header.timestamp_ms).unwrap_or_default())
}

/// True if the rows are in; false if somebody else took the record's number.
async fn append(
    store: &Store,
    known: &Known,
    rows: &[GapRow],
    clock: &dyn Clock,
    rng: &mut fastrand::Rng,
) -> Result<bool, StoreError> {
    let now = clock.now();
    let mut commit = wire::Commit::new(now, fresh_uuid(now, rng).to_string());
    if known.next == 0 {
        commit.begin(fresh_uuid(now, rng).to_string());
    }
    if !rows.is_empty() {
        // Named after its bytes: who is killed here and comes again writes the same file, not another one.
        let bytes = Bytes::from(file::encode(rows)?);
        let path = format!("gaps-{}.parquet", &blake3::hash(&bytes).to_hex()[..32]);
        let key = layout::gap_table_file(&path);
        let size = bytes.len();
        let put = store.patient.put(&key, bytes.into()).await;
        put.map_err(|error| StoreError::request(format!("cannot write {key} in {}", store.url), error))?;
        commit.add(rows, &path, size);
    }
    create(store, known.next, Bytes::from(commit.encode()), clock, rng).await
}

/// Creates a record. Whatever the create says, reading back decides; our bytes are like no others.
async fn create(
    store: &Store,
    version: u64,
    body: Bytes,
    clock: &dyn Clock,
    rng: &mut fastrand::Rng,
) -> Result<bool, StoreError> {
    let key = layout::gap_table_record(version);
    let what = || format!("cannot create {key} in {}", store.url);
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let mut failure = StoreError::new(ErrorKind::Unavailable, what());
    while backoff.attempts() < TRIES {
        match store.store.put_opts(&key, body.clone().into(), PutOptions::from(PutMode::Create)).await {
            Ok(_) => return Ok(true),
            Err(error) if classify(&error) == Outcome::Denied => return Err(StoreError::request(what(), error)),
            Err(error) => failure = StoreError::request(what(), error),
        }
        match get(store, version).await {
            Ok(Some(found)) => return Ok(found == body),
            Ok(None) => {}
            Err(error) => failure = error,
        }
        clock.sleep(backoff.next_wait(rng.f64())).await;
    }
    Err(failure)
}
