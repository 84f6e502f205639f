//! The suite on stores that need no cloud, and on real servers: which stores an archive was proved on.

use std::sync::Arc;

use object_store::memory::InMemory;
use tapedeck_common::ErrorKind;
use tapedeck_storage::probe::probe;
use tapedeck_storage::store::{Store, StoreOptions, open_store};
use tapedeck_testbed::{AzuriteServer, Manners, PlainS3, RgwKind, RgwServer, shared_s3};

use crate::kit::{Given, again, given, has, passes, s3_environment};
use crate::suite;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_keeps_every_promise() {
    suite::holds(Given::of(Store::of(Arc::new(InMemory::new())))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_keeps_every_promise() {
    let dir = tempfile::tempdir().expect("tempdir");
    let url = format!("file://{}", dir.path().join("archive").display());
    suite::holds(Given::of(open_store(&StoreOptions::at(url)).expect("opens"))).await;
}

#[test]
fn versitygw_keeps_every_promise() {
    let bucket = "every-promise";
    shared_s3().make_bucket(bucket).expect("makes a bucket");
    let url = format!("s3://{bucket}/some/prefix");
    again("tables::the_suite_holds", s3_environment(&url, &shared_s3().endpoint()));
}

#[test]
fn ceph_keeps_every_promise() {
    if !has("ceph") {
        return;
    }
    let server = RgwServer::start(RgwKind::Rados).expect("the tests need a real Ceph");
    let url = format!("s3://{}/some/prefix", RgwServer::BUCKET);
    again("tables::the_suite_holds", s3_environment(&url, &server.endpoint()));
}

#[test]
fn azurite_keeps_every_promise() {
    if !has("azurite") {
        return;
    }
    let server = AzuriteServer::start().expect("the tests need the emulator of Azure");
    for scheme in ["az", "abfss"] {
        let url = format!("{scheme}://{}/some/{scheme}", AzuriteServer::CONTAINER);
        let own = [("TEST_URL", url)];
        again("tables::the_suite_holds", server.environment().into_iter().chain(own));
    }
}

/// A suite that nothing fails proves nothing.
#[test]
fn the_suite_itself_catches_a_store_that_ignores_conditions() {
    let store = PlainS3::start(Manners::IgnoresConditions).expect("starts");
    assert!(!passes("tables::the_suite_holds", s3_environment("s3://events/a", &store.endpoint())));
    store.behave(Manners::Good);
    again("tables::the_suite_holds", s3_environment("s3://events/b", &store.endpoint()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the tests of real servers, with credentials"]
async fn the_suite_holds() {
    suite::holds(given()).await;
}

/// S5: Ceph's gateway over SQLite takes every conditional write for a plain one, and answers success.
#[test]
fn a_real_store_that_ignores_conditions_is_refused() {
    if !has("ceph") {
        return;
    }
    let server = RgwServer::start(RgwKind::Dbstore).expect("the tests need Ceph's gateway");
    let url = format!("s3://{}/some/prefix", RgwServer::BUCKET);
    again("tables::the_probe_refuses_it", s3_environment(&url, &server.endpoint()));
}

#[tokio::test]
#[ignore = "started by a_real_store_that_ignores_conditions_is_refused"]
async fn the_probe_refuses_it() {
    let mut given = given();
    let error = probe(&given.store, &*given.clock, &mut given.rng).await.expect_err("it let everybody create the object");
    println!("{error}");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("cannot hold an archive: it let "), "{error}");
}
