//! SIGTERM at any moment ends the archiver in time: with code 0 while all is well, and with the store or the broker away with
//! 0 or 1 and nothing lost. `TAPEDECK_SHUTDOWNS` sets how often; the moments follow the seed, which is printed.

#![allow(clippy::disallowed_methods, reason = "real servers live in real time; the seed is printed")]

mod support;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use support::{PATIENCE, Site, number};
use tapedeck_testbed::{
    Ended, KafkaOptions, KafkaServer, Running, S3Server, Truth, Witness, shared_kafka, shared_s3, wait_until,
};

/// What orchestrators give a process is 30 s.
const PROMISE: Duration = Duration::from_secs(25);
const CLIENT: &str = "client: { session.timeout.ms: '6000', heartbeat.interval.ms: '1000' }";

/// TERM, then its end within the promise.
fn end(archiver: Running) -> Result<(Ended, Duration)> {
    let began = Instant::now();
    archiver.terminate()?;
    let ended = archiver.wait(PROMISE)?;
    Ok((ended, began.elapsed()))
}

/// Everything acknowledged to the producer is archived once.
fn judged(site: &Site, truth: &Truth, table: &str) -> Result<()> {
    let archiver = site.archiver()?;
    site.wait_for_rows(table, truth.len())?;
    ensure!(end(archiver)?.0.code == Some(0));
    let report = site.judge(truth, table)?;
    ensure!(report.is_clean(), "{report}");
    site.verify(&["--deep"])?;
    Ok(())
}

#[test]
fn term_at_any_moment_under_load_ends_with_0_in_time_and_loses_nothing() -> Result<()> {
    let (times, seed) = (number("TAPEDECK_SHUTDOWNS", 8), number("TAPEDECK_SEED", fastrand::u64(..)));
    println!("seed {seed}, {times} shutdowns");
    let mut chance = fastrand::Rng::with_seed(seed);
    let kafka = shared_kafka().bootstrap();
    tapedeck_testbed::Admin::new(&kafka)?.create_topic("term", 4, &[("retention.ms", "-1")])?;
    let site = Site::on_s3(shared_s3(), "term")?.source("main", &kafka, "term", &["term"], CLIENT);
    let witness = Witness::start(&kafka, "term", seed)?;
    let mut took = Vec::new();
    for time in 0..times {
        let mut archiver = site.archiver()?;
        // Some end while they start, most under load. Until its first word a process obeys no signals of its own: it has begun nothing.
        archiver.wait_for_text(if time % 4 == 3 { "admin endpoint" } else { "batch opened" }, PATIENCE)?;
        std::thread::sleep(Duration::from_millis(chance.u64(0..3_000)));
        let (ended, elapsed) = end(archiver).with_context(|| format!("seed {seed}, shutdown {time}"))?;
        ensure!(ended.code == Some(0), "seed {seed}, shutdown {time}: {:?}\n{}", ended.code, ended.stderr);
        took.push(elapsed);
    }
    took.sort();
    println!("{times} shutdowns, half within {:?}, all within {:?}", took[took.len() / 2], took[took.len() - 1]);
    witness.rest()?;
    judged(&site, &witness.truth(), "term")
}

/// The default grace is as long as the promise, so these set a shorter one and leave the rest of the promise as margin.
const GRACE: &str = "shutdown: { grace: 5s }\n";

#[test]
fn term_with_the_store_away_ends_with_1_in_time_and_loses_nothing() -> Result<()> {
    let (kafka, s3) = (shared_kafka().bootstrap(), S3Server::start()?);
    tapedeck_testbed::Admin::new(&kafka)?.create_topic("term-store", 4, &[("retention.ms", "-1")])?;
    let mut site = Site::on_s3(&s3, "term-store")?.source("main", &kafka, "term-store", &["term-store"], CLIENT);
    site.settings.push_str(GRACE);
    let witness = Witness::start(&kafka, "term-store", 3)?;
    let mut archiver = site.archiver()?;
    site.wait_for_rows("term-store", 1)?;
    s3.stop()?;
    // It has something that has nowhere to go, and has met the closed door.
    wait_until("a store that does not answer", PATIENCE, || {
        archiver.must_run()?;
        Ok(archiver.stderr().matches(", trying again").count() > 0)
    })?;
    let (ended, elapsed) = end(archiver)?;
    println!("with the store away: code {:?} after {elapsed:?}", ended.code);
    ensure!(ended.code == Some(1), "{:?}\n{}", ended.code, ended.stderr);
    s3.start_again()?;
    witness.rest()?;
    judged(&site, &witness.truth(), "term-store")
}

#[test]
fn term_with_the_broker_away_ends_in_time_and_loses_nothing() -> Result<()> {
    let kafka = KafkaServer::start(KafkaOptions::default())?;
    let bootstrap = kafka.bootstrap();
    tapedeck_testbed::Admin::new(&bootstrap)?.create_topic("term-broker", 4, &[("retention.ms", "-1")])?;
    let mut site = Site::on_s3(shared_s3(), "term-broker")?.source("main", &bootstrap, "term-broker", &["term-broker"], CLIENT);
    site.settings.push_str(GRACE);
    let witness = Witness::start(&bootstrap, "term-broker", 4)?;
    let archiver = site.archiver()?;
    site.wait_for_rows("term-broker", 1)?;
    kafka.kill9()?;
    let (ended, elapsed) = end(archiver)?;
    println!("with the broker away: code {:?} after {elapsed:?}", ended.code);
    // What it holds can be stored without a broker; only leaving the group may not end.
    ensure!(matches!(ended.code, Some(0 | 1)), "{:?}\n{}", ended.code, ended.stderr);
    kafka.start_again()?;
    witness.rest()?;
    // A killed broker forgets that it has a batch: what the producer sends again is then on the bus twice (decision 0012).
    let (truth, twins) = witness.truth().with_twins(&Truth::from_bus(&bootstrap, &["term-broker"])?);
    println!("{twins} events are on the bus twice");
    judged(&site, &truth, "term-broker")
}
