//! A real RabbitMQ on loopback: one broker, on ports, in a folder and with certificates of its own.
//!
//! `start` returns when AMQP, streams and management answer. The data survives `stop` and `kill9` until the value is dropped.
//! A broker keeps its defaults but for what a small machine asks for; tests that need more say so in [`RabbitOptions`].
//! It is the newest one, unless `RABBITMQ_SUITE` names the Debian suite of an older one (`make compat`).

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::Result;

use crate::rabbitmq::admin::RabbitAdmin;
use crate::scripted::Scripted;

/// Ports of a broker, from the lowest on: AMQP, streams, management, metrics, Erlang's two, AMQP and streams by TLS.
const PORTS: u16 = 8;

/// Erlang: tables to the disk; those of Mnesia, if it is an older broker that has it, and those of Raft.
const WRITE_DOWN: &str = "try mnesia:sync_log() catch _:_ -> none end, [dets:sync(Table) || Table <- dets:all()].";

/// What may differ from one broker to another.
#[derive(Debug, Clone, Default)]
pub struct RabbitOptions {
    /// Further settings of rabbitmq.conf; they win over ours.
    pub settings: Vec<(String, String)>,
}

/// A running broker; gone with its data on drop.
#[derive(Debug)]
pub struct RabbitServer {
    server: Scripted,
}

impl RabbitServer {
    /// The user who may everything, and the password; from loopback only.
    pub const USER: &'static str = "guest";

    /// Starts a broker without queues.
    pub fn start(options: RabbitOptions) -> Result<Self> {
        let settings: Vec<String> = options.settings.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        let environment = vec![("RABBITMQ_CONF".to_owned(), settings.join("\n"))];
        Ok(Self { server: Scripted::start("rabbitmq", "RABBITMQ", PORTS, environment)? })
    }

    /// Where AMQP is spoken.
    pub fn amqp(&self) -> SocketAddr {
        self.address(0)
    }

    /// Where the stream protocol is spoken.
    pub fn stream(&self) -> SocketAddr {
        self.address(1)
    }

    /// Where the management API is.
    pub fn management(&self) -> SocketAddr {
        self.address(2)
    }

    /// Where AMQP is spoken within TLS.
    pub fn amqps(&self) -> SocketAddr {
        self.address(6)
    }

    /// Where the stream protocol is spoken within TLS.
    pub fn stream_tls(&self) -> SocketAddr {
        self.address(7)
    }

    /// The URI of [`Self::USER`] and the vhost `/`, without TLS.
    pub fn uri(&self) -> String {
        format!("amqp://{user}:{user}@{address}/%2f", user = Self::USER, address = self.amqp())
    }

    /// Its management, in the vhost `/`.
    pub fn admin(&self) -> RabbitAdmin {
        RabbitAdmin::new(self.management())
    }

    /// The authority (PEM) that signed the broker's certificate, which is for `localhost` and 127.0.0.1.
    pub fn ca_file(&self) -> PathBuf {
        self.certificate("ca.pem")
    }

    /// A certificate (PEM) and its key that the broker trusts; with them the user `client` logs in by EXTERNAL, once it is made.
    pub fn client_certificate(&self) -> (PathBuf, PathBuf) {
        (self.certificate("client.pem"), self.certificate("client.key"))
    }

    /// Runs `rabbitmqctl` and returns what it says. It takes a second: for what [`RabbitAdmin`] cannot do.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        self.server.run(&[&["ctl"], arguments].concat())
    }

    /// Stops the broker cleanly; its data stays.
    pub fn stop(&self) -> Result<()> {
        self.server.verb("stop")
    }

    /// Kills the broker with SIGKILL; its data stays as it is.
    ///
    /// One thing is written down before: which queues and streams there are. The broker does so once none was made for half a
    /// second, and killed before it has forgotten what lies in the new ones; no test means that.
    pub fn kill9(&self) -> Result<()> {
        self.ctl(&["eval", WRITE_DOWN])?;
        self.server.verb("kill9")
    }

    /// Starts the broker again on the same ports and data. A stream of an older one (3.10) takes events a moment later.
    pub fn start_again(&self) -> Result<()> {
        self.server.verb("start")
    }

    fn address(&self, place: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.server.port() + place))
    }

    fn certificate(&self, name: &str) -> PathBuf {
        self.server.folder().join("tls").join(name)
    }
}

/// One broker for all tests of a test binary, started on first use, ended with the process.
///
/// Panics when RabbitMQ can't be had: a missing server is a failed test. Where it is known to be missing, see
/// [`super::has_rabbitmq`].
pub fn shared_rabbitmq() -> &'static RabbitServer {
    static SHARED: OnceLock<RabbitServer> = OnceLock::new();
    SHARED.get_or_init(|| RabbitServer::start(RabbitOptions::default()).expect("the tests need a real RabbitMQ"))
}
