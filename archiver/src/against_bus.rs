//! Holds an archive's positions against what the bus has: what is archived, behind, lost, ahead, without a lane, gone. Pure.
//!
//! Promises: says "lost" and "ahead" only of what holds whatever happens meanwhile, provided that the caller asks in this order: where
//! the bus begins, then the logs, then where the bus ends (and says so if the logs were read again after that).
//! Never: takes a topic that was made anew for the one that it replaced.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use tapedeck_common::position::{LaneId, Position};
use tapedeck_common::time::{Timestamp, Window};

/// A topic that the configuration covers, as the bus has it now.
#[derive(Debug, Clone)]
pub struct BusTopic {
    /// Its name.
    pub name: String,
    /// The table that the configuration sends it to.
    pub table: String,
    /// Its partitions as lanes, in order.
    pub lanes: Vec<BusLane>,
}

/// A partition as the bus has it now.
#[derive(Debug, Clone)]
pub struct BusLane {
    /// Under which name the log would know it.
    pub lane: LaneId,
    /// The first position that is still there; or why the bus cannot say.
    pub begin: Result<Position, String>,
    /// The position after the last event that is visible; or why the bus cannot say.
    pub end: Result<Position, String>,
}

/// All that the bus said.
#[derive(Debug, Clone, Default)]
pub struct Bus {
    /// What every source name of this bus begins with: `kafka/<cluster>/`. One for each cluster that was asked.
    pub prefixes: BTreeSet<String>,
    /// Names of all topics there are, covered or not, each behind the prefix of its cluster.
    pub names: BTreeSet<String>,
    /// The topics that are covered.
    pub topics: Vec<BusTopic>,
    /// Topics that the configuration names and that are not there.
    pub missing: Vec<String>,
}

/// What the logs say.
#[derive(Debug, Clone, Default)]
pub struct Logs {
    /// Where each lane stands, by table.
    pub positions: BTreeMap<String, BTreeMap<LaneId, Position>>,
    /// Where each lane began, and how much of it is recorded as lost, as far as the logs were read in full.
    pub known: BTreeMap<LaneId, Known>,
    /// The topic behind a source, where some event of it is archived.
    pub topics: BTreeMap<String, String>,
    /// True if they were read again after the bus was asked where it ends: a log beyond the end is no wonder then.
    pub read_later: bool,
}

/// What a full reading of a log says of a lane.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known {
    /// Where its first record begins.
    pub from: Position,
    /// Positions that its gaps name.
    pub lost: u64,
}

/// How a lane stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Archived up to the end.
    Archived,
    /// The bus has more, all of it still to be had.
    Behind,
    /// The bus has deleted what the log has neither archived nor noted as a gap.
    Lost,
    /// The log is beyond the end of the bus: the bus lost its tail.
    Ahead,
    /// A partition that the configuration covers and no log knows.
    Unarchived,
    /// The bus could not say.
    Unknown,
    /// Its topic was deleted and made again; the new one is another lane.
    Recreated,
    /// Its topic is not on the bus any more.
    Gone,
    /// The configuration does not cover it: another cluster, another topic.
    NotCompared,
}

/// One lane, on the bus, in a log, or both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LaneOnBus {
    /// The lane.
    pub lane: String,
    /// Its topic, where it is known.
    pub topic: Option<String>,
    /// The table whose log knows it, or would.
    pub table: String,
    /// How it stands.
    pub state: Standing,
    /// Where the log has it: the next position.
    pub next: Option<u64>,
    /// The first position that the bus has.
    pub bus_begin: Option<u64>,
    /// The position after the last visible one.
    pub bus_end: Option<u64>,
    /// Positions that the bus has and the archive does not have yet.
    pub behind: u64,
    /// Positions that are neither in the archive, nor on the bus, nor noted as a gap.
    pub lost: u64,
    /// Positions that the archive is beyond the end of the bus.
    pub ahead: u64,
    /// Positions that the bus has from before the lane's first record: it began later on purpose (`start`).
    pub before: u64,
    /// Why the bus could not say.
    pub problem: Option<String>,
}

/// One covered topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TopicOnBus {
    /// Its name.
    pub topic: String,
    /// The table that it goes to.
    pub table: String,
    /// Its partitions on the bus.
    pub partitions: u64,
    /// Everything that the bus held at this moment is in the archive, less what gaps name. Null if something is missing.
    pub complete_up_to: Option<String>,
    /// The last UTC hour that was over then, `YYYY-MM-DDTHH`.
    pub complete_hour: Option<String>,
    /// Partitions for which that cannot be said.
    pub incomplete_partitions: u64,
    /// Positions that the bus has and the archive does not have yet.
    pub behind: u64,
    /// Positions that are lost without a gap.
    pub lost: u64,
    /// Positions that gaps of these lanes name.
    pub lost_recorded: u64,
}

/// The whole comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// What is worst.
    pub verdict: Verdict,
    /// When the bus was asked where it ends, by this machine's clock.
    pub asked_at: String,
    /// Topics that the configuration names and that are not on the bus.
    pub missing_topics: Vec<String>,
    /// Covered topics, by name.
    pub topics: Vec<TopicOnBus>,
    /// Lanes of covered topics, then those that only the logs know.
    pub lanes: Vec<LaneOnBus>,
}

/// Compares.
pub fn compare(bus: &Bus, logs: &Logs, asked: Timestamp) -> Comparison {
    let mut seen = BTreeSet::new();
    let (mut topics, mut lanes) = (Vec::new(), Vec::new());
    for topic in &bus.topics {
        let of_topic: Vec<LaneOnBus> = topic.lanes.iter().map(|lane| on_bus(topic, lane, logs)).collect();
        seen.extend(topic.lanes.iter().map(|lane| &lane.lane));
        let recorded = topic.lanes.iter().filter_map(|lane| logs.known.get(&lane.lane)).map(|known| known.lost).sum();
        topics.push(summary(topic, &of_topic, recorded, asked));
        lanes.extend(of_topic);
    }
    for (table, positions) in &logs.positions {
        let others = positions.iter().filter(|(lane, _)| !seen.contains(lane));
        lanes.extend(others.map(|(lane, next)| only_in_log(table, lane, *next, bus, logs)));
    }
    Comparison { verdict: verdict(&lanes), asked_at: asked.to_string(), missing_topics: bus.missing.clone(), topics, lanes }
}

impl Bus {
    /// True if the topic is there now, on the cluster behind `prefix`, and covered.
    fn covers(&self, prefix: &str, topic: &str) -> bool {
        let is_there = |there: &BusTopic| there.lanes.iter().any(|bus| bus.lane.source.starts_with(prefix));
        self.topics.iter().any(|there| there.name == *topic && is_there(there))
    }
}

impl Logs {
    /// Where a lane stands, and in which table: the one that its topic goes to, else any.
    fn find<'a>(&'a self, table: &str, lane: &LaneId) -> Option<(&'a str, Position)> {
        let here =
            |(table, positions): (&'a String, &'a BTreeMap<LaneId, Position>)| Some((table.as_str(), *positions.get(lane)?));
        self.positions.get_key_value(table).and_then(here).or_else(|| self.positions.iter().find_map(here))
    }
}

fn on_bus(topic: &BusTopic, bus: &BusLane, logs: &Logs) -> LaneOnBus {
    let found = logs.find(&topic.table, &bus.lane);
    let (table, next) = found.map_or((topic.table.as_str(), None), |(table, next)| (table, Some(next)));
    let mut lane = LaneOnBus {
        lane: bus.lane.to_string(),
        topic: Some(topic.name.clone()),
        table: table.to_owned(),
        state: Standing::Unknown,
        next: next.map(Position::get),
        bus_begin: bus.begin.as_ref().ok().map(|begin| begin.get()),
        bus_end: bus.end.as_ref().ok().map(|end| end.get()),
        behind: 0,
        lost: 0,
        ahead: 0,
        before: 0,
        problem: bus.begin.as_ref().err().or(bus.end.as_ref().err()).cloned(),
    };
    let (Some(begin), Some(end)) = (lane.bus_begin, lane.bus_end) else { return lane };
    let Some(next) = lane.next else {
        lane.behind = end.saturating_sub(begin);
        lane.state = Standing::Unarchived;
        return lane;
    };
    lane.lost = begin.saturating_sub(next);
    lane.ahead = if logs.read_later { 0 } else { next.saturating_sub(end) };
    lane.behind = end.saturating_sub(next.max(begin));
    lane.before = logs.known.get(&bus.lane).map_or(0, |known| known.from.get().min(end).saturating_sub(begin));
    lane.state = match (lane.ahead, lane.lost, lane.behind) {
        (1.., _, _) => Standing::Ahead,
        (_, 1.., _) => Standing::Lost,
        (_, _, 1..) => Standing::Behind,
        _ => Standing::Archived,
    };
    lane
}

/// A lane that no covered topic has now.
fn only_in_log(table: &str, lane: &LaneId, next: Position, bus: &Bus, logs: &Logs) -> LaneOnBus {
    let topic = logs.topics.get(&*lane.source);
    let prefix = bus.prefixes.iter().find(|prefix| lane.source.starts_with(prefix.as_str()));
    let state = match (topic, prefix) {
        (Some(topic), Some(prefix)) if bus.covers(prefix, topic) => Standing::Recreated,
        (Some(topic), Some(prefix)) if !bus.names.contains(&format!("{prefix}{topic}")) => Standing::Gone,
        _ => Standing::NotCompared,
    };
    LaneOnBus {
        lane: lane.to_string(),
        topic: topic.cloned(),
        table: table.to_owned(),
        state,
        next: Some(next.get()),
        bus_begin: None,
        bus_end: None,
        behind: 0,
        lost: 0,
        ahead: 0,
        before: 0,
        problem: None,
    }
}

fn summary(topic: &BusTopic, lanes: &[LaneOnBus], lost_recorded: u64, asked: Timestamp) -> TopicOnBus {
    let incomplete = lanes.iter().filter(|lane| !lane.is_complete()).count() as u64;
    let complete = (incomplete == 0).then_some(asked);
    TopicOnBus {
        topic: topic.name.clone(),
        table: topic.table.clone(),
        partitions: lanes.len() as u64,
        complete_up_to: complete.map(|asked| asked.to_string()),
        complete_hour: complete.map(|asked| hour_before(asked).to_string()),
        incomplete_partitions: incomplete,
        behind: lanes.iter().map(|lane| lane.behind).sum(),
        lost: lanes.iter().map(|lane| lane.lost).sum(),
        lost_recorded,
    }
}

/// The last hour that was over at `moment`.
fn hour_before(moment: Timestamp) -> Window {
    Window::of(Timestamp::from_micros(Window::of(moment).start().micros() - 1))
}

impl LaneOnBus {
    /// True if the archive holds all that the bus does. A partition that never held anything lacks nothing.
    pub fn is_complete(&self) -> bool {
        self.state == Standing::Archived || (self.state == Standing::Unarchived && self.bus_end == Some(0))
    }

    /// True if an archiver may mend it in a while: what is lost becomes a gap.
    fn may_come(&self) -> bool {
        matches!(self.state, Standing::Behind | Standing::Lost | Standing::Unarchived) && !self.is_complete()
    }
}

impl Comparison {
    /// True if waiting for the archiver may bring a better verdict. Nothing mends a bus that lost its tail.
    pub fn may_come(&self) -> bool {
        self.count(Standing::Ahead) == 0 && self.lanes.iter().any(LaneOnBus::may_come)
    }

    /// How many lanes stand so.
    pub fn count(&self, state: Standing) -> usize {
        self.lanes.iter().filter(|lane| lane.state == state).count()
    }
}

/// What is worst.
fn verdict(lanes: &[LaneOnBus]) -> Verdict {
    let any = |is: fn(&LaneOnBus) -> bool| lanes.iter().any(is);
    if any(|lane| matches!(lane.state, Standing::Lost | Standing::Ahead)) {
        Verdict::Broken
    } else if any(|lane| lane.state == Standing::Unknown) {
        Verdict::Unknown
    } else if any(|lane| lane.state == Standing::Unarchived && !lane.is_complete()) {
        Verdict::Unarchived
    } else {
        Verdict::Fine
    }
}

/// How a comparison ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Archived, or behind with everything still on the bus.
    Fine,
    /// A partition holds events and nobody archives it.
    Unarchived,
    /// The bus did not say everything.
    Unknown,
    /// Something is lost without a gap, or the bus lost what the archive has.
    Broken,
}

#[cfg(test)]
mod tests;
