//! What tools ask of a cluster: is it there, may we, which topics, how do they look; making a topic; reading one back.
//!
//! Promises: every question has a time limit; a refusal names the topic and the right that is missing; reading back sees what a
//! `read_committed` consumer sees between two ends, once each, and commits nothing.
//! Never: change anything but by [`Cluster::create_topic`].

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tapedeck_common::bus::BusError;
use tapedeck_common::error::ErrorKind;
use tapedeck_common::position::{Position, Span};
use tapedeck_common::time::Timestamp;

use crate::config::{ClusterSettings, KafkaSettings, TopicSelector};
use crate::ffi::{RawMessage, ReadQueue, StampedBy, describe_topics};
use crate::group::PlainContext;
use crate::lanes::source_name;
use crate::park::wait_for;

mod ranges;

pub use ranges::{Ends, TopicThere, TopicsThere};

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a coordinator that is on its way is asked again, and after which pause: ten seconds of them.
const COORDINATOR_LOOKS: u32 = 40;
const COORDINATOR_PAUSE: Duration = Duration::from_millis(250);

/// A topic as the cluster describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub name: String,
    /// Its full name as a source: `kafka/<cluster>/<topic id>/0`.
    pub source: Arc<str>,
    /// How many partitions.
    pub partitions: i32,
    /// How many replicas each has.
    pub replication: i32,
    /// Its settings, the broker's defaults included.
    pub settings: BTreeMap<String, String>,
}

/// How making a topic ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It was made.
    New,
    /// It was there before; nothing was changed.
    Existed,
}

/// What a check against the running cluster found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnlineReport {
    /// The cluster's id.
    pub cluster: String,
    /// Brokers that answer or are known.
    pub brokers: usize,
    /// Topics that the settings select now, with their partitions.
    pub topics: BTreeMap<String, i32>,
    /// Topics that are named but do not exist yet. They are read once they appear.
    pub missing: Vec<String>,
}

/// A connection for questions. Its calls wait: not to be used on an async thread.
pub struct Cluster {
    consumer: Arc<BaseConsumer<PlainContext>>,
    admin: AdminClient<PlainContext>,
    brokers: String,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("brokers", &self.brokers).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Prepares a connection; whether anybody answers is learned by asking.
    pub fn open(settings: &ClusterSettings) -> Result<Self, BusError> {
        let config = settings.reader()?;
        let invalid =
            |error: KafkaError| BusError::new(ErrorKind::Invalid, format!("the Kafka client refuses its settings: {error}"));
        let consumer = Arc::new(config.create_with_context(PlainContext).map_err(invalid)?);
        let admin = config.create_with_context(PlainContext).map_err(invalid)?;
        Ok(Self { consumer, admin, brokers: settings.brokers.join(",") })
    }

    /// The cluster's id.
    pub fn id(&self) -> Result<String, BusError> {
        let id = self.consumer.client().fetch_cluster_id(PATIENCE);
        id.ok_or_else(|| BusError::new(ErrorKind::Unavailable, format!("no Kafka broker answers at {}", self.brokers)))
    }

    /// All topics with their numbers of partitions.
    pub fn topics(&self) -> Result<BTreeMap<String, i32>, BusError> {
        let metadata = self.consumer.fetch_metadata(None, PATIENCE).map_err(|error| self.failed("the list of topics", &error))?;
        let known = metadata.topics().iter().filter(|topic| topic.error().is_none());
        Ok(known.map(|topic| (topic.name().to_owned(), topic.partitions().len() as i32)).collect())
    }

    /// One topic; `None` if there is none of that name.
    pub fn topic(&self, name: &str) -> Result<Option<TopicInfo>, BusError> {
        let what = format!("topic {name}");
        let metadata = self.consumer.fetch_metadata(Some(name), PATIENCE).map_err(|error| self.failed(&what, &error))?;
        let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == name) else { return Ok(None) };
        if let Some(code) = topic.error() {
            let code = RDKafkaErrorCode::from(code);
            return if is_unknown(code) { Ok(None) } else { Err(self.refused(&what, code)) };
        }
        let described = describe_topics(self.consumer.client(), &[name], PATIENCE);
        let described = described.map_err(|(code, text)| BusError::new(kind_of(code), format!("{what}: {code}: {text}")))?;
        let Some(Ok(id)) = described.into_iter().find(|one| one.name == name).map(|one| one.id) else { return Ok(None) };
        let partitions = topic.partitions();
        Ok(Some(TopicInfo {
            name: name.to_owned(),
            source: source_name(&self.id()?, &id),
            partitions: partitions.len() as i32,
            replication: partitions.first().map_or(0, |partition| partition.replicas().len() as i32),
            settings: self.topic_settings(name)?,
        }))
    }

    fn topic_settings(&self, name: &str) -> Result<BTreeMap<String, String>, BusError> {
        let what = format!("the settings of topic {name}");
        let resource = ResourceSpecifier::Topic(name);
        let answers =
            wait_for(self.admin.describe_configs([&resource], &options())).map_err(|error| self.failed(&what, &error))?;
        let mut settings = BTreeMap::new();
        for answer in answers {
            let resource = answer.map_err(|code| self.refused(&what, code))?;
            settings.extend(resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))));
        }
        Ok(settings)
    }

    /// Makes a topic. `replication` below 1 leaves it to the broker.
    pub fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        replication: i32,
        settings: &BTreeMap<String, String>,
    ) -> Result<Created, BusError> {
        let what = format!("making topic {name}");
        let replication = if replication < 1 { -1 } else { replication };
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replication));
        for (setting, value) in settings {
            topic = topic.set(setting, value);
        }
        let answers = wait_for(self.admin.create_topics([&topic], &options())).map_err(|error| self.failed(&what, &error))?;
        for answer in answers {
            match answer {
                Ok(_) => {}
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => return Ok(Created::Existed),
                Err((_, code)) => return Err(self.refused(&what, code)),
            }
        }
        Ok(Created::New)
    }

    /// What a partition holds for a `read_committed` reader: from the log's start to its last stable offset.
    pub fn watermarks(&self, topic: &str, partition: i32) -> Result<Span, BusError> {
        let what = format!("topic {topic} partition {partition}");
        let (low, high) =
            self.consumer.fetch_watermarks(topic, partition, PATIENCE).map_err(|error| self.failed(&what, &error))?;
        let low = Position::from_i64(low).unwrap_or_default();
        let high = Position::from_i64(high).unwrap_or_default().max(low);
        Span::new(low, high).map_err(|error| BusError::new(ErrorKind::Bug, error.to_string()))
    }

    /// Reads spans of a topic's partitions back and shows every event to `visit`, until all are read or it breaks.
    /// Fails if nothing comes for `patience`.
    pub fn read_back(
        &self,
        topic: &str,
        spans: &BTreeMap<i32, Span>,
        patience: Duration,
        mut visit: impl FnMut(&SeenEvent<'_>) -> ControlFlow<()>,
    ) -> Result<(), BusError> {
        let mut open: BTreeMap<i32, Span> =
            spans.iter().filter(|(_, span)| !span.is_empty()).map(|(partition, span)| (*partition, *span)).collect();
        let queue = ReadQueue::new(&self.consumer).ok_or_else(|| BusError::new(ErrorKind::Bug, "a reader has a queue"))?;
        let mut list = TopicPartitionList::new();
        for (partition, span) in &open {
            queue.forward(topic, *partition);
            let added = list.add_partition_offset(topic, *partition, Offset::Offset(span.from().as_i64()));
            added.map_err(|error| self.failed(topic, &error))?;
        }
        self.consumer.assign(&list).map_err(|error| self.failed(topic, &error))?;
        for partition in open.keys() {
            queue.forward(topic, *partition);
        }
        let mut result = Ok(());
        while !open.is_empty() && result.is_ok() {
            let taken = queue.read(patience, &mut |message| match self.visited(topic, message, &mut open, &mut visit) {
                Ok(flow) => flow,
                Err(error) => {
                    result = Err(error);
                    ControlFlow::Break(())
                }
            });
            drop(self.consumer.poll(Duration::ZERO));
            if taken == 0 {
                let waiting: Vec<_> = open.keys().collect();
                result =
                    Err(BusError::new(ErrorKind::Unavailable, format!("topic {topic}: nothing came of partitions {waiting:?}")));
            }
        }
        self.consumer.unassign().map_err(|error| self.failed(topic, &error))?;
        result
    }

    fn visited(
        &self,
        topic: &str,
        message: &RawMessage<'_>,
        open: &mut BTreeMap<i32, Span>,
        visit: &mut impl FnMut(&SeenEvent<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, BusError> {
        let partition = message.partition();
        let Some(span) = open.get(&partition).copied() else { return Ok(ControlFlow::Continue(())) };
        let at = Position::from_i64(message.offset()).unwrap_or_default();
        match message.error() {
            Some(RDKafkaErrorCode::PartitionEOF) if at >= span.until() => {
                open.remove(&partition);
            }
            Some(RDKafkaErrorCode::PartitionEOF) => {}
            Some(code) => {
                return Err(self.refused(&format!("topic {topic} partition {partition} at {at}: {}", message.error_text()), code));
            }
            None => {
                if at.next() >= span.until() {
                    open.remove(&partition);
                }
                if span.contains(at) && visit(&SeenEvent { message }).is_break() {
                    open.clear();
                }
            }
        }
        Ok(if open.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn failed(&self, what: &str, error: &KafkaError) -> BusError {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
        self.refused(what, code)
    }

    fn refused(&self, what: &str, code: RDKafkaErrorCode) -> BusError {
        let kind = kind_of(code);
        let hint = if kind == ErrorKind::Unavailable { format!(" (brokers {})", self.brokers) } else { String::new() };
        BusError::new(kind, format!("{what}: {code}{hint}"))
    }
}

/// An event that is being read back, lent for the length of one visit.
pub struct SeenEvent<'a> {
    message: &'a RawMessage<'a>,
}

impl SeenEvent<'_> {
    /// Its partition.
    pub fn partition(&self) -> i32 {
        self.message.partition()
    }

    /// Its offset.
    pub fn position(&self) -> Position {
        Position::from_i64(self.message.offset()).unwrap_or_default()
    }

    /// Its time, and whether the broker set it; `None` if the bus has none.
    pub fn time(&self) -> Option<(Timestamp, bool)> {
        let (millis, by) = self.message.time()?;
        Some((Timestamp::from_millis(millis)?, by == StampedBy::Broker))
    }

    /// Its key; null and empty are different.
    pub fn key(&self) -> Option<&[u8]> {
        self.message.key()
    }

    /// Its value; null and empty are different.
    pub fn value(&self) -> Option<&[u8]> {
        self.message.value()
    }

    /// Its headers, in order; names as raw bytes.
    pub fn headers(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.message.headers()
    }
}

/// Checks a source against the running cluster: brokers reachable, topics there, rights given. Waits for its answers.
pub fn check_online(settings: &KafkaSettings) -> Result<OnlineReport, BusError> {
    settings.check()?;
    let cluster = Cluster::open(&settings.cluster)?;
    let metadata =
        cluster.consumer.fetch_metadata(None, PATIENCE).map_err(|error| cluster.failed("the list of topics", &error))?;
    let all = metadata.topics().iter().filter(|topic| topic.error().is_none());
    let topics: BTreeMap<String, i32> = all
        .filter(|topic| settings.selects(topic.name()))
        .map(|topic| (topic.name().to_owned(), topic.partitions().len() as i32))
        .collect();
    let mut missing = Vec::new();
    for selector in &settings.topics {
        let TopicSelector::Name(name) = selector else { continue };
        // A topic that we may not see is left out of the list, so each named one is asked for by itself.
        if !topics.contains_key(name) && cluster.topic(name)?.is_none() {
            missing.push(name.clone());
        }
    }
    for (topic, partitions) in &topics {
        if *partitions > 0 {
            // Asking for the ends takes the same right as reading.
            cluster.watermarks(topic, 0)?;
        }
    }
    cluster.check_group(&settings.group)?;
    Ok(OnlineReport { cluster: cluster.id()?, brokers: metadata.brokers().len(), topics, missing })
}

impl Cluster {
    /// A cluster that has just started, or moves a coordinator, reads the groups' offsets first: that is waited for.
    fn check_group(&self, group: &str) -> Result<(), BusError> {
        let mut answer = self.consumer.fetch_group_list(Some(group), PATIENCE);
        for _ in 0..COORDINATOR_LOOKS {
            let code = answer.as_ref().err().and_then(KafkaError::rdkafka_error_code);
            if !code.is_some_and(is_coordinator_on_its_way) {
                break;
            }
            drop(self.consumer.poll(COORDINATOR_PAUSE));
            answer = self.consumer.fetch_group_list(Some(group), PATIENCE);
        }
        answer.map(drop).map_err(|error| self.failed(&format!("group {group}"), &error))
    }
}

fn is_unknown(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(code, Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition)
}

fn is_coordinator_on_its_way(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(code, Code::CoordinatorLoadInProgress | Code::CoordinatorNotAvailable | Code::NotCoordinator)
}

fn kind_of(code: RDKafkaErrorCode) -> ErrorKind {
    use RDKafkaErrorCode as Code;
    match code {
        Code::OperationTimedOut
        | Code::MessageTimedOut
        | Code::RequestTimedOut
        | Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::CoordinatorLoadInProgress
        | Code::CoordinatorNotAvailable
        | Code::NotCoordinator
        | Code::NetworkException
        | Code::Fail => ErrorKind::Unavailable,
        _ => ErrorKind::Invalid,
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE))
}
