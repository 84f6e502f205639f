//! Whatever events hold, the segment gives it back, and says the truth about itself.

use proptest::prelude::*;
use tapedeck_common::event::TimeKind;
use tapedeck_storage::segment::{Scan, WriterOptions};

use crate::kit::{Event, columns, hour, in_segment_order, read, write, writer};

fn bytes() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![
        1 => Just(None),
        1 => Just(Some(Vec::new())),
        6 => proptest::collection::vec(any::<u8>(), 0..40).prop_map(Some),
        1 => (0_usize..6_000, any::<u8>()).prop_map(|(length, byte)| Some(vec![byte; length])),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let kind = prop_oneof![5 => Just(TimeKind::Create), 1 => Just(TimeKind::Append), 1 => Just(TimeKind::Arrival)];
    let headers = proptest::collection::vec((prop_oneof!["a|b|ü|", "\\PC{0,8}"], bytes()), 0..4);
    let properties = proptest::collection::vec(("[a-c]{0,3}", "\\PC{0,6}"), 0..3);
    let place = (0_i32..5, 1_u64..1_000, 0_i64..3_600_000_000);
    (place, kind, proptest::option::of(0_i32..9), bytes(), bytes(), headers, properties).prop_map(
        |((partition, step, micros), kind, epoch, key, value, headers, properties)| {
            let properties = properties.into_iter().collect();
            Event { partition, position: step, micros, kind, epoch, key, value, headers, properties }
        },
    )
}

/// Chunks whose positions grow lane by lane over all of them.
fn chunks() -> impl Strategy<Value = Vec<Vec<Event>>> {
    let chunk = proptest::collection::vec(event(), 1..60);
    proptest::collection::vec(chunk, 1..5).prop_map(|mut chunks| {
        let mut next = [0_u64; 5];
        for event in chunks.iter_mut().flatten() {
            let next = &mut next[event.partition as usize];
            *next += event.position;
            event.position = *next;
        }
        chunks
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn events_come_back_as_they_were(chunks in chunks(), row_group_bytes in prop_oneof![1_usize..5_000, Just(64 << 20)]) {
        let options = WriterOptions { row_group_bytes, part_bytes: 1_000, ..WriterOptions::default() };
        let (object, by) = write(&options, &chunks);
        let expected = in_segment_order(&chunks);
        prop_assert_eq!(read(&object, Scan::default()), expected.clone());

        prop_assert_eq!((by.rows, by.size), (expected.len() as u64, object.len() as u64));
        prop_assert_eq!(by.blake3, blake3::hash(&object).to_hex().to_string());
        let null = |field: fn(&Event) -> &Option<Vec<u8>>| expected.iter().filter(|event| field(event).is_none()).count() as u64;
        prop_assert_eq!(by.null_keys, null(|event| &event.key));
        prop_assert_eq!(by.null_values, null(|event| &event.value));
        prop_assert_eq!(Some(by.times.0), expected.iter().map(Event::time).min());
        prop_assert_eq!(Some(by.times.1), expected.iter().map(Event::time).max());
        for lane in &by.lanes {
            let of_lane: Vec<_> = expected.iter().filter(|event| event.partition == lane.partition).collect();
            prop_assert_eq!(lane.rows, of_lane.len() as u64);
            prop_assert_eq!(lane.first.get(), of_lane[0].position);
            prop_assert_eq!(lane.last.get(), of_lane[of_lane.len() - 1].position);
            prop_assert_eq!(lane.payload_bytes, of_lane.iter().map(|event| event.payload_bytes() as u64).sum::<u64>());
        }
        prop_assert_eq!(by.lanes.iter().map(|lane| lane.rows).sum::<u64>(), by.rows);
    }
}

#[test]
fn pages_and_row_groups_of_every_kind_read_back() {
    let large = |n: u64| vec![(n % 251) as u8; 1 << 20];
    let cases: [(&str, Vec<Event>); 5] = [
        ("tiny values", (0..90_000).map(|n| Event::plain(0, n, n.to_le_bytes().to_vec())).collect()),
        ("large values", (0..40).map(|n| Event::plain(0, n, large(n))).collect()),
        (
            "large keys, no values",
            (0..40).map(|n| Event { key: Some(large(n)), value: None, ..Event::plain(0, n, vec![]) }).collect(),
        ),
        (
            "nothing at all",
            (0..50_000)
                .map(|n| Event { key: None, value: None, epoch: None, headers: vec![], ..Event::plain(0, n, vec![]) })
                .collect(),
        ),
        ("many lanes", (0..64).flat_map(|lane| (0..500).map(move |n| Event::plain(lane, n, vec![b'x'; 300]))).collect()),
    ];
    for (name, events) in cases {
        for row_group_bytes in [3 << 20, 64 << 20] {
            let options = WriterOptions { row_group_bytes, ..WriterOptions::default() };
            let (object, _) = write(&options, std::slice::from_ref(&events));
            assert!(read(&object, Scan::default()) == events, "{name}");
        }
    }
}

#[test]
fn a_header_may_come_a_hundred_thousand_times() {
    let headers = vec![(String::new(), None); 100_000];
    let events = vec![Event { headers, ..Event::plain(0, 1, b"v".to_vec()) }, Event::plain(0, 2, b"w".to_vec())];
    let (object, _) = write(&WriterOptions::default(), std::slice::from_ref(&events));
    assert!(read(&object, Scan::default()) == events);
}

#[test]
fn shrinking_an_idle_segment_changes_nothing_but_memory() {
    let events: Vec<Event> = (0..3_000).map(|n| Event::plain(0, n, vec![b'y'; 200])).collect();
    let mut writer = writer(&WriterOptions::default());
    for chunk in events.chunks(1_000) {
        writer.write_chunk(vec![(0, columns(chunk))]);
        let before = writer.memory_bytes();
        writer.shrink();
        assert!(writer.memory_bytes() * 5 < before, "{} of {before}", writer.memory_bytes());
    }
    let parts = writer.finish().take_parts().concat();
    assert!(read(&parts.into(), Scan::default()) == events);
}

#[test]
#[should_panic(expected = "goes back")]
fn a_lane_that_goes_back_is_a_bug() {
    let chunk = |position| vec![Event::plain(1, position, vec![])];
    write(&WriterOptions::default(), &[chunk(5), chunk(5)]);
}

#[test]
#[should_panic(expected = "outside the hour")]
fn an_event_of_another_hour_is_a_bug() {
    let stray = Event { micros: 3_600_000_000, ..Event::plain(1, 1, vec![]) };
    assert!(stray.time() == hour().end());
    write(&WriterOptions::default(), &[vec![stray]]);
}
