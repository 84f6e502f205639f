//! The one loop of a replay: events -> pace -> publish -> confirmed -> cursor.
//!
//! Promises: each lane in order; no cursor ahead of what the bus confirmed; whoever lost the job, or cannot show a sign of
//! life, publishes nothing more; a stop loses nothing. Knows neither bus nor store by name. Never: drop an event, skip
//! damage, or wait for the bus without also keeping the cursor.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use tapedeck_common::bus::{BusError, Outgoing, Producer};
use tapedeck_common::error::{BoxError, report};
use tapedeck_common::event::{Header, PROPERTY_RAW_HEADER, PROPERTY_RAW_TIME, TimeKind};
use tapedeck_common::{Clock, ErrorKind, Timestamp};
use tapedeck_storage::segment::{EventBatch, EventRow};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::warn;

use crate::cursor::{Cursor, Snapshot, State, Tally};
use crate::markers::{LaneMarks, MarkText};
use crate::merge::Piece;
use crate::pacer::{Admit, ConfirmWatch, Limits, Pacer};
use crate::plan::Plan;
use crate::progress::{Counters, Throttled};
use crate::stream::{Batch, Chunk, StreamError};

/// Without a saved cursor for this long, or in this run, nothing is published: shorter than a second starter waits before it takes over.
pub const SILENT_MAX: Duration = Duration::from_secs(3);

/// How often confirms are looked at while there is nothing else to do.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A full queue is left alone for so long: at the fastest it is empty in some 50 ms, and each look costs.
const DRAINS_IN: Duration = Duration::from_millis(8);

/// What a stop waits for: events in flight.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Between two tries to save a cursor while the store is away.
const SAVE_AGAIN: Duration = Duration::from_millis(250);

/// Why a cursor was not saved.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Somebody else has taken the job over.
    #[error("another replayer has taken over job {job} (lease {lease}); this one has stopped")]
    Fenced {
        /// The job.
        job: String,
        /// The lease that is newer than ours.
        lease: u32,
    },
    /// The store did not take it; it may pass.
    #[error("the cursor of job {job} could not be saved")]
    Store {
        /// The job.
        job: String,
        /// The cause.
        source: BoxError,
    },
}

/// Where cursors are kept.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Saves a cursor, unless somebody else owns the job by now.
    async fn save(&self, cursor: Cursor) -> Result<(), LedgerError>;
}

/// Why a replay ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// Reading the archive failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The bus failed.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The job is somebody else's.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Not all that was planned was confirmed, though everything was read.
    #[error("lane {lane}: {confirmed} events were confirmed where the plan has {planned}")]
    Short {
        /// The lane.
        lane: String,
        /// What the bus confirmed.
        confirmed: u64,
        /// What the plan has.
        planned: u64,
    },
}

impl ReplayError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Stream(error) => error.kind(),
            Self::Bus(error) => error.kind(),
            Self::Ledger(LedgerError::Fenced { .. }) => ErrorKind::Stale,
            Self::Ledger(LedgerError::Store { .. }) => ErrorKind::Unavailable,
            Self::Short { .. } => ErrorKind::Bug,
        }
    }
}

/// How a run ended, if nothing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All events are on the bus.
    Completed,
    /// It was asked to stop.
    Stopped,
}

/// Where the events of a lane go.
#[derive(Debug, Clone)]
pub struct Route {
    topic: Arc<str>,
    partition: i32,
    marks: LaneMarks,
}

/// The routes of a plan's lanes, by number.
pub fn routes(plan: &Plan, job: &str) -> Vec<Route> {
    let route = |lane: &crate::plan::PlannedLane| Route {
        topic: plan.target.topic_for(&lane.topic, job).into(),
        partition: lane.to_partition(),
        marks: LaneMarks::new(&lane.id(), &lane.topic),
    };
    plan.lanes.iter().map(route).collect()
}

/// What one run needs.
pub struct Run<'a> {
    /// The job.
    pub job: String,
    /// The plan.
    pub plan: Arc<Plan>,
    /// Where the job stands; its identity (lease, runs, times) is kept in all cursors that follow.
    pub cursor: Cursor,
    /// How fast.
    pub limits: Limits,
    /// The way out.
    pub producer: &'a mut dyn Producer,
    /// Where cursors are kept.
    pub ledger: Arc<dyn Ledger>,
    /// The time.
    pub clock: &'a dyn Clock,
    /// What is shown.
    pub counters: Arc<Counters>,
}

/// Publishes everything that `chunks` brings. Answers how it ended and the last cursor, which is *not* saved yet: whoever
/// calls decides its state. Ends at the next event when `stop` does.
pub async fn run(
    run: Run<'_>,
    chunks: &mut mpsc::Receiver<Result<Chunk, StreamError>>,
    stop: impl Future<Output = ()>,
) -> (Result<Ended, ReplayError>, Cursor) {
    let mut replay = Replay::new(run);
    let mut stop = std::pin::pin!(stop);
    let ended = {
        let publishing = replay.publish_all(chunks);
        tokio::select! {
            biased;
            () = &mut stop => None,
            ended = publishing => Some(ended),
        }
    };
    let ended = match ended {
        Some(Ok(())) => replay.settle(None).await.and_then(|()| replay.check_all()).map(|()| Ended::Completed),
        Some(Err(error)) => Err(error),
        // What is in flight may still be confirmed; what is not by then comes again with the next run.
        None => replay.settle(Some(DRAIN_MAX)).await.map(|()| Ended::Stopped),
    };
    (ended, replay.last_cursor().await)
}

struct Saving {
    task: JoinHandle<Result<(), LedgerError>>,
    covers: Snapshot,
    begun: Duration,
}

struct Replay<'a> {
    run: Run<'a>,
    routes: Vec<Route>,
    tally: Tally,
    pacer: Pacer,
    watch: ConfirmWatch,
    saving: Option<Saving>,
    save_again_at: Duration,
    began: Duration,
    published: u64,
    confirmed: u64,
    text: MarkText,
    headers: Vec<Header<'static>>,
}

/// What may be published before asking again.
struct Group {
    events: u64,
    bytes: u64,
}

impl<'a> Replay<'a> {
    fn new(run: Run<'a>) -> Self {
        let began = run.clock.monotonic();
        let tally = Tally::new(&run.plan, &run.cursor);
        run.counters.begin_at(run.cursor.events());
        Self {
            routes: routes(&run.plan, &run.job),
            tally,
            pacer: Pacer::new(run.limits),
            watch: ConfirmWatch::default(),
            saving: None,
            save_again_at: Duration::ZERO,
            began,
            published: 0,
            confirmed: 0,
            text: MarkText::default(),
            headers: Vec::new(),
            run,
        }
    }

    async fn publish_all(&mut self, chunks: &mut mpsc::Receiver<Result<Chunk, StreamError>>) -> Result<(), ReplayError> {
        loop {
            let chunk = loop {
                let look = self.run.clock.monotonic() + LOOK_EVERY;
                tokio::select! {
                    biased;
                    chunk = chunks.recv() => break chunk,
                    () = self.run.clock.sleep_until(look) => self.tend(look).await?,
                }
            };
            let Some(chunk) = chunk else { return Ok(()) };
            for piece in chunk? {
                self.publish_piece(&piece).await?;
            }
            // Publishing itself never waits while there is room, and cursors are saved by tasks of the same runtime.
            tokio::task::yield_now().await;
        }
    }

    async fn publish_piece(&mut self, piece: &Piece<Batch>) -> Result<(), ReplayError> {
        let mut rows = piece.rows.clone();
        while !rows.is_empty() {
            let group = self.admitted(piece.lane).await?;
            let (mut events, mut bytes, mut is_full) = (0, 0, false);
            while events < group.events && (bytes < group.bytes || events == 0) && !rows.is_empty() {
                let Some(size) = self.publish_row(&piece.batch.events, rows.start, piece.lane)? else {
                    is_full = true;
                    break;
                };
                rows.start += 1;
                events += 1;
                bytes += size;
            }
            self.note_sent(events, bytes);
            if is_full {
                self.wait(self.run.clock.monotonic() + DRAINS_IN, Throttled::Broker).await?;
            }
        }
        Ok(())
    }

    fn note_sent(&mut self, events: u64, bytes: u64) {
        self.published += events;
        self.run.counters.published(events, bytes);
        if !self.pacer.is_unlimited() {
            self.pacer.sent(self.run.clock.monotonic(), events, bytes);
        }
    }

    /// Waits until a group of the lane's events may go out.
    async fn admitted(&mut self, lane: u32) -> Result<Group, ReplayError> {
        loop {
            let now = self.run.clock.monotonic();
            self.tend(now).await?;
            let look = now + LOOK_EVERY;
            if !self.tally.has_room(lane) || !self.tally.is_alive(now, SILENT_MAX) {
                self.wait(look, Throttled::Cursor).await?;
            } else if !self.pacer.is_unlimited() && self.watch.is_stalled(now) {
                self.wait(look, Throttled::Broker).await?;
            } else {
                match self.pacer.admit(now) {
                    Admit::Now { events, bytes } => return Ok(Group { events, bytes }),
                    Admit::At(due) => self.wait(due.min(now + CURSOR_LOOK), Throttled::Limit).await?,
                }
            }
        }
    }

    async fn wait(&mut self, until: Duration, cause: Throttled) -> Result<(), ReplayError> {
        let before = self.run.clock.monotonic();
        self.run.clock.sleep_until(until).await;
        let now = self.run.clock.monotonic();
        self.run.counters.throttled(cause, now.saturating_sub(before));
        self.tend(now).await
    }

    /// Takes in confirms, and keeps the cursor.
    async fn tend(&mut self, now: Duration) -> Result<(), ReplayError> {
        let confirmed = self.run.producer.confirmed()?;
        self.tally.confirm(&confirmed);
        self.confirmed = confirmed.iter().map(|lane| lane.events).sum();
        if self.watch.note(now, self.published, self.confirmed) {
            self.pacer.restart();
        }
        self.run.counters.confirmed(self.confirmed, self.run.producer.unconfirmed() as u64);
        if self.saving.as_ref().is_some_and(|saving| saving.task.is_finished()) {
            self.finish_saving().await?;
        }
        if self.saving.is_none() && self.tally.is_due(now) && now >= self.save_again_at {
            self.begin_saving(now);
        }
        Ok(())
    }

    fn begin_saving(&mut self, now: Duration) {
        let (cursor, covers) = self.next_cursor(now);
        let ledger = Arc::clone(&self.run.ledger);
        let task = tokio::spawn(async move { ledger.save(cursor).await });
        self.saving = Some(Saving { task, covers, begun: now });
    }

    fn next_cursor(&mut self, now: Duration) -> (Cursor, Snapshot) {
        let (lanes, covers) = self.tally.snapshot(now);
        self.run.cursor.beat += 1;
        self.run.cursor.at = Some(self.run.clock.now());
        let active = now.saturating_sub(self.began).as_millis() as u64;
        let mut cursor = Cursor { state: State::Running, reason: None, lanes, ..self.run.cursor.clone() };
        cursor.active_ms += active;
        (cursor, covers)
    }

    async fn finish_saving(&mut self) -> Result<(), LedgerError> {
        let Some(Saving { task, covers, begun }) = self.saving.take() else { return Ok(()) };
        match task.await {
            Ok(Ok(())) => {
                self.tally.saved(&covers, begun);
                self.run.counters.cursor_saved(self.run.clock.now().micros());
                Ok(())
            }
            Ok(Err(error @ LedgerError::Store { .. })) => {
                warn!(error = %report(&error), "the cursor is not saved, trying again");
                self.save_again_at = self.run.clock.monotonic() + SAVE_AGAIN;
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(error) => Err(LedgerError::Store { job: self.run.job.clone(), source: Box::new(error) }),
        }
    }

    /// Waits until everything published is confirmed, at most `limit`.
    async fn settle(&mut self, limit: Option<Duration>) -> Result<(), ReplayError> {
        let deadline = limit.map(|limit| self.run.clock.monotonic() + limit);
        loop {
            let now = self.run.clock.monotonic();
            self.tend(now).await?;
            if self.run.producer.unconfirmed() == 0 || deadline.is_some_and(|deadline| now >= deadline) {
                let now = self.run.clock.monotonic();
                return self.tend(now).await;
            }
            self.run.clock.sleep_until(now + LOOK_EVERY).await;
        }
    }

    fn check_all(&self) -> Result<(), ReplayError> {
        for (lane, confirmed) in self.run.plan.lanes.iter().zip(self.tally.events()) {
            if confirmed != lane.events {
                return Err(ReplayError::Short { lane: lane.id().to_string(), confirmed, planned: lane.events });
            }
        }
        Ok(())
    }

    /// The cursor as it stands, once no older one can be saved after it.
    async fn last_cursor(&mut self) -> Cursor {
        if let Some(saving) = self.saving.take() {
            // Its outcome changes nothing: the cursor that follows covers it.
            let _ = saving.task.await;
        }
        let now = self.run.clock.monotonic();
        self.next_cursor(now).0
    }

    /// Publishes one row; answers its payload bytes, or `None` if the bus has no room for it now.
    fn publish_row(&mut self, batch: &EventBatch, row: usize, lane: u32) -> Result<Option<u64>, BusError> {
        let event = batch.row(row);
        let route = &self.routes[lane as usize];
        let mut headers = recycled(std::mem::take(&mut self.headers));
        batch.headers(row, &mut headers);
        let has_properties = batch.properties(row).next().is_some();
        let (time, millis) =
            if has_properties { original_time(batch, row, &event) } else { (Some(event.time), event.time.millis_floor()) };
        self.text.write(&route.marks, event.position, millis, &headers);
        let own: usize = headers.iter().map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len)).sum();
        let bytes = own + event.key.map_or(0, <[u8]>::len) + event.value.map_or(0, <[u8]>::len);
        self.text.append(&self.run.job, &route.marks, &mut headers);
        let value = batch.shared_value(row);
        let outgoing = Outgoing {
            topic: &route.topic,
            partition: route.partition,
            time,
            key: event.key,
            value: value.as_ref(),
            headers: &headers,
            lane,
            position: event.position,
        };
        let taken = if has_properties {
            publish_with_raw_names(self.run.producer, &outgoing, batch, row)?
        } else {
            self.run.producer.publish(&outgoing)?
        };
        self.headers = recycled(headers);
        Ok(taken.then_some(bytes as u64))
    }
}

/// How long a paced wait may last before confirms and the cursor are looked after.
const CURSOR_LOOK: Duration = Duration::from_millis(20);

/// Gives a list's room to the next event. Nothing is copied: the list is empty.
fn recycled<'a>(mut headers: Vec<Header<'_>>) -> Vec<Header<'a>> {
    headers.clear();
    headers.into_iter().map(|_| ("", None)).collect()
}

/// The time that the event had on its bus, also where no calendar holds it: for the bus, and in milliseconds for the marker.
pub(crate) fn original_time(batch: &EventBatch, row: usize, event: &EventRow<'_>) -> (Option<Timestamp>, i64) {
    let raw = batch.property(row, PROPERTY_RAW_TIME).filter(|_| event.time_kind == TimeKind::Arrival);
    match raw.and_then(|raw| raw.parse::<i64>().ok()) {
        // A bus takes no time before 1970 back; it then sets its own.
        Some(raw) => (Timestamp::from_millis(raw).filter(|_| raw >= 0), raw),
        None => (Some(event.time), event.time.millis_floor()),
    }
}

/// The raw names of headers that are no text: index and bytes, in the order of the headers.
pub(crate) fn raw_names(batch: &EventBatch, row: usize) -> Result<Vec<(usize, Vec<u8>)>, String> {
    let mut names = Vec::new();
    for (property, code) in batch.properties(row) {
        let Some(index) = property.strip_prefix(PROPERTY_RAW_HEADER) else { continue };
        let bytes = base64::engine::general_purpose::STANDARD.decode(code);
        let (Ok(index), Ok(bytes)) = (index.parse::<usize>(), bytes) else {
            return Err(format!("property {property} is no raw header name"));
        };
        names.push((index, bytes));
    }
    names.sort_unstable();
    Ok(names)
}

fn publish_with_raw_names(
    producer: &mut dyn Producer,
    event: &Outgoing<'_>,
    batch: &EventBatch,
    row: usize,
) -> Result<bool, BusError> {
    let names = raw_names(batch, row).map_err(|what| {
        let (topic, partition, position) = (event.topic, event.partition, event.position);
        BusError::new(
            ErrorKind::Corrupt,
            format!("the event of position {position} for topic {topic} partition {partition}: {what}"),
        )
    })?;
    if names.is_empty() {
        return producer.publish(event);
    }
    let lent: Vec<(usize, &[u8])> = names.iter().map(|(index, name)| (*index, name.as_slice())).collect();
    producer.publish_raw(event, &lent)
}
