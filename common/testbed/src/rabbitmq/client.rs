//! AMQP connections of the testbed. One small runtime of its own serves all of them, so that loaders and readers block in any
//! test, those of tokio too.

use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use anyhow::{Context, Result};
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::runtime::{Builder, Runtime};

use crate::wait::wait_for;

const LIMIT: Duration = Duration::from_secs(60);

/// One connection with one channel; closed on drop.
pub(super) struct Client {
    connection: Connection,
    channel: Channel,
}

impl Client {
    /// `name` is what management shows.
    pub(super) fn connect(uri: &str, name: &str) -> Result<Self> {
        let _within = runtime().enter();
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let connecting = Connection::connect_with_runtime(uri, properties, lapin::runtime::default_runtime()?);
        let connection = answer("a connection", connecting).context("RabbitMQ refuses the connection")?;
        let channel = answer("a channel", connection.create_channel())?;
        Ok(Self { connection, channel })
    }

    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Says goodbye, and so learns of a fault that came after everything else.
    pub(super) fn close(self) -> Result<()> {
        answer("goodbye", self.connection.close(200, "OK".into()))
    }
}

/// Waits for the broker's answer; a broker that never gives one is an error.
pub(super) fn answer<T>(what: &str, asked: impl Future<Output = lapin::Result<T>>) -> Result<T> {
    let answer = wait_for(&format!("{what} of RabbitMQ"), LIMIT, asked)?;
    answer.with_context(|| what.to_owned())
}

/// A question that is on its way, its answer still to be waited for.
pub(super) enum Asked<T> {
    /// It did not take long.
    Answered(lapin::Result<T>),
    /// The broker's turn.
    Waiting(Pin<Box<dyn Future<Output = lapin::Result<T>> + Send>>),
}

impl<T> Asked<T> {
    /// The first poll hands to the client what is to be sent: the order of these calls is the order on the wire.
    pub(super) fn now(asked: impl Future<Output = lapin::Result<T>> + Send + 'static) -> Self {
        let mut asked = Box::pin(asked);
        match asked.as_mut().poll(&mut TaskContext::from_waker(Waker::noop())) {
            Poll::Ready(answer) => Self::Answered(answer),
            Poll::Pending => Self::Waiting(asked),
        }
    }

    /// Waits for it.
    pub(super) fn answer(self, what: &str) -> Result<T> {
        match self {
            Self::Answered(answer) => answer.with_context(|| what.to_owned()),
            Self::Waiting(asked) => answer(what, asked),
        }
    }
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let built = Builder::new_multi_thread().worker_threads(1).thread_name("testbed-amqp").enable_all().build();
        built.expect("a runtime of one thread can be had")
    })
}
