//! What can go wrong in a simulated world, and what a writer is at when it does: the gate that no pair goes untried.

use std::fmt;

use tapedeck_storage::log::protocol::Phase;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The request never reaches the store; nobody answers.
    Lost,
    /// The store refuses for no good reason (500, 503, 429).
    Refused,
    /// It took effect, or was read; the answer is lost.
    ReplyLost,
    /// It took effect; the client repeated it by itself and met its own success.
    OwnSuccess,
    /// "It exists", though nothing lies there (409).
    Conflict,
    /// Another writer's record lies there.
    Taken,
    /// It is on its way long after its sender gave up, and lands.
    Late,
    /// A listing that does not show what landed lately.
    Lagging,
    /// The process is stopped, and goes on much later.
    Paused,
    /// The process dies, and comes back knowing nothing.
    Crashed,
    /// A lane goes to another writer; this one learns of it later.
    Moved,
    /// The wall clock jumps by up to a day, forwards or back.
    ClockJumped,
}

/// What a writer is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    /// Nothing: it waits for its next batch.
    Idle,
    Reading,
    Creating,
    Resolving,
    Listing,
    /// Between two tries.
    Waiting,
}

impl From<Phase> for At {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Reading => Self::Reading,
            Phase::Creating => Self::Creating,
            Phase::Resolving => Self::Resolving,
            Phase::Listing | Phase::Confirming => Self::Listing,
        }
    }
}

const FAULTS: [Fault; 12] = [
    Fault::Lost,
    Fault::Refused,
    Fault::ReplyLost,
    Fault::OwnSuccess,
    Fault::Conflict,
    Fault::Taken,
    Fault::Late,
    Fault::Lagging,
    Fault::Paused,
    Fault::Crashed,
    Fault::Moved,
    Fault::ClockJumped,
];

const STEPS: [At; 6] = [At::Idle, At::Reading, At::Creating, At::Resolving, At::Listing, At::Waiting];

/// Pairs that mean something; the others cannot happen.
fn can_meet(fault: Fault, at: At) -> bool {
    match fault {
        Fault::Lost | Fault::Refused | Fault::ReplyLost => !matches!(at, At::Idle | At::Waiting),
        Fault::OwnSuccess | Fault::Conflict | Fault::Taken | Fault::Late => at == At::Creating,
        Fault::Lagging => at == At::Listing,
        Fault::Paused => at != At::Idle,
        Fault::Crashed | Fault::Moved | Fault::ClockJumped => true,
    }
}

/// How often each fault met each step.
#[derive(Clone, Default)]
pub(crate) struct Coverage([[u64; STEPS.len()]; FAULTS.len()]);

impl Coverage {
    pub(crate) fn meet(&mut self, fault: Fault, at: At) {
        self.0[fault as usize][at as usize] += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, more) in self.0.iter_mut().flatten().zip(other.0.iter().flatten()) {
            *sum += more;
        }
    }

    /// Pairs that may happen and did not.
    pub(crate) fn untried(&self) -> Vec<(Fault, At)> {
        let pairs = FAULTS.iter().flat_map(|fault| STEPS.iter().map(move |at| (*fault, *at)));
        pairs.filter(|(fault, at)| can_meet(*fault, *at) && self.0[*fault as usize][*at as usize] == 0).collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:12}", "")?;
        STEPS.iter().try_for_each(|at| write!(f, "{:>12}", format!("{at:?}")))?;
        for fault in FAULTS {
            write!(f, "\n{:12}", format!("{fault:?}"))?;
            for at in STEPS {
                let count = self.0[fault as usize][at as usize];
                let text = if can_meet(fault, at) { count.to_string() } else { "-".to_owned() };
                write!(f, "{text:>12}")?;
            }
        }
        Ok(())
    }
}
