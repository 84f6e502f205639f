//! What a segment costs to encode, and how small it gets: beside bare zstd over the values, and beside the general Parquet
//! writer with the same settings, since our own page encoder has to earn its place.
#![allow(missing_docs, reason = "a program")]

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tapedeck_benches::meter::{Meter, resident_bytes};
use tapedeck_benches::pairs::Options;
use tapedeck_benches::rival;
use tapedeck_benches::rows::{Refill, Rows, generator, writer};
use tapedeck_benches::table::{Aim, Table};
use tapedeck_benches::yardstick::compress;
use tapedeck_common::limits::{PART_BYTES, ROW_GROUP_BYTES};
use tapedeck_storage::segment::WriterOptions;
use tapedeck_testbed::Workload;

struct Case {
    workload: Workload,
    count: u64,
    /// The zstd level of values that the writer chooses for it.
    level: i32,
    speed: Aim,
    size: Aim,
}

const CASES: [Case; 3] = [
    Case { workload: Workload::A, count: 110_000, level: 1, speed: Aim::of(0.72, 0.85), size: Aim::of(4.75, 4.80) },
    Case { workload: Workload::B, count: 34_000, level: 3, speed: Aim::bar(0.85), size: Aim::of(4.83, 4.88) },
    Case { workload: Workload::C, count: 840_000, level: 1, speed: Aim::of(0.58, 0.70), size: Aim::of(4.82, 4.87) },
];

fn main() -> Result<ExitCode> {
    let options = Options::read();
    if let Some(who) = &options.child {
        return open_writers(who);
    }
    let mut table =
        Table::begin(&options, "encode", "zstd of the value bytes in 1 MB blocks, or the general writer / SegmentWriter");
    for case in CASES {
        if options.wants(&format!("{:?}", case.workload)) {
            measure(&options, &mut table, &case)?;
        }
    }
    if options.wants("memory") {
        let ours = memory("ours")?;
        let rival = memory("rival")?;
        table.figure("memory: 64 open writers, 2 MB of A each: ours", ours, "MB", Aim::NONE);
        table.figure("memory: the same, general writer", rival, "MB", Aim::NONE);
        table.figure("memory: general / ours", rival / ours, "", Aim::NONE);
    }
    Ok(table.end())
}

fn measure(options: &Options, table: &mut Table, case: &Case) -> Result<()> {
    let rows = Rows::as_on_the_bus(&generator(case.workload, options.scaled(case.count)));
    let values = rows.values();
    let name = format!("{:?} z{}", case.workload, case.level);
    let settings = WriterOptions::default();
    let mut refill = Refill::default();
    let bare = || {
        let mut meter = Meter::default();
        meter.count(|| compress(case.level, &values))?;
        Ok(meter.spent())
    };
    let pairs = options.pairs(bare, || Ok(encode(&rows, &mut refill, &settings)?.0))?;
    table.row(&format!("{name} / zstd"), rows.bytes, rows.events, &pairs, case.speed);

    let sizes = (encode(&rows, &mut refill, &settings)?.1, encode_by_rival(&rows, case.level)?.1);
    let pairs = options.pairs(|| Ok(encode_by_rival(&rows, case.level)?.0), || Ok(encode(&rows, &mut refill, &settings)?.0))?;
    table.row(&format!("{name} / general"), rows.bytes, rows.events, &pairs, Aim::NONE);
    table.figure(&format!("{name} raw bytes / encoded"), rows.bytes as f64 / sizes.0 as f64, "", case.size);
    table.figure(&format!("{name} general encoded / ours encoded"), sizes.1 as f64 / sizes.0 as f64, "", Aim::NONE);
    Ok(())
}

/// CPU time and encoded bytes.
fn encode(rows: &Rows, refill: &mut Refill, settings: &WriterOptions) -> Result<(Duration, u64)> {
    let mut meter = Meter::default();
    let mut writer = writer(settings);
    for chunk in &rows.chunks {
        let blocks = refill.copy_of(chunk);
        let used = meter.count(|| {
            let used = writer.write_chunk(blocks);
            drop(writer.take_parts(PART_BYTES));
            used
        });
        refill.give_back(used);
    }
    let finished = meter.count(|| writer.finish());
    ensure!(finished.rows() == rows.events, "all rows are in the segment");
    Ok((meter.spent(), finished.size()))
}

/// The same by the general writer. Making its batches is not counted, which favours it.
fn encode_by_rival(rows: &Rows, level: i32) -> Result<(Duration, u64)> {
    let mut meter = Meter::default();
    let sink = Counted::default();
    let row_bytes = rows.bytes / rows.events + tapedeck_common::columns::ROW_OVERHEAD_BYTES as u64;
    let mut writer = rival::writer(sink, level, ROW_GROUP_BYTES / row_bytes as usize)?;
    for chunk in &rows.chunks {
        let mut chunk: Vec<_> = chunk.iter().collect();
        chunk.sort_by_key(|(partition, _)| *partition);
        let batches = chunk.iter().map(|(partition, block)| rival::record_batch(*partition, block));
        let batches = batches.collect::<Result<Vec<_>>>()?;
        meter.count(|| batches.iter().try_for_each(|batch| writer.write(batch)))?;
    }
    let sink = meter.count(|| writer.into_inner())?;
    Ok((meter.spent(), sink.0))
}

/// Counts bytes and forgets them. Ours also hashes them and keeps them as parts, which is counted against it.
#[derive(Default)]
struct Counted(u64);

impl std::io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

const WRITERS: usize = 64;

/// Memory is measured in a process of its own, where nothing was freed before.
fn memory(who: &str) -> Result<f64> {
    let child = Command::new(std::env::current_exe()?).args(["--child", who]).output()?;
    let said = String::from_utf8_lossy(&child.stdout).into_owned();
    said.trim().parse().with_context(|| format!("{said}{}", String::from_utf8_lossy(&child.stderr)))
}

/// Opens 64 writers, puts 2 MB of rows into each, and prints by how many MB the process grew.
fn open_writers(who: &str) -> Result<ExitCode> {
    let rows = Rows::in_one_lane(&generator(Workload::A, 1_700));
    let settings = WriterOptions::default();
    let mut refill = Refill::default();
    // One writer before, so that what all of them share is not counted.
    let mut warm = writer(&settings);
    let blocks = refill.copy_of(&rows.chunks[0]);
    refill.give_back(warm.write_chunk(blocks));
    let blocks = rows.chunks.iter().flatten();
    let batches = blocks.map(|(partition, block)| rival::record_batch(*partition, block)).collect::<Result<Vec<_>>>()?;
    let before = resident_bytes();
    let (mut ours, mut rivals) = (Vec::new(), Vec::new());
    for _ in 0..WRITERS {
        if who == "ours" {
            let mut writer = writer(&settings);
            for chunk in &rows.chunks {
                let blocks = refill.copy_of(chunk);
                refill.give_back(writer.write_chunk(blocks));
            }
            ours.push(writer);
        } else {
            let mut writer = rival::writer(Counted::default(), 1, ROW_GROUP_BYTES / 1_300)?;
            batches.iter().try_for_each(|batch| writer.write(batch))?;
            rivals.push(writer);
        }
    }
    println!("{:.3}", resident_bytes().saturating_sub(before) as f64 / 1e6);
    drop((ours, rivals, warm));
    Ok(ExitCode::SUCCESS)
}
