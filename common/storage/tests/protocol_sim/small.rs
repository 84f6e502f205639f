//! A world small enough to be searched through: two writers that both believe to own one lane, a keeper that sweeps whatever
//! no record names, however young, and a store. Time stands still, so nothing here hangs on it; the worlds of `world` have time.
//!
//! What leads nowhere else is left out. A read takes effect and is heard at once, since between its effect and its answer only
//! others act, and they may as well act after it. A failed read changes nothing but the wait before the next one, and waits are
//! over at once. A refused create is one that never lands; that the client met its own success is heard like a lost answer.
//! (The last two make a difference to wrong variants, and happen to them.)

use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tapedeck_common::Timestamp;
use tapedeck_common::commit::{Advance, Outcome, Record};
use tapedeck_storage::log::protocol::{Call, Identity, Known, Moment, Phase, Protocol, Reply, Settled, Step};
use tapedeck_storage::log::record::LogRecord;
use tapedeck_storage::log::rewrite::{Rewrite, Rewritten};
use tapedeck_storage::log::state::LogState;

use crate::files::Files;
use crate::ghost::Ghost;
use crate::shared::Shared;
use crate::wrong::Wrong;

pub(crate) const WRITERS: usize = 2;
/// The writers, and the keeper.
pub(crate) const ACTORS: usize = WRITERS + 1;

pub(crate) type Body = Arc<LogRecord>;

/// What may happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Move {
    /// Somebody with nothing to do begins something.
    Begin(usize),
    /// A call is done, and its caller hears of it.
    Answer(usize),
    /// It is done; the answer is lost.
    LoseAnswer(usize),
    /// It is done; the client repeats it by itself and meets its own success.
    RepeatInside(usize),
    /// "It exists", and nothing is done.
    Conflict(usize),
    /// No answer; it may be done later.
    Delay(usize),
    /// A request that was late comes in.
    Land(usize),
    /// A process dies; what it asked for is lost with it.
    Crash(usize),
    /// A process dies; what it asked for may be done later.
    CrashAndDelay(usize),
}

/// What somebody works on.
#[derive(Clone)]
pub(crate) struct Work<'a> {
    pub(crate) machine: Protocol<'a, Shared>,
    pub(crate) call: Call<Body>,
    pub(crate) record: Option<&'a Record>,
    pub(crate) rewrite: Option<&'a Rewrite>,
    /// The newest record that was known when it was begun: what is watched follows from it, and from the tip.
    pub(crate) begun_at: u64,
}

#[derive(Clone, Default)]
pub(crate) struct Actor<'a> {
    pub(crate) known: Known,
    pub(crate) begun: bool,
    /// How many ids it has used. Survives a crash, since ids are never drawn twice.
    pub(crate) ids: u8,
    pub(crate) work: Option<Work<'a>>,
}

#[derive(Clone)]
pub(crate) struct State<'a> {
    pub(crate) records: Vec<Body>,
    pub(crate) files: Rc<Files>,
    pub(crate) ghost: Rc<Ghost>,
    /// Requests that may still come in.
    pub(crate) late: Vec<(u64, Body)>,
    pub(crate) actors: [Rc<Actor<'a>>; ACTORS],
    pub(crate) crashes_left: u8,
    pub(crate) faults_left: u8,
    pub(crate) sweeps_left: u8,
}

/// Time stands still.
pub(crate) fn now() -> Moment {
    Moment { monotonic: Duration::ZERO, wall: Timestamp::from_micros(1_795_000_000_000_000), chance: 0.5 }
}

pub(crate) fn identity(actor: usize, ids: u8) -> Identity {
    Identity { engine: "tapedeck/sim".to_owned(), writer: format!("w{actor}"), txn_id: format!("{actor}-{ids}") }
}

fn nothing_known(actor: usize) -> Known {
    let state = if actor < WRITERS { LogState::for_writer() } else { LogState::for_reader() };
    Known { state, ..Known::default() }
}

impl<'a> State<'a> {
    pub(crate) fn new(crashes_left: u8, faults_left: u8, sweeps_left: u8) -> Self {
        let actor = |number| Rc::new(Actor { known: nothing_known(number), ..Actor::default() });
        Self {
            records: Vec::new(),
            files: Rc::default(),
            ghost: Rc::new(Ghost::of_lanes(1)),
            late: Vec::new(),
            actors: [actor(0), actor(1), actor(2)],
            crashes_left,
            faults_left,
            sweeps_left,
        }
    }

    /// Two states with the same mark go on alike. What somebody knows of the log follows from its newest record, which names the
    /// whole past; what the ghost knows follows from the log.
    pub(crate) fn mark(&self) -> u64 {
        let mut mark = DefaultHasher::new();
        self.records.last().map(|record| &record.hash).hash(&mut mark);
        self.files.iter().for_each(|(path, _)| path.hash(&mut mark));
        self.late.iter().for_each(|(version, body)| (version, &body.hash).hash(&mut mark));
        (self.crashes_left, self.faults_left, self.sweeps_left).hash(&mut mark);
        for actor in &self.actors {
            (actor.known.state.tip().map(|tip| &tip.hash), actor.begun, actor.ids).hash(&mut mark);
            let Some(work) = &actor.work else { continue };
            work.machine.hash(&mut mark);
            match &work.call {
                Call::Get(version) => (0, *version).hash(&mut mark),
                Call::Create(version, body) => (1, *version, &body.hash).hash(&mut mark),
                Call::List(version) => (2, *version).hash(&mut mark),
                Call::Wait(_) => 3.hash(&mut mark),
            }
            let wants = |a: &Advance| (a.expected, a.span);
            work.record.map(|record| record.advances.iter().map(wants).collect::<Vec<_>>()).hash(&mut mark);
            work.rewrite.map(|rewrite| (&rewrite.sweep, work.begun_at)).hash(&mut mark);
        }
        mark.finish()
    }

    /// The store takes the record, or has one there.
    fn create(&mut self, version: u64, body: &Body, wrong: Option<Wrong>) -> Result<bool, String> {
        let exists = version < self.records.len() as u64;
        if exists && wrong == Some(Wrong::PlainPut) {
            return Err(format!("I1: record {version} was overwritten"));
        }
        if exists {
            return Ok(false);
        }
        Rc::make_mut(&mut self.ghost).see(version, body, &self.files)?;
        self.records.push(Arc::clone(body));
        // Whatever is late for a version that is taken comes too late.
        let next = self.records.len() as u64;
        self.late.retain(|(version, _)| *version >= next || wrong == Some(Wrong::PlainPut));
        Ok(true)
    }

    pub(crate) fn land(&mut self, number: usize, wrong: Option<Wrong>) -> Result<(), String> {
        let (version, body) = self.late.remove(number);
        self.create(version, &body, wrong).map(drop)
    }

    fn delay(&mut self, version: u64, body: Body) {
        if !self.late.iter().any(|(at, late)| *at == version && late.hash == body.hash) {
            self.late.push((version, body));
            self.late.sort_by(|a, b| (a.0, &a.1.hash).cmp(&(b.0, &b.1.hash)));
        }
    }

    pub(crate) fn crash(&mut self, number: usize, delayed: bool) {
        self.crashes_left -= 1;
        let ids = self.actors[number].ids;
        let call = self.actors[number].work.as_ref().map(|work| work.call.clone());
        self.actors[number] = Rc::new(Actor { known: nothing_known(number), ids, ..Actor::default() });
        if let (Some(Call::Create(version, body)), true) = (call, delayed) {
            self.delay(version, body);
        }
    }

    /// Does what somebody asked for, in the way of `how`, and lets it go on.
    pub(crate) fn serve(&mut self, number: usize, how: Move, wrong: Option<Wrong>) -> Result<(), String> {
        let Some(work) = &self.actors[number].work else { return Ok(()) };
        let reply = match work.call.clone() {
            Call::Wait(_) => Reply::Waited,
            Call::Get(version) => match self.records.get(version as usize) {
                Some(record) => Reply::Found(Arc::clone(record)),
                None => Reply::NotFound,
            },
            Call::List(from) => Reply::Listed((from..self.records.len() as u64).collect()),
            Call::Create(version, body) => return self.serve_create(number, version, &body, how, wrong),
        };
        let lost = work.machine.phase() == Phase::Resolving && reply == Reply::NotFound;
        if lost && wrong == Some(Wrong::DeleteAfterNotFound) {
            return self.give_up(number);
        }
        self.go_on(number, reply)
    }

    fn serve_create(&mut self, number: usize, version: u64, body: &Body, how: Move, wrong: Option<Wrong>) -> Result<(), String> {
        if how != Move::Answer(number) {
            self.faults_left -= 1;
        }
        let created = match how {
            Move::Conflict(_) => false,
            Move::Delay(_) => {
                self.delay(version, Arc::clone(body));
                false
            }
            _ => self.create(version, body, wrong)?,
        };
        let exists = matches!(how, Move::Conflict(_) | Move::RepeatInside(_)) || (how == Move::Answer(number) && !created);
        let heard = match wrong {
            Some(Wrong::UnknownIsSuccess) => true,
            Some(Wrong::ExistsIsMine) if exists => true,
            Some(Wrong::DeleteAfterExists) if exists => return self.give_up(number),
            _ => created && how == Move::Answer(number),
        };
        self.go_on(number, if heard { Reply::Created } else { Reply::Unknown })
    }

    /// Deletes the files of a batch and forgets it, as a wrong variant does.
    fn give_up(&mut self, number: usize) -> Result<(), String> {
        let work = Rc::make_mut(&mut self.actors[number]).work.take();
        let segments = work.iter().filter_map(|work| work.record).flat_map(|record| &record.segments);
        let paths: Vec<String> = segments.map(|segment| segment.path.clone()).collect();
        self.delete(&paths)
    }

    pub(crate) fn delete(&mut self, paths: &[String]) -> Result<(), String> {
        let files = Rc::make_mut(&mut self.files);
        paths.iter().for_each(|path| files.delete(path));
        self.ghost.see_gone(&files.take_gone())
    }

    fn go_on(&mut self, number: usize, reply: Reply) -> Result<(), String> {
        let actor = Rc::make_mut(&mut self.actors[number]);
        let Some(mut work) = actor.work.take() else { return Ok(()) };
        let step = work.machine.step(&mut actor.known, reply, now()).map_err(|error| format!("actor {number}: {error}"))?;
        self.take(number, work, step)
    }

    pub(crate) fn take(&mut self, number: usize, mut work: Work<'a>, mut step: Step<Body>) -> Result<(), String> {
        let actor = Rc::make_mut(&mut self.actors[number]);
        while let Step::Call(Call::Wait(_)) = step {
            let waited = work.machine.step(&mut actor.known, Reply::Waited, now());
            step = waited.map_err(|error| format!("actor {number}: {error}"))?;
        }
        let settled = match step {
            Step::Call(call) => {
                work.call = call;
                actor.work = Some(work);
                return Ok(());
            }
            Step::Done(settled) => settled,
        };
        actor.begun = true;
        // What was watched for a rewrite that is over is nobody's concern any more.
        actor.known.state.watch([], []);
        let id = format!("{number}-{}", actor.ids);
        let version = match settled {
            Settled::Appended(Outcome::Committed { version }) => version,
            Settled::Rewritten(Rewritten::Committed { version }) => version,
            _ => return Ok(()),
        };
        if self.records.get(version as usize).is_none_or(|landed| landed.header.txn_id != id) {
            return Err(format!("I6: actor {number} acknowledges record {version}, which is not its own"));
        }
        work.rewrite.map_or(Ok(()), |rewrite| self.delete(&rewrite.sweep))
    }
}
