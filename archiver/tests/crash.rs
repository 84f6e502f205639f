//! kill -9 at any moment, with two replicas and producing going on: nothing is lost, nothing is doubled.
//! `TAPEDECK_KILLS` sets how many kills. They go round the four stages of a batch; the store is reached over a link with latency,
//! so that each stage lasts, and the dead process's last words say in which one it was.

#![allow(clippy::disallowed_methods, reason = "real servers live in real time; the seed is printed")]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

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

/// Waits until the process enters the stage anew, then kills it at once.
fn kill_in(mut victim: Running, words: &str, chance: &mut fastrand::Rng) -> Result<Option<&'static str>> {
    let seen = victim.stderr().matches(words).count();
    let limit = Duration::from_secs(40);
    tapedeck_testbed::wait_until(words, limit, || {
        victim.must_run()?;
        Ok(victim.stderr().matches(words).count() > seen)
    })?;
    // Somewhere within the stage, not always at its very beginning. Acknowledging needs no store and is over at once.
    let stage = if words == STAGES[3].1 { Duration::from_millis(2) } else { LATENCY.mul_f64(1.5) };
    std::thread::sleep(stage.mul_f64(chance.f64()));
    Ok(stage_of(&victim.kill9()?.stderr))
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

#[test]
fn kills_at_every_stage_lose_and_double_nothing() -> Result<()> {
    let kills = number("TAPEDECK_KILLS", 8) as usize;
    let (seed, kafka) = (fastrand::u64(..), shared_kafka().bootstrap());
    println!("seed {seed}, {kills} kills");
    let mut chance = fastrand::Rng::with_seed(seed);
    Admin::new(&kafka)?.create_topic("crash", 4, &[("retention.ms", "-1")])?;
    let mut site = Site::on_s3(shared_s3(), "crash")?.source(
        "main",
        &kafka,
        "crash",
        &["crash"],
        "client: { session.timeout.ms: '6000', heartbeat.interval.ms: '1000' }",
    );
    let link = SlowLink::to(shared_s3().address(), LATENCY)?;
    site.daemon_endpoint = Some(format!("http://{}", link.address()));
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut stages: BTreeMap<&str, usize> = BTreeMap::new();
    std::thread::scope(|scope| -> Result<()> {
        let producer = scope.spawn(|| produce(&kafka, "crash", &stop, &sent));
        let result = (|| -> Result<[Running; 2]> {
            let mut members = [site.archiver()?, site.archiver()?];
            for kill in 0..kills {
                let (_, words) = STAGES[kill % STAGES.len()];
                let victim = std::mem::replace(&mut members[chance.usize(0..2)], site.archiver()?);
                if let Some(stage) = kill_in(victim, words, &mut chance)? {
                    *stages.entry(stage).or_default() += 1;
                }
                site.verify(&[])?;
            }
            Ok(members)
        })();
        stop.store(true, Ordering::Relaxed);
        producer.join().map_err(|_| anyhow::anyhow!("the producer panicked"))??;
        let members = result?;
        site.wait_for_rows("crash", sent.load(Ordering::Relaxed))?;
        for member in members {
            member.terminate()?;
            assert_eq!(member.wait(PATIENCE)?.code, Some(0));
        }
        Ok(())
    })
    .with_context(|| format!("seed {seed}"))?;
    println!("kills by stage: {stages:?}");
    let report = site.judge(&Truth::from_bus(&kafka, &["crash"])?, "crash")?;
    println!("{report}");
    assert!(report.is_clean(), "seed {seed}: {report}");
    site.verify(&["--deep"])?;
    Ok(())
}
