//! What Azure's answers mean. The promises are tested on the emulator (`tables`); here are answers that it never gives.

use object_store::path::Path;
use object_store::{PutMode, PutOptions};
use tapedeck_common::ErrorKind;
use tapedeck_storage::store::{Outcome, classify};
use tapedeck_testbed::{FaultProxy, HttpFault, Reply, Which};

use crate::kit::{again, given, segment};
use crate::suite::store_segment;

fn environment(endpoint: &str) -> Vec<(String, String)> {
    let own = [
        ("AZURE_STORAGE_ACCOUNT", "account"),
        ("AZURE_STORAGE_KEY", "bm90IGEga2V5"),
        ("TEST_URL", "az://events/some/prefix"),
        ("TEST_ENDPOINT", endpoint),
    ];
    own.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn reply(status: u16, code: &str) -> HttpFault {
    HttpFault::Instead(Reply::error(status, code))
}

/// S10, S11: many refusals share 409, and a lost race is 409 or 412. All say that something lies there; reading back decides.
#[test]
fn answers_of_azure_mean_what_they_should() {
    let proxy = FaultProxy::before_nothing().expect("starts");
    for (key, fault) in [
        ("exists", reply(409, "BlobAlreadyExists")),
        ("leased", reply(409, "LeaseIdMissing")),
        ("raced", reply(412, "ConditionNotMet")),
        ("skewed", reply(403, "AuthenticationFailed: Request date header too old")),
        ("expired", reply(401, "InvalidAuthenticationInfo: Lifetime validation failed. The token is expired.")),
        ("denied", reply(403, "AuthorizationPermissionMismatch")),
        ("busy", reply(503, "ServerBusy")),
        ("missing", reply(404, "ContainerNotFound")),
    ] {
        proxy.strike(Which::of("PUT").with(key), fault);
    }
    again("azure::each_answer", environment(&proxy.endpoint()));
    let seen = proxy.seen();
    assert_eq!(seen.len(), 8, "no create is repeated");
    assert!(seen.iter().all(|seen| seen.header("if-none-match") == Some("*")));
    assert!(seen.iter().all(|seen| seen.header("authorization").is_some_and(|key| key.starts_with("SharedKey account:"))));
}

#[tokio::test]
#[ignore = "started by a test of answers"]
async fn each_answer() {
    let given = given();
    for (key, outcome) in [
        ("exists", Outcome::Exists),
        ("leased", Outcome::Exists),
        ("raced", Outcome::Exists),
        ("skewed", Outcome::Unknown),
        ("expired", Outcome::Unknown),
        ("denied", Outcome::Denied),
        ("busy", Outcome::Unknown),
        ("missing", Outcome::NotFound),
    ] {
        let created = given.store.store.put_opts(&Path::from(key), "x".into(), PutOptions::from(PutMode::Create)).await;
        let error = created.expect_err("no success");
        assert_eq!(classify(&error), outcome, "{key}: {error}");
    }
}

/// Parts that no object named go after a week: the list of them cannot be stored any more, now or ever.
#[test]
fn parts_that_azure_forgot_are_told() {
    let proxy = FaultProxy::before_nothing().expect("starts");
    proxy.strike(Which::of("PUT").with("comp=blocklist"), reply(400, "InvalidBlockList"));
    proxy.strike(Which::of("PUT").with("comp=block&"), reply(201, "none"));
    proxy.strike(Which::of("HEAD"), reply(404, "BlobNotFound"));
    again("azure::lost_parts", environment(&proxy.endpoint()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by a test of answers"]
async fn lost_parts() {
    let mut given = given();
    let made = segment(&mut given, 0, 0, 17, 1 << 20);
    let segments = given.store.segments(std::sync::Arc::clone(&given.clock));
    let error = store_segment(&segments, "orders", &made, given.rng.fork()).await.expect_err("it cannot be ended");
    assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
}
