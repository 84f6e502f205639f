//! Seeded rows in memory, laid out as the consumer hands them over, and segments made of them.
//! Promise: the same events, partitions and positions as [`crate::broker::Broker::fill`] puts onto the bus.

use std::sync::Arc;

use bytes::Bytes;
use tapedeck_common::columns::{Columns, EventFields};
use tapedeck_common::event::{Header, TimeKind};
use tapedeck_common::limits::CHUNK_BYTES;
use tapedeck_common::{Position, Timestamp, Window};
use tapedeck_storage::segment::{SegmentWriter, WriterOptions};
use tapedeck_testbed::events::BASE_MS;
use tapedeck_testbed::{Event, Generator, Workload};

/// Partitions of the benches' topic.
pub const PARTITIONS: i32 = 64;

/// Raw bytes of a run of one partition on the bus: one batch of the producer.
const RUN_BYTES: u64 = 600_000;

/// Raw bytes of a block as the consumer hands it over.
const BLOCK_BYTES: usize = 320 << 10;

/// The events of a bench: all of one hour.
pub fn generator(workload: Workload, count: u64) -> Generator {
    Generator::new(workload, 7, count).over(BASE_MS, 0.95)
}

/// Says which partition the event with an index goes to: runs of one partition, in turn.
pub(crate) fn places(generator: &Generator) -> impl Fn(u64) -> i32 + use<> {
    // What one event weighs decides how long a run is; all of a workload weigh about the same.
    let run = (RUN_BYTES / generator.event(0).raw_bytes().max(1)).max(1);
    move |index| (index / run % PARTITIONS as u64) as i32
}

/// Rows in memory: chunks of about [`CHUNK_BYTES`], each of blocks by partition.
#[derive(Debug, Default)]
pub struct Rows {
    /// The chunks.
    pub chunks: Vec<Vec<(i32, Columns)>>,
    /// How many events.
    pub events: u64,
    /// Payload bytes.
    pub bytes: u64,
}

impl Rows {
    /// All events of a generator, in the partitions of the bus.
    pub fn as_on_the_bus(generator: &Generator) -> Self {
        Self::build(generator, places(generator))
    }

    /// All events of a generator in one partition, so that positions and times grow together.
    pub fn in_one_lane(generator: &Generator) -> Self {
        Self::build(generator, |_| 0)
    }

    fn build(generator: &Generator, partition_of: impl Fn(u64) -> i32) -> Self {
        let mut rows = Self::default();
        let mut next = vec![0; PARTITIONS as usize];
        let (mut chunk, mut chunk_bytes): (Vec<(i32, Columns)>, usize) = (Vec::new(), 0);
        for (index, event) in (0..).zip(generator.events()) {
            let partition = partition_of(index);
            let fits = |(of, block): &&mut (i32, Columns)| *of == partition && block.memory_bytes() < BLOCK_BYTES;
            let block = match chunk.last_mut().filter(|last| fits(last)) {
                Some((_, block)) => block,
                None => {
                    chunk.push((partition, Columns::default()));
                    &mut chunk.last_mut().expect("pushed just now").1
                }
            };
            let position = &mut next[partition as usize];
            push(block, *position, &event);
            *position += 1;
            rows.events += 1;
            rows.bytes += event.raw_bytes();
            chunk_bytes += event.raw_bytes() as usize + tapedeck_common::columns::ROW_OVERHEAD_BYTES;
            if chunk_bytes >= CHUNK_BYTES {
                rows.chunks.push(std::mem::take(&mut chunk));
                chunk_bytes = 0;
            }
        }
        if !chunk.is_empty() {
            rows.chunks.push(chunk);
        }
        rows
    }

    /// All values, end to end.
    pub fn values(&self) -> Vec<u8> {
        let blocks = self.chunks.iter().flatten();
        blocks.flat_map(|(_, block)| block.values.bytes().iter().copied()).collect()
    }

    /// The segment that these rows make.
    pub fn segment(&self) -> Bytes {
        let mut writer = writer(&WriterOptions::default());
        let mut refill = Refill::default();
        let mut object = Vec::new();
        for chunk in &self.chunks {
            let blocks = refill.copy_of(chunk);
            refill.give_back(writer.write_chunk(blocks));
        }
        let mut finished = writer.finish();
        finished.take_parts().iter().for_each(|part| object.extend_from_slice(part));
        Bytes::from(object)
    }
}

fn push(block: &mut Columns, position: u64, event: &Event) {
    let fields = EventFields {
        position: Position::new(position),
        time: Timestamp::from_micros(event.timestamp * 1_000),
        time_kind: TimeKind::Create,
        leader_epoch: Some(0),
        key: event.key.as_deref(),
        value: event.value.as_deref(),
    };
    let headers = event.headers.iter().map(|(name, value)| -> Header<'_> { (name.as_str(), value.as_deref()) });
    block.push(fields, headers, []);
}

/// A writer for the benches' hour.
pub fn writer(options: &WriterOptions) -> SegmentWriter {
    let began = Timestamp::from_micros(BASE_MS * 1_000);
    SegmentWriter::new(Arc::from("bench"), source(), Window::of(began), began, options)
}

/// The source of the benches' lanes.
pub fn source() -> Arc<str> {
    Arc::from("kafka/bench/bench/0")
}

/// Copies of chunks in used columns: encoders empty what they are given, and fresh memory would cost more than the copy.
#[derive(Debug, Default)]
pub struct Refill {
    idle: Vec<Columns>,
}

impl Refill {
    /// A copy of a chunk.
    pub fn copy_of(&mut self, chunk: &[(i32, Columns)]) -> Vec<(i32, Columns)> {
        let copied = chunk.iter().map(|(partition, block)| {
            let mut copy = self.idle.pop().unwrap_or_default();
            copy.clear();
            copy.append(block);
            (*partition, copy)
        });
        copied.collect()
    }

    /// Takes columns back.
    pub fn give_back(&mut self, columns: Vec<Columns>) {
        self.idle.extend(columns);
    }
}
