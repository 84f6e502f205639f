//! S3 stores that cannot be used, and more writers than two on a real one.

use std::sync::Arc;

use tapedeck_common::ErrorKind;
use tapedeck_common::commit::{Appended, CommitLog, Record};
use tapedeck_common::error::report;
use tapedeck_storage::log::{TableLog, TableOptions, VerifyOptions, verify_table};
use tapedeck_storage::probe::probe;
use tapedeck_storage::store::{StoreOptions, open_store};
use tapedeck_testbed::shared_s3;

use crate::kit::{Given, advance, again, given, options, s3_environment};

const BUCKET: &str = "storage-tests";
const WRITERS: i32 = 6;
const STEPS: u64 = 10;

#[test]
fn six_writers_share_a_log_on_a_real_server() {
    shared_s3().make_bucket(BUCKET).expect("makes a bucket");
    let environment = s3_environment(&format!("s3://{BUCKET}/some/prefix"), &shared_s3().endpoint());
    again("s3::six_writers", environment.clone());
    again("s3::stores_that_cannot_be_used_say_why", environment);
}

#[tokio::test]
#[ignore = "started by six_writers_share_a_log_on_a_real_server"]
async fn six_writers() {
    let mut given = given();
    let table = given.name();
    let mut tasks = tokio::task::JoinSet::new();
    for partition in 0..WRITERS {
        let own = Given { store: given.store.clone(), clock: Arc::clone(&given.clock), rng: given.rng.fork() };
        tasks.spawn(write_lane(own, table.clone(), partition));
    }
    tasks.join_all().await;
    let verified = verify_table(&given.store, &table, &VerifyOptions::default()).await.expect("reads");
    assert!(verified.is_complete(), "{:?}", verified.findings);
    assert_eq!(verified.version, WRITERS as u64 * (STEPS + 1));
}

/// A lane that starts, and then finds nothing step by step: records without segments are enough here.
async fn write_lane(mut given: Given, table: String, partition: i32) {
    let options = TableOptions { checkpoint_every: 20, ..TableOptions::of(&table, format!("w{partition}")) };
    let (clock, rng) = (Arc::clone(&given.clock), given.rng.fork());
    let mut log = TableLog::open(&given.store, options, clock, rng, Arc::new(())).await.expect("opens");
    for step in 0..=STEPS {
        let advances = vec![advance(partition, step.checked_sub(1), step, 0)];
        let appended = log.append(&Record { advances, segments: Vec::new() }).await.expect("answers");
        assert!(matches!(appended, Appended::Committed(_)), "{appended:?}");
    }
    log.finish_checkpoint().await;
}

#[tokio::test]
#[ignore = "started by six_writers_share_a_log_on_a_real_server"]
async fn stores_that_cannot_be_used_say_why() {
    let mut given = given();
    let missing = open_store(&StoreOptions { url: "s3://no-such-bucket/a".to_owned(), ..options() }).expect("opens");
    let error = probe(&missing, &*given.clock, &mut given.rng).await.expect_err("no bucket");
    assert!(error.kind() == ErrorKind::Invalid && report(&error).contains("NoSuchBucket"), "{}", report(&error));
    let away = StoreOptions { endpoint: Some("http://127.0.0.1:9".to_owned()), ..options() };
    let error = probe(&open_store(&away).expect("opens"), &*given.clock, &mut given.rng).await.expect_err("nobody there");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", report(&error));
}
