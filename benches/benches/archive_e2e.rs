//! The whole way of an event into a segment, without a store and without a log: mock broker, consumer, batcher, encoder, parts
//! thrown away; beside the encoding of the same rows from memory.
#![allow(missing_docs, reason = "a program")]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use archiver::batcher::{Batcher, GroupKey};
use tapedeck_benches::broker::Broker;
use tapedeck_benches::inflow::{Step, consume};
use tapedeck_benches::meter::Meter;
use tapedeck_benches::pairs::Options;
use tapedeck_benches::rows::{Refill, Rows, generator, writer};
use tapedeck_benches::table::{Aim, Table};
use tapedeck_common::columns::{Columns, ColumnsPool};
use tapedeck_common::limits::{CHUNK_BYTES, PART_BYTES};
use tapedeck_common::{Position, Timestamp};
use tapedeck_storage::segment::{SegmentWriter, WriterOptions};
use tapedeck_testbed::Workload;
use tapedeck_testbed::events::BASE_MS;

const WORKLOADS: [(Workload, u64, Aim); 4] = [
    (Workload::A, 200_000, Aim::of(0.72, 0.85)),
    (Workload::B, 60_000, Aim::bar(0.75)),
    (Workload::C, 1_400_000, Aim::of(0.66, 0.80)),
    (Workload::D, 200_000, Aim::bar(0.55)),
];

fn main() -> Result<ExitCode> {
    let options = Options::read();
    let mut table =
        Table::begin(&options, "archive_e2e", "encoding of the same rows from memory / broker to segment, one thread");
    for (workload, count, aim) in WORKLOADS {
        let name = format!("{workload:?}");
        if options.wants(&name) {
            measure(&options, &mut table, &name, workload, options.scaled(count), aim)?;
        }
    }
    Ok(table.end())
}

fn measure(options: &Options, table: &mut Table, name: &str, workload: Workload, events: u64, aim: Aim) -> Result<()> {
    let events_of = generator(workload, events);
    let rows = Rows::as_on_the_bus(&events_of);
    let broker = Broker::start("bench")?;
    ensure!(broker.fill(&events_of, "none")? == rows.bytes, "the bus and the memory hold the same rows");
    let settings = WriterOptions::default();
    let pool = Arc::new(ColumnsPool::new(32 << 20));
    let mut refill = Refill::default();
    let from_memory = || encode(&rows, &mut refill, &settings);
    let pairs = options.pairs(from_memory, || archive(&broker, &pool, events, &settings))?;
    table.row(name, rows.bytes, events, &pairs, aim);
    Ok(())
}

fn encode(rows: &Rows, refill: &mut Refill, settings: &WriterOptions) -> Result<Duration> {
    let mut meter = Meter::default();
    let mut writer = writer(settings);
    for chunk in &rows.chunks {
        let blocks = refill.copy_of(chunk);
        let used = meter.count(|| put(&mut writer, blocks));
        refill.give_back(used);
    }
    let finished = meter.count(|| writer.finish());
    ensure!(finished.rows() == rows.events, "all rows are in the segment");
    Ok(meter.spent())
}

fn put(writer: &mut SegmentWriter, blocks: Vec<(i32, Columns)>) -> Vec<Columns> {
    let used = writer.write_chunk(blocks);
    drop(writer.take_parts(PART_BYTES));
    used
}

fn archive(broker: &Broker, pool: &Arc<ColumnsPool>, events: u64, settings: &WriterOptions) -> Result<Duration> {
    let mut batcher = Batcher::default();
    let mut segment = Some(writer(settings));
    let now = (Timestamp::from_micros(BASE_MS * 1_000), Duration::ZERO);
    let (mut rows, mut failed) = (0, None);
    let spent = consume(broker, pool, events, |step| match step {
        Step::Assigned(lanes) => lanes.iter().for_each(|lane| batcher.resume(&lane.lane, Position::default())),
        Step::Run(run) => {
            failed = failed.take().or(batcher.take_in(run, now, pool).err());
            let full = batcher.open().map_or_else(Vec::new, |open| open.full_groups(CHUNK_BYTES));
            full.iter().for_each(|key| feed(&mut batcher, key, segment.as_mut(), pool));
        }
        Step::End => {
            let rest: Vec<GroupKey> = batcher.open().map_or_else(Vec::new, |open| open.full_groups(1));
            rest.iter().for_each(|key| feed(&mut batcher, key, segment.as_mut(), pool));
            rows = segment.take().map_or(0, |segment| segment.finish().rows());
        }
    })?;
    if let Some(hole) = failed {
        return Err(hole.into());
    }
    ensure!(rows == events, "{rows} of {events} rows are in the segment");
    Ok(spent)
}

fn feed(batcher: &mut Batcher, key: &GroupKey, segment: Option<&mut SegmentWriter>, pool: &ColumnsPool) {
    let chunk = batcher.open_mut().and_then(|open| open.take_chunk(key));
    if let (Some(chunk), Some(segment)) = (chunk, segment) {
        put(segment, chunk.blocks).into_iter().for_each(|columns| pool.give_back(columns));
    }
}
