//! Lanes, positions and spans: the arithmetic by which nothing is lost and nothing is doubled.
//! Invariant: a span is half open, so spans that meet share one number; there is no other way to build one.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A place in a lane. The `until` of a span is the position that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(u64);

impl Position {
    /// From a number that counts from zero.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// From the signed number that buses and files use; `None` below zero.
    pub fn from_i64(value: i64) -> Option<Self> {
        u64::try_from(value).ok().map(Self)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number as buses and files write it. Positions come from there, so it always fits.
    pub const fn as_i64(self) -> i64 {
        self.0 as i64
    }

    /// The position right after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One ordered history on a bus that can never restart: a source, and a partition of it.
/// Its text, `<source>/<partition>`, is the name under which the table log remembers its position.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId {
    /// The source's full name, for example `kafka/<cluster>/<topic id>/<generation>`.
    pub source: Arc<str>,
    /// The partition, 0 where the bus has none.
    pub partition: i32,
}

impl LaneId {
    /// A lane of `source`.
    pub fn new(source: impl Into<Arc<str>>, partition: i32) -> Self {
        Self { source: source.into(), partition }
    }

    /// From its text; `None` if the part after the last `/` is no partition number.
    pub fn parse(text: &str) -> Option<Self> {
        let (source, partition) = text.rsplit_once('/')?;
        let partition: i32 = partition.parse().ok().filter(|number| *number >= 0)?;
        (!source.is_empty()).then(|| Self::new(source, partition))
    }
}

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.source, self.partition)
    }
}

/// A span that would end before it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a span cannot run from {from} back to {until}")]
pub struct BackwardSpan {
    /// Where it was to begin.
    pub from: Position,
    /// Where it was to end.
    pub until: Position,
}

/// A half-open run of positions: `from` is in, `until` is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    from: Position,
    until: Position,
}

impl Span {
    /// The run `[from, until)`; empty when they are equal.
    pub fn new(from: Position, until: Position) -> Result<Self, BackwardSpan> {
        if from <= until { Ok(Self { from, until }) } else { Err(BackwardSpan { from, until }) }
    }

    /// The empty run at `at`.
    pub const fn empty_at(at: Position) -> Self {
        Self { from: at, until: at }
    }

    /// The first position in the run.
    pub const fn from(self) -> Position {
        self.from
    }

    /// The first position after the run.
    pub const fn until(self) -> Position {
        self.until
    }

    /// How many positions the run covers; a hole in it counts.
    pub const fn len(self) -> u64 {
        self.until.0 - self.from.0
    }

    /// True if it covers nothing.
    pub const fn is_empty(self) -> bool {
        self.from.0 == self.until.0
    }

    /// True if `position` lies in the run.
    pub fn contains(self, position: Position) -> bool {
        self.from <= position && position < self.until
    }

    /// The same run, stretched to end at `until` if that is further.
    #[must_use]
    pub fn stretched_to(self, until: Position) -> Self {
        Self { from: self.from, until: self.until.max(until) }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.from, self.until)
    }
}

/// A span that does not begin where its lane's earlier one ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("lane {lane} stands at {expected}, but the next span begins at {found}")]
pub struct NotContiguous {
    /// The lane.
    pub lane: LaneId,
    /// Where the next span must begin.
    pub expected: Position,
    /// Where it did begin.
    pub found: Position,
}

/// One contiguous span for each of several lanes, in the lanes' order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpanSet(BTreeMap<LaneId, Span>);

impl SpanSet {
    /// No lane at all.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next piece of a lane. It must begin where the earlier piece ended.
    pub fn extend(&mut self, lane: &LaneId, piece: Span) -> Result<(), NotContiguous> {
        let Some(span) = self.0.get_mut(lane) else {
            self.0.insert(lane.clone(), piece);
            return Ok(());
        };
        if span.until != piece.from {
            return Err(NotContiguous { lane: lane.clone(), expected: span.until, found: piece.from });
        }
        span.until = piece.until;
        Ok(())
    }

    /// The span of a lane, if it has one.
    pub fn get(&self, lane: &LaneId) -> Option<Span> {
        self.0.get(lane).copied()
    }

    /// Lanes and spans, in the lanes' order.
    pub fn iter(&self) -> impl Iterator<Item = (&LaneId, Span)> {
        self.0.iter().map(|(lane, span)| (lane, *span))
    }

    /// True if no lane is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many lanes are in it.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl FromIterator<(LaneId, Span)> for SpanSet {
    fn from_iter<I: IntoIterator<Item = (LaneId, Span)>>(spans: I) -> Self {
        Self(spans.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(from: u64, until: u64) -> Span {
        Span::new(Position::new(from), Position::new(until)).expect("forward")
    }

    #[test]
    fn a_span_never_runs_backwards() {
        assert!(Span::new(Position::new(4), Position::new(3)).is_err());
        assert!(span(3, 3).is_empty());
    }

    #[test]
    fn a_lane_is_found_again_from_its_text() {
        let lane = LaneId::new("kafka/main/AbC_d-E/0", 12);
        assert_eq!(LaneId::parse(&lane.to_string()), Some(lane));
        for bad in ["", "/1", "a/", "a/-1", "a/x", "a"] {
            assert_eq!(LaneId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn pieces_must_meet() {
        let lane = LaneId::new("s", 0);
        let mut set = SpanSet::new();
        set.extend(&lane, span(5, 9)).expect("first");
        set.extend(&lane, span(9, 11)).expect("meets");
        assert_eq!(set.get(&lane), Some(span(5, 11)));
        for (from, until) in [(12, 13), (10, 12), (5, 6)] {
            assert!(set.extend(&lane, span(from, until)).is_err(), "{from}");
        }
    }
}
