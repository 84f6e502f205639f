//! What a user may set of Kafka, and what we set so that the promises hold.
//!
//! Promises: a property that would break a promise is refused by its name with the reason, before any connection is made;
//! everything else of the client is the user's. Patterns match whole names.
//! Never: read files or the environment; secrets come in as values and are not printed.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use regex::bytes::{Regex, RegexBuilder};
pub use tapedeck_common::bus::{Replayed, Start};
use tapedeck_common::limits::FETCH_QUEUE_KIB;

/// Something about the settings that cannot work or must not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {why}")]
pub struct SettingsError {
    /// The setting, as the configuration names it.
    pub name: String,
    /// What is wrong, and what to do instead.
    pub why: String,
}

impl SettingsError {
    fn new(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self { name: name.into(), why: why.into() }
    }
}

/// One entry of a list of topics: a name, or a `^pattern$`.
#[derive(Debug, Clone)]
pub enum TopicSelector {
    /// This topic.
    Name(String),
    /// Every topic, but Kafka's internal ones, whose whole name matches.
    Pattern(Regex),
}

impl TopicSelector {
    /// Reads one entry. A pattern begins with `^` and ends with `$`: half a name never matches by accident.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        let refused = |why: String| Err(SettingsError::new(format!("topics: {text}"), why));
        if let Some(inner) = text.strip_prefix('^') {
            let Some(inner) = inner.strip_suffix('$') else {
                return refused("a pattern must end with $, so that it matches whole names".to_owned());
            };
            // Topic names are ASCII, so `\d` and `.` mean ASCII too.
            return match RegexBuilder::new(&format!("^(?:{inner})$")).unicode(false).build() {
                Ok(pattern) => Ok(Self::Pattern(pattern)),
                Err(error) => refused(format!("no regular expression: {error}")),
            };
        }
        if text.is_empty() || text == "." || text == ".." || text.len() > 249 || !text.chars().all(is_name_char) {
            return refused(
                "no topic name (letters, digits, . _ -, at most 249); a pattern must begin with ^ and end with $".to_owned(),
            );
        }
        Ok(Self::Name(text.to_owned()))
    }

    /// True if the entry means this topic.
    pub fn matches(&self, topic: &str) -> bool {
        match self {
            Self::Name(name) => name == topic,
            Self::Pattern(pattern) => !topic.starts_with("__") && pattern.is_match(topic.as_bytes()),
        }
    }
}

/// How a cluster is reached: for tools, producers and consumers alike.
#[derive(Clone, Default)]
pub struct ClusterSettings {
    /// `host:port` of some brokers.
    pub brokers: Vec<String>,
    /// Properties of the client (librdkafka's names), secrets resolved.
    pub client: BTreeMap<String, String>,
}

// Values may be secrets, so only names are printed.
impl fmt::Debug for ClusterSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.client.keys().collect();
        f.debug_struct("ClusterSettings").field("brokers", &self.brokers).field("client", &names).finish()
    }
}

impl ClusterSettings {
    fn base(&self, refused: &[(&str, &str)]) -> Result<ClientConfig, SettingsError> {
        if self.brokers.is_empty() || self.brokers.iter().any(String::is_empty) {
            return Err(SettingsError::new("brokers", "name at least one broker as host:port"));
        }
        let mut config = ClientConfig::new();
        config.set_log_level(RDKafkaLogLevel::Info);
        config
            .set("bootstrap.servers", self.brokers.join(","))
            .set("client.id", "tapedeck")
            .set("allow.auto.create.topics", "false");
        for (name, value) in &self.client {
            if let Some((_, why)) = REFUSED_ALWAYS.iter().chain(refused).find(|(refused, _)| refused == name) {
                return Err(SettingsError::new(format!("client.{name}"), *why));
            }
            config.set(name, value);
        }
        Ok(config)
    }

    /// For looking around and for reading a topic back: in a group by name only, nothing is ever committed.
    pub(crate) fn reader(&self) -> Result<ClientConfig, SettingsError> {
        let mut config = self.base(REFUSED_FOR_CONSUMERS)?;
        freeze(&mut config);
        Membership::default().apply(&mut config)?;
        config.set("group.id", "tapedeck-reader");
        Ok(config)
    }

    /// For publishing.
    pub(crate) fn producer(&self) -> Result<ClientConfig, SettingsError> {
        let mut config = self.base(REFUSED_FOR_PRODUCERS)?;
        config.set("enable.idempotence", "true").set("acks", "all");
        set_missing(&mut config, PRODUCER_DEFAULTS);
        Ok(config)
    }
}

/// How members of a group and its coordinator speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupProtocol {
    /// The members share out the partitions; every broker speaks it.
    #[default]
    Classic,
    /// The coordinator shares them out (KIP-848); brokers from 4.0 on. Session and heartbeats are the broker's to set.
    Consumer,
}

/// How a consumer is a member of its group.
#[derive(Debug, Clone, Default)]
pub struct Membership {
    /// The protocol.
    pub protocol: GroupProtocol,
    /// A name that outlives the process, so that its partitions wait for it while it restarts. No two replicas may share one.
    pub instance: Option<String>,
}

impl Membership {
    fn apply(&self, config: &mut ClientConfig) -> Result<(), SettingsError> {
        if let Some(instance) = &self.instance {
            if instance.is_empty() || instance.len() > 249 || !instance.chars().all(is_name_char) {
                return Err(SettingsError::new("group_instance_id", "use letters, digits, . _ -, at most 249"));
            }
            config.set("group.instance.id", instance);
        }
        if self.protocol == GroupProtocol::Classic {
            set_missing(config, CLASSIC_DEFAULTS);
            set_all(config, CLASSIC);
            return Ok(());
        }
        if let Some(name) = OF_THE_BROKER.iter().find(|name| config.get(name).is_some()) {
            let why = format!("with group_protocol consumer the broker sets it, as group.consumer.{name}");
            return Err(SettingsError::new(format!("client.{name}"), why));
        }
        config.set("group.protocol", "consumer");
        set_missing(config, KIP_848_DEFAULTS);
        Ok(())
    }
}

/// One inflow from Kafka.
#[derive(Debug, Clone)]
pub struct KafkaSettings {
    /// The cluster.
    pub cluster: ClusterSettings,
    /// The consumer group.
    pub group: String,
    /// How this consumer is a member of it.
    pub membership: Membership,
    /// The topics.
    pub topics: Vec<TopicSelector>,
    /// Where unknown lanes begin.
    pub start: Start,
    /// What happens with copies that a replay published.
    pub replayed: Replayed,
    /// Written beside the offsets that are acknowledged: the id of the archive. Where another one is found, two archives share
    /// the group and take each other's lanes; that is warned of. Empty for none.
    pub mark: String,
}

impl KafkaSettings {
    /// Checks everything that can be checked without a broker.
    pub fn check(&self) -> Result<(), SettingsError> {
        self.consumer().map(drop)
    }

    /// True if one of the selectors means this topic.
    pub fn selects(&self, topic: &str) -> bool {
        self.topics.iter().any(|selector| selector.matches(topic))
    }

    /// For the consumer of the group.
    pub(crate) fn consumer(&self) -> Result<ClientConfig, SettingsError> {
        if self.group.is_empty() {
            return Err(SettingsError::new("group", "name the consumer group"));
        }
        if self.topics.is_empty() {
            return Err(SettingsError::new("topics", "name at least one topic or ^pattern$"));
        }
        let mut config = self.cluster.base(REFUSED_FOR_CONSUMERS)?;
        let has = |name: &str| self.cluster.client.contains_key(name);
        for (one, other) in [(QUEUE_KIB, QUEUE_BACKOFF), (QUEUE_BACKOFF, QUEUE_KIB)] {
            if has(one) && !has(other) {
                let why = format!("set {other} with it: a small queue with a long back-off reads 20 times slower");
                return Err(SettingsError::new(format!("client.{one}"), why));
            }
        }
        self.membership.apply(&mut config)?;
        freeze(&mut config);
        config.set("group.id", &self.group);
        Ok(config)
    }

    /// Bytes that the client may hold in its own queue.
    pub(crate) fn queue_bytes(&self) -> usize {
        let kib = self.cluster.client.get(QUEUE_KIB).and_then(|kib| kib.parse::<usize>().ok());
        kib.unwrap_or(FETCH_QUEUE_KIB) * 1024
    }
}

const QUEUE_KIB: &str = "queued.max.messages.kbytes";
const QUEUE_BACKOFF: &str = "fetch.queue.backoff.ms";

/// What must hold whatever the user says; all of it is refused in `client:`.
const FROZEN: &[(&str, &str)] = &[
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("auto.offset.reset", "error"),
    ("isolation.level", "read_committed"),
    ("check.crcs", "true"),
    ("enable.partition.eof", "true"),
    ("allow.auto.create.topics", "false"),
];

/// The same for the classic group protocol; with the other one the client refuses what does not belong to it.
const CLASSIC: &[(&str, &str)] = &[("group.protocol", "classic"), ("partition.assignment.strategy", "cooperative-sticky")];
const CLASSIC_DEFAULTS: &[(&str, &str)] = &[("session.timeout.ms", "45000")];
/// With the other one the broker gives a member this long to give partitions up, then puts it out, which ends any standstill
/// (docs/decisions/0002). We serve the group all the time and give up what is revoked within ten seconds.
const KIP_848_DEFAULTS: &[(&str, &str)] = &[("max.poll.interval.ms", "45000")];
/// What members set with the classic protocol, and the broker with the other one.
const OF_THE_BROKER: &[&str] = &["session.timeout.ms", "heartbeat.interval.ms"];

/// What we set where the user does not.
const CONSUMER_DEFAULTS: &[(&str, &str)] = &[
    // The small queue keeps what it hands over in the CPU's cache; without the short back-off it starves the reader.
    (QUEUE_BACKOFF, "1"),
    ("fetch.wait.max.ms", "10"),
    ("max.poll.interval.ms", "300000"),
    // New partitions are noticed within a minute.
    ("topic.metadata.refresh.interval.ms", "60000"),
    // One fetch answer must not dwarf the queue it goes to.
    ("fetch.max.bytes", "8388608"),
];

const PRODUCER_DEFAULTS: &[(&str, &str)] = &[
    ("queue.buffering.max.kbytes", "8192"),
    ("linger.ms", "1"),
    ("batch.size", "524288"),
    // The broker's and the topic's limits decide, not the client's.
    ("message.max.bytes", "104857600"),
];

fn freeze(config: &mut ClientConfig) {
    set_all(config, FROZEN);
    if config.get(QUEUE_KIB).is_none() {
        config.set(QUEUE_KIB, FETCH_QUEUE_KIB.to_string());
    }
    set_missing(config, CONSUMER_DEFAULTS);
}

fn set_all(config: &mut ClientConfig, properties: &[(&str, &str)]) {
    for (name, value) in properties {
        config.set(*name, *value);
    }
}

fn set_missing(config: &mut ClientConfig, properties: &[(&str, &str)]) {
    for (name, value) in properties {
        if config.get(name).is_none() {
            config.set(*name, *value);
        }
    }
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

const REFUSED_ALWAYS: &[(&str, &str)] = &[
    ("bootstrap.servers", "use `brokers`"),
    ("metadata.broker.list", "use `brokers`"),
    ("allow.auto.create.topics", "a topic must never come to be because we looked for it"),
    ("log.queue", "log lines go to our own log"),
    ("plugin.library.paths", "a plugin could change what is read and written"),
];

const REFUSED_FOR_CONSUMERS: &[(&str, &str)] = &[
    ("group.id", "use `group`"),
    ("enable.auto.commit", "offsets are committed only for what is durable in the archive"),
    ("auto.commit.interval.ms", "offsets are committed only for what is durable in the archive"),
    ("enable.auto.offset.store", "offsets are committed only for what is durable in the archive"),
    ("offset.store.method", "positions live in the archive"),
    ("auto.offset.reset", "a lost position must be seen and written down, not skipped; for new topics use `start`"),
    ("isolation.level", "aborted transactions must never be archived"),
    ("check.crcs", "bytes damaged on the way must never be archived"),
    ("enable.partition.eof", "the archive has to know where a partition ends"),
    ("partition.assignment.strategy", "rebalances are served cooperatively, one strategy only"),
    ("group.instance.id", "use `group_instance_id`"),
    ("group.protocol", "use `group_protocol`"),
    ("group.protocol.type", "it is part of the protocol that `group_protocol` names"),
    ("group.remote.assignor", "the broker's own assignor is the only one that is tested"),
    ("topic.blacklist", "list in `topics` what is to be read"),
    ("transactional.id", "a consumer has no transactions"),
];

const REFUSED_FOR_PRODUCERS: &[(&str, &str)] = &[
    ("acks", "an event counts as published only when all in-sync replicas have it"),
    ("request.required.acks", "an event counts as published only when all in-sync replicas have it"),
    ("enable.idempotence", "without it a retry may double or reorder events"),
    ("transactional.id", "the job names its own"),
    ("retries", "giving up early would look like a loss; set message.timeout.ms instead"),
    ("message.send.max.retries", "giving up early would look like a loss; set message.timeout.ms instead"),
    ("max.in.flight", "more than five in flight may reorder events"),
    ("max.in.flight.requests.per.connection", "more than five in flight may reorder events"),
    ("delivery.report.only.error", "progress is counted by delivery reports"),
    ("queuing.strategy", "the order of events would not be kept"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(client: &[(&str, &str)]) -> KafkaSettings {
        KafkaSettings {
            cluster: ClusterSettings {
                brokers: vec!["localhost:9092".to_owned()],
                client: client.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            },
            group: "g".to_owned(),
            membership: Membership::default(),
            topics: vec![TopicSelector::parse("orders").expect("a name")],
            start: Start::Earliest,
            replayed: Replayed::Skip,
            mark: String::new(),
        }
    }

    #[test]
    fn properties_that_would_break_a_promise_are_refused_by_name() {
        for (name, _) in REFUSED_ALWAYS.iter().chain(REFUSED_FOR_CONSUMERS) {
            let error = settings(&[(name, "x")]).check().expect_err(name);
            assert_eq!(error.name, format!("client.{name}"));
            assert!(error.why.len() > 8, "{name}: {}", error.why);
        }
        for (name, _) in REFUSED_ALWAYS.iter().chain(REFUSED_FOR_PRODUCERS) {
            let error = settings(&[(name, "x")]).cluster.producer().expect_err(name);
            assert_eq!(error.name, format!("client.{name}"));
        }
    }

    #[test]
    fn everything_frozen_is_refused_from_users() {
        for (name, _) in FROZEN.iter().chain(CLASSIC) {
            assert!(settings(&[(name, "x")]).check().is_err(), "{name}");
        }
    }

    #[test]
    fn properties_of_the_user_are_passed_on() {
        let mine = settings(&[("session.timeout.ms", "6000"), ("security.protocol", "ssl"), ("client.id", "me")]);
        let config = mine.consumer().expect("allowed");
        assert_eq!(config.get("session.timeout.ms"), Some("6000"));
        assert_eq!(config.get("security.protocol"), Some("ssl"));
        assert_eq!(config.get("client.id"), Some("me"));
        assert_eq!(config.get("enable.auto.commit"), Some("false"));
    }

    #[test]
    fn the_group_protocol_decides_who_sets_the_session() {
        let with = |protocol, instance: Option<&str>, client: &[(&str, &str)]| {
            let membership = Membership { protocol, instance: instance.map(str::to_owned) };
            KafkaSettings { membership, ..settings(client) }.consumer()
        };
        let classic = with(GroupProtocol::Classic, Some("a-0"), &[]).expect("allowed");
        let of = |config: &ClientConfig, name| config.get(name).map(str::to_owned);
        assert_eq!(of(&classic, "group.instance.id").as_deref(), Some("a-0"));
        assert_eq!(of(&classic, "partition.assignment.strategy").as_deref(), Some("cooperative-sticky"));
        let new = with(GroupProtocol::Consumer, None, &[]).expect("allowed");
        assert_eq!(of(&new, "group.protocol").as_deref(), Some("consumer"));
        assert_eq!(of(&new, "max.poll.interval.ms").as_deref(), Some("45000"));
        for name in ["partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms", "group.instance.id"] {
            assert_eq!(of(&new, name), None, "the client refuses {name} with this protocol, or nobody asked for it");
        }
        for name in OF_THE_BROKER {
            with(GroupProtocol::Classic, None, &[(name, "6000")]).expect("members set it");
            let error = with(GroupProtocol::Consumer, None, &[(name, "6000")]).expect_err(name);
            assert_eq!(error.name, format!("client.{name}"));
            assert!(error.why.contains(&format!("group.consumer.{name}")), "{error}");
        }
        for bad in ["", "a b", "pod/0"] {
            assert_eq!(with(GroupProtocol::Classic, Some(bad), &[]).expect_err(bad).name, "group_instance_id");
        }
    }

    #[test]
    fn the_small_queue_and_its_short_back_off_ship_together() {
        let config = settings(&[]).consumer().expect("allowed");
        assert_eq!((config.get(QUEUE_KIB), config.get(QUEUE_BACKOFF)), (Some("4096"), Some("1")));
        assert!(settings(&[(QUEUE_KIB, "100")]).check().is_err());
        assert!(settings(&[(QUEUE_BACKOFF, "100")]).check().is_err());
        let both = settings(&[(QUEUE_KIB, "2048"), (QUEUE_BACKOFF, "5")]);
        assert_eq!(both.queue_bytes(), 2048 * 1024);
        both.check().expect("together they are the user's choice");
    }

    #[test]
    fn patterns_match_whole_names_and_nothing_internal() {
        let pattern = TopicSelector::parse(r"^audit\.\d+|__.*$").expect("a pattern");
        for (topic, matches) in
            [("audit.12", true), ("audit.", false), ("xaudit.1", false), ("audit.1x", false), ("__consumer_offsets", false)]
        {
            assert_eq!(pattern.matches(topic), matches, "{topic}");
        }
        for bad in ["^audit", "", "a b", "a*", ".", "^($", "audit$"] {
            assert!(TopicSelector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let text = format!("{:?}", settings(&[("sasl.password", "hunter2")]));
        assert!(text.contains("sasl.password") && !text.contains("hunter2"), "{text}");
    }
}
