//! The commit protocol under a simulated world: several writers, lanes that move between them, a store that loses, delays
//! and refuses. One seed is one world; a failing seed is printed and can be run again with `SIM_SEED=<n>`; `SIM_SEEDS=<n>`
//! runs more of them.
//!
//! The ghost in `world` checks every record at the instant at which it lands. That it can see is proved by wrong variants of the
//! protocol, each of which it must catch.
#![allow(clippy::disallowed_methods, reason = "worlds run side by side, and their pace is told")]

mod keeper;
mod world;
mod writer;

use world::World;
use writer::Wrong;

const SEEDS: u64 = 10_000;

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn failing_seeds(wrong: Option<Wrong>, seeds: u64) -> Vec<(u64, String)> {
    (0..seeds).filter_map(|seed| World::new(seed, wrong).run().err().map(|what| (seed, what))).collect()
}

/// What some worlds went through.
#[derive(Default)]
struct Sum {
    events: u64,
    commits: u64,
    faults: world::Faults,
}

/// Every seed of a stride. A violation ends the test with the way to see it again.
fn worlds(seeds: impl Iterator<Item = u64>) -> Sum {
    let mut sum = Sum::default();
    for seed in seeds {
        let mut world = World::new(seed, None);
        if let Err(what) = world.run() {
            panic!("SIM_SEED={seed}: {what}");
        }
        sum.events += world.events();
        sum.commits += world.commits();
        sum.faults.add(world.faults);
    }
    sum
}

#[test]
fn no_seed_breaks_the_protocol() {
    if let Some(seed) = from_env("SIM_SEED") {
        let ended = World::new(seed, None).run();
        panic!("SIM_SEED={seed}: {ended:?}");
    }
    let seeds = from_env("SIM_SEEDS").unwrap_or(SEEDS);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let began = std::time::Instant::now();
    let sums: Vec<Sum> = std::thread::scope(|scope| {
        let run = |first: usize| scope.spawn(move || worlds((first as u64..seeds).step_by(threads)));
        let running: Vec<_> = (0..threads).map(run).collect();
        running.into_iter().map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let mut all = Sum::default();
    for sum in sums {
        all.events += sum.events;
        all.commits += sum.commits;
        all.faults.add(sum.faults);
    }
    let (events, commits, took) = (all.events, all.commits, began.elapsed());
    println!("{seeds} seeds, {events} events, {commits} records on {threads} threads in {took:.1?}: no violation");
    // The worlds were neither idle nor kind.
    assert!(commits > 20 * seeds, "only {commits} commits");
    assert!(all.faults.all_happened(), "{:?}", all.faults);
}

#[test]
fn a_seed_is_the_same_world_twice() {
    for seed in 0..20 {
        let trace = |seed| World::new(seed, None).trace().expect("the protocol is right");
        assert_eq!(trace(seed), trace(seed), "SIM_SEED={seed}");
    }
}

#[test]
fn every_wrong_variant_is_caught() {
    for wrong in Wrong::ALL {
        let seeds = 200;
        let caught = failing_seeds(Some(wrong), seeds);
        assert!(!caught.is_empty(), "{wrong:?} was not caught in {seeds} seeds");
        println!("{wrong:?}: {} of {seeds} seeds, first: {:?}", caught.len(), caught[0]);
    }
}
