//! Where each partition of ours stands between "the group gave it to us" and "it is being read". Pure: no client, no clock.
//!
//! Promises: a lane is read only after its position was named, and only under the name (topic id) by which it was located.
//! The set of lanes that are ours is shared with the desk, so that it stops asking for lanes that are gone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tapedeck_common::bus::AssignedLane;
use tapedeck_common::position::{LaneId, Position, Span};

/// What a partition of ours waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// For the id of its topic.
    Naming,
    /// For the position to begin at.
    Waiting,
    /// For the poll thread to begin there.
    Starting(Position),
    /// For nothing: it is being read.
    Active,
    /// For this moment: its next event could not be read, and it is tried again then.
    Halted(Duration),
    /// For its batches to be safe; then it is given up.
    Revoking,
    /// For its batches to be safe; then it begins again: its position is not on the bus any more, or its topic is another one.
    Displaced,
}

impl Phase {
    /// True if nothing more is read and what was read is being made safe.
    fn is_settling(self) -> bool {
        matches!(self, Self::Revoking | Self::Displaced)
    }
}

/// One partition of ours.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    /// Its name in the archive, once the topic's id is known.
    pub(crate) id: Option<LaneId>,
    pub(crate) phase: Phase,
    /// True if it is assigned to the client, read or not.
    pub(crate) assigned: bool,
    /// Counts the caller's `resume`s: deliveries from before the last one are stale.
    pub(crate) generation: u64,
    /// The position after everything that was handed over.
    pub(crate) next: Position,
    /// The leader epoch under which the event before `next` was archived, while that event is still to be looked at once more.
    pub(crate) proof: Option<i32>,
}

impl Lane {
    /// Its name, if the caller has been told that it is ours.
    pub(crate) fn told(&self) -> Option<&LaneId> {
        self.id.as_ref().filter(|_| self.phase != Phase::Naming)
    }

    /// Stops it: its position or its topic is gone. Answers its name if the caller was told that it is ours; what the caller holds
    /// of it is then to be made safe before it begins again. Otherwise it begins again at once.
    pub(crate) fn displace(&mut self) -> Option<LaneId> {
        if self.phase.is_settling() {
            return None;
        }
        let told = self.told().cloned();
        self.phase = if told.is_some() { Phase::Displaced } else { Phase::Naming };
        told
    }

    /// Sends it back to the beginning: its topic must be named again, its position located again.
    /// Answers its name if the caller believes that it is ours.
    fn begin_again(&mut self) -> Option<LaneId> {
        let told = self.told().cloned();
        self.phase = Phase::Naming;
        told
    }
}

/// The lanes that are ours, as other threads may see them.
#[derive(Debug, Default)]
pub(crate) struct Owned {
    /// To be located and read, with the names of their topics.
    pub(crate) wanted: BTreeMap<LaneId, Arc<str>>,
    /// These, and those on their way out: what was committed of them may still be acknowledged.
    pub(crate) held: BTreeSet<LaneId>,
    /// Where the bus began and ended for a lane when it was last asked.
    pub(crate) bounds: BTreeMap<LaneId, Span>,
    /// A position that is archived, and the leader epoch under which the event before it was written.
    pub(crate) epochs: BTreeMap<LaneId, (Position, i32)>,
}

impl Owned {
    /// The leader epoch of the event before `at`, if it is known and the bus still has the event.
    fn epoch_before(&self, lane: &LaneId, at: Position) -> Option<i32> {
        let is_there = self.bounds.get(lane).is_some_and(|bounds| bounds.from() < at);
        self.epochs.get(lane).filter(|(position, _)| is_there && *position == at).map(|(_, epoch)| *epoch)
    }
}

/// Under which leader epochs the bus wrote what was handed over of a lane since it was resumed. They only grow, so a few runs of
/// positions tell all.
#[derive(Debug, Default)]
pub(crate) struct Epochs(VecDeque<(Position, Position, i32)>);

impl Epochs {
    /// The event before `until` was written under this epoch.
    pub(crate) fn note(&mut self, until: Position, epoch: i32) {
        match self.0.back_mut() {
            Some((_, last, same)) if *same == epoch => *last = until,
            _ => self.0.push_back((until, until, epoch)),
        }
    }

    /// The epoch of the event before `until`, if it is known. What came before is forgotten.
    pub(crate) fn before(&mut self, until: Position) -> Option<i32> {
        while self.0.front().is_some_and(|(_, last, _)| *last < until) {
            self.0.pop_front();
        }
        self.0.front().filter(|(first, _, _)| *first <= until).map(|(_, _, epoch)| *epoch)
    }
}

/// Shared between the poll thread, which writes it, the desk and the caller.
pub(crate) type Ours = Arc<Mutex<Owned>>;

/// What is in it; a thread that died can't have left it half written.
pub(crate) fn look_into(ours: &Ours) -> MutexGuard<'_, Owned> {
    ours.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All partitions of ours.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    by_topic: BTreeMap<Arc<str>, BTreeMap<i32, Lane>>,
    ours: Ours,
}

impl Lanes {
    pub(crate) fn new(ours: Ours) -> Self {
        Self { by_topic: BTreeMap::new(), ours }
    }

    pub(crate) fn get(&self, topic: &str, partition: i32) -> Option<&Lane> {
        self.by_topic.get(topic)?.get(&partition)
    }

    pub(crate) fn get_mut(&mut self, topic: &str, partition: i32) -> Option<&mut Lane> {
        self.by_topic.get_mut(topic)?.get_mut(&partition)
    }

    /// The lane of that name, if it is still ours under it and not on its way out.
    pub(crate) fn named_mut(&mut self, id: &LaneId) -> Option<&mut Lane> {
        self.iter_mut().find(|lane| !lane.phase.is_settling() && lane.told() == Some(id))
    }

    /// Displaced lanes of these names begin again. Answers those that did: the others were taken away meanwhile.
    pub(crate) fn begin_again(&mut self, displaced: &[LaneId]) -> Vec<LaneId> {
        let lanes = self.iter_mut().filter(|lane| lane.phase == Phase::Displaced);
        lanes.filter(|lane| lane.told().is_some_and(|id| displaced.contains(id))).filter_map(Lane::begin_again).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Lane> {
        self.by_topic.values().flat_map(BTreeMap::values)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Lane> {
        self.by_topic.values_mut().flat_map(BTreeMap::values_mut)
    }

    pub(crate) fn of_topic(&mut self, topic: &str) -> impl Iterator<Item = &mut Lane> {
        self.by_topic.get_mut(topic).into_iter().flat_map(BTreeMap::values_mut)
    }

    pub(crate) fn topics(&self) -> Vec<Arc<str>> {
        self.by_topic.keys().cloned().collect()
    }

    /// True if some partition's topic must still be named.
    pub(crate) fn wants_names(&self) -> bool {
        self.iter().any(|lane| lane.phase == Phase::Naming)
    }

    /// The group gave us this partition.
    pub(crate) fn add(&mut self, topic: &str, partition: i32) {
        let known = self.by_topic.keys().find(|known| &***known == topic).cloned();
        let topic = known.unwrap_or_else(|| Arc::from(topic));
        let lane = Lane {
            topic: Arc::clone(&topic),
            partition,
            id: None,
            phase: Phase::Naming,
            assigned: false,
            generation: 0,
            next: Position::default(),
            proof: None,
        };
        self.by_topic.entry(topic).or_default().insert(partition, lane);
    }

    /// The partition is not ours any more.
    pub(crate) fn remove(&mut self, topic: &str, partition: i32) -> Option<Lane> {
        let partitions = self.by_topic.get_mut(topic)?;
        let lane = partitions.remove(&partition);
        if partitions.is_empty() {
            self.by_topic.remove(topic);
        }
        lane
    }

    /// The topic's id is known: names the lanes that wait for it. Lanes that go by another id begin again first.
    pub(crate) fn name(&mut self, topic: &str, source: &Arc<str>) -> Named {
        let mut named = Named::default();
        for lane in self.of_topic(topic) {
            if lane.id.as_ref().is_some_and(|id| id.source != *source) {
                named.displaced.extend(lane.displace());
            }
            if lane.phase != Phase::Naming {
                continue;
            }
            let id = LaneId::new(Arc::clone(source), lane.partition);
            lane.id = Some(id.clone());
            lane.phase = Phase::Waiting;
            named.told.push(AssignedLane { lane: id, topic: Arc::clone(&lane.topic) });
        }
        named
    }

    /// Says for the lanes that begin now which of them look at the event before once more, and what its leader epoch must be.
    pub(crate) fn set_proofs(&mut self) {
        let ours = Arc::clone(&self.ours);
        let ours = look_into(&ours);
        for lane in self.iter_mut() {
            if let Phase::Starting(at) = lane.phase {
                lane.proof = lane.id.as_ref().and_then(|id| ours.epoch_before(id, at));
            }
        }
    }

    /// Shows the other threads which lanes are ours now.
    pub(crate) fn publish(&self) {
        let held: BTreeSet<LaneId> = self.iter().filter_map(Lane::told).cloned().collect();
        let reading = self.iter().filter(|lane| !lane.phase.is_settling());
        let wanted = reading.filter_map(|lane| Some((lane.told()?.clone(), Arc::clone(&lane.topic)))).collect();
        let mut ours = look_into(&self.ours);
        ours.bounds.retain(|lane, _| held.contains(lane));
        ours.epochs.retain(|lane, _| held.contains(lane));
        (ours.held, ours.wanted) = (held, wanted);
    }
}

/// What naming a topic's lanes changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Named {
    /// Names that are gone: the topic was made anew.
    pub(crate) displaced: Vec<LaneId>,
    /// Lanes that the caller is to be told of.
    pub(crate) told: Vec<AssignedLane>,
}

/// The full name of a source: the cluster and the topic's id, which a topic made anew does not share.
pub(crate) fn source_name(cluster: &str, topic_id: &str) -> Arc<str> {
    Arc::from(format!("{}{topic_id}/0", source_prefix(cluster)))
}

/// What the names of all sources of a cluster begin with.
pub(crate) fn source_prefix(cluster: &str) -> String {
    format!("kafka/{cluster}/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_told_once_its_topic_is_named_and_not_twice() {
        let mut lanes = Lanes::default();
        lanes.add("t", 0);
        lanes.add("t", 1);
        let source = source_name("c", "id1");
        let named = lanes.name("t", &source);
        assert_eq!(named.told.len(), 2);
        assert_eq!(named.told[0].lane.to_string(), "kafka/c/id1/0/0");
        assert_eq!(lanes.name("t", &source), Named::default());
        lanes.add("t", 2);
        assert_eq!(lanes.name("t", &source).told.len(), 1);
    }

    #[test]
    fn a_topic_made_anew_makes_the_old_lane_safe_and_then_gives_another() {
        let mut lanes = Lanes::default();
        lanes.add("t", 0);
        lanes.name("t", &source_name("c", "old"));
        lanes.get_mut("t", 0).expect("there").phase = Phase::Active;
        let (old, new) = (LaneId::new("kafka/c/old/0", 0), source_name("c", "new"));
        assert_eq!(lanes.name("t", &new), Named { displaced: vec![old.clone()], told: Vec::new() });
        assert_eq!(lanes.name("t", &new), Named::default(), "what is held of it is not safe yet");
        assert_eq!(lanes.begin_again(std::slice::from_ref(&old)), [old]);
        assert_eq!(lanes.name("t", &new).told[0].lane, LaneId::new("kafka/c/new/0", 0));
        assert_eq!(lanes.get("t", 0).map(|lane| lane.phase), Some(Phase::Waiting));
    }

    #[test]
    fn a_displaced_lane_is_told_again_under_the_same_name_unless_it_is_taken_away_meanwhile() {
        let mut lanes = Lanes::default();
        let source = source_name("c", "id");
        let id = |partition| LaneId::new(Arc::clone(&source), partition);
        (0..2).for_each(|partition| lanes.add("t", partition));
        lanes.name("t", &source);
        for partition in 0..2 {
            let lane = lanes.get_mut("t", partition).expect("there");
            assert_eq!((lane.displace(), lane.displace()), (Some(id(partition)), None));
        }
        lanes.get_mut("t", 1).expect("there").phase = Phase::Revoking;
        assert_eq!(lanes.begin_again(&[id(0), id(1)]), [id(0)]);
        let told: Vec<_> = lanes.name("t", &source).told.into_iter().map(|told| told.lane).collect();
        assert_eq!(told, [id(0)]);
    }

    #[test]
    fn the_event_before_is_looked_at_where_it_is_known_and_there() {
        let (id, at) = (LaneId::new("s", 0), Position::new);
        let mut owned = Owned::default();
        owned.epochs.insert(id.clone(), (at(10), 3));
        assert_eq!(owned.epoch_before(&id, at(10)), None, "nobody knows where the bus begins");
        for (from, asked, epoch) in [(9, 10, Some(3)), (10, 10, None), (0, 9, None), (0, 11, None)] {
            owned.bounds.insert(id.clone(), Span::new(at(from), at(20)).expect("forward"));
            assert_eq!(owned.epoch_before(&id, at(asked)), epoch, "the bus begins at {from}, asked for {asked}");
        }
    }

    #[test]
    fn epochs_are_told_for_positions_between_events_of_one_epoch_and_no_others() {
        let at = Position::new;
        let mut epochs = Epochs::default();
        for (until, epoch) in [(10, 1), (20, 1), (30, 2)] {
            epochs.note(at(until), epoch);
        }
        let told = [(9, None), (10, Some(1)), (15, Some(1)), (20, Some(1)), (25, None), (30, Some(2)), (31, None)];
        for (until, epoch) in told {
            assert_eq!(epochs.before(at(until)), epoch, "before {until}");
        }
        epochs.note(at(40), 2);
        assert_eq!(epochs.before(at(40)), Some(2));
    }

    #[test]
    fn a_lane_on_its_way_out_is_neither_renamed_nor_shown() {
        let mut lanes = Lanes::default();
        lanes.add("t", 0);
        lanes.name("t", &source_name("c", "old"));
        lanes.publish();
        assert_eq!(look_into(&lanes.ours).wanted.len(), 1);
        lanes.get_mut("t", 0).expect("there").phase = Phase::Revoking;
        assert_eq!(lanes.name("t", &source_name("c", "new")), Named::default());
        lanes.publish();
        assert!(look_into(&lanes.ours).wanted.is_empty());
        assert_eq!(look_into(&lanes.ours).held.len(), 1);
    }
}
