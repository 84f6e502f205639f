//! Loads a workload into a Kafka topic, fast, and says what it loaded.
//!
//! `generate --brokers 127.0.0.1:9092 --topic orders --count 2000000 --partitions 4`
//! The topic is made when it is not there. The digest sum is that of the oracle: equal for the same events, whatever the order.
#![allow(clippy::disallowed_methods, reason = "a tool that measures how long it took")]

use std::time::Instant;

use anyhow::{Result, bail};
use clap::Parser;
use tapedeck_testbed::events::{BASE_MS, nasty, partition_of};
use tapedeck_testbed::{Admin, Event, Generator, Loader, Workload};

/// Loads seeded events into a Kafka topic.
#[derive(Debug, Parser)]
struct Options {
    /// Bootstrap address of the broker.
    #[arg(long)]
    brokers: String,
    /// Topic; made when it is not there.
    #[arg(long)]
    topic: String,
    /// Shape of the events.
    #[arg(long, value_enum, default_value = "orders")]
    workload: Workload,
    /// Load the nasty set instead: nulls, odd headers, 1 MiB values, odd times, aborted transactions.
    #[arg(long)]
    nasty: bool,
    /// How many events.
    #[arg(long, default_value_t = 2_000_000)]
    count: u64,
    /// Partitions of the topic.
    #[arg(long, default_value_t = 4)]
    partitions: i32,
    /// Seed.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// First event time, in milliseconds since 1970.
    #[arg(long, default_value_t = BASE_MS)]
    from_ms: i64,
    /// Spread the event times evenly over so many hours.
    #[arg(long, default_value_t = 2.0)]
    hours: f64,
    /// Spread events over partitions in turn, instead of by key.
    #[arg(long)]
    round_robin: bool,
    /// Compression on the topic: none, lz4, zstd.
    #[arg(long, default_value = "none")]
    compression: String,
    /// At most so many events a second.
    #[arg(long)]
    rate: Option<u64>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let started = Instant::now();
    if options.nasty {
        load_nasty(&options)?;
    } else {
        load(&options, started)?;
    }
    eprintln!("took {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn load_nasty(options: &Options) -> Result<()> {
    let nasty = nasty::Nasty {
        seed: options.seed,
        partitions: options.partitions,
        plain: options.count - options.count / 3,
        transactional: options.count / 3,
        ..nasty::Nasty::default()
    };
    let loaded = nasty.load(&options.brokers, &options.topic)?;
    println!("visible={} aborted={}", loaded.visible, loaded.aborted);
    Ok(())
}

fn load(options: &Options, started: Instant) -> Result<()> {
    let admin = Admin::new(&options.brokers)?;
    match admin.partition_count(&options.topic)? {
        0 => admin.create_topic(&options.topic, options.partitions, &[("retention.ms", "-1")])?,
        found if found == options.partitions => {}
        found => bail!("topic {} has {found} partitions, not {}", options.topic, options.partitions),
    }
    let generator = Generator::new(options.workload, options.seed, options.count).over(options.from_ms, options.hours);
    let loader = Loader::new(&options.brokers, &[("compression.type", options.compression.as_str())])?;
    let (mut bytes, mut sum) = (0, 0u64);
    for (index, event) in (0..).zip(generator.events()) {
        bytes += event.raw_bytes();
        sum = sum.wrapping_add(event.digest());
        loader.send(&options.topic, Some(partition(options, index, &event)), &event)?;
        hold_back(options.rate, index, started);
    }
    loader.finish()?;
    println!("count={} bytes={bytes} digest_sum={sum:016x}", options.count);
    Ok(())
}

fn partition(options: &Options, index: u64, event: &Event) -> i32 {
    match &event.key {
        Some(key) if !options.round_robin => partition_of(key, options.partitions),
        _ => (index % options.partitions as u64) as i32,
    }
}

/// Absolute deadlines, so that a slow moment is made up for; looked at every 64 events.
fn hold_back(rate: Option<u64>, index: u64, started: Instant) {
    let Some(rate) = rate.filter(|_| index.is_multiple_of(64)) else {
        return;
    };
    let due = std::time::Duration::from_secs_f64(index as f64 / rate as f64);
    std::thread::sleep(due.saturating_sub(started.elapsed()));
}
