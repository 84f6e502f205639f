//! The group's coordinator: which member has which lane, and what members are told about it, under a test's hand.
//! Invariant: by the coordinator's own book a lane has one owner; only [`MemoryBus::steal`] lets a second one read it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tapedeck_common::bus::{AssignedLane, BusError, Incoming, RevokeGuard};
use tapedeck_common::clock::Clock as _;
use tapedeck_common::commit::Receipt;
use tapedeck_common::limits::REVOKE_GRACE;
use tapedeck_common::position::{LaneId, Position, Span};
use tokio::sync::watch;

use super::{MemoryBus, State};

/// One member of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(u32);

#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) members: BTreeMap<MemberId, Member>,
    owners: BTreeMap<LaneId, MemberId>,
    joined: u32,
    acknowledged: BTreeMap<LaneId, Position>,
    fenced: u64,
}

/// What the bus knows of a member, and what the member has not heard yet.
#[derive(Debug, Default)]
pub(super) struct Member {
    pub(super) mailbox: VecDeque<Result<Incoming, BusError>>,
    pub(super) lanes: BTreeMap<LaneId, Reading>,
    /// The lane whose turn it is; reading goes round so that no lane starves another.
    pub(super) turn: usize,
    /// When it is to be told next where the bus ends; `None` before it ever asked for something.
    pub(super) ends_due: Option<Duration>,
}

/// A lane as one member reads it.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) topic: Arc<str>,
    /// Where the next run begins; `None` until the lane is resumed.
    pub(super) next: Option<Position>,
    /// The position at which the member was last told that there is nothing more.
    pub(super) idle: Option<Position>,
    /// Where the bus began and ended when it was last asked.
    pub(super) bounds: Option<Span>,
}

/// A revocation under way.
#[derive(Debug)]
pub struct Revocation {
    ended: watch::Receiver<bool>,
}

impl Revocation {
    /// True once the member let go, or ran out of time.
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) {
        // An error means that the bus itself is gone, and then nothing is revoked any more.
        let _ = self.ended.wait_for(|ended| *ended).await;
    }
}

impl State {
    /// Notes lanes as a member's; does not say so to it.
    fn give(&mut self, to: MemberId, lanes: &[LaneId]) -> Vec<AssignedLane> {
        let topics: BTreeMap<_, _> =
            self.topics.iter().map(|(name, topic)| (Arc::clone(&topic.source), Arc::clone(name))).collect();
        let Some(member) = self.group.members.get_mut(&to) else { return Vec::new() };
        let mut assigned = Vec::new();
        for lane in lanes {
            let Some(topic) = topics.get(&lane.source) else { continue };
            self.group.owners.insert(lane.clone(), to);
            member.lanes.insert(lane.clone(), Reading { topic: Arc::clone(topic), next: None, idle: None, bounds: None });
            assigned.push(AssignedLane { lane: lane.clone(), topic: Arc::clone(topic) });
        }
        assigned
    }

    pub(super) fn assign(&mut self, to: MemberId, lanes: &[LaneId]) {
        // A member that still reads what it no longer owned hears of that first, as a client does that was fenced.
        let fenced = self.take(to, lanes);
        if !fenced.is_empty() {
            self.tell(to, Incoming::Lost(fenced));
        }
        let assigned = self.give(to, lanes);
        self.tell(to, Incoming::Assigned(assigned));
    }

    fn tell(&mut self, member: MemberId, news: Incoming) {
        if let Some(member) = self.group.members.get_mut(&member) {
            member.mailbox.push_back(Ok(news));
        }
    }

    /// Takes lanes from a member; answers those that it had.
    fn take(&mut self, from: MemberId, lanes: &[LaneId]) -> Vec<LaneId> {
        let Some(member) = self.group.members.get_mut(&from) else { return Vec::new() };
        let taken: Vec<_> = lanes.iter().filter(|lane| member.lanes.remove(*lane).is_some()).cloned().collect();
        self.group.owners.retain(|lane, owner| *owner != from || !taken.contains(lane));
        taken
    }

    /// A member is gone; its lanes are nobody's.
    pub(super) fn remove_member(&mut self, member: MemberId) {
        self.group.members.remove(&member);
        self.group.owners.retain(|_, owner| *owner != member);
    }

    pub(super) fn add_member(&mut self) -> MemberId {
        let id = MemberId(self.group.joined);
        self.group.joined += 1;
        self.group.members.insert(id, Member::default());
        id
    }

    /// Notes what a member acknowledges, for the lanes that it owns by the coordinator's book.
    pub(super) fn acknowledge(&mut self, member: MemberId, receipt: &Receipt) {
        for (lane, span) in receipt.spans().iter() {
            if self.group.owners.get(lane) == Some(&member) {
                self.group.acknowledged.insert(lane.clone(), span.until());
            } else {
                self.group.fenced += 1;
            }
        }
    }
}

impl MemoryBus {
    /// Assigns lanes that nobody owns.
    ///
    /// # Panics
    /// If somebody owns one of them: then it must be revoked, lost or stolen first.
    pub fn assign(&self, to: MemberId, lanes: &[LaneId]) {
        self.change(|state| {
            for lane in lanes {
                assert_eq!(state.group.owners.get(lane), None, "{lane} has an owner");
            }
            state.assign(to, lanes);
        });
    }

    /// Revokes lanes: the member may still commit what it holds, until it lets go or [`REVOKE_GRACE`] is over.
    pub fn revoke(&self, from: MemberId, lanes: &[LaneId]) -> Revocation {
        self.revoke_then(from, lanes, |_| {})
    }

    /// Revokes lanes; when that has ended they are assigned to `to`.
    pub fn hand_over(&self, from: MemberId, to: MemberId, lanes: &[LaneId]) -> Revocation {
        let moved = lanes.to_vec();
        self.revoke_then(from, lanes, move |state| state.assign(to, &moved))
    }

    pub(super) fn revoke_then(
        &self,
        from: MemberId,
        lanes: &[LaneId],
        then: impl FnOnce(&mut State) + Send + 'static,
    ) -> Revocation {
        let (guard, mut gone) = RevokeGuard::new();
        self.change(|state| {
            let taken = state.take(from, lanes);
            // By the book they stay its own while the guard lives, so that it can acknowledge what it commits.
            state.group.owners.extend(taken.iter().map(|lane| (lane.clone(), from)));
            state.tell(from, Incoming::Revoking(taken, guard));
        });
        let (end, ended) = watch::channel(false);
        let (bus, lanes) = (self.clone(), lanes.to_vec());
        let deadline = self.0.clock.monotonic() + REVOKE_GRACE;
        tokio::spawn(async move {
            tokio::select! {
                _ = gone.recv() => {}
                () = bus.0.clock.sleep_until(deadline) => {}
            }
            bus.change(|state| {
                state.group.owners.retain(|lane, owner| *owner != from || !lanes.contains(lane));
                then(state);
            });
            end.send_replace(true);
        });
        Revocation { ended }
    }

    /// The session of a member ran out for these lanes: it hears that they are lost, and nobody owns them.
    pub fn lose(&self, from: MemberId, lanes: &[LaneId]) {
        self.change(|state| {
            let taken = state.take(from, lanes);
            state.tell(from, Incoming::Lost(taken));
        });
    }

    /// The bus cannot hand over the next event of a lane: its owner hears why, and gets nothing more of it until it is assigned again.
    pub fn halt(&self, lane: &LaneId, error: BusError) {
        self.change(|state| {
            let Some(owner) = state.group.owners.get(lane).copied() else { return };
            let reading = state.group.members.get_mut(&owner).and_then(|member| member.lanes.get_mut(lane));
            reading.expect("owned").next = None;
            state.tell(owner, Incoming::Halted(lane.clone(), error));
        });
    }

    /// Makes zombies: `to` owns these lanes from now on, and who had them before does not know it and reads on.
    /// [`Self::lose`] tells it later, or being assigned them again.
    pub fn steal(&self, to: MemberId, lanes: &[LaneId]) {
        self.change(|state| state.assign(to, lanes));
    }

    /// Deals all lanes of all topics out to the members that are there, evenly, by revoking only what must move.
    pub fn rebalance(&self) {
        let moves = self.change(|state| {
            let members: Vec<_> = state.group.members.keys().copied().collect();
            let mut moves: BTreeMap<(Option<MemberId>, MemberId), Vec<LaneId>> = BTreeMap::new();
            let lanes =
                state.topics.values().flat_map(|topic| (0..topic.partitions.len()).map(|partition| topic.lane(partition as i32)));
            for (number, lane) in lanes.enumerate() {
                let Some(to) = members.get(number % members.len().max(1)).copied() else { continue };
                let from = state.group.owners.get(&lane).copied();
                if from != Some(to) {
                    moves.entry((from, to)).or_default().push(lane);
                }
            }
            moves
        });
        for ((from, to), lanes) in moves {
            match from {
                Some(from) => drop(self.hand_over(from, to, &lanes)),
                None => self.assign(to, &lanes),
            }
        }
    }

    /// The next call of a member's `next` fails with this.
    pub fn fail_next(&self, member: MemberId, error: BusError) {
        self.change(|state| {
            if let Some(member) = state.group.members.get_mut(&member) {
                member.mailbox.push_back(Err(error));
            }
        });
    }

    /// Who owns a lane by the coordinator's book.
    pub fn owner(&self, lane: &LaneId) -> Option<MemberId> {
        self.state().group.owners.get(lane).copied()
    }

    /// How far each lane was acknowledged by its owner.
    pub fn acknowledged(&self) -> BTreeMap<LaneId, Position> {
        self.state().group.acknowledged.clone()
    }

    /// How many acknowledgements were refused because the member no longer owned the lane.
    pub fn fenced_acknowledgements(&self) -> u64 {
        self.state().group.fenced
    }
}
