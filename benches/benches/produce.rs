//! What our producer costs, with headers, times and lanes that are tracked until they are confirmed, beside the client's own
//! plain send of keys and values.
//!
//! The bar of the design is against the client's bulk call (0.48), which no safe code can reach; where that was measured
//! beside the plain send, it cost 0.71 (A) and 0.82 (C) of it. The bars here are the same demand on this yardstick.
#![allow(missing_docs, reason = "a program")]

use std::process::ExitCode;

use anyhow::Result;
use bytes::Bytes;
use tapedeck_benches::broker::Broker;
use tapedeck_benches::outflow::{Outflow, plain, publish};
use tapedeck_benches::pairs::Options;
use tapedeck_benches::rows::{Rows, generator};
use tapedeck_benches::table::{Aim, Table};
use tapedeck_common::bus::Outgoing;
use tapedeck_testbed::Workload;

/// The replayer's, see `replayer/src/main.rs`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<ExitCode> {
    let options = Options::read();
    let mut table =
        Table::begin(&options, "produce", "the client's own send without headers / KafkaProducer with headers, confirmed");
    for (workload, count, aim) in [(Workload::A, 200_000, Aim::of(0.67, 0.84)), (Workload::C, 600_000, Aim::of(0.59, 0.74))] {
        let name = format!("{workload:?}");
        if options.wants(&name) {
            let broker = Broker::start("bench")?;
            let rows = Rows::as_on_the_bus(&generator(workload, options.scaled(count)));
            let values = shared_values(&rows);
            let ours = || publish(&broker, &[], rows.events, |out| feed(out, &broker.topic, &rows, &values));
            let pairs = options.pairs(|| plain(&broker, &rows), ours)?;
            table.row(&name, rows.bytes, rows.events, &pairs, aim);
        }
    }
    Ok(table.end())
}

/// As a replay has them: already in memory, and shared.
fn shared_values(rows: &Rows) -> Vec<Option<Bytes>> {
    let blocks = rows.chunks.iter().flatten();
    let values = blocks.flat_map(|(_, block)| (0..block.len()).map(|row| block.get(row).value.map(Bytes::copy_from_slice)));
    values.collect()
}

fn feed(out: &mut Outflow, topic: &str, rows: &Rows, values: &[Option<Bytes>]) -> Result<()> {
    let (mut headers, mut values) = (Vec::new(), values.iter());
    for (partition, block) in rows.chunks.iter().flatten() {
        for row in 0..block.len() {
            let event = block.get(row);
            headers.clear();
            headers.extend(block.headers.row(row));
            out.publish(&Outgoing {
                topic,
                partition: *partition,
                time: Some(event.time),
                key: event.key,
                value: values.next().and_then(Option::as_ref),
                headers: &headers,
                lane: partition.unsigned_abs(),
                position: event.position,
            })?;
        }
    }
    Ok(())
}
