//! Memory follows `memory.budget`, whatever the shape of the load: many partitions, many open hours, many topics.
//! TAPEDECK_EVENTS and TAPEDECK_PARTITIONS make the loads larger.

mod support;

use anyhow::Result;
use support::{PATIENCE, Site, number};
use tapedeck_testbed::events::{BASE_MS, HOUR_MS};
use tapedeck_testbed::{Admin, Generator, KafkaOptions, KafkaServer, Loader, Workload, shared_kafka};

/// What the process may take at `memory.budget: 128MiB`.
const CAP: u64 = 256 << 20;

/// Archives what lies in topics of that prefix and answers the highest resident memory.
fn peak_while_archiving(kafka: &str, prefix: &str, budget: &str, tables: &[(String, u64)]) -> Result<u64> {
    let topics = format!("^{prefix}.*$");
    let mut site = Site::on_disk()?.source("main", kafka, prefix, &[&topics], "");
    site.settings = site.settings.replace("2s", "5s").replace("128MiB", budget);
    let mut archiver = site.archiver()?;
    for (table, rows) in tables {
        site.wait_for_rows(table, *rows)?;
    }
    let peak = archiver.peak_rss();
    archiver.terminate()?;
    let ended = archiver.wait(PATIENCE)?;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    println!("{prefix}: peak RSS {} MiB", peak >> 20);
    Ok(peak)
}

fn load(kafka: &str, topic: &str, partitions: i32, workload: Workload, count: u64, hours: f64) -> Result<()> {
    Admin::new(kafka)?.create_topic(topic, partitions, &[("retention.ms", "-1"), ("segment.index.bytes", "65536")])?;
    let loader = Loader::new(kafka, &[])?;
    // Interleaved over the hours, so that all of them are open at once.
    // And before now: a broker refuses times that lie ahead.
    let events = Generator::new(workload, 9, count).over(BASE_MS - (hours * HOUR_MS as f64) as i64, hours);
    for index in 0..count {
        let spread = index.wrapping_mul(0x9E37_79B1) % count;
        loader.send(topic, Some((index % partitions as u64) as i32), &events.event(spread))?;
    }
    loader.finish()
}

#[test]
fn many_partitions_stay_within_the_budget() -> Result<()> {
    let count = number("TAPEDECK_EVENTS", 60_000);
    let kafka = shared_kafka().bootstrap();
    load(&kafka, "wide", 64, Workload::Orders, count, 2.0)?;
    let peak = peak_while_archiving(&kafka, "wide", "128MiB", &[("wide".to_owned(), count)])?;
    assert!(peak < CAP, "peak RSS {peak}");
    Ok(())
}

#[test]
fn many_open_hours_stay_within_the_budget() -> Result<()> {
    let count = number("TAPEDECK_EVENTS", 200_000);
    let kafka = shared_kafka().bootstrap();
    load(&kafka, "hours", 4, Workload::Orders, count, 64.0)?;
    let peak = peak_while_archiving(&kafka, "hours", "128MiB", &[("hours".to_owned(), count)])?;
    assert!(peak < CAP, "peak RSS {peak}");
    Ok(())
}

#[test]
fn many_topics_stay_within_the_budget() -> Result<()> {
    let each = number("TAPEDECK_EVENTS", 60_000) / 20;
    let topics: Vec<_> = (0..30).map(|number| (format!("topic{number:02}"), each)).collect();
    let kafka = shared_kafka().bootstrap();
    for (topic, count) in &topics {
        load(&kafka, topic, 2, Workload::E, *count, 2.0)?;
    }
    let peak = peak_while_archiving(&kafka, "topic", "128MiB", &topics)?;
    assert!(peak < CAP, "peak RSS {peak}");
    Ok(())
}

/// A backfill of everything at once, at the default budget: a pod of 1 GiB holds it. With TAPEDECK_PARTITIONS=10000 that is the bar.
#[test]
fn thousands_of_partitions_backfill_in_a_pod_of_one_gibibyte() -> Result<()> {
    let (partitions, each) = (number("TAPEDECK_PARTITIONS", 500), number("TAPEDECK_EVENTS_EACH", 20));
    let server = KafkaServer::start(KafkaOptions { heap: "1g".to_owned(), ..KafkaOptions::default() })?;
    let kafka = server.bootstrap();
    let topics: Vec<_> = (0..10).map(|number| (format!("many{number}"), partitions / 10 * each)).collect();
    for (topic, count) in &topics {
        load(&kafka, topic, i32::try_from(partitions / 10)?, Workload::Orders, *count, 2.0)?;
    }
    let peak = peak_while_archiving(&kafka, "many", "512MiB", &topics)?;
    println!("{partitions} partitions of {each} events: peak RSS {} MiB", peak >> 20);
    assert!(peak < 1 << 30, "peak RSS {peak}");
    Ok(())
}
