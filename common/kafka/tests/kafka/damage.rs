//! A partition with bytes that are not what was written: its lane stops before them, and only its lane.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use tapedeck_common::bus::Consumer;
use tapedeck_common::error::ErrorKind;
use tapedeck_testbed::{Admin, KafkaOptions, KafkaServer, Loader};

use crate::support::{Member, SharedArchive, event, settings};

/// One batch of one event each, so that damage hits one event.
fn produce(bootstrap: &str, topic: &str, values: &[&str]) {
    for value in values {
        let loader = Loader::new(bootstrap, &[]).expect("a producer");
        loader.send(topic, Some(0), &event(value)).expect("sent");
        loader.finish().expect("delivered");
    }
}

/// Turns one bit of a value where the broker keeps it.
fn flip(file: &Path, value: &str) {
    let bytes = fs::read(file).expect("the broker's file");
    let at = bytes.windows(value.len()).position(|window| window == value.as_bytes()).expect("the value, as it is");
    let file = fs::OpenOptions::new().write(true).open(file).expect("the broker's file");
    file.write_all_at(&[bytes[at] ^ 1], at as u64).expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_batch_halts_its_lane_and_no_other_and_nothing_behind_it_is_taken_for_next() {
    let broker = KafkaServer::start(KafkaOptions::default()).expect("a broker of our own");
    let bootstrap = broker.bootstrap();
    let admin = Admin::new(&bootstrap).expect("an admin client");
    for topic in ["damaged", "whole"] {
        admin.create_topic(topic, 1, &[]).expect("a topic");
    }
    produce(&bootstrap, "damaged", &["first", "second", "third"]);
    produce(&bootstrap, "whole", &["one", "two"]);
    let file = broker.segment_file("damaged", 0);
    flip(&file, "second");
    let mut settings = settings("damage", &["damaged", "whole"]);
    settings.cluster.brokers = vec![bootstrap.clone()];
    let archive = SharedArchive::default();
    let mut member = Member::join(settings.clone(), &archive);
    member
        .until("the lane is halted, the other one read", |member| !member.halted.is_empty() && member.archive.rows() == 3)
        .await;
    let (lane, error) = member.halted.remove(0);
    assert_eq!((member.lanes[&lane].as_ref(), error.kind()), ("damaged", ErrorKind::Corrupt));
    assert!(error.to_string().contains("topic damaged partition 0: at offset 1"), "{error}");
    produce(&bootstrap, "whole", &["three"]);
    member.until("the other one goes on", |member| member.archive.rows() == 4).await;
    archive.assert_holds_once(["first", "one", "two", "three"].map(str::to_owned));
    Box::new(member.consumer).close().await;

    flip(&file, "recond");
    let mut member = Member::join(settings, &archive);
    member.until("the mended partition is read on", |member| member.archive.rows() == 6).await;
    assert!(member.halted.is_empty());
    archive.assert_holds_once(["first", "second", "third", "one", "two", "three"].map(str::to_owned));
}
