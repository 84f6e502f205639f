//! A bus that loses the tail of a partition and writes other events at the same offsets, as after an unclean election: the archive
//! keeps the history that it has, takes nothing of the other one, halts the partition and counts it; the others go on.
//! A real broker is killed, and its segment is cut before it starts again.

#![allow(clippy::disallowed_methods, reason = "real servers live in real time")]

mod support;

use anyhow::{Context, Result, ensure};
use support::{PATIENCE, Site, metric};
use tapedeck_testbed::{Admin, Generator, KafkaOptions, KafkaServer, Loader, Running, Truth, Workload, wait_until};

const CUT: i32 = 0;
const WHOLE: i32 = 1;
const EVENTS: u64 = 2_000;
const CLIENT: &str =
    "client: { session.timeout.ms: '6000', heartbeat.interval.ms: '1000', topic.metadata.refresh.interval.ms: '500' }";

struct Broker {
    kafka: KafkaServer,
    topic: &'static str,
}

impl Broker {
    fn start(topic: &'static str) -> Result<Self> {
        let kafka = KafkaServer::start(KafkaOptions::default())?;
        Admin::new(&kafka.bootstrap())?.create_topic(topic, 2, &[("retention.ms", "-1")])?;
        Ok(Self { kafka, topic })
    }

    fn site(&self) -> Result<Site> {
        Ok(Site::on_disk()?.source("main", &self.kafka.bootstrap(), self.topic, &[self.topic], CLIENT))
    }

    /// So many events for each partition; none of another seed is like them.
    fn produce(&self, seed: u64, each: u64) -> Result<()> {
        // Small batches, so that the cut falls between two of them.
        let loader = Loader::new(&self.kafka.bootstrap(), &[("batch.num.messages", "50")])?;
        for (index, event) in (0..).zip(Generator::new(Workload::C, seed, 2 * each).events()) {
            loader.send(self.topic, Some(index % 2), &event)?;
        }
        loader.finish()
    }

    fn end_of(&self, partition: i32) -> Result<i64> {
        let (admin, mut end) = (Admin::new(&self.kafka.bootstrap())?, None);
        // A broker that has just started does not lead yet.
        wait_until("the end of a partition", PATIENCE, || {
            end = admin.watermarks(self.topic).ok().and_then(|marks| Some(marks.get(&partition)?.1));
            Ok(end.is_some())
        })?;
        end.context("waited for")
    }

    /// The partition loses its newer half.
    fn lose_the_tail(&self) -> Result<()> {
        self.kafka.kill9()?;
        self.kafka.cut_log(self.topic, CUT, 0.5)?;
        self.kafka.start_again()?;
        let end = self.end_of(CUT)?;
        println!("partition {CUT} ends at {end}, after {EVENTS}");
        ensure!(end > 0 && end < EVENTS as i64, "nothing was cut off, or everything: {end}");
        ensure!(self.end_of(WHOLE)? == EVENTS as i64);
        Ok(())
    }

    /// Other events, past the position of the archive.
    fn write_on(&self) -> Result<()> {
        self.produce(2, EVENTS)?;
        ensure!(self.end_of(CUT)? > EVENTS as i64, "the archive's position is not passed");
        Ok(())
    }
}

fn rows_of(site: &Site, topic: &str, partition: i32) -> Result<Vec<(i32, i64, u64)>> {
    let view = site.view(topic)?.context("the table is there")?;
    Ok(site.yielded(&view)?.rows.into_iter().filter(|row| row.0 == partition).collect())
}

/// All of the first history is archived.
fn archived(broker: &Broker, site: &Site) -> Result<()> {
    broker.produce(1, EVENTS)?;
    let truth = Truth::from_bus(&broker.kafka.bootstrap(), &[broker.topic])?;
    site.wait_for_rows(broker.topic, truth.len())?;
    ensure!(site.judge(&truth, broker.topic)?.is_clean());
    // The group knows it too; with its offsets stands the leader epoch by which the next process can tell.
    let admin = Admin::new(&broker.kafka.bootstrap())?;
    wait_until("the group's offsets", PATIENCE, || {
        Ok(admin.committed(broker.topic, broker.topic)?.values().filter(|offset| **offset == EVENTS as i64).count() == 2)
    })
}

/// The partition is halted and counted, its history is the one that was archived; the other partition goes on.
fn is_halted(broker: &Broker, site: &Site, archiver: &mut Running, before: &[(i32, i64, u64)]) -> Result<()> {
    let topic = broker.topic;
    archiver.wait_for_text("admin endpoint", PATIENCE)?;
    wait_until("the partition to be halted, and the other to go on", PATIENCE, || {
        archiver.must_run()?;
        let halted = metric(archiver, "tapedeck_archiver_lanes_halted_total", topic)?;
        Ok(halted >= 1.0 && rows_of(site, topic, WHOLE)?.len() as u64 == 2 * EVENTS)
    })
    .with_context(|| archiver.stderr())?;
    ensure!(rows_of(site, topic, CUT)? == before, "two histories are mixed");
    ensure!(metric(archiver, "tapedeck_archiver_gap_events_total", "")? == 0.0);
    site.verify(&["--deep"])?;
    Ok(())
}

fn end(archiver: Running) -> Result<()> {
    archiver.terminate()?;
    let ended = archiver.wait(PATIENCE)?;
    ensure!(ended.code == Some(0), "{:?}\n{}", ended.code, ended.stderr);
    Ok(())
}

/// The archiver does not see the bus while it ends below the archive's position: when it looks again, the end is far beyond.
#[test]
fn a_tail_that_was_lost_and_overwritten_unseen_halts_its_partition() -> Result<()> {
    let broker = Broker::start("overwritten")?;
    let site = broker.site()?;
    let mut archiver = site.archiver()?;
    archived(&broker, &site)?;
    let before = rows_of(&site, broker.topic, CUT)?;
    archiver.freeze()?;
    broker.lose_the_tail()?;
    broker.write_on()?;
    archiver.thaw()?;
    is_halted(&broker, &site, &mut archiver, &before)?;
    end(archiver)?;
    // Nor does the next process mix them, which has seen nothing of it.
    let mut next = site.archiver()?;
    is_halted(&broker, &site, &mut next, &before)?;
    println!("{}", next.stderr().lines().filter(|line| line.contains("halted")).collect::<Vec<_>>().join("\n"));
    end(next)
}

/// The archiver sees that the bus ends below its position, and later that it has passed it.
#[test]
fn a_tail_that_was_lost_halts_its_partition_and_it_stays_so() -> Result<()> {
    let broker = Broker::start("lost")?;
    let site = broker.site()?;
    let mut archiver = site.archiver()?;
    archived(&broker, &site)?;
    let before = rows_of(&site, broker.topic, CUT)?;
    broker.lose_the_tail()?;
    wait_until("the partition to be halted", PATIENCE, || {
        archiver.must_run()?;
        Ok(metric(&archiver, "tapedeck_archiver_lanes_halted_total", broker.topic)? >= 1.0)
    })?;
    broker.write_on()?;
    is_halted(&broker, &site, &mut archiver, &before)?;
    end(archiver)?;
    let mut next = site.archiver()?;
    is_halted(&broker, &site, &mut next, &before)?;
    end(next)
}
