//! The admin endpoint: liveness, readiness, metrics, status and a few orders, over HTTP on a thread of its own.
//!
//! Promises: answers while the work is stuck; whatever changes something needs the token, or loopback without one configured.
//! Never: decides anything; status, readiness and metrics come from closures and one registry.

mod heartbeat;
mod routes;
mod token;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::thread;

use prometheus_client::registry::Registry;
use serde::Serialize;
use serde_json::Value as Json;
use tapedeck_common::ErrorKind;
use tokio_util::sync::CancellationToken;

pub use heartbeat::{Heartbeat, Heartbeats};
pub use token::Token;

use crate::telemetry::LogLevel;

/// What may keep the endpoint from listening.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The text names no address.
    #[error("`admin.listen: {listen}` is no address: write `host:port`, for example `127.0.0.1:9464`; port 0 picks a free one")]
    Address {
        /// What was configured.
        listen: String,
    },
    /// Somebody else listens there.
    #[error("admin address {address} is in use by another process: set `admin.listen` to another; port 0 picks a free one")]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// The system refused.
    #[error("cannot listen on admin address {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

impl AdminError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

/// Whether one part of the process is ready, and what it says of itself.
#[derive(Debug, Clone, Serialize)]
pub struct Component {
    /// True if it can work.
    pub ready: bool,
    /// What it waits for, or how it stands.
    pub detail: String,
}

/// The parts by name. Ready means all of them.
pub type Readiness = BTreeMap<String, Component>;

type Answer<T> = Arc<dyn Fn() -> T + Send + Sync>;

/// What the endpoint shows and does. Whatever is not handed in does not exist (404).
///
/// ```
/// # use std::sync::Arc;
/// use prometheus_client::registry::Registry;
/// use tapedeck_daemon::SystemClock;
/// use tapedeck_daemon::admin::{Admin, Heartbeats};
///
/// let heartbeats = Heartbeats::new(Arc::new(SystemClock::new()));
/// let server = Admin::new(heartbeats)
///     .metrics(Arc::new(Registry::default()))
///     .status(|| serde_json::json!({ "tables": [] }))
///     .start("127.0.0.1:0")?;
/// assert_ne!(server.address().port(), 0);
/// server.stop();
/// # Ok::<(), tapedeck_daemon::admin::AdminError>(())
/// ```
pub struct Admin {
    heartbeats: Heartbeats,
    registry: Option<Arc<Registry>>,
    ready: Option<Answer<Readiness>>,
    status: Option<Answer<Json>>,
    seal: Option<Answer<Result<Json, String>>>,
    log_level: Option<LogLevel>,
    token: Option<Token>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Admin")
    }
}

impl Admin {
    /// An endpoint with `/livez` alone.
    pub fn new(heartbeats: Heartbeats) -> Self {
        Self { heartbeats, registry: None, ready: None, status: None, seal: None, log_level: None, token: None }
    }

    /// `GET /metrics`. The registry holds its metrics by reference counts; collectors in it may compute when asked.
    #[must_use]
    pub fn metrics(mut self, registry: Arc<Registry>) -> Self {
        self.registry = Some(registry);
        self
    }

    /// `GET /readyz`.
    #[must_use]
    pub fn ready(mut self, ready: impl Fn() -> Readiness + Send + Sync + 'static) -> Self {
        self.ready = Some(Arc::new(ready));
        self
    }

    /// `GET /api/v1/status`.
    #[must_use]
    pub fn status(mut self, status: impl Fn() -> Json + Send + Sync + 'static) -> Self {
        self.status = Some(Arc::new(status));
        self
    }

    /// `POST /api/v1/seal`. The closure only gives the order; what it answers is shown to the caller.
    #[must_use]
    pub fn seal(mut self, seal: impl Fn() -> Result<Json, String> + Send + Sync + 'static) -> Self {
        self.seal = Some(Arc::new(seal));
        self
    }

    /// `POST /api/v1/log-level`, the filter as the body.
    #[must_use]
    pub fn log_level(mut self, level: LogLevel) -> Self {
        self.log_level = Some(level);
        self
    }

    /// What callers of `POST` must know. Without one they must come over loopback.
    #[must_use]
    pub fn token(mut self, token: Option<Token>) -> Self {
        self.token = token;
        self
    }

    /// Listens on `listen` (`host:port`; port 0 picks a free one) until the server is stopped or dropped.
    pub fn start(self, listen: &str) -> Result<AdminServer, AdminError> {
        let no_address = || AdminError::Address { listen: listen.to_owned() };
        let wanted = listen.to_socket_addrs().map_err(|_| no_address())?.next().ok_or_else(no_address)?;
        let refuse = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => AdminError::InUse { address: wanted },
            _ => AdminError::Listen { address: wanted, source },
        };
        let listener = TcpListener::bind(wanted).map_err(refuse)?;
        listener.set_nonblocking(true).map_err(refuse)?;
        let address = listener.local_addr().map_err(refuse)?;
        if !address.ip().is_loopback() && self.token.is_none() {
            tracing::warn!(%address, "the admin endpoint is open beyond loopback without a token: POST is refused");
        }
        let stop = CancellationToken::new();
        let routes = routes::routes(self, address);
        let stopped = stop.clone();
        let serve = move || serve(listener, routes, stopped);
        let thread = thread::Builder::new().name("admin".to_owned()).spawn(serve).map_err(refuse)?;
        Ok(AdminServer { address, stop, thread: Some(thread) })
    }
}

fn serve(listener: TcpListener, routes: axum::Router, stop: CancellationToken) {
    let served = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            // Not graceful: a caller that keeps its connection open must not hold up the end.
            tokio::select! {
                ended = axum::serve(listener, routes) => ended,
                () = stop.cancelled() => Ok(()),
            }
        })
    };
    if let Err(error) = served() {
        let error: io::Error = error;
        tracing::error!(%error, "the admin endpoint failed");
    }
}

/// The running endpoint.
#[derive(Debug)]
pub struct AdminServer {
    address: SocketAddr,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

impl AdminServer {
    /// Where it listens, with the port that it got.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it. Call it last: until then probes are answered.
    pub fn stop(self) {}
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // It only ends by itself or by a panic, which is logged already.
            let _ = thread.join();
        }
    }
}
