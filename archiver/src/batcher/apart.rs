//! Over-size events: each leaves its run for a group, and so for a segment, of its own.
//!
//! Promises: the others of the run keep their order and their places; the room that packing a giant takes is held from here on,
//! so that no second one comes in beside it.

use std::sync::Arc;
use std::time::Duration;

use tapedeck_common::bus::Deliveries;
use tapedeck_common::columns::{Columns, ColumnsPool};
use tapedeck_common::event::PROPERTY_OVERSIZE;
use tapedeck_common::limits::OVERSIZE_ROOM;
use tapedeck_common::time::Window;

use super::{Group, GroupKey, OpenBatch};

impl Group {
    /// Holds the room that packing an over-size event takes.
    fn widen(&mut self) {
        if let Some(permit) = &mut self.permit {
            permit.resize(self.held * OVERSIZE_ROOM);
        }
    }
}

impl OpenBatch {
    /// Takes over-size events out of a run, each into a group of its own, with the room that it takes.
    pub(super) fn set_apart(&mut self, run: &mut Deliveries, oversize: usize, now: Duration, pool: &ColumnsPool) {
        let is_large = |row: usize| run.events.row_bytes(row) >= oversize;
        if !(0..run.events.len()).any(is_large) {
            return;
        }
        let mut rest = pool.take();
        for row in 0..run.events.len() {
            if !is_large(row) {
                rest.push_row_of(&run.events, row);
                continue;
            }
            let event = run.events.get(row);
            let (source, topic) = (Arc::clone(&run.lane.source), Arc::clone(&run.topic));
            let lone = Some((run.lane.partition, event.position));
            let key = GroupKey { source, topic, window: Window::of(event.time), lone };
            let share = run.permit.split(OVERSIZE_ROOM * run.events.row_bytes(row));
            let group = self.groups.entry(key).or_default();
            group.touched = now;
            group.push(run.lane.partition, lone_row(&run.events, row), share, pool);
            group.widen();
        }
        pool.give_back(std::mem::replace(&mut run.events, rest));
    }
}

/// A row alone, marked as what it is.
fn lone_row(events: &Columns, row: usize) -> Columns {
    let (mut lone, size) = (Columns::default(), events.row_bytes(row).to_string());
    let own = events.properties.row(row);
    let properties = own.map(|(name, value)| (name, std::str::from_utf8(value.unwrap_or_default()).unwrap_or_default()));
    lone.push(events.get(row), events.headers.row(row), properties.chain([(PROPERTY_OVERSIZE, size.as_str())]));
    lone
}

#[cfg(test)]
mod tests {
    use tapedeck_common::budget::ByteBudget;
    use tapedeck_common::columns::EventFields;
    use tapedeck_common::event::TimeKind;
    use tapedeck_common::position::{LaneId, Position, Span};
    use tapedeck_common::time::Timestamp;

    use super::super::Batcher;
    use super::*;

    #[test]
    fn over_size_events_are_groups_of_their_own_and_the_others_stay_together() {
        let (lane, pool, budget) = (LaneId::new("kafka/c/t/0", 3), ColumnsPool::new(1 << 20), ByteBudget::new(8_000));
        let mut batcher = Batcher::within(budget.capacity());
        batcher.resume(&lane, Position::new(0));
        let mut columns = Columns::default();
        for (position, size) in [10, 2_000, 10, 3_000, 10].into_iter().enumerate() {
            let (key, value) = (None, vec![b'x'; size]);
            let (position, time) = (Position::new(position as u64), Timestamp::from_micros(0));
            let event = EventFields { position, time, time_kind: TimeKind::Create, leader_epoch: None, key, value: Some(&value) };
            columns.push(event, [("h", None)], [("p", "q")]);
        }
        let span = Span::new(Position::new(0), Position::new(5)).expect("forward");
        let permit = budget.force(columns.room_bytes(budget.capacity()));
        let run = Deliveries { lane, topic: "orders".into(), span, events: columns, skipped: 0, permit, window: None };
        batcher.take_in(run, (Timestamp::from_micros(0), Duration::ZERO), &pool).expect("meets");
        let open = batcher.open_mut().expect("open");
        let lone: Vec<_> = open.full_groups(usize::MAX).into_iter().map(|key| (key.lone, open.take_chunk(&key))).collect();
        let (lone, chunks): (Vec<_>, Vec<_>) = lone.into_iter().unzip();
        assert_eq!(lone, [Some((3, Position::new(1))), Some((3, Position::new(3)))]);
        for chunk in chunks.into_iter().map(|chunk| chunk.expect("it waits")) {
            let [(_, block)] = &chunk.blocks[..] else { panic!("one block") };
            let size = block.values.get(0).expect("a value").len() + 64 + 1 + 2;
            let properties: Vec<_> = block.properties.row(0).collect();
            assert_eq!(properties, [("p", Some(&b"q"[..])), (PROPERTY_OVERSIZE, Some(size.to_string().as_bytes()))]);
            assert!(chunk.permit.bytes() >= OVERSIZE_ROOM * size);
        }
        let rest = open.take_all();
        let [(key, chunk)] = &rest[..] else { panic!("one group") };
        assert_eq!((key.lone, &chunk.blocks[0].1.positions[..]), (None, &[0, 2, 4][..]));
        drop(rest);
        assert_eq!(budget.used(), 0);
        let record = batcher.seal().expect("a batch is open").into_record(Vec::new());
        assert_eq!((record.advances[0].span, record.advances[0].rows), (span, 5), "all of them are counted");
    }
}
