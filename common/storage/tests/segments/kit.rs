//! Events made by hand, written and read through the public types.

use std::sync::Arc;

use bytes::Bytes;
use tapedeck_common::columns::{Columns, EventFields};
use tapedeck_common::commit::SegmentRef;
use tapedeck_common::event::TimeKind;
use tapedeck_common::{Position, Timestamp, Window};
use tapedeck_storage::segment::{EventBatch, Scan, SegmentReader, SegmentWriter, WriterOptions};

/// The hour that all events here belong to.
pub(crate) const HOUR: i64 = 495_000;

pub(crate) fn hour() -> Window {
    Window::of(Timestamp::from_micros(HOUR * 3_600_000_000))
}

/// An event that owns its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) partition: i32,
    pub(crate) position: u64,
    /// Microseconds after the hour began.
    pub(crate) micros: i64,
    pub(crate) kind: TimeKind,
    pub(crate) epoch: Option<i32>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    pub(crate) properties: Vec<(String, String)>,
}

impl Event {
    pub(crate) fn plain(partition: i32, position: u64, value: Vec<u8>) -> Self {
        Self {
            partition,
            position,
            micros: position as i64,
            kind: TimeKind::Create,
            epoch: Some(3),
            key: Some(position.to_string().into_bytes()),
            value: Some(value),
            headers: vec![("trace".to_owned(), Some(b"abc".to_vec()))],
            properties: Vec::new(),
        }
    }

    pub(crate) fn time(&self) -> Timestamp {
        Timestamp::from_micros(hour().start().micros() + self.micros)
    }

    pub(crate) fn payload_bytes(&self) -> usize {
        let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + length(value)).sum();
        length(&self.key) + length(&self.value) + headers
    }
}

pub(crate) fn columns(events: &[Event]) -> Columns {
    let mut columns = Columns::default();
    for event in events {
        let fields = EventFields {
            position: Position::new(event.position),
            time: event.time(),
            time_kind: event.kind,
            leader_epoch: event.epoch,
            key: event.key.as_deref(),
            value: event.value.as_deref(),
        };
        let headers = event.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
        let properties = event.properties.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        columns.push(fields, headers, properties);
    }
    columns
}

pub(crate) fn writer(options: &WriterOptions) -> SegmentWriter {
    let source = Arc::from("kafka/cluster/AAAAAAAAAAAAAAAAAAAAAA/0");
    SegmentWriter::new(Arc::from("orders"), source, hour(), Timestamp::from_micros(1_782_000_111_222_333), options)
}

/// Writes chunks of blocks, a block per run of equal partitions.
pub(crate) fn write(options: &WriterOptions, chunks: &[Vec<Event>]) -> (Bytes, SegmentRef) {
    let mut writer = writer(options);
    let mut object = Vec::new();
    for chunk in chunks {
        let blocks = chunk.chunk_by(|a, b| a.partition == b.partition).map(|run| (run[0].partition, columns(run)));
        let emptied = writer.write_chunk(blocks.collect());
        assert!(emptied.iter().all(Columns::is_empty));
        writer.take_parts(1).iter().for_each(|part| object.extend_from_slice(part));
    }
    let mut finished = writer.finish();
    finished.take_parts().iter().for_each(|part| object.extend_from_slice(part));
    let by = finished.into_ref("orders/x.parquet".to_owned(), Timestamp::from_micros(7));
    (Bytes::from(object), by)
}

/// The events of chunks in the order in which a segment holds them: by partition within a chunk.
pub(crate) fn in_segment_order(chunks: &[Vec<Event>]) -> Vec<Event> {
    let sorted = |chunk: &Vec<Event>| {
        let mut chunk = chunk.clone();
        chunk.sort_by_key(|event| event.partition);
        chunk
    };
    chunks.iter().flat_map(sorted).collect()
}

pub(crate) fn events_of(batch: &EventBatch) -> Vec<Event> {
    let (mut headers, mut lending) = (Vec::new(), batch.clone());
    lending.lend(&Arc::new(()));
    let event = |row: usize| {
        let fields = batch.row(row);
        Event {
            partition: fields.partition,
            position: fields.position.get(),
            micros: fields.time.micros() - hour().start().micros(),
            kind: fields.time_kind,
            epoch: fields.leader_epoch,
            key: fields.key.map(<[u8]>::to_vec),
            value: fields.value.map(<[u8]>::to_vec),
            headers: Vec::new(),
            properties: batch.properties(row).map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        }
    };
    let mut events: Vec<Event> = (0..batch.len()).map(event).collect();
    for (row, event) in events.iter_mut().enumerate() {
        assert_eq!(lending.shared_value(row).as_deref(), event.value.as_deref(), "shared and borrowed are the same");
        batch.headers(row, &mut headers);
        event.headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.map(<[u8]>::to_vec))).collect();
    }
    events
}

pub(crate) fn read(object: &Bytes, scan: Scan) -> Vec<Event> {
    let reader = SegmentReader::from_bytes("test", object.clone()).expect("opens");
    reader.batches(scan).flat_map(|batch| events_of(&batch.expect("decodes"))).collect()
}
