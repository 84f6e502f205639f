//! What goes wrong, and when: a round of chaos as a list of acts in the order of their times. Pure; the seed decides everything.
//!
//! Promises: each fault of a cycle is the leading one of some round before any leads again; two faults of one round never meet at
//! the same place, so that each can begin and end by itself.

use std::time::Duration;

/// What may go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// kill -9 of a replica; another one starts.
    Kill,
    /// SIGTERM to a replica; another one starts meanwhile.
    Restart,
    /// SIGSTOP beyond the session time-out, then SIGCONT.
    Zombie,
    /// Every two seconds a replica joins or leaves.
    Storm,
    /// Every replica runs for a tenth of the time, in slices.
    Starved,
    /// All replicas stand still, and what they have not read yet is deleted on the bus.
    Retention,
    BrokerStopped,
    BrokerKilled,
    /// Every connection to the broker ends with a reset.
    BrokerReset,
    /// Latency and little bandwidth.
    BrokerSlow,
    /// Nothing arrives for a while, then all of it.
    BrokerSilent,
    /// Connections that swallow everything and never end.
    BrokerHalfOpen,
    StoreStopped,
    StoreKilled,
    StoreReset,
    StoreSlow,
    StoreSilent,
    StoreHalfOpen,
    /// 500, 503, 429 or a closed connection instead of the store's work.
    StoreErrors,
    /// 403 instead of the store's work: a token that has run out, a clock that is not the store's.
    StoreExpired,
    /// 500, 503, 429 after the store's work.
    ErrorsAfter,
    /// 409 for creates of records, whether it took effect or not.
    Conflicts,
    /// The store's work is done, the connection ends without an answer.
    LostReplies,
    /// The connection ends; the request reaches the store a while later.
    LateLanding,
    /// Answers that end early.
    CutReads,
    MorePartitions,
    /// The wall clocks of the replicas jump, each by itself, and go on jumping.
    Clocks,
}

/// Where faults happen; one at a time at each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Replicas,
    Broker,
    Store,
    Http,
    Clock,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 27] = [
        Self::Kill,
        Self::Restart,
        Self::Zombie,
        Self::Storm,
        Self::Starved,
        Self::Retention,
        Self::BrokerStopped,
        Self::BrokerKilled,
        Self::BrokerReset,
        Self::BrokerSlow,
        Self::BrokerSilent,
        Self::BrokerHalfOpen,
        Self::StoreStopped,
        Self::StoreKilled,
        Self::StoreReset,
        Self::StoreSlow,
        Self::StoreSilent,
        Self::StoreHalfOpen,
        Self::StoreErrors,
        Self::StoreExpired,
        Self::ErrorsAfter,
        Self::Conflicts,
        Self::LostReplies,
        Self::LateLanding,
        Self::CutReads,
        Self::MorePartitions,
        Self::Clocks,
    ];

    fn places(self) -> &'static [Place] {
        match self {
            Self::Kill | Self::Restart | Self::Zombie | Self::Storm | Self::Starved => &[Place::Replicas],
            // These ask the broker for something.
            Self::Retention => &[Place::Replicas, Place::Broker],
            Self::MorePartitions
            | Self::BrokerStopped
            | Self::BrokerKilled
            | Self::BrokerReset
            | Self::BrokerSlow
            | Self::BrokerSilent
            | Self::BrokerHalfOpen => &[Place::Broker],
            Self::StoreStopped
            | Self::StoreKilled
            | Self::StoreReset
            | Self::StoreSlow
            | Self::StoreSilent
            | Self::StoreHalfOpen => &[Place::Store],
            Self::StoreErrors
            | Self::StoreExpired
            | Self::ErrorsAfter
            | Self::Conflicts
            | Self::LostReplies
            | Self::LateLanding
            | Self::CutReads => &[Place::Http],
            Self::Clocks => &[Place::Clock],
        }
    }

    fn meets(self, other: Self) -> bool {
        self.places().iter().any(|place| other.places().contains(place))
    }

    /// The shortest and longest time between its begin and its end, in milliseconds.
    fn lasts(self) -> (u64, u64) {
        match self {
            // Past the session time-out of the replicas, see the world, until others have archived what was the zombie's.
            Self::Zombie => (13_000, 16_000),
            Self::Storm => (12_000, 16_000),
            // Past the session time-out.
            Self::Starved => (8_000, 12_000),
            // Well below it.
            Self::Retention => (1_500, 2_500),
            Self::Kill | Self::Restart | Self::BrokerReset | Self::StoreReset | Self::MorePartitions => (1_000, 1_000),
            Self::BrokerStopped | Self::BrokerKilled => (1_000, 4_000),
            _ => (4_000, 9_000),
        }
    }

    /// How often something more happens between begin and end.
    fn again_every(self) -> Option<u64> {
        match self {
            Self::Storm => Some(2_000),
            Self::Starved => Some(200),
            Self::Clocks => Some(1_500),
            Self::LateLanding => Some(700),
            Self::BrokerReset | Self::StoreReset => Some(400),
            _ => None,
        }
    }
}

/// Something to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Begin(Fault),
    Again(Fault),
    End(Fault),
}

/// Something to be done at a time after the begin of the round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Act {
    pub at: Duration,
    pub what: What,
}

/// The acts of a round: the fault whose turn it is, and up to two more at other places.
pub fn draw(seed: u64, round: u64) -> Vec<Act> {
    let count = Fault::ALL.len() as u64;
    let mut deck = Fault::ALL;
    fastrand::Rng::with_seed(seed ^ (round / count)).shuffle(&mut deck);
    let mut chance = fastrand::Rng::with_seed(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ round);
    let mut faults = vec![deck[(round % count) as usize]];
    for _ in 0..chance.usize(0..3) {
        let more = Fault::ALL[chance.usize(0..Fault::ALL.len())];
        if !faults.iter().any(|fault: &Fault| fault.meets(more)) {
            faults.push(more);
        }
    }
    acts(&faults, &mut chance)
}

/// The acts of a round with these faults alone.
pub fn only(seed: u64, faults: &[Fault]) -> Vec<Act> {
    acts(faults, &mut fastrand::Rng::with_seed(seed))
}

/// The acts of a round in which one fault lasts so long.
pub fn lasting(fault: Fault, length: Duration) -> Vec<Act> {
    of_one(fault, 500, length.as_millis() as u64)
}

fn acts(faults: &[Fault], chance: &mut fastrand::Rng) -> Vec<Act> {
    let mut acts = Vec::new();
    for fault in faults {
        let (shortest, longest) = fault.lasts();
        acts.extend(of_one(*fault, chance.u64(500..2_500), chance.u64(shortest..=longest)));
    }
    acts.sort_by_key(|act| act.at);
    acts
}

fn of_one(fault: Fault, begin: u64, length: u64) -> Vec<Act> {
    let act = |at, what| Act { at: Duration::from_millis(begin + at), what };
    let mut acts = vec![act(0, What::Begin(fault))];
    let every = fault.again_every().unwrap_or(length.max(1));
    acts.extend((1..).map(|times| times * every).take_while(|at| *at < length).map(|at| act(at, What::Again(fault))));
    acts.push(act(length, What::End(fault)));
    acts
}

#[test]
fn a_plan_follows_its_seed_and_every_fault_has_its_turn() {
    assert_eq!(draw(7, 3), draw(7, 3));
    assert_ne!(draw(7, 3), draw(8, 3));
    let begun = |acts: &[Act]| -> Vec<Fault> {
        let begun = acts.iter().filter_map(|act| if let What::Begin(fault) = act.what { Some(fault) } else { None });
        begun.collect()
    };
    for seed in 0..50 {
        let rounds: Vec<_> = (0..Fault::ALL.len() as u64).map(|round| begun(&draw(seed, round))).collect();
        assert!(Fault::ALL.iter().all(|fault| rounds.iter().any(|round| round.contains(fault))), "seed {seed}");
        for round in rounds {
            assert!(round.iter().all(|one| round.iter().filter(|other| other.meets(*one)).count() == 1), "{round:?}");
        }
    }
}
