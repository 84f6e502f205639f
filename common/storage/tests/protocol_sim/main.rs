//! The commit protocol under a simulated world: several writers, lanes that move between them, a store that loses, delays
//! and refuses. One seed is one world; a failing seed is printed and can be run again with `SIM_SEED=<n>`; `SIM_SEEDS=<n>`
//! runs more of them.
//!
//! The ghost in `world` checks every record at the instant at which it lands. That it can see is proved by wrong variants of the
//! protocol, each of which it must catch.

mod keeper;
mod world;
mod writer;

use world::World;
use writer::Wrong;

const SEEDS: u64 = 2_000;

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn failing_seeds(wrong: Option<Wrong>, seeds: u64) -> Vec<(u64, String)> {
    (0..seeds).filter_map(|seed| World::new(seed, wrong).run().err().map(|what| (seed, what))).collect()
}

#[test]
fn no_seed_breaks_the_protocol() {
    if let Some(seed) = from_env("SIM_SEED") {
        let ended = World::new(seed, None).run();
        panic!("SIM_SEED={seed}: {ended:?}");
    }
    let mut commits = 0;
    let mut faults = world::Faults::default();
    let seeds = from_env("SIM_SEEDS").unwrap_or(SEEDS);
    for seed in 0..seeds {
        let mut world = World::new(seed, None);
        if let Err(what) = world.run() {
            panic!("SIM_SEED={seed}: {what}");
        }
        commits += world.commits();
        faults.add(world.faults);
    }
    // The worlds were neither idle nor kind.
    assert!(commits > 20 * seeds, "only {commits} commits");
    assert!(faults.all_happened(), "{faults:?}");
}

#[test]
fn a_seed_is_the_same_world_twice() {
    for seed in 0..20 {
        let trace = |seed| {
            let mut world = World::new(seed, None);
            world.run().expect("the protocol is right");
            world.trace()
        };
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
