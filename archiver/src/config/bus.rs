//! The buses of sources, checked: what is written of each, and how two sources of one file get on with each other.

use std::time::Duration;

use tapedeck_common::bus::{Replayed, Start};
use tapedeck_common::time::Timestamp;
use tapedeck_daemon::units::moment;
use tapedeck_kafka::config::{ClusterSettings, GroupProtocol, KafkaSettings, Membership, TopicSelector};
use tapedeck_rabbitmq::config::{
    Credentials, Inflow, OnRecreated, Place, Prefetch, QueueSettings, RabbitSettings, StreamSettings,
};

use super::raw::{RawDeliveryLimit, RawGroupProtocol, RawKafka, RawOnRecreated, RawRabbit, RawReplayed};
use super::{BadConfig, bad};

/// The default of a stream's `prefetch.events`: two reads of usual size are taken in while two more are on their way.
const STREAM_EVENTS_DEFAULT: u16 = 1_000;
/// That of a queue: a batch may hold half of it, so as much as AMQP can say.
const QUEUE_EVENTS_DEFAULT: u16 = u16::MAX;
/// A broker takes back what it handed over and was not acknowledged for half an hour. A batch is stored and committed in far less
/// than the other half of that.
const SEAL_AGE_MAX: Duration = Duration::from_secs(15 * 60);

/// A bus, and what is read of it.
#[derive(Debug, Clone)]
pub enum BusSettings {
    /// Topics of a Kafka cluster.
    Kafka(KafkaSettings),
    /// A stream or a queue of a RabbitMQ cluster.
    Rabbit(RabbitSettings),
}

impl BusSettings {
    /// The settings, if it is Kafka.
    pub const fn kafka(&self) -> Option<&KafkaSettings> {
        match self {
            Self::Kafka(kafka) => Some(kafka),
            Self::Rabbit(_) => None,
        }
    }

    /// True if events of this topic come from there.
    pub fn selects(&self, topic: &str) -> bool {
        match self {
            Self::Kafka(kafka) => kafka.selects(topic),
            Self::Rabbit(rabbit) => rabbit.inflow.name() == topic,
        }
    }

    /// True if the group would take these two for one static member.
    pub(super) fn is_one_member_with(&self, other: &Self) -> bool {
        let (Some(one), Some(other)) = (self.kafka(), other.kafka()) else { return false };
        let name = |kafka: &KafkaSettings| Some((kafka.membership.instance.clone()?, kafka.group.clone()));
        name(one).is_some() && name(one) == name(other) && one.cluster.brokers == other.cluster.brokers
    }

    /// What is allowed and yet may surprise, beside the earlier sources of the file.
    pub(super) fn warnings<'s>(
        &self,
        path: &str,
        mut earlier: impl Iterator<Item = &'s Self>,
        memory_budget: usize,
    ) -> Option<String> {
        match self {
            Self::Kafka(kafka) => {
                let same_group =
                    |other: &KafkaSettings| other.group == kafka.group && other.cluster.brokers == kafka.cluster.brokers;
                earlier.any(|other| other.kafka().is_some_and(same_group)).then(|| {
                    let group = &kafka.group;
                    format!(
                        "{path}.kafka.group: `{group}` is used by two sources of this file: each event goes to one of them only"
                    )
                })
            }
            Self::Rabbit(rabbit) => (rabbit.prefetch.bytes > memory_budget / 2).then(|| {
                format!("{path}.rabbitmq.prefetch.bytes is more than half of memory.budget: little is left for what was taken in")
            }),
        }
    }
}

/// What the rest of the file gives to every source.
pub(super) struct Given {
    pub(super) replayed: RawReplayed,
    /// The default of `prefetch.bytes`.
    pub(super) prefetch_bytes: usize,
    /// `seal.max_age`.
    pub(super) seal_age: Duration,
    /// What relative times are relative to.
    pub(super) now: Timestamp,
}

impl Given {
    const fn replayed(&self) -> Replayed {
        match self.replayed {
            RawReplayed::Skip => Replayed::Skip,
            RawReplayed::Archive => Replayed::Archive,
        }
    }

    fn start(&self, path: &str, written: &str) -> Result<Start, BadConfig> {
        Ok(match written {
            "earliest" => Start::Earliest,
            "latest" => Start::Latest,
            time => Start::At(
                moment(time, self.now)
                    .map_err(|error| bad(format!("{path}.start"), format!("must be earliest, latest or a time: {error}")))?,
            ),
        })
    }
}

pub(super) fn kafka(path: &str, raw: RawKafka, given: &Given) -> Result<KafkaSettings, BadConfig> {
    let named = |error: tapedeck_kafka::config::SettingsError| bad(format!("{path}.{}", error.name), error.why);
    let start = given.start(path, &raw.start)?;
    let topics = raw.topics.iter().map(|topic| TopicSelector::parse(topic)).collect::<Result<_, _>>().map_err(named)?;
    let protocol = match raw.group_protocol {
        RawGroupProtocol::Classic => GroupProtocol::Classic,
        RawGroupProtocol::Consumer => GroupProtocol::Consumer,
    };
    let membership = Membership { protocol, instance: raw.group_instance_id };
    let cluster = ClusterSettings { brokers: raw.brokers, client: raw.client };
    let (group, replayed, mark) = (raw.group, given.replayed(), String::new());
    let settings = KafkaSettings { cluster, group, membership, topics, start, replayed, mark };
    settings.check().map_err(named)?;
    Ok(settings)
}

pub(super) fn rabbit(path: &str, raw: RawRabbit, given: &Given) -> Result<RabbitSettings, BadConfig> {
    let named = |error: tapedeck_rabbitmq::config::SettingsError| bad(format!("{path}.{}", error.name), error.why);
    let host = |(index, host): (usize, &String)| host.parse().map_err(|why: String| bad(format!("{path}.hosts[{index}]"), why));
    let hosts = raw.hosts.iter().enumerate().map(host).collect::<Result<_, _>>()?;
    let inflow = inflow(path, &raw, given)?;
    let bytes = raw.prefetch.bytes.map_or(given.prefetch_bytes as u64, |size| size.bytes());
    let prefetch = Prefetch {
        events: raw.prefetch.events.unwrap_or(match inflow {
            Inflow::Stream(_) => STREAM_EVENTS_DEFAULT,
            Inflow::Queue(_) => QUEUE_EVENTS_DEFAULT,
        }),
        bytes: usize::try_from(bytes)
            .map_err(|_| bad(format!("{path}.prefetch.bytes"), "is more than this machine can address"))?,
    };
    let credentials = Credentials { user: raw.user, password: raw.password };
    let settings = RabbitSettings {
        place: Place { hosts, vhost: raw.vhost, credentials, insecure: raw.insecure, cluster: raw.cluster },
        inflow,
        replayed: given.replayed(),
        prefetch,
        title: String::new(),
    };
    settings.check().map_err(named)?;
    Ok(settings)
}

fn inflow(path: &str, raw: &RawRabbit, given: &Given) -> Result<Inflow, BadConfig> {
    match (&raw.stream, &raw.queue) {
        (Some(name), None) if raw.delivery_limit.is_none() => Ok(Inflow::Stream(StreamSettings {
            name: name.clone(),
            start: given.start(path, raw.start.as_deref().unwrap_or("earliest"))?,
            on_recreated: match raw.on_recreated.unwrap_or_default() {
                RawOnRecreated::Halt => OnRecreated::Halt,
                RawOnRecreated::Begin => OnRecreated::Begin,
            },
        })),
        (Some(_), None) => Err(bad(format!("{path}.delivery_limit"), "is of queues; a stream keeps its events, leave it out")),
        (None, Some(name)) => queue(path, name, raw, given).map(Inflow::Queue),
        _ => Err(bad(path, "name one of stream, queue")),
    }
}

fn queue(path: &str, name: &str, raw: &RawRabbit, given: &Given) -> Result<QueueSettings, BadConfig> {
    let of_streams =
        [("start", raw.start.is_some()), ("on_gap", raw.on_gap.is_some()), ("on_recreated", raw.on_recreated.is_some())];
    if let Some((option, _)) = of_streams.into_iter().find(|(_, is_set)| *is_set) {
        return Err(bad(format!("{path}.{option}"), "a queue has no positions, so this means nothing; leave it out"));
    }
    if given.seal_age > SEAL_AGE_MAX {
        let what = "must be at most 15m where a queue is read: RabbitMQ takes back what is held for half an hour";
        return Err(bad("seal.max_age", what));
    }
    let delivery_limit_accepted = raw.delivery_limit == Some(RawDeliveryLimit::Accepted);
    Ok(QueueSettings { name: name.to_owned(), delivery_limit_accepted })
}
