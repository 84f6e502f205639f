//! Planning one hour out of a million segments and out of ten million, opening a writer there, and making the next checkpoint.
//! Each is done by a fresh process, so that its memory is its own.
#![allow(missing_docs, reason = "a program")]

use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use tapedeck_benches::catalog::{self, Catalog, SEGMENTS_PER_HOUR, TABLE};
use tapedeck_benches::meter::{Meter, resident_peak_bytes};
use tapedeck_benches::pairs::{Options, median};
use tapedeck_benches::table::{Aim, Table};
use tapedeck_common::{Timestamp, Window};
use tapedeck_daemon::SystemClock;
use tapedeck_storage::log::checkpoint::{Shape, write_checkpoint};
use tapedeck_storage::log::{LogReader, Slice, TableLog, TableOptions, TableView};

/// Segments, and what one hour may cost: CPU milliseconds and megabytes.
const SIZES: [(&str, u64, f64, f64); 2] = [("1M", 1_000_000, 50.0, 40.0), ("10M", 10_000_000, 150.0, 80.0)];

/// What one splice into a million segments may cost, in CPU seconds.
const SPLICE_SECONDS: f64 = 0.45;

fn main() -> Result<ExitCode> {
    let options = Options::read();
    if let Some(task) = &options.child {
        child(task)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::begin(&options, "plan", "how far below its bar each cost stays (bar / cost); costs are medians");
    for (name, segments, millis, megabytes) in SIZES {
        if options.wants(name) {
            measure(&options, &mut table, name, options.scaled(segments), (millis, megabytes))?;
        }
    }
    Ok(table.end())
}

fn measure(options: &Options, table: &mut Table, name: &str, segments: u64, (millis, megabytes): (f64, f64)) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut catalog = Catalog::make(folder.path(), segments)?;
    println!("  {name}: {segments} segments, checkpoint of {:.1} MB", catalog.checkpoint_bytes()? as f64 / 1e6);
    let ago = |hours: u64| catalog.newest.start().micros() - 3_600_000_000 * hours as i64;
    let (middle, newest) = (ago(segments / SEGMENTS_PER_HOUR / 2), ago(1));
    for (what, hour) in [("an old hour", middle), ("the newest whole hour", newest)] {
        let costs = repeat(options, || run(folder.path(), &format!("plan {hour}")))?;
        show(table, &format!("{name} plan {what}"), &costs, Some((millis / 1e3, megabytes)));
    }
    // What a table looks like just before its next checkpoint.
    catalog.hundred_records()?;
    let costs = repeat(options, || run(folder.path(), &format!("plan {middle}")))?;
    show(table, &format!("{name} plan, 100 records later"), &costs, None);
    let costs = repeat(options, || run(folder.path(), "open 0"))?;
    show(table, &format!("{name} open a writer"), &costs, None);
    let splice = || {
        let cost = run(folder.path(), &format!("splice {}", catalog.next - 1))?;
        catalog.drop_checkpoint()?;
        Ok(cost)
    };
    let costs = repeat(options, splice)?;
    show(table, &format!("{name} splice 100 records"), &costs, (name == "1M").then_some((SPLICE_SECONDS, f64::INFINITY)));
    Ok(())
}

/// CPU seconds and peak megabytes.
type Cost = (f64, f64);

fn repeat(options: &Options, mut once: impl FnMut() -> Result<Cost>) -> Result<Vec<Cost>> {
    (0..options.rounds.max(1)).map(|_| once()).collect()
}

fn show(table: &mut Table, name: &str, costs: &[Cost], bars: Option<Cost>) {
    let (seconds, megabytes) = (median(costs.iter().map(|cost| cost.0)), median(costs.iter().map(|cost| cost.1)));
    let mut line = |what: String, bar: Option<f64>, cost: f64| match bar.filter(|bar| bar.is_finite()) {
        Some(bar) => table.figure(&format!("{name}: {what}"), bar / cost, "x below", Aim::bar(1.0)),
        None => println!("  {name}: {what}"),
    };
    line(format!("{:.1} ms CPU", seconds * 1e3), bars.map(|bars| bars.0), seconds);
    line(format!("{megabytes:.1} MB peak"), bars.map(|bars| bars.1), megabytes);
}

fn run(folder: &Path, task: &str) -> Result<Cost> {
    let child = Command::new(std::env::current_exe()?).args(["--child", &format!("{task} {}", folder.display())]).output()?;
    ensure!(child.status.success(), "{task}: {}", String::from_utf8_lossy(&child.stderr));
    let text = String::from_utf8(child.stdout)?;
    let mut numbers = text.split_whitespace().map(str::parse::<f64>);
    let mut next = || numbers.next().context("two numbers")?.context("a number");
    Ok((next()?, next()?))
}

/// `plan <micros> <folder>`, `open 0 <folder>`, `splice <version> <folder>`: prints CPU seconds and peak megabytes.
fn child(task: &str) -> Result<()> {
    let mut words = task.splitn(3, ' ');
    let mut next = || words.next().context("three words");
    let (what, number, folder) = (next()?, next()?.parse::<i64>()?, next()?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut meter = Meter::default();
    meter.count(|| runtime.block_on(work(what, number, Path::new(folder))))?;
    println!("{} {}", meter.spent().as_secs_f64(), resident_peak_bytes() as f64 / 1e6);
    Ok(())
}

async fn work(what: &str, number: i64, folder: &Path) -> Result<()> {
    let store = catalog::open(folder)?;
    match what {
        "plan" => {
            let hour = Window::of(Timestamp::from_micros(number));
            let slice = Slice { topics: [TABLE.to_owned()].into(), from: Some(hour.start()), until: Some(hour.end()) };
            let view = TableView::load_matching(&store, TABLE, None, &slice).await?;
            ensure!(view.segments.len() as u64 >= SEGMENTS_PER_HOUR / 2, "{} segments in {hour}", view.segments.len());
        }
        "open" => {
            let (clock, rng) = (Arc::new(SystemClock::default()), fastrand::Rng::with_seed(7));
            TableLog::open(&store, TableOptions::of(TABLE, "bench"), clock, rng, Arc::new(())).await?;
        }
        "splice" => write_checkpoint(&LogReader::new(&store, TABLE), number.unsigned_abs(), Shape::default()).await?,
        other => bail!("no such task: {other}"),
    }
    Ok(())
}
