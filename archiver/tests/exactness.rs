//! Every visible event of a real Kafka is in the archive exactly once, byte for byte.
//! `TAPEDECK_EXACT_EVENTS` sets how many ordinary events there are; the nasty topic has a tenth of that, and more.

mod support;

use anyhow::Result;
use support::{PATIENCE, Site, number};
use tapedeck_testbed::events::nasty::Nasty;
use tapedeck_testbed::{Admin, Generator, Loader, Truth, Workload, shared_kafka, shared_s3};

/// Loads `count` ordinary events and a nasty topic, archives both, and judges.
fn archive_and_judge(site: &Site, bootstrap: &str, plain: &str, nasty: &str, count: u64) -> Result<()> {
    Admin::new(bootstrap)?.create_topic(plain, 4, &[("retention.ms", "-1")])?;
    let archiver = site.archiver()?;
    let loader = Loader::new(bootstrap, &[])?;
    for event in Generator::new(Workload::Orders, 7, count).events() {
        loader.send(plain, None, &event)?;
    }
    loader.finish()?;
    let nasty_events = Nasty { plain: count / 10, transactional: count / 20, large: 8, ..Nasty::default() };
    let loaded = nasty_events.load(bootstrap, nasty)?;
    site.wait_for_rows(plain, count)?;
    site.wait_for_rows(nasty, loaded.visible)?;
    archiver.terminate()?;
    let ended = archiver.wait(PATIENCE)?;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for topic in [plain, nasty] {
        let report = site.judge(&Truth::from_bus(bootstrap, &[topic])?, topic)?;
        assert!(report.is_clean(), "{topic}: {report}");
    }
    site.verify(&["--deep"])?;
    Ok(())
}

#[test]
fn everything_on_the_bus_is_on_the_disk_exactly_once() -> Result<()> {
    let kafka = shared_kafka().bootstrap();
    let site = Site::on_disk()?.source("main", &kafka, "exact-disk", &["^exact-disk-.+$"], "");
    archive_and_judge(&site, &kafka, "exact-disk-plain", "exact-disk-nasty", number("TAPEDECK_EXACT_EVENTS", 30_000))
}

#[test]
fn everything_on_the_bus_is_in_the_bucket_exactly_once() -> Result<()> {
    let kafka = shared_kafka().bootstrap();
    let site = Site::on_s3(shared_s3(), "exact")?;
    let site = site.source("main", &kafka, "exact-s3", &["exact-s3-plain", "exact-s3-nasty"], "");
    archive_and_judge(&site, &kafka, "exact-s3-plain", "exact-s3-nasty", number("TAPEDECK_EXACT_EVENTS", 30_000))
}
