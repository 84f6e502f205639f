//! A writer of the simulated world: the real protocol machine, and around it a minimal archiver. The wrong variants stand
//! here too, as what somebody might build around the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tapedeck_common::commit::{Advance, GapCause, Outcome, Record, SegmentLane, SegmentRef};
use tapedeck_common::{LaneId, Span, Window};
use tapedeck_storage::log::genesis::{Genesis, Writers};
use tapedeck_storage::log::protocol::{Call, Goal, Identity, Known, Moment, Protocol, Reply, Settled, Step};
use tapedeck_storage::log::record::{self, Header};
use tapedeck_storage::log::rewrite::{self, Rewrite, Rewritten};
use tapedeck_storage::log::state::LogState;

use crate::keeper;
use crate::world::{Answer, lane, start};

/// Protocols that are wrong, most of them published bugs of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// "It exists" after a create is taken for one's own success.
    ExistsIsMine,
    /// Any failure of a create is taken for success.
    UnknownIsSuccess,
    /// A record is sent although its lanes have moved.
    NoFence,
    /// After a lost create and a "not found" the body is sent again under the next number.
    NextVersionAfterNotFound,
    /// After a lost create and a "not found" the batch is given up and its files deleted.
    DeleteAfterNotFound,
    /// The files of a refused batch are kept, but sent again where the lanes stand now.
    RebaseWhenStale,
    /// The store overwrites.
    PlainPut,
    /// Old files that no record names are deleted, and no record says so.
    SweepWithoutRecord,
    /// They are deleted before the record that gives them up.
    DeleteBeforeSweep,
    /// A rewrite is sent although what it touches has moved.
    RewriteUnfenced,
    /// A writer does not look whether its files were given up.
    IgnoreSweep,
}

impl Wrong {
    pub(crate) const ALL: [Self; 11] = [
        Self::ExistsIsMine,
        Self::UnknownIsSuccess,
        Self::NoFence,
        Self::NextVersionAfterNotFound,
        Self::DeleteAfterNotFound,
        Self::RebaseWhenStale,
        Self::PlainPut,
        Self::SweepWithoutRecord,
        Self::DeleteBeforeSweep,
        Self::RewriteUnfenced,
        Self::IgnoreSweep,
    ];
}

/// The data files in the store.
pub(crate) type Files = BTreeMap<String, StoredFile>;

/// One of them: the events that it holds, and when it came.
#[derive(Debug, Clone)]
pub(crate) struct StoredFile {
    pub(crate) parts: Vec<(LaneId, Span)>,
    pub(crate) born_ms: u64,
}

struct Work {
    machine: Protocol<'static>,
    txn_id: String,
    record: Option<&'static Record>,
    rewrite: Option<&'static Rewrite>,
    /// The last answers, for the variants that look at them.
    creating: bool,
    in_doubt: bool,
    shift: bool,
}

pub(crate) struct Writer {
    pub(crate) number: usize,
    /// A keeper compacts, expires and sweeps, and owns no lanes.
    pub(crate) keeps: bool,
    pub(crate) rewrites: u64,
    pub(crate) refused: u64,
    wrong: Option<Wrong>,
    /// The lanes that it believes to own.
    pub(crate) lanes: BTreeSet<i32>,
    /// The call that it waits for; answers to earlier ones reach nobody.
    pub(crate) call: u64,
    pub(crate) committed: u64,
    pub(crate) stale: u64,
    pub(crate) acknowledged: Option<(u64, String)>,
    known: Known,
    begun: bool,
    work: Option<Work>,
}

impl Writer {
    pub(crate) fn new(number: usize, keeps: bool, wrong: Option<Wrong>) -> Self {
        let state = if keeps { LogState::for_reader() } else { LogState::for_writer() };
        Self {
            number,
            keeps,
            rewrites: 0,
            refused: 0,
            wrong,
            lanes: BTreeSet::new(),
            call: 0,
            committed: 0,
            stale: 0,
            acknowledged: None,
            known: Known { state, ..Known::default() },
            begun: false,
            work: None,
        }
    }

    /// Dies, and comes back knowing nothing.
    pub(crate) fn restart(&mut self) -> u64 {
        let state = if self.keeps { LogState::for_reader() } else { LogState::for_writer() };
        self.known = Known { state, ..Known::default() };
        self.begun = false;
        self.work = None;
        self.call += 1;
        self.call
    }

    /// The next call to make; `None` if there is nothing to do for now.
    pub(crate) fn advance(
        &mut self,
        answer: Option<Answer>,
        now: Moment,
        rng: &mut fastrand::Rng,
        files: &mut Files,
    ) -> Result<Option<Call>, String> {
        self.call += 1;
        let step = match (self.work.take(), answer) {
            (Some(work), Some(answer)) => self.go_on(work, answer, now, files)?,
            _ => self.begin(now, rng, files)?,
        };
        Ok(step)
    }

    fn go_on(&mut self, mut work: Work, answer: Answer, now: Moment, files: &mut Files) -> Result<Option<Call>, String> {
        if self.wrong == Some(Wrong::DeleteAfterNotFound) && work.in_doubt && answer == Answer::NotFound {
            for segment in work.record.iter().flat_map(|record| &record.segments) {
                files.remove(&segment.path);
            }
            return Ok(None);
        }
        work.shift |= work.in_doubt && answer == Answer::NotFound;
        let reply = self.reply(&work, answer);
        work.in_doubt = work.creating && reply != Reply::Created;
        work.creating = false;
        let step = work.machine.step(&mut self.known, reply, now).map_err(|error| error.to_string())?;
        self.take(work, step, now, files)
    }

    fn reply(&self, work: &Work, answer: Answer) -> Reply {
        match answer {
            Answer::Found(record) => Reply::Found(record),
            Answer::NotFound => Reply::NotFound,
            Answer::Created => Reply::Created,
            Answer::Exists if self.wrong == Some(Wrong::ExistsIsMine) => Reply::Created,
            Answer::Failed | Answer::Exists if work.creating && self.wrong == Some(Wrong::UnknownIsSuccess) => Reply::Created,
            Answer::Exists | Answer::Failed => Reply::Unknown,
            Answer::Listed(records) => Reply::Listed(records),
            Answer::Waited => Reply::Waited,
        }
    }

    fn take(&mut self, mut work: Work, step: Step, now: Moment, files: &mut Files) -> Result<Option<Call>, String> {
        let call = match step {
            Step::Call(call) => call,
            Step::Done(settled) => return Ok(self.settled(work, settled, now, files)),
        };
        work.creating = matches!(call, Call::Create(..));
        let call = match call {
            Call::Create(version, body) if work.shift && self.wrong == Some(Wrong::NextVersionAfterNotFound) => {
                Call::Create(version + 1, body)
            }
            call => call,
        };
        self.work = Some(work);
        Ok(Some(call))
    }

    fn settled(&mut self, work: Work, settled: Settled, now: Moment, files: &mut Files) -> Option<Call> {
        self.begun = true;
        let outcome = match settled {
            Settled::Appended(outcome) => outcome,
            Settled::Rewritten(rewritten) => return self.rewritten(&work, &rewritten, now, files),
            Settled::CaughtUp => return None,
        };
        match outcome {
            Outcome::Committed { version } => {
                self.committed += 1;
                self.acknowledged = Some((version, work.txn_id));
                None
            }
            Outcome::Stale(lanes) => {
                self.stale += 1;
                let record = work.record.expect("only appends are refused");
                match self.wrong {
                    Some(Wrong::NoFence) => Some(self.send_unfenced(record, now)),
                    Some(Wrong::IgnoreSweep) if lanes.iter().all(|lane| lane.found == lane.expected) => {
                        Some(self.send_unfenced(record, now))
                    }
                    Some(Wrong::RebaseWhenStale) => {
                        let mut moved = record.clone();
                        for advance in &mut moved.advances {
                            let found = lanes.iter().find(|stale| stale.lane == advance.lane).and_then(|stale| stale.found);
                            let from = found.unwrap_or(advance.span.from());
                            advance.expected = found.or(advance.expected);
                            let until = advance.span.until().max(from.next());
                            advance.span = Span::new(from, until).expect("forward");
                        }
                        Some(self.send_unfenced(&moved, now))
                    }
                    // Abandoned: the files stay as orphans, and the next batch begins where the log stands.
                    _ => None,
                }
            }
        }
    }

    fn rewritten(&mut self, work: &Work, rewritten: &Rewritten, now: Moment, files: &mut Files) -> Option<Call> {
        let rewrite = work.rewrite.expect("only rewrites are rewritten");
        match rewritten {
            Rewritten::Committed { version } => {
                self.rewrites += 1;
                self.acknowledged = Some((*version, work.txn_id.clone()));
                keeper::done(rewrite, files);
                None
            }
            Rewritten::Moved(_) if self.wrong == Some(Wrong::RewriteUnfenced) => {
                let body = rewrite::encode(&self.unfenced_header(now), rewrite);
                Some(Call::Create(self.known.state.next_version(), body.into()))
            }
            Rewritten::Moved(_) => {
                self.refused += 1;
                None
            }
        }
    }

    fn send_unfenced(&mut self, record: &Record, now: Moment) -> Call {
        Call::Create(self.known.state.next_version(), record::encode(&self.unfenced_header(now), record).into())
    }

    fn unfenced_header(&self, now: Moment) -> Header {
        Header {
            timestamp_ms: now.wall.millis_floor(),
            engine: "tapedeck/sim".to_owned(),
            writer: format!("w{}", self.number),
            txn_id: format!("unfenced-{}-{}", self.number, self.call),
            prev: self.known.state.tip().map(|tip| tip.hash.clone()),
        }
    }

    fn begin(&mut self, now: Moment, rng: &mut fastrand::Rng, files: &mut Files) -> Result<Option<Call>, String> {
        let txn_id = format!("{:016x}", rng.u64(..));
        let (mut record, mut rewrite) = (None, None);
        let now_ms = now.monotonic.as_millis() as u64;
        let goal = if !self.begun {
            Goal::Begin(Box::leak(Box::new(genesis(&txn_id))))
        } else if rng.u8(0..4) == 0 || (self.lanes.is_empty() && !self.keeps) {
            Goal::CatchUp
        } else if self.keeps {
            match keeper::choose(&mut self.known.state, self.wrong, &txn_id, now_ms, rng, files) {
                None => Goal::CatchUp,
                Some(chosen) => {
                    rewrite::check(&chosen).map_err(|error| error.to_string())?;
                    let chosen: &'static Rewrite = Box::leak(Box::new(chosen));
                    rewrite = Some(chosen);
                    Goal::Rewrite(chosen)
                }
            }
        } else {
            // Leaked, since the machine borrows its goal; a test may.
            let batch: &'static Record = Box::leak(Box::new(self.batch(&txn_id, now_ms, rng, files)));
            record::check(batch).map_err(|error| error.to_string())?;
            record = Some(batch);
            Goal::Append(batch)
        };
        let identity =
            Identity { engine: "tapedeck/sim".to_owned(), writer: format!("w{}", self.number), txn_id: txn_id.clone() };
        let (machine, step) = Protocol::start(goal, identity, &mut self.known, now).map_err(|error| error.to_string())?;
        let work = Work { machine, txn_id, record, rewrite, creating: false, in_doubt: false, shift: false };
        self.take(work, step, now, files)
    }

    /// The next batch of all its lanes from where it last saw them stand; a lane that the log does not know gets its start.
    fn batch(&self, txn_id: &str, now_ms: u64, rng: &mut fastrand::Rng, files: &mut Files) -> Record {
        let positions = self.known.state.positions();
        let mut record = Record::default();
        let mut parts = Vec::new();
        for partition in &self.lanes {
            let lane = lane(*partition);
            let expected = positions.get(&lane).copied();
            let from = expected.unwrap_or(start(*partition));
            let length = if expected.is_some() { rng.u64(1..6) } else { 0 };
            let span = Span::new(from, tapedeck_common::Position::new(from.get() + length)).expect("forward");
            let gap = (length > 0 && rng.u8(0..20) == 0).then_some(GapCause::Retention);
            let rows = if gap.is_none() { length } else { 0 };
            if rows > 0 {
                parts.push((lane.clone(), span));
            }
            record.advances.push(Advance { lane, expected, span, rows, skipped: 0, gap });
        }
        if !parts.is_empty() {
            let segment = segment(txn_id, &parts);
            files.insert(segment.path.clone(), StoredFile { parts, born_ms: now_ms });
            record.segments.push(segment);
        }
        record
    }
}

fn genesis(id: &str) -> Genesis {
    Genesis { table_id: id.to_owned(), table: "sim".to_owned(), created_ms: 0, writers: Writers::OnlyUs }
}

/// What a record says of a file with these parts; those of one lane stand together, in order.
pub(crate) fn segment(name: &str, parts: &[(LaneId, Span)]) -> SegmentRef {
    let window = Window::of(tapedeck_common::Timestamp::from_micros(1_795_000_000_000_000));
    let mut lanes: Vec<SegmentLane> = Vec::new();
    for (lane, span) in parts {
        let (last, rows) = (tapedeck_common::Position::new(span.until().get() - 1), span.len());
        match lanes.last_mut().filter(|before| before.partition == lane.partition) {
            Some(before) => {
                (before.last, before.rows) = (last, before.rows + rows);
                before.payload_bytes += rows * 100;
            }
            None => {
                lanes.push(SegmentLane { partition: lane.partition, first: span.from(), last, rows, payload_bytes: rows * 100 })
            }
        }
    }
    SegmentRef {
        path: format!("topic=t/date={}/hour={:02}/{name}.parquet", window.date(), window.hour()),
        source: Arc::clone(&parts[0].0.source),
        topic: Arc::from("t"),
        window,
        rows: parts.iter().map(|(_, span)| span.len()).sum(),
        size: 1000,
        blake3: "0".repeat(64),
        modified: window.start(),
        times: (window.start(), window.start()),
        null_keys: 0,
        null_values: 0,
        lanes,
    }
}
