//! Faults on real servers: three replicas archive what a producer goes on producing, while replicas, broker, store and the
//! links between them fail. Then all is healed, the archive must be complete in time, and the oracle counts what is wrong.
//!
//! A few faults, one at a time, belong to the ordinary tests. `make chaos MINUTES=n` draws rounds of all of them by chance; the
//! seed is printed, and `SEED=n` draws the same rounds again.

#![allow(clippy::disallowed_methods, reason = "real servers live in real time; the seed is printed")]
#![allow(missing_docs, unreachable_pub, reason = "tests")]

mod plan;
#[path = "../support/mod.rs"]
mod support;
mod verdict;
mod world;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use plan::{Fault, What};
use support::number;
use verdict::{HEAD, Verdict};
use world::{Strikes, World};

/// One world at a time: each takes a machine of two cores for itself.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A round with these faults: nothing may be wrong, and each of them must have struck.
fn survives(topic: &'static str, faults: &[Fault]) -> Result<(World, Verdict)> {
    let seed = number("TAPEDECK_SEED", 11);
    let mut world = World::start(topic, seed)?;
    let verdict = world.round(&plan::only(seed, faults))?;
    println!("seed {seed} {:?}\n{HEAD}\n{verdict}", world.struck);
    ensure!(verdict.is_clean(), "seed {seed}: {verdict}\n{}", verdict.examples.join("\n"));
    for fault in faults {
        let (_, struck) = world.struck.get(fault).copied().unwrap_or_default();
        ensure!(struck > 0, "{fault:?} never struck, so nothing was tested");
    }
    Ok((world, verdict))
}

#[test]
fn a_zombie_changes_hides_and_doubles_nothing() -> Result<()> {
    let _alone = alone();
    survives("zombie", &[Fault::Zombie])?.0.stop()
}

/// `TAPEDECK_STORM_SECONDS` sets how long it lasts. Something must be archived in every minute of it.
#[test]
fn a_rebalance_storm_loses_nothing_and_does_not_stop_the_archive() -> Result<()> {
    let _alone = alone();
    let mut world = World::start("storm", 11)?;
    let length = Duration::from_secs(number("TAPEDECK_STORM_SECONDS", 16));
    let verdict = world.round(&plan::lasting(Fault::Storm, length))?;
    let archived = &world.archived_in_storm;
    println!("archived every two seconds: {archived:?}\n{HEAD}\n{verdict}");
    let minute = (archived.len() - 1).min(30);
    let stalled = archived.iter().zip(&archived[minute..]).position(|(before, after)| before == after);
    ensure!(stalled.is_none(), "nothing was archived for a minute, or for the whole storm: {archived:?}");
    ensure!(verdict.is_clean(), "{verdict}\n{}", verdict.examples.join("\n"));
    world.stop()
}

#[test]
fn a_broker_that_stops_dies_and_resets_connections_delays_and_loses_nothing() -> Result<()> {
    let _alone = alone();
    let mut world = survives("broker", &[Fault::BrokerKilled])?.0;
    let verdict = world.round(&plan::only(12, &[Fault::BrokerReset]))?;
    ensure!(verdict.is_clean(), "{verdict}\n{}", verdict.examples.join("\n"));
    ensure!(world.struck[&Fault::BrokerReset].1 > 0, "no connection was reset");
    world.stop()
}

#[test]
fn starved_replicas_and_a_store_that_denies_lose_nothing() -> Result<()> {
    let _alone = alone();
    survives("starved", &[Fault::Starved, Fault::StoreExpired])?.0.stop()
}

#[test]
fn lost_replies_and_late_requests_double_nothing() -> Result<()> {
    let _alone = alone();
    let mut world = survives("replies", &[Fault::LostReplies])?.0;
    let verdict = world.round(&plan::only(13, &[Fault::LateLanding]))?;
    ensure!(verdict.is_clean(), "{verdict}\n{}", verdict.examples.join("\n"));
    ensure!(world.struck[&Fault::LateLanding].1 > 0, "no request was late");
    world.stop()
}

#[test]
fn what_retention_takes_first_is_on_record_and_counted() -> Result<()> {
    let _alone = alone();
    let (world, verdict) = survives("retention", &[Fault::Retention])?;
    let counted = world.metric("tapedeck_archiver_gap_events_total", "cause=\"retention\"")?;
    ensure!(counted as u64 >= verdict.gaps, "{} positions are lost, and the metric says {counted}", verdict.gaps);
    // The oracle itself: without its record a gap is a loss, and a gap where nothing was thrown away is an invention.
    let mut view = world.site.view(world.topic)?.expect("the table is there");
    let (truth, yielded) = (world.witness.truth(), world.site.yielded(&view)?);
    let invented = Verdict::of(&truth, &view, &yielded, &BTreeMap::new()).invented;
    view.gaps.clear();
    let silent = Verdict::of(&truth, &view, &yielded, &world.deleted()?);
    assert_eq!((invented, silent.unrecorded, silent.lost), (verdict.gaps, verdict.gaps, 0));
    let unexplained = Verdict::of(&truth, &view, &yielded, &BTreeMap::new());
    assert_eq!((unexplained.unrecorded, unexplained.lost), (0, verdict.gaps));
    world.stop()
}

/// A cycle of rounds has its own servers and archive, so that a long run does not read an ever larger one again and again.
const ROUNDS_OF_A_WORLD: u64 = Fault::ALL.len() as u64;

/// `MINUTES` sets how long it lasts, `SEED` what happens.
#[test]
#[ignore = "make chaos"]
fn faults_at_random() -> Result<()> {
    let (minutes, seed) = (number("MINUTES", 10), number("SEED", fastrand::u64(..)));
    println!("SEED={seed} MINUTES={minutes}\nround {HEAD}  faults (times that they struck)");
    let until = Instant::now() + Duration::from_secs(60 * minutes);
    let (mut sum, mut struck, mut round) = (Verdict::default(), Strikes::new(), 0);
    while Instant::now() < until && sum.is_clean() {
        let mut world = World::start("chaos", seed ^ round)?;
        loop {
            let verdict = one_round(&mut world, &mut struck, seed, round)?;
            sum += &verdict;
            round += 1;
            if !sum.is_clean() || round % ROUNDS_OF_A_WORLD == 0 || Instant::now() >= until {
                break;
            }
        }
        if sum.is_clean() {
            world.stop()?;
        }
    }
    println!("  all {sum}  {round} rounds, {} events in the largest archive, SEED={seed}", sum.events);
    report(&struck);
    ensure!(sum.is_clean(), "SEED={seed}, round {}: {}", round - 1, sum.examples.join("\n"));
    Ok(())
}

/// Plays a round and prints its line.
fn one_round(world: &mut World, struck: &mut Strikes, seed: u64, round: u64) -> Result<Verdict> {
    let acts = plan::draw(seed, round);
    world.struck.clear();
    let verdict = world.round(&acts).with_context(|| format!("SEED={seed}, round {round}"))?;
    let begun = acts.iter().filter_map(|act| if let What::Begin(fault) = act.what { Some(fault) } else { None });
    let words: Vec<_> = begun.map(|fault| format!("{fault:?} ({})", world.struck[&fault].1)).collect();
    println!("{round:>5} {verdict}  {}", words.join(", "));
    for (fault, (begun, times)) in &world.struck {
        let entry = struck.entry(*fault).or_default();
        *entry = (entry.0 + begun, entry.1 + times);
    }
    Ok(verdict)
}

/// What was tested, and what was not.
fn report(struck: &Strikes) {
    for (fault, (begun, times)) in struck {
        println!("  {fault:?}: begun {begun} times, struck {times} times{}", if *times == 0 { ": NEVER STRUCK" } else { "" });
    }
    let idle: Vec<_> = Fault::ALL.iter().filter(|fault| !struck.contains_key(fault)).collect();
    if !idle.is_empty() {
        println!("  not drawn in this time: {idle:?}");
    }
}
