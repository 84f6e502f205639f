//! `archiver verify --against-bus`: asks the brokers and the logs in the order that makes the answers hold, and waits if told to.
//!
//! The order: where the bus begins, then the logs, then where the bus ends. Both ends and the logs only move forward, so "lost" and
//! "ahead" stay true however long an answer took. Never: reads an event, or changes anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tapedeck_common::bus::BusError;
use tapedeck_common::clock::Clock;
use tapedeck_common::position::{LaneId, Position};
use tapedeck_daemon::{Exit, Failure, SystemClock};
use tapedeck_kafka::admin::{Cluster, Ends, TopicThere, TopicsThere};
use tapedeck_kafka::config::{KafkaSettings, TopicSelector};
use tapedeck_storage::archive::Archive;
use tapedeck_storage::log::TableView;
use tapedeck_storage::log::verify::TableReport;
use tapedeck_storage::store::StoreError;

use crate::against_bus::{self, Bus, BusLane, BusTopic, Comparison, Known, Logs, Standing};
use crate::cli::VerifyArgs;
use crate::config::{Config, Source};

/// A new leader may not know its end yet, so a bus that seems to end too early is asked once more after this.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// How often the logs are read while waiting.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// One source, while its cluster is being asked.
struct Asked {
    source: Source,
    kafka: KafkaSettings,
    cluster: Cluster,
    there: TopicsThere,
    /// Those of its topics that are to be compared.
    topics: Vec<TopicThere>,
    /// Topics that it names and that are not there.
    missing: Vec<String>,
    begins: Ends,
    ends: Ends,
}

/// Compares the archive with what the brokers of the configuration have.
pub(super) async fn compare(
    archive: &Archive,
    config: &Config,
    what: &VerifyArgs,
    reports: &[TableReport],
) -> Result<Comparison, Failure> {
    let clock = SystemClock::new();
    let (sources, only) = (config.sources.clone(), what.table.clone());
    let mut asked = blocking(move || begin(sources, only.as_deref())).await?;
    let mut logs = known(reports);
    logs.positions = positions(archive, what.table.as_deref()).await?;
    let moment = clock.now();
    asked = blocking(move || end(asked)).await?;
    let deadline = clock.monotonic() + what.wait.map_or(Duration::ZERO, |wait| wait.get());
    let mut bus = bus(&asked);
    let mut compared = against_bus::compare(&bus, &logs, moment);
    if compared.count(Standing::Ahead) > 0 {
        clock.sleep(SECOND_LOOK).await;
        asked = blocking(move || end(asked)).await?;
        bus = self::bus(&asked);
        compared = against_bus::compare(&bus, &logs, moment);
    }
    while compared.may_come() && clock.monotonic() < deadline {
        clock.sleep(LOOK_EVERY).await;
        logs.positions = positions(archive, what.table.as_deref()).await?;
        logs.read_later = true;
        compared = against_bus::compare(&bus, &logs, moment);
    }
    Ok(compared)
}

/// The client's calls wait, so they get a thread of their own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, BusError> + Send + 'static) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| Failure::new(Exit::Bug, error))?;
    done.map_err(|error| Failure::new(error.kind(), error))
}

/// Which topics there are, and where they begin.
fn begin(sources: Vec<Source>, only: Option<&str>) -> Result<Vec<Asked>, BusError> {
    let mut seen: BTreeSet<Arc<str>> = BTreeSet::new();
    let mut asked = Vec::with_capacity(sources.len());
    for source in sources {
        let Some(kafka) = source.bus.kafka().cloned() else {
            // Over AMQP 0-9-1 a broker does not tell where a stream ends.
            eprintln!("source {}: left out, RabbitMQ does not say where its streams end", source.name);
            continue;
        };
        let cluster = Cluster::open(&kafka.cluster)?;
        let there = cluster.topics_there(&kafka)?;
        let wanted = |topic: &str| only.is_none_or(|only| *source.tables.table_of(topic) == *only);
        // Two sources may name one topic.
        let mut first = |topic: &&TopicThere| wanted(&topic.name) && seen.insert(Arc::clone(&topic.source));
        let topics: Vec<TopicThere> = there.selected.iter().filter(&mut first).cloned().collect();
        let is_missing = |name: &&String| wanted(name) && !there.names.contains(*name);
        let missing = kafka.topics.iter().filter_map(named).filter(is_missing).cloned().collect();
        let begins = cluster.beginnings(&topics)?;
        asked.push(Asked { source, kafka, cluster, there, topics, missing, begins, ends: Ends::new() });
    }
    Ok(asked)
}

/// The name, where it is no pattern.
fn named(selector: &TopicSelector) -> Option<&String> {
    match selector {
        TopicSelector::Name(name) => Some(name),
        TopicSelector::Pattern(_) => None,
    }
}

/// Where they end. Ends are asked for by name, so they count only if the name still means the same topic.
fn end(mut asked: Vec<Asked>) -> Result<Vec<Asked>, BusError> {
    for one in &mut asked {
        one.ends = one.cluster.ends(&one.topics)?;
        let now = one.cluster.topics_there(&one.kafka)?;
        for topic in &one.topics {
            if now.selected.iter().any(|there| there.source == topic.source) {
                continue;
            }
            for lane in topic.lanes() {
                one.ends
                    .insert(lane, Err(format!("topic {} was deleted or made anew while it was asked; verify again", topic.name)));
            }
        }
    }
    Ok(asked)
}

fn bus(asked: &[Asked]) -> Bus {
    let mut bus = Bus::default();
    for one in asked {
        let prefix = one.there.source_prefix();
        bus.names.extend(one.there.names.iter().map(|name| format!("{prefix}{name}")));
        bus.prefixes.insert(prefix);
        bus.missing.extend(one.missing.iter().cloned());
        bus.topics.extend(one.topics.iter().map(|topic| on_bus(topic, one)));
    }
    bus
}

fn on_bus(topic: &TopicThere, asked: &Asked) -> BusTopic {
    let end_of = |ends: &Ends, lane: &LaneId| -> Result<Position, String> {
        ends.get(lane).cloned().unwrap_or_else(|| Err("the brokers said nothing of it".to_owned()))
    };
    let lane = |lane: LaneId| BusLane { begin: end_of(&asked.begins, &lane), end: end_of(&asked.ends, &lane), lane };
    let table = asked.source.tables.table_of(&topic.name).to_string();
    BusTopic { name: topic.name.clone(), table, lanes: topic.lanes().map(lane).collect() }
}

/// What the full reading of the logs told.
fn known(reports: &[TableReport]) -> Logs {
    let mut logs = Logs::default();
    for report in reports {
        for lane in &report.lanes {
            let Some(id) = LaneId::parse(&lane.lane) else { continue };
            logs.known.insert(id, Known { from: Position::new(lane.from), lost: lane.lost });
        }
        for topic in &report.topics {
            logs.topics.extend(topic.sources.iter().map(|source| (source.clone(), topic.topic.clone())));
        }
    }
    logs
}

/// Where all lanes stand now, also those of tables that were not there a moment ago.
async fn positions(archive: &Archive, only: Option<&str>) -> Result<BTreeMap<String, BTreeMap<LaneId, Position>>, Failure> {
    let failed = |error: StoreError| Failure::new(error.kind(), error);
    let mut positions = BTreeMap::new();
    for table in archive.tables().await.map_err(failed)? {
        if only.is_none_or(|only| table == only) {
            let view = TableView::without_segments(&archive.store, &table).await.map_err(failed)?;
            positions.insert(table, view.positions);
        }
    }
    Ok(positions)
}
