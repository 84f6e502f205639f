//! How one more record is added to a log by many writers at once: a state machine without I/O.
//!
//! Inputs are the outcomes of store calls and the time, outputs are the calls to make next. Promises: the create of a
//! version is repeated only with the same bytes, and only until that version is known to exist; whatever is not a plain
//! success is settled by reading back, so an answer is never guessed; a record is sent only while every lane stands where
//! it expects (the fence). Never: sends two different bodies for one version, or one body under two versions at once.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tapedeck_common::backoff::Backoff;
use tapedeck_common::commit::{Outcome, Record};
use tapedeck_common::limits::TIP_TRUSTED_FOR;
use tapedeck_common::{ErrorKind, Timestamp};

use super::form::{Content, Form, Text};
use super::genesis::Genesis;
use super::record::{Header, LogRecord, RecordError};
use super::rewrite::{Rewrite, Rewritten};
use super::state::LogState;

const WAIT_FIRST: Duration = Duration::from_millis(100);
const WAIT_LONGEST: Duration = Duration::from_secs(10);

/// What a writer knows of a log, and since when.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The log up to its newest known record.
    pub state: LogState,
    /// When that record was last known to be the newest, on the monotonic clock.
    pub seen_at: Duration,
    /// The newest record that a listing showed. A log that ends before it has a hole.
    pub listed: Option<u64>,
}

/// What the machine wants to see done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call<B = Bytes> {
    /// Read record n.
    Get(u64),
    /// Store record n if nothing lies there; one request, never repeated inside.
    Create(u64, B),
    /// List the records from n on.
    List(u64),
    /// Let this time pass.
    Wait(Duration),
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The record.
    Found(Arc<LogRecord>),
    /// Something lies there that is no record of ours.
    Unreadable(RecordError),
    /// There is no such record at this moment.
    NotFound,
    /// The create succeeded.
    Created,
    /// The versions of the records that lie there, in order.
    Listed(Vec<u64>),
    /// The time has passed.
    Waited,
    /// Anything else: a refusal, an error, no answer in time.
    Unknown,
}

/// What comes next.
#[derive(Debug)]
pub enum Step<B = Bytes> {
    /// This call.
    Call(Call<B>),
    /// Nothing: this is the result.
    Done(Settled),
}

/// How the work ended.
#[derive(Debug)]
pub enum Settled {
    /// The log is known up to its tip, and has a record 0 unless only looking was asked.
    CaughtUp,
    /// The record was accepted, or refused for good.
    Appended(Outcome),
    /// The rewrite was accepted, or refused for good.
    Rewritten(Rewritten),
}

/// The moment of a step, handed in.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The monotonic clock.
    pub monotonic: Duration,
    /// The wall clock, written into records and used for nothing else.
    pub wall: Timestamp,
    /// A number in [0, 1) that spreads the waits of many writers.
    pub chance: f64,
}

/// Why the machine stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {version}: {source}")]
pub struct ProtocolError {
    /// The record that it stumbled over.
    pub version: u64,
    /// What is wrong with it.
    pub source: RecordError,
}

impl ProtocolError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        self.source.kind()
    }
}

/// What is to be reached.
#[derive(Debug, Clone, Copy)]
pub enum Goal<'a> {
    /// Only know the log up to its tip.
    CatchUp,
    /// The same, and a log without any record gets this record 0.
    Begin(&'a Genesis),
    /// One more record. It has passed [`check`](super::record::check).
    Append(&'a Record),
    /// A record that moves or takes out what is there. It has passed [`check`](super::rewrite::check), and what it touches is watched
    /// ([`LogState::watch`]).
    Rewrite(&'a Rewrite),
}

/// Who writes, and under which fresh id.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The program, `tapedeck/<version>`.
    pub engine: String,
    /// The writer's own name.
    pub writer: String,
    /// A UUID that no other record bears.
    pub txn_id: String,
}

/// What happened on the way, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Creates that were sent.
    pub creates: u64,
    /// Creates whose outcome had to be read back.
    pub unknown: u64,
    /// Records of others that took the version we wanted.
    pub conflicts: u64,
}

/// What a piece of work is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Reading on, until there is no next record.
    Reading,
    /// A create is under way.
    Creating,
    /// The create ended in doubt; reading what lies at its version.
    Resolving,
    /// Looking whether the log below us is still there.
    Listing,
    /// The listing did not show it; the record itself decides.
    Confirming,
}

/// What is being created: repeated as it is until its version exists.
#[derive(Debug, Clone)]
struct Sent<B> {
    body: B,
    /// By which it is known again.
    hash: String,
}

/// One piece of work on one log, from [`Self::start`] until [`Step::Done`].
#[derive(Debug, Clone)]
pub struct Protocol<'a, F: Form = Text> {
    goal: Goal<'a>,
    identity: Identity,
    phase: Phase,
    /// The call to make once the present wait is over.
    waiting_for: Option<Call<F::Body>>,
    sent: Option<Sent<F::Body>>,
    /// Set once our record is known to be in the log.
    committed: Option<u64>,
    asked_at: Duration,
    backoff: Backoff,
    tally: Tally,
}

impl<'a> Protocol<'a> {
    /// The first call (or, for a record that is stale already, the result).
    pub fn start(goal: Goal<'a>, identity: Identity, known: &mut Known, now: Moment) -> Result<(Self, Step), ProtocolError> {
        Self::start_in_form(goal, identity, known, now)
    }
}

/// What decides how the work goes on, its goal left aside. Time, chance and counts are left out: they say when, never what.
impl<F: Form> Hash for Protocol<'_, F> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let waiting_for = self.waiting_for.as_ref().map(|call| match call {
            Call::Get(version) => (0, *version),
            Call::Create(version, _) => (1, *version),
            Call::List(version) => (2, *version),
            Call::Wait(_) => (3, 0),
        });
        let sent = self.sent.as_ref().map(|sent| &sent.hash);
        (self.phase, waiting_for, sent, self.committed).hash(state);
    }
}

impl<'a, F: Form> Protocol<'a, F> {
    /// As [`Protocol::start`], for records of another form than the product's.
    pub fn start_in_form(
        goal: Goal<'a>,
        identity: Identity,
        known: &mut Known,
        now: Moment,
    ) -> Result<(Self, Step<F::Body>), ProtocolError> {
        let mut work = Self {
            goal,
            identity,
            phase: Phase::Reading,
            waiting_for: None,
            sent: None,
            committed: None,
            asked_at: now.monotonic,
            backoff: Backoff::new(WAIT_FIRST, WAIT_LONGEST),
            tally: Tally::default(),
        };
        let step = match goal {
            // Whoever appends has caught up a moment ago; should it be longer, the create will tell.
            Goal::Append(_) | Goal::Rewrite(_) if known.state.tip().is_some() => work.at_tip(known, now)?,
            _ => work.read_on(known, now),
        };
        Ok((work, step))
    }

    /// What happened so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// What it is at.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Takes the outcome of the last call and says what comes next.
    pub fn step(&mut self, known: &mut Known, reply: Reply, now: Moment) -> Result<Step<F::Body>, ProtocolError> {
        if let Some(call) = self.waiting_for.take() {
            return Ok(self.call(call, now));
        }
        match (self.phase, reply) {
            (Phase::Creating, Reply::Created) => self.created(known, now),
            (Phase::Creating, _) => {
                self.tally.unknown += 1;
                self.phase = Phase::Resolving;
                Ok(self.call(Call::Get(known.state.next_version()), now))
            }
            (Phase::Reading | Phase::Resolving, Reply::Found(record)) => self.found(known, &record, now),
            (Phase::Reading | Phase::Resolving, Reply::Unreadable(source)) => {
                Err(ProtocolError { version: known.state.next_version(), source })
            }
            (Phase::Reading, Reply::NotFound) => {
                self.check_no_hole(known)?;
                self.saw_tip(known);
                self.at_tip(known, now)
            }
            // Not final: the lost create may still land. So the same bytes again, which can only land once.
            (Phase::Resolving, Reply::NotFound) => Ok(self.create_again(known, now)),
            (Phase::Listing, Reply::Listed(records)) => self.listed(known, &records, now),
            (Phase::Listing, _) => Ok(self.wait_for(Call::List(self.floor(known)), now)),
            (Phase::Confirming, Reply::Found(_)) => self.not_cut(known, now),
            (Phase::Confirming, Reply::NotFound) => Err(self.cut(known)),
            (Phase::Confirming, Reply::Unreadable(source)) => Err(ProtocolError { version: self.floor(known), source }),
            (Phase::Confirming, _) => Ok(self.wait_for(Call::Get(self.floor(known)), now)),
            (Phase::Reading | Phase::Resolving, _) => Ok(self.wait_for(Call::Get(known.state.next_version()), now)),
        }
    }

    fn call(&mut self, call: Call<F::Body>, now: Moment) -> Step<F::Body> {
        if let Call::Create(..) = call {
            self.phase = Phase::Creating;
            self.tally.creates += 1;
        }
        self.asked_at = now.monotonic;
        Step::Call(call)
    }

    fn wait_for(&mut self, call: Call<F::Body>, now: Moment) -> Step<F::Body> {
        self.waiting_for = Some(call);
        Step::Call(Call::Wait(self.backoff.next_wait(now.chance)))
    }

    fn create_again(&mut self, known: &Known, now: Moment) -> Step<F::Body> {
        match &self.sent {
            Some(sent) => self.wait_for(Call::Create(known.state.next_version(), sent.body.clone()), now),
            None => self.read_on(known, now),
        }
    }

    fn created(&mut self, known: &mut Known, now: Moment) -> Result<Step<F::Body>, ProtocolError> {
        let Some(sent) = &self.sent else { return Ok(self.read_on(known, now)) };
        let version = known.state.next_version();
        // As everybody else will read it, and not as we meant it.
        let ours = F::read(&sent.body).map_err(|source| ProtocolError { version, source })?;
        self.apply(known, &ours)?;
        self.settle(known, now)
    }

    fn read_on(&mut self, known: &Known, now: Moment) -> Step<F::Body> {
        self.phase = Phase::Reading;
        self.call(Call::Get(known.state.next_version()), now)
    }

    fn found(&mut self, known: &mut Known, record: &LogRecord, now: Moment) -> Result<Step<F::Body>, ProtocolError> {
        self.backoff.reset();
        let ours = self.apply(known, record)?;
        if ours {
            return self.settle(known, now);
        }
        if self.phase == Phase::Resolving {
            self.tally.conflicts += 1;
        }
        Ok(self.read_on(known, now))
    }

    /// Applies the next record; true if it is ours.
    fn apply(&mut self, known: &mut Known, record: &LogRecord) -> Result<bool, ProtocolError> {
        let version = known.state.next_version();
        known.state.apply(record).map_err(|source| ProtocolError { version, source })?;
        self.saw_tip(known);
        // By its bytes, which name writer and id: stronger than the id alone, should two writers ever draw the same chance.
        let ours = self.phase != Phase::Reading && self.sent.as_ref().is_some_and(|sent| sent.hash == record.hash);
        if ours {
            self.committed = Some(version);
        }
        Ok(ours)
    }

    /// What was true when we asked counts from then, and only if nobody can have cut the log since we last looked.
    fn saw_tip(&self, known: &mut Known) {
        if self.asked_at.saturating_sub(known.seen_at) <= TIP_TRUSTED_FOR {
            known.seen_at = known.seen_at.max(self.asked_at);
        }
    }

    fn is_old(known: &Known, now: Moment) -> bool {
        known.state.tip().is_some() && now.monotonic.saturating_sub(known.seen_at) > TIP_TRUSTED_FOR
    }

    fn check_no_hole(&self, known: &Known) -> Result<(), ProtocolError> {
        let version = known.state.next_version();
        match known.listed {
            Some(listed) if listed >= version => {
                let what = format!("it is missing, although record {listed} exists: the log has a hole");
                Err(ProtocolError { version, source: RecordError::Broken(what) })
            }
            _ => Ok(()),
        }
    }

    /// Everything up to the tip is known: go on to the goal.
    fn at_tip(&mut self, known: &Known, now: Moment) -> Result<Step<F::Body>, ProtocolError> {
        if Self::is_old(known, now) {
            return Ok(self.look_below(known, now));
        }
        match self.goal {
            Goal::CatchUp => Ok(Step::Done(Settled::CaughtUp)),
            Goal::Begin(_) if known.state.tip().is_some() => Ok(Step::Done(Settled::CaughtUp)),
            Goal::Begin(genesis) => Ok(self.send(known, Content::Genesis(genesis), now)),
            Goal::Append(record) => {
                Self::check_begun(known)?;
                let stale = known.state.fence(record);
                if !stale.is_empty() {
                    return Ok(Step::Done(Settled::Appended(Outcome::Stale(stale))));
                }
                Ok(self.send(known, Content::Events(record), now))
            }
            Goal::Rewrite(rewrite) => {
                Self::check_begun(known)?;
                let moved = known.state.fence_rewrite(rewrite);
                if !moved.is_empty() {
                    return Ok(Step::Done(Settled::Rewritten(Rewritten::Moved(moved))));
                }
                Ok(self.send(known, Content::Rewrite(rewrite), now))
            }
        }
    }

    fn check_begun(known: &Known) -> Result<(), ProtocolError> {
        if known.state.tip().is_some() {
            return Ok(());
        }
        let source = RecordError::Broken("it is missing: the table was never begun".to_owned());
        Err(ProtocolError { version: 0, source })
    }

    /// The fence is passed: sends the record under the next number.
    fn send(&mut self, known: &Known, content: Content<'_>, now: Moment) -> Step<F::Body> {
        let body = F::write(&self.header(known, now), content);
        self.sent = Some(Sent { body: body.clone(), hash: F::hash(&body) });
        self.call(Call::Create(known.state.next_version(), body), now)
    }

    fn header(&self, known: &Known, now: Moment) -> Header {
        Header {
            timestamp_ms: now.wall.millis_floor(),
            engine: self.identity.engine.clone(),
            writer: self.identity.writer.clone(),
            txn_id: self.identity.txn_id.clone(),
            prev: known.state.tip().map(|tip| tip.hash.clone()),
        }
    }

    /// Our record is in the log. Before that is trusted after a long sleep, the log below it must still be there.
    fn settle(&mut self, known: &Known, now: Moment) -> Result<Step<F::Body>, ProtocolError> {
        if Self::is_old(known, now) {
            return Ok(self.look_below(known, now));
        }
        match (self.goal, self.committed) {
            (Goal::Append(_), Some(version)) => Ok(Step::Done(Settled::Appended(Outcome::Committed { version }))),
            (Goal::Rewrite(_), Some(version)) => Ok(Step::Done(Settled::Rewritten(Rewritten::Committed { version }))),
            _ => Ok(Step::Done(Settled::CaughtUp)),
        }
    }

    fn look_below(&mut self, known: &Known, now: Moment) -> Step<F::Body> {
        self.phase = Phase::Listing;
        self.call(Call::List(self.floor(known)), now)
    }

    /// The newest record that was there before we slept: the one before ours, or the tip.
    fn floor(&self, known: &Known) -> u64 {
        let tip = known.state.next_version().saturating_sub(1);
        if self.committed.is_some() { tip.saturating_sub(1) } else { tip }
    }

    fn listed(&mut self, known: &mut Known, records: &[u64], now: Moment) -> Result<Step<F::Body>, ProtocolError> {
        known.listed = known.listed.max(records.last().copied());
        let floor = self.floor(known);
        if records.first() == Some(&floor) {
            return self.not_cut(known, now);
        }
        // A listing may lag behind what is there.
        self.phase = Phase::Confirming;
        Ok(self.call(Call::Get(floor), now))
    }

    fn not_cut(&mut self, known: &mut Known, now: Moment) -> Result<Step<F::Body>, ProtocolError> {
        known.seen_at = self.asked_at;
        if self.committed.is_some() { self.settle(known, now) } else { Ok(self.read_on(known, now)) }
    }

    fn cut(&self, known: &Known) -> ProtocolError {
        let what = "it is gone: the log was cut while this writer slept, so nothing it did since can be trusted";
        ProtocolError { version: self.floor(known), source: RecordError::Broken(what.to_owned()) }
    }
}

#[cfg(test)]
mod tests;
