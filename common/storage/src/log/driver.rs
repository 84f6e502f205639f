//! The table log against a real store: makes the calls that `protocol` asks for, and nothing more.
//!
//! Promises: waits out an absent store without end, with jittered waits and a warning now and then; every call has a
//! deadline; one task commits to one table at a time. Never: decides anything about a record itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::{ObjectStore, PutMode, PutOptions};
use tapedeck_common::backoff::Backoff;
use tapedeck_common::commit::{Checkpoint, CommitError, CommitLog, Outcome, Record};
use tapedeck_common::error::report;
use tapedeck_common::{Clock, ErrorKind, limits};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::checkpoint::{Found, Shape, newest, write_checkpoint};
use super::genesis::{Genesis, Writers};
use super::protocol::{Call, Goal, Identity, Known, Moment, Protocol, ProtocolError, Reply, Settled, Step, Tally};
use super::record;
use super::rewrite::{self, Rewrite, Rewritten};
use super::state::LogState;
use super::tail::LogReader;
use crate::ids::fresh_uuid;
use crate::store::{Outcome as Answer, Store, StoreError, classify};

/// A call without an answer by then counts as unknown. Longer than any store needs for a few kilobytes.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Records fetched at once while catching up. Begins with one, since mostly there is none.
const READ_AHEAD: u64 = 16;

/// One warning per table in this time while the store is away.
const WARN_EVERY: Duration = Duration::from_secs(30);

/// Which log, and in whose name it is written.
#[derive(Debug, Clone)]
pub struct TableOptions {
    /// The table's true name.
    pub table: String,
    /// This writer's name, for people who read records.
    pub writer: String,
    /// The program, `tapedeck/<version>`.
    pub engine: String,
    /// Who else may write a table that does not exist yet.
    pub writers: Writers,
    /// A checkpoint is written when the version reaches a multiple of this.
    pub checkpoint_every: u64,
}

impl TableOptions {
    /// The log of `table`, with everything else by default.
    pub fn of(table: impl Into<String>, writer: impl Into<String>) -> Self {
        Self {
            table: table.into(),
            writer: writer.into(),
            engine: concat!("tapedeck/", env!("CARGO_PKG_VERSION")).to_owned(),
            writers: Writers::OnlyUs,
            checkpoint_every: limits::CHECKPOINT_EVERY,
        }
    }
}

/// Learns what the log goes through, for metrics. Every call is cheap and must not block.
pub trait LogObserver: Send + Sync + 'static {
    /// A record was settled: how long it took, what happened on the way, how it ended.
    fn settled(&self, table: &str, took: Duration, tally: Tally, outcome: &Outcome) {
        let _ = (table, took, tally, outcome);
    }

    /// A call to the store failed and will be repeated. `conflict` is false.
    fn store_failed(&self, table: &str) {
        let _ = table;
    }

    /// A checkpoint was written, or failed to be.
    fn checkpoint(&self, table: &str, written: bool) {
        let _ = (table, written);
    }
}

/// Nobody is interested.
impl LogObserver for () {}

/// The log of one table, for a writer.
pub struct TableLog {
    store: Arc<dyn ObjectStore>,
    reader: LogReader,
    options: TableOptions,
    clock: Arc<dyn Clock>,
    rng: fastrand::Rng,
    observer: Arc<dyn LogObserver>,
    known: Known,
    ahead: ReadAhead,
    trouble: Trouble,
    checkpointing: Option<JoinHandle<()>>,
}

impl fmt::Debug for TableLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TableLog({} at {:?})", self.options.table, self.known.state.tip())
    }
}

impl TableLog {
    /// Opens the log, or begins it if the table is new. Waits for the store without end.
    pub async fn open(
        store: &Store,
        options: TableOptions,
        clock: Arc<dyn Clock>,
        rng: fastrand::Rng,
        observer: Arc<dyn LogObserver>,
    ) -> Result<Self, CommitError> {
        let mut log = Self {
            store: Arc::clone(&store.store),
            reader: LogReader::new(store, &options.table),
            options,
            clock,
            rng,
            observer,
            known: Known::default(),
            ahead: ReadAhead::default(),
            trouble: Trouble::default(),
            checkpointing: None,
        };
        log.known = log.first_look().await?;
        let genesis = Genesis {
            table_id: log.fresh_id(),
            table: log.options.table.clone(),
            created_ms: log.clock.now().millis_floor(),
            writers: log.options.writers,
        };
        log.run(Goal::Begin(&genesis)).await?;
        log.check_name()?;
        info!(table = %log.options.table, version = log.version(), lanes = log.known.state.positions().len(), "table log open");
        Ok(log)
    }

    /// The number of the newest known record.
    pub fn version(&self) -> u64 {
        self.known.state.tip().map_or(0, |tip| tip.version)
    }

    /// What is known of the log.
    pub fn state(&self) -> &LogState {
        &self.known.state
    }

    /// Catches up with the log; answers the number of its newest record. Waits out an absent store, without end.
    pub async fn catch_up(&mut self) -> Result<u64, CommitError> {
        self.run(Goal::CatchUp).await?;
        Ok(self.version())
    }

    /// See [`LogState::watch`]. What is given was read at [`Self::version`].
    pub fn watch(&mut self, live: impl IntoIterator<Item = String>, unknown: impl IntoIterator<Item = String>) {
        self.known.state.watch(live, unknown);
    }

    /// Makes `rewrite` true, or learns that it can not be. What it touches is watched. Waits out an absent store, without end.
    /// If the call is dropped the record may still land.
    pub async fn rewrite(&mut self, rewrite: &Rewrite) -> Result<Rewritten, CommitError> {
        let checked = rewrite::check(rewrite).map_err(|error| error.to_string());
        checked.map_err(|what| self.failed(StoreError::new(ErrorKind::Bug, what)))?;
        let (settled, _) = self.run(Goal::Rewrite(rewrite)).await?;
        let Settled::Rewritten(rewritten) = settled else {
            return Err(self.failed(StoreError::new(ErrorKind::Bug, "a rewrite ended without an outcome")));
        };
        if let Rewritten::Committed { version } = rewritten {
            self.begin_checkpoint(version);
        }
        Ok(rewritten)
    }

    /// Waits for a checkpoint that is being written in the background, if there is one.
    pub async fn finish_checkpoint(&mut self) {
        if let Some(writing) = self.checkpointing.take() {
            let _ = writing.await;
        }
    }

    /// O2: the newest checkpoint that a listing shows; the records above it follow by the protocol.
    async fn first_look(&mut self) -> Result<Known, CommitError> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            let seen_at = self.clock.monotonic();
            let error = match self.look().await {
                Ok((state, listed)) => {
                    self.trouble.over(&self.options.table);
                    // The listing showed how much there is to read.
                    let unread = listed.map_or(0, |listed| (listed + 1).saturating_sub(state.next_version()));
                    self.ahead.width = unread.clamp(1, READ_AHEAD);
                    return Ok(Known { state, seen_at, listed });
                }
                Err(error) if error.kind() == ErrorKind::Corrupt => return Err(self.failed(error)),
                Err(error) => error,
            };
            self.note_failure("opening the log", &report(&error));
            let wait = backoff.next_wait(self.rng.f64());
            self.clock.sleep(wait).await;
        }
    }

    async fn look(&self) -> Result<(LogState, Option<u64>), StoreError> {
        let late = StoreError::new(ErrorKind::Unavailable, "no answer in time");
        let look = async {
            let listing = self.reader.list_from_hint(None).await?;
            self.reader.check_top(&listing).await?;
            let found = newest(&self.reader, &listing, None, &mut BTreeSet::new()).await?;
            let begun = |Found { tip, genesis, lanes, .. }| LogState::from_checkpoint(tip, genesis, lanes, None);
            Ok((found.map_or_else(LogState::for_writer, begun), listing.records.last().copied()))
        };
        // A long listing takes several requests, so it may take longer than a call.
        tokio::select! {
            looked = look => looked,
            () = self.clock.sleep(4 * CALL_TIMEOUT) => Err(late),
        }
    }

    fn check_name(&self) -> Result<(), CommitError> {
        let found = self.known.state.genesis().map(|genesis| genesis.table.as_str());
        if found == Some(self.options.table.as_str()) {
            return Ok(());
        }
        let what = format!("{} belongs to the table {found:?}", self.reader.paths.folder());
        Err(self.failed(StoreError::new(ErrorKind::Invalid, what)))
    }

    fn fresh_id(&mut self) -> String {
        fresh_uuid(self.clock.now(), &mut self.rng).to_string()
    }

    fn moment(&mut self) -> Moment {
        Moment { monotonic: self.clock.monotonic(), wall: self.clock.now(), chance: self.rng.f64() }
    }

    async fn run(&mut self, goal: Goal<'_>) -> Result<(Settled, Tally), CommitError> {
        let identity =
            Identity { engine: self.options.engine.clone(), writer: self.options.writer.clone(), txn_id: self.fresh_id() };
        let now = self.moment();
        let started = Protocol::start(goal, identity, &mut self.known, now);
        let (mut work, mut step) = started.map_err(|error| self.stopped(error))?;
        loop {
            let call = match step {
                Step::Done(settled) => return Ok((settled, work.tally())),
                Step::Call(call) => call,
            };
            let reply = self.perform(call).await;
            let now = self.moment();
            step = work.step(&mut self.known, reply, now).map_err(|error| self.stopped(error))?;
        }
    }

    async fn perform(&mut self, call: Call) -> Reply {
        match call {
            Call::Get(version) => self.get(version).await,
            Call::Create(version, body) => self.create(version, body).await,
            Call::List(version) => {
                let reader = self.reader.clone();
                match self.in_time(reader.list(version)).await {
                    Ok(listing) => Reply::Listed(listing.records),
                    Err(error) => self.unknown("listing the log", &error),
                }
            }
            Call::Wait(time) => {
                self.clock.sleep(time).await;
                Reply::Waited
            }
        }
    }

    async fn get(&mut self, version: u64) -> Reply {
        if let Some(bytes) = self.ahead.take(version) {
            return decoded(&bytes);
        }
        let reader = self.reader.clone();
        let versions = version..version + self.ahead.width;
        let fetch = futures::future::join_all(versions.clone().map(|version| reader.get(version)));
        let mut answers = match self.in_time(async { Ok(fetch.await) }).await {
            Ok(answers) => versions.zip(answers).collect::<Vec<_>>(),
            Err(error) => return self.unknown("reading the log", &error),
        };
        let (_, first) = answers.remove(0);
        self.ahead.keep(answers);
        match first {
            Ok(found) => {
                self.trouble.over(&self.options.table);
                self.ahead.adapt(found.is_some());
                found.map_or(Reply::NotFound, |bytes| decoded(&bytes))
            }
            Err(error) => self.unknown("reading the log", &error),
        }
    }

    async fn create(&mut self, version: u64, body: Bytes) -> Reply {
        let key = self.reader.paths.record(version);
        let store = Arc::clone(&self.store);
        let put = async {
            let sent = store.put_opts(&key, body.into(), PutOptions::from(PutMode::Create)).await;
            Ok(sent)
        };
        let error = match self.in_time(put).await {
            Ok(Ok(_)) => {
                self.trouble.over(&self.options.table);
                return Reply::Created;
            }
            // Mostly another writer was first; whether it was is read back like everything else.
            Ok(Err(error)) if classify(&error) == Answer::Exists => {
                debug!(table = %self.options.table, version, error = %report(&error), "version taken");
                return Reply::Unknown;
            }
            Ok(Err(error)) => StoreError::request(format!("cannot create {key}"), error),
            Err(late) => late,
        };
        self.unknown("writing a record", &error)
    }

    async fn in_time<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        tokio::select! {
            answer = call => answer,
            () = self.clock.sleep(CALL_TIMEOUT) => Err(StoreError::new(ErrorKind::Unavailable, "no answer in time")),
        }
    }

    fn unknown(&mut self, doing: &str, error: &StoreError) -> Reply {
        self.note_failure(doing, &report(error));
        Reply::Unknown
    }

    fn note_failure(&mut self, doing: &str, error: &str) {
        self.observer.store_failed(&self.options.table);
        self.trouble.note(&self.options.table, self.clock.monotonic(), doing, error);
    }

    fn stopped(&self, error: ProtocolError) -> CommitError {
        let what = format!("{}: {}", self.reader.paths.record(error.version), error.source);
        self.failed(StoreError::new(error.kind(), what))
    }

    fn failed(&self, error: StoreError) -> CommitError {
        let kind = error.kind;
        CommitError { table: self.options.table.clone(), what: error.what, kind, source: error.source }
    }

    /// C7: whoever reaches the multiple writes the checkpoint, beside the commits, since nothing waits for it.
    fn begin_checkpoint(&mut self, version: u64) {
        let due = version > 0 && version.is_multiple_of(self.options.checkpoint_every.max(1));
        let is_busy = self.checkpointing.as_ref().is_some_and(|writing| !writing.is_finished());
        if !due || is_busy {
            return;
        }
        let (reader, observer) = (self.reader.clone(), Arc::clone(&self.observer));
        self.checkpointing = Some(tokio::spawn(async move {
            let written = write_checkpoint(&reader, version, Shape::default()).await;
            observer.checkpoint(&reader.table, written.is_ok());
            if let Err(error) = written {
                warn!(table = %reader.table, version, error = %report(&error), "no checkpoint this time");
            }
        }));
    }
}

fn decoded(bytes: &[u8]) -> Reply {
    match record::decode(bytes) {
        Ok(record) => Reply::Found(Arc::new(record)),
        Err(error) => Reply::Unreadable(error),
    }
}

impl Drop for TableLog {
    fn drop(&mut self) {
        if let Some(writing) = self.checkpointing.take() {
            writing.abort();
        }
    }
}

#[async_trait]
impl CommitLog for TableLog {
    async fn checkpoint(&mut self) -> Result<Checkpoint, CommitError> {
        self.run(Goal::CatchUp).await?;
        Ok(self.known.state.positions().clone())
    }

    async fn append_record(&mut self, record: &Record) -> Result<Outcome, CommitError> {
        let empty = record.advances.is_empty() && record.segments.is_empty();
        let checked = record::check(record).map_err(|error| error.to_string());
        let checked = if empty { Err("a record that changes nothing".to_owned()) } else { checked };
        checked.map_err(|what| self.failed(StoreError::new(ErrorKind::Bug, what)))?;
        let begun = self.clock.monotonic();
        let (settled, tally) = self.run(Goal::Append(record)).await?;
        let Settled::Appended(outcome) = settled else {
            return Err(self.failed(StoreError::new(ErrorKind::Bug, "an append ended without an outcome")));
        };
        let took = self.clock.monotonic().saturating_sub(begun);
        self.observer.settled(&self.options.table, took, tally, &outcome);
        if let Outcome::Committed { version } = outcome {
            self.begin_checkpoint(version);
        }
        Ok(outcome)
    }
}

/// Records that were fetched before they were asked for.
#[derive(Debug)]
struct ReadAhead {
    found: BTreeMap<u64, Bytes>,
    width: u64,
}

impl Default for ReadAhead {
    fn default() -> Self {
        Self { found: BTreeMap::new(), width: 1 }
    }
}

impl ReadAhead {
    fn take(&mut self, version: u64) -> Option<Bytes> {
        self.found = self.found.split_off(&version);
        self.found.remove(&version)
    }

    /// Only what was found is kept: records never change, but a missing one may appear.
    fn keep(&mut self, answers: Vec<(u64, Result<Option<Bytes>, StoreError>)>) {
        let found = answers.into_iter().filter_map(|(version, answer)| Some((version, answer.ok()??)));
        self.found.extend(found);
    }

    fn adapt(&mut self, found: bool) {
        self.width = if found { (self.width * 2).min(READ_AHEAD) } else { 1 };
    }
}

/// Says that the store is away: at once, then now and then, and once more when it is back.
#[derive(Debug, Default)]
struct Trouble {
    warned_at: Option<Duration>,
    failures: u64,
}

impl Trouble {
    fn note(&mut self, table: &str, now: Duration, doing: &str, error: &str) {
        self.failures += 1;
        if self.warned_at.is_some_and(|at| now.saturating_sub(at) < WARN_EVERY) {
            return;
        }
        self.warned_at = Some(now);
        warn!(table, failures = self.failures, doing, error, "the store does not answer, trying again");
    }

    fn over(&mut self, table: &str) {
        if self.failures > 0 {
            info!(table, failures = self.failures, "the store answers again");
            *self = Self::default();
        }
    }
}
