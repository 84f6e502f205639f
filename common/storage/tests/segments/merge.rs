//! Merged segments: the same rows, each with its own time of archiving, in the order of their lanes.

use std::sync::Arc;

use tapedeck_common::columns::{Columns, EventFields};
use tapedeck_common::event::TimeKind;
use tapedeck_common::{Position, Timestamp, Window};
use tapedeck_storage::segment::{Merger, Projection, RowDigest, Scan, SegmentReader, SegmentWriter, WriterOptions};

const BEGIN: i64 = 1_795_000_000_000_000;

fn window() -> Window {
    Window::of(Timestamp::from_micros(BEGIN))
}

fn options() -> WriterOptions {
    WriterOptions { row_group_bytes: 20_000, ..WriterOptions::default() }
}

fn block(first: u64, rows: u64) -> Columns {
    let mut columns = Columns::default();
    for position in first..first + rows {
        let text = format!("{position} {}", "x".repeat((position % 90) as usize));
        let fields = EventFields {
            position: Position::new(position),
            time: window().start() + std::time::Duration::from_millis(position),
            time_kind: if position % 3 == 0 { TimeKind::Append } else { TimeKind::Create },
            leader_epoch: (position % 4 != 0).then_some(7),
            key: (position % 5 != 0).then_some(text.as_bytes()),
            value: (position % 7 != 0).then_some(text.as_bytes()),
        };
        let properties = (position % 11 == 0).then_some(("p", "q"));
        columns.push(fields, [("a", None), ("a", Some(text.as_bytes()))], properties);
    }
    columns
}

fn segment(blocks: Vec<(i32, Columns)>, archived_at: i64) -> SegmentReader {
    let at = Timestamp::from_micros(archived_at);
    let mut writer = SegmentWriter::new(Arc::from("t"), Arc::from("s"), window(), at, &options());
    writer.write_chunk(blocks);
    reader(writer.finish())
}

fn reader(mut finished: tapedeck_storage::segment::FinishedSegment) -> SegmentReader {
    let bytes: Vec<u8> = finished.take_parts().iter().flat_map(|part| part.to_vec()).collect();
    SegmentReader::from_bytes("a segment", bytes.into()).expect("it opens")
}

fn rows(reader: &SegmentReader) -> Vec<String> {
    let scan = Scan { projection: Projection::Rows, ..Scan::default() };
    let mut rows = Vec::new();
    for batch in reader.batches(scan) {
        let batch = batch.expect("it decodes");
        let mut headers = Vec::new();
        for row in 0..batch.len() {
            batch.headers(row, &mut headers);
            let properties: Vec<_> = batch.properties(row).collect();
            rows.push(format!("{:?} {:?} {headers:?} {properties:?}", batch.row(row), batch.archived_at(row)));
        }
    }
    rows
}

fn merged(inputs: &[SegmentReader]) -> (SegmentReader, RowDigest) {
    let mut merger = Merger::new(Arc::from("t"), Arc::from("s"), window(), &options());
    for input in inputs {
        for batch in input.batches(Scan { projection: Projection::Rows, ..Scan::default() }) {
            merger.take(&batch.expect("it decodes"));
        }
    }
    let (finished, digest) = merger.finish();
    (reader(finished), digest)
}

fn digest(reader: &SegmentReader) -> RowDigest {
    let mut digest = RowDigest::default();
    for batch in reader.batches(Scan { projection: Projection::Rows, ..Scan::default() }) {
        digest.add(&batch.expect("it decodes"));
    }
    digest
}

#[test]
fn a_merged_segment_holds_the_rows_of_all_and_can_be_merged_again() {
    let inputs = [
        segment(vec![(0, block(0, 300)), (3, block(50, 40))], BEGIN + 1),
        segment(vec![(3, block(90, 500)), (1, block(5, 1))], BEGIN + 2),
        segment(vec![(0, block(400, 200))], BEGIN + 3),
    ];
    let (once, taken) = merged(&inputs[..2]);
    let (twice, _) = merged(&[once.clone(), inputs[2].clone()]);
    assert_eq!(digest(&once), taken);
    let sorted = |mut rows: Vec<String>| {
        rows.sort();
        rows
    };
    assert_eq!(sorted(rows(&twice)), sorted(inputs.iter().flat_map(rows).collect()));
    let mut last = std::collections::BTreeMap::new();
    for batch in twice.batches(Scan { projection: Projection::Places, ..Scan::default() }) {
        let batch = batch.expect("it decodes");
        for row in 0..batch.len() {
            let (partition, position, _) = batch.place(row);
            assert!(last.insert(partition, position).is_none_or(|before| before < position), "partition {partition} goes back");
        }
    }
}

#[test]
fn a_digest_tells_any_other_rows_apart_and_does_not_mind_their_order() {
    let base = digest(&segment(vec![(0, block(0, 9)), (1, block(0, 9))], BEGIN));
    assert_eq!(base, digest(&segment(vec![(1, block(0, 9)), (0, block(0, 9))], BEGIN)));
    let others = [
        segment(vec![(0, block(0, 9)), (1, block(0, 9))], BEGIN + 1),
        segment(vec![(0, block(0, 9)), (2, block(0, 9))], BEGIN),
        segment(vec![(0, block(0, 9)), (1, block(1, 9))], BEGIN),
        segment(vec![(0, block(0, 9)), (1, block(0, 8))], BEGIN),
    ];
    assert!(others.iter().all(|other| digest(other) != base));
}
