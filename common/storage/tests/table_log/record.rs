//! The text of records: golden for ever, lossless, and strict.

use std::sync::Arc;

use proptest::prelude::*;
use tapedeck_common::commit::{Advance, GapCause, Record, SegmentLane};
use tapedeck_common::{ErrorKind, LaneId, Position, Timestamp, Window};
use tapedeck_storage::log::genesis::{Genesis, Writers};
use tapedeck_storage::log::record::{Header, check, decode, encode, encode_genesis};

use crate::kit::*;

fn header(prev: Option<&str>) -> Header {
    Header {
        timestamp_ms: 1_795_168_800_123,
        engine: "tapedeck/0.1.0".to_owned(),
        writer: "archiver-0".to_owned(),
        txn_id: "019aa0c1-5b7b-7000-8000-000000000001".to_owned(),
        prev: prev.map(str::to_owned),
    }
}

fn genesis(writers: Writers) -> Genesis {
    let table_id = "019aa0c1-5b7b-7000-8000-000000000000".to_owned();
    Genesis { table_id, table: "orders".to_owned(), created_ms: 1_795_168_800_123, writers }
}

fn ordinary() -> Record {
    let mut wide = segment("019aa0c1-5b7c-7000-8000-00000000000a", 0, span(100, 110), hour(7));
    wide.lanes.push(SegmentLane { partition: 12, first: Position::new(5), last: Position::new(9), rows: 3, payload_bytes: 1234 });
    wide.rows += 3;
    wide.times.1 = Timestamp::from_micros(wide.times.1.micros() + 1);
    let skipping = Advance { rows: 3, skipped: 1, ..step(12, 5, 10) };
    let gap = Advance { rows: 0, gap: Some(GapCause::Retention), ..step(3, 7, 70) };
    Record { advances: vec![step(0, 100, 110), skipping, gap, start(4, 42)], segments: vec![wide] }
}

#[test]
fn record_0_never_changes() {
    let bytes = encode_genesis(&header(None), &genesis(Writers::OnlyUs));
    assert_eq!(String::from_utf8(bytes.clone()).expect("text"), include_str!("../golden/record-0.json"));
    assert_eq!(decode(&bytes).expect("reads").genesis, Some(genesis(Writers::OnlyUs)));
    let open = encode_genesis(&header(None), &genesis(Writers::AnyDelta));
    assert!(String::from_utf8(open.clone()).expect("text").contains(r#"{"minReaderVersion":1,"minWriterVersion":2}"#));
    assert_eq!(decode(&open).expect("reads").genesis, Some(genesis(Writers::AnyDelta)));
}

#[test]
fn an_ordinary_record_never_changes() {
    let prev = blake3::hash(b"the record before").to_hex().to_string();
    check(&ordinary()).expect("agrees with itself");
    let bytes = encode(&header(Some(&prev)), &ordinary());
    assert_eq!(String::from_utf8(bytes.clone()).expect("text"), include_str!("../golden/record-n.json"));
    let read = decode(&bytes).expect("reads");
    assert_eq!(read.header, header(Some(&prev)));
    assert_eq!(read.hash, blake3::hash(&bytes).to_hex().to_string());
    // Times come back rounded outwards to milliseconds.
    let mut meant = ordinary();
    meant.segments[0].times.1 = Timestamp::from_millis(meant.segments[0].times.1.millis_ceil()).expect("fits");
    assert_eq!(read.record, meant);
}

/// Delta lets engines add keys inside actions; everything else that is not ours stops the reader.
#[test]
fn only_unknown_keys_are_passed_over() {
    let text = String::from_utf8(encode(&header(Some("00")), &ordinary())).expect("text");
    let meant = decode(text.as_bytes()).expect("reads").record;
    for (from, to) in
        [("\"dataChange\":true", "\"dataChange\":true,\"baseRowId\":7"), ("\"engineInfo\"", "\"x\":1,\"engineInfo\"")]
    {
        assert_eq!(decode(text.replace(from, to).as_bytes()).expect(to).record, meant);
    }
    let cases = [
        ("{\"txn\":", "{\"cdc\":", ErrorKind::Invalid),
        ("\"dataChange\":true", "\"dataChange\":true,\"deletionVector\":{\"x\":1}", ErrorKind::Invalid),
        ("\"v\":1,", "\"v\":7,", ErrorKind::Invalid),
        ("\"retention\"", "\"boredom\"", ErrorKind::Invalid),
        ("\"version\":110", "\"version\":111", ErrorKind::Corrupt),
        ("\"hour\":\"7\"", "\"hour\":\"25\"", ErrorKind::Corrupt),
        ("numRecords\\\":13", "numRecords\\\":14", ErrorKind::Corrupt),
        ("0:100-109:10", "0:100-109:11", ErrorKind::Corrupt),
        ("\"payload_bytes\":\"0:", "\"payload_bytes\":\"1:", ErrorKind::Corrupt),
        ("[0,100,100,110,10]", "[0,100,99,110,10]", ErrorKind::Corrupt),
        ("[0,100,100,110,10]", "[1,100,100,110,10]", ErrorKind::Corrupt),
        ("\n", "", ErrorKind::Corrupt),
    ];
    for (from, to, kind) in cases {
        assert!(text.contains(from), "{from}");
        let error = decode(text.replace(from, to).as_bytes()).expect_err(to);
        assert_eq!(error.kind(), kind, "{from} -> {to}: {error}");
    }
}

#[test]
fn the_last_millisecond_of_the_calendar_has_no_upper_bound() {
    let end = Timestamp::CALENDAR_END;
    let hour = Window::of(Timestamp::from_micros(end.micros() - 1));
    let mut record = batch(0, 0, 10);
    record.segments[0] = segment("x", 0, span(0, 10), hour);
    record.segments[0].times.1 = Timestamp::from_micros(end.micros() - 1);
    let bytes = encode(&header(None), &record);
    assert!(!String::from_utf8_lossy(&bytes).contains("10000-"), "no engine reads a year of five digits");
    assert_eq!(decode(&bytes).expect("reads").record.segments[0].times.1, record.segments[0].times.1);
}

prop_compose! {
    fn any_step()(from in 0_u64..1 << 60, length in 1_u64..1_000, skipped in 0_u64..3, kind in 0..4) -> (Advance, bool) {
        let mut advance = step(0, from, from + length);
        match kind {
            0 => (start(0, from), false),
            1 => (Advance { rows: 0, gap: Some(GapCause::Truncated), ..advance }, false),
            _ => {
                advance.skipped = skipped.min(length - 1);
                advance.rows = length - advance.skipped;
                (advance, true)
            }
        }
    }
}

prop_compose! {
    /// A record of several lanes, the segments of each split in two hours.
    fn any_record()(
        steps in prop::collection::vec(any_step(), 0..6),
        topic in "\\PC{0,20}",
        hour in 0_i64..60_000,
        nulls in 0_u64..9,
        bytes in 0_u64..1 << 50,
    ) -> Record {
        let mut record = Record::default();
        for (partition, (mut advance, filled)) in steps.into_iter().enumerate() {
            advance.lane = LaneId::new(SOURCE, partition as i32);
            if filled {
                let (from, rows) = (advance.span.from().get(), advance.rows);
                let cut = from + rows / 2;
                for (number, (first, last)) in [(from, cut), (cut, from + rows)].into_iter().enumerate() {
                    if first == last {
                        continue;
                    }
                    let window = Window::of(Timestamp::from_micros((hour + number as i64) * 3_600_000_000));
                    let mut segment = segment(&format!("{partition}-{number}"), partition as i32, span(first, last), window);
                    segment.topic = Arc::from(topic.as_str());
                    segment.null_keys = nulls;
                    segment.lanes[0].payload_bytes = bytes;
                    segment.times.1 = Timestamp::from_millis(segment.times.1.millis_ceil()).expect("fits");
                    record.segments.push(segment);
                }
            }
            record.advances.push(advance);
        }
        record
    }
}

proptest! {
    #[test]
    fn what_is_encoded_is_what_is_read(record in any_record()) {
        check(&record).expect("made to agree with itself");
        let bytes = encode(&header(Some("ab")), &record);
        let read = decode(&bytes).expect("reads");
        prop_assert_eq!(&read.record, &record);
        prop_assert_eq!(encode(&read.header, &read.record), bytes);
        prop_assert!(record.segments.iter().all(|segment| !segment.path.contains('%')));
    }

    #[test]
    fn no_bytes_make_the_reader_panic(record in any_record(), at in any::<prop::sample::Index>(), with in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = encode(&header(Some("ab")), &record);
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = with }
        if let Ok(read) = decode(&bytes) {
            // Then it is a record that agrees with itself.
            prop_assert!(read.rewrite || check(&read.record).is_ok());
        }
    }

    #[test]
    fn numbers_out_of_range_make_no_reader_panic(numbers in prop::collection::vec(any::<u64>(), 8)) {
        let text = String::from_utf8(encode(&header(Some("00")), &ordinary())).expect("text");
        for (old, new) in ["100", "110", "109", "1234", "70", "42", "13", "1795168800123"].iter().zip(numbers) {
            let _ = decode(text.replace(old, &new.to_string()).as_bytes());
        }
    }
}
