//! The wall clock of a running archiver jumps by hours, forwards and back, and drifts, while events flow: nothing is lost or
//! doubled, no member is put out, batches are archived in real time, and no file or hour goes because a clock is ahead.
//! A store that checks the time in signatures refuses a clock that is wrong; that is waited out like a store that is away.

#![allow(clippy::disallowed_methods, reason = "real servers live in real time; the seed is printed")]

mod support;

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use support::{PATIENCE, Site, metric, number};
use tapedeck_testbed::events::BASE_MS;
use tapedeck_testbed::{Admin, Running, WallClock, Witness, shared_kafka, shared_s3, wait_until};

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
/// Batches are sealed at two seconds, see `support`; the rest is for a busy machine.
const ARCHIVED_WITHIN: Duration = Duration::from_secs(12);
const SESSION: Duration = Duration::from_secs(6);
const CLIENT: &str = "client: { session.timeout.ms: '6000', heartbeat.interval.ms: '1000' }";

/// A topic, its producer, and an archiver that goes by a clock of its own.
struct Clocked {
    table: &'static str,
    site: Site,
    clock: WallClock,
    witness: Witness,
    archiver: Running,
}

impl Clocked {
    fn start(table: &'static str, site: Site) -> Result<Self> {
        let (kafka, seed) = (shared_kafka().bootstrap(), number("TAPEDECK_SEED", fastrand::u64(..)));
        println!("seed {seed}");
        Admin::new(&kafka)?.create_topic(table, 4, &[("retention.ms", "-1")])?;
        let site = site.source("main", &kafka, table, &[table], CLIENT);
        let clock = WallClock::new()?;
        let archiver = site.archiver_in(clock.environment())?;
        let witness = Witness::start(&kafka, table, seed)?;
        site.wait_for_rows(table, 1)?;
        Ok(Self { table, site, clock, witness, archiver })
    }

    /// What is produced from now on is archived soon. Answers how long it took.
    fn archived_soon(&mut self, what: &str) -> Result<Duration> {
        let before = self.witness.ends();
        let all_grew = |ends: &BTreeMap<i32, i64>| before.iter().all(|(partition, end)| ends.get(partition) > Some(end));
        wait_until("more events on the bus", PATIENCE, || Ok(all_grew(&self.witness.ends())))?;
        let (began, ends) = (Instant::now(), self.witness.ends());
        wait_until(&format!("what was produced to be archived, {what}"), ARCHIVED_WITHIN, || {
            self.archiver.must_run()?;
            let positions = self.site.view(self.table)?.map(|view| view.positions).unwrap_or_default();
            let at: BTreeMap<i32, i64> = positions.iter().map(|(lane, next)| (lane.partition, next.as_i64())).collect();
            Ok(ends.iter().all(|(partition, end)| at.get(partition) >= Some(end)))
        })?;
        Ok(began.elapsed())
    }

    fn rebalances(&self) -> Result<f64> {
        metric(&self.archiver, "tapedeck_archiver_rebalances_total", "")
    }

    /// Up to which moment everything is archived, in seconds, as the archiver says.
    fn watermark(&self) -> Result<f64> {
        metric(&self.archiver, "tapedeck_archiver_archived_watermark_timestamp_seconds", "")
    }

    /// All that was acknowledged is in the archive once, and nothing else.
    fn judged(self) -> Result<Site> {
        self.witness.rest()?;
        let truth = self.witness.truth();
        self.site.wait_for_rows(self.table, truth.len())?;
        self.archiver.terminate()?;
        let ended = self.archiver.wait(PATIENCE)?;
        ensure!(ended.code == Some(0), "{:?}\n{}", ended.code, ended.stderr);
        let report = self.site.judge(&truth, self.table)?;
        println!("{report}; another time than the machine's was told {} times", self.clock.struck());
        ensure!(report.is_clean(), "{report}");
        ensure!(self.clock.struck() > 0, "the clock was never asked while it was wrong, so nothing was tested");
        self.site.verify(&["--deep"])?;
        Ok(self.site)
    }
}

#[test]
fn a_clock_that_jumps_and_drifts_loses_doubles_and_delays_nothing() -> Result<()> {
    let mut clocked = Clocked::start("clock", Site::on_disk()?)?;
    clocked.archived_soon("with the right clock")?;
    let rebalances = clocked.rebalances()?;
    for ahead_ms in [5 * HOUR_MS, -30 * HOUR_MS] {
        // With nothing on its way every thread waits for something at the jump, some of them by the wall clock.
        clocked.witness.rest()?;
        clocked.site.wait_for_rows(clocked.table, clocked.witness.truth().len())?;
        clocked.clock.set(ahead_ms)?;
        clocked.witness.go_on();
        let took = clocked.archived_soon("after a jump of the idle")?;
        clocked.clock.set(-ahead_ms)?;
        println!(
            "{} h: archived after {took:?}, and {:?}",
            ahead_ms / HOUR_MS,
            clocked.archived_soon("after a jump under load")?
        );
    }
    // A clock that gains two minutes in each tenth of a second, past the session time-out; the drift itself is what takes time.
    let began = Instant::now();
    for step in 1.. {
        clocked.clock.set(step * 120_000)?;
        sleep(Duration::from_millis(100));
        if began.elapsed() > SESSION + Duration::from_secs(2) {
            break;
        }
    }
    clocked.archived_soon("with a clock that drifted")?;
    clocked.clock.set(0)?;
    clocked.archived_soon("with the right clock again")?;
    wait_until("a watermark that has come", ARCHIVED_WITHIN, || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        let watermark = clocked.watermark()?;
        Ok(watermark > 0.0 && watermark <= now)
    })?;
    ensure!(clocked.rebalances()? == rebalances, "the member was put out: {}", clocked.archiver.stderr());
    let site = clocked.judged()?;
    nothing_goes_early(&site)
}

/// Maintenance of the archive by a clock that is two days ahead.
fn nothing_goes_early(site: &Site) -> Result<()> {
    let clock = WallClock::new()?;
    clock.set(2 * DAY_MS)?;
    let maintain = |what: &[&str]| -> Result<String> {
        let arguments = [&["maintain"], what, &[site.url()]].concat();
        // What compaction takes out is as old as the clock of who did it says.
        let program = site.program(&arguments);
        let program = if what[0] == "compact" { program } else { program.envs(clock.environment()) };
        let ended = program.run(PATIENCE)?;
        ensure!(ended.code == Some(0), "{what:?}: {:?}\n{}\n{}", ended.code, ended.stdout, ended.stderr);
        Ok(ended.stdout)
    };
    // By the right clock the youngest hour has one more day.
    let now_ms = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let keep = format!("{}s", (now_ms - BASE_MS + 7 * HOUR_MS + DAY_MS) / 1_000);
    let expired = maintain(&["expire", "--keep", &keep])?;
    ensure!(expired.contains("0 hour(s)"), "{expired}");
    // A file that a batch left a moment ago.
    let folder = site.file("archive").join("clock/topic=clock/date=2026-01-01/hour=00");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("young.parquet"), "x")?;
    let swept = maintain(&["sweep", "--orphans-after", "1d"])?;
    ensure!(swept.contains("0 file(s) that no record names") && folder.join("young.parquet").exists(), "{swept}");
    // A replay whose clock is two days behind pins the table.
    maintain(&["compact", "--closed-for", "0s"])?;
    let pin = format!("{{\"holder\":\"behind\",\"tables\":{{\"clock\":1}},\"expires_ms\":{}}}", now_ms - DAY_MS);
    let pins = site.file("archive").join("_archive/pins");
    std::fs::create_dir_all(&pins)?;
    std::fs::write(pins.join("behind.json"), pin)?;
    let swept = maintain(&["sweep", "--removed-after", "0s"])?;
    ensure!(swept.contains("and 0 of removed segments") && !swept.contains(" 0 kept for replays"), "{swept}");
    site.verify(&["--deep"])?;
    Ok(())
}

#[test]
fn a_store_that_refuses_a_wrong_clock_is_waited_out() -> Result<()> {
    let mut clocked = Clocked::start("clock-s3", Site::on_s3(shared_s3(), "clock-s3")?)?;
    // Within what stores allow, a quarter of an hour.
    for ahead_ms in [10 * 60_000, -10 * 60_000] {
        clocked.clock.set(ahead_ms)?;
        println!("{} min: archived after {:?}", ahead_ms / 60_000, clocked.archived_soon("by a clock that is nearly right")?);
    }
    let rebalances = clocked.rebalances()?;
    clocked.clock.set(3 * HOUR_MS)?;
    clocked.archiver.wait_for_text("RequestTimeTooSkewed", PATIENCE)?;
    // Past the session time-out; the outage itself is what is tested.
    sleep(SESSION + Duration::from_secs(2));
    ensure!(clocked.rebalances()? == rebalances, "the member was put out: {}", clocked.archiver.stderr());
    // One that is started by such a clock waits as well; it is not taken for one without rights.
    let started = clocked.site.archiver_in(clocked.clock.environment())?;
    std::mem::replace(&mut clocked.archiver, started).kill9()?;
    clocked.archiver.wait_for_text("RequestTimeTooSkewed", PATIENCE)?;
    clocked.clock.set(0)?;
    clocked.archived_soon("with the right clock again")?;
    clocked.witness.rest()?;
    clocked.judged().map(drop)
}
