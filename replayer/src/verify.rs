//! `replayer verify`: reads the target back and the archive again, and proves that the one holds the other.
//!
//! Promises: sees what a `read_committed` consumer sees; trusts neither cursor nor report. Never: write.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use tapedeck_common::bus::BusError;
use tapedeck_common::error::{BoxError, ErrorKind};
use tapedeck_common::{LaneId, Timestamp};
use tapedeck_storage::segment::EventBatch;
use tokio::sync::mpsc;

use crate::digest::Digest;
use crate::markers;
use crate::plan::{CURSOR_EVENTS, Plan, PlannedLane};
use crate::proof::{Findings, LaneProof, LaneSeen};
use crate::replay::{original_time, raw_names};
use crate::stream::{Chunk, StreamError};

/// The client holds at most this many events, and bytes, of which the bus has not spoken: what a kill may send again.
const IN_FLIGHT_EVENTS: u64 = 100_000;
const IN_FLIGHT_BYTES: u64 = 8 << 20;

/// Why nothing could be proved.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The target could not be read.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The archive could not be read.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A topic of the target is not there.
    #[error("topic {0} is not at the target: it was never made, or has been deleted")]
    NoTopic(String),
    /// The archive holds something that cannot be.
    #[error("{0}")]
    Corrupt(String),
    /// Reading stopped by itself.
    #[error("reading the target stopped")]
    Stopped(#[source] BoxError),
}

impl VerifyError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Bus(error) => error.kind(),
            Self::Stream(error) => error.kind(),
            Self::NoTopic(_) => ErrorKind::Invalid,
            Self::Corrupt(_) => ErrorKind::Corrupt,
            Self::Stopped(_) => ErrorKind::Bug,
        }
    }
}

/// One partition's proof.
#[derive(Debug, Clone, Serialize)]
pub struct LaneFindings {
    /// The original topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// What was found.
    #[serde(flatten)]
    pub findings: Findings,
}

/// The outcome of a verification.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// The job.
    pub job: String,
    /// True if all is as promised.
    pub good: bool,
    /// How far back copies may reach, in events of a lane.
    pub duplicate_window: u64,
    /// Events of the job that stand in another partition or topic than theirs.
    pub misplaced: u64,
    /// Events at the target that are not of this job.
    pub others: u64,
    /// Events whose time the target's broker set itself; it was compared by its marker.
    pub stamped_by_broker: u64,
    /// All lanes together.
    pub total: Findings,
    /// Lane by lane.
    pub lanes: Vec<LaneFindings>,
}

/// What the target holds of a job.
#[derive(Debug, Default)]
pub struct TargetSeen {
    lanes: Vec<LaneSeen>,
    misplaced: u64,
    others: u64,
    stamped_by_broker: u64,
}

/// One event as it was found at the target.
#[derive(Debug)]
pub struct Found<'a> {
    /// The topic there.
    pub topic: &'a str,
    /// The partition there.
    pub partition: i32,
    /// Its time, and whether the bus set it itself.
    pub time: Option<(Timestamp, bool)>,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: Option<&'a [u8]>,
    /// Its headers, names as bytes, the markers behind its own.
    pub headers: &'a [(&'a [u8], Option<&'a [u8]>)],
}

/// Takes in what a target holds, event by event.
#[derive(Debug)]
pub struct TargetReader<'a> {
    job: &'a str,
    numbers: BTreeMap<LaneId, u32>,
    /// Topic and partition where each lane's events belong.
    places: Vec<(String, i32)>,
    digest: Digest,
    /// The lane of the event before: events come in runs of one lane.
    last: Option<(LaneId, u32)>,
    seen: TargetSeen,
}

impl<'a> TargetReader<'a> {
    /// For a job.
    pub fn new(plan: &Plan, job: &'a str) -> Self {
        let lanes = plan.lanes.iter().map(|_| LaneSeen::default()).collect();
        let place = |lane: &PlannedLane| (plan.target.topic_for(&lane.topic, job), lane.to_partition());
        Self {
            job,
            numbers: plan.lane_numbers(),
            places: plan.lanes.iter().map(place).collect(),
            digest: Digest::default(),
            last: None,
            seen: TargetSeen { lanes, ..TargetSeen::default() },
        }
    }

    fn number(&mut self, lane: &LaneId) -> Option<u32> {
        if let Some((last, number)) = &self.last
            && last == lane
        {
            return Some(*number);
        }
        let number = *self.numbers.get(lane)?;
        self.last = Some((lane.clone(), number));
        Some(number)
    }

    /// Takes in the next event of its partition.
    pub fn see(&mut self, event: &Found<'_>) {
        let Some(marked) = markers::read(event.headers).filter(|marked| marked.job == self.job) else {
            self.seen.others += 1;
            return;
        };
        let belongs = |(topic, partition): &(String, i32)| topic == event.topic && *partition == event.partition;
        let Some(number) = self.number(&marked.lane).filter(|number| belongs(&self.places[*number as usize])) else {
            self.seen.misplaced += 1;
            return;
        };
        let carried = match event.time {
            Some((time, false)) => Some(time.millis_floor()),
            Some((_, true)) => {
                self.seen.stamped_by_broker += 1;
                Some(marked.time_millis)
            }
            None => None,
        };
        self.digest.begin(marked.time_millis, carried);
        self.digest.field(event.key);
        self.digest.field(event.value);
        event.headers[..marked.own_headers].iter().for_each(|(name, value)| self.digest.header(name, *value));
        self.seen.lanes[number as usize].see(marked.position, self.digest.finish());
    }

    /// All that was taken in.
    pub fn finish(self) -> TargetSeen {
        self.seen
    }
}

/// Compares what the target holds with what the plan reads from the archive.
pub async fn compare(
    plan: Arc<Plan>,
    job: &str,
    seen: TargetSeen,
    mut chunks: mpsc::Receiver<Result<Chunk, StreamError>>,
) -> Result<Verdict, VerifyError> {
    let mut lanes: Vec<LaneProof> = seen.lanes.into_iter().map(LaneSeen::close).collect();
    let mut digest = Digest::default();
    while let Some(chunk) = chunks.recv().await {
        for piece in chunk? {
            let lane = &mut lanes[piece.lane as usize];
            for row in piece.rows {
                let digest = digest_of(&mut digest, &piece.batch.events, row).map_err(VerifyError::Corrupt)?;
                lane.expect(piece.batch.events.place(row).1, digest);
            }
        }
        tokio::task::yield_now().await;
    }
    let window = duplicate_window(&plan);
    let mut total = Findings::default();
    let mut found = Vec::with_capacity(lanes.len());
    for (lane, proof) in plan.lanes.iter().zip(lanes) {
        let findings = proof.finish();
        total.add(&findings);
        found.push(LaneFindings { topic: lane.topic.clone(), partition: lane.partition, findings });
    }
    Ok(Verdict {
        job: job.to_owned(),
        good: total.is_good(window) && seen.misplaced == 0 && total.planned == plan.totals.events,
        duplicate_window: window,
        misplaced: seen.misplaced,
        others: seen.others,
        stamped_by_broker: seen.stamped_by_broker,
        total,
        lanes: found,
    })
}

/// How far back a copy may reach: the cursor's distance, and what was in flight.
fn duplicate_window(plan: &Plan) -> u64 {
    let event_bytes = (plan.totals.bytes / plan.totals.events.max(1)).max(1);
    CURSOR_EVENTS + IN_FLIGHT_EVENTS.min(IN_FLIGHT_BYTES / event_bytes + 1)
}

fn digest_of(digest: &mut Digest, batch: &EventBatch, row: usize) -> Result<u64, String> {
    let event = batch.row(row);
    let (carried, marker) = original_time(batch, row, &event);
    digest.begin(marker, carried.map(|time| time.millis_floor()));
    digest.field(event.key);
    digest.field(event.value);
    let mut headers = Vec::new();
    batch.headers(row, &mut headers);
    let raw = raw_names(batch, row)?;
    let mut raw = raw.iter().peekable();
    for (index, (name, value)) in headers.iter().enumerate() {
        let name = raw.next_if(|(of, _)| *of == index).map_or(name.as_bytes(), |(_, bytes)| bytes.as_slice());
        digest.header(name, *value);
    }
    Ok(digest.finish())
}
