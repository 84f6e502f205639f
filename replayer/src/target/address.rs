//! Where a replay goes: the address of `--to`, and the topic that each original topic becomes there.
//!
//! Promises: an address that this version does not serve is refused by name. Pure. Never: connect.

use serde::{Deserialize, Serialize};
use tapedeck_common::error::ErrorKind;

/// The side topic of a replay: never the original, and one for each job.
const SIDE_TOPIC: &str = "{topic}.replay.{job}";

/// The longest name that Kafka takes for a topic.
const TOPIC_NAME_MAX: usize = 249;

/// An address that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// It is for a later version.
    #[error("{0} as a target is not in this version; use kafka://broker:9092[/topic] or stdout:")]
    NotYet(String),
    /// It is no address.
    #[error("{address:?} is no target: {why}; use kafka://broker:9092,broker:9092[/topic] or stdout:")]
    Bad {
        /// What was given.
        address: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl TargetError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

/// Where the events go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Target {
    /// Topics of a Kafka cluster.
    Kafka {
        /// Its brokers.
        brokers: Vec<String>,
        /// The name of the topic there; `{topic}` and `{job}` stand for the original's name and the job's.
        topic: String,
    },
    /// JSON lines on the standard output.
    Stdout,
}

impl Target {
    /// From the text of `--to`.
    pub fn parse(address: &str) -> Result<Self, TargetError> {
        let bad = |why| TargetError::Bad { address: address.to_owned(), why };
        if matches!(address, "stdout:" | "stdout" | "-") {
            return Ok(Self::Stdout);
        }
        let (scheme, rest) = address.split_once("://").ok_or(bad("it has no scheme"))?;
        match scheme {
            "kafka" => {
                let (brokers, topic) = rest.split_once('/').unwrap_or((rest, ""));
                Self::kafka(brokers.split(',').map(str::to_owned).collect(), topic).map_err(bad)
            }
            "amqp" | "amqps" | "rabbitmq-stream" => Err(TargetError::NotYet(format!("{scheme}://"))),
            _ => Err(bad("its scheme is unknown")),
        }
    }

    /// Topics of a Kafka cluster; an empty `topic` means side topics.
    pub fn kafka(brokers: Vec<String>, topic: &str) -> Result<Self, &'static str> {
        if brokers.is_empty() || brokers.iter().any(|broker| broker.trim().is_empty()) {
            return Err("a broker's name is empty");
        }
        let topic = if topic.is_empty() { SIDE_TOPIC } else { topic };
        let plain = topic.replace("{topic}", "").replace("{job}", "");
        if !plain.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
            return Err("a topic's name has only letters, digits, dots, dashes, underscores, {topic} and {job}");
        }
        Ok(Self::Kafka { brokers, topic: topic.to_owned() })
    }

    /// The topic that `original` becomes in this job.
    pub fn topic_for(&self, original: &str, job: &str) -> String {
        match self {
            Self::Kafka { topic, .. } => topic.replace("{topic}", original).replace("{job}", job),
            Self::Stdout => original.to_owned(),
        }
    }

    /// The topic that `original` becomes, if Kafka takes such a name.
    pub fn checked_topic_for(&self, original: &str, job: &str) -> Result<String, String> {
        let topic = self.topic_for(original, job);
        let is_name = |topic: &str| topic.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if matches!(self, Self::Kafka { .. }) && !is_name(&topic) {
            return Err(format!(
                "{topic:?} is no name that Kafka takes for a topic: letters, digits, dots, dashes and underscores; give another: \
                 --to kafka://.../name"
            ));
        }
        if topic.len() > TOPIC_NAME_MAX {
            return Err(format!(
                "topic name {topic} has {} characters, Kafka takes {TOPIC_NAME_MAX}; give a shorter one: --to kafka://.../name",
                topic.len()
            ));
        }
        Ok(topic)
    }

    /// The address, for people.
    pub fn describe(&self) -> String {
        match self {
            Self::Kafka { brokers, topic } => format!("kafka://{}/{topic}", brokers.join(",")),
            Self::Stdout => "stdout:".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_say_where_each_topic_goes() {
        let side = Target::parse("kafka://a:9092,b:9092").expect("good");
        assert_eq!(side.topic_for("orders", "rp-1"), "orders.replay.rp-1");
        assert_eq!(side.describe(), "kafka://a:9092,b:9092/{topic}.replay.{job}");
        assert_eq!(Target::parse("kafka://a:9092/copy-{topic}").expect("good").topic_for("o", "j"), "copy-o");
        assert_eq!(Target::parse(&side.describe()), Ok(side));
        assert_eq!(Target::parse("stdout:"), Ok(Target::Stdout));
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        let cases = [
            ("amqp://h/x", "amqp:// as a target is not in this version"),
            ("rabbitmq-stream://h/x", "rabbitmq-stream:// as a target is not in this version"),
            ("kafka://", "a broker's name is empty"),
            ("kafka://a,,b", "a broker's name is empty"),
            ("kafka://a/or ders", "letters, digits"),
            ("ftp://a", "its scheme is unknown"),
            ("orders", "it has no scheme"),
        ];
        for (address, text) in cases {
            let error = Target::parse(address).expect_err(address).to_string();
            assert!(error.contains(text), "{address}: {error}");
        }
        let long = Target::parse("kafka://a").expect("good").checked_topic_for(&"x".repeat(240), "rp-1");
        assert!(long.expect_err("too long").contains("252"));
        let foreign = Target::parse("kafka://a").expect("good").checked_topic_for("orders of today", "rp-1");
        assert!(foreign.expect_err("a queue's name").contains("\"orders of today.replay.rp-1\" is no name"));
    }
}
