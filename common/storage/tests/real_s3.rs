//! Store, probe, log and verification on a real S3 server, with the conditional writes of its own.
//!
//! Credentials come from the environment only, so the first test starts this program once more with them in place.
#![allow(clippy::disallowed_methods, reason = "a real server needs a real clock")]

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use object_store::ObjectStoreExt;
use tapedeck_common::commit::{Advance, Appended, CommitLog, Record};
use tapedeck_common::error::report;
use tapedeck_common::{Clock, ErrorKind, LaneId, Position, Span, Timestamp};
use tapedeck_storage::archive::{Archive, TABLE_PER_TOPIC};
use tapedeck_storage::log::{History, LogPaths, TableLog, TableOptions, TableView, VerifyOptions, verify_table};
use tapedeck_storage::probe::probe;
use tapedeck_storage::store::{StoreOptions, open_store};
use tapedeck_testbed::{S3Server, shared_s3};

const BUCKET: &str = "storage-tests";
const WRITERS: i32 = 6;
const STEPS: u64 = 10;

struct RealClock(Instant);

#[async_trait::async_trait]
impl Clock for RealClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        Timestamp::default() + since
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    async fn sleep_until(&self, deadline: Duration) {
        tokio::time::sleep(deadline.saturating_sub(self.monotonic())).await;
    }
}

/// Runs a test of this file again, with an endpoint and credentials.
fn with_credentials(test: &str, endpoint: &str) {
    let exe = std::env::current_exe().expect("this program");
    let mut again = Command::new(exe);
    again.args(["--exact", test, "--ignored", "--nocapture"]).envs(S3Server::environment()).env("TEST_ENDPOINT", endpoint);
    assert!(again.status().expect("starts").success(), "{test} failed, see above");
}

fn options(bucket: &str) -> StoreOptions {
    StoreOptions {
        url: format!("s3://{bucket}/some/prefix"),
        endpoint: Some(std::env::var("TEST_ENDPOINT").expect("set by the test that starts this one")),
        region: Some(S3Server::REGION.to_owned()),
        path_style: None,
    }
}

#[test]
fn a_real_s3_server_holds_an_archive() {
    let server = shared_s3();
    server.make_bucket(BUCKET).expect("makes a bucket");
    with_credentials("an_archive_in_a_bucket", &server.endpoint());
    with_credentials("stores_that_cannot_be_used_say_why", &server.endpoint());
}

#[tokio::test]
#[ignore = "started by a_real_s3_server_holds_an_archive, with credentials"]
async fn an_archive_in_a_bucket() {
    let clock: Arc<dyn Clock> = Arc::new(RealClock(Instant::now()));
    let mut rng = fastrand::Rng::with_seed(std::process::id().into());
    let store = open_store(&options(BUCKET)).expect("opens");
    probe(&store, &*clock, &mut rng).await.unwrap_or_else(|error| panic!("{}", report(&error)));
    let archive = Archive::open_or_create(store.clone(), TABLE_PER_TOPIC, &*clock, &mut rng).await.expect("opens");
    let table = format!("t{}", rng.u64(..));
    archive.settle_topic(&table, &table, &*clock, &mut rng).await.expect("settles");
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..WRITERS {
        let (store, clock, rng) = (store.clone(), Arc::clone(&clock), rng.fork());
        let options = TableOptions { checkpoint_every: 20, ..TableOptions::of(&table, format!("w{number}")) };
        tasks.spawn(async move {
            let mut log = TableLog::open(&store, options, clock, rng, Arc::new(())).await.expect("opens");
            write_lane(&mut log, number).await;
            log.finish_checkpoint().await;
        });
    }
    tasks.join_all().await;
    let verified = verify_table(&store, &table, &VerifyOptions::default()).await.expect("reads");
    assert!(verified.is_complete(), "{:?}", verified.findings);
    assert_eq!(verified.version, WRITERS as u64 * (STEPS + 1));
    let recent = TableView::load(&store, &table, None, History::Recent).await.expect("reads");
    let whole = TableView::load(&store, &table, None, History::Whole).await.expect("reads");
    assert_eq!(recent.positions, whole.positions);
    assert!(recent.history_from > whole.history_from, "a checkpoint was used");
    store.patient.head(&LogPaths::of(&table).hint()).await.expect("a hint");
    assert_eq!(Archive::open(store).await.expect("opens").tables().await.expect("lists"), [table]);
}

/// A lane that starts, and then loses everything step by step: records without segments are enough here.
async fn write_lane(log: &mut TableLog, number: i32) {
    let lane = LaneId::new("kafka/c/t/0", number);
    for step in 0..=STEPS {
        let (from, until) = (Position::new(step.saturating_sub(1)), Position::new(step));
        let advance = Advance {
            lane: lane.clone(),
            expected: (step > 0).then_some(from),
            span: Span::new(from, until).expect("forward"),
            rows: 0,
            skipped: 0,
            gap: None,
        };
        let appended = log.append(&Record { advances: vec![advance], segments: Vec::new() }).await.expect("answers");
        assert!(matches!(appended, Appended::Committed(_)), "{appended:?}");
    }
}

#[tokio::test]
#[ignore = "started by a_real_s3_server_holds_an_archive, with credentials"]
async fn stores_that_cannot_be_used_say_why() {
    let clock = RealClock(Instant::now());
    let mut rng = fastrand::Rng::with_seed(1);
    let missing = open_store(&options("no-such-bucket")).expect("opens");
    let error = probe(&missing, &clock, &mut rng).await.expect_err("no bucket");
    assert!(error.kind() == ErrorKind::Invalid && report(&error).contains("NoSuchBucket"), "{}", report(&error));
    let away = StoreOptions { endpoint: Some("http://127.0.0.1:9".to_owned()), ..options(BUCKET) };
    let error = probe(&open_store(&away).expect("opens"), &clock, &mut rng).await.expect_err("nobody there");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", report(&error));
}
