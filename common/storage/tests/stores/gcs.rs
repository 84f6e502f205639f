//! Google Cloud Storage as far as a stub can prove it: what the client sends, and what it makes of the answers. The stub speaks
//! the XML interface and keeps creates apart by `x-goog-if-generation-match`. Nothing here was tried against Google itself.

use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions};
use tapedeck_storage::store::{Outcome, StoreKind, classify, is_throttled};
use tapedeck_testbed::{FaultProxy, HttpFault, Manners, PlainS3, Reply, Seen, Which};

use crate::kit::{again, given};
use crate::suite;

fn environment(endpoint: &str) -> Vec<(String, String)> {
    let own = [("GOOGLE_BEARER_TOKEN", "a-token"), ("TEST_URL", "gs://events/some/prefix"), ("TEST_ENDPOINT", endpoint)];
    own.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The key of a request: this client encodes everything but letters and digits.
fn key(seen: &Seen) -> String {
    let marks = [("%2F", "/"), ("%5F", "_"), ("%2E", "."), ("%3D", "="), ("%2D", "-"), ("%21", "!")];
    marks.iter().fold(seen.target.clone(), |target, (encoded, plain)| target.replace(encoded, plain))
}

#[test]
fn the_client_of_google_keeps_every_promise_against_a_stub_and_sends_what_google_wants() {
    let store = PlainS3::start(Manners::Good).expect("starts");
    let proxy = FaultProxy::before(store.address()).expect("starts");
    again("gcs::the_suite_holds", environment(&proxy.endpoint()));
    let seen = proxy.seen();
    // What the suite creates is a create on the wire; a plain put is none.
    let puts = |parts: &[&str], end: &str| -> Vec<_> {
        let of =
            |seen: &&Seen| seen.method == "PUT" && parts.iter().all(|part| key(seen).contains(part)) && key(seen).ends_with(end);
        seen.iter().filter(of).map(|seen| seen.header("x-goog-if-generation-match")).collect()
    };
    let (records, segments) =
        (puts(&["/orders!20", "/_delta_log/0"], ".json"), puts(&["/orders!20", "/topic=orders/"], ".parquet"));
    assert!(records.len() > 20 && records.iter().all(|condition| *condition == Some("0")), "{records:?}");
    assert!(segments.len() > 20 && segments.iter().all(Option::is_none), "{segments:?}");
    assert!(seen.iter().all(|seen| seen.header("authorization") == Some("Bearer a-token")));
    assert!(seen.iter().any(|seen| seen.method == "POST" && seen.target.contains("uploads")), "large segments go in parts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by a test of the stub"]
async fn the_suite_holds() {
    let given = given();
    assert_eq!(given.store.kind, StoreKind::Gcs);
    suite::holds(given).await;
}

#[test]
fn answers_of_google_mean_what_they_should() {
    let proxy = FaultProxy::before_nothing().expect("starts");
    let reply = |status: u16, code: &str| HttpFault::Instead(Reply::error(status, code));
    for (key, fault) in [
        ("exists", reply(412, "PreconditionFailed")),
        ("paced", reply(429, "SlowDown")),
        ("unwell", reply(503, "ServiceUnavailable")),
        ("denied", reply(403, "AccessDenied")),
        ("missing", reply(404, "NoSuchBucket")),
    ] {
        proxy.strike(Which::of("PUT").with(key), fault);
    }
    again("gcs::each_answer", environment(&proxy.endpoint()));
    assert_eq!(proxy.seen().len(), 5, "no create is repeated");
}

#[tokio::test]
#[ignore = "started by a test of the stub"]
async fn each_answer() {
    let given = given();
    for (key, outcome, throttled) in [
        ("exists", Outcome::Exists, false),
        ("paced", Outcome::Unknown, true),
        ("unwell", Outcome::Unknown, false),
        ("denied", Outcome::Denied, false),
        ("missing", Outcome::NotFound, false),
    ] {
        let created = given.store.store.put_opts(&Path::from(key), "x".into(), PutOptions::from(PutMode::Create)).await;
        let error = created.expect_err("no success");
        assert_eq!((classify(&error), is_throttled(&error)), (outcome, throttled), "{key}: {error}");
    }
}

/// The client words a lost upload as any other error, so that repeating it would never end.
#[test]
fn an_upload_that_google_forgot_is_told() {
    let store = PlainS3::start(Manners::Good).expect("starts");
    let proxy = FaultProxy::before(store.address()).expect("starts");
    proxy.strike(Which::of("POST").with("uploadId="), HttpFault::instead(404, "NoSuchUpload"));
    again("gcs::a_lost_upload", environment(&proxy.endpoint()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by a test of the stub"]
async fn a_lost_upload() {
    let mut given = given();
    let made = crate::kit::segment(&mut given, 0, 0, 17, 1 << 20);
    let segments = given.store.segments(std::sync::Arc::clone(&given.clock));
    let error = suite::store_segment(&segments, "orders", &made, given.rng.fork()).await.expect_err("it cannot be ended");
    assert_eq!(error.kind(), tapedeck_common::ErrorKind::Stale, "{error}");
    let head = given.store.patient.head(&Path::from(made.by.path)).await.expect_err("nothing is there");
    assert_eq!(classify(&head), Outcome::NotFound);
}
