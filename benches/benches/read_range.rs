//! Reading one per cent of a segment by time, beside reading all of it.
#![allow(missing_docs, reason = "a program")]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use tapedeck_benches::meter::Meter;
use tapedeck_benches::pairs::Options;
use tapedeck_benches::rows::{Rows, generator};
use tapedeck_benches::table::{Aim, Table};
use tapedeck_common::Timestamp;
use tapedeck_storage::segment::{Scan, SegmentReader};
use tapedeck_testbed::Workload;
use tapedeck_testbed::events::{BASE_MS, HOUR_MS};

/// A range is so quick to read that one reading is hardly measured.
const TIMES: u32 = 10;

/// Where the value column stands in layout 1.
const VALUE_LEAF: usize = 8;

fn main() -> Result<ExitCode> {
    let options = Options::read();
    let mut table =
        Table::begin(&options, "read_range", "full scan / scan of 1 % by time, of 203 MB sorted by time, opening included");
    let rows = Rows::in_one_lane(&generator(Workload::A, options.scaled(165_450)));
    let object = rows.segment();
    let span = (0.95 * HOUR_MS as f64) as i64;
    let at = |share: f64| Timestamp::from_micros((BASE_MS + (span as f64 * share) as i64) * 1_000);
    let scan = Scan { times: Some((at(0.500), at(0.510))), ..Scan::default() };
    let full = || {
        let (spent, events) = read(&object, &Scan::default(), 1)?;
        ensure!(events == rows.events, "all events");
        Ok(spent)
    };
    let mut hits = 0;
    let range = || {
        let (spent, events) = read(&object, &scan, TIMES)?;
        hits = events;
        Ok(spent / TIMES)
    };
    let pairs = options.pairs(full, range)?;
    table.row("A 1 %", rows.bytes, rows.events, &pairs, Aim::of(20.0, 50.0));
    let hundredth = rows.events.div_ceil(100);
    ensure!(hits.abs_diff(hundredth) <= 2, "{hits} of {} events are a hundredth", rows.events);
    let (met, bytes) = pages_met(&object, rows.events / 2, hits)?;
    table.figure("rows handed over / hits (bar: at most 1.2)", 1.0, "", Aim::NONE);
    table.figure("rows of the value pages that are read / hits", met as f64 / hits as f64, "", Aim::NONE);
    table.figure(
        "bytes of those pages, % of the object (goal: at most 3)",
        bytes as f64 * 100.0 / object.len() as f64,
        "%",
        Aim::NONE,
    );
    Ok(table.end())
}

fn read(object: &Bytes, scan: &Scan, times: u32) -> Result<(Duration, u64)> {
    let mut meter = Meter::default();
    let mut events = 0;
    for _ in 0..times {
        events = meter.count(|| visit(object, scan))?;
    }
    Ok((meter.spent(), events))
}

fn visit(object: &Bytes, scan: &Scan) -> Result<u64> {
    let reader = SegmentReader::from_bytes("bench", object.clone())?;
    let mut seen = (0, 0);
    for batch in reader.batches(scan.clone()) {
        let batch = batch?;
        for row in 0..batch.len() {
            seen = (seen.0 + 1, seen.1 + batch.row(row).value.map_or(0, <[u8]>::len));
        }
    }
    ensure!(seen.1 > 0, "values are looked at");
    Ok(seen.0)
}

/// Rows and bytes of the value pages that hold the rows from `first` on.
fn pages_met(object: &Bytes, first: u64, rows: u64) -> Result<(u64, u64)> {
    let reader = SegmentReader::from_bytes("bench", object.clone())?;
    let (mut at, mut met) = (0, (0, 0));
    for group in 0..reader.footer().num_row_groups() {
        let index = reader.footer().page_index_for_row_group(group);
        let pages = index.page_locations(VALUE_LEAF).context("the page index is there")?;
        let group_rows = reader.footer().row_group(group).num_rows().unsigned_abs();
        for (number, page) in pages.iter().enumerate() {
            let from = page.first_row_index.unsigned_abs();
            let until = pages.get(number + 1).map_or(group_rows, |next| next.first_row_index.unsigned_abs());
            if at + from < first + rows && first < at + until {
                met = (met.0 + until - from, met.1 + u64::from(page.compressed_page_size.unsigned_abs()));
            }
        }
        at += group_rows;
    }
    Ok(met)
}
