//! What stands only in records, added up: positions that are lost, and events that were left out.
//!
//! Promises: checkpoints of ours carry it on, so that a reader who begins at one knows all of it. Pure.

use std::collections::BTreeMap;

use tapedeck_common::commit::GapCause;
use tapedeck_common::{LaneId, Span};

use super::record::LogRecord;

/// Positions that are lost for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GapNote {
    /// The lane.
    pub lane: LaneId,
    /// What is lost.
    pub span: Span,
    /// Why.
    pub cause: GapCause,
    /// The record that says so.
    pub version: u64,
}

/// The sums of a log up to a record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Notes {
    /// Gaps, in the log's order.
    pub(super) gaps: Vec<GapNote>,
    /// Events left out by a policy, per lane.
    pub(super) skipped: BTreeMap<LaneId, u64>,
}

impl Notes {
    /// Takes in the next record.
    pub(super) fn take(&mut self, version: u64, read: &LogRecord) {
        for advance in &read.record.advances {
            if let Some(cause) = advance.gap {
                self.gaps.push(GapNote { lane: advance.lane.clone(), span: advance.span, cause, version });
            }
            if advance.skipped > 0 {
                *self.skipped.entry(advance.lane.clone()).or_default() += advance.skipped;
            }
        }
    }
}
