//! What a writer says it holds is what the process really holds: the byte budget rests on it.
//! A test binary of its own, since it looks at the memory of the whole process.

use std::sync::Arc;

use tapedeck_common::columns::{Columns, EventFields};
use tapedeck_common::event::TimeKind;
use tapedeck_common::{Position, Timestamp, Window};
use tapedeck_storage::segment::{SegmentWriter, WriterOptions};

const WRITERS: usize = 64;
const HOUR_START: i64 = 495_000 * 3_600_000_000;

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux tells");
    let pages: usize = pages.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}

fn block(first: u64, rng: &mut fastrand::Rng) -> Columns {
    let mut columns = Columns::default();
    for position in first..first + 50 {
        let value: Vec<u8> = std::iter::repeat_with(|| rng.alphanumeric() as u8).take(1_000).collect();
        let fields = EventFields {
            position: Position::new(position),
            time: Timestamp::from_micros(HOUR_START + position as i64),
            time_kind: TimeKind::Create,
            leader_epoch: Some(1),
            key: Some(&value[..36]),
            value: Some(&value),
        };
        columns.push(fields, [("trace", Some(&value[40..90]))], []);
    }
    columns
}

#[test]
fn sixty_four_open_segments_hold_what_they_say() {
    let options = WriterOptions { row_group_bytes: (128 << 20) / (4 * WRITERS), ..WriterOptions::default() };
    let mut rng = fastrand::Rng::with_seed(1);
    let window = Window::of(Timestamp::from_micros(HOUR_START));
    let open = |_| SegmentWriter::new(Arc::from("t"), Arc::from("s"), window, Timestamp::from_micros(1), &options);
    let mut writers: Vec<SegmentWriter> = (0..WRITERS).map(open).collect();
    // The shared zstd context and the allocator's own pages exist before the count begins.
    let before = resident_bytes();
    let said = |writers: &[SegmentWriter]| writers.iter().map(SegmentWriter::memory_bytes).sum::<usize>();
    assert_eq!(said(&writers), 0, "an idle writer costs nothing");
    for round in 0..16 {
        for writer in &mut writers {
            writer.write_chunk(vec![(0, block(round * 50, &mut rng))]);
        }
        let (held, said) = (resident_bytes().saturating_sub(before), said(&writers));
        // What the allocator keeps for later, the zstd context, the test's own block.
        let slack = 12 << 20;
        assert!(held <= said + said / 4 + slack, "round {round}: {held} bytes held, {said} said");
    }
    // Twice 400 KiB of raw events for each: one row group is written, one is open.
    assert!(said(&writers) < 80 << 20, "{} bytes for {WRITERS} open segments with little data", said(&writers));
}
