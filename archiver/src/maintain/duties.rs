//! Maintenance in the background of an archiver: each duty at its time, one at a time, table after table.
//!
//! Promises: nobody waits for what happens here, and no panic of it ends a pipeline; who is told to stop stops at once, wherever
//! the work stands, which is always safe; what fails is said once for each table and try, and tried again ever more slowly.
//! Never: needs to be the only one in the archive that does this; touches a table that no topic of the sources goes to.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tapedeck_common::clock::Clock;
use tapedeck_common::error::report;
use tapedeck_storage::archive::Archive;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::schedule::Schedule;
use super::{Done, Keeper, MaintainError, Means, Work};
use crate::metrics::MaintainMetrics;
use crate::status::DutyStatus;

/// The pictures of all duties, by name.
pub type Pictures = BTreeMap<&'static str, DutyStatus>;

/// Says whether a topic is one of ours.
pub type IsOurs = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// What duties work on, and with. Clones share everything.
#[derive(Clone)]
pub struct Place {
    /// The archive.
    pub archive: Archive,
    /// Which topics' tables are kept.
    pub is_ours: IsOurs,
    /// Memory and rate.
    pub means: Means,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({}, {:?})", self.archive.store.url, self.means)
    }
}

/// One duty, and when it is due by the monotonic clock.
#[derive(Debug)]
struct Duty {
    work: Work,
    schedule: Schedule,
    due: Duration,
}

/// All duties of a process.
#[derive(Debug)]
pub struct Duties {
    place: Place,
    duties: Vec<Duty>,
    chance: fastrand::Rng,
    metrics: Arc<MaintainMetrics>,
    pictures: Arc<watch::Sender<Pictures>>,
}

impl Duties {
    /// These kinds of work, each with its period. Nothing is done before [`Self::run`].
    pub fn new(
        place: Place,
        duties: &[(Work, Duration)],
        mut chance: fastrand::Rng,
        metrics: Arc<MaintainMetrics>,
        pictures: Arc<watch::Sender<Pictures>>,
    ) -> Self {
        let now = place.clock.monotonic();
        let mut duty = |(work, every): &(Work, Duration)| {
            let schedule = Schedule::every(*every);
            let due = now + schedule.first(chance.f64());
            Duty { work: *work, schedule, due }
        };
        let duties = duties.iter().map(&mut duty).collect();
        let these = Self { place, duties, chance, metrics, pictures };
        these.duties.iter().for_each(|duty| these.show_next(duty));
        these
    }

    /// Does them until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        while let Some(next) = (0..self.duties.len()).min_by_key(|duty| self.duties[*duty].due) {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.place.clock.sleep_until(self.duties[next].due) => {}
            }
            let began = self.place.clock.monotonic();
            self.picture(&self.duties[next].work, |picture| picture.running = true);
            let done = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                done = self.perform(self.duties[next].work) => done,
            };
            self.note(next, began, done);
        }
        stop.cancelled().await;
    }

    /// On a task of its own, which ends with this call.
    fn perform(&mut self, work: Work) -> impl Future<Output = Result<Done, MaintainError>> + use<> {
        let task = AbortOnDropHandle::new(tokio::spawn(everywhere(self.place.clone(), work, self.chance.fork())));
        async move { task.await? }
    }

    fn note(&mut self, number: usize, began: Duration, done: Result<Done, MaintainError>) {
        let (now, took, chance) =
            (self.place.clock.monotonic(), self.place.clock.monotonic().saturating_sub(began), self.chance.f64());
        let duty = &mut self.duties[number];
        let wait = if done.is_ok() { duty.schedule.after_success(chance) } else { duty.schedule.after_failure(chance) };
        duty.due = now + wait;
        let (name, at) = (duty.work.as_str(), self.place.clock.now());
        match &done {
            Ok(done) => info!(duty = name, took_s = took.as_secs(), next_in_s = wait.as_secs(), %done, "maintenance done"),
            Err(error) => {
                warn!(duty = name, kind = error.kind().as_str(), error = %report(error), again_in_s = wait.as_secs(), "maintenance failed")
            }
        }
        self.metrics.done(name, done.as_ref().ok(), took, at, self.place.means.passed());
        self.picture(&self.duties[number].work, |picture| {
            picture.running = false;
            picture.ended = Some(at);
            match done {
                Ok(done) => (picture.succeeded, picture.done, picture.error) = (Some(at), Some(done), None),
                Err(error) => picture.error = Some(report(&error)),
            }
        });
        self.show_next(&self.duties[number]);
    }

    fn show_next(&self, duty: &Duty) {
        let wait = duty.due.saturating_sub(self.place.clock.monotonic());
        let next = self.place.clock.now() + wait;
        self.picture(&duty.work, |picture| picture.next = Some(next));
    }

    fn picture(&self, work: &Work, change: impl FnOnce(&mut DutyStatus)) {
        self.pictures.send_modify(|pictures| change(pictures.entry(work.as_str()).or_default()));
    }
}

/// Does the work in every table of ours. A table that fails keeps no other from it; the first failure is the answer.
async fn everywhere(place: Place, work: Work, mut chance: fastrand::Rng) -> Result<Done, MaintainError> {
    let mut tables = tables(&place).await?;
    // Replicas that work at one time mostly work on different tables.
    chance.shuffle(&mut tables);
    let (mut all, mut failed) = (Done::nothing(&work), None);
    for table in tables {
        match in_table(&place, &table, &work, chance.fork()).await {
            Ok(done) => all = all.and(done),
            Err(error) => {
                if let Some(earlier) = failed.replace(error) {
                    warn!(duty = work.as_str(), error = %report(&earlier), "maintenance of a table failed");
                }
            }
        }
    }
    failed.map_or(Ok(all), Err)
}

async fn in_table(place: &Place, table: &str, work: &Work, chance: fastrand::Rng) -> Result<Done, MaintainError> {
    let clock = Arc::clone(&place.clock);
    let mut keeper = Keeper::open(&place.archive, table, clock, chance, place.means.clone()).await?;
    keeper.work(work, false).await
}

/// The tables that a topic of ours goes to and that exist: opening another would make it.
async fn tables(place: &Place) -> Result<Vec<String>, MaintainError> {
    let homes = place.archive.topics().await?;
    let existing = place.archive.tables().await?;
    let ours = |table: &String| homes.iter().any(|(topic, home)| home == table && (place.is_ours)(topic));
    Ok(existing.into_iter().filter(ours).collect())
}
