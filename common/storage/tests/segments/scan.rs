//! Slices: exactly the asked events, and little read for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use proptest::prelude::*;
use tapedeck_common::{ErrorKind, Position, Span, Timestamp};
use tapedeck_storage::segment::{EventBatch, Projection, Scan, SegmentReader, WriterOptions};

use crate::kit::{Event, events_of, hour, in_segment_order, read, write};

/// Sorted by time within lanes, as topics mostly are; pages of a few hundred rows.
fn chunks() -> Vec<Vec<Event>> {
    let mut rng = fastrand::Rng::with_seed(5);
    // One pool of random bytes: slices of it look random to a page, and cost nothing to make.
    let pool: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(1 << 20).collect();
    let value = |n: u64| pool[(n as usize * 7_919) % ((1 << 20) - 2_000)..][..2_000].to_vec();
    let event = |lane: i32, n: u64| Event { micros: n as i64 * 100_000 + i64::from(lane), ..Event::plain(lane, n * 2, value(n)) };
    let chunk = |part: u64| {
        let rows = |lane: i32| (part * 900..(part + 1) * 900).map(move |n| (lane, n));
        (0..3).flat_map(rows).map(|(lane, n)| event(lane, n)).collect()
    };
    (0..3).map(chunk).collect()
}

fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(hour().start().micros() + micros)
}

fn span(from: u64, until: u64) -> Span {
    Span::new(Position::new(from), Position::new(until)).expect("forward")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_slice_is_exact(
        times in proptest::option::of((0_i64..280_000_000, 0_i64..100_000_000)),
        lanes in proptest::option::of(proptest::collection::btree_map(0_i32..5, (0_u64..6_000, 0_u64..3_000), 0..4)),
        batch_rows in prop_oneof![Just(1_024_usize), 1_usize..50],
    ) {
        let chunks = chunks();
        let options = WriterOptions { row_group_bytes: 4 << 20, ..WriterOptions::default() };
        let (object, _) = write(&options, &chunks);
        let times = times.map(|(from, length)| (at(from), at(from + length)));
        let lanes: Option<BTreeMap<i32, Span>> =
            lanes.map(|lanes| lanes.into_iter().map(|(lane, (from, length))| (lane, span(from, from + length))).collect());
        let mut expected = in_segment_order(&chunks);
        expected.retain(|event| {
            let in_time = times.is_none_or(|(from, until)| from <= event.time() && event.time() < until);
            let in_lane = |lanes: &BTreeMap<i32, Span>| {
                lanes.get(&event.partition).is_some_and(|span| span.contains(Position::new(event.position)))
            };
            in_time && lanes.as_ref().is_none_or(in_lane)
        });
        let found = read(&object, Scan { times, lanes, batch_rows, ..Scan::default() });
        prop_assert!(found == expected, "{} found, {} expected", found.len(), expected.len());
    }
}

#[tokio::test]
async fn a_far_segment_is_read_by_ranges_and_ahead() {
    let chunks = chunks();
    let options = WriterOptions { row_group_bytes: 2 << 20, ..WriterOptions::default() };
    let (object, by) = write(&options, &chunks);
    assert!(object.len() > 3 << 20, "too small to be read by ranges: {}", object.len());
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let key = Path::from("orders/x.parquet");
    store.put(&key, object.into()).await.expect("stored");
    for ahead_bytes in [0, u64::MAX] {
        let reader = SegmentReader::open_vouched(Arc::clone(&store), key.clone(), &by).await.expect("opens");
        let mut scan = reader.scan(Scan { ahead_bytes, ..Scan::default() });
        let mut found = Vec::new();
        while let Some(batch) = scan.next().await.expect("decodes") {
            found.extend(events_of(&batch));
        }
        assert!(found == in_segment_order(&chunks));
    }
}

#[test]
fn a_narrow_slice_reads_few_bytes() {
    let (object, _) = write(&WriterOptions::default(), &chunks());
    let reader = SegmentReader::from_bytes("test", object).expect("opens");
    let all = reader.scan(Scan::default()).bytes_to_read();
    let none = reader.scan(Scan { times: Some((at(3_000_000_000), at(3_100_000_000))), ..Scan::default() });
    assert!(all > 0 && none.bytes_to_read() == 0);
}

#[test]
fn a_projection_reads_what_it_says() {
    let chunks = chunks();
    let (object, _) = write(&WriterOptions::default(), &chunks);
    let expected = in_segment_order(&chunks);
    let reader = SegmentReader::from_bytes("test", object).expect("opens");
    let batches = |projection| -> Vec<EventBatch> {
        reader.batches(Scan { projection, ..Scan::default() }).map(|batch| batch.expect("decodes")).collect()
    };
    let places: Vec<_> = batches(Projection::Places)
        .iter()
        .flat_map(|batch| (0..batch.len()).map(|row| batch.place(row)).collect::<Vec<_>>())
        .collect();
    let expected_places: Vec<_> =
        expected.iter().map(|event| (event.partition, Position::new(event.position), event.time())).collect();
    assert_eq!(places, expected_places);
    let values: usize = batches(Projection::WithoutHeaders)
        .iter()
        .flat_map(|batch| (0..batch.len()).map(|row| batch.row(row).value.map_or(0, <[u8]>::len)))
        .sum();
    assert_eq!(values, expected.len() * 2_000);
}

#[tokio::test]
async fn a_segment_that_is_gone_is_corrupt_and_named() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let error = SegmentReader::open(store, Path::from("orders/gone.parquet"), 100).await.expect_err("gone");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("orders/gone.parquet"), "{error}");
}
