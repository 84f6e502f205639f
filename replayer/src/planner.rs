//! Asks the archive for what a plan needs: the tables' logs, and the segments at the edges of the selection.
//!
//! Promises: reads metadata only, and of that what the selection's topics and times can match; except segments that lie on an
//! edge: those are checked against the log before they are counted. A topic is found in every table that holds events of it,
//! also where it was moved away from. Never: publish.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use tapedeck_common::commit::{GapCause, SegmentRef};
use tapedeck_common::error::{ErrorKind, report};
use tapedeck_common::{LaneId, Position, Span, Timestamp};
use tapedeck_storage::archive::Archive;
use tapedeck_storage::layout;
use tapedeck_storage::log::{Slice, TableView};
use tapedeck_storage::segment::{EventBatch, Scan, SegmentError, SegmentReader, verify_object};
use tapedeck_storage::store::{Store, StoreError};

use crate::pacer::Limits;
use crate::plan::{Draft, Plan, PlanError, PlannedSegment};
use crate::select::Selection;
use crate::sift::{Found, SegmentCounts, counted, once, out_of_time_order, sift};
use crate::target::Target;

/// Segments at the edges that are read at once.
const EDGES_AT_ONCE: usize = 3;

/// Tables' logs that are read at once.
const LOGS_AT_ONCE: usize = 4;

/// Why a plan could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PlannerError {
    /// The archive's store failed, or what lies there is wrong.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A segment at an edge could not be read.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// There is nothing to plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Two tables hold parts of a lane in turns.
    #[error("lane {lane} lies in several tables whose positions alternate; narrow the selection by --offsets or --partition")]
    Entangled {
        /// The lane.
        lane: String,
    },
    /// A topic that the archive does not have.
    #[error("topic {topic} is not in the archive {archive}; it has: {known}")]
    UnknownTopic {
        /// What was asked for.
        topic: String,
        /// Where.
        archive: String,
        /// What is there.
        known: String,
    },
}

impl PlannerError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Segment(error) => error.kind(),
            Self::Plan(error) => error.kind(),
            Self::UnknownTopic { .. } | Self::Entangled { .. } => ErrorKind::Invalid,
        }
    }

    /// True if only the command line is to blame.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Plan(_) | Self::UnknownTopic { .. } | Self::Entangled { .. })
    }
}

/// What to plan.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Which events.
    pub selection: Selection,
    /// Where to.
    pub target: Target,
    /// How fast.
    pub limits: Limits,
    /// Objects larger than this are read twice.
    pub whole_object_max: u64,
    /// Now.
    pub now: Timestamp,
}

/// Makes a plan over the archive as it is now.
pub async fn plan(archive: &Archive, ask: Ask) -> Result<Plan, PlannerError> {
    let Views { views, unread } = views(archive, &ask.selection).await?;
    let found = found(&views, &ask.selection)?;
    let sifted = sift(&ask.selection, found);
    let edges: Vec<(Option<PlannedSegment>, u64)> = futures::stream::iter(sifted.to_read)
        .map(|edge| count(archive.store.clone(), edge, ask.selection.clone()))
        .buffer_unordered(EDGES_AT_ONCE)
        .try_collect()
        .await?;
    let out_of_time_order = edges.iter().map(|(_, backwards)| backwards).sum();
    let mut segments = sifted.whole;
    segments.extend(edges.into_iter().filter_map(|(segment, _)| segment));
    let covered = if segments.is_empty() { covered(archive, &views, &ask.selection).await? } else { Covered::new() };
    let draft = Draft {
        made: ask.now,
        archive: archive.store.url.to_string(),
        tables: views.iter().map(|view| (view.table.clone(), view.version)).collect(),
        gaps: gaps(&views),
        selection: ask.selection.clone(),
        target: ask.target,
        limits: ask.limits,
        segments,
        out_of_time_order,
        unread,
        whole_object_max: ask.whole_object_max,
    };
    Ok(Plan::build(draft, || nothing(&ask.selection, &covered))?)
}

/// The logs that a plan is made from.
#[derive(Default)]
struct Views {
    views: Vec<TableView>,
    /// Tables that are no home of the topics and could not be read.
    unread: Vec<String>,
}

/// The logs of the tables that hold the topics: their homes, and whatever table held them before.
async fn views(archive: &Archive, selection: &Selection) -> Result<Views, PlannerError> {
    let homes = archive.topics().await?;
    let wanted: BTreeSet<&String> =
        homes.iter().filter(|(topic, _)| selection.has_topic(topic)).map(|(_, table)| table).collect();
    let tables = archive.tables().await?;
    let looks = tables.iter().map(|table| look(archive, table, wanted.contains(table), selection));
    let looked: Vec<Looked> = futures::stream::iter(looks).buffered(LOGS_AT_ONCE).try_collect().await?;
    let mut found = Views::default();
    let shared = shared_lanes(looked.iter().filter_map(|looked| looked.view.as_ref()));
    for Looked { view, is_home, unread } in looked {
        found.unread.extend(unread);
        let Some(mut view) = view else { continue };
        if view.positions.keys().any(|lane| shared.contains(lane)) {
            // What the other table holds of a lane tells at any time what this one is not asked for.
            let whole = Slice { topics: selection.topics.clone(), ..Slice::default() };
            view = TableView::load_matching(&archive.store, &view.table, Some(view.version), &whole).await?;
        }
        if is_home || !view.segments.is_empty() {
            found.views.push(view);
        }
    }
    let in_views = |topic: &String| found.views.iter().flat_map(|view| &view.segments).any(|live| *live.segment.topic == **topic);
    match selection.topics.iter().find(|topic| !homes.contains_key(*topic) && !in_views(topic)) {
        None => Ok(found),
        Some(unknown) => check_known(archive, unknown, &tables, homes.into_keys().collect()).await.map(|()| found),
    }
}

/// Lanes that stand in several tables.
fn shared_lanes<'a>(views: impl Iterator<Item = &'a TableView>) -> BTreeSet<LaneId> {
    let (mut seen, mut shared) = (BTreeSet::new(), BTreeSet::new());
    for lane in views.flat_map(|view| view.positions.keys()) {
        if !seen.insert(lane) {
            shared.insert(lane.clone());
        }
    }
    shared
}

/// A topic without a home may still lie in a table that it was moved away from, at other times.
async fn check_known(archive: &Archive, topic: &str, tables: &[String], mut known: BTreeSet<String>) -> Result<(), PlannerError> {
    for table in tables {
        let topics = TableView::tally(&archive.store, table, None, BTreeSet::new, |topics: &mut BTreeSet<String>, segment| {
            if !topics.contains(&*segment.topic) {
                topics.insert(segment.topic.to_string());
            }
        });
        match topics.await {
            Ok((_, topics)) => known.extend(topics),
            Err(error) if error.kind() == ErrorKind::Corrupt => {}
            Err(error) => return Err(error.into()),
        }
    }
    if known.contains(topic) {
        return Ok(());
    }
    let known = if known.is_empty() { "nothing yet".to_owned() } else { known.into_iter().collect::<Vec<_>>().join(", ") };
    Err(PlannerError::UnknownTopic { topic: topic.to_owned(), archive: archive.store.url.to_string(), known })
}

/// What one table is to a selection.
#[derive(Default)]
struct Looked {
    view: Option<TableView>,
    /// Topics of the selection go there today, or all topics are asked for.
    is_home: bool,
    unread: Option<String>,
}

async fn look(archive: &Archive, table: &str, is_home: bool, selection: &Selection) -> Result<Looked, StoreError> {
    let is_home = is_home || selection.topics.is_empty();
    let slice = Slice { topics: selection.topics.clone(), from: selection.from, until: selection.until };
    match TableView::load_matching(&archive.store, table, None, &slice).await {
        Ok(view) => Ok(Looked { view: Some(view), is_home, unread: None }),
        // Damage there must not stop a replay of topics that most likely never were there; the plan tells of it.
        Err(error) if error.kind() == ErrorKind::Corrupt && !is_home => {
            Ok(Looked { unread: Some(report(&error)), ..Looked::default() })
        }
        Err(error) => Err(error),
    }
}

/// All segments of the selection's topics, without what lies in two tables.
fn found(views: &[TableView], selection: &Selection) -> Result<Vec<Found>, PlannerError> {
    let all = views.iter().flat_map(|view| view.segments.iter().map(move |live| (&view.table, &live.segment)));
    let wanted = all.filter(|(_, segment)| selection.has_topic(&segment.topic));
    let found = wanted.map(|(table, segment)| Found::new(table.clone(), segment.clone())).collect();
    once(found).map_err(|lane| PlannerError::Entangled { lane: lane.to_string() })
}

/// The gaps of all lanes that have a topic.
fn gaps(views: &[TableView]) -> Vec<(String, LaneId, Span, GapCause)> {
    let mut gaps = Vec::new();
    for view in views {
        let topics: BTreeMap<&Arc<str>, &Arc<str>> =
            view.segments.iter().map(|live| (&live.segment.source, &live.segment.topic)).collect();
        for gap in &view.gaps {
            if let Some(topic) = topics.get(&gap.lane.source) {
                gaps.push((topic.to_string(), gap.lane.clone(), gap.span, gap.cause));
            }
        }
    }
    gaps
}

/// Reads a segment at an edge: what it holds of the selection, and how much of that is out of time order.
async fn count(store: Store, found: Found, selection: Selection) -> Result<(Option<PlannedSegment>, u64), PlannerError> {
    let key = layout::table_object(&found.table, &found.segment.path);
    verify_object(store.patient.as_ref(), &key, &found.segment).await?;
    let reader = SegmentReader::open_vouched(Arc::clone(&store.patient), key, &found.segment).await?;
    let ends = (Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX));
    let times = (selection.from.unwrap_or(ends.0), selection.until.unwrap_or(ends.1));
    let timed = selection.from.is_some() || selection.until.is_some();
    let mut scan = reader.scan(Scan { times: timed.then_some(times), ..Scan::default() });
    let (selection, only) = (Arc::new(selection), Arc::new(found.only.clone()));
    let mut counts = SegmentCounts::new();
    while let Some(group) = scan.next_group().await? {
        let (selection, only) = (Arc::clone(&selection), Arc::clone(&only));
        let counting = tokio::task::spawn_blocking(move || {
            for batch in group {
                add_batch(&mut counts, &batch?, &selection, &only);
            }
            Ok::<_, SegmentError>(counts)
        });
        counts = counting.await.map_err(|error| StoreError::new(ErrorKind::Bug, format!("counting stopped: {error}")))??;
    }
    let backwards = out_of_time_order(&counts);
    Ok((counted(found, &counts), backwards))
}

fn add_batch(counts: &mut SegmentCounts, batch: &EventBatch, selection: &Selection, only: &BTreeMap<i32, (Position, Position)>) {
    let key = selection.key_bytes().ok().flatten();
    let mut headers = Vec::new();
    for row in 0..batch.len() {
        let event = batch.row(row);
        let here = only.get(&event.partition).is_none_or(|(first, last)| (*first..=*last).contains(&event.position));
        let wanted = selection.has_partition(event.partition) && selection.has_position(event.position);
        if !wanted || !here || key.as_deref().is_some_and(|key| event.key != Some(key)) {
            continue;
        }
        batch.headers(row, &mut headers);
        let size = |value: Option<&[u8]>| value.map_or(0, <[u8]>::len);
        let own: usize = headers.iter().map(|(name, value)| name.len() + size(*value)).sum();
        let bytes = (own + size(event.key) + size(event.value)) as u64;
        counts.entry(event.partition).or_default().add(event.position, event.time, bytes);
    }
}

/// By topic: the earliest event, the latest, and how many there are.
type Covered = BTreeMap<String, (Timestamp, Timestamp, u64)>;

/// What the tables hold of the selection's topics, at any time.
async fn covered(archive: &Archive, views: &[TableView], selection: &Selection) -> Result<Covered, StoreError> {
    let mut all = Covered::new();
    for view in views {
        let add = |sums: &mut Covered, segment: &SegmentRef| {
            if selection.has_topic(&segment.topic) {
                cover(sums, &segment.topic, (segment.times.0, segment.times.1, segment.rows));
            }
        };
        let (_, sums) = TableView::tally(&archive.store, &view.table, Some(view.version), Covered::new, add).await?;
        sums.into_iter().for_each(|(topic, sum)| cover(&mut all, &topic, sum));
    }
    Ok(all)
}

fn cover(sums: &mut Covered, topic: &str, (earliest, latest, events): (Timestamp, Timestamp, u64)) {
    match sums.get_mut(topic) {
        Some(sum) => *sum = (sum.0.min(earliest), sum.1.max(latest), sum.2 + events),
        None => drop(sums.insert(topic.to_owned(), (earliest, latest, events))),
    }
}

/// Why a selection is empty, in words that help to mend it.
fn nothing(selection: &Selection, covered: &Covered) -> String {
    if covered.is_empty() {
        return "the archive holds no events of these topics yet".to_owned();
    }
    let time = |time: Option<Timestamp>, else_: &str| time.map_or_else(|| else_.to_owned(), |time| time.to_string());
    let mut text = format!("no event matches [{}, {})", time(selection.from, "the beginning"), time(selection.until, "the end"));
    let narrowed = !selection.partitions.is_empty() || selection.offsets.is_some() || selection.key.is_some();
    text.push_str(if narrowed { " with the partitions, offsets or key that are asked for;" } else { ";" });
    for (number, (topic, (earliest, latest, events))) in covered.iter().enumerate() {
        let comma = if number == 0 { "" } else { "," };
        write!(text, "{comma} topic {topic} has {events} events from {earliest} to {latest}").expect("writing to a string");
    }
    text
}
