//! A bus to play with: librdkafka's own mock broker in this process, with sample topics in it. No Java, no download.
//!
//! `playground --side-topics orders.replay.demo --address-file broker.txt` stays until it is told to end.
//! `playground --into 127.0.0.1:9092` fills a real broker instead, and ends.
//! The mock keeps about 5 MiB a partition, makes no topics on request, and finds no offsets by time; so side topics are made here,
//! beforehand, and more than it can keep is refused rather than dropped.
#![allow(clippy::disallowed_methods, reason = "the samples are of the last hours, so it asks for the time")]

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use rdkafka::mocking::MockCluster;
use tapedeck_testbed::events::{HOUR_MS, partition_of, samples};
use tapedeck_testbed::{Admin, Loader};

/// What the mock keeps of a partition, less a margin for batch headers.
const MOCK_KEEPS: u64 = 4_500_000;
/// The mock lives in this process; nobody should have to hunt for it if its owner forgot it.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(2 * 3600);

/// Runs a broker with sample events in it.
#[derive(Debug, Parser)]
struct Options {
    /// Topics to make, as NAME or NAME:PARTITIONS; those of the sample set are filled.
    #[arg(long, value_delimiter = ',', default_value = "orders:4,clicks:4,payments-proto:2,inventory-avro:2")]
    topics: Vec<Topic>,
    /// Empty topics to make, as NAME or NAME:PARTITIONS.
    #[arg(long, value_delimiter = ',')]
    side_topics: Vec<Topic>,
    /// How many sample events in all.
    #[arg(long, default_value_t = 40_000)]
    events: u64,
    /// Over how many hours up to now their times are spread.
    #[arg(long, default_value_t = 6.0)]
    hours: f64,
    /// Writes the bootstrap address here once everything is in place.
    #[arg(long)]
    address_file: Option<PathBuf>,
    /// Fills this real broker instead, and ends.
    #[arg(long, value_name = "BOOTSTRAP")]
    into: Option<String>,
}

#[derive(Debug, Clone)]
struct Topic {
    name: String,
    partitions: i32,
}

impl std::str::FromStr for Topic {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, partitions) = text.split_once(':').unwrap_or((text, "4"));
        let partitions = partitions.parse().map_err(|_| anyhow!("{text}: partitions must be a number"))?;
        Ok(Self { name: name.to_owned(), partitions })
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(bootstrap) = &options.into {
        let admin = Admin::new(bootstrap)?;
        for topic in options.topics.iter().chain(&options.side_topics) {
            admin.create_topic(&topic.name, topic.partitions, &[("retention.ms", "-1")])?;
        }
        return fill(&options, bootstrap, u64::MAX);
    }
    let cluster = MockCluster::new(1).map_err(|error| anyhow!("the mock broker: {error}"))?;
    for topic in options.topics.iter().chain(&options.side_topics) {
        let made = cluster.create_topic(&topic.name, topic.partitions, 1);
        made.map_err(|error| anyhow!("topic {}: {error}", topic.name))?;
    }
    let bootstrap = cluster.bootstrap_servers();
    fill(&options, &bootstrap, MOCK_KEEPS)?;
    println!("broker on {bootstrap}");
    if let Some(path) = &options.address_file {
        // Complete or not there: who waits for the file must not read half of it.
        let draft = path.with_extension("draft");
        std::fs::write(&draft, &bootstrap).and_then(|()| std::fs::rename(&draft, path)).context("address file")?;
    }
    std::thread::sleep(FORGOTTEN_AFTER);
    Ok(())
}

fn fill(options: &Options, bootstrap: &str, partition_keeps: u64) -> Result<()> {
    // One batch a fetch is what the mock hands out, so batches should be large.
    let loader = Loader::new(bootstrap, &[("linger.ms", "100"), ("batch.size", "900000")])?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64;
    let from_ms = now - (options.hours * HOUR_MS as f64) as i64;
    for topic in &options.topics {
        let share = samples::TOPICS.iter().find(|(name, _)| *name == topic.name).map_or(0, |(_, share)| *share);
        let count = options.events * share / 100;
        let mut kept = vec![0; topic.partitions as usize];
        for event in samples::events(&topic.name, count, from_ms, options.hours) {
            let partition = partition_of(event.key.as_deref().unwrap_or_default(), topic.partitions);
            kept[partition as usize] += event.raw_bytes() + 40;
            if kept[partition as usize] > partition_keeps {
                bail!("{} events are more than the mock broker keeps; ask for fewer, or use --into a real one", options.events);
            }
            loader.send(&topic.name, Some(partition), &event)?;
        }
        if count > 0 {
            println!("{}: {count} events in {} partitions", topic.name, topic.partitions);
        }
    }
    loader.finish()
}
