//! A Kafka cluster as a target.

mod prepare;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use tapedeck_common::Span;
use tapedeck_common::bus::{BusError, Producer};
use tapedeck_kafka::admin::{Cluster, SeenEvent};
use tapedeck_kafka::config::ClusterSettings;
use tapedeck_kafka::producer::{KafkaProducer, ProducerSettings};

use super::{Advice, PrepareError, Prepared, TargetBus};
use crate::pacer::Limits;
use crate::plan::Plan;
use crate::verify::{Found, TargetReader, VerifyError};

/// How long the client waits for a batch to fill, in milliseconds. An idempotent client has one request of a partition in
/// flight, and its thread spins as soon as an event behind it has waited for longer than this: a fifth of the CPU is left
/// if that never happens. Without a limit batches fill by size, so only the very last ones wait. With a limit it is the
/// grain in which events reach the topic.
const LINGER_MS: u32 = 500;
const LINGER_PACED_MS: u32 = 5;

/// Half of the client's queue: the batches of all partitions that are being filled fit it, so none ever waits for room.
const FILLING_BYTES: usize = 4 << 20;

/// Batches of one partition: Kafka's default limit of a batch is a little more than the largest.
const BATCH_BYTES: (usize, usize) = (64 << 10, 1_000_000);

/// How long the cluster may be silent while there is something to read.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Kafka cluster.
#[derive(Debug)]
pub struct KafkaTarget {
    settings: ClusterSettings,
}

impl KafkaTarget {
    /// The cluster of these settings.
    pub fn new(settings: ClusterSettings) -> Self {
        Self { settings }
    }

    /// Its settings, with ours where the user has none.
    fn tuned(&self, plan: &Plan) -> ClusterSettings {
        let lanes_of = |topic: &str| plan.lanes.iter().filter(|lane| lane.topic == topic).count();
        let lanes = plan.partitions().keys().map(|topic| lanes_of(topic)).max().unwrap_or(1);
        let batch = (FILLING_BYTES / lanes.max(1)).clamp(BATCH_BYTES.0, BATCH_BYTES.1);
        let mut cluster = self.settings.clone();
        cluster.client.entry("batch.size".to_owned()).or_insert_with(|| batch.to_string());
        cluster
    }
}

impl TargetBus for KafkaTarget {
    fn prepare(&self, plan: &Plan, job: &str) -> Result<Prepared, PrepareError> {
        let cluster = Cluster::open(&self.settings)?;
        let (said, existing) = prepare::prepare(&cluster, plan, job)?;
        let is_asked = !existing.is_empty();
        let advice: Advice = Box::new(move |now| prepare::advise(&cluster, &existing, now));
        Ok(Prepared { said, advice: is_asked.then_some(advice) })
    }

    fn start(&self, plan: &Plan, limits: Limits) -> Result<Box<dyn Producer>, BusError> {
        let linger_ms = if limits == Limits::default() { LINGER_MS } else { LINGER_PACED_MS };
        Ok(Box::new(KafkaProducer::start(&self.tuned(plan), ProducerSettings { linger_ms })?))
    }

    fn read_back(&self, plan: &Plan, job: &str, reader: &mut TargetReader<'_>) -> Result<(), VerifyError> {
        let cluster = Cluster::open(&self.settings)?;
        let there = cluster.topics()?;
        let mut topics: Vec<String> = plan.lanes.iter().map(|lane| plan.target.topic_for(&lane.topic, job)).collect();
        topics.sort();
        topics.dedup();
        for topic in topics {
            let partitions = *there.get(&topic).ok_or_else(|| VerifyError::NoTopic(topic.clone()))?;
            let mut spans: BTreeMap<i32, Span> = BTreeMap::new();
            for partition in 0..partitions {
                spans.insert(partition, cluster.watermarks(&topic, partition)?);
            }
            cluster.read_back(&topic, &spans, PATIENCE, |event| {
                see(reader, &topic, event);
                ControlFlow::Continue(())
            })?;
        }
        Ok(())
    }
}

fn see(reader: &mut TargetReader<'_>, topic: &str, event: &SeenEvent<'_>) {
    let headers: Vec<(&[u8], Option<&[u8]>)> = event.headers().collect();
    reader.see(&Found {
        topic,
        partition: event.partition(),
        time: event.time(),
        key: event.key(),
        value: event.value(),
        headers: &headers,
    });
}
