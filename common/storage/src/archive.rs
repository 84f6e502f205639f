//! The archive's own objects: its identity, and which table each topic went to.
//!
//! Promises: both are created once and never change; a configuration that disagrees is refused with the way out; a table
//! is found by what lies in its log's folder, so that one whose first record or whose topic's home is gone stays in sight.
//! Never: moves a topic to another table, since its positions live in the old one's log.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tapedeck_common::backoff::Backoff;
use tapedeck_common::{Clock, ErrorKind};
use tracing::warn;

use crate::gap_table;
use crate::ids::fresh_uuid;
use crate::layout;
use crate::log::LogReader;
use crate::log::record;
use crate::store::{Outcome, Store, StoreError, classify};

/// The archive format that this code reads and writes.
pub const FORMAT: u32 = 1;

/// The table of a topic that no rule names: its own.
pub const TABLE_PER_TOPIC: &str = "{topic}";

/// Tries of one create-and-read-back before the caller hears of it.
const TRIES: u32 = 5;

/// Folders of the archive itself: its own objects, and the derived table of gaps. No table of a topic has such a name.
const OWN_FOLDERS: [&str; 2] = ["_archive", gap_table::FOLDER];

/// Objects of one folder read at once.
const READS_AT_ONCE: usize = 16;

/// `_archive/config.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveConfig {
    /// The archive's id, a UUID.
    pub id: String,
    /// The archive format.
    pub format: u32,
    /// How the table of a topic is named where no rule does.
    pub table_template: String,
}

/// `_archive/topics/<topic>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicHome {
    /// The topic's true name.
    pub topic: String,
    /// The true name of the table that it goes to.
    pub table: String,
}

/// An archive that exists, and that this version understands.
#[derive(Debug, Clone)]
pub struct Archive {
    /// Where it lies.
    pub store: Store,
    /// Its identity.
    pub config: ArchiveConfig,
}

impl Archive {
    /// Opens an archive for reading; it must exist.
    pub async fn open(store: Store) -> Result<Self, StoreError> {
        let config: Option<ArchiveConfig> = read(&store, &layout::archive_config()).await?;
        let config = config.ok_or_else(|| {
            StoreError::new(
                ErrorKind::Invalid,
                format!("there is no archive at {}: {} is missing", store.url, layout::archive_config()),
            )
        })?;
        check_format(&store, &config)?;
        Ok(Self { store, config })
    }

    /// Opens an archive for writing, or makes it.
    pub async fn open_or_create(
        store: Store,
        table_template: &str,
        clock: &dyn Clock,
        rng: &mut fastrand::Rng,
    ) -> Result<Self, StoreError> {
        let ours = ArchiveConfig {
            id: fresh_uuid(clock.now(), rng).to_string(),
            format: FORMAT,
            table_template: table_template.to_owned(),
        };
        let config = create_once(&store, &layout::archive_config(), &ours, clock, rng).await?;
        check_format(&store, &config)?;
        if config.table_template != table_template {
            let what = format!(
                "the archive {} names tables {:?}, but the configuration says {table_template:?}; this is fixed when an \
                 archive is made",
                store.url, config.table_template
            );
            return Err(StoreError::new(ErrorKind::Invalid, what));
        }
        Ok(Self { store, config })
    }

    /// True if the topic has its table already.
    pub async fn has_topic(&self, topic: &str) -> Result<bool, StoreError> {
        Ok(read::<TopicHome>(&self.store, &layout::archive_topic(topic)).await?.is_some())
    }

    /// Remembers that `topic` goes to `table`, for ever. Refused if it goes elsewhere already.
    pub async fn settle_topic(
        &self,
        topic: &str,
        table: &str,
        clock: &dyn Clock,
        rng: &mut fastrand::Rng,
    ) -> Result<(), StoreError> {
        let key = layout::archive_topic(topic);
        let ours = TopicHome { topic: topic.to_owned(), table: table.to_owned() };
        let found = create_once(&self.store, &key, &ours, clock, rng).await?;
        if found == ours {
            return Ok(());
        }
        let what = format!(
            "topic {topic} goes to table {0} in the archive {1}, but the configuration says {table}. Its positions live in the \
             log of {0}, so it cannot move by itself. Keep it there with `tables: [{{ topics: {topic}, table: {0} }}]`; or stop \
             every archiver, delete the object {key}, and start again: {table} then begins at the configured `start`, and what \
             {0} holds stays there and is still verified and replayed (events that the bus still has may then lie in both)",
            found.table, self.store.url
        );
        Err(StoreError::new(ErrorKind::Invalid, what))
    }

    /// The topics that were ever archived, and their tables.
    pub async fn topics(&self) -> Result<BTreeMap<String, String>, StoreError> {
        let folder = Path::from("_archive/topics");
        let failed = |error| StoreError::request(format!("cannot list {folder}"), error);
        let keys = self.store.patient.list(Some(&folder)).map_ok(|object| object.location).map_err(failed);
        let homes = keys.map_ok(|key| async move { read::<TopicHome>(&self.store, &key).await });
        let homes: Vec<Option<TopicHome>> = homes.try_buffer_unordered(READS_AT_ONCE).try_collect().await?;
        Ok(homes.into_iter().flatten().map(|home| (home.topic, home.table)).collect())
    }

    /// The true names of the tables, in order: every folder whose `_delta_log/` holds anything, whether a topic goes there
    /// today or not.
    pub async fn tables(&self) -> Result<Vec<String>, StoreError> {
        let homes = self.topics().await?;
        let homes: BTreeMap<String, &String> = homes.values().map(|table| (layout::table_folder(table), table)).collect();
        let failed = |error| StoreError::request(format!("cannot list {}", self.store.url), error);
        let found = self.store.patient.list_with_delimiter(None).await.map_err(failed)?;
        let folders = found.common_prefixes.iter().filter_map(|prefix| prefix.filename());
        // A listing may lag behind, so the homes are asked as well.
        let folders: BTreeSet<&str> =
            folders.chain(homes.keys().map(String::as_str)).filter(|name| !OWN_FOLDERS.contains(name)).collect();
        // Owned, since a closure over borrowed names makes a future that cannot be sent to another thread.
        let wanted: Vec<(String, Option<String>)> =
            folders.into_iter().map(|folder| (folder.to_owned(), homes.get(folder).map(|table| (*table).clone()))).collect();
        let names = wanted.into_iter().map(|(folder, home)| self.table_in(folder, home));
        let names: Vec<Option<String>> = futures::stream::iter(names).buffered(READS_AT_ONCE).try_collect().await?;
        let mut tables: Vec<String> = names.into_iter().flatten().collect();
        tables.sort();
        Ok(tables)
    }

    /// The name of the table in `folder`, `None` if there is no table of ours.
    async fn table_in(&self, folder: String, home: Option<String>) -> Result<Option<String>, StoreError> {
        let reader = LogReader::in_folder(&self.store, &folder);
        if !reader.is_there().await? {
            return Ok(None);
        }
        if home.is_some() {
            return Ok(home);
        }
        let body = reader.get(0).await?;
        if body.as_deref().is_some_and(is_foreign) {
            warn!(folder, "passed over: its log is somebody else's");
            return Ok(None);
        }
        match body.and_then(|body| record::decode(&body).ok()?.genesis) {
            Some(genesis) if layout::table_folder(&genesis.table) == folder => Ok(Some(genesis.table)),
            Some(genesis) => {
                warn!(folder, table = genesis.table, "passed over: its log belongs to another folder");
                Ok(None)
            }
            None => layout::table_of_folder(&folder).map(Some).ok_or_else(|| {
                let what = format!(
                    "{folder}/_delta_log in {}: record 0 is lost, and nothing else tells the table's name",
                    self.store.url
                );
                StoreError::new(ErrorKind::Corrupt, what)
            }),
        }
    }
}

/// True if a record 0 is whole, and was written by another program. One that is damaged may be ours.
fn is_foreign(body: &[u8]) -> bool {
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let actions: Result<Vec<Json>, _> = lines.map(serde_json::from_slice).collect();
    actions.is_ok_and(|actions| !actions.is_empty() && actions.iter().all(|action| action["commitInfo"]["tapedeck"].is_null()))
}

fn check_format(store: &Store, config: &ArchiveConfig) -> Result<(), StoreError> {
    if config.format == FORMAT {
        return Ok(());
    }
    let what = format!("the archive {} has format {}, and this version knows {FORMAT} only", store.url, config.format);
    Err(StoreError::new(ErrorKind::Invalid, what))
}

async fn read<T: DeserializeOwned>(store: &Store, key: &Path) -> Result<Option<T>, StoreError> {
    let fetched = async { store.patient.get(key).await?.bytes().await };
    let bytes = match fetched.await {
        Ok(bytes) => bytes,
        Err(error) if classify(&error) == Outcome::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::request(format!("cannot read {key}"), error)),
    };
    let parsed = serde_json::from_slice(&bytes).map_err(|error| StoreError {
        what: format!("{key} in {} cannot be read", store.url),
        kind: ErrorKind::Corrupt,
        source: Some(Box::new(error)),
    });
    parsed.map(Some)
}

/// Creates `key` with `ours` unless it exists, and answers what lies there. Whatever the create says, reading decides.
async fn create_once<T: Serialize + DeserializeOwned>(
    store: &Store,
    key: &Path,
    ours: &T,
    clock: &dyn Clock,
    rng: &mut fastrand::Rng,
) -> Result<T, StoreError> {
    let mut text = serde_json::to_vec_pretty(ours).expect("plain data always serialises");
    text.push(b'\n');
    let text = Bytes::from(text);
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let what = || format!("cannot create {key} in {}", store.url);
    let mut failure = StoreError::new(ErrorKind::Unavailable, what());
    while backoff.attempts() < TRIES {
        if let Some(found) = read(store, key).await? {
            return Ok(found);
        }
        match store.store.put_opts(key, text.clone().into(), PutOptions::from(PutMode::Create)).await {
            Err(error) if classify(&error) == Outcome::Denied => return Err(StoreError::request(what(), error)),
            Err(error) => failure = StoreError::request(what(), error),
            Ok(_) => {}
        }
        if let Some(found) = read(store, key).await? {
            return Ok(found);
        }
        clock.sleep(backoff.next_wait(rng.f64())).await;
    }
    Err(failure)
}
