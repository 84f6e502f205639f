//! P13: events up to 64 MiB among small ones, on a real Kafka, at `memory.budget: 128MiB`. None blocks its partition, none is
//! dropped, each over-size one lies in a segment of its own, and memory keeps to what docs/decisions/0013 states.

mod support;

use anyhow::Result;
use support::{PATIENCE, Site, block_on};
use tapedeck_storage::log::{History, TableView};
use tapedeck_testbed::{Admin, Event, KafkaOptions, KafkaServer, Loader, Truth};

const MIB: usize = 1 << 20;

/// Of each partition, with small events in front of each, and after the last.
const LARGE: [[usize; 3]; 2] = [[1, 64, 20], [64, 5, 40]];

const SMALL: usize = 500;

/// The budget, what the process needs beside it, the room of the largest event, and its bytes in the client's hands.
const CAP: u64 = (128 + 64 + 4 * 64 + 64) << 20;

fn event(bytes: usize, number: usize, noise: &mut fastrand::Rng) -> Event {
    let mut value = vec![0; bytes];
    noise.fill(&mut value);
    let timestamp = tapedeck_testbed::events::BASE_MS + number as i64;
    Event { key: Some(number.to_string().into_bytes()), value: Some(value), headers: Vec::new(), timestamp }
}

#[test]
fn giants_among_small_events_are_archived_and_block_nobody() -> Result<()> {
    let server = KafkaServer::start(KafkaOptions { heap: "1g".to_owned(), ..KafkaOptions::default() })?;
    let kafka = server.bootstrap();
    Admin::new(&kafka)?.create_topic("giants", 2, &[("max.message.bytes", "134217728"), ("retention.ms", "-1")])?;
    let loader = Loader::new(&kafka, &[("message.max.bytes", "134217728")])?;
    let (mut noise, mut number) = (fastrand::Rng::with_seed(13), 0);
    for step in 0..=LARGE[0].len() {
        for (partition, large) in LARGE.iter().enumerate() {
            let sizes = std::iter::repeat_n(200, SMALL).chain(large.get(step).map(|mib| mib * MIB));
            for bytes in sizes {
                loader.send("giants", Some(partition as i32), &event(bytes, number, &mut noise))?;
                number += 1;
            }
        }
    }
    loader.finish()?;
    let site = Site::on_disk()?.source("main", &kafka, "giants", &["giants"], "");
    let mut archiver = site.archiver()?;
    site.wait_for_rows("giants", number as u64)?;
    let peak = archiver.peak_rss();
    archiver.terminate()?;
    assert_eq!(archiver.wait(PATIENCE)?.code, Some(0));
    println!("{number} events, peak RSS {} MiB", peak >> 20);
    site.verify(&["--deep"])?;
    let report = site.judge(&Truth::from_bus(&kafka, &["giants"])?, "giants")?;
    assert!(report.is_clean(), "{report}");
    let view = block_on(TableView::load(&site.store()?, "giants", None, History::Recent))?;
    let alone = |mib: usize| {
        let holds = |bytes: u64| bytes as usize >= mib * MIB;
        view.segments
            .iter()
            .filter(|live| live.segment.rows == 1 && live.segment.lanes.iter().any(|lane| holds(lane.payload_bytes)))
            .count()
    };
    assert_eq!((alone(64), alone(20)), (2, 4), "every over-size event lies alone");
    assert!(peak < CAP, "peak RSS {peak}");
    Ok(())
}
