//! The commit protocol under a simulated world: several writers, lanes that move between them, keepers beside them, a store
//! that loses, delays and refuses. One seed is one world; a failing seed is printed and can be run again with `SIM_SEED=<n>`;
//! `SIM_SEEDS=<n>` runs more of them. Small worlds are searched through: every order of every event (`explore`).
//!
//! The ghost in `ghost` checks every record at the instant at which it lands. That it can see is proved by wrong variants of the
//! protocol, each of which it must catch. Most worlds hand records on as they are; every fiftieth goes through the real bytes
//! as well and must tell the same story.
#![allow(clippy::disallowed_methods, reason = "worlds run side by side, and their pace is told")]

mod arena;
mod bus;
mod explore;
mod faults;
mod files;
mod ghost;
mod keeper;
mod network;
mod shared;
mod slab;
mod small;
mod world;
mod writer;
mod wrong;

use std::time::Instant;

use tapedeck_storage::log::form::{Form, Text};

use arena::Desk;
use explore::{Bounds, explore};
use shared::Shared;
use world::{Story, World};
use wrong::Wrong;

const SEEDS: u64 = 100_000;

/// Every wrong variant is caught within so many.
const WRONG_SEEDS: u64 = 5_000;

/// The small worlds that are searched through: about 1.6 million states.
const SMALL: [Bounds; 4] = [
    Bounds { batches: 0, sweeps: 0, crashes: 1, faults: 2, begun: false },
    Bounds { batches: 3, sweeps: 0, crashes: 1, faults: 2, begun: true },
    Bounds { batches: 2, sweeps: 1, crashes: 1, faults: 1, begun: true },
    Bounds { batches: 3, sweeps: 1, crashes: 1, faults: 0, begun: true },
];

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run<F: Form>(seed: u64, wrong: Option<Wrong>) -> Result<Story, String> {
    let desk = Desk::default();
    let mut world = World::<F>::new(seed, wrong, &desk);
    world.run()?;
    Ok(world.story)
}

fn trace<F: Form>(seed: u64) -> Result<u64, String> {
    let desk = Desk::default();
    World::<F>::new(seed, None, &desk).trace()
}

/// Runs a world, and some a second time: each fiftieth through the real bytes, each hundredth as it was.
fn run_and_compare(seed: u64) -> Result<Story, String> {
    if seed.is_multiple_of(50) && trace::<Text>(seed)? != trace::<Shared>(seed)? {
        return Err("the real bytes tell another story".to_owned());
    }
    if seed % 100 == 1 && trace::<Shared>(seed)? != trace::<Shared>(seed)? {
        return Err("the same seed tells two stories".to_owned());
    }
    run::<Shared>(seed, None)
}

/// Every seed of a stride. A violation ends the test with the way to see it again.
fn worlds(seeds: impl Iterator<Item = u64>) -> Story {
    let mut sum = Story::default();
    for (number, seed) in seeds.enumerate() {
        match run_and_compare(seed) {
            Ok(story) => sum.add(&story),
            Err(what) => panic!("SIM_SEED={seed}: {what}"),
        }
        if number % 500_000 == 499_999 {
            println!("seed {seed}: no violation so far");
        }
    }
    sum
}

#[test]
fn no_seed_breaks_the_protocol() {
    if let Some(seed) = from_env("SIM_SEED") {
        let (shared, text) = (run::<Shared>(seed, None), run::<Text>(seed, None));
        panic!("SIM_SEED={seed}: {:?}, through the real bytes: {:?}", shared.err(), text.err());
    }
    let seeds = from_env("SIM_SEEDS").unwrap_or(SEEDS);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let began = Instant::now();
    let stories: Vec<Story> = std::thread::scope(|scope| {
        let run = |first: usize| scope.spawn(move || worlds((first as u64..seeds).step_by(threads)));
        let running: Vec<_> = (0..threads).map(run).collect();
        running.into_iter().map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let mut all = Story::default();
    stories.iter().for_each(|story| all.add(story));
    let (took, Story { events, records, coverage, .. }) = (began.elapsed(), &all);
    println!("{seeds} seeds, {events} events, {records} records on {threads} threads in {took:.1?}: no violation");
    println!("{coverage}");
    println!("refused batches {}, rewrites {}, refused {}", all.refused_batches, all.rewrites, all.refused_rewrites);
    // The worlds were neither idle nor kind: every fault met every step that it can meet.
    assert!(*records > 20 * seeds, "only {records} records");
    assert!(all.refused_batches.min(all.rewrites).min(all.refused_rewrites) > 0, "nothing was ever refused or rewritten");
    assert!(seeds < 1_000 || coverage.untried().is_empty(), "never happened: {:?}", coverage.untried());
}

#[test]
fn every_wrong_variant_is_caught() {
    const SHARE_OF: u64 = 500;
    for wrong in Wrong::ALL {
        let caught = |seed| Some((seed, run::<Shared>(seed, Some(wrong)).err()?));
        let first = (0..WRONG_SEEDS).find_map(caught);
        let (seed, what) = first.unwrap_or_else(|| panic!("{wrong:?} was not caught in {WRONG_SEEDS} seeds"));
        let count = (0..SHARE_OF).filter_map(caught).count();
        println!("{wrong:?}: {count} of {SHARE_OF} seeds, first {seed}: {what}");
    }
}

#[test]
fn no_order_of_events_in_a_small_world_breaks_the_protocol() {
    let chosen = std::env::var("SIM_BOUNDS").ok().map(|text| Bounds::parse(&text).expect("five numbers"));
    for bounds in chosen.map_or(SMALL.to_vec(), |chosen| vec![chosen]) {
        let began = Instant::now();
        let seen = explore(bounds, None).unwrap_or_else(|found| panic!("{found}"));
        println!("{bounds:?}: {seen:?} in {:.1?}", began.elapsed());
        assert!(seen.ends > 0, "no order of events comes to an end");
    }
}

#[test]
fn the_search_finds_what_is_wrong() {
    use Wrong::*;
    let bounds = Bounds { batches: 1, sweeps: 1, crashes: 0, faults: 1, begun: true };
    assert!(explore(bounds, None).is_ok(), "the right protocol passes where the wrong ones fail");
    for wrong in
        [ExistsIsMine, UnknownIsSuccess, DeleteAfterNotFound, DeleteAfterExists, PlainPut, SweepWithoutAge, DeleteBeforeSweep]
    {
        let Err(found) = explore(bounds, Some(wrong)) else { panic!("{wrong:?} was not found") };
        println!("{wrong:?}: {found}");
    }
}
