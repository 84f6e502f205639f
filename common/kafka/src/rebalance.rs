//! The poll thread's dealings with the group: partitions come, are named, begin at their positions, and go.
//!
//! Promises: the assignment changes only here, outside the client's callbacks; partitions are assigned once, with explicit
//! positions; a revoked lane stays ours until its guards are gone or the grace is over; a topic made anew is another lane.
//! Never: wait for anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tapedeck_common::bus::{BusError, RevokeGuard};
use tapedeck_common::error::ErrorKind;
use tapedeck_common::limits::REVOKE_GRACE;
use tapedeck_common::position::{LaneId, Position};
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use crate::desk::Ask;
use crate::group::{GroupEvent, Partition};
use crate::lanes::{Lane, Phase};
use crate::poll_thread::{Passed, PollThread};

/// Topic ids are asked for again this often: a topic may have been made anew.
const CONFIRM_NAMES_EVERY: Duration = Duration::from_secs(10);
/// And this often while some are missing.
const RETRY_NAMES_EVERY: Duration = Duration::from_secs(1);
/// The same failure is logged at most this often.
const SAY_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Partitions that the group wants back, while their batches are made safe.
pub(crate) struct Revocation {
    partitions: Vec<(Arc<str>, i32)>,
    told: Vec<LaneId>,
    guards_gone: mpsc::Receiver<()>,
    deadline: Duration,
}

/// Lanes that stay ours but must begin again, while their batches are made safe.
pub(crate) struct Displacement {
    lanes: Vec<LaneId>,
    guards_gone: mpsc::Receiver<()>,
    deadline: Duration,
}

impl PollThread {
    pub(crate) fn serve_group(&mut self) {
        self.parts.counters.polled_at(self.parts.clock.monotonic());
        // One call serves one event; all that wait must be served before anything is read.
        loop {
            let waiting = self.parts.queue.waiting_for_the_group();
            match self.parts.consumer.poll(Duration::ZERO) {
                Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                    let (kind, text) = given_up(code);
                    self.end(kind, text);
                }
                Some(Ok(_)) => self.end(ErrorKind::Bug, "a message came past our own queue".to_owned()),
                _ => {}
            }
            if waiting <= 1 {
                break;
            }
        }
        for event in self.parts.consumer.context().take_events() {
            match event {
                GroupEvent::Assigned(partitions) => self.assigned(&partitions),
                GroupEvent::Revoked { partitions, lost } => self.revoked(&partitions, lost),
                GroupEvent::Failed(code, text) => self.failed(code, &text),
                GroupEvent::Renewed(topic) => self.renewed(&topic),
            }
        }
    }

    fn assigned(&mut self, partitions: &[Partition]) {
        self.parts.counters.add_rebalances(1);
        for (topic, partition) in partitions {
            self.parts.lanes.add(topic, *partition);
            self.names_due = Duration::ZERO;
        }
        if partitions.is_empty() {
            self.outbox.push_back(Passed::Assigned(Vec::new()));
        }
        debug!(partitions = partitions.len(), "assigned by the group");
    }

    fn revoked(&mut self, partitions: &[Partition], lost: bool) {
        self.parts.counters.add_rebalances(1);
        let (mut known, mut told) = (Vec::new(), Vec::new());
        for (topic, partition) in partitions {
            let Some(lane) = self.parts.lanes.get_mut(topic, *partition) else { continue };
            told.extend(lane.told().cloned());
            lane.phase = Phase::Revoking;
            known.push((Arc::clone(&lane.topic), *partition));
        }
        self.parts.lanes.publish();
        debug!(partitions = partitions.len(), lost, "revoked by the group");
        if lost || told.is_empty() {
            self.give_up(&known);
            self.pass_lost(told);
            return;
        }
        let (guard, guards_gone) = RevokeGuard::new();
        self.outbox.push_back(Passed::Revoking(told.clone(), guard));
        let deadline = self.parts.clock.monotonic() + REVOKE_GRACE;
        self.revocations.push(Revocation { partitions: known, told, guards_gone, deadline });
    }

    pub(crate) fn serve_revocations(&mut self) {
        if self.revocations.is_empty() {
            return;
        }
        let lost = self.parts.consumer.assignment_lost();
        let now = self.parts.clock.monotonic();
        for revocation in std::mem::take(&mut self.revocations) {
            let safe = revocation.guards_gone.is_closed();
            if !safe && !lost && now < revocation.deadline {
                self.revocations.push(revocation);
                continue;
            }
            self.give_up(&revocation.partitions);
            if !safe {
                warn!(
                    lanes = revocation.told.len(),
                    lost, "revoked lanes were not committed in time, their batches are abandoned"
                );
                self.pass_lost(revocation.told);
            }
        }
    }

    /// Unassigns what was assigned of these and forgets them. The group waits for this call even when there is nothing to unassign.
    fn give_up(&mut self, partitions: &[(Arc<str>, i32)]) {
        let mut list = TopicPartitionList::new();
        for (topic, partition) in partitions {
            if self.parts.lanes.remove(topic, *partition).is_some_and(|lane| lane.assigned) {
                list.add_partition(topic, *partition);
            }
        }
        self.parts.lanes.publish();
        if let Err(error) = self.parts.consumer.incremental_unassign(&list) {
            warn!(%error, "giving up partitions failed");
        }
    }

    fn pass_lost(&mut self, lanes: Vec<LaneId>) {
        if !lanes.is_empty() {
            self.outbox.push_back(Passed::Lost(lanes));
        }
    }

    pub(crate) fn subscribe(&mut self, topics: BTreeSet<String>) {
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        info!(topics = names.len(), "subscribing");
        let result = if names.is_empty() {
            self.parts.consumer.unsubscribe();
            Ok(())
        } else {
            self.parts.consumer.subscribe(&names)
        };
        if let Err(error) = result {
            self.end(ErrorKind::Unavailable, format!("subscribing failed: {error}"));
        }
        self.subscription = topics;
    }

    fn failed(&mut self, code: RDKafkaErrorCode, text: &str) {
        if code == RDKafkaErrorCode::Fatal {
            // Which failure it was only the client knows.
            let (kind, text) = given_up(self.parts.consumer.client().fatal_error().map_or(code, |(code, _)| code));
            self.outbox.push_back(Passed::Failed(BusError::new(kind, text)));
            return;
        }
        match sorted(code) {
            Some(kind) => self.outbox.push_back(Passed::Failed(BusError::new(kind, format!("{code}: {text}")))),
            None => self.say(text, code),
        }
    }

    /// Logs what the client mends itself, the same words at most once a minute.
    fn say(&mut self, text: &str, code: RDKafkaErrorCode) {
        let now = self.parts.clock.monotonic();
        self.said.retain(|_, last| now < *last + SAY_AGAIN_AFTER);
        if self.said.len() < 64 && self.said.insert(text.to_owned(), now).is_none() {
            warn!(%code, "{text}");
        }
    }

    pub(crate) fn ask_for_names(&mut self) {
        let now = self.parts.clock.monotonic();
        if now < self.names_due || self.names_asked {
            return;
        }
        let topics = self.parts.lanes.topics();
        if topics.is_empty() {
            self.names_due = now + CONFIRM_NAMES_EVERY;
            return;
        }
        self.names_due = now + if self.parts.lanes.wants_names() { RETRY_NAMES_EVERY } else { CONFIRM_NAMES_EVERY };
        self.names_asked = self.parts.asks.try_send(Ask::Name(topics)).is_ok();
    }

    pub(crate) fn named(&mut self, names: &BTreeMap<String, Result<Arc<str>, RDKafkaErrorCode>>) {
        let (mut displaced, mut told) = (Vec::new(), Vec::new());
        for (topic, name) in names {
            match name {
                Ok(source) => {
                    let named = self.parts.lanes.name(topic, source);
                    displaced.extend(named.displaced);
                    told.extend(named.told);
                }
                Err(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                    let what = format!("topic {topic}: not allowed to describe it; grant Read and Describe");
                    self.outbox.push_back(Passed::Failed(BusError::new(ErrorKind::Invalid, what)));
                }
                Err(code) => debug!(topic, %code, "the topic has no id now"),
            }
        }
        if !displaced.is_empty() {
            warn!(lanes = displaced.len(), "a topic was made anew under an old name");
        }
        self.displaced(displaced);
        if !told.is_empty() {
            self.outbox.push_back(Passed::Assigned(told));
        }
        if !self.parts.lanes.wants_names() {
            self.names_due = self.parts.clock.monotonic() + CONFIRM_NAMES_EVERY;
        }
    }

    fn renewed(&mut self, topic: &str) {
        let displaced: Vec<LaneId> = self.parts.lanes.of_topic(topic).filter_map(Lane::displace).collect();
        if !displaced.is_empty() {
            warn!(topic, lanes = displaced.len(), "the topic was made anew under its old name");
        }
        self.displaced(displaced);
    }

    pub(crate) fn vanished(&mut self, lanes: &[LaneId]) {
        let displaced = lanes.iter().filter_map(|id| self.parts.lanes.named_mut(id)?.displace()).collect();
        self.displaced(displaced);
    }

    /// Stops displaced lanes and lets the caller make safe what it holds of them, since the bus may not have it any more.
    pub(crate) fn displaced(&mut self, lanes: Vec<LaneId>) {
        self.unassign_where(|lane| lane.assigned && matches!(lane.phase, Phase::Naming | Phase::Displaced | Phase::Halted(_)));
        self.parts.lanes.publish();
        if lanes.is_empty() {
            return;
        }
        let (guard, guards_gone) = RevokeGuard::new();
        self.outbox.push_back(Passed::Revoking(lanes.clone(), guard));
        let deadline = self.parts.clock.monotonic() + REVOKE_GRACE;
        self.displacements.push(Displacement { lanes, guards_gone, deadline });
    }

    /// Lets displaced lanes begin again once they are safe, or the grace is over, and halted ones once they were left alone long enough.
    pub(crate) fn serve_displacements(&mut self) {
        let now = self.parts.clock.monotonic();
        let rested = self.parts.lanes.iter_mut().filter(|lane| matches!(lane.phase, Phase::Halted(until) if until <= now));
        let rested: Vec<LaneId> = rested.filter_map(Lane::displace).collect();
        if !rested.is_empty() {
            info!(lanes = rested.len(), "trying halted lanes again");
            self.displaced(rested);
        }
        for displacement in std::mem::take(&mut self.displacements) {
            let safe = displacement.guards_gone.is_closed();
            if !safe && now < displacement.deadline {
                self.displacements.push(displacement);
                continue;
            }
            let again = self.parts.lanes.begin_again(&displacement.lanes);
            if !safe && !again.is_empty() {
                warn!(lanes = again.len(), "displaced lanes were not committed in time, their batches are abandoned");
                self.pass_lost(again);
            }
            self.parts.lanes.publish();
            self.names_due = self.names_due.min(now);
        }
    }

    /// Stops reading some lanes without giving them up.
    fn unassign_where(&mut self, stop: impl Fn(&Lane) -> bool) {
        // While a revocation is open the client would take this call for its answer; what is read until then is dropped.
        if !self.revocations.is_empty() {
            return;
        }
        let mut list = TopicPartitionList::new();
        for lane in self.parts.lanes.iter_mut().filter(|lane| stop(lane)) {
            lane.assigned = false;
            list.add_partition(&lane.topic, lane.partition);
        }
        if list.count() > 0
            && let Err(error) = self.parts.consumer.incremental_unassign(&list)
        {
            warn!(%error, "stopping partitions failed");
        }
    }

    pub(crate) fn resume(&mut self, at: Vec<(LaneId, Position, u64)>) {
        for (id, position, generation) in at {
            if let Some(lane) = self.parts.lanes.named_mut(&id) {
                lane.phase = Phase::Starting(position);
                lane.generation = generation;
            }
        }
    }

    /// Assigns the lanes whose positions are known. A lane that was being read is unassigned first: a seek would fail where the
    /// client lost its position, and would leave old messages in flight.
    pub(crate) fn start_lanes(&mut self) {
        if !self.revocations.is_empty() || !self.parts.lanes.iter().any(|lane| matches!(lane.phase, Phase::Starting(_))) {
            return;
        }
        self.unassign_where(|lane| lane.assigned && matches!(lane.phase, Phase::Starting(_)));
        self.parts.lanes.set_proofs();
        let mut list = TopicPartitionList::new();
        for lane in self.parts.lanes.iter() {
            if let Phase::Starting(at) = lane.phase {
                self.parts.queue.forward(&lane.topic, lane.partition);
                let first = at.as_i64() - i64::from(lane.proof.is_some());
                if let Err(error) = list.add_partition_offset(&lane.topic, lane.partition, Offset::Offset(first)) {
                    error!(%error, topic = %lane.topic, "a position that the client does not take");
                }
            }
        }
        if let Err(error) = self.parts.consumer.incremental_assign(&list) {
            self.end(ErrorKind::Unavailable, format!("assigning {} partitions failed: {error}", list.count()));
            return;
        }
        for lane in self.parts.lanes.iter_mut() {
            if let Phase::Starting(at) = lane.phase {
                (lane.phase, lane.next, lane.assigned) = (Phase::Active, at, true);
                self.parts.queue.forward(&lane.topic, lane.partition);
            }
        }
    }
}

/// Failures that the client can't mend.
fn sorted(code: RDKafkaErrorCode) -> Option<ErrorKind> {
    use RDKafkaErrorCode as Code;
    match code {
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::InconsistentGroupProtocol
        | Code::InvalidSessionTimeout => Some(ErrorKind::Invalid),
        _ => None,
    }
}

/// What it means that the client will never work again. With the classic protocol the older of two members of one name is put
/// out, and coming back it would put out the other; with the new one the younger waits until the name is free.
fn given_up(code: RDKafkaErrorCode) -> (ErrorKind, String) {
    match code {
        RDKafkaErrorCode::FencedInstanceId => {
            let text = "another member joined the group with the same group_instance_id: each replica needs one of its own";
            (ErrorKind::Invalid, text.to_owned())
        }
        RDKafkaErrorCode::UnreleasedInstanceId => {
            let text = "another member has the same group_instance_id, or its session is not over yet: each replica needs one of its own";
            (ErrorKind::Unavailable, text.to_owned())
        }
        // The broker knows no such request, or has the protocol switched off.
        RDKafkaErrorCode::UnsupportedFeature | RDKafkaErrorCode::UnsupportedVersion => {
            let text = "the brokers do not speak group_protocol consumer (KIP-848, Kafka 4.0 and later): use classic";
            (ErrorKind::Invalid, text.to_owned())
        }
        _ => (ErrorKind::Unavailable, format!("the Kafka client gave up: {code}")),
    }
}
