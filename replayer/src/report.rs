//! What a run leaves behind for people and machines: `report.json`.
//!
//! Promises: numbers of what was confirmed, not of what was sent. Pure. Never: write it.

use serde::{Deserialize, Serialize};
use tapedeck_common::{Position, Timestamp};

use crate::cursor::{Cursor, State};
use crate::plan::Plan;
use crate::select::text_time;

/// One partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneReport {
    /// The original topic.
    pub topic: String,
    /// The topic that it went to.
    pub to: String,
    /// The source.
    pub source: String,
    /// The partition, there and here.
    pub partition: i32,
    /// Events that the plan has.
    pub planned: u64,
    /// Events confirmed.
    pub confirmed: u64,
    /// The first original offset.
    pub first: Position,
    /// The last original offset that is confirmed; none if nothing is.
    pub last: Option<Position>,
}

/// How a job stands after a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The job.
    pub job: String,
    /// How it ended.
    pub result: State,
    /// Why, where that is not plain.
    pub reason: Option<String>,
    /// The plan's hash.
    pub plan_hash: String,
    /// Where the events went.
    pub target: String,
    /// Events that the plan has.
    pub planned: u64,
    /// Events confirmed.
    pub confirmed: u64,
    /// When the job began.
    #[serde(with = "text_time")]
    pub started: Option<Timestamp>,
    /// When this run ended.
    #[serde(with = "text_time")]
    pub ended: Option<Timestamp>,
    /// How long it ran, all runs together, in seconds.
    pub active_seconds: f64,
    /// Confirmed events per second of that.
    pub events_per_second: f64,
    /// How often it was started.
    pub runs: u32,
    /// Partition by partition.
    pub lanes: Vec<LaneReport>,
}

impl Report {
    /// The report of a job whose last cursor is `cursor`.
    pub fn of(plan: &Plan, cursor: &Cursor) -> Self {
        let confirmed = cursor.events();
        let active_seconds = cursor.active_ms as f64 / 1e3;
        let lane = |lane: &crate::plan::PlannedLane| {
            let at = cursor.of(&lane.id());
            LaneReport {
                topic: lane.topic.clone(),
                to: plan.target.topic_for(&lane.topic, &cursor.job),
                source: lane.source.clone(),
                partition: lane.partition,
                planned: lane.events,
                confirmed: at.map_or(0, |at| at.events),
                first: lane.first,
                last: at.map(|at| Position::new(at.next.get().saturating_sub(1))),
            }
        };
        Self {
            job: cursor.job.clone(),
            result: cursor.state,
            reason: cursor.reason.clone(),
            plan_hash: plan.hash.clone(),
            target: plan.target.describe().replace("{job}", &cursor.job),
            planned: plan.totals.events,
            confirmed,
            started: cursor.started,
            ended: cursor.at,
            active_seconds,
            events_per_second: if active_seconds > 0.0 { confirmed as f64 / active_seconds } else { 0.0 },
            runs: cursor.runs,
            lanes: plan.lanes.iter().map(lane).collect(),
        }
    }
}
