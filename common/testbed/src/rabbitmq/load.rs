//! Puts events onto a real RabbitMQ, fast, and never loses one silently: every event is confirmed, and one that no queue wanted is
//! an error. Many confirms are awaited at once, else each event would cost a way to the disk and back.

use std::collections::VecDeque;

use anyhow::{Result, bail};
use lapin::Confirmation;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;

use super::client::{Asked, Client, answer};
use super::event::RabbitEvent;

/// Events on their way at most.
const EVENTS_MAX: usize = 2_000;
/// And bytes, roughly.
const BYTES_MAX: usize = 32 << 20;

/// Publishes in the order of `send`.
pub struct RabbitLoader {
    client: Client,
    waiting: VecDeque<(usize, Asked<Confirmation>)>,
    waiting_bytes: usize,
    confirmed: u64,
}

impl RabbitLoader {
    /// A publisher by the URI of a vhost, see [`super::RabbitServer::uri`].
    pub fn new(uri: &str) -> Result<Self> {
        let client = Client::connect(uri, "tapedeck testbed loader")?;
        answer("confirm mode", client.channel().confirm_select(ConfirmSelectOptions::default()))?;
        Ok(Self { client, waiting: VecDeque::new(), waiting_bytes: 0, confirmed: 0 })
    }

    /// Hands over one event; waits while too much is on its way. An error may speak of an earlier event.
    pub fn send(&mut self, event: RabbitEvent) -> Result<()> {
        let size = event.size();
        let asked = self.publish(event)?;
        self.waiting.push_back((size, asked));
        self.waiting_bytes += size;
        if self.waiting.len() > EVENTS_MAX || self.waiting_bytes > BYTES_MAX {
            self.settle(EVENTS_MAX / 2, BYTES_MAX / 2)?;
        }
        Ok(())
    }

    /// How many events the broker has confirmed so far, always the first ones of those sent.
    pub fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// Waits until the broker has confirmed everything.
    pub fn flush(&mut self) -> Result<()> {
        self.settle(0, 0)
    }

    /// Like [`Self::flush`], and closes the connection.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        self.client.close()
    }

    fn publish(&self, event: RabbitEvent) -> Result<Asked<Confirmation>> {
        let channel = self.client.channel().clone();
        let RabbitEvent { exchange, routing_key, properties, body } = event;
        let (exchange, key) = (ShortString::try_new(exchange)?, ShortString::try_new(routing_key)?);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        Ok(Asked::now(async move { channel.basic_publish(exchange, key, options, &body, properties).await?.await }))
    }

    fn settle(&mut self, events: usize, bytes: usize) -> Result<()> {
        while self.waiting.len() > events || self.waiting_bytes > bytes {
            let Some((size, asked)) = self.waiting.pop_front() else { break };
            self.waiting_bytes -= size;
            self.settled(asked.answer("a confirm")?)?;
        }
        Ok(())
    }

    fn settled(&mut self, done: Confirmation) -> Result<()> {
        match done {
            Confirmation::Ack(None) => {
                self.confirmed += 1;
                Ok(())
            }
            // Which of the events on their way came back cannot be told by its confirm; its key can.
            Confirmation::Ack(Some(back)) | Confirmation::Nack(Some(back)) => {
                bail!("no queue for exchange {:?}, key {:?}", back.exchange.as_str(), back.routing_key.as_str())
            }
            Confirmation::Nack(None) => bail!("the broker did not take an event"),
            Confirmation::NotRequested => bail!("the channel gives no confirms"),
        }
    }
}
