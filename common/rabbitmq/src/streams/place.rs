//! Where a stream's lane goes on, given the log and what could be learned of the stream's ends. Pure.
//!
//! Over AMQP 0-9-1 nobody tells where a stream begins or ends: both are looked for by reading there. So the end is only known to be
//! at least what was seen, and a stream that hands over nothing is either empty or slow, or holds nothing that AMQP can carry.

use tapedeck_common::bus::Located;
use tapedeck_common::commit::GapCause;
use tapedeck_common::position::{Position, Span};

use crate::config::OnRecreated;

/// What was seen of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Ends {
    /// Its first event; `None` if none was handed over.
    pub(crate) first: Option<Position>,
    /// It ends here or later; `None` if the last events could not be read.
    pub(crate) end: Option<Position>,
    /// Events by the broker's own count, which is late and counts what is no event: good only to doubt that there are none.
    pub(crate) counted: u32,
}

/// Where a stream begins that the log has never seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    First,
    End,
    /// There. Nothing that is handed over in time may mean that nothing is that young, or that the broker seeks for long: then it
    /// begins at the first event, with more than was asked for and never less.
    Since(Option<Position>),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Placed {
    /// This is the answer.
    At(Located),
    /// It may only have been slow: once more, in a while.
    LookAgain,
    /// It was made anew: a lane of the next generation begins.
    Anew,
    /// It holds something and hands over nothing.
    Silent,
}

/// `doubted`: this is the second look.
pub(crate) fn place(log: Option<Position>, begin: Begin, ends: &Ends, doubted: bool, on_recreated: OnRecreated) -> Placed {
    let Some(first) = ends.first else {
        return match log {
            Some(log) if log == Position::default() => Placed::At(Located::Continue(log)),
            _ if !doubted => Placed::LookAgain,
            _ if ends.counted > 0 => Placed::Silent,
            None => Placed::At(Located::Start(Position::default())),
            Some(log) => short_of(log, Position::default(), true, on_recreated),
        };
    };
    let Some(log) = log else {
        let end = ends.end.unwrap_or(first);
        let start = match begin {
            Begin::First => first,
            Begin::End => end,
            Begin::Since(None) if !doubted => return Placed::LookAgain,
            Begin::Since(found) => found.unwrap_or(first),
        };
        return Placed::At(Located::Start(start.max(first)));
    };
    match (Span::new(log, first), ends.end) {
        (Ok(lost), _) if !lost.is_empty() => Placed::At(Located::Gap(lost, GapCause::Retention)),
        (_, Some(end)) if log > end && !doubted => Placed::LookAgain,
        (_, None) if log > first && !doubted => Placed::LookAgain,
        (_, Some(end)) if log > end => short_of(log, end, first == Position::default(), on_recreated),
        _ => Placed::At(Located::Continue(log)),
    }
}

/// A stream that begins at 0 may be another one of the same name; one that begins later has lost its tail, whatever is configured.
fn short_of(log: Position, bus_end: Position, from_zero: bool, on_recreated: OnRecreated) -> Placed {
    match on_recreated {
        OnRecreated::Begin if from_zero => Placed::Anew,
        _ => Placed::At(Located::Beyond { log, bus_end }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(position: u64) -> Position {
        Position::new(position)
    }

    fn ends(first: Option<u64>, end: Option<u64>, counted: u32) -> Ends {
        Ends { first: first.map(at), end: end.map(at), counted }
    }

    #[test]
    fn a_stream_that_the_log_does_not_know_begins_where_it_was_asked_to() {
        let start = |position| Placed::At(Located::Start(at(position)));
        let cases = [
            (Begin::First, ends(Some(3), Some(9), 6), start(3)),
            (Begin::End, ends(Some(3), Some(9), 6), start(9)),
            (Begin::End, ends(Some(3), None, 6), start(3)),
            (Begin::Since(Some(at(5))), ends(Some(3), Some(9), 6), start(5)),
            (Begin::Since(Some(at(2))), ends(Some(3), Some(9), 6), start(3)),
            (Begin::Since(None), ends(Some(3), Some(9), 6), Placed::LookAgain),
        ];
        for (begin, ends, placed) in cases {
            assert_eq!(place(None, begin, &ends, false, OnRecreated::Halt), placed, "{begin:?} in {ends:?}");
        }
        let silent = ends(Some(3), Some(9), 6);
        assert_eq!(place(None, Begin::Since(None), &silent, true, OnRecreated::Halt), start(3), "more, never less");
        let nothing = ends(None, None, 0);
        assert_eq!(place(None, Begin::First, &nothing, false, OnRecreated::Halt), Placed::LookAgain);
        assert_eq!(place(None, Begin::First, &nothing, true, OnRecreated::Halt), start(0));
        assert_eq!(place(None, Begin::First, &ends(None, None, 7), true, OnRecreated::Halt), Placed::Silent);
    }

    #[test]
    fn a_stream_goes_on_where_log_and_broker_agree() {
        let lost = Span::new(at(2), at(3)).expect("forward");
        let beyond = |log, bus_end| Placed::At(Located::Beyond { log: at(log), bus_end: at(bus_end) });
        let goes_on = |log| Placed::At(Located::Continue(at(log)));
        // Log, first, end, counted; the answer at first sight, at the second look, and then with `on_recreated: begin`.
        let cases = [
            (5, ends(Some(3), Some(9), 0), goes_on(5), goes_on(5), goes_on(5)),
            (3, ends(Some(3), Some(9), 0), goes_on(3), goes_on(3), goes_on(3)),
            (9, ends(Some(3), Some(9), 0), goes_on(9), goes_on(9), goes_on(9)),
            (9, ends(Some(3), None, 0), Placed::LookAgain, goes_on(9), goes_on(9)),
            (0, ends(None, None, 0), goes_on(0), goes_on(0), goes_on(0)),
            (10, ends(Some(3), Some(9), 0), Placed::LookAgain, beyond(10, 9), beyond(10, 9)),
            (10, ends(Some(0), Some(9), 0), Placed::LookAgain, beyond(10, 9), Placed::Anew),
            (10, ends(None, None, 0), Placed::LookAgain, beyond(10, 0), Placed::Anew),
            (10, ends(None, None, 4), Placed::LookAgain, Placed::Silent, Placed::Silent),
        ];
        for (log, ends, first, second, begins) in cases {
            let answer = |doubted, on_recreated| place(Some(at(log)), Begin::End, &ends, doubted, on_recreated);
            assert_eq!(answer(false, OnRecreated::Halt), first, "{log} in {ends:?}");
            assert_eq!(answer(true, OnRecreated::Halt), second, "{log} in {ends:?}, again");
            assert_eq!(answer(true, OnRecreated::Begin), begins, "{log} in {ends:?}, begin");
        }
        let gap = Placed::At(Located::Gap(lost, GapCause::Retention));
        assert_eq!(place(Some(at(2)), Begin::First, &ends(Some(3), Some(9), 0), false, OnRecreated::Begin), gap);
    }
}
