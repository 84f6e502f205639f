//! Builds the plan of a replay from the log's entries and the exact counts of the segments that had to be read.
//!
//! Promises: the numbers are exact, not estimates, except where their name says so; the same selection of the same files
//! to the same target has the same hash, and a plan that was edited no longer fits its own. Pure. Never: open a store.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tapedeck_common::commit::GapCause;
use tapedeck_common::error::ErrorKind;
use tapedeck_common::limits::PART_BYTES;
use tapedeck_common::{LaneId, Position, Span, Timestamp};
use tapedeck_storage::layout::counts_arrivals;

use crate::order::Extent;
use crate::pacer::Limits;
use crate::select::{Selection, text_time};
use crate::target::Target;

/// The format of plan files.
pub const PLAN_FORMAT: u32 = 1;

/// A cursor is written when a lane has this many more confirmed events, and no lane gets further ahead of its cursor.
pub const CURSOR_EVENTS: u64 = 10_000;

/// A cursor is written this often where anything moved.
pub const CURSOR_TIME: Duration = Duration::from_secs(1);

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The selection is empty.
    #[error("nothing to replay: {0}")]
    Nothing(String),
    /// The plan does not fit its hash.
    #[error("the plan was changed after it was made: its hash is {claimed}, its content gives {found}; make a new plan")]
    Edited {
        /// What the plan says.
        claimed: String,
        /// What its content gives.
        found: String,
    },
    /// A limit that no pace follows.
    #[error("limits.{name} is {value}: a limit is a number above zero, or null")]
    Limit {
        /// Which.
        name: &'static str,
        /// What it says.
        value: f64,
    },
    /// The plan is of another version.
    #[error("the plan has format {0}, this replayer reads format {PLAN_FORMAT}")]
    Format(u32),
}

impl PlanError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

/// What one segment gives to the plan, lane by lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedShare {
    /// The partition.
    pub partition: i32,
    /// Its first selected position.
    pub first: Position,
    /// Its last selected position.
    pub last: Position,
    /// Selected events.
    pub events: u64,
    /// Their payload bytes.
    pub bytes: u64,
}

/// A segment of the plan. The plan pins it: it is read by this path and must have this checksum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedSegment {
    /// The table.
    pub table: String,
    /// Its path below the table's folder.
    pub path: String,
    /// Bytes of the object.
    pub size: u64,
    /// BLAKE3 of the object.
    pub blake3: String,
    /// Rows of the object, selected or not.
    pub rows: u64,
    /// The topic.
    pub topic: String,
    /// The source.
    pub source: String,
    /// Its earliest event.
    #[serde(with = "text_time")]
    pub earliest: Option<Timestamp>,
    /// Its latest event.
    #[serde(with = "text_time")]
    pub latest: Option<Timestamp>,
    /// True if all rows of the planned lanes are selected, so that rows need not be looked at.
    pub whole: bool,
    /// Its lanes.
    pub lanes: Vec<PlannedShare>,
}

/// One lane of the plan: a partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedLane {
    /// The topic.
    pub topic: String,
    /// The source.
    pub source: String,
    /// The partition; of a queue, the number of the channel that the events arrived by.
    pub partition: i32,
    /// Events.
    pub events: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// The first position.
    pub first: Position,
    /// The last position.
    pub last: Position,
    /// Positions from first to last that the plan leaves out: events of other times, or positions that never were events.
    pub left_out: u64,
    /// No event of it is earlier. Exact to the segment.
    #[serde(with = "text_time")]
    pub earliest: Option<Timestamp>,
    /// No event of it is later. Exact to the segment.
    #[serde(with = "text_time")]
    pub latest: Option<Timestamp>,
}

impl PlannedSegment {
    /// The lane of one of its shares.
    pub fn lane(&self, share: &PlannedShare) -> LaneId {
        LaneId::new(self.source.as_str(), share.partition)
    }
}

impl PlannedLane {
    /// The lane's name in the log.
    pub fn id(&self) -> LaneId {
        LaneId::new(self.source.as_str(), self.partition)
    }

    /// The partition at the target: its own, where it is one.
    pub fn to_partition(&self) -> i32 {
        if counts_arrivals(&self.source) { 0 } else { self.partition }
    }
}

/// Positions in the range of the plan that the archive knows to be lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedGap {
    /// The topic.
    pub topic: String,
    /// The source.
    pub source: String,
    /// The partition.
    pub partition: i32,
    /// The first lost position.
    pub from: Position,
    /// The first position after it.
    pub until: Position,
    /// Why.
    pub cause: String,
}

/// Sums over the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Events.
    pub events: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Objects to read.
    pub files: u64,
    /// Their bytes.
    pub file_bytes: u64,
    /// Requests to the store that reading takes, about.
    pub requests_estimate: u64,
}

/// What will be replayed, to the event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_FORMAT`].
    pub format: u32,
    /// BLAKE3 over selection, files and target.
    pub hash: String,
    /// When it was made.
    #[serde(with = "text_time")]
    pub made: Option<Timestamp>,
    /// Where the archive is.
    pub archive: String,
    /// The tables, and the number of the last record that the plan knows of each.
    pub tables: BTreeMap<String, u64>,
    /// What is asked for.
    pub selection: Selection,
    /// Where it goes.
    pub target: Target,
    /// How fast.
    pub limits: Limits,
    /// Sums.
    pub totals: Totals,
    /// How long it takes at those limits, in seconds; none without limits.
    pub duration_seconds: Option<f64>,
    /// How many events may arrive twice if the replayer is killed, in words.
    pub duplicate_window: String,
    /// What the reader should know before running it.
    pub warnings: Vec<String>,
    /// Known losses in the range.
    pub gaps: Vec<PlannedGap>,
    /// Lanes, by topic, source and partition. Their index is the lane's number.
    pub lanes: Vec<PlannedLane>,
    /// Segments, in the order of tables and paths.
    pub segments: Vec<PlannedSegment>,
}

/// All that a plan is made from.
#[derive(Debug)]
pub struct Draft {
    /// Now.
    pub made: Timestamp,
    /// Where the archive is.
    pub archive: String,
    /// The tables and their newest records.
    pub tables: BTreeMap<String, u64>,
    /// What is asked for.
    pub selection: Selection,
    /// Where it goes.
    pub target: Target,
    /// How fast.
    pub limits: Limits,
    /// Segments with exact shares.
    pub segments: Vec<PlannedSegment>,
    /// Gaps of the topics' lanes: topic, lane, span, cause.
    pub gaps: Vec<(String, LaneId, Span, GapCause)>,
    /// Events found out of time order while segments were read.
    pub out_of_time_order: u64,
    /// Why tables that may once have held the topics could not be looked at.
    pub unread: Vec<String>,
    /// Objects larger than this are read twice: once to verify them, once to decode.
    pub whole_object_max: u64,
}

impl Plan {
    /// Makes the plan; `nothing` words the reason if it would be empty.
    pub fn build(draft: Draft, nothing: impl FnOnce() -> String) -> Result<Self, PlanError> {
        let Draft { made, archive, tables, selection, target, limits, mut segments, .. } = draft;
        segments.sort_by(|a, b| (&a.table, &a.path).cmp(&(&b.table, &b.path)));
        let lanes = lanes_of(&segments);
        if lanes.is_empty() {
            return Err(PlanError::Nothing(nothing()));
        }
        let totals = totals_of(&segments, draft.whole_object_max);
        let gaps = gaps_in(&lanes, draft.gaps);
        let mut warnings = warnings_of(&lanes, &gaps, &target, draft.out_of_time_order);
        let unread = |why: &String| {
            format!("a table that may have held these topics before cannot be read, its events are not in this plan: {why}")
        };
        warnings.extend(draft.unread.iter().map(unread));
        let duration = limits.duration(totals.events, totals.bytes);
        let hash = hash_of(&selection, &segments, &target);
        let duplicate_window = duplicate_window();
        let duration_seconds = duration.map(|time| time.as_secs_f64());
        let format = PLAN_FORMAT;
        Ok(Self {
            format,
            hash,
            made: Some(made),
            archive,
            tables,
            selection,
            target,
            limits,
            totals,
            duration_seconds,
            duplicate_window,
            warnings,
            gaps,
            lanes,
            segments,
        })
    }

    /// Checks that a plan from a file is ours and unchanged.
    pub fn check(&self) -> Result<(), PlanError> {
        if self.format != PLAN_FORMAT {
            return Err(PlanError::Format(self.format));
        }
        for (name, limit) in [("events", self.limits.events), ("bytes", self.limits.bytes)] {
            if let Some(value) = limit.filter(|limit| !limit.is_finite() || *limit <= 0.0) {
                return Err(PlanError::Limit { name, value });
            }
        }
        let found = hash_of(&self.selection, &self.segments, &self.target);
        if found != self.hash || self.lanes.iter().map(PlannedLane::id).ne(lanes_of(&self.segments).iter().map(PlannedLane::id)) {
            return Err(PlanError::Edited { claimed: self.hash.clone(), found });
        }
        Ok(())
    }

    /// The number of each lane.
    pub fn lane_numbers(&self) -> BTreeMap<LaneId, u32> {
        self.lanes.iter().zip(0..).map(|(lane, number)| (lane.id(), number)).collect()
    }

    /// The highest partition of each topic.
    pub fn partitions(&self) -> BTreeMap<&str, i32> {
        let mut highest = BTreeMap::new();
        for lane in &self.lanes {
            let entry = highest.entry(lane.topic.as_str()).or_insert(lane.partition);
            *entry = lane.partition.max(*entry);
        }
        highest
    }

    /// The segments in runs: indices into [`Self::segments`], in the order in which they are replayed.
    pub fn runs(&self) -> Vec<Vec<usize>> {
        let numbers = self.lane_numbers();
        let extent = |segment: &PlannedSegment| {
            let lane = |share: &PlannedShare| {
                let number = numbers[&segment.lane(share)];
                (number as usize, share.first, share.last)
            };
            Extent { earliest: segment.earliest.unwrap_or_default(), lanes: segment.lanes.iter().map(lane).collect() }
        };
        crate::order::runs(&self.segments.iter().map(extent).collect::<Vec<_>>())
    }
}

/// The words for [`Plan::duplicate_window`].
fn duplicate_window() -> String {
    format!(
        "a killed run resumes at its cursor, written every {} s or {CURSOR_EVENTS} events of a partition: at most {CURSOR_EVENTS} events of \
         each partition, and those in flight to the bus, may arrive twice; none is lost",
        CURSOR_TIME.as_secs(),
    )
}

fn lanes_of(segments: &[PlannedSegment]) -> Vec<PlannedLane> {
    let mut lanes: BTreeMap<(&str, &str, i32), PlannedLane> = BTreeMap::new();
    for segment in segments {
        for share in &segment.lanes {
            let fresh = || PlannedLane {
                topic: segment.topic.clone(),
                source: segment.source.clone(),
                partition: share.partition,
                events: 0,
                bytes: 0,
                first: share.first,
                last: share.last,
                left_out: 0,
                earliest: segment.earliest,
                latest: segment.latest,
            };
            let lane = lanes.entry((&segment.topic, &segment.source, share.partition)).or_insert_with(fresh);
            lane.events += share.events;
            lane.bytes += share.bytes;
            (lane.first, lane.last) = (lane.first.min(share.first), lane.last.max(share.last));
            (lane.earliest, lane.latest) = (lane.earliest.min(segment.earliest), lane.latest.max(segment.latest));
        }
    }
    let mut lanes: Vec<PlannedLane> = lanes.into_values().collect();
    for lane in &mut lanes {
        lane.left_out = (lane.last.get() + 1 - lane.first.get()).saturating_sub(lane.events);
    }
    lanes
}

fn totals_of(segments: &[PlannedSegment], whole_object_max: u64) -> Totals {
    let mut totals = Totals::default();
    for segment in segments {
        totals.files += 1;
        totals.file_bytes += segment.size;
        totals.requests_estimate +=
            if segment.size <= whole_object_max { 1 } else { 2 + segment.size.div_ceil(PART_BYTES as u64) };
        for share in &segment.lanes {
            totals.events += share.events;
            totals.bytes += share.bytes;
        }
    }
    totals
}

fn gaps_in(lanes: &[PlannedLane], gaps: Vec<(String, LaneId, Span, GapCause)>) -> Vec<PlannedGap> {
    let ranges: BTreeMap<LaneId, (Position, Position)> = lanes.iter().map(|lane| (lane.id(), (lane.first, lane.last))).collect();
    let inside =
        |lane: &LaneId, span: Span| ranges.get(lane).is_some_and(|(first, last)| span.from() <= *last && span.until() > *first);
    let mut planned: Vec<_> = gaps
        .into_iter()
        .filter(|(_, lane, span, _)| inside(lane, *span))
        .map(|(topic, lane, span, cause)| PlannedGap {
            topic,
            source: lane.source.to_string(),
            partition: lane.partition,
            from: span.from(),
            until: span.until(),
            cause: cause.as_str().to_owned(),
        })
        .collect();
    planned.sort_by(|a, b| (&a.topic, a.partition, a.from).cmp(&(&b.topic, b.partition, b.from)));
    planned
}

fn warnings_of(lanes: &[PlannedLane], gaps: &[PlannedGap], target: &Target, out_of_time_order: u64) -> Vec<String> {
    let mut warnings = Vec::new();
    if !gaps.is_empty() {
        let lost: u64 = gaps.iter().map(|gap| gap.until.get() - gap.from.get()).sum();
        warnings.push(format!("{lost} positions in this range are known to be lost ({} gaps in the archive's log)", gaps.len()));
    }
    if out_of_time_order > 0 {
        warnings.push(format!(
            "{out_of_time_order} events at the edges of the time range stand out of time order: the range holds them, their neighbours by offset may lie outside"
        ));
    }
    let topics: BTreeSet<&str> = lanes.iter().map(|lane| lane.topic.as_str()).collect();
    let targets: BTreeSet<String> = topics.iter().map(|topic| target.topic_for(topic, "job")).collect();
    if targets.len() < topics.len() {
        warnings.push(format!(
            "{} topics go into {}: their events mix there, partition by partition",
            topics.len(),
            targets.len()
        ));
    }
    for topic in &topics {
        let sources: BTreeSet<&str> = lanes.iter().filter(|lane| lane.topic == *topic).map(|lane| lane.source.as_str()).collect();
        if sources.len() > 1 {
            let mut text =
                format!("topic {topic} was archived from {} sources, which share its partitions at the target:", sources.len());
            sources.iter().for_each(|source| write!(text, " {source}").expect("writing to a string"));
            warnings.push(text);
        }
    }
    warnings
}

/// The hash of what a plan would do.
fn hash_of(selection: &Selection, segments: &[PlannedSegment], target: &Target) -> String {
    #[derive(Serialize)]
    struct Canonical<'a> {
        format: u32,
        selection: &'a Selection,
        target: &'a Target,
        segments: &'a [PlannedSegment],
    }
    let canonical = Canonical { format: PLAN_FORMAT, selection, target, segments };
    let text = serde_json::to_vec(&canonical).expect("plain data with text keys");
    blake3::hash(&text).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use tapedeck_common::Window;
    use tapedeck_common::commit::{SegmentLane, SegmentRef};

    use super::*;
    use crate::sift::{Found, LaneCount, SegmentCounts, counted, sift};

    fn time(minute: i64) -> Timestamp {
        Timestamp::from_micros(minute * 60_000_000)
    }

    fn found(path: &str, minutes: (i64, i64), lanes: &[(i32, u64, u64, u64)]) -> Found {
        let lane = |(partition, first, last, rows): &(i32, u64, u64, u64)| SegmentLane {
            partition: *partition,
            first: Position::new(*first),
            last: Position::new(*last),
            rows: *rows,
            payload_bytes: rows * 10,
        };
        let segment = SegmentRef {
            path: path.into(),
            source: "kafka/c/t/0".into(),
            topic: "orders".into(),
            window: Window::of(time(minutes.0)),
            rows: lanes.iter().map(|lane| lane.3).sum(),
            size: 1_000,
            blake3: "00".into(),
            modified: time(0),
            times: (time(minutes.0), time(minutes.1)),
            null_keys: 0,
            null_values: 0,
            lanes: lanes.iter().map(lane).collect(),
        };
        Found::new("orders", segment)
    }

    fn draft(segments: Vec<PlannedSegment>) -> Draft {
        Draft {
            made: time(0),
            archive: "file:///a".into(),
            tables: [("orders".to_owned(), 4)].into(),
            selection: Selection::default(),
            target: Target::parse("kafka://b:9092").expect("good"),
            limits: Limits { events: Some(10.0), bytes: None },
            segments,
            gaps: vec![],
            out_of_time_order: 0,
            unread: vec![],
            whole_object_max: 1 << 20,
        }
    }

    #[test]
    fn whole_segments_are_counted_by_their_entries_and_edges_by_reading() {
        let selection = Selection { from: Some(time(30)), until: Some(time(130)), ..Selection::default() };
        let live = [
            found("b", (60, 119), &[(0, 50, 99, 50), (1, 9, 20, 6)]),
            found("a", (5, 59), &[(0, 0, 49, 50)]),
            found("c", (180, 200), &[(0, 100, 110, 11)]),
        ];
        let sifted = sift(&selection, live);
        assert_eq!((sifted.whole.len(), sifted.to_read.len()), (1, 1));
        let mut count = LaneCount::default();
        for position in 30..50 {
            count.add(Position::new(position), time(position as i64), 7);
        }
        let edge = counted(sifted.to_read[0].clone(), &[(0, count)].into()).expect("rows were selected");
        assert_eq!(counted(sifted.to_read[0].clone(), &SegmentCounts::new()), None);
        let plan = Plan::build(draft([sifted.whole, vec![edge]].concat()), || unreachable!()).expect("a plan");
        assert_eq!((plan.totals.events, plan.totals.bytes, plan.totals.files), (76, 700, 2));
        assert_eq!(plan.duration_seconds, Some(7.6));
        let lanes: Vec<_> = plan
            .lanes
            .iter()
            .map(|lane| (lane.partition, lane.events, lane.first.get(), lane.last.get(), lane.left_out))
            .collect();
        assert_eq!(lanes, [(0, 70, 30, 99, 0), (1, 6, 9, 20, 6)]);
        assert_eq!(plan.lanes[0].earliest, Some(time(30)));
        assert_eq!(plan.runs(), [vec![0], vec![1]]);
    }

    #[test]
    fn the_hash_covers_selection_files_and_target_and_notices_edits() {
        let segments = || sift(&Selection::default(), [found("a", (0, 9), &[(0, 0, 9, 10)])]).whole;
        let plan = Plan::build(draft(segments()), || unreachable!()).expect("a plan");
        let again = Plan::build(Draft { limits: Limits::default(), ..draft(segments()) }, || unreachable!()).expect("a plan");
        assert_eq!(plan.hash, again.hash, "how fast is not what");
        let json = serde_json::to_string(&plan).expect("plain data");
        let read: Plan = serde_json::from_str(&json).expect("our own");
        read.check().expect("unchanged");
        assert_eq!(read, plan);
        let changes: [fn(&mut Plan); 3] = [
            |plan| plan.segments[0].path = "b".into(),
            |plan| plan.selection.until = Some(time(3)),
            |plan| plan.target = Target::parse("kafka://other:9092").expect("good"),
        ];
        for change in changes {
            let mut edited = plan.clone();
            change(&mut edited);
            assert!(matches!(edited.check(), Err(PlanError::Edited { .. })));
        }
    }

    #[test]
    fn limits_of_an_edited_plan_are_numbers_above_zero() {
        let segments = sift(&Selection::default(), [found("a", (0, 9), &[(0, 0, 9, 10)])]).whole;
        let plan = Plan::build(draft(segments), || unreachable!()).expect("a plan");
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            for limits in [Limits { events: Some(bad), bytes: None }, Limits { events: None, bytes: Some(bad) }] {
                let error = Plan { limits, ..plan.clone() }.check().expect_err("no pace follows it");
                assert!(matches!(error, PlanError::Limit { .. }), "{error}");
            }
        }
        Plan { limits: Limits { events: Some(1e-300), bytes: None }, ..plan }.check().expect("slow, and a number");
    }

    #[test]
    fn a_plan_over_nothing_says_why() {
        let error = Plan::build(draft(vec![]), || "no events of topic orders before noon".into()).expect_err("nothing");
        assert_eq!(error.to_string(), "nothing to replay: no events of topic orders before noon");
    }

    #[test]
    fn gaps_in_the_range_are_named_and_others_are_not() {
        let lane = LaneId::new("kafka/c/t/0", 0);
        let span = |from, until| Span::new(Position::new(from), Position::new(until)).expect("forward");
        let gap = |from, until| ("orders".to_owned(), lane.clone(), span(from, until), GapCause::Retention);
        let segments = sift(&Selection::default(), [found("a", (0, 9), &[(0, 10, 29, 15)])]).whole;
        let plan = Plan::build(Draft { gaps: vec![gap(0, 10), gap(15, 20), gap(30, 40)], ..draft(segments) }, || unreachable!())
            .expect("plan");
        assert_eq!(plan.gaps.len(), 1);
        assert_eq!((plan.gaps[0].from.get(), plan.gaps[0].until.get(), plan.gaps[0].cause.as_str()), (15, 20, "retention"));
        assert!(plan.warnings[0].starts_with("5 positions"), "{:?}", plan.warnings);
    }
}
