//! How lanes that came to us begin: what does the log say, what does the bus still have, then resume there.
//!
//! Promises: nothing is read before the log was; a start and a gap are in the log before the lane goes on; answers about an
//! earlier assignment of a lane are passed over. All of it goes on beside the loop: a store or a bus that is away delays these
//! lanes, not the others.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt as _;
use tapedeck_common::bus::{Located, ToLocate};
use tapedeck_common::commit::{Advance, Checkpoint, CommitError, Record};
use tapedeck_common::error::{ErrorKind, report};
use tapedeck_common::position::{LaneId, Position, Span};
use tracing::error;

use super::{Done, Pipeline, PipelineError, Tables};
use crate::table::{SharedLog, Table};

/// What happens where the bus lost events before they were archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnGap {
    /// The gap is written into the log, and the lane goes on behind it.
    #[default]
    Record,
    /// The lane stands still until somebody decides; meanwhile the bus may lose more.
    Halt,
}

/// A lane whose log is to be read, in one of its assignments.
struct Wanted {
    lane: LaneId,
    topic: Arc<str>,
    assignment: u64,
}

/// Starts and gaps of one table, on their way into its log.
struct Writing {
    log: SharedLog,
    record: Record,
    lanes: Vec<(LaneId, u64)>,
}

/// What the log says about a lane.
pub(super) struct LookedUp {
    lane: LaneId,
    topic: Arc<str>,
    assignment: u64,
    log: Option<Position>,
    topic_known: bool,
    table: Arc<Checkpoint>,
    table_log: SharedLog,
}

impl Pipeline {
    /// Reads the logs of these lanes' tables beside the loop. A store that is away delays them, not the other lanes.
    pub(super) fn look_up(&mut self, lanes: Vec<LaneId>) {
        let mut by_table: BTreeMap<Arc<str>, Vec<Wanted>> = BTreeMap::new();
        for lane in lanes {
            let Some(owned) = self.lanes.get(&lane) else { continue };
            let wanted = Wanted { lane, topic: Arc::clone(&owned.topic), assignment: owned.assignment };
            by_table.entry(self.shared.tables.table_of(&owned.topic)).or_default().push(wanted);
        }
        for lanes in by_table.into_values() {
            let tables = Arc::clone(&self.shared.tables);
            let asked = lanes.iter().map(|wanted| (wanted.lane.clone(), wanted.assignment)).collect();
            self.background.spawn(async move {
                let mut found = Vec::new();
                let result = look_up_table(&*tables, lanes, &mut found).await;
                Done::LookedUp(asked, result.map(|()| found))
            });
        }
    }

    /// A table whose log is damaged stops its own lanes, and nobody else's.
    pub(super) fn looked_up(
        &mut self,
        asked: Vec<(LaneId, u64)>,
        found: Result<Vec<LookedUp>, CommitError>,
    ) -> Result<(), PipelineError> {
        match found {
            Ok(found) => self.locate(found),
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                error!(error = %report(&error), lanes = asked.len(), "the log of a table is damaged, its lanes are halted");
                for (lane, assignment) in asked {
                    if self.is_ours(&lane, assignment) {
                        self.halt(&lane);
                    }
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Asks the bus about lanes whose log was read, beside the loop. A bus that does not answer delays them, not the other lanes.
    fn locate(&mut self, mut found: Vec<LookedUp>) {
        found.retain(|lane| self.is_ours(&lane.lane, lane.assignment));
        let questions = found.iter().map(|known| ToLocate {
            lane: known.lane.clone(),
            topic: Arc::clone(&known.topic),
            log: known.log,
            topic_known: known.topic_known,
            table: Arc::clone(&known.table),
        });
        let answers = self.consumer.locate(questions.collect());
        self.background.spawn(answers.map(move |answers| Done::Located(found, answers)));
    }

    /// Compares the log with the bus. Lanes that can go on do; starts and gaps are written first, then looked up again.
    pub(super) async fn located(
        &mut self,
        mut found: Vec<LookedUp>,
        answers: Vec<(LaneId, Located)>,
    ) -> Result<(), PipelineError> {
        found.retain(|lane| self.is_ours(&lane.lane, lane.assignment));
        let mut answers: BTreeMap<_, _> = answers.into_iter().collect();
        let (mut resume, mut write) = (Vec::new(), Vec::new());
        for known in found {
            match answers.remove(&known.lane) {
                Some(Located::Continue(at)) => resume.push((known, at)),
                Some(Located::Start(at)) => write.push((start_of(&known.lane, at), known)),
                Some(Located::Gap(span, cause)) if self.shared.on_gap == OnGap::Halt => {
                    error!(lane = %known.lane, topic = %known.topic, %span, cause = cause.as_str(),
                        "events are lost on the bus; this lane is halted, on_gap: record would write the gap into the log and go on");
                    self.halt(&known.lane);
                }
                Some(Located::Gap(span, cause)) => {
                    error!(lane = %known.lane, topic = %known.topic, %span, cause = cause.as_str(), "events are lost on the bus, writing the gap into the log");
                    self.metrics.gap(&known.topic, cause, span.len());
                    write.push((
                        Advance { lane: known.lane.clone(), expected: known.log, span, rows: 0, skipped: 0, gap: Some(cause) },
                        known,
                    ));
                }
                Some(Located::Beyond { log, bus_end }) => {
                    error!(lane = %known.lane, topic = %known.topic, %log, %bus_end,
                        "the archive is ahead of the bus: it lost events, or it is another bus; this lane is halted, nothing is overwritten");
                    self.halt(&known.lane);
                }
                None => {}
            }
        }
        let begun = answers.into_iter().filter_map(|(lane, located)| match located {
            Located::Start(at) => Some(start_of(&lane, at)),
            _ => None,
        });
        self.write(write, begun.collect());
        self.resume(resume).await
    }

    /// Says of a lane that it does not go on, and why is logged: it is shown as halted until it is assigned again.
    pub(super) fn halt(&mut self, lane: &LaneId) {
        if let Some(owned) = self.lanes.get_mut(lane) {
            owned.halted = true;
            self.metrics.halted(&owned.topic);
        }
    }

    async fn resume(&mut self, lanes: Vec<(LookedUp, Position)>) -> Result<(), PipelineError> {
        if lanes.is_empty() {
            return Ok(());
        }
        let mut again = Vec::new();
        for (known, _) in &lanes {
            let name = self.shared.tables.table_of(&known.topic);
            let new = || Table::new(Arc::clone(&name), Arc::clone(&known.table_log), &self.shared.budget);
            let table = self.tables.entry(Arc::clone(&name)).or_insert_with(new);
            if table.batcher.open().is_some_and(|open| open.touches(&known.lane)) {
                // The lane went and came back while its events wait here: they would be read into the same batch once more.
                again.extend(table.abandon());
            }
        }
        for (known, at) in &lanes {
            if let Some(table) = self.tables.get_mut(&self.shared.tables.table_of(&known.topic)) {
                table.resume(&known.lane, *at);
            }
        }
        self.look_up(again);
        let at = lanes.into_iter().map(|(known, at)| (known.lane, at)).collect();
        Ok(self.consumer.resume(at).await?)
    }

    /// Commits starts and gaps, one record per table, beside the loop. `others` are lanes of topics that are met for the first
    /// time and that nobody gave to us: they begin in the same record as ours, so that no other process begins them later.
    fn write(&mut self, steps: Vec<(Advance, LookedUp)>, others: Vec<Advance>) {
        let mut by_table: BTreeMap<Arc<str>, Writing> = BTreeMap::new();
        for (advance, known) in steps {
            let entry = by_table.entry(self.shared.tables.table_of(&known.topic));
            let log = || Writing { log: Arc::clone(&known.table_log), record: Record::default(), lanes: Vec::new() };
            let writing = entry.or_insert_with(log);
            writing.record.advances.push(advance);
            writing.lanes.push((known.lane, known.assignment));
        }
        for other in others {
            let begins = |step: &Advance| step.expected.is_none() && step.lane.source == other.lane.source;
            if let Some(writing) = by_table.values_mut().find(|writing| writing.record.advances.iter().any(begins)) {
                writing.record.advances.push(other);
            }
        }
        for Writing { log, record, lanes } in by_table.into_values() {
            self.background.spawn(async move {
                // Whether it was committed or somebody else was first: the log is looked up again, and that answers both.
                let result = log.lock().await.append(&record).await.map(drop);
                Done::Written(lanes, result)
            });
        }
    }
}

fn start_of(lane: &LaneId, at: Position) -> Advance {
    Advance { lane: lane.clone(), expected: None, span: Span::empty_at(at), rows: 0, skipped: 0, gap: None }
}

async fn look_up_table(tables: &dyn Tables, lanes: Vec<Wanted>, found: &mut Vec<LookedUp>) -> Result<(), CommitError> {
    for Wanted { lane, topic, assignment } in lanes {
        let table_log = tables.open(&topic).await?;
        found.push(LookedUp { lane, topic, assignment, log: None, topic_known: false, table: Arc::default(), table_log });
    }
    let Some(log) = found.first().map(|first| Arc::clone(&first.table_log)) else { return Ok(()) };
    let checkpoint = Arc::new(log.lock().await.checkpoint().await?);
    for known in found {
        known.log = checkpoint.get(&known.lane).copied();
        known.table = Arc::clone(&checkpoint);
        // A topic that was made again has a new source; in a table of its own any lane tells that its name is known.
        let own_table = !tables.is_shared(&known.topic);
        let in_the_log = checkpoint.keys().any(|lane| own_table || lane.source == known.lane.source);
        known.topic_known = in_the_log || !own_table && tables.met_before(&known.topic, &known.lane.source).await;
    }
    Ok(())
}
