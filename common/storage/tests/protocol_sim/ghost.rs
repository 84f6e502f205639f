//! What is true, known to nobody inside: sees every record at the instant at which it lands, every file that goes, and every
//! acknowledgement. The invariants are those of docs/archive-format.md, by their numbers there.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use tapedeck_common::commit::Advance;
use tapedeck_common::{Position, Span};
use tapedeck_storage::log::record::LogRecord;

use crate::bus::{Parts, count, events, start};
use crate::files::Files;

/// What has become of a position of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    NotYet,
    /// A live file holds it.
    Archived,
    /// The record that is being looked at takes it out.
    Taken,
    /// Expired, or lost in a gap.
    Gone,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Ghost {
    next: u64,
    positions: Vec<Option<Position>>,
    txn_ids: BTreeSet<String>,
    last_hash: Option<String>,
    live: BTreeMap<String, Rc<Parts>>,
    /// What was ever given up.
    swept: BTreeSet<String>,
    /// By partition, from the start of its lane.
    fates: Vec<Vec<Fate>>,
}

impl Ghost {
    pub(crate) fn of_lanes(lanes: usize) -> Self {
        Self { positions: vec![None; lanes], fates: vec![Vec::new(); lanes], ..Self::default() }
    }

    /// How many records landed.
    pub(crate) fn records(&self) -> u64 {
        self.next
    }

    /// I1 to I5 and I9.
    pub(crate) fn see(&mut self, version: u64, read: &LogRecord, files: &Files) -> Result<(), String> {
        if version != self.next {
            return Err(format!("I1: record {version} lands where {} was next", self.next));
        }
        if read.header.prev != self.last_hash {
            return Err(format!("chain: record {version} names another predecessor"));
        }
        if !self.txn_ids.insert(read.header.txn_id.clone()) {
            return Err(format!("I5: the id of record {version} occurs twice"));
        }
        for advance in &read.record.advances {
            let stands = self.positions[advance.lane.partition as usize].replace(advance.span.until());
            if stands != advance.expected || stands.is_some_and(|stands| stands != advance.span.from()) {
                return Err(format!("I2: record {version}: lane {} stood at {stands:?}, got {}", advance.lane, advance.span));
            }
        }
        self.see_content(read, files).map_err(|(law, what)| format!("{law}: record {version} {what}"))?;
        (self.next, self.last_hash) = (version + 1, Some(read.hash.clone()));
        Ok(())
    }

    /// I7: the group must not be told of what is not in the log.
    pub(crate) fn see_told(&self, partition: i32, until: Position) -> Result<(), String> {
        match self.positions[partition as usize] {
            Some(stands) if until <= stands => Ok(()),
            stands => Err(format!("I7: the group is told {until} of lane {partition}, which stands at {stands:?}")),
        }
    }

    /// I4, whenever files went away.
    pub(crate) fn see_gone(&self, gone: &[String]) -> Result<(), String> {
        match gone.iter().find(|path| self.live.contains_key(*path)) {
            Some(path) => Err(format!("I4: file {path} is live and deleted")),
            None => Ok(()),
        }
    }

    fn see_content(&mut self, read: &LogRecord, files: &Files) -> Result<(), (&'static str, String)> {
        if read.rewrite { self.see_rewrite(read, files) } else { self.see_events(read, files) }
    }

    /// I3 and I4: the files hold exactly the events of the spans, and exist.
    fn see_events(&mut self, read: &LogRecord, files: &Files) -> Result<(), (&'static str, String)> {
        let spans: Vec<(i32, Span)> =
            read.record.advances.iter().filter(|a| a.gap.is_none()).map(|a| (a.lane.partition, a.span)).collect();
        let within = |partition, span: Span| {
            let covers = |of: &(i32, Span)| of.0 == partition && of.1.from() <= span.from() && span.until() <= of.1.until();
            spans.iter().any(covers)
        };
        let mut found = 0;
        for parts in self.bring_to_life(read, files)? {
            for (partition, span) in parts.iter() {
                if !within(*partition, *span) {
                    return Err(("I3", format!("holds {span} of lane {partition} beside its spans")));
                }
                found += self.turn(*partition, *span, Fate::NotYet, Fate::Archived)?;
            }
        }
        let wanted: u64 = spans.iter().map(|(partition, span)| count(*partition, *span)).sum();
        if found != wanted {
            return Err(("I3", format!("holds {found} events of {wanted}")));
        }
        for Advance { lane, span, .. } in read.record.advances.iter().filter(|advance| advance.gap.is_some()) {
            self.turn(lane.partition, *span, Fate::NotYet, Fate::Gone)?;
        }
        Ok(())
    }

    /// I9 and I4: what is taken out was live, and comes back whole or, expired, not at all; what is given up was not live.
    fn see_rewrite(&mut self, read: &LogRecord, files: &Files) -> Result<(), (&'static str, String)> {
        for path in &read.sweep {
            if self.live.contains_key(path) {
                return Err(("I4", format!("sweeps {path}, which is live")));
            }
            self.swept.insert(path.clone());
        }
        let (mut taken, mut out) = (0, Vec::new());
        for removed in &read.removes {
            let parts = self.live.remove(&removed.path).ok_or_else(|| ("I9", format!("removes {}, not live", removed.path)))?;
            for (partition, span) in parts.iter() {
                taken += self.turn(*partition, *span, Fate::Archived, Fate::Taken)?;
            }
            out.push(parts);
        }
        if read.record.segments.is_empty() {
            for (partition, span) in out.iter().flat_map(|parts| parts.iter()) {
                self.turn(*partition, *span, Fate::Taken, Fate::Gone)?;
            }
            return Ok(());
        }
        let mut back = 0;
        for parts in self.bring_to_life(read, files)? {
            for (partition, span) in parts.iter() {
                back += self.turn(*partition, *span, Fate::Taken, Fate::Archived)?;
            }
        }
        if back == taken { Ok(()) } else { Err(("I9", format!("takes {taken} events out and brings {back} back"))) }
    }

    fn bring_to_life(&mut self, read: &LogRecord, files: &Files) -> Result<Vec<Rc<Parts>>, (&'static str, String)> {
        let mut born = Vec::with_capacity(read.record.segments.len());
        for segment in &read.record.segments {
            let file = files.get(&segment.path).ok_or_else(|| ("I4", format!("names {}: file missing", segment.path)))?;
            if self.swept.contains(&segment.path) {
                return Err(("I4", format!("brings {} to life, which was swept", segment.path)));
            }
            self.live.insert(segment.path.clone(), Rc::clone(&file.parts));
            born.push(Rc::clone(&file.parts));
        }
        Ok(born)
    }

    /// Every event of a span changes its fate; answers how many there were.
    fn turn(&mut self, partition: i32, span: Span, from: Fate, to: Fate) -> Result<u64, (&'static str, String)> {
        let fates = &mut self.fates[partition as usize];
        let mut turned = 0;
        for position in events(partition, span) {
            let Some(at) = position.checked_sub(start(partition).get()) else {
                return Err(("I3", format!("holds {partition}/{position}, before the lane's start")));
            };
            let at = at as usize;
            if fates.len() <= at {
                fates.resize(at + 1, Fate::NotYet);
            }
            if fates[at] != from {
                return Err(("I3", format!("holds {partition}/{position}, which is {:?} and not {from:?}", fates[at])));
            }
            fates[at] = to;
            turned += 1;
        }
        Ok(turned)
    }
}
