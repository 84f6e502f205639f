//! The floor below any archiver: reads a whole Kafka topic with our client settings, packs the values with zstd in 1 MB blocks,
//! and throws them away. No keys, no headers, no files, no commit.
//!
//! `floor --brokers 127.0.0.1:9092 --topic orders` prints events, bytes, packed bytes, CPU seconds and peak memory as JSON.
//! It reads through the same bulk call of the client as the archiver, on one thread, which also packs.
#![allow(clippy::disallowed_methods, reason = "a tool that measures how long it took")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use tapedeck_benches::inflow::cluster;
use tapedeck_benches::meter::{cpu_now, resident_peak_bytes};
use tapedeck_benches::yardstick::BLOCK_BYTES;
use tapedeck_kafka::admin::Cluster;
use zstd::bulk::Compressor;

/// Reads a topic and packs its values: what cannot be saved.
#[derive(Debug, Parser)]
struct Options {
    /// Bootstrap address of the broker.
    #[arg(long)]
    brokers: String,
    /// The topic.
    #[arg(long)]
    topic: String,
    /// zstd level; 0 only reads.
    #[arg(long, default_value_t = 1)]
    level: i32,
}

struct Packer {
    context: Option<Compressor<'static>>,
    block: Vec<u8>,
    out: Vec<u8>,
    packed: u64,
}

impl Packer {
    fn add(&mut self, value: &[u8]) -> std::io::Result<()> {
        if self.block.len() + value.len() > BLOCK_BYTES {
            self.pack()?;
        }
        self.block.extend_from_slice(value);
        Ok(())
    }

    fn pack(&mut self) -> std::io::Result<()> {
        if let Some(context) = &mut self.context {
            self.out.clear();
            self.out.reserve(zstd::zstd_safe::compress_bound(self.block.len()));
            self.packed += context.compress_to_buffer(&self.block, &mut self.out)? as u64;
        }
        self.block.clear();
        Ok(())
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let started = Instant::now();
    let reader = Cluster::open(&cluster(&options.brokers, &[]))?;
    let partitions = reader.topics()?.get(&options.topic).copied().unwrap_or(0);
    ensure!(partitions > 0, "no topic {}", options.topic);
    let mut spans = BTreeMap::new();
    for partition in 0..partitions {
        spans.insert(partition, reader.watermarks(&options.topic, partition)?);
    }
    let context = if options.level == 0 { None } else { Some(Compressor::new(options.level)?) };
    let mut packer = Packer { context, block: Vec::with_capacity(BLOCK_BYTES), out: Vec::new(), packed: 0 };
    let (mut events, mut bytes, mut failed) = (0_u64, 0_u64, None);
    reader.read_back(&options.topic, &spans, Duration::from_secs(30), |event| {
        let value = event.value().unwrap_or_default();
        events += 1;
        bytes += (value.len() + event.key().map_or(0, <[u8]>::len)) as u64;
        match packer.add(value) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    packer.pack()?;
    let figures = serde_json::json!({
        "events": events,
        "bytes": bytes,
        "packed_bytes": packer.packed,
        "cpu_s": cpu_now().as_secs_f64(),
        "wall_s": started.elapsed().as_secs_f64(),
        "peak_rss_bytes": resident_peak_bytes(),
    });
    println!("{figures}");
    Ok(())
}
