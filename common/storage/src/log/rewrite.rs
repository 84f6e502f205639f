//! Records about rows that are archived already: compaction moves them into other segments, expiry takes them out, a sweep names
//! files that no later record may bring to life. No lane advances in them.
//!
//! Promises: such a record is told from an ordinary one by its bytes alone; it never adds a row that was not there before.
//! Never: decides what to move or to take out.

use std::collections::BTreeSet;

use tapedeck_common::commit::SegmentRef;

use super::record::{self, Header, RecordError};
use super::wire::{self, Action};

/// What a rewriting record is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Segments are replaced by others with the same rows.
    Compact,
    /// Segments, and their rows, leave the table.
    Expire,
    /// Files that no record names are given up.
    Sweep,
}

impl Operation {
    /// The word in `commitInfo`, as Delta's own tools would write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Compact => "OPTIMIZE",
            Self::Expire => "DELETE",
            Self::Sweep => "VACUUM",
        }
    }
}

/// What one rewriting record asks for, all or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// What it is for.
    pub operation: Operation,
    /// Paths of segments that leave the live set. Each must be live when the record lands.
    pub removes: Vec<String>,
    /// Segments that hold the rows of the removed ones from then on.
    pub adds: Vec<SegmentRef>,
    /// Paths that were never live, and never will be.
    pub sweep: Vec<String>,
}

impl Rewrite {
    /// Replaces `removes` by `adds`, which hold the same rows.
    pub fn compact(removes: Vec<String>, adds: Vec<SegmentRef>) -> Self {
        Self { operation: Operation::Compact, removes, adds, sweep: Vec::new() }
    }

    /// Takes `removes` out.
    pub fn expire(removes: Vec<String>) -> Self {
        Self { operation: Operation::Expire, removes, adds: Vec::new(), sweep: Vec::new() }
    }

    /// Gives `paths` up.
    pub fn sweep(paths: Vec<String>) -> Self {
        Self { operation: Operation::Sweep, removes: Vec::new(), adds: Vec::new(), sweep: paths }
    }
}

/// How asking for a rewriting record ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rewritten {
    /// The record is in the log, under this number.
    Committed {
        /// The number of the record.
        version: u64,
    },
    /// It was refused and changed nothing: these paths do not stand where it wants them.
    Moved(Vec<String>),
}

/// Refuses a rewrite that does not do what its operation says.
pub fn check(rewrite: &Rewrite) -> Result<(), RecordError> {
    let (removes, adds, sweep) = (!rewrite.removes.is_empty(), !rewrite.adds.is_empty(), !rewrite.sweep.is_empty());
    let fits = match rewrite.operation {
        Operation::Compact => removes && adds && !sweep,
        Operation::Expire => removes && !adds && !sweep,
        Operation::Sweep => sweep && !removes && !adds,
    };
    let broken = |what: String| Err(RecordError::Broken(what));
    if !fits {
        return broken(format!("a record for {} does something else, or nothing", rewrite.operation.as_str()));
    }
    let mut paths = BTreeSet::new();
    let added = rewrite.adds.iter().map(|segment| &segment.path);
    for path in rewrite.removes.iter().chain(&rewrite.sweep).chain(added) {
        if path.is_empty() || !paths.insert(path) {
            return broken(format!("path {path:?} is empty, or stands there twice"));
        }
    }
    rewrite.adds.iter().try_for_each(record::check_segment).map_err(RecordError::Broken)
}

/// The text of a rewriting record. `rewrite` has passed [`check`].
pub fn encode(header: &Header, rewrite: &Rewrite) -> Vec<u8> {
    let mut text = Vec::with_capacity(512 + 256 * rewrite.removes.len() + 1024 * rewrite.adds.len());
    record::push(&mut text, &Action::CommitInfo(Box::new(record::rewrite_info(header, rewrite))));
    for path in &rewrite.removes {
        let remove = wire::Remove {
            path: path.clone(),
            deletion_timestamp: Some(header.timestamp_ms),
            data_change: rewrite.operation == Operation::Expire,
        };
        record::push(&mut text, &Action::Remove(remove));
    }
    for segment in &rewrite.adds {
        record::push(&mut text, &Action::Add(Box::new(wire::Add { data_change: false, ..record::add(segment) })));
    }
    text
}
