//! Up to which moment a lane is archived: the bus is asked now and then where it ends, and once everything up to there is in
//! the archive, everything that the bus held at the moment of the question is. Pure: no clock, no bus.
//!
//! Promises: the watermark never passes an event that the bus held and the archive does not; it stands still while the bus can
//! not be asked; a clock that was ahead takes it back with it once it is right again.

use std::collections::VecDeque;

use tapedeck_common::position::Position;
use tapedeck_common::time::Timestamp;

/// Answers that wait for the archive. With more, every second one is forgotten: the watermark then takes larger steps.
const WAITING_MAX: usize = 32;

/// One lane's.
#[derive(Debug, Clone, Default)]
pub struct Watermark {
    reached: Option<Timestamp>,
    /// Ends of the bus with the moments of the questions, earliest first.
    waiting: VecDeque<(Position, Timestamp)>,
}

impl Watermark {
    /// Asked at `asked`, the bus ended at `end`.
    pub fn bus_ended(&mut self, end: Position, asked: Timestamp) {
        // Earlier questions with later moments were asked by a clock that was ahead: those moments had not come yet.
        self.reached = self.reached.map(|reached| reached.min(asked));
        self.waiting.iter_mut().for_each(|(_, moment)| *moment = asked.min(*moment));
        if let Some(last) = self.waiting.back_mut().filter(|last| last.0 == end) {
            last.1 = asked;
            return;
        }
        if self.waiting.len() == WAITING_MAX {
            let mut number = 0;
            self.waiting.retain(|_| {
                number += 1;
                number % 2 == 1
            });
        }
        self.waiting.push_back((end, asked));
    }

    /// Everything before `until` is in the archive.
    pub fn archived(&mut self, until: Position) {
        if let Some(last) = self.waiting.iter().rposition(|(end, _)| *end <= until) {
            let reached = self.waiting.drain(..=last).map(|(_, asked)| asked).max();
            self.reached = self.reached.max(reached);
        }
    }

    /// Everything that the bus held before this moment is in the archive.
    pub fn get(&self) -> Option<Timestamp> {
        self.reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn it_moves_to_the_last_question_whose_end_is_archived() {
        let mut mark = Watermark::default();
        for (end, asked) in [(10, 1), (20, 2), (20, 3), (30, 4)] {
            mark.bus_ended(Position::new(end), at(asked));
        }
        for (until, reached) in [(9, None), (10, Some(1)), (29, Some(3)), (29, Some(3)), (31, Some(4)), (99, Some(4))] {
            mark.archived(Position::new(until));
            assert_eq!(mark.get(), reached.map(at), "archived up to {until}");
        }
    }

    #[test]
    fn an_idle_lane_moves_with_each_question() {
        let mut mark = Watermark::default();
        for asked in 1..1_000 {
            mark.bus_ended(Position::new(5), at(asked));
            mark.archived(Position::new(5));
            assert_eq!(mark.get(), Some(at(asked)));
        }
    }

    #[test]
    fn a_clock_that_was_ahead_takes_the_watermark_back_with_it() {
        let mut mark = Watermark::default();
        for (end, asked) in [(10, 5_000), (20, 5_001), (20, 3)] {
            mark.bus_ended(Position::new(end), at(asked));
            mark.archived(Position::new(10));
        }
        assert_eq!(mark.get(), Some(at(3)));
        mark.archived(Position::new(20));
        assert_eq!(mark.get(), Some(at(3)), "what waited was asked by the wrong clock too");
        mark.bus_ended(Position::new(20), at(5));
        mark.archived(Position::new(20));
        assert_eq!(mark.get(), Some(at(5)));
    }

    #[test]
    fn a_long_wait_is_remembered_coarsely_and_never_too_late() {
        let mut mark = Watermark::default();
        for step in 1..=10_000 {
            mark.bus_ended(Position::new(step), at(step as i64));
            assert!(mark.waiting.len() <= WAITING_MAX);
        }
        let mut before = None;
        for until in (1..=10_000).step_by(100) {
            mark.archived(Position::new(until));
            assert!(mark.get() >= before && mark.get().is_none_or(|reached| reached <= at(until as i64)), "at {until}: {mark:?}");
            before = mark.get();
        }
        mark.archived(Position::new(10_000));
        assert_eq!(mark.get(), Some(at(10_000)));
    }
}
