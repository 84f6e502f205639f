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
use crate::streams::StreamReader;

/// A connection that held for so long was a good one.
const GOOD_AFTER: Duration = Duration::from_secs(60);

/// Answers to a request to locate a lane.
pub(crate) type LocateReply = oneshot::Sender<Vec<(LaneId, Located)>>;

/// What the caller wants.
pub(crate) enum Command {
    /// Where can this lane go on?
    Locate(ToLocate, LocateReply),
    /// Read the lane from this position on, in this generation of the caller.
    Resume(Position, u64),
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

/// See the head of this file.
pub(crate) struct Keeper {
    pub(crate) settings: RabbitSettings,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) chance: fastrand::Rng,
    pub(crate) figures: Arc<BusFigures>,
    pub(crate) out: mpsc::Sender<Passed>,
    pub(crate) reader: StreamReader,
    pub(crate) closing: CancellationToken,
    pub(crate) link: Option<Link>,
    /// True once a connection came so far that whoever refuses us later may do so for a while only.
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
            link.close(&*self.clock).await;
        }
    }

    /// One connection after another; ends where it would be refused for ever.
    async fn keep(&mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(15));
        loop {
            let began = self.clock.monotonic();
            let Err(error) = self.session().await;
            if let Some(link) = self.link.take() {
                link.close(&*self.clock).await;
            }
            if error.kind() == ErrorKind::Invalid && !self.was_let_in {
                let _ = self.out.send(Passed::Failed(error)).await;
                return;
            }
            if self.clock.monotonic() > began + GOOD_AFTER {
                backoff.reset();
            }
            let wait = match self.reader.wait_after(&error).await {
                Some(wait) => {
                    error!(error = %report(&error), wait_s = wait.as_secs(), "RabbitMQ cannot be read, leaving it alone for a while");
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
        if self.was_let_in {
            self.figures.add_reconnects(1);
        }
        let link = self.link.insert(link);
        let served = self.reader.serve(link).await;
        self.was_let_in |= self.reader.is_told();
        served
    }
}
