//! P8 at the replayer's door: an object with any single wrong bit, and one of another topic, is refused before a row of it is
//! decoded, whether it is held whole or read by ranges.

use object_store::memory::InMemory;
use tapedeck_common::columns::{Columns, EventFields};
use tapedeck_common::event::TimeKind;
use tapedeck_storage::segment::{SegmentWriter, WriterOptions};

use super::*;

/// A segment of about 20 KiB of values that do not compress, as a plan names it.
fn planned() -> (PlannedSegment, Vec<u8>) {
    let (begin, source) = (Timestamp::from_micros(1_795_168_800_000_000), "kafka/cluster/AAAAAAAAAAAAAAAAAAAAAA/0");
    let mut noise = fastrand::Rng::with_seed(3);
    let mut columns = Columns::default();
    for position in 0..260 {
        let mut value = vec![0; 60];
        noise.fill(&mut value);
        let event = EventFields {
            position: Position::new(position),
            time: begin,
            time_kind: TimeKind::Create,
            leader_epoch: None,
            key: Some(&value[..8]),
            value: Some(&value),
        };
        columns.push(event, [], []);
    }
    let mut writer = SegmentWriter::new("orders".into(), source.into(), Window::of(begin), begin, &WriterOptions::default());
    writer.write_chunk(vec![(0, columns)]);
    let mut finished = writer.finish();
    let object = finished.take_parts().concat();
    let segment = finished.into_ref("topic=orders/x.parquet".to_owned(), begin);
    let planned = PlannedSegment {
        table: "orders".to_owned(),
        path: segment.path,
        size: segment.size,
        blake3: segment.blake3,
        rows: segment.rows,
        topic: "orders".to_owned(),
        source: source.to_owned(),
        earliest: Some(begin),
        latest: Some(begin),
        whole: true,
        lanes: Vec::new(),
    };
    (planned, object)
}

fn flipped(object: &[u8], bit: usize) -> Vec<u8> {
    let mut flipped = object.to_vec();
    flipped[bit / 8] ^= 1 << (bit % 8);
    flipped
}

/// Puts the object into a store of its own, and fetches it in both ways.
async fn fetch_both(planned: &PlannedSegment, object: Vec<u8>) -> [Result<SegmentReader, StreamError>; 2] {
    let store = Store::of(Arc::new(InMemory::new()));
    store.store.put(&key_of(planned), object.into()).await.expect("memory");
    [fetch_whole(&store, planned).await, fetch_checked(&store, planned).await]
}

#[tokio::test]
async fn every_wrong_bit_of_an_object_is_found_before_it_is_decoded() {
    let (planned, object) = planned();
    assert!((18_000..24_000).contains(&object.len()), "{} bytes", object.len());
    assert!(fetch_both(&planned, object.clone()).await.iter().all(Result::is_ok));
    for bit in 0..object.len() * 8 {
        let wrong = flipped(&object, bit);
        // Whoever reads by ranges asks `verify_object`, which the storage crate proves for every bit.
        let refused = verify("x", &planned, Bytes::from(wrong.clone())).expect_err("nobody reads it");
        assert!(matches!(&refused, StreamError::Damaged { what, .. } if what.contains("BLAKE3")), "bit {bit}: {refused}");
        if bit % 499 == 0 {
            for refused in fetch_both(&planned, wrong).await {
                assert_eq!(refused.expect_err("nobody reads it").kind(), ErrorKind::Corrupt, "bit {bit}");
            }
        }
    }
    println!("all {} flips of a segment of {} bytes were found", object.len() * 8, object.len());
}

#[tokio::test]
async fn an_object_that_is_too_short_or_of_another_topic_is_refused() {
    let (planned, object) = planned();
    for length in [0, 1, object.len() / 2, object.len() - 1] {
        for refused in fetch_both(&planned, object[..length].to_vec()).await {
            assert_eq!(refused.expect_err("too short").kind(), ErrorKind::Corrupt, "{length} bytes");
        }
    }
    let planned = PlannedSegment { topic: "clicks".to_owned(), ..planned };
    for refused in fetch_both(&planned, object.clone()).await {
        let text = refused.expect_err("of another topic").to_string();
        assert!(text.contains("of topic Some(\"orders\"), the log says clicks"), "{text}");
    }
}
