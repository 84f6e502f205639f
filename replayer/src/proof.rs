//! Compares what a job should have put on the bus with what is there: the arithmetic of `replayer verify`.
//!
//! Promises: every planned event is counted as there or missing; what is there and was not planned, differs, came twice or out
//! of order is counted as such. 16 bytes an event. Pure. Never: read a bus or a store.

use serde::Serialize;
use tapedeck_common::Position;

/// What was found wrong, and right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Findings {
    /// Events of the plan.
    pub planned: u64,
    /// Of those, events that are at the target and equal.
    pub proved: u64,
    /// Events of the plan that are not at the target.
    pub missing: u64,
    /// Copies beyond the first.
    pub duplicates: u64,
    /// How far back the farthest of them reached, in events of its lane.
    pub farthest_duplicate: u64,
    /// Events at the target with the job's marker that the plan does not have.
    pub phantom: u64,
    /// Events that differ from the original.
    pub corrupted: u64,
    /// Events whose first copy stands behind that of a later one.
    pub out_of_order: u64,
}

impl Findings {
    /// Adds another lane's.
    pub fn add(&mut self, other: &Self) {
        self.planned += other.planned;
        self.proved += other.proved;
        self.missing += other.missing;
        self.duplicates += other.duplicates;
        self.farthest_duplicate = self.farthest_duplicate.max(other.farthest_duplicate);
        self.phantom += other.phantom;
        self.corrupted += other.corrupted;
        self.out_of_order += other.out_of_order;
    }

    /// True if all is as promised: everything there, equal, in order, and copies only within `window` events.
    pub fn is_good(&self, window: u64) -> bool {
        let wrong = self.missing + self.phantom + self.corrupted + self.out_of_order;
        wrong == 0 && self.proved == self.planned && self.farthest_duplicate <= window
    }
}

/// What the target holds of one lane.
#[derive(Debug, Default)]
pub struct LaneSeen {
    /// Events that stood behind all before them: position and digest, sorted by position.
    firsts: Vec<(u64, u64)>,
    /// Events that did not, and how many firsts there were.
    late: Vec<(u64, u64, u64)>,
}

impl LaneSeen {
    /// Takes in the next event of the lane at the target.
    pub fn see(&mut self, position: Position, digest: u64) {
        let position = position.get();
        if self.firsts.last().is_none_or(|(last, _)| *last < position) {
            self.firsts.push((position, digest));
        } else {
            self.late.push((position, digest, self.firsts.len() as u64));
        }
    }

    /// Ends the reading of the target.
    pub fn close(self) -> LaneProof {
        let mut findings = Findings::default();
        let mut behind: Vec<(u64, u64)> = Vec::new();
        for (position, digest, firsts) in self.late {
            let known = self.firsts.binary_search_by_key(&position, |first| first.0);
            let original = match known {
                Ok(index) => {
                    findings.farthest_duplicate = findings.farthest_duplicate.max(firsts - index as u64);
                    Some(self.firsts[index].1)
                }
                Err(_) => behind.iter().find(|first| first.0 == position).map(|first| first.1),
            };
            match original {
                Some(original) => {
                    findings.duplicates += 1;
                    findings.corrupted += u64::from(original != digest);
                }
                None => {
                    findings.out_of_order += 1;
                    behind.push((position, digest));
                }
            }
        }
        let mut seen = self.firsts;
        if !behind.is_empty() {
            seen.extend(behind);
            seen.sort_unstable();
        }
        LaneProof { seen, at: 0, findings }
    }
}

/// What the target holds of one lane, ready to be compared.
#[derive(Debug)]
pub struct LaneProof {
    seen: Vec<(u64, u64)>,
    at: usize,
    findings: Findings,
}

impl LaneProof {
    /// Takes in the next planned event of the lane; they come by growing position.
    pub fn expect(&mut self, position: Position, digest: u64) {
        let position = position.get();
        self.findings.planned += 1;
        while self.seen.get(self.at).is_some_and(|(seen, _)| *seen < position) {
            self.findings.phantom += 1;
            self.at += 1;
        }
        match self.seen.get(self.at) {
            Some((seen, found)) if *seen == position => {
                self.at += 1;
                if *found == digest { self.findings.proved += 1 } else { self.findings.corrupted += 1 }
            }
            _ => self.findings.missing += 1,
        }
    }

    /// Ends the comparison.
    pub fn finish(mut self) -> Findings {
        self.findings.phantom += (self.seen.len() - self.at) as u64;
        self.findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prove(target: &[(u64, u64)], plan: &[(u64, u64)]) -> Findings {
        let mut seen = LaneSeen::default();
        target.iter().for_each(|(position, digest)| seen.see(Position::new(*position), *digest));
        let mut proof = seen.close();
        plan.iter().for_each(|(position, digest)| proof.expect(Position::new(*position), *digest));
        proof.finish()
    }

    const PLAN: [(u64, u64); 4] = [(2, 20), (3, 30), (5, 50), (9, 90)];

    #[test]
    fn equal_is_proved() {
        let found = prove(&PLAN, &PLAN);
        assert_eq!(found, Findings { planned: 4, proved: 4, ..Findings::default() });
        assert!(found.is_good(0));
    }

    #[test]
    fn copies_count_how_far_back_they_reach() {
        let found = prove(&[(2, 20), (3, 30), (5, 50), (3, 30), (5, 50), (9, 90)], &PLAN);
        assert_eq!(found, Findings { planned: 4, proved: 4, duplicates: 2, farthest_duplicate: 2, ..Findings::default() });
        assert!(found.is_good(2) && !found.is_good(1));
    }

    #[test]
    fn each_kind_of_wrong_is_told_apart() {
        let cases: [(&[(u64, u64)], Findings); 5] = [
            (&[(2, 20), (5, 50), (9, 90)], Findings { planned: 4, proved: 3, missing: 1, ..Findings::default() }),
            (
                &[(2, 20), (3, 30), (4, 40), (5, 50), (9, 90), (10, 1)],
                Findings { planned: 4, proved: 4, phantom: 2, ..Findings::default() },
            ),
            (&[(2, 20), (3, 31), (5, 50), (9, 90)], Findings { planned: 4, proved: 3, corrupted: 1, ..Findings::default() }),
            (&[(3, 30), (2, 20), (5, 50), (9, 90)], Findings { planned: 4, proved: 4, out_of_order: 1, ..Findings::default() }),
            (&[], Findings { planned: 4, missing: 4, ..Findings::default() }),
        ];
        for (target, expected) in cases {
            let found = prove(target, &PLAN);
            assert_eq!(found, expected, "{target:?}");
            assert!(!found.is_good(1_000));
        }
    }

    #[test]
    fn a_copy_that_differs_is_corrupted() {
        assert_eq!(prove(&[(2, 20), (3, 30), (5, 50), (3, 31), (9, 90)], &PLAN).corrupted, 1);
    }
}
