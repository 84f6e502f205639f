//! Signals: TERM and INT ask the process to drain, a second one aborts it; USR1 and HUP are orders to the work.
//!
//! Promises: the drain has a deadline, and while it lasts stderr says every few seconds who is still pending.
//! A stuck loop or a client that hangs in its close cannot keep the process: signals have a thread of their own.
//! Never: decides what must be drained; the work watches the tokens.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use tapedeck_common::Clock;

use crate::exit::Exit;
use crate::system_clock::SystemClock;

/// How often a drain says what it waits for.
const COUNTDOWN_EVERY: Duration = Duration::from_secs(3);

/// What the work gets after the grace period to abandon and leave by itself, before the process is ended from here.
const ABANDON_WITHIN: Duration = Duration::from_secs(3);

/// Orders that signals (or the admin endpoint) give. Numbers count up: whoever sees a change obeys once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Orders {
    /// USR1: close and store what is open, now.
    pub seal: u64,
    /// HUP: read level, credentials and topics again.
    pub reload: u64,
}

/// How the work learns that it is to stop, and what it is ordered to do meanwhile. Clones share everything.
#[derive(Debug, Clone)]
pub struct Shutdown {
    stopping: CancellationToken,
    overdue: CancellationToken,
    ended: CancellationToken,
    orders: Arc<watch::Sender<Orders>>,
}

impl Shutdown {
    /// Without signals: for tests, and for programs within a program.
    pub fn manual() -> Self {
        let (orders, _) = watch::channel(Orders::default());
        let token = CancellationToken::new;
        Self { stopping: token(), overdue: token(), ended: token(), orders: Arc::new(orders) }
    }

    /// Cancelled by the first TERM or INT: take nothing more in, finish what is held, leave.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Cancelled when the grace period is over: abandon the rest and leave with [`Exit::Unfinished`].
    pub fn overdue(&self) -> &CancellationToken {
        &self.overdue
    }

    /// Stops as the first TERM does.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Says that the drain is over, so that the countdown falls silent and the process is not ended from here.
    pub fn ended(&self) {
        self.ended.cancel();
    }

    /// Changes with every order that is given after this call.
    pub fn orders(&self) -> watch::Receiver<Orders> {
        self.orders.subscribe()
    }

    /// Orders a seal, as USR1 does.
    pub fn order_seal(&self) {
        self.orders.send_modify(|orders| orders.seal += 1);
    }

    /// Orders a reload, as HUP does.
    pub fn order_reload(&self) {
        self.orders.send_modify(|orders| orders.reload += 1);
    }
}

/// Takes over the signals of the process. `pending` says in a few words what a drain still waits for.
///
/// ```no_run
/// # use std::time::Duration;
/// let shutdown = tapedeck_daemon::shutdown::install(Duration::from_secs(25), || "3 uploads".to_owned())?;
/// tapedeck_daemon::run::block_on(2, async {
///     tokio::select! {
///         () = shutdown.stopping().cancelled() => { /* drain, watching shutdown.overdue() */ }
///         // the work
///     }
/// })?;
/// shutdown.ended();
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn install(grace: Duration, pending: impl Fn() -> String + Send + 'static) -> io::Result<Shutdown> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let shutdown = Shutdown::manual();
    // Registered before this returns, so that no signal meets the default action afterwards.
    let signals = {
        let _entered = runtime.enter();
        Signals::register()?
    };
    let watcher = Watcher { shutdown: shutdown.clone(), signals, clock: SystemClock::new(), grace, pending: Box::new(pending) };
    thread::Builder::new().name("signals".to_owned()).spawn(move || runtime.block_on(watcher.run()))?;
    Ok(shutdown)
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    seal: Signal,
    reload: Signal,
}

enum Seen {
    Stop(&'static str),
    Order,
}

impl Signals {
    fn register() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            seal: signal(SignalKind::user_defined1())?,
            reload: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal and passes orders on. Cancel safe.
    async fn next(&mut self, shutdown: &Shutdown) -> Seen {
        tokio::select! {
            _ = self.terminate.recv() => Seen::Stop("TERM"),
            _ = self.interrupt.recv() => Seen::Stop("INT"),
            _ = self.seal.recv() => {
                info!(signal = "USR1", "ordered to seal");
                shutdown.order_seal();
                Seen::Order
            }
            _ = self.reload.recv() => {
                info!(signal = "HUP", "ordered to reload");
                shutdown.order_reload();
                Seen::Order
            }
        }
    }
}

struct Watcher {
    shutdown: Shutdown,
    signals: Signals,
    clock: SystemClock,
    grace: Duration,
    pending: Box<dyn Fn() -> String + Send>,
}

impl Watcher {
    async fn run(mut self) {
        loop {
            tokio::select! {
                () = self.shutdown.stopping.cancelled() => break,
                seen = self.signals.next(&self.shutdown) => if let Seen::Stop(signal) = seen {
                    info!(signal, grace_s = self.grace.as_secs(), "stopping: draining within the grace period, a second signal aborts");
                    self.shutdown.stop();
                    break;
                },
            }
        }
        self.drain().await;
    }

    /// Counts down until the work says that it ended. What does not return here ends the process.
    async fn drain(&mut self) {
        let deadline = self.clock.monotonic() + self.grace;
        let mut next_line = self.clock.monotonic() + COUNTDOWN_EVERY;
        loop {
            tokio::select! {
                () = self.shutdown.ended.cancelled() => return,
                seen = self.signals.next(&self.shutdown) => if let Seen::Stop(signal) = seen {
                    leave(&format!("{signal} again: aborted at once; nothing is lost, uncommitted work is done again at the next start"));
                },
                () = self.clock.sleep_until(next_line.min(deadline)) => {
                    if self.clock.monotonic() >= deadline {
                        break;
                    }
                    next_line += COUNTDOWN_EVERY;
                    let left = deadline.saturating_sub(self.clock.monotonic());
                    info!(left_s = left.as_secs(), pending = (self.pending)(), "stopping");
                }
            }
        }
        warn!(pending = (self.pending)(), "the grace period is over: abandoning what is left; nothing is lost");
        self.shutdown.overdue.cancel();
        let last = self.clock.monotonic() + ABANDON_WITHIN;
        tokio::select! {
            () = self.shutdown.ended.cancelled() => {}
            () = self.clock.sleep_until(last) => {
                leave("the grace period is over and the process did not leave by itself; nothing is lost, uncommitted work is done again at the next start");
            }
        }
    }
}

/// Ends the process without running anything more: exit handlers of C libraries may wait for threads that are stuck.
fn leave(why: &str) -> ! {
    warn!("{why}");
    signal_hook::low_level::exit(i32::from(Exit::Unfinished.code()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_order_is_seen_once() {
        let shutdown = Shutdown::manual();
        let mut orders = shutdown.orders();
        shutdown.order_seal();
        shutdown.clone().order_reload();
        orders.changed().await.expect("the sender lives");
        assert_eq!(*orders.borrow_and_update(), Orders { seal: 1, reload: 1 });
        assert!(!orders.has_changed().expect("the sender lives"));
        shutdown.stop();
        shutdown.stopping().cancelled().await;
        assert!(!shutdown.overdue().is_cancelled());
    }
}
