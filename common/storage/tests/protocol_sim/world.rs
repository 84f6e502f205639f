//! The world: one store, one clock, a few writers, a network between them that loses, delays and repeats, and the ghost that
//! sees everything. What happens next is the earliest event; what happens at all is drawn from one seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use tapedeck_common::Timestamp;
use tapedeck_storage::log::form::Form;
use tapedeck_storage::log::protocol::{Call, Moment};
use tapedeck_storage::log::record::LogRecord;

use crate::arena::Desk;
use crate::bus::Bus;
use crate::faults::{At, Coverage, Fault};
use crate::files::Files;
use crate::ghost::Ghost;
use crate::slab::Slab;
use crate::writer::{Answer, Hands, Writer};
use crate::wrong::Wrong;

pub(crate) const TIMEOUT_MS: u64 = 30_000;
const STORM_MS: u64 = 15 * 60_000;
/// The longest that a request or a process hangs: well past the time for which a tip is trusted.
pub(crate) const HANG_MS: u64 = 25 * 60_000;
/// Time in which everybody must get on once nothing hangs any more.
const CALM_MS: u64 = 15 * 60_000;
/// How often it is looked at whether all have got on.
const LOOK_MS: u64 = 10_000;
const DAY_MS: i64 = 24 * 3_600_000;

#[derive(Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// A request reaches the store; its answer, if it is not lost, goes to the writer's call.
    Arrive { request: usize },
    /// A writer learns the outcome of its call.
    Answer { writer: usize, call: u64, answer: usize },
    /// A writer with nothing to do looks around.
    Wake { writer: usize, call: u64 },
    /// A lane is given to another writer; the old one learns later.
    Move,
    /// A writer learns that a lane is not its own any more.
    Learn { writer: usize, lane: i32 },
    /// A writer dies and begins anew.
    Crash { writer: usize },
    /// A writer's wall clock jumps.
    Jump { writer: usize },
}

/// What became of a world.
#[derive(Default)]
pub(crate) struct Story {
    pub(crate) events: u64,
    pub(crate) records: u64,
    pub(crate) refused_batches: u64,
    pub(crate) rewrites: u64,
    pub(crate) refused_rewrites: u64,
    pub(crate) coverage: Coverage,
}

impl Story {
    pub(crate) fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.records += other.records;
        self.refused_batches += other.refused_batches;
        self.rewrites += other.rewrites;
        self.refused_rewrites += other.refused_rewrites;
        self.coverage.add(&other.coverage);
    }
}

/// On its way to the store.
pub(crate) struct Request<B> {
    pub(crate) writer: usize,
    pub(crate) call: u64,
    pub(crate) what: Call<B>,
    pub(crate) at: At,
    /// Whether the writer hears of it.
    pub(crate) answered: bool,
}

pub(crate) struct World<'a, F: Form> {
    pub(crate) rng: fastrand::Rng,
    pub(crate) wrong: Option<Wrong>,
    pub(crate) now: u64,
    seq: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    /// Each is taken out when it arrives, or is heard.
    pub(crate) requests: Slab<Request<F::Body>>,
    pub(crate) answers: Slab<Answer>,
    /// Per mille of requests that suffer each kind of fault; drawn per world.
    hostility: u64,
    pub(crate) story: Story,
    pub(crate) writers: Vec<Writer<'a, F>>,
    bus: Bus,
    /// The store: the records, with the time at which they landed, and the data files.
    pub(crate) records: BTreeMap<u64, (u64, Arc<LogRecord>)>,
    pub(crate) files: Files,
    pub(crate) ghost: Ghost,
    /// Only where worlds are compared.
    pub(crate) trace: Option<DefaultHasher>,
}

impl<'a, F: Form> World<'a, F> {
    pub(crate) fn new(seed: u64, wrong: Option<Wrong>, desk: &'a Desk) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let writers = rng.usize(2..=4);
        let keepers = rng.usize(0..=2);
        let lanes = rng.usize(1..=3);
        // One world in ten is without faults.
        let hostility = if rng.u8(0..10) == 0 { 0 } else { rng.u64(1..=150) };
        let owners: Vec<usize> = (0..lanes).map(|_| rng.usize(0..writers)).collect();
        let mut world = Self {
            wrong,
            now: 0,
            seq: 0,
            events: BinaryHeap::with_capacity(64),
            requests: Slab::default(),
            answers: Slab::default(),
            hostility,
            story: Story::default(),
            writers: (0..writers + keepers).map(|number| Writer::new(number, number >= writers, wrong, desk)).collect(),
            records: BTreeMap::new(),
            files: Files::default(),
            ghost: Ghost::of_lanes(lanes),
            trace: None,
            bus: Bus::new(owners),
            rng,
        };
        for lane in 0..lanes {
            let (owner, wall) = (world.bus.owners[lane], world.wall(0));
            world.writers[owner].given(lane as i32, wall);
        }
        world
    }

    /// Runs it, and answers a mark of all that happened.
    pub(crate) fn trace(&mut self) -> Result<u64, String> {
        self.trace = Some(DefaultHasher::new());
        self.run()?;
        Ok(self.trace.take().map_or(0, |trace| trace.finish()))
    }

    /// A storm of faults, then calm in which everybody must get on.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        for writer in 0..self.writers.len() {
            self.later(0, Event::Wake { writer, call: 0 });
        }
        for _ in 0..self.rng.u64(0..12) {
            let at = self.rng.u64(0..STORM_MS);
            self.later(at, Event::Move);
        }
        for _ in 0..self.rng.u64(0..4) {
            let (at, writer) = (self.rng.u64(0..STORM_MS), self.rng.usize(0..self.writers.len()));
            self.later(at, Event::Jump { writer });
        }
        self.run_until(STORM_MS)?;
        self.hostility = 0;
        // Whatever still hangs comes in; then all must commit again.
        self.run_until(STORM_MS + HANG_MS + 2 * TIMEOUT_MS)?;
        let before: Vec<u64> = self.writers.iter().map(|writer| writer.committed).collect();
        let end = self.now + CALM_MS;
        // More of it would prove nothing.
        while self.now < end && self.stuck(&before).is_some() {
            self.run_until(self.now + LOOK_MS)?;
        }
        (self.story.events, self.story.records) = (self.seq, self.ghost.records());
        self.stuck(&before).map_or(Ok(()), |number| Err(format!("stuck: writer {number} commits nothing in calm")))
    }

    /// A writer with lanes that has committed nothing since then.
    fn stuck(&self, before: &[u64]) -> Option<usize> {
        let mut writers = self.writers.iter().zip(before);
        writers.find(|(writer, before)| !writer.lanes.is_empty() && writer.committed == **before).map(|(writer, _)| writer.number)
    }

    fn run_until(&mut self, end: u64) -> Result<(), String> {
        while self.events.peek().is_some_and(|Reverse((at, ..))| *at <= end) {
            let Some(Reverse((at, seq, event))) = self.events.pop() else { break };
            self.now = at;
            if let Some(trace) = &mut self.trace {
                (at, seq, &event).hash(trace);
            }
            self.happen(event)?;
        }
        self.now = end;
        Ok(())
    }

    pub(crate) fn later(&mut self, after: u64, event: Event) {
        self.seq += 1;
        self.events.push(Reverse((self.now + after, self.seq, event)));
    }

    pub(crate) fn strikes(&mut self) -> bool {
        self.rng.u64(0..1000) < self.hostility
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Arrive { request } => return self.arrive(request),
            Event::Answer { writer, call, answer } => {
                let answer = self.answers.take(answer);
                if self.writers[writer].call == call {
                    return self.advance(writer, answer);
                }
            }
            Event::Wake { writer, call } => {
                if self.writers[writer].call == call {
                    return self.advance(writer, None);
                }
            }
            Event::Move => self.move_lane(),
            Event::Learn { writer, lane } => {
                if self.bus.owners[lane as usize] != writer {
                    self.writers[writer].lanes.remove(&lane);
                }
            }
            Event::Crash { writer } => {
                self.meets(writer, Fault::Crashed);
                let call = self.writers[writer].restart();
                let after = self.rng.u64(100..10_000);
                self.later(after, Event::Wake { writer, call });
            }
            Event::Jump { writer } => {
                self.meets(writer, Fault::ClockJumped);
                self.writers[writer].skew_ms = self.rng.i64(-DAY_MS..DAY_MS);
            }
        }
        Ok(())
    }

    fn meets(&mut self, writer: usize, fault: Fault) {
        self.story.coverage.meet(fault, self.writers[writer].at());
    }

    fn wall(&self, skew_ms: i64) -> Timestamp {
        Timestamp::from_micros(1_795_000_000_000_000 + (self.now as i64 + skew_ms) * 1000)
    }

    fn move_lane(&mut self) {
        let lane = self.rng.usize(0..self.bus.owners.len());
        let writers = self.writers.iter().filter(|writer| !writer.keeps).count();
        let new = self.rng.usize(0..writers);
        let old = std::mem::replace(&mut self.bus.owners[lane], new);
        self.meets(old, Fault::Moved);
        let wall = self.wall(self.writers[new].skew_ms);
        self.writers[new].given(lane as i32, wall);
        // Until then the old owner goes on as a zombie.
        let after = self.rng.u64(0..120_000);
        self.later(after, Event::Learn { writer: old, lane: lane as i32 });
    }

    /// Lets a writer take its next step, with the answer it waited for or because it woke.
    fn advance(&mut self, number: usize, answer: Option<Answer>) -> Result<(), String> {
        let wall = self.wall(self.writers[number].skew_ms);
        let now = Moment { monotonic: Duration::from_millis(self.now), wall, chance: self.rng.f64() };
        let writer = &mut self.writers[number];
        let next = writer.advance(answer, &mut Hands { now, rng: &mut self.rng, files: &mut self.files, bus: &self.bus });
        let call = writer.call;
        self.look_at(number)?;
        match next.map_err(|error| format!("writer {number}: {error}"))? {
            None => {
                let hanging = (STORM_MS..STORM_MS + HANG_MS).contains(&self.now);
                let longest = if hanging { 400_000 } else { 40_000 };
                let after = self.rng.u64(1_000..longest);
                self.later(after, Event::Wake { writer: number, call });
            }
            Some(Call::Wait(time)) => self.answer_later(number, call, Answer::Waited, At::Waiting, time.as_millis() as u64),
            Some(what) => self.send(number, call, what),
        }
        self.maybe_crash(number);
        Ok(())
    }

    /// What a step of a writer did, against what is true.
    fn look_at(&mut self, number: usize) -> Result<(), String> {
        let news = std::mem::take(&mut self.writers[number].news);
        self.story.refused_batches += news.refused_batches;
        self.story.rewrites += news.rewrites;
        self.story.refused_rewrites += news.refused_rewrites;
        if let Some((version, txn_id)) = news.committed {
            let landed = self.records.get(&version);
            if landed.is_none_or(|(_, landed)| landed.header.txn_id != txn_id) {
                return Err(format!("I6: writer {number} acknowledges record {version}, which is not its own"));
            }
        }
        for (partition, until) in news.told {
            self.ghost.see_told(partition, until)?;
            // Nobody waits for it, and now and then it is lost.
            if self.rng.u8(0..4) > 0 {
                self.bus.group[partition as usize] = Some(until);
            }
        }
        if news.cuts_log {
            let kept = self.ghost.records().saturating_sub(3);
            self.records.retain(|version, _| *version >= kept);
        }
        self.ghost.see_gone(&self.files.take_gone())
    }

    fn maybe_crash(&mut self, writer: usize) {
        if self.rng.u64(0..3000) < self.hostility {
            let after = self.rng.u64(0..1000);
            self.later(after, Event::Crash { writer });
        }
    }
}
