//! kill -9 of keepers at random points on a real S3 server, beside an archiver that goes on and has duties of its own: nothing is
//! lost, nothing is doubled, and in the end no file lies there that no record names. `TAPEDECK_KEEPER_KILLS` sets how many
//! kills; `TAPEDECK_SEED` repeats a seed.

#![allow(clippy::disallowed_methods, reason = "real servers live in real time; the seed is printed")]

mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path;
use support::{PATIENCE, Site, number};
use tapedeck_storage::layout;
use tapedeck_storage::log::{History, TableView};
use tapedeck_testbed::{
    Admin, Generator, Loader, Program, Running, SlowLink, Truth, Workload, shared_kafka, shared_s3, wait_until,
};

/// To the store and again from there: each step of a keeper lasts.
const LATENCY: Duration = Duration::from_millis(40);

/// A keeper is killed within so long of its start.
const KILLED_WITHIN_MS: u64 = 2_500;

const TABLE: &str = "keepers";

/// Produces steadily, all into one hour that is long over; answers how many events were sent.
fn produce(kafka: &str, stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let loader = Loader::new(kafka, &[])?;
    let events = Generator::new(Workload::C, 11, u64::MAX >> 20);
    let mut index = 0;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..20 {
            loader.send(TABLE, Some((index % 4) as i32), &events.event(index))?;
            index += 1;
        }
        sent.store(index, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(25));
    }
    loader.finish()
}

fn keeper(site: &Site, endpoint: &str, what: &[&str]) -> Program {
    let common = ["--endpoint", endpoint, "--region", "us-east-1", "--memory", "32MiB", site.url()];
    site.program(&[&["maintain"], what, &common].concat())
}

/// Segment files that lie in the store, and those that are live.
fn files(site: &Site) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let store = site.store()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listed =
            store.store.list(Some(&Path::from(layout::table_folder(TABLE)))).map_ok(|object| object.location.to_string());
        let mut files: BTreeSet<String> = listed.try_collect().await?;
        files.retain(|key| key.contains("/topic=") && key.ends_with(".parquet"));
        let view = TableView::load(&store, TABLE, None, History::Recent).await?;
        let live = view.segments.iter().map(|live| layout::table_object(TABLE, &live.segment.path).to_string());
        Ok((files, live.collect()))
    })
}

#[test]
fn keepers_killed_at_any_moment_lose_and_double_nothing() -> Result<()> {
    let (kills, seed, kafka) =
        (number("TAPEDECK_KEEPER_KILLS", 10), number("TAPEDECK_SEED", fastrand::u64(..)), shared_kafka().bootstrap());
    println!("seed {seed}, {kills} kills");
    let mut chance = fastrand::Rng::with_seed(seed);
    Admin::new(&kafka)?.create_topic(TABLE, 4, &[("retention.ms", "-1")])?;
    let mut site = Site::on_s3(shared_s3(), TABLE)?.source("main", &kafka, TABLE, &[TABLE], "");
    let duties = "compact: { every: 10s, closed_for: 1s }, sweep: { every: 10s, orphans_after: 1s, removed_after: 5s }";
    site.settings.push_str(&format!("maintain: {{ {duties} }}\n"));
    let link = SlowLink::to(shared_s3().address(), LATENCY)?;
    let endpoint = format!("http://{}", link.address());
    let works: [&[&str]; 2] = [&["compact", "--closed-for", "1s"], &["sweep", "--orphans-after", "1s", "--removed-after", "5s"]];
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut at_work = 0;
    std::thread::scope(|scope| -> Result<()> {
        let producer = scope.spawn(|| produce(&kafka, &stop, &sent));
        let result = (|| -> Result<Running> {
            let mut archiver = site.archiver()?;
            site.wait_for_rows(TABLE, 100)?;
            for kill in 0..kills {
                let mut victim = keeper(&site, &endpoint, works[kill as usize % works.len()]).start()?;
                std::thread::sleep(Duration::from_millis(chance.u64(100..KILLED_WITHIN_MS)));
                at_work += u64::from(!victim.has_ended()?);
                victim.kill9()?;
                archiver.must_run()?;
                site.verify(&[])?;
            }
            archiver.wait_for_text("maintenance done", PATIENCE)?;
            Ok(archiver)
        })();
        stop.store(true, Ordering::Relaxed);
        producer.join().map_err(|_| anyhow::anyhow!("the producer panicked"))??;
        let archiver = result?;
        site.wait_for_rows(TABLE, sent.load(Ordering::Relaxed))?;
        archiver.terminate()?;
        assert_eq!(archiver.wait(PATIENCE)?.code, Some(0));
        Ok(())
    })
    .with_context(|| format!("seed {seed}"))?;
    println!("{at_work} of {kills} were killed at work");
    assert!(at_work > 0, "seed {seed}: each keeper was done before it was killed");
    tidy(&site, &endpoint).with_context(|| format!("seed {seed}"))?;
    let report = site.judge(&Truth::from_bus(&kafka, &[TABLE])?, TABLE)?;
    println!("{report}");
    assert!(report.is_clean(), "seed {seed}: {report}");
    site.verify(&["--deep"])?;
    Ok(())
}

/// One more of each, to its end: one segment for each source and hour, and no file beside the live ones.
fn tidy(site: &Site, endpoint: &str) -> Result<()> {
    let run = |what: &[&str]| -> Result<()> {
        let ended = keeper(site, endpoint, what).run(PATIENCE)?;
        ensure!(ended.code == Some(0), "{what:?}: {:?}\n{}\n{}", ended.code, ended.stdout, ended.stderr);
        print!("{}", ended.stdout);
        Ok(())
    };
    run(&["compact", "--closed-for", "0s"])?;
    wait_until("no file but the live ones", PATIENCE, || {
        run(&["sweep", "--orphans-after", "0s", "--removed-after", "0s"])?;
        let (files, live) = files(site)?;
        ensure!(live.is_subset(&files), "a live segment has no file");
        Ok(files == live)
    })?;
    assert_eq!(files(site)?.1.len(), 1, "one hour of one source is one segment");
    Ok(())
}
