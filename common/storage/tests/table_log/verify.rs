//! Verification finds what is wrong, all of it, and nothing else.

use std::sync::Arc;

use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use tapedeck_common::columns::{Columns, EventFields};
use tapedeck_common::commit::{Advance, GapCause, Record, SegmentRef};
use tapedeck_common::event::TimeKind;
use tapedeck_common::{ErrorKind, Position, Timestamp};
use tapedeck_sim::{Call, Fault, FaultyStore, ManualClock, When};
use tapedeck_storage::layout;
use tapedeck_storage::log::verify::{FindingKind, TableReport};
use tapedeck_storage::log::{History, LogPaths, TableView, VerifyOptions, verify_table};
use tapedeck_storage::segment::{SegmentWriter, WriterOptions};
use tapedeck_storage::store::Store;

use crate::kit::*;

/// A real segment of positions of one lane, stored.
async fn stored(store: &Store, name: &str, partition: i32, positions: &[u64]) -> SegmentRef {
    let (topic, source) = (Arc::from("orders"), Arc::from(SOURCE));
    let mut writer = SegmentWriter::new(topic, source, hour(0), hour(0).start(), &WriterOptions::default());
    let mut columns = Columns::default();
    for position in positions {
        let event = EventFields {
            position: Position::new(*position),
            time: Timestamp::from_micros(hour(0).start().micros() + *position as i64),
            time_kind: TimeKind::Create,
            leader_epoch: None,
            key: Some(b"key"),
            value: Some(b"value"),
        };
        columns.push(event, [("trace", None)], []);
    }
    writer.write_chunk(vec![(partition, columns)]);
    let mut finished = writer.finish();
    let object: Vec<u8> = finished.take_parts().concat();
    let path = segment(name, partition, span(0, 1), hour(0)).path;
    store.store.put(&layout::table_object(TABLE, &path), object.into()).await.expect("puts");
    finished.into_ref(path, Timestamp::from_micros(1_795_168_800_000_000))
}

/// A table of two lanes: holes, a gap, skipped events, and two segments in one record.
async fn table() -> (Store, Arc<dyn ObjectStore>) {
    let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let store = Store::of(Arc::clone(&below));
    let mut log = open(&store, &ManualClock::default(), "a").await;
    commit(&mut log, &Record { advances: vec![start(0, 100), start(1, 0)], segments: Vec::new() }).await;
    // Positions 103 and 104 hold nothing, and one event was left out on purpose.
    let holes = stored(&store, "a", 0, &[100, 101, 102, 105]).await;
    let advance = Advance { rows: 4, skipped: 1, ..step(0, 100, 108) };
    commit(&mut log, &Record { advances: vec![advance], segments: vec![holes] }).await;
    let gap = Advance { rows: 0, gap: Some(GapCause::Retention), ..step(0, 108, 200) };
    commit(&mut log, &Record { advances: vec![gap], segments: Vec::new() }).await;
    let two = vec![stored(&store, "b", 1, &[0, 2, 4]).await, stored(&store, "c", 1, &[1, 3]).await];
    commit(&mut log, &Record { advances: vec![step(1, 0, 5)], segments: two }).await;
    (store, below)
}

async fn verify(store: &Store, deep: bool) -> TableReport {
    verify_table(store, TABLE, &VerifyOptions { deep, ..VerifyOptions::default() }).await.expect("the store answers")
}

#[tokio::test]
async fn a_complete_table_is_proved_complete() {
    let (store, _) = table().await;
    let report = verify(&store, true).await;
    assert!(report.is_complete(), "{:?}", report.findings);
    assert_eq!((report.version, report.segments, report.objects, report.rows, report.rows_read), (4, 3, 3, 9, 9));
    let lane = &report.lanes[0];
    assert_eq!((lane.from, lane.next, lane.rows, lane.skipped, lane.lost, lane.empty), (100, 200, 4, 1, 92, 3));
    assert_eq!((lane.gaps[0].from, lane.gaps[0].until, lane.gaps[0].cause, lane.gaps[0].version), (108, 200, "retention", 3));
    let json = serde_json::to_value(&report).expect("serialises");
    assert_eq!(json["lanes"][1]["next"], 5);
    // Segments outside the asked time are not looked at.
    let times = Some((hour(5).start(), hour(6).start()));
    let elsewhere = VerifyOptions { deep: true, times, ..VerifyOptions::default() };
    assert_eq!(verify_table(&store, TABLE, &elsewhere).await.expect("reads").objects, 0);
}

fn kinds(report: &TableReport) -> Vec<FindingKind> {
    report.findings.iter().map(|finding| finding.kind).collect()
}

#[tokio::test]
async fn objects_that_are_gone_or_changed_are_named() {
    let (store, below) = table().await;
    let key = |name: &str| layout::table_object(TABLE, &segment(name, 0, span(0, 1), hour(0)).path);
    let whole = below.get(&key("b")).await.expect("there").bytes().await.expect("reads");
    for at in (0..whole.len()).step_by(97) {
        let mut flipped = whole.to_vec();
        flipped[at] ^= 1;
        below.put(&key("b"), flipped.into()).await.expect("puts");
        let report = verify(&store, true).await;
        assert_eq!(kinds(&report), [FindingKind::Checksum], "byte {at}");
        assert_eq!(report.findings[0].object, key("b").to_string());
        assert!(verify(&store, false).await.is_complete(), "only a deep look reads bytes");
    }
    below.put(&key("b"), whole.slice(1..).into()).await.expect("puts");
    assert_eq!(kinds(&verify(&store, false).await), [FindingKind::Size]);
    below.delete(&key("a")).await.expect("deletes");
    assert_eq!(kinds(&verify(&store, false).await), [FindingKind::Missing, FindingKind::Size]);
}

#[tokio::test]
async fn segments_that_hold_other_events_than_their_record_says_are_found() {
    // What the record claims is changed before it is committed; the objects are true to their checksums.
    type Change = fn(&mut [SegmentRef; 2]);
    let cases: [(&str, Change); 9] = [
        ("an earlier first event", |pair| pair[0].times.0 = Timestamp::from_micros(pair[0].times.0.micros() - 1_000)),
        ("a later last event", |pair| pair[0].times.1 = Timestamp::from_micros(pair[0].times.1.micros() + 1_000)),
        ("times that leave events out", |pair| pair[0].times = (hour(0).start(), hour(0).start())),
        ("a null key", |pair| pair[0].null_keys = 1),
        ("null values", |pair| pair[1].null_values = 2),
        ("more payload", |pair| pair[1].lanes[0].payload_bytes += 1),
        ("another topic", |pair| pair[0].topic = Arc::from("clicks")),
        ("one event more than there is", |pair| {
            (pair[0].rows, pair[0].lanes[0].rows) = (4, 4);
            (pair[1].rows, pair[1].lanes[0].rows) = (1, 1);
        }),
        ("another end", |pair| pair[1].lanes[0].last = Position::new(4)),
    ];
    for (what, change) in cases {
        let store = Store::of(Arc::new(InMemory::new()));
        let mut log = open(&store, &ManualClock::default(), "a").await;
        commit(&mut log, &first(1)).await;
        let mut pair = [stored(&store, "b", 1, &[0, 2, 4]).await, stored(&store, "c", 1, &[1, 3]).await];
        change(&mut pair);
        commit(&mut log, &Record { advances: vec![step(1, 0, 5)], segments: pair.to_vec() }).await;
        let report = verify(&store, true).await;
        assert!(!report.is_complete() && kinds(&report).iter().all(|kind| *kind == FindingKind::Rows), "{what}: {report:?}");
    }
}

#[tokio::test]
async fn an_event_in_two_segments_of_a_record_is_found() {
    let store = Store::of(Arc::new(InMemory::new()));
    let mut log = open(&store, &ManualClock::default(), "a").await;
    commit(&mut log, &first(1)).await;
    let pair = vec![stored(&store, "b", 1, &[0, 2, 3]).await, stored(&store, "c", 1, &[1, 3]).await];
    commit(&mut log, &Record { advances: vec![step(1, 0, 5)], segments: pair }).await;
    let report = verify(&store, true).await;
    assert_eq!(kinds(&report), [FindingKind::Rows]);
    assert!(report.findings[0].text.contains(&format!("{SOURCE}/1/3 lies in two segments")), "{:?}", report.findings);
}

#[tokio::test]
async fn everything_wrong_with_the_log_is_found_in_one_go() {
    let (store, below) = table().await;
    let paths = LogPaths::of(TABLE);
    let record = |version| {
        let (below, key) = (Arc::clone(&below), paths.record(version));
        async move { below.get(&key).await.expect("there").bytes().await.expect("reads") }
    };
    let (third, fourth) = (record(3).await, record(4).await);
    // A record is changed: it still reads, but the next one names another.
    let forged = String::from_utf8(third.to_vec()).expect("text").replace("\"retention\"", "\"truncated\"");
    below.put(&paths.record(3), forged.into_bytes().into()).await.expect("puts");
    assert_eq!(kinds(&verify(&store, false).await), [FindingKind::Chain]);
    // A record is gone: the gap that it noted is, too.
    below.delete(&paths.record(3)).await.expect("deletes");
    assert_eq!(kinds(&verify(&store, false).await), [FindingKind::Hole]);
    // A record stands twice: nothing about it fits.
    below.put(&paths.record(3), third.into()).await.expect("puts");
    below.put(&paths.record(5), fourth.into()).await.expect("puts");
    let found = kinds(&verify(&store, false).await);
    for kind in [FindingKind::Chain, FindingKind::Record, FindingKind::Tiling, FindingKind::Segment] {
        assert!(found.contains(&kind), "{kind:?} in {found:?}");
    }
    below.put(&paths.record(5), "{}".to_owned().into()).await.expect("puts");
    assert_eq!(kinds(&verify(&store, false).await), [FindingKind::Record]);
}

#[tokio::test]
async fn a_store_that_is_away_is_no_finding() {
    let (store, below) = table().await;
    drop(store);
    for call in [Call::List, Call::Get] {
        let faulty = FaultyStore::over(Arc::clone(&below));
        faulty.inject(When::at(call).after(2), Fault::FailBefore);
        faulty.inject(When::at(call), Fault::FailBefore);
        let answer = verify_table(&Store::of(Arc::new(faulty)), TABLE, &VerifyOptions::default()).await;
        assert_eq!(answer.expect_err("no answer").kind(), ErrorKind::Unavailable);
    }
}

#[tokio::test]
async fn records_that_are_gone_at_either_end_are_missed() {
    let (store, below) = table().await;
    let paths = LogPaths::of(TABLE);
    checkpoint(&store, 4).await;
    below.delete(&paths.record(0)).await.expect("deletes");
    let report = verify(&store, false).await;
    assert_eq!((kinds(&report), report.findings[0].object.as_str()), (vec![FindingKind::Hole], paths.record(0).as_ref()));
    // The newest records are gone, and the checkpoint tells of them.
    let (store, below) = table().await;
    checkpoint(&store, 4).await;
    for version in [4, 3] {
        below.delete(&paths.record(version)).await.expect("deletes");
        let report = verify(&store, false).await;
        assert_eq!((kinds(&report), report.findings[0].object.as_str()), (vec![FindingKind::Hole], paths.record(4).as_ref()));
    }
    // Nothing but the checkpoint is left, and then nothing but the hint.
    for version in [2, 1, 0] {
        below.delete(&paths.record(version)).await.expect("deletes");
    }
    assert_eq!(kinds(&verify(&store, false).await), [FindingKind::Hole, FindingKind::Hole]);
    below.delete(&paths.checkpoint(4)).await.expect("deletes");
    assert_eq!(kinds(&verify(&store, false).await), [FindingKind::Hole]);
    for history in [History::Recent, History::Whole] {
        let error = TableView::load(&store, TABLE, None, history).await.expect_err("nobody can read it");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
    below.delete(&paths.hint()).await.expect("deletes");
    let error = verify_table(&store, TABLE, &VerifyOptions::default()).await.expect_err("now there is no table");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}
