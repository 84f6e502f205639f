//! kill -9 at any moment, with two replicas and producing going on: nothing is lost, nothing is doubled.
//! `TAPEDECK_KILLS` sets how many kills. They go round the four stages of a batch; the store is reached over a link with latency,
//! so that each stage lasts, and the dead process's last words say in which one it was. It is printed how long the archive took
//! after each kill until all that was on the bus at the kill was in it: with the next kill waiting for that if `TAPEDECK_APART=1`,
//! otherwise kills overlap. `TAPEDECK_STATIC=1` gives each replica a name in the group, and the next process that of the dead one.
//! `TAPEDECK_KIP_848=1` lets the broker share out the partitions.

#![allow(clippy::disallowed_methods, reason = "real servers live in real time; the seed is printed")]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use support::{PATIENCE, Site, number};
use tapedeck_testbed::{Admin, Generator, Loader, Running, SlowLink, Truth, Workload, shared_kafka, shared_s3};

/// To the store and again from there.
const LATENCY: Duration = Duration::from_millis(100);

/// The stages of a batch, and the words with which each begins.
const STAGES: [(&str, &str); 4] = [
    ("open", "batch opened"),
    ("upload", "batch sealed, storing"),
    ("commit", "segments stored, committing"),
    ("acknowledge", "\"committed\""),
];

/// The stage in which a process was, by its last words. While one batch is on its way the next is open already: then the first counts.
fn stage_of(log: &str) -> Option<&'static str> {
    let last = |(_, words): &(&str, &str)| log.rfind(words);
    let (open, on_the_way) = (&STAGES[0], &STAGES[1..]);
    let furthest = on_the_way.iter().max_by_key(|stage| last(stage)).filter(|stage| last(stage).is_some());
    match furthest {
        Some(stage) if stage.0 != "acknowledge" || last(stage) > last(open) => Some(stage.0),
        _ => last(open).map(|_| open.0),
    }
}

/// Waits until the process enters the stage anew, and a while longer.
fn wait_for_stage(victim: &mut Running, words: &str, chance: &mut fastrand::Rng) -> Result<()> {
    let seen = victim.stderr().matches(words).count();
    let limit = Duration::from_secs(40);
    tapedeck_testbed::wait_until(words, limit, || {
        victim.must_run()?;
        Ok(victim.stderr().matches(words).count() > seen)
    })?;
    // Somewhere within the stage, not always at its very beginning. Acknowledging needs no store and is over at once.
    let stage = if words == STAGES[3].1 { Duration::from_millis(2) } else { LATENCY.mul_f64(1.5) };
    std::thread::sleep(stage.mul_f64(chance.f64()));
    Ok(())
}

fn produce(kafka: &str, topic: &str, stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let loader = Loader::new(kafka, &[])?;
    let events = Generator::new(Workload::C, 11, u64::MAX >> 20);
    let mut index = 0;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..50 {
            loader.send(topic, Some((index % 4) as i32), &events.event(index))?;
            index += 1;
        }
        sent.store(index, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(25));
    }
    loader.finish()
}

/// How long the archive takes to get over a kill.
struct Resumes<'a> {
    site: &'a Site,
    admin: Admin,
    /// When something was killed, and where the bus ended then.
    waiting: Mutex<Vec<(Instant, BTreeMap<i32, i64>)>>,
    took: Mutex<Vec<Duration>>,
}

impl Resumes<'_> {
    fn killed(&self) -> Result<()> {
        let ends = self.admin.watermarks("crash")?.into_iter().map(|(partition, (_, end))| (partition, end)).collect();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), ends));
        Ok(())
    }

    /// Looks how far the archive is, until it is told to stop: when all is archived.
    fn look(&self, stop: &AtomicBool) -> Result<()> {
        loop {
            let positions = self.site.view("crash")?.map(|view| view.positions).unwrap_or_default();
            let at: BTreeMap<i32, i64> = positions.iter().map(|(lane, next)| (lane.partition, next.as_i64())).collect();
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.retain(|(killed, ends)| {
                let is_over = ends.iter().all(|(partition, end)| at.get(partition) >= Some(end) || *end == 0);
                if is_over {
                    self.took.lock().unwrap_or_else(PoisonError::into_inner).push(killed.elapsed());
                }
                !is_over
            });
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            drop(waiting);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until the archive is over every kill.
    fn wait(&self) -> Result<()> {
        let waiting = || self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        tapedeck_testbed::wait_until("the archive to get over a kill", PATIENCE, || Ok(waiting()))
    }

    fn print(&self) {
        let mut took = self.took.lock().unwrap_or_else(PoisonError::into_inner);
        took.sort();
        let of_100 = |share: usize| took.get((took.len() * share / 100).min(took.len().saturating_sub(1)));
        println!("resumed after {} kills: p50 {:?}, p99 {:?}, longest {:?}", took.len(), of_100(50), of_100(99), took.last());
    }
}

/// Two replicas, one of which is killed again and again; answers those that live at the end.
fn kill_in_turns(
    resumes: &Resumes<'_>,
    kills: usize,
    chance: &mut fastrand::Rng,
    stages: &mut BTreeMap<&'static str, usize>,
) -> Result<Vec<Running>> {
    let (site, apart) = (resumes.site, number("TAPEDECK_APART", 0) == 1);
    let replica = |number: usize| site.archiver_in([("REPLICA", number.to_string())]);
    let mut members = vec![replica(0)?, replica(1)?];
    for kill in 0..kills {
        let (_, words) = STAGES[kill % STAGES.len()];
        let victim = chance.usize(0..members.len());
        wait_for_stage(&mut members[victim], words, chance)?;
        let ended = members.remove(victim).kill9()?;
        resumes.killed()?;
        members.insert(victim, replica(victim)?);
        if let Some(stage) = stage_of(&ended.stderr) {
            *stages.entry(stage).or_default() += 1;
        }
        site.verify(&[])?;
        if apart {
            resumes.wait()?;
        }
    }
    Ok(members)
}

#[test]
fn kills_at_every_stage_lose_and_double_nothing() -> Result<()> {
    let kills = number("TAPEDECK_KILLS", 8) as usize;
    let (seed, kafka) = (fastrand::u64(..), shared_kafka().bootstrap());
    println!("seed {seed}, {kills} kills");
    let mut chance = fastrand::Rng::with_seed(seed);
    Admin::new(&kafka)?.create_topic("crash", 4, &[("retention.ms", "-1")])?;
    let name = if number("TAPEDECK_STATIC", 0) == 1 { "group_instance_id: '${env:REPLICA}', " } else { "" };
    let protocol = match number("TAPEDECK_KIP_848", 0) {
        0 => "client: { session.timeout.ms: '6000', heartbeat.interval.ms: '1000' }",
        _ => "group_protocol: consumer",
    };
    let mut site = Site::on_s3(shared_s3(), "crash")?.source("main", &kafka, "crash", &["crash"], &format!("{name}{protocol}"));
    let link = SlowLink::to(shared_s3().address(), LATENCY)?;
    site.daemon_endpoint = Some(format!("http://{}", link.address()));
    let (stop, sent, judged) = (AtomicBool::new(false), AtomicU64::new(0), AtomicBool::new(false));
    let (waiting, took) = (Mutex::default(), Mutex::default());
    let resumes = Resumes { site: &site, admin: Admin::new(&kafka)?, waiting, took };
    let mut stages = BTreeMap::new();
    std::thread::scope(|scope| -> Result<()> {
        let producer = scope.spawn(|| produce(&kafka, "crash", &stop, &sent));
        let looks = scope.spawn(|| resumes.look(&judged));
        let result = kill_in_turns(&resumes, kills, &mut chance, &mut stages);
        stop.store(true, Ordering::Relaxed);
        // Whatever fails here, who looks on must be told.
        let produced = producer.join().map_err(|_| anyhow::anyhow!("the producer panicked")).flatten();
        let all = produced.and(result).and_then(|members| {
            site.wait_for_rows("crash", sent.load(Ordering::Relaxed))?;
            Ok(members)
        });
        judged.store(true, Ordering::Relaxed);
        looks.join().map_err(|_| anyhow::anyhow!("who looks at the archive panicked"))??;
        let members = all?;
        for member in members {
            member.terminate()?;
            assert_eq!(member.wait(PATIENCE)?.code, Some(0));
        }
        Ok(())
    })
    .with_context(|| format!("seed {seed}"))?;
    println!("kills by stage: {stages:?}");
    resumes.print();
    let report = site.judge(&Truth::from_bus(&kafka, &["crash"])?, "crash")?;
    println!("{report}");
    assert!(report.is_clean(), "seed {seed}: {report}");
    site.verify(&["--deep"])?;
    Ok(())
}
