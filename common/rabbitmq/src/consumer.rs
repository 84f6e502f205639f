//! `RabbitConsumer`: the caller's end of the keeper.
//!
//! Promises: `next` is cancel safe; what belongs to a time before the last `resume` of its lane, or to a lane that is gone, is
//! never handed over; dropping the consumer ends its thread. Never: blocks a task.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tapedeck_common::budget::ByteBudget;
use tapedeck_common::bus::{Answer, BusError, Consumer, Incoming, Located, ToLocate};
use tapedeck_common::clock::Clock;
use tapedeck_common::columns::ColumnsPool;
use tapedeck_common::commit::Receipt;
use tapedeck_common::error::ErrorKind;
use tapedeck_common::figures::BusFigures;
use tapedeck_common::position::{LaneId, Position, Span};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, warn};

use crate::config::{Inflow, RabbitSettings, SettingsError};
use crate::keeper::{Command, Keeper, Means, Passed, Reader, Unreadable};
use crate::queue::QueueReader;
use crate::streams::StreamReader;

/// Reads that wait to be taken over; their memory is reserved.
const READS_WAITING: usize = 16;
const COMMANDS_WAITING: usize = 16;
/// What the client keeps for one connection: 32 frames of 128 KiB each way.
const CLIENT_BYTES: usize = 8 << 20;
/// How long `close` waits for the thread.
const CLOSE_PATIENCE: Duration = Duration::from_secs(6);

impl From<SettingsError> for BusError {
    fn from(error: SettingsError) -> Self {
        Self::new(ErrorKind::Invalid, error.to_string())
    }
}

/// The lane that is ours, and the generation in which it is read; 0 before it is resumed.
struct Known {
    lane: LaneId,
    generation: u64,
}

/// One reader of a stream or a queue.
pub struct RabbitConsumer {
    incoming: mpsc::Receiver<Passed>,
    commands: mpsc::Sender<Command>,
    known: Option<Known>,
    generations: u64,
    pool: Arc<ColumnsPool>,
    clock: Arc<dyn Clock>,
    figures: Arc<BusFigures>,
    ended: oneshot::Receiver<Infallible>,
    closing: DropGuard,
}

impl RabbitConsumer {
    /// Begins to connect. Returns at once; a broker that is away is waited for.
    pub fn start(
        settings: RabbitSettings,
        budget: &ByteBudget,
        pool: Arc<ColumnsPool>,
        clock: Arc<dyn Clock>,
        mut chance: fastrand::Rng,
    ) -> Result<Self, BusError> {
        settings.check()?;
        let figures = Arc::new(BusFigures::of_connection());
        let (out, incoming) = mpsc::channel(READS_WAITING);
        let (commands, to_serve) = mpsc::channel(COMMANDS_WAITING);
        let closing = CancellationToken::new();
        // A tiny budget (of a test) would otherwise be full before anything is read.
        let held = settings.prefetch.bytes.min(budget.capacity() / 4) + CLIENT_BYTES.min(budget.capacity() / 8);
        let means = Means {
            budget: budget.clone(),
            pool: Arc::clone(&pool),
            clock: Arc::clone(&clock),
            figures: Arc::clone(&figures),
            out: out.clone(),
            _held_by_client: budget.set_aside(held),
        };
        let reader = match settings.inflow.clone() {
            Inflow::Stream(stream) => Reader::Stream(Box::new(StreamReader::new(&settings, stream, means, to_serve))),
            Inflow::Queue(queue) => Reader::Queue(Box::new(QueueReader::new(&settings, queue, means, to_serve, chance.fork()))),
        };
        let keeper = Keeper {
            reader,
            unreadable: Unreadable::default(),
            settings,
            clock: Arc::clone(&clock),
            chance,
            figures: Arc::clone(&figures),
            out,
            closing: closing.clone(),
            link: None,
            connections: 0,
            was_let_in: false,
        };
        let ended = keeper.start()?;
        let closing = closing.drop_guard();
        Ok(Self { incoming, commands, known: None, generations: 0, pool, clock, figures, ended, closing })
    }

    /// What this consumer counts about itself.
    pub fn figures(&self) -> Arc<BusFigures> {
        Arc::clone(&self.figures)
    }

    fn is_current(&self, lane: &LaneId, generation: u64) -> bool {
        self.known.as_ref().is_some_and(|known| known.lane == *lane && known.generation == generation)
    }

    fn take(&mut self, passed: Passed) -> Result<Option<Incoming>, BusError> {
        Ok(Some(match passed {
            Passed::Deliveries(generation, run) if self.is_current(&run.lane, generation) => Incoming::Deliveries(vec![*run]),
            Passed::Deliveries(_, run) => {
                self.pool.give_back(run.events);
                return Ok(None);
            }
            Passed::Assigned(lanes) => {
                self.known = lanes.first().map(|lane| Known { lane: lane.lane.clone(), generation: 0 });
                Incoming::Assigned(lanes)
            }
            Passed::Lost(lanes) => {
                self.known = None;
                Incoming::Lost(lanes)
            }
            Passed::Halted(generation, lane, error) if self.is_current(&lane, generation) => Incoming::Halted(lane, error),
            Passed::Halted(..) => return Ok(None),
            Passed::Failed(error) => return Err(error),
        }))
    }
}

fn ended() -> BusError {
    BusError::new(ErrorKind::Unavailable, "the thread that keeps the connection to RabbitMQ has ended")
}

#[async_trait]
impl Consumer for RabbitConsumer {
    async fn next(&mut self) -> Result<Incoming, BusError> {
        loop {
            let passed = self.incoming.recv().await.ok_or_else(ended)?;
            if let Some(incoming) = self.take(passed)? {
                return Ok(incoming);
            }
        }
    }

    fn locate(&mut self, lanes: Vec<ToLocate>) -> Answer<Vec<(LaneId, Located)>> {
        let commands = self.commands.clone();
        let ours = lanes.into_iter().find(|lane| self.known.as_ref().is_some_and(|known| known.lane == lane.lane));
        Box::pin(async move {
            let Some(lane) = ours else { return Ok(Vec::new()) };
            let (reply, answer) = oneshot::channel();
            commands.send(Command::Locate(lane, reply)).await.map_err(|_| ended())?;
            answer.await.map_err(|_| ended())
        })
    }

    async fn resume(&mut self, at: Vec<(LaneId, Position)>) -> Result<(), BusError> {
        for (lane, position) in at {
            let Some(known) = self.known.as_mut().filter(|known| known.lane == lane) else { continue };
            self.generations += 1;
            known.generation = self.generations;
            self.commands.send(Command::Resume(lane, position, self.generations)).await.map_err(|_| ended())?;
        }
        Ok(())
    }

    /// Of a lane that is gone nothing can be acknowledged: what it held comes again.
    async fn acknowledge(&mut self, receipt: &Receipt) {
        let Some(lane) = self.known.as_ref().map(|known| &known.lane) else { return };
        let Some(span) = receipt.spans().get(lane) else { return };
        if self.commands.try_send(Command::Acknowledge(lane.clone(), span.until())).is_err() {
            debug!(%lane, "the broker is not told what is in the log, the next receipt will tell");
        }
    }

    /// Over AMQP 0-9-1 nobody tells.
    fn bounds(&self, _: &LaneId) -> Option<Span> {
        None
    }

    async fn close(self: Box<Self>) {
        let Self { closing, ended, clock, incoming, .. } = *self;
        drop((closing, incoming));
        tokio::select! {
            _ = ended => {}
            () = clock.sleep(CLOSE_PATIENCE) => warn!("the RabbitMQ client does not close in time, leaving it behind"),
        }
    }
}
