//! Searches a small world through: from its beginning every move that may come next, from there every next one, each state once.
//!
//! States are told apart by a hash of 64 bits; among a million of them one collision has a chance of three in a hundred million.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use tapedeck_common::commit::{Advance, Record};
use tapedeck_common::{Position, Span};
use tapedeck_storage::log::genesis::{Genesis, Writers};
use tapedeck_storage::log::protocol::{Call, Goal, Protocol};
use tapedeck_storage::log::rewrite::Rewrite;

use crate::arena::Desk;
use crate::bus::{Bus, count, is_hole, start};
use crate::small::{ACTORS, Move, State, WRITERS, Work, identity, now};
use crate::wrong::Wrong;

/// How small the world is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Batches with events that get into the log.
    pub(crate) batches: u64,
    /// Sweeps that the keeper asks for.
    pub(crate) sweeps: u8,
    /// Crashes, of anybody at any moment.
    pub(crate) crashes: u8,
    /// Creates whose answer is lost, or that come late.
    pub(crate) faults: u8,
    /// It begins with a table, a lane and everybody knowing both; else with nothing.
    pub(crate) begun: bool,
}

impl Bounds {
    /// From five numbers, as in `SIM_BOUNDS=3,1,1,2,1`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(',').map(|number| number.parse::<u8>().ok());
        let mut next = || numbers.next().flatten();
        let (batches, sweeps, crashes, faults) = (next()?.into(), next()?, next()?, next()?);
        Some(Self { batches, sweeps, crashes, faults, begun: next()? > 0 })
    }
}

/// What a search went through.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) states: u64,
    pub(crate) moves: u64,
    /// States in which nobody has anything left to do. All batches are in the log there.
    pub(crate) ends: u64,
    pub(crate) records: usize,
}

/// A violation, and the way to it.
#[derive(Debug)]
pub(crate) struct Found {
    what: String,
    way: Vec<Move>,
    seen: Seen,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} after {} states, by {:?}", self.what, self.seen.states, self.way)
    }
}

struct Explorer<'a> {
    bounds: Bounds,
    wrong: Option<Wrong>,
    desk: &'a Desk,
    bus: Bus,
    begins: BTreeMap<String, &'a Genesis>,
    batches: BTreeMap<(String, Option<Position>), &'a Record>,
    rewrites: BTreeMap<Vec<String>, &'a Rewrite>,
    /// Each state but the first: the one before it, and the move.
    ways: Vec<(usize, Move)>,
    /// From which state which one can be reached in one move.
    edges: Vec<(u32, u32)>,
    ends: Vec<u32>,
    seen: Seen,
}

pub(crate) fn explore(bounds: Bounds, wrong: Option<Wrong>) -> Result<Seen, Found> {
    let desk = Desk::default();
    let mut explorer = Explorer {
        bounds,
        wrong,
        desk: &desk,
        bus: Bus::new(vec![0]),
        begins: BTreeMap::new(),
        batches: BTreeMap::new(),
        rewrites: BTreeMap::new(),
        ways: Vec::new(),
        edges: Vec::new(),
        ends: Vec::new(),
        seen: Seen::default(),
    };
    explorer.search()
}

impl<'a> Explorer<'a> {
    fn search(&mut self) -> Result<Seen, Found> {
        let mut first = State::new(self.bounds.crashes, self.bounds.faults, self.bounds.sweeps);
        if self.bounds.begun {
            (0..ACTORS).try_for_each(|number| self.prepare(&mut first, number)).map_err(|what| self.found(what, 0, None))?;
        }
        let mut known = HashMap::from([(first.mark(), 0)]);
        let mut open = vec![(0, first)];
        while let Some((number, state)) = open.pop() {
            self.seen.states += 1;
            self.seen.records = self.seen.records.max(state.records.len());
            let mut is_end = true;
            for next in self.moves(&state) {
                let mut after = state.clone();
                match self.make(&mut after, next) {
                    Ok(false) => continue,
                    Ok(true) => is_end = false,
                    Err(what) => return Err(self.found(what, number, Some(next))),
                }
                let new = self.ways.len() + 1;
                let reached = match known.entry(after.mark()) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(free) => {
                        free.insert(new);
                        self.ways.push((number, next));
                        open.push((new, after));
                        new
                    }
                };
                self.edges.push((reached as u32, number as u32));
            }
            if is_end {
                self.ends.push(number as u32);
            }
        }
        (self.seen.moves, self.seen.ends) = (self.edges.len() as u64, self.ends.len() as u64);
        self.check_that_all_can_end()
    }

    /// The first writer begins the table and the lane, the others read them.
    fn prepare(&mut self, state: &mut State<'a>, number: usize) -> Result<(), String> {
        loop {
            let actor = &state.actors[number];
            let is_ready = actor.begun && (number > 0 || !actor.known.state.positions().is_empty());
            match &actor.work {
                None if is_ready => return Ok(()),
                None => self.make(state, Move::Begin(number))?,
                Some(_) => self.make(state, Move::Answer(number))?,
            };
        }
    }

    /// From wherever it got, the world can still come to an end: nobody waits for ever for what no move can bring.
    fn check_that_all_can_end(&mut self) -> Result<Seen, Found> {
        self.edges.sort_unstable();
        let mut can_end = vec![false; self.ways.len() + 1];
        let mut open = self.ends.clone();
        while let Some(number) = open.pop() {
            if std::mem::replace(&mut can_end[number as usize], true) {
                continue;
            }
            let from = self.edges.partition_point(|(reached, _)| *reached < number);
            let before = self.edges[from..].iter().take_while(|(reached, _)| *reached == number);
            open.extend(before.map(|(_, before)| *before).filter(|before| !can_end[*before as usize]));
        }
        match can_end.iter().position(|can_end| !can_end) {
            Some(number) => Err(self.found("stuck: nothing leads to an end".to_owned(), number, None)),
            None => Ok(self.seen),
        }
    }

    fn found(&self, what: String, mut number: usize, last: Option<Move>) -> Found {
        let mut way: Vec<Move> = last.into_iter().collect();
        while let Some((before, one)) = number.checked_sub(1).map(|at| self.ways[at]) {
            way.push(one);
            number = before;
        }
        way.reverse();
        Found { what, way, seen: self.seen }
    }

    fn moves(&self, state: &State<'a>) -> Vec<Move> {
        let mut moves: Vec<Move> = (0..state.late.len()).map(Move::Land).collect();
        for number in 0..ACTORS {
            let work = state.actors[number].work.as_ref();
            let creating = work.is_some_and(|work| matches!(work.call, Call::Create(..)));
            if work.is_none() {
                moves.push(Move::Begin(number));
            } else {
                moves.push(Move::Answer(number));
            }
            if creating && state.faults_left > 0 {
                moves.extend([Move::LoseAnswer(number), Move::Delay(number)]);
                let heard_apart = [Move::RepeatInside(number), Move::Conflict(number)];
                moves.extend(heard_apart.into_iter().filter(|_| self.wrong.is_some()));
            }
            if state.crashes_left > 0 && (work.is_some() || state.actors[number].begun) {
                moves.push(Move::Crash(number));
            }
            if state.crashes_left > 0 && creating {
                moves.push(Move::CrashAndDelay(number));
            }
        }
        moves
    }

    /// Makes a move. False if there was none to make.
    fn make(&mut self, state: &mut State<'a>, next: Move) -> Result<bool, String> {
        match next {
            Move::Begin(number) => return self.begin(state, number),
            Move::Land(number) => state.land(number, self.wrong)?,
            Move::Crash(number) => state.crash(number, false),
            Move::CrashAndDelay(number) => state.crash(number, true),
            Move::Answer(number)
            | Move::LoseAnswer(number)
            | Move::RepeatInside(number)
            | Move::Conflict(number)
            | Move::Delay(number) => state.serve(number, next, self.wrong)?,
        }
        Ok(true)
    }

    /// True if a lane that stands there has not all its batches yet.
    fn wants_batch(&self, stands: Option<Position>) -> bool {
        let archived = stands.map_or(0, |stands| count(0, Span::new(start(0), stands).expect("positions only grow")));
        archived < self.bounds.batches
    }

    fn begin(&mut self, state: &mut State<'a>, number: usize) -> Result<bool, String> {
        let actor = Rc::make_mut(&mut state.actors[number]);
        let (mut record, mut rewrite) = (None, None);
        let goal = if !actor.begun {
            actor.ids += 1;
            Goal::Begin(self.genesis(number, actor.ids))
        } else if number < WRITERS {
            let stands = actor.known.state.positions().get(self.bus.lane(0)).copied();
            if !self.wants_batch(stands) {
                return Ok(false);
            }
            actor.ids += 1;
            let id = format!("{number}-{}", actor.ids);
            let batch = self.batch(state, id, stands);
            record = Some(batch);
            Goal::Append(batch)
        } else {
            let sweeps_left = state.sweeps_left;
            match self.sweep(state, number)? {
                Some(sweep) => {
                    rewrite = Some(sweep);
                    Goal::Rewrite(sweep)
                }
                // A wrong keeper has deleted what it found, and says nothing.
                None if state.sweeps_left < sweeps_left => return Ok(true),
                None if state.actors[number].known.state.next_version() < state.records.len() as u64 => Goal::CatchUp,
                None => return Ok(false),
            }
        };
        let actor = Rc::make_mut(&mut state.actors[number]);
        let begun_at = actor.known.state.next_version();
        let started = Protocol::start_in_form(goal, identity(number, actor.ids), &mut actor.known, now());
        let (machine, step) = started.map_err(|error| format!("actor {number}: {error}"))?;
        state.take(number, Work { machine, call: Call::Wait(Duration::ZERO), record, rewrite, begun_at }, step)?;
        Ok(true)
    }

    fn genesis(&mut self, number: usize, ids: u8) -> &'a Genesis {
        let (desk, id) = (self.desk, format!("{number}-{ids}"));
        let new =
            |id: &String| Genesis { table_id: id.clone(), table: "sim".to_owned(), created_ms: 0, writers: Writers::OnlyUs };
        self.begins.entry(id).or_insert_with_key(|id| desk.begins.keep(new(id)))
    }

    /// The start of the lane, or its next event, in a file that lies there before the record is sent.
    fn batch(&mut self, state: &mut State<'a>, id: String, expected: Option<Position>) -> &'a Record {
        let (desk, bus) = (self.desk, &self.bus);
        let record = *self.batches.entry((id, expected)).or_insert_with_key(|(id, expected)| {
            let from = expected.unwrap_or(start(0));
            let event = (from.get()..).find(|position| !is_hole(0, *position)).unwrap_or_default();
            let until = if expected.is_some() { Position::new(event + 1) } else { from };
            let span = Span::new(from, until).expect("forward");
            let rows = count(0, span);
            let advance = Advance { lane: bus.lane(0).clone(), expected: *expected, span, rows, skipped: 0, gap: None };
            let segments = if rows > 0 { vec![bus.segment(id, &[(0, span)])] } else { Vec::new() };
            desk.batches.keep(Record { advances: vec![advance], segments })
        });
        for segment in &record.segments {
            Rc::make_mut(&mut state.files).put(&segment.path, Rc::new([(0, record.advances[0].span)]), 0);
        }
        record
    }

    /// Gives up whatever lies there and is not named by what the keeper knows, be it a minute old or a moment.
    fn sweep(&mut self, state: &mut State<'a>, number: usize) -> Result<Option<&'a Rewrite>, String> {
        if state.sweeps_left == 0 {
            return Ok(None);
        }
        let known = &state.actors[number].known.state;
        let Some(segments) = known.segments() else { return Ok(None) };
        let orphans = state.files.iter().map(|(path, _)| path.clone()).filter(|path| !segments.live.contains_key(path));
        let orphans: Vec<String> = orphans.collect();
        if orphans.is_empty() {
            return Ok(None);
        }
        state.sweeps_left -= 1;
        if matches!(self.wrong, Some(Wrong::DeleteBeforeSweep | Wrong::SweepWithoutAge)) {
            state.delete(&orphans)?;
        }
        let desk = self.desk;
        let new = |paths: &Vec<String>| desk.rewrites.keep(Rewrite::sweep(paths.clone()));
        let rewrite = *self.rewrites.entry(orphans).or_insert_with_key(new);
        let actor = Rc::make_mut(&mut state.actors[number]);
        actor.ids += 1;
        actor.known.state.watch([], rewrite.sweep.iter().cloned());
        Ok((self.wrong != Some(Wrong::SweepWithoutAge)).then_some(rewrite))
    }
}
