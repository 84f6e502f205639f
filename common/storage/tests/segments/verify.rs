//! A single wrong bit is noticed, and no broken file stops the process.

use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use tapedeck_common::ErrorKind;
use tapedeck_storage::segment::{Scan, SegmentReader, WriterOptions, verify_object};

use crate::kit::{Event, write};

fn small() -> (Bytes, tapedeck_common::commit::SegmentRef) {
    let events = (0..20).map(|n| Event::plain(n as i32 % 3, n, format!("value {n}").into_bytes()));
    let mut events: Vec<Event> = events.collect();
    events.sort_by_key(|event| event.partition);
    write(&WriterOptions::default(), &[events])
}

#[tokio::test]
async fn every_single_wrong_bit_is_noticed() {
    let (object, by) = small();
    let store = InMemory::new();
    let key = Path::from("x.parquet");
    store.put(&key, object.clone().into()).await.expect("stored");
    verify_object(&store, &key, &by).await.expect("whole");
    let mut broken = object.to_vec();
    for bit in 0..object.len() * 8 {
        broken[bit / 8] ^= 1 << (bit % 8);
        store.put(&key, Bytes::copy_from_slice(&broken).into()).await.expect("stored");
        let error = verify_object(&store, &key, &by).await.expect_err("broken");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "bit {bit}");
        broken[bit / 8] ^= 1 << (bit % 8);
    }
}

#[tokio::test]
async fn a_longer_a_shorter_and_an_absent_object_are_noticed() {
    let (object, by) = small();
    let store = InMemory::new();
    let key = Path::from("x.parquet");
    let longer = [&object[..], b"x"].concat();
    for wrong in [longer, object[..object.len() - 1].to_vec(), Vec::new()] {
        store.put(&key, wrong.into()).await.expect("stored");
        let error = verify_object(&store, &key, &by).await.expect_err("broken");
        assert!(error.to_string().contains("x.parquet") && error.to_string().contains("bytes"), "{error}");
    }
    let error = verify_object(&store, &Path::from("gone"), &by).await.expect_err("absent");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

/// Whatever single byte is wrong, reading ends: with an error that is `Corrupt`, or with events (where the byte lay in a
/// payload; that is what the BLAKE3 is for).
#[test]
fn a_broken_file_never_stops_the_process() {
    let (object, _) = small();
    for at in 0..object.len() {
        for wrong in [0x00, 0xff, object[at] ^ 0x10] {
            let mut broken = object.to_vec();
            broken[at] = wrong;
            let Ok(reader) = SegmentReader::from_bytes("broken", broken.into()).map_err(|error| {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            }) else {
                continue;
            };
            for batch in reader.batches(Scan::default()) {
                let Err(error) = batch else { continue };
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            }
        }
    }
}
