//! One queue: each of its channels is a lane, whose positions are the channel's deliveries.
//!
//! Promises: nothing is taken from the queue before its lane is in the log; only what is in the log is acknowledged; a channel that
//! ends, for whatever reason, ends its lane, and what was not acknowledged comes again in another one, marked by the broker.
//! Never: rejects a message, or gives one back in a loop, since a broker may drop what came back too often.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use tapedeck_common::bus::{AssignedLane, BusError, Located, ToLocate};
use tapedeck_common::error::ErrorKind;
use tapedeck_common::position::{LaneId, Position};
use tokio::sync::mpsc;
use tracing::debug;

use crate::config::{QueueSettings, RabbitSettings};
use crate::convert::{Converter, Origin, stream_position};
use crate::intake::{Consumers, Intake, Run, Taken};
use crate::keeper::{Command, Means, Passed};
use crate::link::{Link, leave};
use crate::sources::queue_source;
use crate::streams::consume_from;
use crate::tags::Tags;
use crate::trouble::{refuses_argument, trouble};
use crate::window::Window;

/// How often it is looked whether the connection stands while nothing is read.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// From this version on quorum queues drop messages that came back often.
const LIMITS_SINCE: u32 = 4;

/// A channel, and the lane that it is.
struct Epoch {
    lane: LaneId,
    channel: Channel,
    consumers: Consumers,
    intake: Intake,
    tags: Tags,
    window: u16,
    /// Its start was answered; before that the log must not know its number.
    begun: bool,
    /// The caller's generation in which it is read.
    reading: Option<u64>,
}

/// What happened in one turn of the loop.
enum Turn {
    Command(Command),
    Read(Box<Run>),
    Looked,
}

/// Reads one queue, over one connection after another.
pub(crate) struct QueueReader {
    settings: QueueSettings,
    vhost: String,
    means: Means,
    commands: mpsc::Receiver<Command>,
    chance: fastrand::Rng,
    topic: Arc<str>,
    what: String,
    epoch: Option<Epoch>,
    /// Goes to the caller next; nothing is read meanwhile.
    pending: Option<Passed>,
    converter: Converter,
    window: Window,
    /// A lane that is in the log and to which nothing was handed over: the next channel takes it, so that a broker which is away, or
    /// refuses us, makes the log no longer.
    unused: Option<LaneId>,
    progressed: bool,
}

/// Refuses a queue of which nobody vouches that it keeps what comes back often.
pub(crate) fn may_be_read(link: &Link, queue: &QueueSettings) -> Result<(), BusError> {
    if queue.delivery_limit_accepted || link.major_version().is_some_and(|version| version < LIMITS_SINCE) {
        return Ok(());
    }
    let what = format!(
        "queue {}: from RabbitMQ {LIMITS_SINCE} on a quorum queue drops a message that came back more than 20 times, and each of our \
         restarts brings back what was not archived: set delivery-limit to -1 by a policy, or give it a dead-letter exchange, then say \
         `delivery_limit: accepted`",
        queue.name
    );
    Err(BusError::new(ErrorKind::Invalid, what))
}

impl QueueReader {
    pub(crate) fn new(
        settings: &RabbitSettings,
        queue: QueueSettings,
        means: Means,
        commands: mpsc::Receiver<Command>,
        chance: fastrand::Rng,
    ) -> Self {
        Self {
            topic: Arc::from(queue.name.as_str()),
            what: format!("queue {}", queue.name),
            settings: queue,
            vhost: settings.place.vhost.clone(),
            means,
            commands,
            chance,
            epoch: None,
            pending: None,
            converter: Converter::new(Origin::Queue, settings.replayed),
            window: Window::new(settings.prefetch),
            unused: None,
            progressed: false,
        }
    }

    /// Works over this connection until it breaks.
    pub(crate) async fn serve(&mut self, link: &Link) -> Result<Infallible, BusError> {
        link.ready(&self.settings.name).await?;
        may_be_read(link, &self.settings)?;
        self.refuse_stream(link).await?;
        self.begin(link).await?;
        loop {
            match self.turn().await? {
                Turn::Command(command) => self.obey(link, command).await?,
                Turn::Read(run) => self.take_over(*run).await?,
                Turn::Looked if link.stands() => {}
                Turn::Looked => return Err(BusError::new(ErrorKind::Unavailable, "the connection to RabbitMQ broke")),
            }
        }
    }

    /// True if something was acknowledged since this was last asked: what is only read comes back.
    pub(crate) const fn take_progress(&mut self) -> bool {
        std::mem::replace(&mut self.progressed, false)
    }

    /// The channel is gone with its connection, and so is its lane.
    pub(crate) async fn lose(&mut self) {
        self.pending = None;
        if let Some(epoch) = self.epoch.take() {
            self.unused = Some(epoch.lane.clone()).filter(|_| epoch.begun && epoch.tags.next() == Position::default());
            self.pass(Passed::Lost(vec![epoch.lane])).await;
        }
    }

    /// Acknowledges what was committed last, and gives the rest back.
    pub(crate) async fn leave(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Acknowledge(lane, until) = command
                && let Err(error) = self.acknowledge(&lane, until).await
            {
                debug!(%error, "what was committed last is not acknowledged, it will come again");
            }
        }
        if let Some(epoch) = self.epoch.take() {
            give_back(epoch).await;
        }
    }

    /// A stream would be read from its end on, without a word. It alone knows offsets: a queue refuses to be read by one, or (older
    /// brokers) hands over a message without one, which goes back.
    async fn refuse_stream(&self, link: &Link) -> Result<(), BusError> {
        let first = AMQPValue::LongString(LongString::from("first"));
        let (channel, mut consumer) = match consume_from(link, &self.settings.name, first, 1).await {
            Ok(consuming) => consuming,
            Err(error) if refuses_argument(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let delivery = tokio::select! {
            delivery = consumer.next() => delivery,
            () = self.means.clock.sleep(LOOK_EVERY) => None,
        };
        leave(&channel).await;
        match delivery {
            Some(Ok(delivery)) if stream_position(&delivery).is_some() => {
                let what = format!("{} is a stream and no queue: name it as `stream`", self.settings.name);
                Err(BusError::new(ErrorKind::Invalid, what))
            }
            Some(Err(error)) => Err(trouble(&self.what, error)),
            _ => Ok(()),
        }
    }

    /// Waits for whatever comes first. What waits for the caller never keeps an acknowledgement waiting.
    async fn turn(&mut self) -> Result<Turn, BusError> {
        let Self { commands, means, pending, epoch, converter, window, what, .. } = self;
        loop {
            let is_reading = epoch.as_ref().is_some_and(|epoch| epoch.reading.is_some());
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(command) => return Ok(Turn::Command(command)),
                    None => std::future::pending().await,
                },
                slot = means.out.reserve(), if pending.is_some() => {
                    // Without a caller this ends soon.
                    if let (Ok(slot), Some(passed)) = (slot, pending.take()) {
                        slot.send(passed);
                    }
                }
                run = read(epoch, what, means, converter, window), if is_reading && pending.is_none() => return Ok(Turn::Read(Box::new(run?))),
                () = means.clock.sleep(LOOK_EVERY), if !is_reading => return Ok(Turn::Looked),
            }
        }
    }

    /// A new channel is a new lane, under a number that nobody used.
    async fn begin(&mut self, link: &Link) -> Result<(), BusError> {
        if let Some(old) = self.epoch.take() {
            let lane = old.lane.clone();
            give_back(old).await;
            self.pass(Passed::Lost(vec![lane])).await;
        }
        self.pending = None;
        let channel = link.channel(&self.what).await?;
        let source = queue_source(link.cluster(), &self.vhost, &self.settings.name);
        let unused = self.unused.take().filter(|lane| *lane.source == *source);
        let begun = unused.is_some();
        let lane = unused.unwrap_or_else(|| LaneId::new(source, self.chance.i32(0..=i32::MAX)));
        self.epoch = Some(Epoch {
            lane: lane.clone(),
            channel,
            consumers: Consumers::default(),
            intake: Intake::default(),
            tags: Tags::default(),
            window: self.window.first(),
            begun,
            reading: None,
        });
        self.pass(Passed::Assigned(vec![AssignedLane { lane, topic: Arc::clone(&self.topic) }])).await;
        Ok(())
    }

    async fn pass(&self, passed: Passed) {
        // Nobody is left to take it once the consumer was dropped; then this ends too.
        let _ = self.means.out.send(passed).await;
    }

    async fn obey(&mut self, link: &Link, command: Command) -> Result<(), BusError> {
        match command {
            Command::Locate(question, reply) => {
                let located = self.locate(&question);
                if located.is_none() && self.is_ours(&question.lane) {
                    // What was handed over and is not in the log comes again, in another lane.
                    self.begin(link).await?;
                }
                // Who asked may have given up.
                let _ = reply.send(located.map(|located| (question.lane, located)).into_iter().collect());
            }
            Command::Resume(lane, at, generation) => {
                let Some(epoch) = self.epoch.as_mut().filter(|epoch| epoch.lane == lane) else { return Ok(()) };
                if at != epoch.tags.next() {
                    return self.begin(link).await;
                }
                epoch.reading = Some(generation);
                if epoch.consumers.newest().is_none() {
                    consume(epoch, &self.settings.name).await?;
                }
            }
            Command::Acknowledge(lane, until) => self.acknowledge(&lane, until).await?,
        }
        Ok(())
    }

    fn is_ours(&self, lane: &LaneId) -> bool {
        self.epoch.as_ref().is_some_and(|epoch| epoch.lane == *lane)
    }

    /// Where the lane goes on; `None` if it cannot.
    fn locate(&mut self, question: &ToLocate) -> Option<Located> {
        let epoch = self.epoch.as_mut().filter(|epoch| epoch.lane == question.lane)?;
        // Nothing more of it is handed over until it is resumed.
        epoch.reading = None;
        match question.log {
            None if epoch.tags.next() == Position::default() => {
                epoch.begun = true;
                Some(Located::Start(Position::default()))
            }
            Some(log) if epoch.begun && log == epoch.tags.next() => Some(Located::Continue(log)),
            // Another channel had the number before, or deliveries were dropped.
            _ => None,
        }
    }

    async fn acknowledge(&mut self, lane: &LaneId, until: Position) -> Result<(), BusError> {
        let Some(epoch) = self.epoch.as_mut().filter(|epoch| epoch.lane == *lane) else { return Ok(()) };
        let Some(tag) = epoch.tags.acknowledge(until) else { return Ok(()) };
        self.progressed = true;
        let acked = epoch.channel.basic_ack(tag, BasicAckOptions { multiple: true }).await;
        acked.map_err(|error| trouble(&self.what, error))
    }

    async fn take_over(&mut self, run: Run) -> Result<(), BusError> {
        self.means.figures.add_redelivered(run.redelivered);
        let Some(epoch) = self.epoch.as_mut() else { return Ok(()) };
        let Some(generation) = epoch.reading else { return Ok(()) };
        let window = Some(u64::from(self.window.wanted()));
        let run = run.into_deliveries(epoch.lane.clone(), Arc::clone(&self.topic), self.means.budget.capacity(), window);
        self.pending = Some(Passed::Deliveries(generation, Box::new(run)));
        let Some(window) = self.window.change(epoch.window) else { return Ok(()) };
        epoch.window = window;
        // A consumer keeps the window that it began with. Cancelling one takes nothing back that it was handed.
        if let Some(consumer) = epoch.consumers.newest() {
            let cancelled = epoch.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await;
            cancelled.map_err(|error| trouble(&self.what, error))?;
        }
        consume(epoch, &self.settings.name).await
    }
}

async fn consume(epoch: &mut Epoch, queue: &str) -> Result<(), BusError> {
    let failed = |error| trouble(format_args!("reading queue {queue}"), error);
    epoch.channel.basic_qos(epoch.window, BasicQosOptions::default()).await.map_err(failed)?;
    let consuming = epoch.channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
    epoch.consumers.add(consuming.await.map_err(failed)?);
    Ok(())
}

/// Ends a channel in order. A broker that counts how often messages come back does not count these, from 4.3 on.
async fn give_back(mut epoch: Epoch) {
    let given_back = async {
        let Some(consumer) = epoch.consumers.newest() else { return Ok(()) };
        epoch.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
        // What the client still holds goes back too.
        while let Some(Ok(delivery)) = epoch.consumers.next().await {
            let _ = epoch.tags.arrived(delivery.delivery_tag);
        }
        match epoch.tags.give_back() {
            Some(tag) => epoch.channel.basic_nack(tag, BasicNackOptions { multiple: true, requeue: true }).await,
            None => Ok(()),
        }
    };
    if let Err(error) = given_back.await {
        debug!(%error, "the channel was gone before anything was given back");
    }
    leave(&epoch.channel).await;
}

async fn read(
    epoch: &mut Option<Epoch>,
    what: &str,
    means: &Means,
    converter: &mut Converter,
    window: &mut Window,
) -> Result<Run, BusError> {
    let Some(Epoch { consumers, intake, tags, .. }) = epoch else { return std::future::pending().await };
    let from = tags.next();
    let take = |run: &mut Run, delivery: &Delivery| {
        let arrived = tags.arrived(delivery.delivery_tag);
        let position = arrived.map_err(|error| BusError::new(ErrorKind::Bug, format!("{what}: {error}")))?;
        run.span = run.span.stretched_to(position.next());
        run.redelivered += u64::from(delivery.redelivered);
        let row = converter.push(&mut run.events, delivery, position, run.arrival);
        // Headers take memory too.
        window.observe(row.unwrap_or(delivery.data.len()));
        run.skipped += u64::from(row.is_none());
        Ok(row.map_or(Taken::Left, Taken::Row))
    };
    intake.read(what, from, consumers, means, take).await
}
