//! Reading a whole segment back, every event looked at, beside bare decompression of the same values.
#![allow(missing_docs, reason = "a program")]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use tapedeck_benches::meter::Meter;
use tapedeck_benches::pairs::Options;
use tapedeck_benches::rows::{Rows, generator};
use tapedeck_benches::table::{Aim, Table};
use tapedeck_benches::yardstick::{compressed, decompress};
use tapedeck_storage::segment::{Scan, SegmentReader};
use tapedeck_testbed::Workload;

fn main() -> Result<ExitCode> {
    let options = Options::read();
    let mut table =
        Table::begin(&options, "read_scan", "zstd 1 decompression of the values / scan of the segment, headers included");
    for (workload, count, aim) in [(Workload::A, 165_000, Aim::of(0.60, 0.75)), (Workload::C, 1_200_000, Aim::bar(0.56))] {
        let name = format!("{workload:?}");
        if !options.wants(&name) {
            continue;
        }
        let rows = Rows::as_on_the_bus(&generator(workload, options.scaled(count)));
        let values = rows.values();
        let blocks = compressed(1, &values)?;
        let reader = SegmentReader::from_bytes("bench", rows.segment())?;
        let bare = || {
            let mut meter = Meter::default();
            ensure!(meter.count(|| decompress(&blocks))? == values.len() as u64, "all bytes come back");
            Ok(meter.spent())
        };
        let pairs = options.pairs(bare, || scan(&reader, &rows))?;
        table.row(&name, rows.bytes, rows.events, &pairs, aim);
    }
    Ok(table.end())
}

fn scan(reader: &SegmentReader, rows: &Rows) -> Result<Duration> {
    let mut meter = Meter::default();
    let (events, bytes) = meter.count(|| visit(reader))?;
    ensure!((events, bytes) == (rows.events, rows.bytes), "{events} events with {bytes} bytes");
    Ok(meter.spent())
}

fn visit(reader: &SegmentReader) -> Result<(u64, u64)> {
    let (mut events, mut bytes) = (0, 0);
    for batch in reader.batches(Scan::default()) {
        let batch = batch?;
        let mut headers = Vec::new();
        for row in 0..batch.len() {
            let event = batch.row(row);
            batch.headers(row, &mut headers);
            let in_headers: usize = headers.iter().map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len)).sum();
            bytes += event.key.map_or(0, <[u8]>::len) + event.value.map_or(0, <[u8]>::len) + in_headers;
            events += 1;
        }
    }
    Ok((events, bytes as u64))
}
