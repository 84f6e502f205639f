//! A limit of memory set from outside, as a pod's is: in one that is far too small the archiver is killed, and in one as large as
//! the chart's for its budget it is not, with a backfill behind it and the store slow, then away. Nothing is lost or doubled.
//! `TAPEDECK_BUDGET_MIB` and `TAPEDECK_LIMIT_MIB` set others; both need a memory cgroup, which only root may make.

#![allow(clippy::disallowed_methods, reason = "real servers live in real time")]

mod support;

use std::time::Duration;

use anyhow::{Result, ensure};
use support::{PATIENCE, Site, metric, number};
use tapedeck_testbed::{
    Admin, Generator, Loader, MemoryLimit, Running, S3Server, SlowLink, Truth, Weather, Workload, shared_kafka, wait_until,
};

const MIB: u64 = 1 << 20;
/// Enough for the program, and not for what it holds.
const FAR_TOO_SMALL: u64 = 72 * MIB;
/// Nothing of it can be compressed, and it is more than fits into memory at once.
const EVENTS: u64 = 220_000;
const SLOW: Weather = Weather { latency: Duration::from_millis(20), bytes_per_second: Some(2_000_000), silent: false };
const AWAY: Duration = Duration::from_secs(8);

fn started(site: &Site, limit: &MemoryLimit) -> Result<Running> {
    let config = site.config()?;
    site.program(&["run", "-c", &config.display().to_string()]).within(limit).start()
}

/// False where the machine is known to have no cgroups for us; then it was said where all is summed up.
fn has_cgroups() -> bool {
    let without = std::env::var("TAPEDECK_STORES_WITHOUT").unwrap_or_default();
    let has = !without.split_whitespace().any(|name| name == "cgroup");
    if !has {
        println!("not tested: a limit of memory, since TAPEDECK_STORES_WITHOUT names cgroup");
    }
    has
}

#[test]
fn a_pod_that_is_far_too_small_is_killed_and_one_of_the_charts_size_is_not() -> Result<()> {
    if !has_cgroups() {
        return Ok(());
    }
    let budget = number("TAPEDECK_BUDGET_MIB", 128);
    // The chart: a budget of 256 MiB in 512 MiB.
    let enough = number("TAPEDECK_LIMIT_MIB", 2 * budget) * MIB;
    let (kafka, s3) = (shared_kafka().bootstrap(), S3Server::start()?);
    Admin::new(&kafka)?.create_topic("limited", 4, &[("retention.ms", "-1")])?;
    let loader = Loader::new(&kafka, &[])?;
    for event in Generator::new(Workload::D, 5, EVENTS * budget / 128).events() {
        loader.send("limited", None, &event)?;
    }
    loader.finish()?;
    let truth = Truth::from_bus(&kafka, &["limited"])?;
    let link = SlowLink::to(s3.address(), Duration::ZERO)?;
    link.set(SLOW);
    let mut site = Site::on_s3(&s3, "limited")?.source("main", &kafka, "limited", &["limited"], "");
    site.daemon_endpoint = Some(format!("http://{}", link.address()));
    site.settings = site.settings.replace("128MiB", &format!("{budget}MiB"));
    is_killed(&site)?;
    goes_on(&site, enough, &s3, &link, truth.len())?;
    let report = site.judge(&truth, "limited")?;
    ensure!(report.is_clean(), "{report}");
    site.verify(&["--deep"])?;
    Ok(())
}

fn is_killed(site: &Site) -> Result<()> {
    let limit = MemoryLimit::new(FAR_TOO_SMALL)?;
    let ended = started(site, &limit)?.wait(PATIENCE)?;
    println!("in {} MiB: signal {:?}, {} kill(s)", FAR_TOO_SMALL / MIB, ended.signal, limit.kills()?);
    ensure!(ended.signal == Some(9) && limit.kills()? > 0, "{:?} {:?}\n{}", ended.code, ended.signal, ended.stderr);
    ensure!(ended.stderr.contains("batch opened"), "it never came to work:\n{}", ended.stderr);
    Ok(())
}

fn goes_on(site: &Site, enough: u64, s3: &S3Server, link: &SlowLink, rows: u64) -> Result<()> {
    let limit = MemoryLimit::new(enough)?;
    let mut archiver = started(site, &limit)?;
    archiver.wait_for_text("batch opened", PATIENCE)?;
    let mut held_max: f64 = 0.0;
    let mut held = |archiver: &mut Running| -> Result<f64> {
        archiver.must_run()?;
        held_max = held_max.max(metric(archiver, "tapedeck_archiver_buffered_bytes", "")?);
        Ok(held_max)
    };
    // The store is slow, so memory fills.
    wait_until("memory to fill", PATIENCE, || Ok(held(&mut archiver)? > enough as f64 / 4.0))?;
    s3.stop()?;
    // The outage itself is what is tested, so its length is real time.
    std::thread::sleep(AWAY);
    let held = held(&mut archiver)?;
    s3.start_again()?;
    link.heal();
    wait_until("all rows", PATIENCE, || {
        archiver.must_run()?;
        Ok(site.rows("limited")? >= rows)
    })?;
    let (rss, peak) = (archiver.peak_rss(), limit.peak()?);
    println!("in {} MiB: held {} MiB, RSS {} MiB, peak {} MiB", enough / MIB, held as u64 / MIB, rss / MIB, peak / MIB);
    archiver.terminate()?;
    let ended = archiver.wait(PATIENCE)?;
    ensure!(ended.code == Some(0) && limit.kills()? == 0, "{:?} {:?}\n{}", ended.code, ended.signal, ended.stderr);
    Ok(())
}
