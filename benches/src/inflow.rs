//! Reading the benches' topic: through our consumer, and as little as the client can do (the yardstick).
//!
//! Both read with the settings that the product ships, from the first event to the last, and are counted from the moment that
//! positions are named until the last event is there.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tapedeck_common::ByteBudget;
use tapedeck_common::bus::{AssignedLane, Consumer, Deliveries, Incoming};
use tapedeck_common::columns::ColumnsPool;
use tapedeck_common::position::Position;
use tapedeck_daemon::SystemClock;
use tapedeck_kafka::admin::Cluster;
use tapedeck_kafka::config::{ClusterSettings, KafkaSettings, Membership, Replayed, Start, TopicSelector};
use tapedeck_kafka::consumer::KafkaConsumer;

use crate::broker::Broker;
use crate::meter::cpu_now;
use crate::rows::PARTITIONS;

/// Longer than anything here can take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client that was let go still ends its threads for a moment; their cost must not fall on who comes next.
const AFTERMATH: Duration = Duration::from_millis(400);

/// What happens while the topic is read.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "it lives for one turn of a loop; a box for each run would be measured too")]
pub enum Step {
    /// These lanes will be read from their beginning.
    Assigned(Vec<AssignedLane>),
    /// Events.
    Run(Deliveries),
    /// All events were there; what is still open is to be ended.
    End,
}

/// How a cluster is reached, with client properties.
pub fn cluster(bootstrap: &str, client: &[(&str, &str)]) -> ClusterSettings {
    let client = client.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    ClusterSettings { brokers: vec![bootstrap.to_owned()], client }
}

/// Reads `events` through `KafkaConsumer` and hands them to `take`; answers the CPU time of both.
pub fn consume(broker: &Broker, pool: &Arc<ColumnsPool>, events: u64, take: impl FnMut(Step)) -> Result<Duration> {
    static GROUPS: AtomicU32 = AtomicU32::new(0);
    let group = format!("bench-{}", GROUPS.fetch_add(1, Ordering::Relaxed));
    let settings = KafkaSettings {
        cluster: cluster(&broker.bootstrap, &[]),
        group,
        membership: Membership::default(),
        topics: vec![TopicSelector::parse(&broker.topic).map_err(|error| anyhow!("{error}"))?],
        start: Start::Earliest,
        replayed: Replayed::Skip,
        mark: String::new(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let spent = runtime.block_on(async {
        // Events are let go at once, so a small budget is never felt.
        let budget = ByteBudget::new(256 << 20);
        let mut consumer = KafkaConsumer::start(settings, &budget, Arc::clone(pool), Arc::new(SystemClock::new()))?;
        let spent = tokio::time::timeout(PATIENCE, read(&mut consumer, events, take)).await.context("the broker is silent")?;
        Box::new(consumer).close().await;
        spent
    })?;
    drop(runtime);
    std::thread::sleep(AFTERMATH);
    Ok(spent)
}

async fn read(consumer: &mut KafkaConsumer, events: u64, mut take: impl FnMut(Step)) -> Result<Duration> {
    let (mut seen, mut lanes, mut began) = (0, 0, None);
    while seen < events {
        match consumer.next().await? {
            Incoming::Assigned(assigned) => {
                lanes += assigned.len();
                let at = assigned.iter().map(|lane| (lane.lane.clone(), Position::default())).collect();
                take(Step::Assigned(assigned));
                began.get_or_insert_with(cpu_now);
                consumer.resume(at).await?;
            }
            Incoming::Deliveries(runs) => {
                for run in runs {
                    seen += run.events.len() as u64;
                    take(Step::Run(run));
                }
            }
            Incoming::Idle(_) | Incoming::Ends(..) => {}
            other => return Err(anyhow!("nobody else is in the group, yet: {other:?}")),
        }
    }
    take(Step::End);
    ensure!(lanes == PARTITIONS as usize && seen == events, "{seen} of {events} events in {lanes} partitions");
    Ok(cpu_now().saturating_sub(began.context("nothing was assigned")?))
}

/// What the yardstick looks at. The client unpacks headers only for who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touched {
    /// Values.
    Values,
    /// Values and headers.
    Headers,
}

/// Reads `events` and does nothing but look at the length of what is `touched` of each, in the client's own bulk call.
pub fn touch(broker: &Broker, events: u64, touched: Touched) -> Result<Duration> {
    let reader = Cluster::open(&cluster(&broker.bootstrap, &[]))?;
    let mut spans = std::collections::BTreeMap::new();
    for partition in 0..PARTITIONS {
        spans.insert(partition, reader.watermarks(&broker.topic, partition)?);
    }
    let (mut seen, mut bytes) = (0, 0);
    let before = cpu_now();
    reader.read_back(&broker.topic, &spans, PATIENCE, |event| {
        seen += 1;
        bytes += event.value().map_or(0, <[u8]>::len);
        if touched == Touched::Headers {
            bytes += event.headers().map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len)).sum::<usize>();
        }
        ControlFlow::Continue(())
    })?;
    let spent = cpu_now().saturating_sub(before);
    drop(reader);
    std::thread::sleep(AFTERMATH);
    ensure!(seen == events && bytes > 0, "{seen} of {events} events");
    Ok(spent)
}
