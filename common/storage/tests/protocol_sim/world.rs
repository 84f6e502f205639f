//! The world: one store, one clock, a few writers, and the ghost that sees everything.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tapedeck_common::commit::Checkpoint;
use tapedeck_common::{LaneId, Position, Timestamp};
use tapedeck_storage::log::protocol::{Call, Moment};
use tapedeck_storage::log::record::{self, LogRecord};

use crate::writer::{Files, Writer, Wrong};

const TIMEOUT_MS: u64 = 30_000;
const STORM_MS: u64 = 15 * 60_000;
/// The longest that a request or a process hangs: well past the time for which a tip is trusted.
const HANG_MS: u64 = 25 * 60_000;
/// Time in which everybody must get on once nothing hangs any more.
const CALM_MS: u64 = 15 * 60_000;

/// How often each kind of fault happened.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Faults {
    lost: u64,
    reply_lost: u64,
    late: u64,
    conflict: u64,
    exists: u64,
    failed_read: u64,
    pause: u64,
    crash: u64,
    moved: u64,
    stale: u64,
    rewritten: u64,
    refused: u64,
}

impl Faults {
    fn kinds(&mut self) -> [&mut u64; 12] {
        [
            &mut self.lost,
            &mut self.reply_lost,
            &mut self.late,
            &mut self.conflict,
            &mut self.exists,
            &mut self.failed_read,
            &mut self.pause,
            &mut self.crash,
            &mut self.moved,
            &mut self.stale,
            &mut self.rewritten,
            &mut self.refused,
        ]
    }

    pub(crate) fn add(&mut self, mut other: Self) {
        for (sum, more) in self.kinds().into_iter().zip(other.kinds()) {
            *sum += *more;
        }
    }

    pub(crate) fn all_happened(mut self) -> bool {
        self.kinds().into_iter().all(|count| *count > 0)
    }
}

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

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
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
}

struct Request {
    writer: usize,
    call: u64,
    what: Call,
    /// Whether the writer hears of it.
    answered: bool,
}

pub(crate) struct World {
    rng: fastrand::Rng,
    wrong: Option<Wrong>,
    now: u64,
    seq: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    requests: Vec<Request>,
    answers: Vec<Answer>,
    /// Per mille of requests that suffer each kind of fault; drawn per world.
    hostility: u64,
    pub(crate) faults: Faults,
    writers: Vec<Writer>,
    owners: BTreeMap<i32, usize>,
    /// The store: the records, and which data files exist.
    records: BTreeMap<u64, Arc<LogRecord>>,
    files: Files,
    files_seen: usize,
    ghost: Ghost,
    /// Only where worlds are compared: it costs as much as the world.
    trace: Option<blake3::Hasher>,
}

/// What is true, known to nobody inside.
#[derive(Default)]
struct Ghost {
    positions: Checkpoint,
    txn_ids: BTreeSet<String>,
    last_hash: Option<String>,
    live: BTreeSet<String>,
    /// Every event that is live, and the file that holds it.
    events: BTreeMap<(LaneId, u64), String>,
    /// What was ever given up.
    swept: BTreeSet<String>,
}

impl Ghost {
    /// I1 to I5, at the instant at which a record lands.
    fn see(&mut self, version: u64, next: u64, read: &LogRecord, files: &Files) -> Result<(), String> {
        if version != next {
            return Err(format!("I1: record {version} lands where {next} was next"));
        }
        if read.header.prev != self.last_hash {
            return Err(format!("chain: record {version} names another predecessor"));
        }
        if !self.txn_ids.insert(read.header.txn_id.clone()) {
            return Err(format!("I5: the id of record {version} occurs twice"));
        }
        self.see_advances(version, read)?;
        self.see_content(version, read, files)?;
        self.last_hash = Some(read.hash.clone());
        Ok(())
    }

    fn see_advances(&mut self, version: u64, read: &LogRecord) -> Result<(), String> {
        for advance in &read.record.advances {
            let stands = self.positions.insert(advance.lane.clone(), advance.span.until());
            if stands != advance.expected || stands.is_some_and(|stands| stands != advance.span.from()) {
                return Err(format!("I2: record {version}: lane {} stood at {stands:?}, got {}", advance.lane, advance.span));
            }
        }
        Ok(())
    }

    /// What a rewrite takes out was live, and what it gives up was not. Answers the events that it takes out.
    fn see_removes(&mut self, version: u64, read: &LogRecord) -> Result<BTreeSet<(LaneId, u64)>, String> {
        for path in &read.sweep {
            if self.live.contains(path) {
                return Err(format!("I4: record {version} sweeps a live file"));
            }
            self.swept.insert(path.clone());
        }
        for removed in &read.removes {
            if !self.live.remove(&removed.path) {
                return Err(format!("I9: record {version} removes what is not live"));
            }
        }
        if read.removes.is_empty() {
            return Ok(BTreeSet::new());
        }
        let gone: BTreeSet<&String> = read.removes.iter().map(|removed| &removed.path).collect();
        let taken: Vec<_> = self.events.iter().filter(|(_, path)| gone.contains(path)).map(|(event, _)| event.clone()).collect();
        taken.iter().for_each(|event| drop(self.events.remove(event)));
        Ok(taken.into_iter().collect())
    }

    /// I3 and I4: the files hold exactly the events of the spans, and exist.
    fn see_content(&mut self, version: u64, read: &LogRecord, files: &Files) -> Result<(), String> {
        let taken = self.see_removes(version, read)?;
        let mut content = BTreeSet::new();
        for segment in &read.record.segments {
            let file = files.get(&segment.path).ok_or_else(|| format!("I4: record {version}: file missing"))?;
            if self.swept.contains(&segment.path) {
                return Err(format!("I4: record {version} brings a swept file to life"));
            }
            self.live.insert(segment.path.clone());
            for (lane, span) in &file.parts {
                for position in span.from().get()..span.until().get() {
                    content.insert((lane.clone(), position));
                    if self.events.insert((lane.clone(), position), segment.path.clone()).is_some() {
                        return Err(format!("I3: record {version}: {lane}/{position} twice"));
                    }
                }
            }
        }
        if read.rewrite {
            let same = read.record.segments.is_empty() || content == taken;
            return if same { Ok(()) } else { Err(format!("I9: record {version} changes the rows")) };
        }
        let advances = read.record.advances.iter().filter(|advance| advance.gap.is_none());
        let wanted: BTreeSet<_> = advances
            .flat_map(|a| (a.span.from().get()..a.span.until().get()).map(|position| (a.lane.clone(), position)))
            .collect();
        if content == wanted { Ok(()) } else { Err(format!("I3: record {version} does not hold exactly its spans")) }
    }
}

impl World {
    pub(crate) fn new(seed: u64, wrong: Option<Wrong>) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let writers = rng.usize(2..=4);
        let keepers = rng.usize(0..=2);
        let lanes = rng.i32(1..=3);
        // One world in ten is without faults.
        let hostility = if rng.u8(0..10) == 0 { 0 } else { rng.u64(1..=150) };
        let owners: BTreeMap<i32, usize> = (0..lanes).map(|lane| (lane, rng.usize(0..writers))).collect();
        let mut world = Self {
            wrong,
            now: 0,
            seq: 0,
            events: BinaryHeap::new(),
            requests: Vec::new(),
            answers: Vec::new(),
            hostility,
            faults: Faults::default(),
            writers: (0..writers + keepers).map(|number| Writer::new(number, number >= writers, wrong)).collect(),
            owners,
            records: BTreeMap::new(),
            files: BTreeMap::new(),
            files_seen: 0,
            ghost: Ghost::default(),
            trace: None,
            rng,
        };
        for (lane, owner) in world.owners.clone() {
            world.writers[owner].lanes.insert(lane);
        }
        world
    }

    /// Events of the world so far: requests, answers, wake-ups, crashes.
    pub(crate) fn events(&self) -> u64 {
        self.seq
    }

    pub(crate) fn commits(&self) -> u64 {
        self.records.len() as u64
    }

    /// Runs it, and answers what happened.
    pub(crate) fn trace(&mut self) -> Result<String, String> {
        self.trace = Some(blake3::Hasher::new());
        self.run()?;
        Ok(self.trace.take().map(|trace| trace.finalize().to_hex().to_string()).unwrap_or_default())
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
        self.run_until(STORM_MS)?;
        self.hostility = 0;
        // Whatever still hangs comes in; then all must commit again.
        self.run_until(STORM_MS + HANG_MS + 2 * TIMEOUT_MS)?;
        let before: Vec<u64> = self.writers.iter().map(|writer| writer.committed).collect();
        self.run_until(self.now + CALM_MS)?;
        for (writer, before) in self.writers.iter().zip(before) {
            if !writer.lanes.is_empty() && writer.committed == before {
                return Err(format!("stuck: writer {} commits nothing in calm", writer.number));
            }
        }
        Ok(())
    }

    fn run_until(&mut self, end: u64) -> Result<(), String> {
        while let Some(Reverse((at, _, _))) = self.events.peek() {
            if *at > end {
                break;
            }
            let Some(Reverse((at, _, event))) = self.events.pop() else { break };
            self.now = at;
            if let Some(trace) = &mut self.trace {
                trace.update(format!("{at} {event:?}\n").as_bytes());
            }
            self.happen(event)?;
        }
        self.now = end;
        Ok(())
    }

    fn later(&mut self, after: u64, event: Event) {
        self.seq += 1;
        self.events.push(Reverse((self.now + after, self.seq, event)));
    }

    fn strikes(&mut self) -> bool {
        self.rng.u64(0..1000) < self.hostility
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Arrive { request } => self.arrive(request),
            Event::Answer { writer, call, answer } => {
                let answer = self.answers[answer].clone();
                if self.writers[writer].call != call { Ok(()) } else { self.advance(writer, Some(answer)) }
            }
            Event::Wake { writer, call } => {
                if self.writers[writer].call == call {
                    self.advance(writer, None)
                } else {
                    Ok(())
                }
            }
            Event::Move => {
                self.move_lane();
                Ok(())
            }
            Event::Learn { writer, lane } => {
                if self.owners[&lane] != writer {
                    self.writers[writer].lanes.remove(&lane);
                }
                Ok(())
            }
            Event::Crash { writer } => {
                self.faults.crash += 1;
                let call = self.writers[writer].restart();
                let after = self.rng.u64(100..10_000);
                self.later(after, Event::Wake { writer, call });
                Ok(())
            }
        }
    }

    fn move_lane(&mut self) {
        self.faults.moved += 1;
        let lane = self.rng.i32(0..self.owners.len() as i32);
        let writers = self.writers.iter().filter(|writer| !writer.keeps).count();
        let new = self.rng.usize(0..writers);
        let old = self.owners.insert(lane, new).expect("every lane has an owner");
        self.writers[new].lanes.insert(lane);
        // Until then the old owner goes on as a zombie.
        let after = self.rng.u64(0..120_000);
        self.later(after, Event::Learn { writer: old, lane });
    }

    /// Lets a writer take its next step, with the answer it waited for or because it woke.
    fn advance(&mut self, number: usize, answer: Option<Answer>) -> Result<(), String> {
        let wall = Timestamp::from_micros(1_795_000_000_000_000 + self.now as i64 * 1000);
        let moment = Moment { monotonic: Duration::from_millis(self.now), wall, chance: self.rng.f64() };
        let mut writer = std::mem::replace(&mut self.writers[number], Writer::new(number, false, None));
        let next = writer.advance(answer, moment, &mut self.rng, &mut self.files);
        self.faults.stale += std::mem::take(&mut writer.stale);
        self.faults.rewritten += std::mem::take(&mut writer.rewrites);
        self.faults.refused += std::mem::take(&mut writer.refused);
        if let Some((version, txn_id)) = writer.acknowledged.take() {
            let landed = self.records.get(&version);
            if landed.is_none_or(|landed| landed.header.txn_id != txn_id) {
                return Err(format!("I6: writer {number} acknowledges record {version}, which is not its own"));
            }
        }
        let call = writer.call;
        self.writers[number] = writer;
        self.check_files()?;
        match next.map_err(|error| format!("writer {number}: {error}"))? {
            None => {
                let hanging = (STORM_MS..STORM_MS + HANG_MS).contains(&self.now);
                let longest = if hanging { 400_000 } else { 40_000 };
                let after = self.rng.u64(1_000..longest);
                self.later(after, Event::Wake { writer: number, call });
            }
            Some(Call::Wait(time)) => {
                let answer = self.keep(Answer::Waited);
                self.later(time.as_millis() as u64, Event::Answer { writer: number, call, answer });
            }
            Some(what) => self.send(number, call, what),
        }
        self.maybe_crash(number);
        Ok(())
    }

    /// I4, whenever a file went away.
    fn check_files(&mut self) -> Result<(), String> {
        let before = std::mem::replace(&mut self.files_seen, self.files.len());
        if self.files.len() >= before {
            return Ok(());
        }
        match self.ghost.live.iter().find(|path| !self.files.contains_key(*path)) {
            Some(gone) => Err(format!("I4: file {gone} is live and deleted")),
            None => Ok(()),
        }
    }

    fn maybe_crash(&mut self, writer: usize) {
        if self.rng.u64(0..3000) < self.hostility {
            let after = self.rng.u64(0..1000);
            self.later(after, Event::Crash { writer });
        }
    }

    fn keep(&mut self, answer: Answer) -> usize {
        self.answers.push(answer);
        self.answers.len() - 1
    }

    fn answer_later(&mut self, writer: usize, call: u64, answer: Answer, after: u64) {
        let answer = self.keep(answer);
        let mut after = after;
        if self.strikes() {
            // The process is stopped and goes on much later, with the answer waiting for it.
            self.faults.pause += 1;
            after += self.rng.u64(0..HANG_MS);
        }
        self.later(after, Event::Answer { writer, call, answer });
    }

    fn send(&mut self, writer: usize, call: u64, what: Call) {
        let travel = self.rng.u64(5..200);
        if self.strikes() {
            self.faults.lost += 1;
            return self.answer_later(writer, call, Answer::Failed, TIMEOUT_MS);
        }
        if matches!(what, Call::Create(..)) && self.strikes() {
            // Applied at some time later; nobody is told.
            self.faults.late += 1;
            let after = self.rng.u64(0..HANG_MS);
            self.requests.push(Request { writer, call, what, answered: false });
            let request = self.requests.len() - 1;
            self.later(after, Event::Arrive { request });
            return self.answer_later(writer, call, Answer::Failed, TIMEOUT_MS);
        }
        self.requests.push(Request { writer, call, what, answered: true });
        let request = self.requests.len() - 1;
        self.later(travel, Event::Arrive { request });
    }

    fn arrive(&mut self, number: usize) -> Result<(), String> {
        let (writer, call, answered) = {
            let request = &self.requests[number];
            (request.writer, request.call, request.answered)
        };
        let answer = match self.requests[number].what.clone() {
            Call::Create(version, body) => self.create(version, body)?,
            Call::Get(_) if self.strikes() => {
                self.faults.failed_read += 1;
                Answer::Failed
            }
            Call::Get(version) => self.records.get(&version).cloned().map_or(Answer::NotFound, Answer::Found),
            Call::List(from) => Answer::Listed(self.records.range(from..).map(|(version, _)| *version).collect()),
            Call::Wait(_) => Answer::Waited,
        };
        if answered {
            let answer = if answer == Answer::Created && self.strikes() {
                self.faults.reply_lost += 1;
                // Some clients repeat by themselves and meet their own success.
                if self.rng.bool() { Answer::Failed } else { Answer::Exists }
            } else {
                answer
            };
            let travel = self.rng.u64(5..200);
            self.answer_later(writer, call, answer, travel);
        }
        Ok(())
    }

    fn create(&mut self, version: u64, body: Bytes) -> Result<Answer, String> {
        if self.strikes() {
            self.faults.conflict += 1;
            return Ok(Answer::Exists);
        }
        let exists = self.records.contains_key(&version);
        if exists && self.wrong == Some(Wrong::PlainPut) {
            return Err(format!("I1: record {version} was overwritten"));
        }
        if exists {
            self.faults.exists += 1;
            return Ok(Answer::Exists);
        }
        let next = self.records.last_key_value().map_or(0, |(last, _)| last + 1);
        let read = record::decode(&body).map_err(|error| format!("record {version}: {error}"))?;
        self.ghost.see(version, next, &read, &self.files)?;
        self.records.insert(version, Arc::new(read));
        Ok(Answer::Created)
    }
}

/// The lanes of all worlds.
pub(crate) fn lane(partition: i32) -> LaneId {
    LaneId::new("kafka/sim/topic/0", partition)
}

/// Where a lane begins.
pub(crate) fn start(partition: i32) -> Position {
    Position::new(10 * (partition as u64 + 1))
}
