//! Faults of a store, and when they strike: written down by a test, or drawn from a seed. And how far away it is.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tapedeck_common::clock::Clock;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// An object in one piece.
    Put,
    /// Beginning an upload in parts.
    Begin,
    /// One part of it.
    Part,
    /// Finishing it: only then the object is there.
    Complete,
    /// Giving it up.
    Abort,
    /// Reading an object, or its head, or ranges of it.
    Get,
    /// Listing.
    List,
    /// Deleting.
    Delete,
    /// Copying or renaming.
    Copy,
}

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// It fails, and nothing happened.
    FailBefore,
    /// It fails, and it happened all the same: the answer was lost.
    FailAfter,
    /// Somebody else was at the same key (409): "already exists", and nothing happened.
    Conflict,
    /// Refused for want of rights.
    Deny,
    /// No answer until the test releases it; then it is done as usual.
    HangBefore,
    /// It is done; no answer until the test releases it.
    HangAfter,
    /// It fails, and happens later, when the test lets it land: a request that was still on its way. For puts only.
    Late,
    /// A listing that does not show what was stored last. For listings only.
    Lagging,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// When a fault strikes: at requests of a kind, to a key with a certain part, after some that pass, for so many times.
#[derive(Debug, Clone)]
pub struct When {
    call: Option<Call>,
    part: String,
    after: u64,
    times: u64,
}

impl When {
    /// At every request.
    pub fn always() -> Self {
        Self { call: None, part: String::new(), after: 0, times: u64::MAX }
    }

    /// At every request of this kind.
    pub fn at(call: Call) -> Self {
        Self { call: Some(call), ..Self::always() }
    }

    /// Only where the key contains this.
    #[must_use]
    pub fn to(self, part: &str) -> Self {
        Self { part: part.to_owned(), ..self }
    }

    /// Only once so many have passed.
    #[must_use]
    pub fn after(self, passed: u64) -> Self {
        Self { after: passed, ..self }
    }

    /// Only so many times.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { times, ..self }
    }

    /// Only the next time.
    #[must_use]
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// True if it strikes at this request; counts it.
    pub(super) fn strikes(&mut self, call: Call, key: &str) -> bool {
        if self.call.is_some_and(|of| of != call) || !key.contains(&self.part) || self.times == 0 {
            return false;
        }
        if self.after > 0 {
            self.after -= 1;
            return false;
        }
        self.times -= 1;
        true
    }
}

/// Faults by chance. Every request has the same chance of each fault that it can suffer.
#[derive(Debug)]
pub struct Chaos {
    /// Where chance comes from.
    pub rng: fastrand::Rng,
    /// The chance of any fault, in [0, 1].
    pub rate: f64,
    /// Those that may strike.
    pub faults: Vec<Fault>,
}

impl Chaos {
    pub(super) fn draw(&mut self, call: Call) -> Option<Fault> {
        if self.rng.f64() >= self.rate {
            return None;
        }
        let possible: Vec<_> = self.faults.iter().copied().filter(|fault| can_suffer(call, *fault)).collect();
        (!possible.is_empty()).then(|| possible[self.rng.usize(..possible.len())])
    }
}

/// How far away a store is: every request takes a time of its own, half of it before anything happens.
pub struct Distance {
    /// On which it passes.
    pub clock: Arc<dyn Clock>,
    /// Where chance comes from.
    pub rng: fastrand::Rng,
    /// The shortest and the longest request, in microseconds; all between are as likely.
    pub micros: RangeInclusive<u64>,
}

impl fmt::Debug for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Distance({:?} us)", self.micros)
    }
}

impl Distance {
    /// The way there, which is as long as the way back.
    pub(super) fn draw(&mut self) -> (Arc<dyn Clock>, Duration) {
        (Arc::clone(&self.clock), Duration::from_micros(self.rng.u64(self.micros.clone()) / 2))
    }
}

/// A key that exists is a thing of puts alone, and only listings can leave something out.
fn can_suffer(call: Call, fault: Fault) -> bool {
    match fault {
        Fault::Conflict | Fault::Late => call == Call::Put,
        Fault::Lagging => call == Call::List,
        _ => true,
    }
}
