//! What a queue's channel has handed over, and what of it was settled: two numbers.
//!
//! A channel counts its deliveries from 1 on; position p of its lane is tag p + 1. Records of a lane tile, and commits of a table
//! come one after another, so what may be acknowledged is always all up to some tag. Pure.
//! Never: answers tag 0 (which means all), a tag that did not come, or one twice: the broker would close the channel for it.

use tapedeck_common::position::Position;

/// A delivery that is not the one after the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("delivery {came} came after {last} on one channel")]
pub(crate) struct OutOfTurn {
    last: u64,
    came: u64,
}

/// One channel's deliveries.
#[derive(Debug, Default)]
pub(crate) struct Tags {
    delivered: u64,
    settled: u64,
}

impl Tags {
    /// A delivery came.
    pub(crate) fn arrived(&mut self, tag: u64) -> Result<Position, OutOfTurn> {
        if tag != self.delivered + 1 {
            return Err(OutOfTurn { last: self.delivered, came: tag });
        }
        self.delivered = tag;
        Ok(Position::new(tag - 1))
    }

    /// All before `until` is in the log: the tag up to which to acknowledge, if there is anything new.
    pub(crate) fn acknowledge(&mut self, until: Position) -> Option<u64> {
        let tag = until.get().min(self.delivered);
        if tag <= self.settled {
            return None;
        }
        self.settled = tag;
        Some(tag)
    }

    /// The tag up to which to give back what was not settled, if there is any.
    pub(crate) fn give_back(&mut self) -> Option<u64> {
        self.acknowledge(Position::new(self.delivered))
    }

    /// The position after the last delivery.
    pub(crate) const fn next(&self) -> Position {
        Position::new(self.delivered)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn deliveries_come_in_turn() {
        let mut tags = Tags::default();
        assert_eq!(tags.arrived(1), Ok(Position::new(0)));
        assert_eq!(tags.arrived(2), Ok(Position::new(1)));
        for came in [0, 2, 4] {
            assert_eq!(tags.arrived(came), Err(OutOfTurn { last: 2, came }));
        }
        assert_eq!(tags.next(), Position::new(2));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Arrive,
        /// Share of what was delivered that is in the log now, in 255ths.
        Commit(u8),
        GiveBack,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![4 => Just(Step::Arrive), 2 => any::<u8>().prop_map(Step::Commit), 1 => Just(Step::GiveBack)];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        /// A broker that checks: each tag is settled once, in order, and nothing is acknowledged that is not in the log.
        #[test]
        fn what_is_acknowledged_is_in_the_log_and_settled_once(steps in steps()) {
            let (mut tags, mut delivered, mut settled, mut committed) = (Tags::default(), 0, 0, 0);
            for step in steps {
                let (answer, limit) = match step {
                    Step::Arrive => {
                        delivered += 1;
                        prop_assert_eq!(tags.arrived(delivered), Ok(Position::new(delivered - 1)));
                        continue;
                    }
                    Step::Commit(share) => {
                        committed = committed.max(delivered * u64::from(share) / 255);
                        (tags.acknowledge(Position::new(committed)), committed)
                    }
                    Step::GiveBack => (tags.give_back(), delivered),
                };
                if let Some(tag) = answer {
                    prop_assert!(settled < tag && tag <= limit);
                    settled = tag;
                }
                prop_assert!(settled >= limit, "nothing is forgotten");
            }
        }
    }
}
