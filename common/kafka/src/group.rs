//! What the client calls back with: rebalances, errors, log lines. The callbacks only note; the poll thread acts.
//!
//! Promises: an assignment is answered at once with nothing assigned, so that the group never waits for a table log; a
//! revocation is answered by the poll thread, after the lanes' batches are safe. While closing, both are answered here.
//! Never: network calls, locks held over calls into the client.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;
use tracing::{debug, info, warn};

/// A partition by its topic's name.
pub(crate) type Partition = (String, i32);

/// Something the client called back with.
#[derive(Debug)]
pub(crate) enum GroupEvent {
    /// These partitions are ours now. Nothing is read of them yet.
    Assigned(Vec<Partition>),
    /// These partitions must be unassigned; `lost` if they are somebody else's already.
    Revoked { partitions: Vec<Partition>, lost: bool },
    /// The client reports a failure.
    Failed(RDKafkaErrorCode, String),
    /// The client found another topic behind a name.
    Renewed(String),
}

/// The context of the group's consumer.
pub(crate) struct GroupContext {
    events: Mutex<Vec<GroupEvent>>,
    closing: AtomicBool,
    debug_wanted: bool,
}

impl GroupContext {
    /// `debug_wanted` if the user asked for the client's debug lines.
    pub(crate) fn new(debug_wanted: bool) -> Self {
        Self { events: Mutex::new(Vec::new()), closing: AtomicBool::new(false), debug_wanted }
    }

    /// What was called back with since the last call, in order.
    pub(crate) fn take_events(&self) -> Vec<GroupEvent> {
        mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on rebalances are answered without asking anybody.
    pub(crate) fn begin_closing(&self) {
        self.closing.store(true, Ordering::Release);
    }

    fn note(&self, event: GroupEvent) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    fn assigned(&self, consumer: &BaseConsumer<Self>, partitions: Vec<Partition>) {
        // Until an assignment is answered all partitions stand still and no other member's rebalance can go on. So it is
        // answered with nothing, and the partitions are added once their positions are known.
        if let Err(error) = consumer.incremental_assign(&TopicPartitionList::new()) {
            warn!(%error, "answering an assignment failed");
        }
        self.note(GroupEvent::Assigned(partitions));
    }

    fn revoked(&self, consumer: &BaseConsumer<Self>, partitions: Vec<Partition>) {
        if self.closing.load(Ordering::Acquire) {
            let all = consumer.assignment().unwrap_or_default();
            if let Err(error) = consumer.incremental_unassign(&all) {
                warn!(%error, "giving up partitions while closing failed");
            }
            return;
        }
        self.note(GroupEvent::Revoked { partitions, lost: consumer.assignment_lost() });
    }
}

impl ConsumerContext for GroupContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions: Vec<Partition> = list.elements().iter().map(|one| (one.topic().to_owned(), one.partition())).collect();
        match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assigned(consumer, partitions),
            _ => self.revoked(consumer, partitions),
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        // Offsets in the broker are a courtesy for lag dashboards; the archive knows where it stands.
        if let Err(error) = result {
            debug!(%error, "the broker did not take the offsets");
        }
    }
}

impl ClientContext for GroupContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        if let RDKafkaLogLevel::Debug = level {
            if let Some(topic) = renewed_topic(text) {
                self.note(GroupEvent::Renewed(topic.to_owned()));
            }
            if !self.debug_wanted {
                return;
            }
        }
        log_line(level, facility, text);
    }

    fn stats_raw(&self, _statistics: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
        self.note(GroupEvent::Failed(code, reason.to_owned()));
    }
}

/// The client keeps reading at the old offset when a topic was deleted and made again, and says so nowhere but in this debug line
/// of its metadata handling. A test on a real Kafka fails should the wording change.
fn renewed_topic(text: &str) -> Option<&str> {
    let rest = &text[text.find("Topic ")? + "Topic ".len()..];
    let (topic, ids) = rest.split_once(" changed id from ")?;
    // The first id that a client learns is a change from zero.
    (!ids.starts_with("AAAAAAAAAAAAAAAAAAAAAA ")).then_some(topic)
}

/// Passes a line of the client on to our log.
pub(crate) fn log_line(level: RDKafkaLogLevel, facility: &str, text: &str) {
    use RDKafkaLogLevel::{Alert, Critical, Debug, Emerg, Error, Info, Notice, Warning};
    match level {
        // The client calls every lost connection an error; it mends them itself, so to us they are warnings.
        Emerg | Alert | Critical | Error | Warning => warn!(target: "librdkafka", facility, "{text}"),
        Notice | Info => info!(target: "librdkafka", facility, "{text}"),
        Debug => debug!(target: "librdkafka", facility, "{text}"),
    }
}

/// The context of clients that are in no group: tools, the producer's errors.
#[derive(Debug, Default, Clone)]
pub(crate) struct PlainContext;

impl ClientContext for PlainContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log_line(level, facility, text);
    }

    fn stats_raw(&self, _statistics: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(target: "librdkafka", %error, "{reason}");
    }
}

impl ConsumerContext for PlainContext {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_true_change_of_a_topics_id_counts() {
        let line = |from: &str| format!("[thrd:main]: Topic a.b-c changed id from {from} to Xk2pWVNhQsy1tLw0AbCdEg");
        assert_eq!(renewed_topic(&line("hM1pWVNhQsy1tLw0AbCdEg")), Some("a.b-c"));
        assert_eq!(renewed_topic(&line("AAAAAAAAAAAAAAAAAAAAAA")), None);
        assert_eq!(renewed_topic("Topic a partition 3 Leader 1"), None);
    }
}
