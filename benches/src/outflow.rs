//! Publishing to the benches' topic: through our producer, and by the client's own plain send (the yardstick).
//! Both are counted from their start until the broker has confirmed everything.

use std::time::Duration;

use anyhow::{Result, ensure};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use tapedeck_common::bus::{Outgoing, Producer};
use tapedeck_kafka::producer::{KafkaProducer, ProducerSettings};

use crate::broker::Broker;
use crate::inflow::cluster;
use crate::meter::cpu_now;
use crate::rows::Rows;

/// How long a full queue is left alone, as in the replayer.
const QUEUE_WAIT: Duration = Duration::from_millis(1);

/// A producer that was let go still ends its threads for a moment.
const AFTERMATH: Duration = Duration::from_millis(200);

/// Events between two looks at what is confirmed.
const LOOK_EVERY: u64 = 512;

/// Our producer, with its queue waited for.
pub struct Outflow {
    producer: KafkaProducer,
    published: u64,
}

impl Outflow {
    /// Publishes one event.
    pub fn publish(&mut self, event: &Outgoing<'_>) -> Result<()> {
        while !self.producer.publish(event)? {
            self.producer.confirmed()?;
            std::thread::sleep(QUEUE_WAIT);
        }
        self.published += 1;
        if self.published.is_multiple_of(LOOK_EVERY) {
            self.producer.confirmed()?;
        }
        Ok(())
    }
}

/// Publishes what `feed` gives, through `KafkaProducer`; answers the CPU time of both.
pub fn publish(
    broker: &Broker,
    client: &[(&str, &str)],
    events: u64,
    feed: impl FnOnce(&mut Outflow) -> Result<()>,
) -> Result<Duration> {
    let before = cpu_now();
    let producer = KafkaProducer::start(&cluster(&broker.bootstrap, client), ProducerSettings::default())?;
    let mut outflow = Outflow { producer, published: 0 };
    feed(&mut outflow)?;
    let confirmed = loop {
        let confirmed: u64 = outflow.producer.confirmed()?.iter().map(|lane| lane.events).sum();
        if outflow.producer.unconfirmed() == 0 {
            break confirmed;
        }
        std::thread::sleep(QUEUE_WAIT);
    };
    let spent = cpu_now().saturating_sub(before);
    ensure!(outflow.published == events && confirmed == events, "{confirmed} of {events} events are confirmed");
    drop(outflow);
    std::thread::sleep(AFTERMATH);
    Ok(spent)
}

/// Publishes rows by the client's own send with the same settings: no headers, no times, nothing counted.
pub fn plain(broker: &Broker, rows: &Rows) -> Result<Duration> {
    let before = cpu_now();
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", &broker.bootstrap)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("queue.buffering.max.kbytes", "8192")
        .set("linger.ms", "1")
        .set("batch.size", "524288")
        .set("message.max.bytes", "104857600")
        .create()?;
    for (partition, block) in rows.chunks.iter().flatten() {
        for row in 0..block.len() {
            send_plain(&producer, &broker.topic, *partition, block.keys.get(row), block.values.get(row))?;
        }
    }
    while producer.in_flight_count() > 0 {
        std::thread::sleep(QUEUE_WAIT);
    }
    let spent = cpu_now().saturating_sub(before);
    drop(producer);
    std::thread::sleep(AFTERMATH);
    Ok(spent)
}

fn send_plain(
    producer: &ThreadedProducer<DefaultProducerContext>,
    topic: &str,
    partition: i32,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
) -> Result<()> {
    let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).partition(partition);
    (record.key, record.payload) = (key, value);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                std::thread::sleep(QUEUE_WAIT);
            }
            Err((error, _)) => return Err(error.into()),
        }
    }
}
