//! What a keeper of the simulated table wants next: to compact, to expire, to sweep, as a real one does, on the real protocol machine.

use std::collections::BTreeMap;

use tapedeck_common::Timestamp;
use tapedeck_common::commit::SegmentRef;
use tapedeck_storage::log::rewrite::{Operation, Rewrite};
use tapedeck_storage::log::state::LogState;

use crate::writer::{Files, StoredFile, Wrong, segment};

/// Files that no record names for this long are given up. Shorter than the longest pause of a writer, on purpose.
const ORPHAN_AGE_MS: u64 = 4 * 60_000;

/// How long the files of removed segments are kept for readers.
const READER_GRACE_MS: u64 = 60_000;

/// A rewrite, and whether it was made true.
pub(crate) fn choose(
    state: &mut LogState,
    wrong: Option<Wrong>,
    name: &str,
    now_ms: u64,
    rng: &mut fastrand::Rng,
    files: &mut Files,
) -> Option<Rewrite> {
    let live: Vec<SegmentRef> =
        state.segments().into_iter().flat_map(|all| all.live.values()).map(|one| one.segment.clone()).collect();
    let rewrite = match rng.u8(0..10) {
        0..5 if live.len() >= 2 => compact(&live, name, now_ms, rng, files)?,
        5 if live.len() > 8 => Rewrite::expire(vec![live[rng.usize(0..live.len())].path.clone()]),
        _ => {
            clean_up(state, now_ms, files);
            let orphans = orphans(state, now_ms, files);
            if wrong == Some(Wrong::SweepWithoutRecord) || wrong == Some(Wrong::DeleteBeforeSweep) {
                orphans.iter().for_each(|path| drop(files.remove(path)));
            }
            if orphans.is_empty() || wrong == Some(Wrong::SweepWithoutRecord) {
                return None;
            }
            Rewrite::sweep(orphans)
        }
    };
    state.watch(rewrite.removes.iter().cloned(), rewrite.sweep.iter().cloned());
    Some(rewrite)
}

/// What a keeper does once its rewrite is true: only swept files go at once, removed ones have readers.
pub(crate) fn done(rewrite: &Rewrite, files: &mut Files) {
    if rewrite.operation == Operation::Sweep {
        rewrite.sweep.iter().for_each(|path| drop(files.remove(path)));
    }
}

/// Some segments become one, in the order of their lanes. `None` if one of them cannot be read any more: somebody else was faster.
fn compact(live: &[SegmentRef], name: &str, now_ms: u64, rng: &mut fastrand::Rng, files: &mut Files) -> Option<Rewrite> {
    let count = rng.usize(2..=live.len().min(5));
    let from = rng.usize(0..=live.len() - count);
    let chosen = &live[from..from + count];
    let read: Option<Vec<&StoredFile>> = chosen.iter().map(|one| files.get(&one.path)).collect();
    let mut parts: Vec<_> = read?.into_iter().flat_map(|file| file.parts.clone()).collect();
    parts.sort_by(|a, b| (&a.0, a.1.from()).cmp(&(&b.0, b.1.from())));
    let merged = segment(name, &parts);
    files.insert(merged.path.clone(), StoredFile { parts, born_ms: now_ms });
    Some(Rewrite::compact(chosen.iter().map(|one| one.path.clone()).collect(), vec![merged]))
}

/// Files that are old and stand in no record. The listing is the store's; what it holds is not truth, only a question.
fn orphans(state: &LogState, now_ms: u64, files: &Files) -> Vec<String> {
    let Some(segments) = state.segments() else { return Vec::new() };
    let named = |path: &String| segments.live.contains_key(path) || segments.removed.contains_key(path);
    let old = |file: &StoredFile| now_ms.saturating_sub(file.born_ms) > ORPHAN_AGE_MS;
    files.iter().filter(|(path, file)| old(file) && !named(path)).map(|(path, _)| path.clone()).collect()
}

/// Files of segments that were removed long ago.
fn clean_up(state: &LogState, now_ms: u64, files: &mut Files) {
    let removed: BTreeMap<_, _> = state.segments().into_iter().flat_map(|all| &all.removed).collect();
    for (path, removed) in removed {
        let at = Timestamp::from_millis(removed.at_ms).unwrap_or_default().micros() / 1_000 - 1_795_000_000_000;
        if now_ms.saturating_sub(at.max(0) as u64) > READER_GRACE_MS {
            files.remove(path);
        }
    }
}
