//! The thread that asks the cluster slow questions, so that the poll thread never waits: topic ids, log ends, offsets by time,
//! which topics match.
//!
//! Promises: a lane is located only while it is ours, and only if its topic still has the id by which the lane is named; a broker
//! that is away is waited for without end.
//! Never: read messages, change the assignment.

mod look;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::TopicPartitionList;
use tapedeck_common::backoff::Backoff;
use tapedeck_common::bus::{BusError, Located, ToLocate};
use tapedeck_common::clock::Clock;
use tapedeck_common::error::ErrorKind;
use tapedeck_common::position::{LaneId, Position, Span};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::{debug, info, warn};

use self::look::Blank;
use crate::config::{KafkaSettings, Start, TopicSelector};
use crate::ffi::{LogEnd, PartitionOffset, committed_metadata, describe_topics, list_offsets};
use crate::group::GroupContext;
use crate::lanes::{Ours, look_into, source_name};
use crate::poll_thread::{Command, ToPollThread};

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// A position beyond the end is asked for once more after this: a new leader may not know its end yet.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// How often the group's offsets are looked at for the marks of another archive, at most.
const WARN_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// How often it is asked where the log ends, unless the answers take long.
const LOOK_AT_ENDS_EVERY: Duration = Duration::from_secs(2);
/// How long that may take. A partition without a leader uses it up; the others are answered all the same.
const ENDS_PATIENCE: Duration = Duration::from_secs(3);

/// Answers to a request to locate lanes.
pub(crate) type LocateReply = oneshot::Sender<Result<Vec<(LaneId, Located)>, BusError>>;

/// A question for the desk.
pub(crate) enum Ask {
    /// Where can these lanes go on? With the place in the tray that the question takes until the desk picks it up.
    Locate(Vec<ToLocate>, LocateReply, OwnedSemaphorePermit),
    /// Under which names do these topics go?
    Name(Vec<Arc<str>>),
}

struct Job {
    open: Vec<ToLocate>,
    done: BTreeMap<LaneId, Located>,
    /// Lanes that stood beyond the end when they were last looked at.
    doubted: BTreeSet<LaneId>,
    reply: LocateReply,
    backoff: Backoff,
    due: Duration,
}

/// See the head of this file.
pub(crate) struct Desk {
    pub(crate) consumer: Arc<BaseConsumer<GroupContext>>,
    pub(crate) settings: KafkaSettings,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) asks: Receiver<Ask>,
    pub(crate) poll_thread: ToPollThread,
    pub(crate) ours: Ours,
    pub(crate) survey_every: Duration,
    pub(crate) topics: TopicsSeen,
}

/// Which topics appeared while we looked on: `start` is not for them, they begin at their first event.
#[derive(Debug, Default)]
pub(crate) struct TopicsSeen {
    before: Option<BTreeSet<String>>,
    later: BTreeSet<String>,
}

impl TopicsSeen {
    fn see(&mut self, all: BTreeSet<String>) {
        if let Some(before) = &self.before {
            self.later.extend(all.difference(before).cloned());
        }
        self.before.get_or_insert_default().extend(all);
    }
}

impl Desk {
    /// Answers questions until nobody can ask any more.
    pub(crate) fn run(mut self) {
        let mut cluster = None;
        let mut jobs: Vec<Job> = Vec::new();
        let mut next_survey = self.clock.monotonic();
        let mut next_ends = self.clock.monotonic();
        let (mut warned, mut next_warning) = (false, Duration::ZERO);
        loop {
            let now = self.clock.monotonic();
            if now >= next_survey {
                next_survey = now + self.survey();
            }
            if now >= next_ends {
                self.look_at_ends();
                let took = self.clock.monotonic().saturating_sub(now);
                next_ends = self.clock.monotonic() + (took * 4).max(LOOK_AT_ENDS_EVERY);
            }
            let due = jobs.iter().map(|job| job.due).fold(next_survey.min(next_ends), Duration::min);
            match self.asks.recv_timeout(due.saturating_sub(self.clock.monotonic())) {
                Ok(Ask::Locate(open, reply, place)) => {
                    drop(place);
                    if !warned && now >= next_warning {
                        warned = self.warn_of_other_archives(&open);
                        next_warning = self.clock.monotonic() + WARN_AGAIN_AFTER;
                    }
                    let backoff = Backoff::new(Duration::from_millis(250), PATIENCE);
                    jobs.push(Job { open, done: BTreeMap::new(), doubted: BTreeSet::new(), reply, backoff, due: now });
                }
                Ok(Ask::Name(topics)) => self.name(&mut cluster, &topics),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = self.clock.monotonic();
            jobs = jobs.into_iter().filter_map(|job| if job.due <= now { self.work(job, &cluster) } else { Some(job) }).collect();
        }
    }

    /// Finds the topics that match, and answers when to look again.
    fn survey(&mut self) -> Duration {
        match self.consumer.fetch_metadata(None, PATIENCE) {
            Ok(metadata) => {
                let names = metadata.topics().iter().filter(|topic| topic.error().is_none()).map(|topic| topic.name().to_owned());
                let ours: BTreeSet<String> = names.filter(|name| self.settings.selects(name)).collect();
                self.topics.see(ours.clone());
                if self.settings.topics.iter().any(|selector| matches!(selector, TopicSelector::Pattern(_))) {
                    self.poll_thread.send(Command::Subscribe(ours));
                }
                self.survey_every
            }
            Err(error) => {
                info!(%error, "the list of topics is not to be had now, trying again");
                Duration::from_secs(1)
            }
        }
    }

    /// Two archives that read by one group take each other's lanes at each rebalance, and both fall behind without a word.
    /// The offsets that the other one acknowledged carry its id. True if there was something to warn of.
    fn warn_of_other_archives(&self, lanes: &[ToLocate]) -> bool {
        if self.settings.mark.is_empty() {
            return false;
        }
        let mut list = TopicPartitionList::new();
        for lane in lanes {
            list.add_partition(&lane.topic, lane.lane.partition);
        }
        let marks = match self.consumer.committed_offsets(list, ENDS_PATIENCE) {
            Ok(committed) => committed_metadata(&committed),
            Err(error) => {
                debug!(%error, "the group's offsets are not to be had now");
                return false;
            }
        };
        let Some(other) = marks.iter().find(|mark| **mark != self.settings.mark.as_bytes()) else { return false };
        warn!(
            group = self.settings.group,
            archive_id = self.settings.mark,
            other = %String::from_utf8_lossy(other),
            "this consumer group was used by another archive; two archives need two groups, or each gets only a part of the lanes"
        );
        true
    }

    /// Asks where the bus begins and ends for all lanes of ours. A bus that does not answer is asked again later.
    fn look_at_ends(&self) {
        let lanes = look_into(&self.ours).wanted.clone();
        if lanes.is_empty() {
            return;
        }
        let asked = self.clock.now();
        let ask = |end| {
            let partitions = lanes.iter().map(|(lane, topic)| (&**topic, lane.partition));
            list_offsets(self.consumer.client(), partitions, end, ENDS_PATIENCE).map(by_partition)
        };
        let (lasts, firsts) = match ask(LogEnd::Last).and_then(|lasts| Ok((lasts, ask(LogEnd::First)?))) {
            Ok(answers) => answers,
            Err((code, text)) => {
                debug!(%code, text, "the ends of the log are not to be had now, trying again");
                return;
            }
        };
        let mut ends = Vec::with_capacity(lanes.len());
        let mut ours = look_into(&self.ours);
        for (lane, topic) in lanes {
            let place = (topic.to_string(), lane.partition);
            let (Some(first), Some(last)) = (firsts.get(&place), lasts.get(&place)) else { continue };
            if let Ok(bounds) = Span::new(*first, (*last).max(*first)) {
                ours.bounds.insert(lane.clone(), bounds);
            }
            ends.push((lane, *last));
        }
        drop(ours);
        self.poll_thread.send(Command::Ends(ends, asked));
    }

    fn name(&self, cluster: &mut Option<String>, topics: &[Arc<str>]) {
        if cluster.is_none() {
            *cluster = self.consumer.client().fetch_cluster_id(PATIENCE);
        }
        let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
        let Some(cluster) = cluster.as_deref() else {
            self.poll_thread.send(Command::Named(BTreeMap::new()));
            return;
        };
        let named = match describe_topics(self.consumer.client(), &names, PATIENCE) {
            Ok(described) => described.into_iter().map(|one| (one.name, one.id.map(|id| source_name(cluster, &id)))).collect(),
            Err((code, text)) => {
                info!(%code, text, "topic ids are not to be had now, trying again");
                BTreeMap::new()
            }
        };
        self.poll_thread.send(Command::Named(named));
    }

    /// Looks at a job's open lanes once, at all together. Answers the job if it must go on.
    fn work(&self, mut job: Job, cluster: &Option<String>) -> Option<Job> {
        let mut vanished = Vec::new();
        let mut later: Option<String> = None;
        let mut fresh = Vec::new();
        let open: Vec<ToLocate> = std::mem::take(&mut job.open).into_iter().filter(|lane| self.is_ours(&lane.lane)).collect();
        for (lane, looked) in self.look(open) {
            match looked {
                Ok(Located::Beyond { .. }) if job.doubted.insert(lane.lane.clone()) => {
                    later = Some(format!("{} stands beyond the end of topic {}", lane.lane, lane.topic));
                    job.open.push(lane);
                }
                Ok(located) => fresh.push((lane, located)),
                Err(Blank::Vanished) => vanished.push(lane.lane),
                Err(Blank::Refused(why)) => {
                    // The asker may have gone away; then nobody wants to know.
                    drop(job.reply.send(Err(BusError::new(ErrorKind::Invalid, why))));
                    return None;
                }
                Err(Blank::Later(why)) => {
                    later = Some(why);
                    job.open.push(lane);
                }
            }
        }
        self.note_epochs(&fresh);
        self.confirm_names(&mut job, fresh, &mut vanished, &mut later, cluster);
        if !vanished.is_empty() {
            self.poll_thread.send(Command::Vanished(vanished));
        }
        if job.open.is_empty() {
            drop(job.reply.send(Ok(job.done.into_iter().collect())));
            return None;
        }
        let wait = job.backoff.next_wait(1.0);
        if let Some(why) = later
            && job.backoff.attempts() > 2
        {
            warn!(why, lanes = job.open.len(), "lanes can not be located now, trying again");
        }
        job.due = self.clock.monotonic() + wait.max(if job.doubted.is_empty() { Duration::ZERO } else { SECOND_LOOK });
        (!job.reply.is_closed()).then_some(job)
    }

    /// Log ends were asked for by name. They count only if the name still means the topic that the lane is named after.
    fn confirm_names(
        &self,
        job: &mut Job,
        fresh: Vec<(ToLocate, Located)>,
        vanished: &mut Vec<LaneId>,
        later: &mut Option<String>,
        cluster: &Option<String>,
    ) {
        if fresh.is_empty() {
            return;
        }
        let topics: BTreeSet<&str> = fresh.iter().map(|(lane, _)| &*lane.topic).collect();
        let topics: Vec<&str> = topics.into_iter().collect();
        let described: BTreeMap<String, (Option<Arc<str>>, usize)> =
            match (describe_topics(self.consumer.client(), &topics, PATIENCE), cluster) {
                (Ok(described), Some(cluster)) => {
                    let source = |id: Result<String, _>| id.ok().map(|id| source_name(cluster, &id));
                    described.into_iter().map(|one| (one.name, (source(one.id), one.partitions))).collect()
                }
                (Err((_, text)), _) => {
                    *later = Some(text);
                    BTreeMap::new()
                }
                (_, None) => BTreeMap::new(),
            };
        for (lane, located) in fresh {
            match described.get(&*lane.topic) {
                Some((Some(source), partitions)) if *source == lane.lane.source => {
                    match self.others_that_begin(&lane, *partitions, &job.done) {
                        Ok(others) => {
                            job.done.extend(others);
                            job.done.insert(lane.lane, located);
                        }
                        Err(why) => {
                            *later = Some(why);
                            job.open.push(lane);
                        }
                    }
                }
                Some(_) => vanished.push(lane.lane),
                None => job.open.push(lane),
            }
        }
    }

    /// The topic's other lanes, where this one is the first of a topic that does not begin at its earliest event.
    /// One that vanished meanwhile, or may not be asked about, is left to whoever comes to read it.
    fn others_that_begin(
        &self,
        lane: &ToLocate,
        partitions: usize,
        done: &BTreeMap<LaneId, Located>,
    ) -> Result<Vec<(LaneId, Located)>, String> {
        let is_first = lane.log.is_none() && self.start_counts_for(lane);
        let is_begun = |source: &Arc<str>| done.keys().any(|done| done.source == *source);
        if !is_first || is_begun(&lane.lane.source) {
            return Ok(Vec::new());
        }
        let partitions = (0..partitions as i32).filter(|partition| *partition != lane.lane.partition);
        let other = |partition| ToLocate { lane: LaneId::new(Arc::clone(&lane.lane.source), partition), ..lane.clone() };
        let mut others = Vec::new();
        for (other, looked) in self.look(partitions.map(other).collect()) {
            match looked {
                Ok(located) => others.push((other.lane, located)),
                Err(Blank::Later(why)) => return Err(why),
                Err(Blank::Vanished | Blank::Refused(_)) => {}
            }
        }
        Ok(others)
    }

    /// True if the configured start is for this lane: its topic was not there before, and `start` is not the earliest event.
    fn start_counts_for(&self, lane: &ToLocate) -> bool {
        self.settings.start != Start::Earliest && !lane.topic_known && !self.topics.later.contains(&*lane.topic)
    }

    fn is_ours(&self, lane: &LaneId) -> bool {
        look_into(&self.ours).wanted.contains_key(lane)
    }
}

/// Answers that are offsets; a partition that has none now is left out.
fn by_partition(offsets: Vec<PartitionOffset>) -> BTreeMap<(String, i32), Position> {
    let known = offsets.into_iter().filter_map(|one| Some(((one.topic, one.partition), Position::from_i64(one.offset.ok()?)?)));
    known.collect()
}
