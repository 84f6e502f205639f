//! How far a job has come: what the bus has confirmed, what of it is saved, and when to save again.
//!
//! Promises: a cursor never stands ahead of what the bus confirmed and never moves back; no lane gets more than
//! [`CURSOR_EVENTS`] confirmed events ahead of its saved cursor. Pure: the time is an argument. Never: write.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tapedeck_common::bus::Confirmed;
use tapedeck_common::{LaneId, Position, Timestamp};

use crate::plan::{CURSOR_EVENTS, CURSOR_TIME, Plan};
use crate::select::text_time;

/// The format of cursor objects.
pub const CURSOR_FORMAT: u32 = 1;

/// New events of a lane for which a cursor is worth writing before its time: a quarter of the most, so that a slow store
/// does not hold up the bus.
const SAVE_EARLY_EVENTS: u64 = CURSOR_EVENTS / 4;

/// Cursors are at least this far apart.
const SAVE_APART: Duration = Duration::from_millis(50);

/// What a job is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// There is a plan, and nobody has begun.
    Planned,
    /// Somebody is publishing, or was when the cursor was written.
    Running,
    /// Stopped in good order; the same job resumes it.
    Paused,
    /// All of it is on the bus.
    Completed,
    /// Stopped by an error; the same job resumes it.
    Failed,
}

impl State {
    /// The word in JSON and on the terminal.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

/// How far one lane has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneCursor {
    /// The position after the last confirmed event.
    pub next: Position,
    /// Events confirmed since the job began, without those that a resumed run sent again.
    pub events: u64,
}

/// `cursor.json` of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// [`CURSOR_FORMAT`].
    pub format: u32,
    /// The job.
    pub job: String,
    /// Under which lease it was written.
    pub lease: u32,
    /// Grows with every cursor of a lease: a sign of life.
    pub beat: u64,
    /// What the job is doing.
    pub state: State,
    /// Why, where that is not plain.
    pub reason: Option<String>,
    /// When it was written.
    #[serde(with = "text_time")]
    pub at: Option<Timestamp>,
    /// When the job began.
    #[serde(with = "text_time")]
    pub started: Option<Timestamp>,
    /// How long it has been running, all runs together.
    pub active_ms: u64,
    /// How often it was started.
    pub runs: u32,
    /// Lanes that have begun.
    pub lanes: BTreeMap<String, LaneCursor>,
}

impl Cursor {
    /// The cursor of a job that has not begun.
    pub fn start(job: &str, now: Timestamp) -> Self {
        Self {
            format: CURSOR_FORMAT,
            job: job.to_owned(),
            lease: 0,
            beat: 0,
            state: State::Planned,
            reason: None,
            at: Some(now),
            started: Some(now),
            active_ms: 0,
            runs: 0,
            lanes: BTreeMap::new(),
        }
    }

    /// Where a lane goes on; `None` if it has not begun.
    pub fn of(&self, lane: &LaneId) -> Option<LaneCursor> {
        self.lanes.get(&lane.to_string()).copied()
    }

    /// Events confirmed so far.
    pub fn events(&self) -> u64 {
        self.lanes.values().map(|lane| lane.events).sum()
    }
}

#[derive(Debug, Clone, Copy)]
struct LaneTally {
    /// Where this run began.
    start: Option<LaneCursor>,
    confirmed: Option<LaneCursor>,
    saved_events: u64,
}

/// What a saved cursor will have covered, lane by lane.
#[derive(Debug, Clone)]
pub struct Snapshot(Vec<u64>);

/// Follows one run of a job.
#[derive(Debug)]
pub struct Tally {
    names: Vec<String>,
    lanes: Vec<LaneTally>,
    /// When the last saved cursor was begun, and when the last one, saved or not; none in this run yet.
    saved_at: Option<Duration>,
    tried_at: Option<Duration>,
}

impl Tally {
    /// Begins where `cursor` stands. Whoever read it may have slept since, so nothing counts as saved before this run saves.
    pub fn new(plan: &Plan, cursor: &Cursor) -> Self {
        let names: Vec<String> = plan.lanes.iter().map(|lane| lane.id().to_string()).collect();
        let tally = |name: &String| {
            let start = cursor.lanes.get(name).copied();
            LaneTally { start, confirmed: start, saved_events: start.map_or(0, |lane| lane.events) }
        };
        let lanes = names.iter().map(tally).collect();
        Self { names, lanes, saved_at: None, tried_at: None }
    }

    /// Where each lane goes on, by number.
    pub fn resume_at(&self) -> Vec<Position> {
        self.lanes.iter().map(|lane| lane.start.map_or(Position::default(), |start| start.next)).collect()
    }

    /// Takes in what the bus has confirmed in this run.
    pub fn confirm(&mut self, confirmed: &[Confirmed]) {
        for news in confirmed {
            let lane = &mut self.lanes[news.lane as usize];
            let events = lane.start.map_or(0, |start| start.events) + news.events;
            if lane.confirmed.is_none_or(|known| known.events < events) {
                lane.confirmed = Some(LaneCursor { next: news.next, events });
            }
        }
    }

    /// True if the lane may get further ahead of its saved cursor.
    pub fn has_room(&self, lane: u32) -> bool {
        self.lanes[lane as usize].ahead() < CURSOR_EVENTS
    }

    /// True if a cursor should be written now; also without news, as a sign of life.
    pub fn is_due(&self, now: Duration) -> bool {
        let Some(tried_at) = self.tried_at else { return true };
        let since = now.saturating_sub(tried_at);
        since >= CURSOR_TIME || (since >= SAVE_APART && self.lanes.iter().any(|lane| lane.ahead() >= SAVE_EARLY_EVENTS))
    }

    /// True if a saved cursor was begun at most `limit` ago: nobody may take the job over before that is older than they wait.
    pub fn is_alive(&self, now: Duration, limit: Duration) -> bool {
        self.saved_at.is_some_and(|saved_at| now.saturating_sub(saved_at) <= limit)
    }

    /// The lanes as they stand, to be written, and what that covers.
    pub fn snapshot(&mut self, now: Duration) -> (BTreeMap<String, LaneCursor>, Snapshot) {
        self.tried_at = Some(now);
        let lanes = self.names.iter().zip(&self.lanes).filter_map(|(name, lane)| Some((name.clone(), lane.confirmed?)));
        (lanes.collect(), Snapshot(self.lanes.iter().map(|lane| lane.events()).collect()))
    }

    /// Notes that the cursor begun at `begun` was saved.
    pub fn saved(&mut self, snapshot: &Snapshot, begun: Duration) {
        for (lane, events) in self.lanes.iter_mut().zip(&snapshot.0) {
            lane.saved_events = lane.saved_events.max(*events);
        }
        self.saved_at = self.saved_at.max(Some(begun));
    }

    /// Events confirmed since the job began, by lane.
    pub fn events(&self) -> impl Iterator<Item = u64> + '_ {
        self.lanes.iter().map(LaneTally::events)
    }
}

impl LaneTally {
    fn events(&self) -> u64 {
        self.confirmed.map_or(0, |lane| lane.events)
    }

    fn ahead(&self) -> u64 {
        self.events() - self.saved_events
    }
}
