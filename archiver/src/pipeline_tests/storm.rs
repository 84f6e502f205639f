//! Everything at once, by seeds: processes come, leave and are killed, lanes move, are lost and stolen, the store fails in
//! every way that it can, retention passes by, a keeper compacts and sweeps. Then the sky clears, and every event must be there
//! exactly once. This is the simulation's second tier: the real log, segments and pipeline, on a clock that is moved by hand; the first,
//! `common/storage/tests/protocol_sim`, runs the commit protocol alone.

use std::sync::Arc;
use std::time::Duration;

use tapedeck_common::bus::BusError;
use tapedeck_common::error::ErrorKind;
use tapedeck_common::limits;
use tapedeck_common::position::{LaneId, Position};
use tapedeck_common::time::Timestamp;
use tapedeck_sim::bus::StartAt;
use tapedeck_sim::store::Chaos;
use tapedeck_sim::{BusEvent, Call, Fault, FaultyStore, When, settle};
use tapedeck_storage::archive::Archive;
use tapedeck_storage::store::Store;
use tokio::task::JoinHandle;

use super::world::{AGE_MAX, LONG, Process, Running, Setup, World};
use crate::maintain::choose::CompactPolicy;
use crate::maintain::{Keeper, MaintainError, Means, SweepPolicy};
use crate::seal::SealPolicy;

/// Seeds that every run of the tests goes through. `TAPEDECK_STORM=<first>..<last>` chooses others.
const SEEDS: std::ops::Range<u64> = 0..60;

const TOPICS: [&str; 2] = ["orders", "clicks"];

/// Whatever no record names is given up, however young: its writer must notice. Files of removed segments stay, since the
/// checks read them.
const SWEEP: SweepPolicy = SweepPolicy { orphans_after: Duration::ZERO, removed_after: Duration::MAX };

fn seeds() -> std::ops::Range<u64> {
    let chosen = std::env::var("TAPEDECK_STORM").ok();
    let range = chosen.as_deref().and_then(|text| text.split_once(".."));
    range.map_or(SEEDS, |(first, last)| first.parse().expect("a seed")..last.parse().expect("a seed"))
}

#[test]
fn whatever_happens_every_event_ends_up_in_the_archive_exactly_once() {
    for seed in seeds() {
        println!("seed {seed}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime can be made").block_on(async {
            let mut storm = Storm::gather(seed).await;
            for step in 0..60 {
                storm.strike(step).await;
                if step % 15 == 14 {
                    storm.world.check().await;
                }
            }
            storm.clear().await;
        });
    }
}

struct Storm {
    world: World,
    chance: fastrand::Rng,
    members: Vec<(Process, Running)>,
    /// One at most: of two, one would take the other's unfinished merge for an orphan.
    keeper: Option<(FaultyStore, JoinHandle<Result<(), MaintainError>>)>,
    /// What dead processes still have on its way.
    ghosts: Vec<FaultyStore>,
}

impl Storm {
    async fn gather(seed: u64) -> Self {
        let mut chance = fastrand::Rng::with_seed(seed);
        let setup = Setup {
            begins: tapedeck_sim::GENESIS,
            seed,
            budget_bytes: 1 << chance.u32(20..26),
            policy: SealPolicy { bytes_max: 1 << chance.u32(12..24), age_max: AGE_MAX },
            start: if chance.bool() { StartAt::Earliest } else { StartAt::Latest },
            one_table: chance.bool(),
            run_events: chance.usize(1..64),
            ..Setup::default()
        };
        let world = World::new(setup);
        for topic in TOPICS {
            world.bus.make_topic(topic, chance.i32(1..4));
        }
        let mut storm = Self { world, chance, members: Vec::new(), keeper: None, ghosts: Vec::new() };
        storm.publish();
        storm.start().await;
        storm
    }

    fn lane(&mut self) -> (&'static str, LaneId) {
        let topic = TOPICS[self.chance.usize(..TOPICS.len())];
        let lanes = self.world.bus.lanes(topic);
        (topic, lanes[self.chance.usize(..lanes.len())].clone())
    }

    fn member(&mut self) -> Option<usize> {
        (!self.members.is_empty()).then(|| self.chance.usize(..self.members.len()))
    }

    async fn strike(&mut self, step: usize) {
        let blow = self.chance.u32(..106);
        println!(
            "step {step}: blow {blow}, {} members, at {:?}",
            self.members.len(),
            tapedeck_common::Clock::now(&self.world.clock)
        );
        match blow {
            0..25 => self.publish(),
            25..30 => {
                let (topic, lane) = self.lane();
                self.world.bus.publish_holes(topic, lane.partition, self.chance.u64(1..4));
            }
            30..55 => {
                let time = Duration::from_millis(self.chance.u64(1..40_000));
                self.world.advance(time).await;
            }
            55..62 => {
                if let Some(number) = self.member() {
                    self.members[number].0.seal().await;
                }
            }
            62..68 => self.move_lane(),
            68..72 => self.lose_lane(),
            72..76 => self.steal_lane(),
            76..80 => self.world.bus.rebalance(),
            80..84 => self.start().await,
            84..88 => self.crash().await,
            88..90 => self.crash_in_a_request().await,
            90..92 => self.retention(),
            92..95 => {
                self.members.iter().for_each(|(process, _)| process.store.release());
                self.keeper.iter().for_each(|(store, _)| store.release());
                for store in self.stores() {
                    store.land().await;
                }
            }
            95..97 => self.world.bus.set_away(self.chance.bool()),
            97..98 => self.members.iter().for_each(|(process, _)| process.store.forget_uploads()),
            98..99 => {
                if let Some(number) = self.member() {
                    let failure = BusError::new(ErrorKind::Unavailable, "the client gave up");
                    self.world.bus.fail_next(self.members[number].1.member, failure);
                }
            }
            99..104 => self.keep().await,
            104..105 => {
                // It dies, too.
                if let Some((store, task)) = self.keeper.take() {
                    task.abort();
                    self.ghosts.push(store);
                }
            }
            _ => {
                let jump = self.chance.i64(0..4_000_000_000_000_000);
                self.world.clock.set_wall(Timestamp::from_micros(jump));
            }
        }
        // Blows fall on work that is under way as often as on a calm world.
        if self.chance.bool() {
            settle().await;
        }
        self.bury().await;
    }

    fn publish(&mut self) {
        let (topic, lane) = self.lane();
        for _ in 0..self.chance.u64(1..30) {
            let mut value = vec![0; 1 << self.chance.u32(..15)];
            self.chance.fill(&mut value);
            let hour = self.chance.i64(0..3) * 3_600_000_000;
            let event = BusEvent::of(value).at(Timestamp::from_micros(1_700_000_000_000_000 + hour));
            let event = if self.chance.u32(..10) == 0 { event.replayed() } else { event };
            self.world.bus.publish(topic, lane.partition, event);
        }
    }

    async fn start(&mut self) {
        if self.members.len() >= 3 {
            return;
        }
        let process = self.world.process().await;
        let mut faults = vec![Fault::FailBefore, Fault::FailAfter, Fault::Conflict, Fault::Late, Fault::Lagging];
        if self.chance.bool() {
            faults.extend([Fault::HangBefore, Fault::HangAfter]);
        }
        let rate = self.chance.f64() * 0.3;
        process.store.unleash(Chaos { rng: self.chance.fork(), rate, faults });
        let running = process.read_all(&self.world).await;
        self.members.push((process, running));
    }

    /// A table is kept in shape: what is closed is merged, and whatever no record names is given up.
    async fn keep(&mut self) {
        let archive = Archive::open(Store::of(self.world.below())).await.expect("it exists");
        let tables = archive.tables().await.expect("it can be listed");
        if tables.is_empty() || self.keeper.is_some() {
            return;
        }
        let table = tables[self.chance.usize(..tables.len())].clone();
        let store = self.world.other_view();
        let faults = vec![Fault::FailBefore, Fault::FailAfter, Fault::Conflict, Fault::Late, Fault::Lagging];
        store.unleash(Chaos { rng: self.chance.fork(), rate: self.chance.f64() * 0.1, faults });
        let (seen, clock, chance) = (Store::of(Arc::new(store.clone())), self.world.clock.clone(), self.chance.fork());
        let task = tokio::spawn(async move {
            let archive = Archive::open(seen).await?;
            let clock = Arc::new(clock);
            let means = Means::new(limits::MAINTAIN_MEMORY_DEFAULT as usize, None, clock.clone());
            let mut keeper = Keeper::open(&archive, &table, clock, chance, means).await?;
            keeper.compact(&CompactPolicy::default(), false).await?;
            keeper.sweep(&SWEEP, false).await.map(drop)
        });
        self.keeper = Some((store, task));
    }

    /// All views of the store through which something may still be on its way.
    fn stores(&self) -> Vec<FaultyStore> {
        let members = self.members.iter().map(|(process, _)| &process.store);
        let keeper = self.keeper.iter().map(|(store, _)| store);
        members.chain(keeper).chain(&self.ghosts).cloned().collect()
    }

    async fn crash(&mut self) {
        let Some(number) = self.member() else { return };
        let (process, running) = self.members.remove(number);
        self.ghosts.push(process.store.clone());
        running.crash(process).await;
    }

    /// Dies while a request is under way: before it took effect, or after.
    async fn crash_in_a_request(&mut self) {
        let Some(number) = self.member() else { return };
        let (process, running) = &self.members[number];
        let fault = if self.chance.bool() { Fault::HangBefore } else { Fault::HangAfter };
        let call = [Call::Put, Call::Get][self.chance.usize(..2)];
        process.store.heal();
        process.store.release();
        process.store.inject(When::at(call).after(self.chance.u64(..6)).once(), fault);
        let (store, task) = (process.store.clone(), &running.task);
        self.world.clock.advance_until(2 * AGE_MAX, || store.hanging() > 0 || task.is_finished()).await;
        let (process, running) = self.members.remove(number);
        running.crash(process).await;
    }

    fn move_lane(&mut self) {
        let (_, lane) = self.lane();
        let (Some(from), Some(to)) = (self.world.bus.owner(&lane), self.member()) else { return };
        let to = self.members[to].1.member;
        if from != to {
            self.world.bus.hand_over(from, to, &[lane]);
        } else {
            // Taken away and given back.
            self.world.bus.hand_over(from, from, &[lane]);
        }
    }

    fn lose_lane(&mut self) {
        let (_, lane) = self.lane();
        if let Some(number) = self.member() {
            self.world.bus.lose(self.members[number].1.member, &[lane]);
        }
    }

    fn steal_lane(&mut self) {
        let (_, lane) = self.lane();
        if let Some(number) = self.member() {
            self.world.bus.steal(self.members[number].1.member, &[lane]);
        }
    }

    fn retention(&mut self) {
        let (topic, lane) = self.lane();
        let bounds = self.world.bus.bounds(topic, &lane).expect("its topic is never made again");
        let begin = self.chance.u64(bounds.from().get()..=bounds.until().get());
        self.world.bus.expire(topic, lane.partition, Position::new(begin));
    }

    /// A pipeline that ended by itself did so for a reason that is no fault of ours; its process mostly builds another.
    async fn bury(&mut self) {
        if let Some((store, task)) = self.keeper.take_if(|(_, task)| task.is_finished()) {
            self.ghosts.push(store);
            if let Err(error) = task.await.expect("no panic") {
                self.must_be_the_stores_fault(error.kind(), &error);
            }
        }
        while let Some(number) = self.members.iter().position(|(_, running)| running.task.is_finished()) {
            let (process, running) = self.members.remove(number);
            match running.task.await.expect("no panic") {
                Ok(()) => panic!("seed {}: nobody told it to leave", self.world.setup.seed),
                Err(error) => {
                    self.must_be_the_stores_fault(error.kind(), &error);
                }
            }
            if self.chance.bool() {
                let running = process.read_all(&self.world).await;
                self.members.push((process, running));
            } else {
                self.ghosts.push(process.store);
            }
        }
    }

    fn must_be_the_stores_fault(&self, kind: ErrorKind, error: &dyn std::fmt::Display) {
        println!("ended: {error}");
        assert!(!matches!(kind, ErrorKind::Bug | ErrorKind::Corrupt), "seed {}: {error}", self.world.setup.seed);
    }

    /// No more faults: everybody leaves in order, then one process reads what is left.
    async fn clear(mut self) {
        println!("the sky clears");
        self.world.bus.set_away(false);
        for store in self.stores() {
            store.heal();
            store.release();
            store.land().await;
        }
        self.world.advance(LONG).await;
        self.bury().await;
        assert!(self.keeper.is_none(), "seed {}: the keeper never ends", self.world.setup.seed);
        for (process, running) in std::mem::take(&mut self.members) {
            let left = running.leave(&self.world).await;
            assert!(left.is_ok(), "seed {}: {left:?}", self.world.setup.seed);
            let used = process.budget.used();
            assert_eq!(used, 0, "seed {}: {used} bytes are still reserved", self.world.setup.seed);
        }
        let last = self.world.process().await;
        let running = last.read_all(&self.world).await;
        self.world.advance(LONG).await;
        assert!(running.leave(&self.world).await.is_ok(), "seed {}", self.world.setup.seed);
        self.world.check_all_archived().await;
    }
}
