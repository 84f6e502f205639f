//! One connection to a cluster.
//!
//! Promises: hosts are tried in an order of chance, each within bounds; a connection that is dropped ends, whatever state the
//! client is in. Never: the client's own recovery, which would bring consumers back where they stood.

use std::sync::Arc;
use std::time::Duration;

use async_rs::Runtime;
use lapin::options::QueueDeclareOptions;
use lapin::tcp::AsyncTcpStream;
use lapin::types::FieldTable;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Channel, Connection, ConnectionProperties};
use tapedeck_common::bus::BusError;
use tapedeck_common::clock::Clock;
use tapedeck_common::error::ErrorKind;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info};

use crate::address::HostPort;
use crate::config::Place;
use crate::greeting::{Greeting, Heard};
use crate::trouble::trouble;
use crate::wire::{Kit, Socket};

/// How long a host may take until it lets us in.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to leave.
const CLOSE_PATIENCE: Duration = Duration::from_secs(3);

/// A connection that stands.
pub(crate) struct Link {
    connection: Connection,
    greeting: Greeting,
    cluster: String,
    _given_up: DropGuard,
}

impl Link {
    /// Connects to one of the hosts. The error is that of the last one tried, or that of the one that refused us.
    pub(crate) async fn open(
        place: &Place,
        title: &str,
        clock: &Arc<dyn Clock>,
        chance: &mut fastrand::Rng,
    ) -> Result<Self, BusError> {
        let mut hosts = place.hosts.clone();
        chance.shuffle(&mut hosts);
        let mut failed = BusError::new(ErrorKind::Invalid, "no host is named");
        for host in &hosts {
            match Self::to(host, place, title, clock).await {
                Ok(link) => {
                    let (cluster, version) = (&link.cluster, link.greeting.version.as_deref());
                    info!(%host, %cluster, version, "connected to RabbitMQ");
                    return Ok(link);
                }
                Err(error) if error.kind() == ErrorKind::Invalid => return Err(error),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn to(host: &HostPort, place: &Place, title: &str, clock: &Arc<dyn Clock>) -> Result<Self, BusError> {
        let (heard, given_up) = (Heard::default(), CancellationToken::new());
        let guard = given_up.clone().drop_guard();
        let opens = {
            let (host, heard) = (host.clone(), Arc::clone(&heard));
            async move |_: AMQPUri, _: Runtime<Kit>| {
                let socket = tokio::select! {
                    socket = Socket::open(&host, Arc::clone(&heard), given_up.clone()) => socket?,
                    () = given_up.cancelled() => return Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
                };
                Ok(AsyncTcpStream::Plain(socket))
            }
        };
        let properties = ConnectionProperties::default().with_connection_name(title.into());
        let connecting = Connection::connector(uri(host, place), Runtime::new(Kit::current()), opens, properties);
        let at = format!("RabbitMQ at {host}, vhost {}", place.vhost);
        let connection = tokio::select! {
            connected = connecting => connected.map_err(|error| trouble(&at, error))?,
            () = clock.sleep(CONNECT_PATIENCE) => {
                let what = format!("{at}: no answer within {} s", CONNECT_PATIENCE.as_secs());
                return Err(BusError::new(ErrorKind::Unavailable, what));
            }
        };
        let greeting = heard.get().cloned().unwrap_or_default();
        let Some(cluster) = place.cluster.clone().or_else(|| greeting.cluster.clone()) else {
            let what =
                format!("{at} does not say what its cluster is called: set `cluster`, it is part of the name of every event");
            return Err(BusError::new(ErrorKind::Invalid, what));
        };
        Ok(Self { connection, greeting, cluster, _given_up: guard })
    }

    /// The cluster's name in the archive.
    pub(crate) fn cluster(&self) -> &str {
        &self.cluster
    }

    /// What the server says of itself.
    pub(crate) fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// The first number of the server's version; `None` if it does not tell.
    pub(crate) fn major_version(&self) -> Option<u32> {
        self.greeting.version.as_deref()?.split('.').next()?.parse().ok()
    }

    /// How many messages are ready in a queue or stream, by the broker's count. Fails if there is none of the name.
    pub(crate) async fn ready(&self, queue: &str) -> Result<u32, BusError> {
        let channel = self.channel(queue).await?;
        let passive = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
        let queue = declared.map_err(|error| trouble(queue, error))?;
        leave(&channel).await;
        Ok(queue.message_count())
    }

    /// False once it broke.
    pub(crate) fn stands(&self) -> bool {
        self.connection.status().connected()
    }

    /// A channel of its own for `what`: a refusal closes a channel and nothing else.
    pub(crate) async fn channel(&self, what: &str) -> Result<Channel, BusError> {
        self.connection.create_channel().await.map_err(|error| trouble(format_args!("a channel for {what}"), error))
    }

    /// Leaves, within bounds.
    pub(crate) async fn close(self, clock: &dyn Clock) {
        tokio::select! {
            closed = self.connection.close(200, "OK".into()) => {
                if let Err(error) = closed {
                    debug!(%error, "the connection was gone before it was closed");
                }
            }
            () = clock.sleep(CLOSE_PATIENCE) => debug!("the connection does not close in time, leaving it behind"),
        }
    }
}

/// Gives a channel up. Broken or not, it is not used again.
pub(crate) async fn leave(channel: &Channel) {
    if let Err(error) = channel.close(200, "OK".into()).await {
        debug!(%error, "a channel was gone before it was closed");
    }
}

fn uri(host: &HostPort, place: &Place) -> AMQPUri {
    let (username, password) = (place.credentials.user.clone(), place.credentials.password.clone());
    AMQPUri {
        scheme: AMQPScheme::AMQP,
        authority: AMQPAuthority { userinfo: AMQPUserInfo { username, password }, host: host.host.clone(), port: host.port },
        vhost: place.vhost.clone(),
        query: AMQPQueryString::default(),
    }
}
