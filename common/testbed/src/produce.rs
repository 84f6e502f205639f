//! Puts events onto a bus, fast or in transactions, and never loses one silently.
//! `acks=all` and idempotent; a failed delivery is counted and makes `finish` an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::util::IntoOpaque;

use crate::events::Event;

const LIMIT: Duration = Duration::from_secs(60);

/// Producer settings for events above librdkafka's own 1 MB limit.
pub const LARGE_EVENTS: (&str, &str) = ("message.max.bytes", "8388608");

#[derive(Clone, Default)]
struct Failures(Arc<AtomicU64>);

impl ClientContext for Failures {}

impl ProducerContext for Failures {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_err() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Sends plain events. Within a partition the order of `send` is kept.
pub struct Loader {
    producer: ThreadedProducer<Failures>,
    failures: Failures,
}

impl Loader {
    /// A producer with large batches; `settings` are librdkafka's and win over ours.
    pub fn new(bootstrap: &str, settings: &[(&str, &str)]) -> Result<Self> {
        let failures = Failures::default();
        let producer = config(bootstrap, settings).create_with_context(failures.clone())?;
        Ok(Self { producer, failures })
    }

    /// Hands over one event; waits while the queue is full. `None` leaves the partition to the client's partitioner.
    pub fn send(&self, topic: &str, partition: Option<i32>, event: &Event) -> Result<()> {
        send(&self.producer, topic, partition, event)
    }

    /// Waits until everything is on the bus; any failed delivery is an error.
    pub fn finish(self) -> Result<()> {
        self.flush()
    }

    /// Like [`Self::finish`], but goes on.
    pub fn flush(&self) -> Result<()> {
        self.producer.flush(LIMIT).context("the bus did not confirm in time")?;
        match self.failures.0.load(Ordering::Relaxed) {
            0 => Ok(()),
            failed => bail!("{failed} events were not delivered"),
        }
    }
}

/// Sends events in transactions, some of which a test wants aborted.
pub struct Transactions {
    producer: ThreadedProducer<Failures>,
}

impl Transactions {
    /// A transactional producer; `id` fences an older one of the same id.
    pub fn new(bootstrap: &str, id: &str, settings: &[(&str, &str)]) -> Result<Self> {
        let mut config = config(bootstrap, settings);
        let producer: ThreadedProducer<Failures> = config.set("transactional.id", id).create_with_context(Failures::default())?;
        producer.init_transactions(LIMIT)?;
        Ok(Self { producer })
    }

    /// Begins a transaction.
    pub fn begin(&self) -> Result<()> {
        Ok(self.producer.begin_transaction()?)
    }

    /// Sends within the open transaction.
    pub fn send(&self, topic: &str, partition: Option<i32>, event: &Event) -> Result<()> {
        send(&self.producer, topic, partition, event)
    }

    /// Makes the open transaction's events visible.
    pub fn commit(&self) -> Result<()> {
        Ok(self.producer.commit_transaction(LIMIT)?)
    }

    /// Writes the open transaction's events out and then aborts it: they take offsets, and nobody may see them.
    pub fn abort(&self) -> Result<()> {
        self.producer.flush(LIMIT)?;
        Ok(self.producer.abort_transaction(LIMIT)?)
    }
}

pub(crate) fn config(bootstrap: &str, settings: &[(&str, &str)]) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("linger.ms", "20")
        .set("batch.size", "262144")
        .set("queue.buffering.max.kbytes", "131072");
    for (name, value) in settings {
        config.set(*name, *value);
    }
    config
}

fn send(producer: &ThreadedProducer<Failures>, topic: &str, partition: Option<i32>, event: &Event) -> Result<()> {
    send_record(producer, topic, record(topic, partition, event, ()))
}

/// Hands over one record; waits while the queue is full.
pub(crate) fn send_record<C: ProducerContext + 'static>(
    producer: &ThreadedProducer<C>,
    topic: &str,
    mut record: BaseRecord<'_, [u8], [u8], C::DeliveryOpaque>,
) -> Result<()> {
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err((error, _)) => return Err(error).context(format!("to topic {topic}")),
        }
    }
}

pub(crate) fn record<'a, O: IntoOpaque>(
    topic: &'a str,
    partition: Option<i32>,
    event: &'a Event,
    opaque: O,
) -> BaseRecord<'a, [u8], [u8], O> {
    let mut record = BaseRecord::with_opaque_to(topic, opaque).timestamp(event.timestamp);
    record.partition = partition;
    record.key = event.key.as_deref();
    record.payload = event.value.as_deref();
    if event.headers.is_empty() {
        return record;
    }
    let headers = OwnedHeaders::new_with_capacity(event.headers.len());
    record.headers(
        event.headers.iter().fold(headers, |headers, (name, value)| headers.insert(Header { key: name, value: value.as_ref() })),
    )
}
