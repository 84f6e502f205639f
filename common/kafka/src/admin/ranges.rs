//! Which topics are there now, and where each of their partitions begins and ends: what an archive is held against.
//!
//! Promises: a topic goes by its id, so that one which was made anew is another one; ends are those of a `read_committed` reader;
//! all partitions of a leader are asked for in one request. Never: reads an event.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::error::RDKafkaErrorCode;
use tapedeck_common::bus::BusError;
use tapedeck_common::error::ErrorKind;
use tapedeck_common::position::{LaneId, Position};

use super::{Cluster, PATIENCE, is_unknown, kind_of};
use crate::config::KafkaSettings;
use crate::ffi::{LogEnd, PartitionOffset, describe_topics, list_offsets};
use crate::lanes::{source_name, source_prefix};

/// One request covers all partitions, so it gets longer than a question about one.
const RANGES_PATIENCE: Duration = Duration::from_secs(30);

/// A topic that is there now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicThere {
    /// Its name.
    pub name: String,
    /// Its full name as a source: `kafka/<cluster>/<topic id>/0`.
    pub source: Arc<str>,
    /// How many partitions.
    pub partitions: i32,
}

impl TopicThere {
    /// Its lanes, in order.
    pub fn lanes(&self) -> impl Iterator<Item = LaneId> {
        (0..self.partitions).map(|partition| LaneId::new(Arc::clone(&self.source), partition))
    }
}

/// What a look at the list of topics shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicsThere {
    /// The cluster's id.
    pub cluster: String,
    /// Topics that the settings select, by name.
    pub selected: Vec<TopicThere>,
    /// The names of all topics that we may see.
    pub names: BTreeSet<String>,
}

impl TopicsThere {
    /// What the full names of all sources of this cluster begin with.
    pub fn source_prefix(&self) -> String {
        source_prefix(&self.cluster)
    }
}

/// One end of each partition. A partition that cannot say now has the reason.
pub type Ends = BTreeMap<LaneId, Result<Position, String>>;

impl Cluster {
    /// Looks which topics there are, and which of them the settings select.
    pub fn topics_there(&self, settings: &KafkaSettings) -> Result<TopicsThere, BusError> {
        let metadata = self.consumer.fetch_metadata(None, PATIENCE).map_err(|error| self.failed("the list of topics", &error))?;
        let all = metadata.topics().iter().filter(|topic| topic.error().is_none());
        let partitions: BTreeMap<String, i32> =
            all.map(|topic| (topic.name().to_owned(), topic.partitions().len() as i32)).collect();
        let names: Vec<&str> = partitions.keys().map(String::as_str).filter(|name| settings.selects(name)).collect();
        let cluster = self.id()?;
        let mut selected = Vec::with_capacity(names.len());
        if !names.is_empty() {
            let described = describe_topics(self.consumer.client(), &names, PATIENCE);
            for one in described.map_err(|(code, text)| self.refused_as("topic ids", code, &text))? {
                let source = match one.id {
                    Ok(id) => source_name(&cluster, &id),
                    // It went away between the two questions.
                    Err(code) if is_unknown(code) => continue,
                    Err(code) => return Err(self.refused(&format!("topic {}", one.name), code)),
                };
                let partitions = partitions.get(&one.name).copied().unwrap_or(0);
                selected.push(TopicThere { name: one.name, source, partitions });
            }
        }
        selected.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(TopicsThere { cluster, selected, names: partitions.into_keys().collect() })
    }

    /// The first position that each partition still has.
    pub fn beginnings(&self, topics: &[TopicThere]) -> Result<Ends, BusError> {
        self.one_end(topics, LogEnd::First)
    }

    /// The position after the last event of each partition that a `read_committed` reader may see now.
    pub fn ends(&self, topics: &[TopicThere]) -> Result<Ends, BusError> {
        self.one_end(topics, LogEnd::Last)
    }

    fn one_end(&self, topics: &[TopicThere], end: LogEnd) -> Result<Ends, BusError> {
        let partitions = topics.iter().flat_map(|topic| (0..topic.partitions).map(|partition| (topic.name.as_str(), partition)));
        let answers = list_offsets(self.consumer.client(), partitions, end, RANGES_PATIENCE)
            .map_err(|(code, text)| self.refused_as("the ranges of partitions", code, &text))?;
        let answers: BTreeMap<(String, i32), _> =
            answers.into_iter().map(|one| ((one.topic.clone(), one.partition), position(one))).collect();
        let mut ends = Ends::new();
        for topic in topics {
            for lane in topic.lanes() {
                let answer = answers.get(&(topic.name.clone(), lane.partition)).cloned();
                ends.insert(lane, answer.unwrap_or_else(|| Err("the broker did not answer for it".to_owned())));
            }
        }
        Ok(ends)
    }

    fn refused_as(&self, what: &str, code: RDKafkaErrorCode, text: &str) -> BusError {
        match kind_of(code) {
            ErrorKind::Unavailable => self.refused(what, code),
            kind => BusError::new(kind, format!("{what}: {code}: {text}")),
        }
    }
}

fn position(answer: PartitionOffset) -> Result<Position, String> {
    let offset = answer.offset.map_err(|code| code.to_string())?;
    Position::from_i64(offset).ok_or_else(|| format!("the broker says {offset}"))
}
