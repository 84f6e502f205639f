//! Reads: an answer that ends early is never taken for the whole.

use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use tapedeck_testbed::{HttpFault, Which};

use super::Behind;

/// S16: the patient handle goes on where the answer broke off; when that fails too, it is an error and no short object.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by records_and_segments_survive_what_lies_between"]
async fn an_answer_that_was_cut_is_read_to_its_end_or_refused() {
    let mut behind = Behind::new();
    let body: Vec<u8> = (0..300_000).map(|_| behind.direct.rng.u8(..)).collect();
    let key = Path::from(format!("reads/{}", behind.direct.name()));
    behind.direct.store.store.put(&key, body.clone().into()).await.expect("stores");
    let read = async |range: std::ops::Range<u64>| behind.given.store.patient.get_range(&key, range).await;
    for cut in [0, 1, 100_000, 299_999] {
        behind.proxy.strike(Which::of("GET").times(1), HttpFault::Cut(cut));
        let whole = read(0..300_000).await.unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        assert!(whole == body, "cut at {cut}");
    }
    behind.proxy.strike(Which::of("GET"), HttpFault::Cut(10));
    match read(0..300_000).await {
        Ok(bytes) => panic!("{} bytes of 300000", bytes.len()),
        Err(error) => println!("{error}"),
    }
    behind.proxy.heal();
    assert_eq!(read(5..9).await.expect("reads"), Bytes::copy_from_slice(&body[5..9]));
}
