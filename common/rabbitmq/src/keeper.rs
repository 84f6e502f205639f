//! The thread of a source: it keeps a connection up, one after another, and runs what reads over it.
//!
//! Promises: a broker that is away is waited for without end; what would refuse us for ever at the first connection ends the
//! source; the thread ends soon after it is told to, whatever it waits for.
//! Never: blocks its thread, since the client's own thread leans on this one for timers and sockets.

use std::convert::Infallible;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tapedeck_common::backoff::Backoff;
use tapedeck_common::budget::{Aside, ByteBudget};
use tapedeck_common::bus::{AssignedLane, BusError, Deliveries, Located, ToLocate};
use tapedeck_common::clock::Clock;
use tapedeck_common::columns::ColumnsPool;
use tapedeck_common::error::{ErrorKind, report};
use tapedeck_common::figures::BusFigures;
use tapedeck_common::position::{LaneId, Position};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::config::RabbitSettings;
use crate::link::Link;
use crate::queue::QueueReader;
use crate::streams::StreamReader;

/// How long acknowledging and giving back may take at the end.
const LEAVE_PATIENCE: Duration = Duration::from_secs(3);
/// A connection that held for so long was a good one.
const GOOD_AFTER: Duration = Duration::from_secs(60);

/// Answers to a request to locate a lane.
pub(crate) type LocateReply = oneshot::Sender<Vec<(LaneId, Located)>>;

/// What the caller wants.
pub(crate) enum Command {
    /// Where can this lane go on?
    Locate(ToLocate, LocateReply),
    /// Read the lane from this position on, in this generation of the caller.
    Resume(LaneId, Position, u64),
    /// The lane is in the log up to there.
    Acknowledge(LaneId, Position),
}

/// What goes to the caller. Numbers are generations of the caller: what belongs to an earlier one is passed over there.
#[derive(Debug)]
pub(crate) enum Passed {
    Deliveries(u64, Box<Deliveries>),
    Assigned(Vec<AssignedLane>),
    Lost(Vec<LaneId>),
    Halted(u64, LaneId, BusError),
    Failed(BusError),
}

/// What reading needs.
pub(crate) struct Means {
    pub(crate) budget: ByteBudget,
    pub(crate) pool: Arc<ColumnsPool>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) figures: Arc<BusFigures>,
    pub(crate) out: mpsc::Sender<Passed>,
    /// What lies in the client.
    pub(crate) _held_by_client: Aside,
}

/// What reads over a connection.
pub(crate) enum Reader {
    Stream(Box<StreamReader>),
    Queue(Box<QueueReader>),
}

impl Reader {
    async fn serve(&mut self, link: &Link) -> Result<Infallible, BusError> {
        match self {
            Self::Stream(stream) => stream.serve(link).await,
            Self::Queue(queue) => queue.serve(link).await,
        }
    }

    /// The connection broke.
    async fn lose(&mut self) {
        match self {
            // Its lane waits for the next connection.
            Self::Stream(_) => {}
            Self::Queue(queue) => queue.lose().await,
        }
    }

    /// The connection still stands, and nothing is read any more.
    async fn leave(&mut self) {
        match self {
            Self::Stream(_) => {}
            Self::Queue(queue) => queue.leave().await,
        }
    }

    async fn halt_unreadable(&mut self) {
        match self {
            Self::Stream(stream) => stream.halt_unreadable().await,
            // Its lane is gone with the connection.
            Self::Queue(_) => {}
        }
    }

    const fn take_progress(&mut self) -> bool {
        match self {
            Self::Stream(stream) => stream.take_progress(),
            Self::Queue(queue) => queue.take_progress(),
        }
    }
}

/// How long a source is left alone at whose next message the client breaks, at first and at most. On a queue each try is one more
/// return of all that was handed over.
const UNREADABLE_FOR: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(3_600));

/// Counts connections in a row that broke at a message which the client cannot read.
#[derive(Debug, Default)]
pub(crate) struct Unreadable(u32);

impl Unreadable {
    /// A connection ended so. Answers how long to leave the source alone; once may be an accident of the network.
    fn note(&mut self, error: ErrorKind, progressed: bool) -> Option<Duration> {
        if progressed {
            self.0 = 0;
        }
        if error != ErrorKind::Corrupt {
            return None;
        }
        self.0 += 1;
        let again = self.0.checked_sub(2)?;
        Some(UNREADABLE_FOR.0.saturating_mul(1 << again.min(10)).min(UNREADABLE_FOR.1))
    }
}

/// See the head of this file.
pub(crate) struct Keeper {
    pub(crate) settings: RabbitSettings,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) chance: fastrand::Rng,
    pub(crate) figures: Arc<BusFigures>,
    pub(crate) out: mpsc::Sender<Passed>,
    pub(crate) reader: Reader,
    pub(crate) unreadable: Unreadable,
    pub(crate) closing: CancellationToken,
    pub(crate) link: Option<Link>,
    /// Connections so far.
    pub(crate) connections: u64,
    /// True once something was read, or a connection was a good one: whoever refuses us later may do so for a while only.
    pub(crate) was_let_in: bool,
}

impl Keeper {
    /// Starts the thread. The receiver learns of its end.
    pub(crate) fn start(mut self) -> Result<oneshot::Receiver<Infallible>, BusError> {
        let no_thread = |error: std::io::Error| BusError::new(ErrorKind::Unavailable, format!("no thread for RabbitMQ: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_thread)?;
        let (alive, ended) = oneshot::channel();
        let work = move || {
            let _alive = alive;
            runtime.block_on(self.run());
            // A name that is being looked up may take its time.
            runtime.shutdown_background();
        };
        thread::Builder::new().name("rabbit-keeper".to_owned()).spawn(work).map_err(no_thread)?;
        Ok(ended)
    }

    async fn run(&mut self) {
        let closing = self.closing.clone();
        tokio::select! {
            biased;
            () = closing.cancelled() => {}
            () = self.keep() => {}
        }
        // The client must be gone before the runtime is.
        if let Some(link) = self.link.take() {
            tokio::select! {
                () = self.reader.leave() => {}
                () = self.clock.sleep(LEAVE_PATIENCE) => warn!("RabbitMQ does not take back in time what was not archived, it will notice by itself"),
            }
            link.close(&*self.clock).await;
        }
    }

    /// One connection after another; ends where it would be refused for ever.
    async fn keep(&mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(15));
        loop {
            let began = self.clock.monotonic();
            let Err(error) = self.session().await;
            self.reader.lose().await;
            if let Some(link) = self.link.take() {
                link.close(&*self.clock).await;
            }
            let progressed = self.reader.take_progress();
            let was_good = self.clock.monotonic() > began + GOOD_AFTER;
            self.was_let_in |= progressed || was_good;
            if error.kind() == ErrorKind::Invalid && !self.was_let_in {
                let _ = self.out.send(Passed::Failed(error)).await;
                return;
            }
            if was_good {
                backoff.reset();
            }
            let wait = match self.unreadable.note(error.kind(), progressed) {
                Some(wait) => {
                    error!(error = %report(&error), wait_s = wait.as_secs(),
                        "a message of RabbitMQ cannot be read: a routing key, the name of a header or another short string of it is no UTF-8; leaving it alone for a while");
                    self.reader.halt_unreadable().await;
                    wait
                }
                None => {
                    let wait = backoff.next_wait(self.chance.f64());
                    warn!(error = %report(&error), wait_ms = wait.as_millis() as u64, "RabbitMQ is away, trying again");
                    wait
                }
            };
            self.clock.sleep(wait).await;
        }
    }

    async fn session(&mut self) -> Result<Infallible, BusError> {
        let link = Link::open(&self.settings.place, &self.settings.title, &self.clock, &mut self.chance).await?;
        if self.connections > 0 {
            self.figures.add_reconnects(1);
        }
        self.connections += 1;
        self.reader.serve(self.link.insert(link)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_left_alone_for_longer_each_time() {
        let mut unreadable = Unreadable::default();
        let mut note = |kind, progressed| unreadable.note(kind, progressed).map(|wait| wait.as_secs());
        assert_eq!(note(ErrorKind::Corrupt, true), None, "once may be an accident");
        assert_eq!(note(ErrorKind::Unavailable, false), None);
        let waits: Vec<_> = (0..6).map(|_| note(ErrorKind::Corrupt, false)).collect();
        assert_eq!(waits, [300, 600, 1_200, 2_400, 3_600, 3_600].map(Some));
        assert_eq!(note(ErrorKind::Corrupt, true), None, "it got further");
    }
}
