//! Partitions and groups move from broker to broker, brokers go and come back: nothing is lost, nothing is doubled.
//! The brokers are librdkafka's mock cluster, since the real one of the tests is a single process. `TAPEDECK_MOVES` sets how many
//! moves; the seed is printed.

#![allow(clippy::disallowed_methods, reason = "real programs live in real time; the seed is printed")]

mod support;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use support::{PATIENCE, Site, number};
use tapedeck_testbed::{MockBrokers, Truth, Witness, shared_s3, wait_until};

const PARTITIONS: i32 = 8;
const BROKERS: i32 = 3;
const CLIENT: &str =
    "client: { session.timeout.ms: '6000', heartbeat.interval.ms: '1000', topic.metadata.refresh.interval.ms: '500' }";
/// Between two moves.
const PAUSE: Duration = Duration::from_millis(250);

/// One move, or a broker that is down for a second: its partitions have no leader then.
fn strike(brokers: &MockBrokers, chance: &mut fastrand::Rng) -> Result<&'static str> {
    let (partition, broker) = (chance.i32(0..PARTITIONS), chance.i32(0..BROKERS));
    match chance.u32(0..10) {
        0..5 => brokers.lead("leaders", partition, broker).map(|()| "leader"),
        5..7 => brokers.coordinate("leaders", broker).map(|()| "coordinator"),
        _ => {
            brokers.set_down(broker, true)?;
            std::thread::sleep(PAUSE * 4);
            brokers.set_down(broker, false).map(|()| "broker down")
        }
    }
}

#[test]
fn moving_leaders_and_coordinators_lose_and_double_nothing() -> Result<()> {
    let (moves, seed) = (number("TAPEDECK_MOVES", 40), number("TAPEDECK_SEED", fastrand::u64(..)));
    println!("seed {seed}, {moves} moves");
    let mut chance = fastrand::Rng::with_seed(seed);
    let brokers = MockBrokers::start(BROKERS, "leaders", PARTITIONS)?;
    let site = Site::on_s3(shared_s3(), "leaders")?.source("main", &brokers.bootstrap(), "leaders", &["leaders"], CLIENT);
    let mut replicas = [site.archiver()?, site.archiver()?];
    let witness = Witness::start(&brokers.bootstrap(), "leaders", seed)?;
    site.wait_for_rows("leaders", 1).with_context(|| replicas[0].stderr())?;
    let mut struck = std::collections::BTreeMap::<&str, u32>::new();
    for _ in 0..moves {
        *struck.entry(strike(&brokers, &mut chance)?).or_default() += 1;
        std::thread::sleep(PAUSE);
        replicas.iter_mut().try_for_each(|replica| replica.must_run())?;
    }
    witness.rest().with_context(|| format!("seed {seed}"))?;
    // A broker that was down forgets that it has a batch: what the producer sends again is then on the bus twice (decision 0012).
    let (truth, twins) = witness.truth().with_twins(&Truth::from_bus(&brokers.bootstrap(), &["leaders"])?);
    println!("{struck:?}, {} events, {twins} of them on the bus twice", truth.len());
    wait_until("all that was acknowledged", PATIENCE, || {
        replicas.iter_mut().try_for_each(|replica| replica.must_run())?;
        Ok(site.rows("leaders")? >= truth.len())
    })?;
    replicas.iter().try_for_each(|replica| replica.terminate())?;
    for replica in replicas {
        let ended = replica.wait(PATIENCE)?;
        ensure!(ended.code == Some(0), "seed {seed}: {:?}\n{}", ended.code, ended.stderr);
    }
    let report = site.judge(&truth, "leaders")?;
    ensure!(report.is_clean(), "seed {seed}: {report}");
    site.verify(&["--deep"])?;
    Ok(())
}
