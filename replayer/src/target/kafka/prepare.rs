//! Makes sure that the target's topics are there and can take what comes, and says aloud what it finds and does.
//!
//! Promises: an existing topic is never changed; nothing is written into the topic that was archived. Its calls wait: not
//! for an async thread. Never: publish.

use std::collections::{BTreeMap, BTreeSet};

use tapedeck_common::Timestamp;
use tapedeck_common::bus::BusError;
use tapedeck_common::error::{ErrorKind, report};
use tapedeck_kafka::admin::{Cluster, Created, TopicInfo};

use crate::plan::Plan;
use crate::target::PrepareError;

/// Markers make an event larger than its original was.
const MARKER_BYTES: u64 = 64 * 1024;

/// Kafka's own default of `max.message.bytes`.
const MESSAGE_BYTES_DEFAULT: u64 = 1_048_588;

/// RabbitMQ's own limit, from 4.0 on.
const MESSAGE_BYTES_RABBITMQ: u64 = 16 << 20;

/// Settings by which brokers refuse old and future events; brokers before Kafka 3.6 do not know them.
const TIME_LIMITS: [&str; 2] = ["message.timestamp.before.max.ms", "message.timestamp.after.max.ms"];

/// What one topic of the target needs.
struct Need {
    /// The topic there.
    to: String,
    /// The originals that go into it.
    originals: BTreeSet<String>,
    sources: BTreeSet<String>,
    highest_partition: i32,
    earliest: Option<Timestamp>,
}

/// Topics that were there before, and the earliest event that each is to take.
pub(super) type Existing = Vec<(String, Option<Timestamp>)>;

/// Prepares all topics of a job's target; answers what was found and done, one line each, and the topics that existed.
pub(super) fn prepare(cluster: &Cluster, plan: &Plan, job: &str) -> Result<(Vec<String>, Existing), PrepareError> {
    let needs = needs(plan, job)?;
    let there = cluster.topics()?;
    let cluster_id = cluster.id().ok();
    let (mut said, mut existing) = (Vec::new(), Existing::new());
    for need in needs {
        refuse_original(&need, cluster_id.as_deref())?;
        match there.get(&need.to) {
            Some(partitions) => {
                said.push(check_partitions(&need, *partitions)?);
                existing.push((need.to, need.earliest));
            }
            None => said.push(create(cluster, &need, &there)?),
        }
    }
    Ok((said, existing))
}

/// What the settings of existing topics will do to the events. Advice only: a cluster that does not tell is left alone.
pub(super) fn advise(cluster: &Cluster, existing: &Existing, now: Timestamp) -> Vec<String> {
    let mut said = Vec::new();
    for (topic, earliest) in existing {
        match cluster.topic(topic) {
            Ok(Some(info)) => said.extend(traps(&info, *earliest, now)),
            Ok(None) => {}
            Err(error) => {
                said.push(format!("topic {topic}: its settings could not be read and are not checked ({})", report(&error)));
                // Each question may take its full time, and the next one would end no better.
                break;
            }
        }
    }
    said
}

fn needs(plan: &Plan, job: &str) -> Result<Vec<Need>, PrepareError> {
    let mut needs: BTreeMap<String, Need> = BTreeMap::new();
    for lane in &plan.lanes {
        let to = plan.target.checked_topic_for(&lane.topic, job).map_err(PrepareError::Refused)?;
        let fresh = || Need {
            to: to.clone(),
            originals: BTreeSet::new(),
            sources: BTreeSet::new(),
            highest_partition: 0,
            earliest: lane.earliest,
        };
        let need = needs.entry(to.clone()).or_insert_with(fresh);
        need.originals.insert(lane.topic.clone());
        need.sources.insert(lane.source.clone());
        need.highest_partition = need.highest_partition.max(lane.to_partition());
        need.earliest = need.earliest.min(lane.earliest);
    }
    Ok(needs.into_values().collect())
}

/// The original itself is refused; a topic of its name on another cluster is a restore, and fine.
fn refuse_original(need: &Need, cluster: Option<&str>) -> Result<(), PrepareError> {
    if !need.originals.contains(&need.to) {
        return Ok(());
    }
    let cluster_of = |source: &String| source.split('/').nth(1).map(str::to_owned);
    let is_other =
        cluster.is_some_and(|cluster| need.sources.iter().all(|source| cluster_of(source).as_deref() != Some(cluster)));
    if is_other {
        return Ok(());
    }
    Err(PrepareError::Refused(format!(
        "topic {0} is the one that was archived: replaying into it (--to-original) is not in this version; leave the topic out of --to and \
         events go to the side topic {0}.replay.<job>",
        need.to
    )))
}

fn check_partitions(need: &Need, partitions: i32) -> Result<String, PrepareError> {
    let (to, highest) = (&need.to, need.highest_partition);
    if partitions > highest {
        return Ok(format!("topic {to} exists with {partitions} partitions and is used as it is"));
    }
    Err(PrepareError::Refused(format!(
        "topic {to} has {partitions} partitions, and events of partition {highest} are to keep theirs: give it {}, or replay to another topic",
        highest + 1
    )))
}

/// What an existing topic's settings do to replayed events.
fn traps(info: &TopicInfo, earliest: Option<Timestamp>, now: Timestamp) -> Vec<String> {
    let setting = |name: &str| info.settings.get(name).map(String::as_str);
    let to = &info.name;
    let mut said = Vec::new();
    let age = earliest.map_or(0, |earliest| now.since(earliest).as_millis());
    let shorter = |name: &str| {
        setting(name).and_then(|text| text.parse::<i128>().ok()).filter(|limit| *limit >= 0 && (*limit as u128) < age)
    };
    if setting("cleanup.policy").is_some_and(|policy| policy.contains("compact")) {
        said.push(format!("topic {to} is compacted: replayed events may move keys back to older values"));
    }
    if setting("message.timestamp.type") == Some("LogAppendTime") {
        said.push(format!("topic {to} sets its own times: the original ones are only in x-replay-ts"));
    } else {
        if setting("cleanup.policy").is_none_or(|policy| policy.contains("delete"))
            && let Some(limit) = shorter("retention.ms")
        {
            said.push(format!(
                "warning: topic {to} has retention.ms={limit}: its broker will delete the older of these events again"
            ));
        }
        if let Some(limit) = shorter(TIME_LIMITS[0]) {
            said.push(format!(
                "warning: topic {to} has {}={limit}: its broker will refuse the older of these events",
                TIME_LIMITS[0]
            ));
        }
    }
    said
}

/// Makes a side topic: like the original where that matters, and without the limits that would delete or refuse old events.
fn create(cluster: &Cluster, need: &Need, there: &BTreeMap<String, i32>) -> Result<String, PrepareError> {
    let originals: Vec<TopicInfo> = need
        .originals
        .iter()
        .filter(|original| there.contains_key(*original))
        .filter_map(|original| cluster.topic(original).ok().flatten())
        .collect();
    let now_there = need.originals.iter().filter_map(|original| there.get(original)).max().copied().unwrap_or(0);
    let partitions = (need.highest_partition + 1).max(now_there);
    let replication = originals.iter().map(|original| original.replication).max().unwrap_or(-1);
    let message_bytes = |info: &TopicInfo| info.settings.get("max.message.bytes").and_then(|text| text.parse::<u64>().ok());
    let from_kafka = need.sources.iter().all(|source| source.starts_with("kafka/"));
    let usual = if from_kafka { MESSAGE_BYTES_DEFAULT } else { MESSAGE_BYTES_RABBITMQ };
    let largest = originals.iter().filter_map(message_bytes).max().unwrap_or(usual) + MARKER_BYTES;
    let mut settings = BTreeMap::from([
        ("cleanup.policy".to_owned(), "delete".to_owned()),
        ("retention.ms".to_owned(), "-1".to_owned()),
        ("message.timestamp.type".to_owned(), "CreateTime".to_owned()),
        ("max.message.bytes".to_owned(), largest.min(i32::MAX as u64).to_string()),
    ]);
    settings.extend(TIME_LIMITS.map(|name| (name.to_owned(), i64::MAX.to_string())));
    let mut created = cluster.create_topic(&need.to, partitions, replication, &settings);
    if created.as_ref().is_err_and(|error| error.kind() == ErrorKind::Invalid) {
        // Brokers before Kafka 3.6 know neither limit and refuse the whole request for them.
        TIME_LIMITS.iter().for_each(|name| drop(settings.remove(*name)));
        created = cluster.create_topic(&need.to, partitions, replication, &settings);
    }
    match created {
        Ok(Created::New) => {
            let shown: Vec<String> = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let replicas = if replication < 1 { "the broker's default of".to_owned() } else { replication.to_string() };
            Ok(format!("made topic {}: {partitions} partitions, {replicas} replicas, {}", need.to, shown.join(", ")))
        }
        Ok(Created::Existed) => Ok(format!("topic {} was made by somebody else just now and is used as it is", need.to)),
        Err(error) => {
            let mend = format!(
                "topic {} is not there and cannot be made: make it with {partitions} partitions, or name another with --to",
                need.to
            );
            Err(BusError { what: format!("{mend}: {}", error.what), kind: error.kind, source: error.source }.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(to: &str, source: &str) -> Need {
        Need {
            to: to.into(),
            originals: ["orders".to_owned()].into(),
            sources: [source.to_owned()].into(),
            highest_partition: 3,
            earliest: None,
        }
    }

    #[test]
    fn the_original_is_refused_and_its_name_elsewhere_is_not() {
        let here = "kafka/here/id/0";
        assert!(refuse_original(&need("orders.replay.x", here), Some("here")).is_ok());
        assert!(refuse_original(&need("orders", here), Some("elsewhere")).is_ok());
        for cluster in [Some("here"), None] {
            let error = refuse_original(&need("orders", here), cluster).expect_err("the original").to_string();
            assert!(
                error.contains("topic orders is the one that was archived") && error.contains("not in this version"),
                "{error}"
            );
        }
    }

    #[test]
    fn partitions_must_do() {
        assert!(check_partitions(&need("t", "s"), 4).is_ok());
        let error = check_partitions(&need("t", "s"), 3).expect_err("too few").to_string();
        assert!(error.contains("topic t has 3 partitions") && error.contains("give it 4"), "{error}");
    }

    #[test]
    fn settings_that_hurt_old_events_are_named() {
        let info = |settings: &[(&str, &str)]| TopicInfo {
            name: "t".into(),
            source: "s".into(),
            partitions: 1,
            replication: 1,
            settings: settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        };
        let day = Timestamp::from_micros(86_400_000_000);
        let said = |settings: &[(&str, &str)]| traps(&info(settings), Some(Timestamp::default()), day).join("; ");
        assert_eq!(said(&[("cleanup.policy", "delete"), ("retention.ms", "-1")]), "");
        assert_eq!(said(&[("cleanup.policy", "delete"), ("retention.ms", "86400001")]), "");
        assert!(said(&[("cleanup.policy", "delete"), ("retention.ms", "3600000")]).contains("will delete the older"));
        assert!(said(&[("cleanup.policy", "compact"), ("retention.ms", "3600000")]).contains("is compacted"));
        assert!(said(&[("message.timestamp.before.max.ms", "3600000")]).contains("will refuse the older"));
        assert!(said(&[("message.timestamp.type", "LogAppendTime"), ("retention.ms", "1")]).contains("sets its own times"));
    }
}
