//! What a piece of maintenance did, for people, machines and metrics.

use std::fmt;

use serde::Serialize;

use super::{Compacted, Expired, Swept, Work};

/// What was done, or would be, to one table or to several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Done {
    /// Segments were merged.
    Compacted(Compacted),
    /// Hours left.
    Expired(Expired),
    /// Files were deleted.
    Swept(Swept),
}

impl Done {
    /// Nothing, as yet.
    pub fn nothing(work: &Work) -> Self {
        match work {
            Work::Compact(_) => Self::Compacted(Compacted::default()),
            Work::Expire(_) => Self::Expired(Expired::default()),
            Work::Sweep(_) => Self::Swept(Swept::default()),
        }
    }

    /// Both together; of two that are not alike the first.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Compacted(one), Self::Compacted(two)) => Self::Compacted(Compacted {
                inputs: one.inputs + two.inputs,
                outputs: one.outputs + two.outputs,
                rows: one.rows + two.rows,
                bytes_before: one.bytes_before + two.bytes_before,
                bytes_after: one.bytes_after + two.bytes_after,
                refused: one.refused + two.refused,
                memory_max: one.memory_max.max(two.memory_max),
            }),
            (Self::Expired(one), Self::Expired(two)) => Self::Expired(Expired {
                hours: one.hours + two.hours,
                segments: one.segments + two.segments,
                refused: one.refused + two.refused,
            }),
            (Self::Swept(one), Self::Swept(two)) => Self::Swept(Swept {
                orphans: one.orphans + two.orphans,
                removed: one.removed + two.removed,
                bytes: one.bytes + two.bytes,
                pinned: one.pinned + two.pinned,
                young: one.young + two.young,
                left: one.left + two.left,
            }),
            (one, _) => one,
        }
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compacted(done) => {
                let Compacted { inputs, outputs, rows, bytes_before, bytes_after, .. } = done;
                write!(f, "{inputs} segment(s) to {outputs}, {rows} rows, {bytes_before} bytes to {bytes_after}")?;
                let (refused, memory) = (done.refused, done.memory_max);
                write!(f, ", in at most {memory} bytes of memory; {refused} merge(s) were somebody else's")
            }
            Self::Expired(done) => {
                write!(f, "{} hour(s) with {} segment(s) expired", done.hours, done.segments)
            }
            Self::Swept(done) => {
                let Swept { orphans, removed, bytes, pinned, young, left } = done;
                write!(f, "{orphans} file(s) that no record names and {removed} of removed segments, {bytes} bytes; ")?;
                write!(f, "{pinned} kept for replays, {young} too young to judge, {left} left for the next sweep")
            }
        }
    }
}
