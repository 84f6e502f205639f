//! A store that is away, or full, under load: the archiver stays a member, memory stays bounded, nothing is lost or doubled,
//! and all is caught up by itself. `TAPEDECK_AWAY_SECONDS` sets how long the S3 server is stopped.

#![allow(clippy::disallowed_methods, reason = "real servers live in real time")]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use support::{PATIENCE, Site, number};
use tapedeck_testbed::{Admin, Generator, Loader, Program, S3Server, Truth, Workload, shared_kafka, wait_until};

/// Produces steadily until told to stop; answers how many events were sent.
fn produce(kafka: &str, topic: &str, workload: Workload, stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let loader = Loader::new(kafka, &[])?;
    let events = Generator::new(workload, 5, 1 << 40);
    let mut index = 0;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..200 {
            loader.send(topic, Some((index % 4) as i32), &events.event(index))?;
            index += 1;
        }
        sent.store(index, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(20));
    }
    loader.finish()
}

#[test]
fn a_store_that_is_away_delays_and_loses_nothing() -> Result<()> {
    let away = Duration::from_secs(number("TAPEDECK_AWAY_SECONDS", 12));
    let (kafka, s3) = (shared_kafka().bootstrap(), S3Server::start()?);
    Admin::new(&kafka)?.create_topic("away", 4, &[("retention.ms", "-1")])?;
    let client = "client: { session.timeout.ms: '6000', heartbeat.interval.ms: '1000' }";
    let site = Site::on_s3(&s3, "away")?.source("main", &kafka, "away", &["away"], client);
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut archiver = site.archiver()?;
    std::thread::scope(|scope| -> Result<()> {
        let producer = scope.spawn(|| produce(&kafka, "away", Workload::A, &stop, &sent));
        let result = (|| {
            site.wait_for_rows("away", 1_000)?;
            s3.stop()?;
            // The outage itself is what is tested, so its length is real time.
            std::thread::sleep(away);
            let (members, _) = Admin::new(&kafka)?.group_members("away")?;
            assert_eq!(members, 1, "the archiver must stay a member of its group");
            assert!(!archiver.has_ended()?, "{}", archiver.stderr());
            s3.start_again()
        })();
        stop.store(true, Ordering::Relaxed);
        producer.join().map_err(|_| anyhow::anyhow!("the producer panicked"))??;
        result
    })?;
    site.wait_for_rows("away", sent.load(Ordering::Relaxed))?;
    let peak = archiver.peak_rss();
    println!("store away for {} s, {} events, peak RSS {} MiB", away.as_secs(), sent.load(Ordering::Relaxed), peak >> 20);
    archiver.terminate()?;
    assert_eq!(archiver.wait(PATIENCE)?.code, Some(0));
    let report = site.judge(&Truth::from_bus(&kafka, &["away"])?, "away")?;
    assert!(report.is_clean(), "{report}");
    site.verify(&["--deep"])?;
    assert!(peak < 320 << 20, "peak RSS {peak} with a budget of 128 MiB");
    Ok(())
}

/// Runs a shell line in a mount namespace of its own, where `folder` is a disk of `size`.
fn on_a_small_disk(site: &Site, folder: &str, size: &str, line: &str) -> Program {
    let script = format!("mount -t tmpfs -o size={size} small {folder} && {{ {line}; }}");
    site.other_program("unshare", &["--map-root-user", "--mount", "sh", "-c", &script])
}

#[test]
fn a_full_disk_is_waited_out_and_loses_nothing() -> Result<()> {
    let kafka = shared_kafka().bootstrap();
    Admin::new(&kafka)?.create_topic("full", 4, &[("retention.ms", "-1")])?;
    let loader = Loader::new(&kafka, &[])?;
    for event in Generator::new(Workload::D, 5, 20_000).events() {
        loader.send("full", None, &event)?;
    }
    loader.finish()?;
    let site = Site::on_disk()?.source("main", &kafka, "full", &["full"], "");
    let folder = site.file("archive").display().to_string();
    std::fs::create_dir(&folder)?;
    let (config, copy) = (site.config()?.display().to_string(), site.file("copy").display().to_string());
    let binary = env!("CARGO_BIN_EXE_archiver");
    // The archive fits only once the ballast is gone; then it is copied out of the namespace to be judged.
    let line = format!(
        "head -c 36M /dev/urandom > {folder}/ballast; {binary} run -c {config} & pid=$!; \
         while [ ! -e {copy}.go ]; do sleep 0.1; done; rm {folder}/ballast; \
         while [ ! -e {copy}.done ]; do cp -r {folder} {copy}.next; rm -rf {copy}; mv {copy}.next {copy}; sleep 1; done; \
         kill $pid; wait $pid; code=$?; rm -rf {copy}; cp -r {folder} {copy}; exit $code"
    );
    let mut running = on_a_small_disk(&site, &folder, "48m", &line).start()?;
    running.wait_for_text("trying again", Duration::from_secs(60))?;
    std::fs::write(format!("{copy}.go"), "")?;
    let copied = site.reading_from(&copy);
    wait_until("all events", PATIENCE, || Ok(copied.rows("full").unwrap_or(0) >= 20_000))?;
    std::fs::write(format!("{copy}.done"), "")?;
    assert_eq!(running.wait(PATIENCE)?.code, Some(0));
    let report = copied.judge(&Truth::from_bus(&kafka, &["full"])?, "full")?;
    assert!(report.is_clean(), "{report}");
    Ok(())
}
