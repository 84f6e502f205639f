//! What a keeper of the simulated table wants next: to compact, to expire, to sweep, as a real one does, on the real protocol machine.

use std::iter::Peekable;
use std::rc::Rc;

use tapedeck_common::commit::SegmentRef;
use tapedeck_common::{Span, Timestamp};
use tapedeck_storage::log::rewrite::{Operation, Rewrite};
use tapedeck_storage::log::state::LogState;

use crate::bus::Parts;
use crate::files::{Files, StoredFile};
use crate::writer::Hands;
use crate::wrong::Wrong;

/// Files that no record names for this long are given up. Shorter than the longest pause of a writer, on purpose.
const ORPHAN_AGE_MS: u64 = 4 * 60_000;

/// How long the files of removed segments are kept for readers.
const READER_GRACE_MS: u64 = 60_000;

/// A rewrite that suits what is known, if there is one. What it touches is watched.
pub(crate) fn choose(state: &mut LogState, wrong: Option<Wrong>, name: &str, hands: &mut Hands<'_>) -> Option<Rewrite> {
    let live = state.segments().map_or(0, |all| all.live.len());
    let rewrite = match hands.rng.u8(0..10) {
        0..5 if live >= 2 => compact(state, name, hands)?,
        5 if live > 8 => {
            let chosen = hands.rng.usize(0..live);
            Rewrite::expire(state.segments().iter().flat_map(|all| all.live.keys().nth(chosen)).cloned().collect())
        }
        _ => sweep(state, wrong, hands)?,
    };
    state.watch(rewrite.removes.iter().cloned(), rewrite.sweep.iter().cloned());
    Some(rewrite)
}

/// What a keeper does once its rewrite is true: only swept files go at once, removed ones have readers.
pub(crate) fn done(rewrite: &Rewrite, files: &mut Files) {
    if rewrite.operation == Operation::Sweep {
        rewrite.sweep.iter().for_each(|path| files.delete(path));
    }
}

/// Some segments become one, in the order of their lanes. `None` if one of them cannot be read any more: somebody else was faster.
fn compact(state: &LogState, name: &str, hands: &mut Hands<'_>) -> Option<Rewrite> {
    let live = &state.segments()?.live;
    let count = hands.rng.usize(2..=live.len().min(5));
    let from = hands.rng.usize(0..=live.len() - count);
    let chosen: Vec<&SegmentRef> = live.values().skip(from).take(count).map(|one| &one.segment).collect();
    let mut parts = Vec::new();
    for segment in &chosen {
        parts.extend_from_slice(&hands.files.get(&segment.path)?.parts);
    }
    let parts = joined(parts);
    let merged = hands.bus.segment(name, &parts);
    hands.files.put(&merged.path, parts, hands.now_ms());
    Some(Rewrite::compact(chosen.into_iter().map(|one| one.path.clone()).collect(), vec![merged]))
}

/// The same parts in order; those that meet become one.
fn joined(mut parts: Vec<(i32, Span)>) -> Rc<Parts> {
    parts.sort_unstable_by_key(|(partition, span)| (*partition, span.from()));
    parts.dedup_by(|next, before| {
        let meet = next.0 == before.0 && next.1.from() == before.1.until();
        if meet {
            before.1 = before.1.stretched_to(next.1.until());
        }
        meet
    });
    parts.into()
}

fn sweep(state: &LogState, wrong: Option<Wrong>, hands: &mut Hands<'_>) -> Option<Rewrite> {
    clean_up(state, hands);
    let age_ms = if wrong == Some(Wrong::SweepWithoutAge) { 0 } else { ORPHAN_AGE_MS };
    let orphans = orphans(state, age_ms, hands);
    let unsaid = matches!(wrong, Some(Wrong::SweepWithoutRecord | Wrong::SweepWithoutAge));
    if unsaid || wrong == Some(Wrong::DeleteBeforeSweep) {
        orphans.iter().for_each(|path| hands.files.delete(path));
    }
    (!orphans.is_empty() && !unsaid).then(|| Rewrite::sweep(orphans))
}

/// Files that are old and stand in no record. The listing is the store's; what it holds is not truth, only a question.
fn orphans(state: &LogState, age_ms: u64, hands: &Hands<'_>) -> Vec<String> {
    let Some(segments) = state.segments() else { return Vec::new() };
    let (mut live, mut removed) = (segments.live.keys().peekable(), segments.removed.keys().peekable());
    let is_old = |file: &StoredFile| hands.now_ms().saturating_sub(file.born_ms) > age_ms;
    let mut named = |path: &String| {
        let (live, removed) = (holds(&mut live, path), holds(&mut removed, path));
        live || removed
    };
    let found = hands.files.iter().filter(|(path, file)| !named(path) && is_old(file));
    found.map(|(path, _)| path.clone()).collect()
}

/// True if `path` is the next of these, which are in order like those that are asked for.
fn holds<'a>(paths: &mut Peekable<impl Iterator<Item = &'a String>>, path: &String) -> bool {
    while paths.next_if(|next| *next < path).is_some() {}
    paths.peek() == Some(&path)
}

/// Files of segments that were removed long ago.
fn clean_up(state: &LogState, hands: &mut Hands<'_>) {
    for (path, removed) in state.segments().iter().flat_map(|all| &all.removed) {
        let at = Timestamp::from_millis(removed.at_ms).unwrap_or_default().micros() / 1_000 - 1_795_000_000_000;
        if hands.now_ms().saturating_sub(at.max(0) as u64) > READER_GRACE_MS {
            hands.files.delete(path);
        }
    }
}
