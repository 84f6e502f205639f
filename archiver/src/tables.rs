//! The open table logs of the process. Two sources that share a table share its log, and so its one committer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tapedeck_common::backoff::Backoff;
use tapedeck_common::clock::Clock;
use tapedeck_common::commit::{CommitError, CommitLog};
use tapedeck_common::error::{ErrorKind, report};
use tapedeck_storage::archive::Archive;
use tapedeck_storage::log::{LogObserver, TableLog, TableOptions};
use tapedeck_storage::store::StoreError;
use tokio::sync::{Mutex, OnceCell};
use tracing::warn;

use crate::config::TableRules;
use crate::pipeline::Tables;
use crate::table::SharedLog;

/// All open logs.
pub struct OpenTables {
    archive: Archive,
    writer: String,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn LogObserver>,
    chance: Mutex<fastrand::Rng>,
    logs: Mutex<BTreeMap<Arc<str>, Arc<OnceCell<SharedLog>>>>,
    met: Mutex<BTreeMap<String, Met>>,
}

/// What was known of a topic when this process first asked for its table.
struct Met {
    had_a_table: bool,
    /// The first source that it had since.
    source: Option<String>,
}

impl OpenTables {
    /// Nothing is open yet. `writer` names this process in the records.
    pub fn new(
        archive: Archive,
        writer: String,
        clock: Arc<dyn Clock>,
        observer: Arc<dyn LogObserver>,
        chance: fastrand::Rng,
    ) -> Self {
        Self { archive, writer, clock, observer, chance: Mutex::new(chance), logs: Mutex::default(), met: Mutex::default() }
    }

    /// The tables of one source, by its rules.
    pub fn of_source(self: &Arc<Self>, rules: TableRules) -> SourceTables {
        SourceTables { rules, open: Arc::clone(self) }
    }

    async fn met_before(&self, topic: &str, source: &str) -> bool {
        let mut met = self.met.lock().await;
        let Some(first) = met.get_mut(topic) else { return true };
        first.had_a_table || first.source.get_or_insert_with(|| source.to_owned()) != source
    }

    async fn log(&self, table: &Arc<str>, topic: &str) -> Result<SharedLog, CommitError> {
        self.settle(table, topic).await?;
        // Whoever opens a table holds its own cell alone: no table is opened twice, and none waits for another.
        let cell = Arc::clone(self.logs.lock().await.entry(Arc::clone(table)).or_default());
        let log = cell.get_or_try_init(|| self.open(table)).await?;
        Ok(Arc::clone(log))
    }

    async fn open(&self, table: &str) -> Result<SharedLog, CommitError> {
        let chance = self.chance.lock().await.fork();
        let options = TableOptions::of(table.to_owned(), self.writer.clone());
        let log =
            TableLog::open(&self.archive.store, options, Arc::clone(&self.clock), chance, Arc::clone(&self.observer)).await?;
        Ok(Arc::new(Mutex::new(Box::new(log) as Box<dyn CommitLog>)))
    }

    /// Writes down, once and for all, that the topic goes to the table. Waits out an absent store.
    async fn settle(&self, table: &str, topic: &str) -> Result<(), CommitError> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        let mut chance = self.chance.lock().await.fork();
        if !self.met.lock().await.contains_key(topic) {
            let had_a_table = self.archive.has_topic(topic).await.unwrap_or(true);
            self.met.lock().await.entry(topic.to_owned()).or_insert(Met { had_a_table, source: None });
        }
        loop {
            let error = match self.archive.settle_topic(topic, table, &*self.clock, &mut chance).await {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Unavailable => error,
                Err(error) => return Err(failed(table, error)),
            };
            if backoff.attempts().is_multiple_of(8) {
                warn!(table, topic, error = %report(&error), "the store is away, trying again");
            }
            self.clock.sleep(backoff.next_wait(chance.f64())).await;
        }
    }
}

fn failed(table: &str, error: StoreError) -> CommitError {
    CommitError { table: table.to_owned(), what: error.to_string(), kind: error.kind(), source: Some(error.into()) }
}

/// The tables of one source.
pub struct SourceTables {
    rules: TableRules,
    open: Arc<OpenTables>,
}

#[async_trait]
impl Tables for SourceTables {
    fn table_of(&self, topic: &str) -> Arc<str> {
        self.rules.table_of(topic)
    }

    fn is_shared(&self, topic: &str) -> bool {
        self.rules.has_rule(topic)
    }

    async fn met_before(&self, topic: &str, source: &str) -> bool {
        self.open.met_before(topic, source).await
    }

    async fn open(&self, topic: &str) -> Result<SharedLog, CommitError> {
        self.open.log(&self.rules.table_of(topic), topic).await
    }
}
