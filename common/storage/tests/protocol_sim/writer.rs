//! A writer of the simulated world: the real protocol machine, and around it a minimal archiver. The wrong variants stand
//! here too, as what somebody might build around the machine.

use std::collections::BTreeSet;
use std::sync::Arc;

use tapedeck_common::commit::{Advance, GapCause, Outcome, Record, StaleLane};
use tapedeck_common::{Position, Span, Timestamp};
use tapedeck_storage::log::form::{Content, Form};
use tapedeck_storage::log::genesis::{Genesis, Writers};
use tapedeck_storage::log::protocol::{Call, Goal, Identity, Known, Moment, Phase, Protocol, Reply, Settled, Step};
use tapedeck_storage::log::record::{self, Header, LogRecord};
use tapedeck_storage::log::rewrite::{self, Rewrite, Rewritten};
use tapedeck_storage::log::state::LogState;

use crate::arena::Desk;
use crate::bus::{Bus, count, first_event, last_event, start};
use crate::faults::At;
use crate::files::Files;
use crate::keeper;
use crate::wrong::Wrong;

/// What the store answers; the writer makes of it what the protocol (or a wrong variant) makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Found(Arc<LogRecord>),
    NotFound,
    Created,
    Exists,
    Listed(Vec<u64>),
    Waited,
    Failed,
}

/// What a writer works with, for one step.
pub(crate) struct Hands<'w> {
    pub(crate) now: Moment,
    pub(crate) rng: &'w mut fastrand::Rng,
    pub(crate) files: &'w mut Files,
    pub(crate) bus: &'w Bus,
}

impl Hands<'_> {
    pub(crate) fn now_ms(&self) -> u64 {
        self.now.monotonic.as_millis() as u64
    }
}

struct Work<'a, F: Form> {
    machine: Protocol<'a, F>,
    txn_id: String,
    record: Option<&'a Record>,
    rewrite: Option<&'a Rewrite>,
    is_waiting: bool,
    /// The last answers, for the variants that look at them.
    creating: bool,
    in_doubt: bool,
    shift: bool,
    looking_up: Option<u64>,
}

/// What the world learns of a step.
#[derive(Default)]
pub(crate) struct News {
    /// A record that the writer holds for its own.
    pub(crate) committed: Option<(u64, String)>,
    /// What it tells the group.
    pub(crate) told: Vec<(i32, Position)>,
    pub(crate) refused_batches: u64,
    pub(crate) rewrites: u64,
    pub(crate) refused_rewrites: u64,
    pub(crate) cuts_log: bool,
}

pub(crate) struct Writer<'a, F: Form> {
    pub(crate) number: usize,
    /// A keeper compacts, expires and sweeps, and owns no lanes.
    pub(crate) keeps: bool,
    wrong: Option<Wrong>,
    desk: &'a Desk,
    name: String,
    /// The lanes that it believes to own.
    pub(crate) lanes: BTreeSet<i32>,
    /// The call that it waits for; answers to earlier ones reach nobody.
    pub(crate) call: u64,
    pub(crate) committed: u64,
    /// How far its wall clock is off.
    pub(crate) skew_ms: i64,
    leased_at: Timestamp,
    pub(crate) news: News,
    known: Known,
    begun: bool,
    work: Option<Box<Work<'a, F>>>,
}

impl<'a, F: Form> Writer<'a, F> {
    pub(crate) fn new(number: usize, keeps: bool, wrong: Option<Wrong>, desk: &'a Desk) -> Self {
        Self {
            number,
            keeps,
            wrong,
            desk,
            name: format!("w{number}"),
            lanes: BTreeSet::new(),
            call: 0,
            committed: 0,
            skew_ms: 0,
            leased_at: Timestamp::default(),
            news: News::default(),
            known: nothing_known(keeps),
            begun: false,
            work: None,
        }
    }

    /// Dies, and comes back knowing nothing.
    pub(crate) fn restart(&mut self) -> u64 {
        self.known = nothing_known(self.keeps);
        self.begun = false;
        self.work = None;
        self.call += 1;
        self.call
    }

    pub(crate) fn at(&self) -> At {
        match &self.work {
            None => At::Idle,
            Some(work) if work.is_waiting => At::Waiting,
            Some(work) => work.machine.phase().into(),
        }
    }

    /// The next call to make; `None` if there is nothing to do for now.
    pub(crate) fn advance(&mut self, answer: Option<Answer>, hands: &mut Hands<'_>) -> Result<Option<Call<F::Body>>, String> {
        self.call += 1;
        match (self.work.take(), answer) {
            (Some(work), Some(answer)) => self.go_on(work, answer, hands),
            _ => self.begin(hands),
        }
    }

    fn is(&self, wrong: Wrong) -> bool {
        self.wrong == Some(wrong)
    }

    fn go_on(
        &mut self,
        mut work: Box<Work<'a, F>>,
        answer: Answer,
        hands: &mut Hands<'_>,
    ) -> Result<Option<Call<F::Body>>, String> {
        if self.gives_up(&mut work, &answer) {
            for segment in work.record.iter().flat_map(|record| &record.segments) {
                hands.files.delete(&segment.path);
            }
            return Ok(None);
        }
        if let (Some(version), Answer::Listed(_)) = (work.looking_up.take(), &answer) {
            self.work = Some(work);
            return Ok(Some(Call::Get(version)));
        }
        work.shift |= work.in_doubt && answer == Answer::NotFound;
        let reply = self.reply(&work, answer);
        work.in_doubt = work.creating && reply != Reply::Created;
        work.creating = false;
        let step = work.machine.step(&mut self.known, reply, hands.now).map_err(|error| error.to_string())?;
        Ok(self.take(work, step, hands))
    }

    /// Some variants take their batch for lost, and delete its files.
    fn gives_up(&self, work: &mut Work<'a, F>, answer: &Answer) -> bool {
        match self.wrong {
            Some(Wrong::DeleteAfterNotFound) => work.in_doubt && *answer == Answer::NotFound,
            Some(Wrong::DeleteAfterExists) => work.creating && *answer == Answer::Exists,
            Some(Wrong::ListingIsTruth) => match (work.looking_up, answer) {
                (Some(version), Answer::Listed(records)) => !records.contains(&version),
                _ => false,
            },
            _ => false,
        }
    }

    fn reply(&self, work: &Work<'a, F>, answer: Answer) -> Reply {
        match answer {
            Answer::Found(record) => Reply::Found(record),
            Answer::NotFound => Reply::NotFound,
            Answer::Created => Reply::Created,
            Answer::Exists if self.is(Wrong::ExistsIsMine) => Reply::Created,
            Answer::Failed | Answer::Exists if work.creating && self.is(Wrong::UnknownIsSuccess) => Reply::Created,
            Answer::Exists | Answer::Failed => Reply::Unknown,
            Answer::Listed(records) => Reply::Listed(records),
            Answer::Waited => Reply::Waited,
        }
    }

    fn take(&mut self, mut work: Box<Work<'a, F>>, step: Step<F::Body>, hands: &mut Hands<'_>) -> Option<Call<F::Body>> {
        let call = match step {
            Step::Call(call) => call,
            Step::Done(settled) => return self.settled(work, settled, hands),
        };
        work.creating = matches!(call, Call::Create(..));
        work.is_waiting = matches!(call, Call::Wait(_));
        let resolving = work.machine.phase() == Phase::Resolving;
        let call = match call {
            Call::Create(version, body) if work.shift && self.is(Wrong::NextVersionAfterNotFound) => {
                Call::Create(version + 1, body)
            }
            Call::Get(version) if resolving && self.is(Wrong::ListingIsTruth) => {
                work.looking_up = Some(version);
                Call::List(version)
            }
            call => call,
        };
        self.work = Some(work);
        Some(call)
    }

    fn settled(&mut self, work: Box<Work<'a, F>>, settled: Settled, hands: &mut Hands<'_>) -> Option<Call<F::Body>> {
        self.begun = true;
        match settled {
            Settled::CaughtUp => None,
            Settled::Rewritten(rewritten) => self.rewritten(&work, &rewritten, hands),
            Settled::Appended(Outcome::Committed { version }) => {
                self.committed += 1;
                self.leased_at = hands.now.wall;
                let advances = work.record.iter().flat_map(|record| &record.advances);
                self.news.told.extend(advances.map(|advance| (advance.lane.partition, advance.span.until())));
                self.news.committed = Some((version, work.txn_id));
                None
            }
            Settled::Appended(Outcome::Stale(lanes)) => {
                self.news.refused_batches += 1;
                self.refused(work.record?, &lanes, hands)
            }
        }
    }

    /// Abandoned: the files stay as orphans, and the next batch begins where the log stands. Unless it is done wrong.
    fn refused(&self, record: &Record, lanes: &[StaleLane], hands: &Hands<'_>) -> Option<Call<F::Body>> {
        let only_swept = lanes.iter().all(|lane| lane.found == lane.expected);
        let lease_holds = hands.now.wall.micros() - self.leased_at.micros() < 600_000_000;
        let unfenced = match self.wrong? {
            Wrong::NoFence | Wrong::ResumeFromGroup => true,
            Wrong::LeaseByClock => lease_holds && !only_swept,
            Wrong::IgnoreSweep => only_swept,
            Wrong::RebaseWhenStale => return Some(self.unfenced(Content::Events(&rebased(record, lanes)), hands)),
            _ => false,
        };
        unfenced.then(|| self.unfenced(Content::Events(record), hands))
    }

    fn rewritten(&mut self, work: &Work<'a, F>, rewritten: &Rewritten, hands: &mut Hands<'_>) -> Option<Call<F::Body>> {
        let rewrite = work.rewrite?;
        match rewritten {
            Rewritten::Committed { version } => {
                self.news.rewrites += 1;
                self.news.committed = Some((*version, work.txn_id.clone()));
                keeper::done(rewrite, hands.files);
                None
            }
            Rewritten::Moved(_) => {
                self.news.refused_rewrites += 1;
                self.is(Wrong::RewriteUnfenced).then(|| self.unfenced(Content::Rewrite(rewrite), hands))
            }
        }
    }

    fn unfenced(&self, content: Content<'_>, hands: &Hands<'_>) -> Call<F::Body> {
        let header = Header {
            timestamp_ms: hands.now.wall.millis_floor(),
            engine: "tapedeck/sim".to_owned(),
            writer: self.name.clone(),
            txn_id: format!("unfenced-{}-{}", self.number, self.call),
            prev: self.known.state.tip().map(|tip| tip.hash.clone()),
        };
        Call::Create(self.known.state.next_version(), F::write(&header, content))
    }

    fn begin(&mut self, hands: &mut Hands<'_>) -> Result<Option<Call<F::Body>>, String> {
        let txn_id = format!("{:016x}", hands.rng.u64(..));
        let (mut record, mut rewrite) = (None, None);
        self.news.cuts_log = self.keeps && self.is(Wrong::CutLog);
        let goal = if !self.begun {
            Goal::Begin(self.desk.begins.keep(genesis(&txn_id)))
        } else if hands.rng.u8(0..4) == 0 || (self.lanes.is_empty() && !self.keeps) {
            Goal::CatchUp
        } else if self.keeps {
            match keeper::choose(&mut self.known.state, self.wrong, &txn_id, hands) {
                None => Goal::CatchUp,
                Some(chosen) => {
                    rewrite::check(&chosen).map_err(|error| error.to_string())?;
                    let chosen = self.desk.rewrites.keep(chosen);
                    rewrite = Some(chosen);
                    Goal::Rewrite(chosen)
                }
            }
        } else {
            let batch = self.desk.batches.keep(self.batch(&txn_id, hands));
            if self.wrong.is_none() {
                record::check(batch).map_err(|error| error.to_string())?;
            }
            record = Some(batch);
            Goal::Append(batch)
        };
        let identity = Identity { engine: "tapedeck/sim".to_owned(), writer: self.name.clone(), txn_id: txn_id.clone() };
        let started = Protocol::start_in_form(goal, identity, &mut self.known, hands.now);
        let (machine, step) = started.map_err(|error| error.to_string())?;
        let (is_waiting, creating, in_doubt, shift, looking_up) = (false, false, false, false, None);
        let work = Box::new(Work { machine, txn_id, record, rewrite, is_waiting, creating, in_doubt, shift, looking_up });
        Ok(self.take(work, step, hands))
    }

    /// The next batch of all its lanes from where it last saw them stand; a lane that the log does not know gets its start.
    fn batch(&mut self, txn_id: &str, hands: &mut Hands<'_>) -> Record {
        let mut record = Record::default();
        let mut parts = Vec::new();
        for partition in &self.lanes {
            let lane = hands.bus.lane(*partition);
            let mut expected = self.known.state.positions().get(lane).copied();
            if self.is(Wrong::ResumeFromGroup) && expected.is_some() {
                expected = Some(hands.bus.group[*partition as usize].unwrap_or(start(*partition)));
            }
            let from = expected.unwrap_or(start(*partition));
            let length = if expected.is_some() { hands.rng.u64(1..6) } else { 0 };
            let mut span = span(from, Position::new(from.get() + length));
            let gap = (length > 0 && hands.rng.u8(0..20) == 0).then_some(GapCause::Retention);
            let rows = if gap.is_none() { count(*partition, span) } else { 0 };
            if rows > 0 {
                if let (Some(first), Some(last), true) =
                    (first_event(*partition, span), last_event(*partition, span), self.is(Wrong::FromFirstToLast))
                {
                    span = self::span(first, last.next());
                }
                parts.push((*partition, span));
            }
            record.advances.push(Advance { lane: lane.clone(), expected, span, rows, skipped: 0, gap });
        }
        if !parts.is_empty() {
            let segment = hands.bus.segment(txn_id, &parts);
            hands.files.put(&segment.path, parts.into(), hands.now_ms());
            record.segments.push(segment);
        }
        if self.is(Wrong::AcknowledgeFirst) {
            self.news.told.extend(record.advances.iter().map(|advance| (advance.lane.partition, advance.span.until())));
        }
        record
    }

    /// The bus gives it a lane.
    pub(crate) fn given(&mut self, lane: i32, wall: Timestamp) {
        self.lanes.insert(lane);
        self.leased_at = wall;
    }
}

fn nothing_known(keeps: bool) -> Known {
    let state = if keeps { LogState::for_reader() } else { LogState::for_writer() };
    Known { state, ..Known::default() }
}

fn span(from: Position, until: Position) -> Span {
    Span::new(from, until).expect("forward")
}

fn genesis(id: &str) -> Genesis {
    Genesis { table_id: id.to_owned(), table: "sim".to_owned(), created_ms: 0, writers: Writers::OnlyUs }
}

/// The same files, said to hold what comes next.
fn rebased(record: &Record, lanes: &[StaleLane]) -> Record {
    let mut moved = record.clone();
    for advance in &mut moved.advances {
        let found = lanes.iter().find(|stale| stale.lane == advance.lane).and_then(|stale| stale.found);
        let from = found.unwrap_or(advance.span.from());
        advance.expected = found.or(advance.expected);
        advance.span = span(from, advance.span.until().max(from.next()));
    }
    moved
}
