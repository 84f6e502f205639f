//! Between the writers of a simulated world and its store: requests that are lost, refused, late or repeated, answers that are
//! lost or come when nobody remembers asking, and the store itself, which is right about records and not always about listings.

use std::hash::Hash;
use std::sync::Arc;

use tapedeck_storage::log::form::Form;
use tapedeck_storage::log::protocol::Call;

use crate::faults::{At, Fault};
use crate::world::{Event, HANG_MS, Request, TIMEOUT_MS, World};
use crate::writer::Answer;
use crate::wrong::Wrong;

impl<F: Form> World<'_, F> {
    pub(crate) fn answer_later(&mut self, writer: usize, call: u64, answer: Answer, at: At, after: u64) {
        let (answer, mut after) = (self.answers.put(answer), after);
        if self.strikes() {
            // The process is stopped and goes on much later, with the answer waiting for it.
            self.story.coverage.meet(Fault::Paused, at);
            after += self.rng.u64(0..HANG_MS);
        }
        self.later(after, Event::Answer { writer, call, answer });
    }

    pub(crate) fn send(&mut self, writer: usize, call: u64, what: Call<F::Body>) {
        let at = self.writers[writer].at();
        let travel = self.rng.u64(5..200);
        if self.strikes() {
            self.story.coverage.meet(Fault::Lost, at);
            return self.answer_later(writer, call, Answer::Failed, at, TIMEOUT_MS);
        }
        if matches!(what, Call::Create(..)) && self.strikes() {
            // Applied at some time later; nobody is told.
            self.story.coverage.meet(Fault::Late, at);
            let after = self.rng.u64(0..HANG_MS);
            self.travel(Request { writer, call, what, at, answered: false }, after);
            return self.answer_later(writer, call, Answer::Failed, at, TIMEOUT_MS);
        }
        self.travel(Request { writer, call, what, at, answered: true }, travel);
    }

    fn travel(&mut self, request: Request<F::Body>, after: u64) {
        let request = self.requests.put(request);
        self.later(after, Event::Arrive { request });
    }

    pub(crate) fn arrive(&mut self, number: usize) -> Result<(), String> {
        let Some(Request { writer, call, what, at, answered }) = self.requests.take(number) else { return Ok(()) };
        let answer = if answered && self.strikes() {
            self.story.coverage.meet(Fault::Refused, at);
            Answer::Failed
        } else {
            self.serve(what, at)?
        };
        if answered {
            let (answer, travel) = self.on_the_way_back(answer, at);
            self.answer_later(writer, call, answer, at, travel);
        }
        Ok(())
    }

    fn on_the_way_back(&mut self, answer: Answer, at: At) -> (Answer, u64) {
        let travel = self.rng.u64(5..200);
        if answer == Answer::Failed || !self.strikes() {
            return (answer, travel);
        }
        // Some clients repeat by themselves and meet their own success.
        if answer == Answer::Created && self.rng.bool() {
            self.story.coverage.meet(Fault::OwnSuccess, at);
            return (Answer::Exists, travel);
        }
        self.story.coverage.meet(Fault::ReplyLost, at);
        (Answer::Failed, if self.rng.bool() { travel } else { TIMEOUT_MS })
    }

    fn serve(&mut self, what: Call<F::Body>, at: At) -> Result<Answer, String> {
        Ok(match what {
            Call::Create(version, body) => self.create(version, &body, at)?,
            Call::Get(version) => {
                self.records.get(&version).map_or(Answer::NotFound, |(_, found)| Answer::Found(Arc::clone(found)))
            }
            Call::List(from) => self.list(from, at),
            Call::Wait(_) => Answer::Waited,
        })
    }

    /// Records that landed lately may be missing from a listing, and others stand in it twice.
    fn list(&mut self, from: u64, at: At) -> Answer {
        let mut shown_until = self.now;
        if self.strikes() {
            self.story.coverage.meet(Fault::Lagging, at);
            shown_until = self.now.saturating_sub(self.rng.u64(0..120_000));
        }
        let shown = self.records.range(from..).filter(|(_, (landed_at, _))| *landed_at <= shown_until);
        let mut listed: Vec<u64> = shown.map(|(version, _)| *version).collect();
        if shown_until < self.now && self.rng.bool() {
            listed = listed.iter().flat_map(|version| [*version, *version]).collect();
        }
        Answer::Listed(listed)
    }

    fn create(&mut self, version: u64, body: &F::Body, at: At) -> Result<Answer, String> {
        if self.strikes() {
            self.story.coverage.meet(Fault::Conflict, at);
            return Ok(Answer::Exists);
        }
        let exists = self.records.contains_key(&version);
        if exists && self.wrong == Some(Wrong::PlainPut) {
            return Err(format!("I1: record {version} was overwritten"));
        }
        if exists {
            self.story.coverage.meet(Fault::Taken, at);
            return Ok(Answer::Exists);
        }
        let read = F::read(body).map_err(|error| format!("record {version}: {error}"))?;
        self.ghost.see(version, &read, &self.files)?;
        if let Some(trace) = &mut self.trace {
            (version, &read.header.txn_id).hash(trace);
        }
        self.records.insert(version, (self.now, read));
        Ok(Answer::Created)
    }
}
