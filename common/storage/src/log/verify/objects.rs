//! Looks at the objects of live segments: that each is there in full, and (deep) that it holds exactly what its record says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tapedeck_common::commit::SegmentRef;
use tapedeck_common::error::report;
use tapedeck_common::event::Header;
use tapedeck_common::{ErrorKind, LaneId, Timestamp, Window};

use super::ledger::{Hour, hour_of};
use super::{Finding, FindingKind, VerifyOptions, about};
use crate::layout;
use crate::log::record;
use crate::segment::{EventBatch, EventRow, Projection, Scan, SegmentError, SegmentReader, verify_object};
use crate::store::{Outcome, Store, StoreError, classify};

/// What looking at the objects brought.
#[derive(Debug, Default)]
pub(super) struct Looked {
    pub(super) findings: Vec<Finding>,
    pub(super) rows_read: u64,
}

/// Positions of one lane without a hole between them: first and last.
type Run = (u64, u64);

/// What one segment holds, read back.
#[derive(Debug, Default)]
struct Content {
    rows: u64,
    runs: BTreeMap<LaneId, Vec<Run>>,
    /// What readers prune and count by.
    times: Option<(Timestamp, Timestamp)>,
    null_keys: u64,
    null_values: u64,
    payload_bytes: BTreeMap<i32, u64>,
}

/// One object, looked at.
enum Answer {
    Fine(Content),
    Wrong(FindingKind, String),
}

/// Looks at `segments`, which stand in the order of the records that added them.
pub(super) async fn look(
    store: &Store,
    table: &str,
    segments: Vec<(u64, SegmentRef)>,
    rewritten: &BTreeSet<Hour>,
    options: &VerifyOptions,
) -> Result<Looked, StoreError> {
    let deep = options.deep;
    let looks = segments.into_iter().map(|(version, segment)| {
        let store = Arc::clone(&store.patient);
        let key = layout::table_object(table, &segment.path);
        // A task each, so that decoding uses every core.
        let look = tokio::spawn(async move {
            let answer = look_at(&store, &key, &segment, deep).await;
            (version, segment, answer)
        });
        async move { look.await.map_err(|error| StoreError::new(ErrorKind::Bug, format!("verifying stopped: {error}"))) }
    });
    let mut looks = futures::stream::iter(looks).buffered(options.objects_at_once.max(1));
    let mut looked = Looked::default();
    let mut seen = SeenRuns::default();
    let mut seen_in_hours: BTreeMap<Hour, Runs> = BTreeMap::new();
    while let Some(answer) = looks.next().await {
        let (version, segment, answer) = answer?;
        match answer? {
            Answer::Wrong(kind, text) => looked.findings.push(about(kind, table, &segment.path, text)),
            Answer::Fine(content) => {
                looked.rows_read += content.rows;
                let hour = hour_of(&segment);
                let twice = if rewritten.contains(&hour) {
                    let seen = seen_in_hours.entry(hour).or_default();
                    add_runs(seen, content).map(|event| format!("event {event} lies in another segment of its hour too"))
                } else {
                    let twice = seen.take(version, content);
                    twice.map(|event| format!("event {event} lies in two segments of record {version}"))
                };
                looked.findings.extend(twice.map(|text| about(FindingKind::Rows, table, &segment.path, text)));
            }
        }
    }
    Ok(looked)
}

async fn look_at(store: &Arc<dyn ObjectStore>, key: &Path, segment: &SegmentRef, deep: bool) -> Result<Answer, StoreError> {
    let found = match store.head(key).await {
        Ok(found) => found,
        Err(error) if classify(&error) == Outcome::NotFound => {
            return Ok(Answer::Wrong(FindingKind::Missing, "the store does not have it".to_owned()));
        }
        Err(error) => return Err(StoreError::request(format!("cannot look at {key}"), error)),
    };
    if found.size != segment.size {
        let text = format!("it has {} bytes, the log says {}", found.size, segment.size);
        return Ok(Answer::Wrong(FindingKind::Size, text));
    }
    if !deep {
        return Ok(Answer::Fine(Content::default()));
    }
    if let Err(error) = verify_object(store.as_ref(), key, segment).await {
        return wrong(FindingKind::Checksum, error);
    }
    match read_back(store, key, segment).await {
        Ok(content) => Ok(match compare(segment, &content) {
            Some(text) => Answer::Wrong(FindingKind::Rows, text),
            None => Answer::Fine(content),
        }),
        Err(error) => wrong(FindingKind::Rows, error),
    }
}

fn wrong(kind: FindingKind, error: SegmentError) -> Result<Answer, StoreError> {
    if error.kind() == ErrorKind::Corrupt {
        return Ok(Answer::Wrong(kind, report(&error)));
    }
    Err(StoreError { what: error.to_string(), kind: error.kind(), source: error.source })
}

async fn read_back(store: &Arc<dyn ObjectStore>, key: &Path, segment: &SegmentRef) -> Result<Content, SegmentError> {
    let reader = SegmentReader::open(Arc::clone(store), key.clone(), segment.size).await?;
    if reader.topic() != Some(&*segment.topic) {
        let what = format!("it is of topic {:?}, the log says {}", reader.topic(), segment.topic);
        return Err(SegmentError::corrupt(key.as_ref(), what));
    }
    // Whole events, so that every column decodes.
    let mut scan = reader.scan(Scan { projection: Projection::Events, ..Scan::default() });
    let mut content = Content::default();
    while let Some(batch) = scan.next().await? {
        take_batch(&mut content, segment, &batch).map_err(|what| SegmentError::corrupt(key.as_ref(), what))?;
    }
    Ok(content)
}

fn take_batch(content: &mut Content, segment: &SegmentRef, batch: &EventBatch) -> Result<(), String> {
    let mut headers = Vec::new();
    for row in 0..batch.len() {
        let (partition, position, time) = batch.place(row);
        let lane = LaneId::new(Arc::clone(&segment.source), partition);
        if Window::of(time) != segment.window {
            return Err(format!("event {lane}/{position} of {time} does not belong to the hour {}", segment.window));
        }
        let runs = content.runs.entry(lane).or_default();
        let position = position.get();
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == position => *last = position,
            Some((_, last)) if *last >= position => {
                return Err(format!("partition {partition} goes from position {last} back to {position}"));
            }
            _ => runs.push((position, position)),
        }
        content.rows += 1;
        let event = batch.row(row);
        batch.headers(row, &mut headers);
        content.count(&event, &headers);
    }
    Ok(())
}

impl Content {
    fn count(&mut self, event: &EventRow<'_>, headers: &[Header<'_>]) {
        let size = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        let own: usize = headers.iter().map(|(name, value)| name.len() + size(*value)).sum();
        *self.payload_bytes.entry(event.partition).or_default() += (own + size(event.key) + size(event.value)) as u64;
        self.null_keys += u64::from(event.key.is_none());
        self.null_values += u64::from(event.value.is_none());
        let (first, last) = self.times.unwrap_or((event.time, event.time));
        self.times = Some((first.min(event.time), last.max(event.time)));
    }

    /// What the log would say of this content besides lanes, as it stores it: times are rounded outwards.
    fn stats_of(&self, segment: &SegmentRef) -> SegmentStats {
        let times = self.times.unwrap_or(segment.times);
        let times = record::time_bounds_ms(&SegmentRef { times, ..segment.clone() });
        SegmentStats { times, null_keys: self.null_keys, null_values: self.null_values }
    }
}

/// The statistics of a whole segment in its record.
#[derive(Debug, PartialEq, Eq)]
struct SegmentStats {
    times: (i64, Option<i64>),
    null_keys: u64,
    null_values: u64,
}

fn stated(segment: &SegmentRef) -> SegmentStats {
    let times = record::time_bounds_ms(segment);
    SegmentStats { times, null_keys: segment.null_keys, null_values: segment.null_values }
}

/// What differs between a segment's content and what its record says of it.
fn compare(segment: &SegmentRef, content: &Content) -> Option<String> {
    let rows = |runs: &Vec<Run>| runs.iter().map(|(first, last)| last - first + 1).sum::<u64>();
    let ends = |runs: &Vec<Run>| Some((runs.first()?.0, runs.last()?.1));
    for said in &segment.lanes {
        let lane = LaneId::new(Arc::clone(&segment.source), said.partition);
        let found = content.runs.get(&lane).and_then(|runs| Some((rows(runs), ends(runs)?)));
        if found != Some((said.rows, (said.first.get(), said.last.get()))) {
            return Some(format!(
                "of lane {lane} the log says {} rows in {}-{}, it holds {found:?}",
                said.rows, said.first, said.last
            ));
        }
    }
    if content.rows != segment.rows {
        return Some(format!("it holds {} rows, the log says {}", content.rows, segment.rows));
    }
    compare_stats(segment, content)
}

/// Readers leave out segments by these, so a wrong one hides events from them.
fn compare_stats(segment: &SegmentRef, content: &Content) -> Option<String> {
    let (found, said) = (content.stats_of(segment), stated(segment));
    if found != said {
        return Some(format!("the log says {said:?}, it holds {found:?}"));
    }
    let bytes = |partition: i32| content.payload_bytes.get(&partition).copied().unwrap_or(0);
    let wrong = segment.lanes.iter().find(|lane| lane.payload_bytes != bytes(lane.partition))?;
    let (partition, said) = (wrong.partition, wrong.payload_bytes);
    Some(format!("the log says {said} payload bytes of partition {partition}, it holds {}", bytes(partition)))
}

/// By lane: first to last of each run.
type Runs = BTreeMap<LaneId, BTreeMap<u64, u64>>;

/// Positions that segments of the present record hold. Segments of different records cannot meet, since spans tile and each
/// segment lies within its record's spans, unless they were rewritten: then their hour is looked at as a whole.
#[derive(Debug, Default)]
struct SeenRuns {
    version: Option<u64>,
    runs: Runs,
}

impl SeenRuns {
    /// Adds a segment's positions; answers one that another segment of the same record holds too.
    fn take(&mut self, version: u64, content: Content) -> Option<String> {
        if self.version != Some(version) {
            self.runs.clear();
            self.version = Some(version);
        }
        add_runs(&mut self.runs, content)
    }
}

/// Adds a segment's positions; answers one that was there before.
fn add_runs(all: &mut Runs, content: Content) -> Option<String> {
    let mut twice = None;
    for (lane, runs) in content.runs {
        let seen = all.entry(lane.clone()).or_default();
        for (first, last) in runs {
            let before = seen.range(..=last).next_back();
            if let Some((from, _)) = before.filter(|(_, other)| **other >= first) {
                twice = Some(format!("{lane}/{}", first.max(*from)));
            }
            seen.insert(first, last);
        }
    }
    twice
}
