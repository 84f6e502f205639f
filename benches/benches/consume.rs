//! What our consumer costs beside the least that the Kafka client can do: both read the same topic, ours copies every event,
//! headers included, into columns.
#![allow(missing_docs, reason = "a program")]

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use tapedeck_benches::broker::Broker;
use tapedeck_benches::inflow::{Step, Touched, consume, touch};
use tapedeck_benches::pairs::Options;
use tapedeck_benches::rows::generator;
use tapedeck_benches::table::{Aim, Table};
use tapedeck_common::columns::ColumnsPool;
use tapedeck_testbed::Workload;

fn main() -> Result<ExitCode> {
    let options = Options::read();
    let mut table = Table::begin(&options, "consume", "the client's bulk read, only touched / KafkaConsumer with copies");
    for (workload, count) in [(Workload::A, 200_000), (Workload::C, 1_400_000)] {
        for compression in ["none", "lz4"] {
            let name = format!("{workload:?} {compression}");
            if options.wants(&name) {
                measure(&options, &mut table, &name, workload, options.scaled(count), compression)?;
            }
        }
    }
    Ok(table.end())
}

fn measure(options: &Options, table: &mut Table, name: &str, workload: Workload, events: u64, compression: &str) -> Result<()> {
    let broker = Broker::start("bench")?;
    let bytes = broker.fill(&generator(workload, events), compression)?;
    let pool = Arc::new(ColumnsPool::new(16 << 20));
    let subject = || {
        consume(&broker, &pool, events, |step| {
            if let Step::Run(run) = step {
                pool.give_back(run.events);
            }
        })
    };
    let pairs = options.pairs(|| touch(&broker, events, Touched::Values), subject)?;
    table.row(name, bytes, events, &pairs, Aim::of(0.55, 0.70));
    let pairs = options.pairs(|| touch(&broker, events, Touched::Headers), subject)?;
    table.row(&format!("{name}, headers too"), bytes, events, &pairs, Aim::NONE);
    Ok(())
}
