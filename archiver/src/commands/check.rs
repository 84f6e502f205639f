//! `archiver check`: all that can be known before running; with `--online` also what the brokers and the store say.

use std::path::Path;
use std::sync::Arc;

use tapedeck_common::clock::Clock;
use tapedeck_daemon::{Exit, Failure, SystemClock};
use tapedeck_kafka::admin::{OnlineReport, check_online};
use tapedeck_rabbitmq::admin::Seen;
use tapedeck_rabbitmq::config::RabbitSettings;
use tapedeck_storage::probe::probe;
use tapedeck_storage::store::open_store;

use crate::config::{BusSettings, Config, Source};
use crate::wiring::{memory_limit, store_options};

/// Checks, says what was found, and fails at the first thing that cannot work.
pub(super) fn run(path: &Path, online: bool) -> Result<Exit, Failure> {
    let (_, config) = super::load(path)?;
    for warning in config.warnings(memory_limit()) {
        eprintln!("warning: {warning}");
    }
    outln!("{}: valid, {} source(s) into {}", path.display(), config.sources.len(), config.archive.url);
    if !online {
        return Ok(Exit::Done);
    }
    super::on_runtime(check_store(&config))?;
    let mut missing = 0;
    for source in &config.sources {
        match &source.bus {
            BusSettings::Kafka(kafka) => {
                missing += report(source, &check_online(kafka).map_err(|error| Failure::new(error.kind(), error))?);
            }
            BusSettings::Rabbit(rabbit) => drop(super::on_runtime(check_rabbit(source, rabbit))?),
        }
    }
    match missing {
        0 => Ok(Exit::Done),
        missing => {
            Err(Failure::new(Exit::Config, format!("{missing} topic(s) do not exist: create them, or take them out of `topics`")))
        }
    }
}

async fn check_store(config: &Config) -> Result<Exit, Failure> {
    let store = open_store(&store_options(&config.archive)).map_err(|error| Failure::new(error.kind(), error))?;
    let clock = SystemClock::new();
    let mut chance = fastrand::Rng::with_seed(clock.now().micros() as u64);
    let probed = probe(&store, &clock, &mut chance).await.map_err(|error| Failure::new(error.kind(), error))?;
    outln!("store {} ({}): conditional writes hold: {probed}", store.url, store.kind);
    Ok(Exit::Done)
}

/// Says what the cluster said; answers how many named topics are missing.
fn report(source: &Source, found: &OnlineReport) -> usize {
    outln!("source {}: cluster {}, {} broker(s)", source.name, found.cluster, found.brokers);
    for (topic, partitions) in &found.topics {
        outln!("  topic {topic}: {partitions} partition(s), table {}", source.tables.table_of(topic));
    }
    for topic in &found.missing {
        outln!("  topic {topic}: does not exist");
    }
    found.missing.len()
}

async fn check_rabbit(source: &Source, rabbit: &RabbitSettings) -> Result<Exit, Failure> {
    let settings = RabbitSettings { title: format!("tapedeck check {}", source.name), ..rabbit.clone() };
    let clock = SystemClock::new();
    let chance = fastrand::Rng::with_seed(clock.now().micros() as u64);
    let found = tapedeck_rabbitmq::admin::check_online(&settings, Arc::new(clock), chance).await;
    let found = found.map_err(|error| Failure::new(error.kind(), error))?;
    outln!("source {}: cluster {}, {}", source.name, found.cluster, found.server);
    let (name, table) = (rabbit.inflow.name(), source.tables.table_of(rabbit.inflow.name()));
    match found.seen {
        Seen::Stream(None, _) => outln!("  stream {name}: handed over no event, table {table}"),
        Seen::Stream(Some(first), None) => outln!("  stream {name}: from offset {first} on, table {table}"),
        Seen::Stream(Some(first), Some(end)) => outln!("  stream {name}: from offset {first} to {end} or later, table {table}"),
        Seen::Queue(ready) => outln!("  queue {name}: {ready} message(s) wait, table {table}"),
    }
    Ok(Exit::Done)
}
