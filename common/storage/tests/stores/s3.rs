//! S3 stores that cannot be used, and more writers than two on a real one.

use std::sync::Arc;

use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions};
use tapedeck_common::ErrorKind;
use tapedeck_common::commit::{Appended, CommitLog, Record};
use tapedeck_common::error::report;
use tapedeck_storage::log::{TableLog, TableOptions, VerifyOptions, verify_table};
use tapedeck_storage::probe::probe;
use tapedeck_storage::store::{Outcome, StoreOptions, classify, open_store};
use tapedeck_testbed::{FaultProxy, HttpFault, Reply, Which, shared_s3};

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

/// S14: what creates, puts and parts go through repeats no request, so that each attempt has a signature and a token of its own,
/// and no create is told of its own success as somebody else's. Reads are repeated.
#[test]
fn answers_of_s3_mean_what_they_should_and_no_write_is_repeated() {
    let proxy = FaultProxy::before_nothing().expect("starts");
    for (key, status, code, _) in ANSWERS {
        proxy.strike(Which::all().with(key), HttpFault::Instead(Reply::error(status, code)));
    }
    again("s3::each_answer", s3_environment("s3://events/a", &proxy.endpoint()));
    for (key, status, ..) in ANSWERS {
        let methods = |method| proxy.seen().iter().filter(|seen| seen.target.contains(key) && seen.method == method).count();
        // A create, a put and a part.
        assert_eq!(methods("PUT"), 3, "{key}");
        assert_eq!(methods("GET"), if status >= 500 || status == 429 { 4 } else { 1 }, "{key}");
    }
}

const ANSWERS: [(&str, u16, &str, Outcome); 9] = [
    ("exists", 412, "PreconditionFailed", Outcome::Exists),
    ("conflict", 409, "ConditionalRequestConflict", Outcome::Exists),
    ("unwell", 500, "InternalError", Outcome::Unknown),
    ("slower", 503, "SlowDown", Outcome::Unknown),
    ("paced", 429, "TooManyRequests", Outcome::Unknown),
    ("skewed", 403, "RequestTimeTooSkewed", Outcome::Unknown),
    ("expired", 400, "ExpiredToken", Outcome::Unknown),
    ("denied", 403, "AccessDenied", Outcome::Denied),
    ("missing", 404, "NoSuchKey", Outcome::NotFound),
];

#[tokio::test]
#[ignore = "started by answers_of_s3_mean_what_they_should_and_no_write_is_repeated"]
async fn each_answer() {
    let given = given();
    for (key, .., outcome) in ANSWERS {
        let (key, id) = (Path::from(key), String::from("an-upload"));
        let created = given.store.store.put_opts(&key, "x".into(), PutOptions::from(PutMode::Create)).await;
        assert_eq!(classify(&created.expect_err("no success")), outcome, "{key}");
        given.store.store.put(&key, "x".into()).await.expect_err("no success");
        given.store.parts.put_part(&key, &id, 0, "x".into()).await.expect_err("no success");
        given.store.patient.get(&key).await.expect_err("no success");
    }
}
