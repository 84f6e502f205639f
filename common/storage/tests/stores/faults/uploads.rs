//! Segments: an upload ends with the whole object at its key, or says that it must be done anew and leaves nothing.

use std::sync::Arc;

use object_store::ObjectStoreExt;
use tapedeck_common::ErrorKind;
use tapedeck_storage::layout;
use tapedeck_storage::segment::{SegmentError, verify_object};
use tapedeck_storage::store::{Outcome, classify};
use tapedeck_testbed::{HttpFault, Reply, Seen, Which};

use super::{Behind, after, before};
use crate::kit::{Made, segment};
use crate::suite::store_segment;

const TABLE: &str = "orders";

fn small(behind: &mut Behind) -> Made {
    segment(&mut behind.direct, 0, 0, 10, 1_000)
}

/// Two parts and a bit.
fn large(behind: &mut Behind) -> Made {
    segment(&mut behind.direct, 0, 0, 17, 1 << 20)
}

async fn store(behind: &mut Behind, made: &Made) -> Result<(), SegmentError> {
    let segments = behind.given.store.segments(Arc::clone(&behind.given.clock));
    store_segment(&segments, TABLE, made, behind.direct.rng.fork()).await
}

async fn is_whole(behind: &Behind, made: &Made, what: &HttpFault) {
    let key = layout::table_object(TABLE, &made.by.path);
    let checked = verify_object(&*behind.direct.store.patient, &key, &made.by).await;
    checked.unwrap_or_else(|error| panic!("{what:?}: {error}"));
}

async fn is_absent(behind: &Behind, made: &Made) {
    let key = layout::table_object(TABLE, &made.by.path);
    let error = behind.direct.store.patient.head(&key).await.expect_err("nothing is there");
    assert_eq!(classify(&error), Outcome::NotFound);
}

/// S14, S15: attempts go on, however long that takes. That each is a fresh request: `s3::answers_of_s3_...`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by records_and_segments_survive_what_lies_between"]
async fn each_fault_of_a_small_segment_ends_with_the_whole_of_it() {
    for fault in before().into_iter().chain(after()).chain([HttpFault::Late]) {
        let mut behind = Behind::new();
        behind.proxy.strike(Which::of("PUT").with(".parquet").times(2), fault.clone());
        let made = small(&mut behind);
        store(&mut behind, &made).await.expect("waits as long as it takes");
        is_whole(&behind, &made, &fault).await;
        assert_eq!(behind.proxy.struck(), 2, "{fault:?}");
        // The same bytes under the same name: a request that lands after all changes nothing.
        tokio::task::block_in_place(|| behind.proxy.land());
        is_whole(&behind, &made, &fault).await;
    }
}

/// The steps of an upload in parts.
const STEPS: [&str; 4] = ["begin", "part", "complete", "look"];

fn requests_of(step: &str) -> Which {
    match step {
        "begin" => Which::of("POST").with(".parquet?uploads"),
        "part" => Which::of("PUT").with("partNumber=2"),
        "complete" => Which::of("POST").with(".parquet?uploadId"),
        "look" => Which::of("HEAD").with(".parquet"),
        other => panic!("no step {other}"),
    }
}

/// Each step of an upload, with each fault. S6: a completion that took effect and says otherwise; its repetition is told that
/// there is no such upload. S8: a completion that answers 200 with an error in its body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by records_and_segments_survive_what_lies_between"]
async fn each_fault_of_a_large_segment_ends_with_the_whole_of_it() {
    let hidden = |code: &str| Reply::error(200, code);
    let only_complete =
        ["InternalError", "SlowDown", "RequestTimeout"].map(|code| ("complete", HttpFault::Instead(hidden(code))));
    let also_complete = [("complete", HttpFault::After(hidden("InternalError")))];
    let common = || before().into_iter().chain(after()).chain([HttpFault::Late]);
    let everywhere = STEPS.into_iter().flat_map(|step| common().map(move |fault| (step, fault)));
    let once = everywhere.chain(only_complete).chain(also_complete).map(|(step, fault)| (step, fault, 1));
    // So often that the store is asked whether it still knows the upload; it does.
    let often = [("part", HttpFault::CloseBefore, 5), ("complete", HttpFault::instead(500, "InternalError"), 5)];
    for (step, fault, times) in once.chain(often) {
        let mut behind = Behind::new();
        behind.proxy.strike(requests_of(step).times(times), fault.clone());
        let made = large(&mut behind);
        store(&mut behind, &made).await.unwrap_or_else(|error| panic!("{step} {fault:?}: {error}"));
        is_whole(&behind, &made, &fault).await;
        tokio::task::block_in_place(|| behind.proxy.land());
        is_whole(&behind, &made, &fault).await;
        assert_eq!(behind.proxy.struck(), times, "{step} {fault:?}");
    }
}

/// A rule of the bucket took the parts away: nothing can be completed, so the segment must be written anew from the bus.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by records_and_segments_survive_what_lies_between"]
async fn an_upload_that_the_store_forgot_is_told_and_leaves_nothing() {
    let cases = [
        (Which::of("PUT").with("partNumber=2"), HttpFault::instead(404, "NoSuchUpload")),
        (Which::of("POST").with(".parquet?uploadId"), HttpFault::instead(404, "NoSuchUpload")),
        // Repeating it would never end: the store does not know a part by the tag that it once gave.
        (Which::of("POST").with(".parquet?uploadId"), HttpFault::instead(400, "InvalidPart")),
    ];
    for (which, fault) in cases {
        let mut behind = Behind::new();
        behind.proxy.strike(which, fault.clone());
        let made = large(&mut behind);
        let error = store(&mut behind, &made).await.expect_err("it cannot be ended");
        assert_eq!(error.kind(), ErrorKind::Stale, "{fault:?}: {error}");
        is_absent(&behind, &made).await;
        // Under a fresh name it works, and the old one stays empty.
        behind.proxy.heal();
        let again = large(&mut behind);
        store(&mut behind, &again).await.expect("stores");
        is_whole(&behind, &again, &fault).await;
        is_absent(&behind, &made).await;
    }
}

/// The server itself, without a fault: it refuses the next part before it has read it, and closes the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by records_and_segments_survive_what_lies_between"]
async fn an_upload_that_went_away_between_two_parts_is_told() {
    let mut behind = Behind::new();
    let made = large(&mut behind);
    let key = layout::table_object(TABLE, &made.by.path);
    let segments = behind.given.store.segments(Arc::clone(&behind.given.clock));
    let mut upload = segments.upload(key.clone(), behind.direct.rng.fork());
    upload.push(made.parts[0].clone(), None).await.expect("on its way");
    let id_of = |seen: &Seen| Some(seen.target.split_once("partNumber=1&uploadId=")?.1.to_owned());
    let stored = || behind.proxy.seen().iter().find(|seen| seen.answered && id_of(seen).is_some()).and_then(id_of);
    let id = loop {
        if let Some(id) = stored() {
            break id;
        }
        tokio::task::yield_now().await;
    };
    behind.direct.store.parts.abort_multipart(&key, &id).await.expect("gives up");
    let error = upload.finish(made.parts[1..].to_vec(), made.by.size).await.expect_err("nothing can be completed");
    assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
    is_absent(&behind, &made).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by records_and_segments_survive_what_lies_between"]
async fn an_upload_that_nobody_could_give_up_shows_nothing() {
    for fault in [HttpFault::CloseBefore, HttpFault::CloseAfter, HttpFault::instead(500, "InternalError")] {
        let mut behind = Behind::new();
        behind.proxy.strike(Which::of("DELETE"), fault);
        let made = large(&mut behind);
        let segments = behind.given.store.segments(Arc::clone(&behind.given.clock));
        let key = layout::table_object(TABLE, &made.by.path);
        let mut upload = segments.upload(key, behind.direct.rng.fork());
        upload.push(made.parts[0].clone(), None).await.expect("on its way");
        let begun = || behind.proxy.seen().iter().any(|seen| seen.target.contains("partNumber=1"));
        while !begun() {
            tokio::task::yield_now().await;
        }
        drop(upload);
        while behind.proxy.struck() == 0 {
            tokio::task::yield_now().await;
        }
        is_absent(&behind, &made).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by records_and_segments_survive_what_lies_between"]
async fn a_storm_of_faults_ends_with_every_segment_whole() {
    let mut behind = Behind::new();
    let seed = behind.direct.rng.u64(..);
    println!("seed {seed}");
    let faults: Vec<_> = before().into_iter().chain(after()).chain([HttpFault::Late]).collect();
    behind.proxy.unleash(Which::all().with(".parquet"), seed, 0.25, &faults);
    // At least eight segments, and until the storm was one: how often it strikes is chance.
    let mut number = 0;
    while number < 8 || (behind.proxy.struck() <= 4 && number < 200) {
        let made = if number % 2 == 0 { large(&mut behind) } else { small(&mut behind) };
        store(&mut behind, &made).await.expect("waits as long as it takes");
        tokio::task::block_in_place(|| behind.proxy.land());
        is_whole(&behind, &made, &HttpFault::Late).await;
        number += 1;
    }
    assert!(behind.proxy.struck() > 4, "{}", behind.proxy.struck());
}
