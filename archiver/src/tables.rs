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
use tokio::sync::Mutex;
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
    logs: Mutex<BTreeMap<Arc<str>, SharedLog>>,
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
        Self { archive, writer, clock, observer, chance: Mutex::new(chance), logs: Mutex::default() }
    }

    /// The tables of one source, by its rules.
    pub fn of_source(self: &Arc<Self>, rules: TableRules) -> SourceTables {
        SourceTables { rules, open: Arc::clone(self) }
    }

    async fn log(&self, table: &Arc<str>, topic: &str) -> Result<SharedLog, CommitError> {
        self.settle(table, topic).await?;
        // Held while a log is opened, so that no table is ever opened twice.
        let mut logs = self.logs.lock().await;
        if let Some(log) = logs.get(table) {
            return Ok(Arc::clone(log));
        }
        let chance = self.chance.lock().await.fork();
        let options = TableOptions::of(table.to_string(), self.writer.clone());
        let log =
            TableLog::open(&self.archive.store, options, Arc::clone(&self.clock), chance, Arc::clone(&self.observer)).await?;
        let log: SharedLog = Arc::new(Mutex::new(Box::new(log) as Box<dyn CommitLog>));
        logs.insert(Arc::clone(table), Arc::clone(&log));
        Ok(log)
    }

    /// Writes down, once and for all, that the topic goes to the table. Waits out an absent store.
    async fn settle(&self, table: &str, topic: &str) -> Result<(), CommitError> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        let mut chance = self.chance.lock().await.fork();
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

    async fn open(&self, topic: &str) -> Result<SharedLog, CommitError> {
        self.open.log(&self.rules.table_of(topic), topic).await
    }
}
