//! What a round did to the archive: counts of every kind of fault, and the words for them.
//!
//! The truth comes from the producer's acknowledgements, so it also knows what the bus does not have any more. An event may be
//! missing only where the log says so (a gap), and a gap may only be where the bus really threw something away.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

use tapedeck_storage::log::TableView;
use tapedeck_testbed::{Report, Truth};

use crate::support::Yielded;

/// Faults of the archive, each counted apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    pub events: u64,
    pub lost: u64,
    pub duplicate: u64,
    pub phantom: u64,
    pub reordered: u64,
    pub corrupt: u64,
    /// Lanes that were not caught up in time.
    pub stuck: u64,
    /// Lost on the bus, and no gap says so.
    pub unrecorded: u64,
    /// Positions of gaps where the bus had thrown nothing away.
    pub invented: u64,
    /// Replicas that ended by themselves, or not in time, or with another code than 0 or 1.
    pub ended_badly: u64,
    /// Times that `archiver verify --deep` was not content.
    pub unverified: u64,
    /// Positions in gaps; no fault.
    pub gaps: u64,
    /// How long it took to catch up.
    pub caught_up: Duration,
    /// Some of the faults, in words.
    pub examples: Vec<String>,
}

impl Verdict {
    /// Holds the rows and the gaps of the archive against the truth. `deleted` is where each partition of the bus begins now.
    pub fn of(truth: &Truth, view: &TableView, yielded: &Yielded, deleted: &BTreeMap<i32, i64>) -> Self {
        let gaps: Vec<(i32, i64, i64)> =
            view.gaps.iter().map(|gap| (gap.lane.partition, gap.span.from().as_i64(), gap.span.until().as_i64())).collect();
        let on_record = |partition: i32, offset: i64| {
            gaps.iter().any(|(lane, from, until)| *lane == partition && (*from..*until).contains(&offset))
        };
        let thrown_away = |partition: i32, offset: i64| deleted.get(&partition).is_some_and(|begin| offset < *begin);
        let report: Report = yielded.judge(&truth.without(on_record));
        let still_there = |partition, offset| on_record(partition, offset) || !thrown_away(partition, offset);
        let unrecorded = yielded.judge(&truth.without(still_there)).lost;
        let invented = gaps.iter().map(|(partition, from, until)| {
            let begin = deleted.get(partition).copied().unwrap_or(0);
            (until - begin.clamp(*from, *until)) as u64
        });
        Self {
            events: report.events,
            lost: report.lost - unrecorded,
            duplicate: report.duplicate,
            phantom: report.phantom,
            reordered: report.reordered,
            corrupt: report.corrupted,
            unrecorded,
            invented: invented.sum(),
            gaps: gaps.iter().map(|(_, from, until)| (until - from) as u64).sum(),
            examples: report.examples,
            ..Self::default()
        }
    }

    /// Nothing wrong?
    pub fn is_clean(&self) -> bool {
        let wrong = [self.lost, self.duplicate, self.phantom, self.reordered, self.corrupt, self.stuck, self.unrecorded];
        wrong.iter().sum::<u64>() + self.invented + self.ended_badly + self.unverified == 0
    }

    /// Counts a fault and keeps its words.
    pub fn note(&mut self, count: fn(&mut Self) -> &mut u64, words: String) {
        *count(self) += 1;
        self.examples.push(words);
    }
}

/// Rounds of the same archive: faults add up, the archive's size does not.
impl AddAssign<&Verdict> for Verdict {
    fn add_assign(&mut self, round: &Verdict) {
        self.lost += round.lost;
        self.duplicate += round.duplicate;
        self.phantom += round.phantom;
        self.reordered += round.reordered;
        self.corrupt += round.corrupt;
        self.stuck += round.stuck;
        self.unrecorded += round.unrecorded;
        self.invented += round.invented;
        self.ended_badly += round.ended_badly;
        self.unverified += round.unverified;
        self.events = self.events.max(round.events);
        self.gaps = self.gaps.max(round.gaps);
        self.caught_up = self.caught_up.max(round.caught_up);
        self.examples.extend(round.examples.iter().cloned());
    }
}

/// The head of the table that the verdicts are lines of.
pub const HEAD: &str = " events  lost dupl phan reord corr stuck unrec inv ended unver   gaps caught up";

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{:>7} {:>5} {:>4} {:>4} {:>5} {:>4} {:>5} {:>5} {:>3} {:>5} {:>5} {:>6} {:>7.1} s",
            self.events,
            self.lost,
            self.duplicate,
            self.phantom,
            self.reordered,
            self.corrupt,
            self.stuck,
            self.unrecorded,
            self.invented,
            self.ended_badly,
            self.unverified,
            self.gaps,
            self.caught_up.as_secs_f64()
        )
    }
}
