//! A job's objects in the archive: plan, leases, cursors, report; and who may work on it.
//!
//! Promises: leases are created, never changed, and the highest is the owner's; every owner writes a cursor object of its
//! own, so that one who was paused for hours can overwrite nothing of its successor's; whether an owner lives is seen by
//! its cursor moving, not by comparing clocks; whoever takes over begins only once the one before publishes no more;
//! how an owner ended is created, so that no cursor which was still on its way can undo it. Never: delete.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutMode, PutOptions};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tapedeck_common::error::report as error_text;
use tapedeck_common::{Clock, ErrorKind, Timestamp};
use tapedeck_storage::layout;
use tapedeck_storage::store::{Outcome, Store, StoreError, classify};
use tracing::warn;

use crate::cursor::{CURSOR_FORMAT, Cursor, State};
use crate::plan::Plan;
use crate::replay::{Ledger, LedgerError, SILENT_MAX};
use crate::report::Report;
use crate::select::text_time;

/// How long a second starter watches the owner's cursor before it takes over. Longer than [`crate::replay::SILENT_MAX`].
const WATCH: Duration = Duration::from_secs(5);

/// How long who took over waits before it reads where to begin: by then the owner before, who may have shown a sign of life
/// just before the new lease, has published its last, and a second covers what its client still had on the way. Shorter
/// than [`WATCH`], so that a third starter sees the new owner begin.
const HAND_OVER: Duration = Duration::from_secs(SILENT_MAX.as_secs() + 1);

/// How often a last cursor is tried while the store is away.
const LAST_CURSOR_TRIES: u32 = 20;
const LAST_CURSOR_AGAIN: Duration = Duration::from_millis(500);

/// How often it looks.
const WATCH_EVERY: Duration = Duration::from_millis(250);

/// Between tries of an outcome that is unknown.
const SETTLE_AGAIN: Duration = Duration::from_millis(200);

/// Why a job cannot be worked on.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Somebody else works on it.
    #[error("job {job} is being run by another replayer ({owner}, lease {lease}); wait for it, or use another --job")]
    Held {
        /// The job.
        job: String,
        /// Who.
        owner: String,
        /// Its lease.
        lease: u32,
    },
    /// There is no such job.
    #[error("there is no job {job} in {archive}; `replayer list` shows those that exist")]
    Unknown {
        /// The job.
        job: String,
        /// The archive.
        archive: String,
    },
    /// The job exists and is something else.
    #[error("job {job} exists with another plan ({theirs}); give this one another --job")]
    OtherPlan {
        /// The job.
        job: String,
        /// What it is.
        theirs: String,
    },
    /// The archive's store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl JobError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Held { .. } => ErrorKind::Stale,
            Self::Unknown { .. } | Self::OtherPlan { .. } => ErrorKind::Invalid,
            Self::Store(error) => error.kind(),
        }
    }
}

/// `lease.json`, `lease-2.json` ... of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its number.
    pub number: u32,
    /// What tells it from another's with the same number.
    pub nonce: String,
    /// Who took it: host and process.
    pub owner: String,
    /// When.
    #[serde(with = "text_time")]
    pub at: Option<Timestamp>,
}

/// `plan.json` of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredPlan {
    /// The flags that it was made from, as they were given; a plan from a file has none.
    pub request: Option<String>,
    /// The plan.
    pub plan: Plan,
}

/// The jobs of one archive.
#[derive(Debug, Clone)]
pub struct Jobs {
    store: Store,
}

impl Jobs {
    /// The jobs of the archive in `store`.
    pub fn of(store: Store) -> Self {
        Self { store }
    }

    /// The names of all jobs, in order.
    pub async fn list(&self) -> Result<Vec<String>, StoreError> {
        let folder = Path::from("_archive/jobs");
        let failed = |error| StoreError::request(format!("cannot list {folder}"), error);
        let found = self.store.patient.list_with_delimiter(Some(&folder)).await.map_err(failed)?;
        let mut jobs: Vec<String> = found.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned)).collect();
        jobs.sort();
        Ok(jobs)
    }

    /// A job's plan, if the job exists.
    pub async fn plan(&self, job: &str) -> Result<Option<StoredPlan>, StoreError> {
        self.read(&layout::archive_job(job, "plan.json")).await
    }

    /// A job's report, if it has ended.
    pub async fn report(&self, job: &str) -> Result<Option<Report>, StoreError> {
        self.read(&layout::archive_job(job, "report.json")).await
    }

    /// A job's newest cursor, and its owner's lease, if it was ever started.
    pub async fn newest(&self, job: &str) -> Result<Option<(Lease, Cursor)>, StoreError> {
        let Some(lease) = self.newest_lease(job).await? else { return Ok(None) };
        let cursor = self.cursor_before(job, lease.number).await?;
        Ok(Some((lease, cursor.unwrap_or_else(|| Cursor::start(job, Timestamp::default())))))
    }

    /// Makes a job: stores its plan, unless the job exists with the same one already. Answers the plan that counts.
    pub async fn settle_plan(&self, job: &str, ours: StoredPlan, clock: &dyn Clock) -> Result<StoredPlan, JobError> {
        let key = layout::archive_job(job, "plan.json");
        self.create(&key, &ours, clock).await?;
        let found: StoredPlan = self.existing(&key).await?;
        let is_same = found.plan.hash == ours.plan.hash || (ours.request.is_some() && found.request == ours.request);
        if is_same {
            return Ok(found);
        }
        let theirs = found.request.unwrap_or_else(|| format!("hash {}", found.plan.hash));
        Err(JobError::OtherPlan { job: job.to_owned(), theirs })
    }

    /// Stores the report of a run.
    pub async fn save_report(&self, report: &Report) -> Result<(), StoreError> {
        self.put(&layout::archive_job(&report.job, "report.json"), report).await
    }

    /// Stores how a run ended: its last cursor, then its report. Whoever lost the job touches neither: they are its successor's.
    pub async fn end(&self, plan: &Plan, cursor: &Cursor, ledger: &dyn Ledger, clock: &dyn Clock) -> Result<Report, LedgerError> {
        let saved = save_last(cursor, ledger, clock).await;
        if let Err(fenced @ LedgerError::Fenced { .. }) = saved {
            return Err(fenced);
        }
        let report = Report::of(plan, cursor);
        if let Err(error) = self.save_report(&report).await {
            warn!(error = %error_text(&error), "the report is not saved; `replayer status` shows the same numbers");
        }
        saved.map(|()| report)
    }

    /// Becomes the owner of a job, if nobody else is. Answers where it stands; a completed job is not taken.
    pub async fn claim(&self, job: &str, owner: &str, nonce: &str, clock: &dyn Clock) -> Result<Claim, JobError> {
        let lease = self.newest_lease(job).await?;
        let mut is_silent = false;
        if let Some(lease) = &lease {
            let cursor = self.cursor_before(job, lease.number).await?;
            match cursor.as_ref().map(|cursor| cursor.state) {
                Some(State::Completed) => return Ok(Claim::Completed(cursor.expect("its state was read"))),
                Some(State::Paused | State::Failed) if self.wrote_itself(job, lease).await? => {}
                _ => is_silent = self.watch_owner(job, lease, clock).await?,
            }
        }
        let number = lease.map_or(1, |lease| lease.number + 1);
        let ours = Lease { number, nonce: nonce.to_owned(), owner: owner.to_owned(), at: Some(clock.now()) };
        let key = lease_key(job, number);
        self.create(&key, &ours, clock).await?;
        let found: Lease = self.existing(&key).await?;
        if found.nonce != ours.nonce {
            return Err(JobError::Held { job: job.to_owned(), owner: found.owner, lease: number });
        }
        if is_silent {
            clock.sleep(HAND_OVER).await;
        }
        // Only now: the owner before may have moved on until it saw the new lease.
        let cursor = self.cursor_before(job, number - 1).await?;
        if let Some(cursor) = cursor.as_ref().filter(|cursor| cursor.state == State::Completed) {
            return Ok(Claim::Completed(cursor.clone()));
        }
        let mut cursor = cursor.unwrap_or_else(|| Cursor::start(job, clock.now()));
        (cursor.lease, cursor.beat, cursor.state, cursor.reason) = (number, 0, State::Running, None);
        cursor.runs += 1;
        cursor.at = Some(clock.now());
        // Written before anything is published, so that the next owner finds its start here.
        self.put(&cursor_key(job, number), &cursor).await?;
        Ok(Claim::Ours(Owner { jobs: self.clone(), lease: number }, cursor))
    }

    /// Waits for a sign of life of the owner. True if there was none; false if it ended in good order meanwhile.
    async fn watch_owner(&self, job: &str, lease: &Lease, clock: &dyn Clock) -> Result<bool, JobError> {
        let seen = self.cursor_of(job, lease.number).await?;
        let until = clock.monotonic() + WATCH;
        while clock.monotonic() < until {
            clock.sleep(WATCH_EVERY).await;
            let now = self.cursor_of(job, lease.number).await?;
            if now.as_ref().is_some_and(|cursor| cursor.state != State::Running) {
                return Ok(false);
            }
            if now != seen {
                return Err(JobError::Held { job: job.to_owned(), owner: lease.owner.clone(), lease: lease.number });
            }
        }
        Ok(true)
    }

    /// The cursor of one owner: its last one, if it ended.
    async fn cursor_of(&self, job: &str, lease: u32) -> Result<Option<Cursor>, StoreError> {
        let end = self.read(&end_key(job, lease)).await?;
        if end.is_some() { Ok(end) } else { self.read(&cursor_key(job, lease)).await }
    }

    async fn wrote_itself(&self, job: &str, lease: &Lease) -> Result<bool, StoreError> {
        let cursor = self.cursor_of(job, lease.number).await?;
        Ok(cursor.is_some_and(|cursor| cursor.state != State::Running))
    }

    async fn newest_lease(&self, job: &str) -> Result<Option<Lease>, StoreError> {
        let folder = folder_of(job);
        let failed = |error| StoreError::request(format!("cannot list {folder}"), error);
        let keys: Vec<Path> =
            self.store.patient.list(Some(&folder)).map_ok(|object| object.location).try_collect().await.map_err(failed)?;
        let mut number = keys.iter().filter_map(lease_number).max().unwrap_or(0);
        let mut newest = if number == 0 { None } else { self.read(&lease_key(job, number)).await? };
        // A listing may lag behind.
        while let Some(next) = self.read::<Lease>(&lease_key(job, number + 1)).await? {
            number += 1;
            newest = Some(next);
        }
        Ok(newest)
    }

    /// The cursor of this lease, or of the newest before it that wrote one.
    async fn cursor_before(&self, job: &str, lease: u32) -> Result<Option<Cursor>, StoreError> {
        for number in (1..=lease).rev() {
            let cursor = self.cursor_of(job, number).await?;
            if let Some(cursor) = cursor {
                return self.checked(cursor).map(Some);
            }
        }
        Ok(None)
    }

    fn checked(&self, cursor: Cursor) -> Result<Cursor, StoreError> {
        if cursor.format == CURSOR_FORMAT {
            return Ok(cursor);
        }
        let what = format!("the cursor of job {} has format {}, this replayer knows {CURSOR_FORMAT}", cursor.job, cursor.format);
        Err(StoreError::new(ErrorKind::Invalid, what))
    }

    async fn read<T: DeserializeOwned>(&self, key: &Path) -> Result<Option<T>, StoreError> {
        let fetched = async { self.store.patient.get(key).await?.bytes().await };
        let bytes = match fetched.await {
            Ok(bytes) => bytes,
            Err(error) if classify(&error) == Outcome::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::request(format!("cannot read {key}"), error)),
        };
        let parsed = serde_json::from_slice(&bytes).map_err(|error| StoreError {
            what: format!("{key} in {} cannot be read", self.store.url),
            kind: ErrorKind::Corrupt,
            source: Some(Box::new(error)),
        });
        parsed.map(Some)
    }

    async fn existing<T: DeserializeOwned>(&self, key: &Path) -> Result<T, StoreError> {
        let missing = || StoreError::new(ErrorKind::Unavailable, format!("{key} in {} was there and is not", self.store.url));
        self.read(key).await?.ok_or_else(missing)
    }

    async fn put(&self, key: &Path, value: &impl Serialize) -> Result<(), StoreError> {
        let put = self.store.patient.put(key, text_of(value).into()).await;
        put.map(drop).map_err(|error| StoreError::request(format!("cannot write {key} in {}", self.store.url), error))
    }

    /// Creates an object that nobody else would, with one request.
    async fn create_now(&self, key: &Path, value: &impl Serialize) -> Result<(), StoreError> {
        match self.store.store.put_opts(key, text_of(value).into(), PutOptions::from(PutMode::Create)).await {
            Err(error) if classify(&error) != Outcome::Exists => {
                Err(StoreError::request(format!("cannot create {key} in {}", self.store.url), error))
            }
            _ => Ok(()),
        }
    }

    /// Creates an object unless one is there. Whatever the store answers, reading it back decides whose it is.
    async fn create(&self, key: &Path, value: &impl Serialize, clock: &dyn Clock) -> Result<(), StoreError> {
        let text = text_of(value);
        let mut tries = 0;
        loop {
            let created = self.store.store.put_opts(key, text.clone().into(), PutOptions::from(PutMode::Create)).await;
            let Err(error) = created else { return Ok(()) };
            tries += 1;
            match classify(&error) {
                Outcome::Exists => return Ok(()),
                Outcome::Unknown | Outcome::NotFound if tries < 5 => clock.sleep(SETTLE_AGAIN).await,
                _ => return Err(StoreError::request(format!("cannot create {key} in {}", self.store.url), error)),
            }
        }
    }
}

/// What asking for a job gave.
#[derive(Debug)]
pub enum Claim {
    /// It is ours, and stands here.
    Ours(Owner, Cursor),
    /// There is nothing left to do.
    Completed(Cursor),
}

/// The right to work on a job, as long as no newer lease exists.
#[derive(Debug, Clone)]
pub struct Owner {
    jobs: Jobs,
    lease: u32,
}

impl Owner {
    /// This owner as a place for cursors.
    pub fn ledger(&self) -> Arc<dyn Ledger> {
        Arc::new(self.clone())
    }
}

#[async_trait]
impl Ledger for Owner {
    async fn save(&self, cursor: Cursor) -> Result<(), LedgerError> {
        let job = cursor.job.clone();
        let failed = |error: StoreError| LedgerError::Store { job: job.clone(), source: Box::new(error) };
        let newer: Option<Lease> = self.jobs.read(&lease_key(&job, self.lease + 1)).await.map_err(failed)?;
        if let Some(newer) = newer {
            return Err(LedgerError::Fenced { job, lease: newer.number });
        }
        if cursor.state != State::Running {
            self.jobs.create_now(&end_key(&job, self.lease), &cursor).await.map_err(failed)?;
        }
        self.jobs.put(&cursor_key(&job, self.lease), &cursor).await.map_err(failed)
    }
}

async fn save_last(cursor: &Cursor, ledger: &dyn Ledger, clock: &dyn Clock) -> Result<(), LedgerError> {
    let mut tries = 1;
    loop {
        match ledger.save(cursor.clone()).await {
            Err(LedgerError::Store { .. }) if tries < LAST_CURSOR_TRIES => clock.sleep(LAST_CURSOR_AGAIN).await,
            saved => return saved,
        }
        tries += 1;
    }
}

/// The first lease and cursor have plain names; those after it are numbered.
fn numbered(job: &str, name: &str, number: u32) -> Path {
    let object = if number == 1 { format!("{name}.json") } else { format!("{name}-{number}.json") };
    layout::archive_job(job, &object)
}

fn lease_key(job: &str, number: u32) -> Path {
    numbered(job, "lease", number)
}

fn cursor_key(job: &str, number: u32) -> Path {
    numbered(job, "cursor", number)
}

fn end_key(job: &str, number: u32) -> Path {
    numbered(job, "end", number)
}

fn lease_number(key: &Path) -> Option<u32> {
    let name = key.filename()?.strip_prefix("lease")?.strip_suffix(".json")?;
    if name.is_empty() { Some(1) } else { name.strip_prefix('-')?.parse().ok() }
}

fn text_of(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("plain data with text keys");
    text.push(b'\n');
    text
}

fn folder_of(job: &str) -> Path {
    let inside: Vec<_> = layout::archive_job(job, "lease").parts().map(|part| part.as_ref().to_owned()).collect();
    inside[..inside.len() - 1].iter().map(String::as_str).collect()
}
