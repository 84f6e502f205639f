//! The whole way of an event out of a segment and onto a bus, without pacing and cursor: reader, markers, producer; beside
//! decoding alone and the bare encoding of Kafka's record batches.
//!
//! Rows called "marked" carry the five headers of a replay, which the yardstick does not.
#![allow(missing_docs, reason = "a program")]

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, ensure};
use replayer::markers::{LaneMarks, MarkText};
use tapedeck_benches::broker::Broker;
use tapedeck_benches::meter::Meter;
use tapedeck_benches::outflow::{Outflow, publish};
use tapedeck_benches::pairs::Options;
use tapedeck_benches::rows::{PARTITIONS, Rows, generator, source};
use tapedeck_benches::table::{Aim, Table};
use tapedeck_benches::yardstick::BatchEncoder;
use tapedeck_common::LaneId;
use tapedeck_common::bus::Outgoing;
use tapedeck_storage::segment::{Scan, SegmentReader};
use tapedeck_testbed::Workload;

const NONE: &[(&str, &str)] = &[];
const ZSTD: &[(&str, &str)] = &[("compression.type", "zstd"), ("compression.level", "1")];

struct Case {
    workload: Workload,
    name: &'static str,
    client: &'static [(&'static str, &'static str)],
    zstd: Option<i32>,
    marked: bool,
    aim: Aim,
}

const CASES: [Case; 5] = [
    Case { workload: Workload::A, name: "A none", client: NONE, zstd: None, marked: false, aim: Aim::of(0.26, 0.32) },
    Case { workload: Workload::A, name: "A none marked", client: NONE, zstd: None, marked: true, aim: Aim::NONE },
    Case { workload: Workload::A, name: "A zstd 1", client: ZSTD, zstd: Some(1), marked: false, aim: Aim::bar(0.30) },
    Case { workload: Workload::C, name: "C none", client: NONE, zstd: None, marked: false, aim: Aim::bar(0.16) },
    Case { workload: Workload::C, name: "C none marked", client: NONE, zstd: None, marked: true, aim: Aim::NONE },
];

/// The replayer's, see `replayer/src/main.rs`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<ExitCode> {
    let options = Options::read();
    let mut table =
        Table::begin(&options, "replay_e2e", "decoding and bare record batches / reader and KafkaProducer, confirmed");
    for case in &CASES {
        if options.wants(case.name) {
            measure(&options, &mut table, case)?;
        }
    }
    Ok(table.end())
}

fn measure(options: &Options, table: &mut Table, case: &Case) -> Result<()> {
    let count = if case.workload == Workload::A { 204_000 } else { 621_000 };
    let rows = Rows::as_on_the_bus(&generator(case.workload, options.scaled(count)));
    let reader = SegmentReader::from_bytes("bench", rows.segment())?;
    let broker = Broker::start("bench")?;
    let least = || {
        let mut meter = Meter::default();
        let events = meter.count(|| encode_batches(&reader, case.zstd))?;
        ensure!(events == rows.events, "all events");
        Ok(meter.spent())
    };
    let replay = || publish(&broker, case.client, rows.events, |out| feed(out, &broker.topic, &reader, case.marked));
    let pairs = options.pairs(least, replay)?;
    table.row(case.name, rows.bytes, rows.events, &pairs, case.aim);
    Ok(())
}

fn encode_batches(reader: &SegmentReader, zstd: Option<i32>) -> Result<u64> {
    let mut encoders = (0..PARTITIONS).map(|_| BatchEncoder::new(zstd)).collect::<Result<Vec<_>>>()?;
    let mut events = 0;
    for batch in reader.batches(Scan::default()) {
        let batch = batch?;
        let mut headers = Vec::new();
        for row in 0..batch.len() {
            let event = batch.row(row);
            batch.headers(row, &mut headers);
            encoders[event.partition as usize].push(event.time.millis_floor(), event.key, event.value, &headers)?;
            events += 1;
        }
    }
    for encoder in &mut encoders {
        encoder.flush()?;
    }
    ensure!(encoders.iter().any(|encoder| encoder.written > 0 && encoder.checksums != 0), "batches were made");
    Ok(events)
}

fn feed(out: &mut Outflow, topic: &str, reader: &SegmentReader, marked: bool) -> Result<()> {
    let marks: Vec<LaneMarks> =
        (0..PARTITIONS).map(|partition| LaneMarks::new(&LaneId::new(source(), partition), "bench")).collect();
    for batch in reader.batches(Scan::default()) {
        let mut batch = batch?;
        batch.lend(&Arc::new(()));
        let mut text = MarkText::default();
        for row in 0..batch.len() {
            let event = batch.row(row);
            let lane = &marks[event.partition as usize];
            // A list for each event, since the marks are lent from a text that changes; the replayer reuses its memory.
            let mut headers = Vec::with_capacity(8);
            batch.headers(row, &mut headers);
            if marked {
                text.write(lane, event.position, event.time.millis_floor(), &headers);
                text.append("bench", lane, &mut headers);
            }
            out.publish(&Outgoing {
                topic,
                partition: event.partition,
                time: Some(event.time),
                key: event.key,
                value: batch.shared_value(row).as_ref(),
                headers: &headers,
                lane: event.partition.unsigned_abs(),
                position: event.position,
            })?;
        }
    }
    Ok(())
}
