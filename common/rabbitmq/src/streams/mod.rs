//! One stream as a lane: told, located, read.
//!
//! Promises: nothing is read before it is resumed; where another connection finds the stream as it was left, the lane goes on
//! without a word; where not, it is lost and assigned again, so that the log decides. Never: goes on beyond the end that was seen,
//! since the broker would then drop, without a word, what comes before.

mod amqp;
mod place;
mod probe;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tapedeck_common::bus::{AssignedLane, BusError, Located, Start, ToLocate};
use tapedeck_common::error::ErrorKind;
use tapedeck_common::position::{LaneId, Position};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::config::{OnRecreated, RabbitSettings, StreamSettings};
use crate::convert::{Converter, Origin};
use crate::intake::Run;
use crate::keeper::{Command, LocateReply, Means, Passed};
use crate::link::Link;
use crate::sources::StreamName;
use crate::window::Window;
use amqp::Subscription;
pub(crate) use amqp::consume_from;
use place::{Begin, Placed, place};
pub(crate) use probe::Probe;

/// A stream that seems too short is looked at once more after this.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// How often it is looked whether the connection stands while nothing is read.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The lane as it was told.
struct Told {
    name: StreamName,
    generation: u32,
    lane: LaneId,
    /// Where it is read, and in which of the caller's generations; `None` until it is resumed.
    reading: Option<(Position, u64)>,
    /// It stands still until it is told again.
    halted: bool,
}

/// Reads one stream, over one connection after another.
pub(crate) struct StreamReader {
    settings: StreamSettings,
    vhost: String,
    means: Means,
    commands: mpsc::Receiver<Command>,
    topic: Arc<str>,
    told: Option<Told>,
    asked: Option<(ToLocate, LocateReply)>,
    converter: Converter,
    window: Window,
    /// Something was read since somebody asked.
    progressed: bool,
}

impl StreamReader {
    pub(crate) fn new(
        settings: &RabbitSettings,
        stream: StreamSettings,
        means: Means,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        let topic = Arc::from(stream.name.as_str());
        Self {
            settings: stream,
            vhost: settings.place.vhost.clone(),
            means,
            commands,
            topic,
            told: None,
            asked: None,
            converter: Converter::new(Origin::Stream, settings.replayed),
            window: Window::new(settings.prefetch),
            progressed: false,
        }
    }

    /// Works over this connection until it breaks.
    pub(crate) async fn serve(&mut self, link: &Link) -> Result<Infallible, BusError> {
        link.ready(&self.settings.name).await?;
        let mut subscription = self.begin(link).await?;
        self.answer(link).await?;
        loop {
            let run = tokio::select! {
                biased;
                command = self.commands.recv() => {
                    match command {
                        None => std::future::pending().await,
                        Some(Command::Locate(question, reply)) => {
                            // Whatever the answer is, the lane is not read on as before.
                            stop(&mut subscription).await;
                            self.ask(question, reply);
                            self.answer(link).await?;
                        }
                        Some(Command::Acknowledge(..)) => {}
                        Some(Command::Resume(lane, at, generation)) => {
                            if self.told.as_ref().is_none_or(|told| told.lane != lane) {
                                continue;
                            }
                            stop(&mut subscription).await;
                            subscription = self.resume(link, at, generation).await?;
                        }
                    }
                    continue;
                }
                run = read(&mut subscription, &self.means, &mut self.converter, &mut self.window) => run?,
                () = self.means.clock.sleep(LOOK_EVERY), if subscription.is_none() => {
                    if link.stands() {
                        continue;
                    }
                    return Err(BusError::new(ErrorKind::Unavailable, "the connection to RabbitMQ broke"));
                }
            };
            if let Some(reading) = subscription.as_mut() {
                reading.credit(&run).await?;
            }
            let leap = run.leap;
            self.pass_on(run).await;
            match leap {
                Some(position) => self.leap(link, position, &mut subscription).await?,
                None => self.fit_window(link, &mut subscription).await?,
            }
        }
    }

    /// True if something was read since this was last asked.
    pub(crate) const fn take_progress(&mut self) -> bool {
        std::mem::replace(&mut self.progressed, false)
    }

    /// The client cannot read the next message.
    pub(crate) async fn halt_unreadable(&mut self) {
        let Some(told) = self.told.as_mut() else { return };
        let at = told.reading.take();
        told.halted = true;
        let (lane, generation) = (told.lane.clone(), at.map_or(0, |(_, generation)| generation));
        let next = at.map_or_else(|| "?".to_owned(), |(next, _)| next.to_string());
        let what = format!("stream {}: the message at or behind offset {next} cannot be read", self.settings.name);
        self.pass(Passed::Halted(generation, lane, BusError::new(ErrorKind::Corrupt, what))).await;
    }

    fn probe<'p>(&'p self, link: &'p Link) -> Probe<'p> {
        Probe { link, stream: &self.settings.name, clock: &*self.means.clock }
    }

    async fn pass(&self, passed: Passed) {
        // Nobody is left to take it once the consumer was dropped; then this ends too.
        let _ = self.means.out.send(passed).await;
    }

    async fn tell(&mut self, name: StreamName, generation: u32) {
        let lane = LaneId::new(name.source(generation), 0);
        self.give_up_question();
        if let Some(old) = self.told.take() {
            self.pass(Passed::Lost(vec![old.lane])).await;
        }
        let assigned = AssignedLane { lane: lane.clone(), topic: Arc::clone(&self.topic) };
        self.told = Some(Told { name, generation, lane, reading: None, halted: false });
        self.pass(Passed::Assigned(vec![assigned])).await;
    }

    /// Meets the cluster, for the first time or again.
    async fn begin(&mut self, link: &Link) -> Result<Option<Subscription>, BusError> {
        let name = StreamName::new(link.cluster(), &self.vhost, &self.settings.name);
        let Some(told) = self.told.as_ref().filter(|told| told.name == name) else {
            self.tell(name, 0).await;
            return Ok(None);
        };
        let (generation, halted) = (told.generation, told.halted);
        let Some((next, reads)) = told.reading else {
            if halted {
                self.tell(name, generation).await;
            }
            return Ok(None);
        };
        let ends = self.probe(link).ends(Some(next)).await?;
        if place(Some(next), Begin::First, &ends, false, OnRecreated::Halt) == Placed::At(Located::Continue(next)) {
            return self.resume(link, next, reads).await;
        }
        warn!(stream = %self.settings.name, %next, ?ends, "the stream is not as it was left, asking the log");
        self.tell(name, generation).await;
        Ok(None)
    }

    async fn resume(&mut self, link: &Link, at: Position, generation: u64) -> Result<Option<Subscription>, BusError> {
        let Some(told) = self.told.as_mut() else { return Ok(None) };
        told.reading = Some((at, generation));
        let window = self.window.first();
        Ok(Some(Subscription::open(link, &self.settings.name, at, window).await?))
    }

    async fn pass_on(&mut self, run: Run) {
        self.progressed = true;
        if run.span.is_empty() {
            return self.means.pool.give_back(run.events);
        }
        self.means.figures.add_holes(run.holes);
        let Some(told) = self.told.as_mut() else { return };
        let Some((next, generation)) = told.reading.as_mut() else { return };
        *next = run.span.until();
        let (lane, generation) = (told.lane.clone(), *generation);
        let run = run.into_deliveries(lane, Arc::clone(&self.topic), self.means.budget.capacity(), None);
        let began = self.means.clock.monotonic();
        self.pass(Passed::Deliveries(generation, Box::new(run))).await;
        self.means.figures.add_backpressure(self.means.clock.monotonic().saturating_sub(began));
    }

    /// The broker passed over positions. Tracking of other consumers and compressed batches are no events to AMQP; but retention may
    /// have overtaken us, and that is for the log to know.
    async fn leap(&mut self, link: &Link, position: Position, subscription: &mut Option<Subscription>) -> Result<(), BusError> {
        let Some(Told { name, generation, reading: Some((next, _)), .. }) = &self.told else { return Ok(()) };
        let (name, generation, next) = (name.clone(), *generation, *next);
        if self.probe(link).begin().await?.is_some_and(|first| first > next) {
            warn!(stream = %self.settings.name, %next, %position, "retention has overtaken the reading, asking the log");
            stop(subscription).await;
            self.tell(name, generation).await;
        } else if let Some(subscription) = subscription {
            subscription.allow(position);
        }
        Ok(())
    }

    /// A consumer keeps the window that it began with, so another window is another consumer. What was on its way comes again.
    async fn fit_window(&mut self, link: &Link, subscription: &mut Option<Subscription>) -> Result<(), BusError> {
        let reading = self.told.as_ref().and_then(|told| told.reading);
        let (Some(current), Some((next, _))) = (subscription.as_ref().map(Subscription::window), reading) else { return Ok(()) };
        let Some(window) = self.window.change(current) else { return Ok(()) };
        stop(subscription).await;
        *subscription = Some(Subscription::open(link, &self.settings.name, next, window).await?);
        Ok(())
    }

    fn ask(&mut self, question: ToLocate, reply: LocateReply) {
        if let Some(told) = self.told.as_mut() {
            told.reading = None;
        }
        self.give_up_question();
        self.asked = Some((question, reply));
    }

    /// A question that nobody waits for any more leaves the lane out.
    fn give_up_question(&mut self) {
        if let Some((_, reply)) = self.asked.take() {
            let _ = reply.send(Vec::new());
        }
    }

    /// Answers the question that is open, if there is one. It stays open if the connection breaks meanwhile.
    async fn answer(&mut self, link: &Link) -> Result<(), BusError> {
        let Some(question) = self.asked.as_ref().map(|(question, _)| question.clone()) else { return Ok(()) };
        let located = self.locate(link, &question).await?;
        if let Some((_, reply)) = self.asked.take() {
            // Who asked may have given up.
            let _ = reply.send(located.map(|located| vec![(question.lane, located)]).unwrap_or_default());
        }
        Ok(())
    }

    /// `None` if the lane is told anew or halted instead.
    async fn locate(&mut self, link: &Link, question: &ToLocate) -> Result<Option<Located>, BusError> {
        let Some(told) = self.told.as_ref().filter(|told| told.lane == question.lane) else { return Ok(None) };
        let (name, generation, lane) = (told.name.clone(), told.generation, told.lane.clone());
        let sources = || question.table.keys().map(|lane| &*lane.source);
        if let Some(other) = name.other_cluster(sources()).filter(|_| question.log.is_none()) {
            self.halt();
            let what = format!(
                "stream {} was archived from a cluster called {other}, and this one is called {}: if they are one, set \
                 `cluster: {other}`; if not, give the stream a table of its own",
                self.settings.name,
                link.cluster()
            );
            self.pass(Passed::Halted(0, lane, BusError::new(ErrorKind::Invalid, what))).await;
            return Ok(None);
        }
        if let Some(newest) = name.newest(sources()).filter(|newest| *newest > generation) {
            self.tell(name, newest).await;
            return Ok(None);
        }
        let mut doubted = false;
        loop {
            let (begin, ends) = self.look(link, question).await?;
            match place(question.log, begin, &ends, doubted, self.settings.on_recreated) {
                Placed::At(located) => {
                    if matches!(located, Located::Beyond { .. }) {
                        self.halt();
                    }
                    return Ok(Some(located));
                }
                Placed::LookAgain => {
                    doubted = true;
                    self.means.clock.sleep(SECOND_LOOK).await;
                }
                Placed::Anew => {
                    let (stream, log) = (&self.settings.name, question.log.unwrap_or_default());
                    error!(%stream, %log, ?ends, generation = generation + 1,
                        "the stream was made anew, it is archived from its first event as the next generation; what the old one held beyond the log is lost");
                    self.tell(name, generation + 1).await;
                    return Ok(None);
                }
                Placed::Silent => {
                    let (stream, counted) = (&self.settings.name, ends.counted);
                    let what = format!(
                        "stream {stream}: the broker counts {counted} events and hands over none: it is slow, or all of them are in \
                         compressed batches, which AMQP 0-9-1 leaves out"
                    );
                    return Err(BusError::new(ErrorKind::Unavailable, what));
                }
            }
        }
    }

    fn halt(&mut self) {
        if let Some(told) = self.told.as_mut() {
            told.halted = true;
        }
    }

    async fn look(&self, link: &Link, question: &ToLocate) -> Result<(Begin, place::Ends), BusError> {
        let probe = self.probe(link);
        let start_matters = question.log.is_none() && !question.topic_known;
        let begin = match self.settings.start {
            Start::Latest if start_matters => Begin::End,
            Start::At(time) if start_matters => Begin::Since(probe.since(time).await?),
            _ => Begin::First,
        };
        let enough = match begin {
            Begin::First => Some(question.log.unwrap_or_default()),
            _ => None,
        };
        let ends = probe.ends(enough).await?;
        info!(stream = %self.settings.name, log = question.log.map(Position::get), ?ends, "looked for the ends of the stream");
        Ok((begin, ends))
    }
}

async fn stop(subscription: &mut Option<Subscription>) {
    if let Some(old) = subscription.take() {
        old.leave().await;
    }
}

/// Waits for ever while nothing is subscribed to.
async fn read(
    subscription: &mut Option<Subscription>,
    means: &Means,
    converter: &mut Converter,
    window: &mut Window,
) -> Result<Run, BusError> {
    match subscription {
        Some(subscription) => subscription.read(means, converter, window).await,
        None => std::future::pending().await,
    }
}
