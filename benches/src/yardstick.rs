//! What the machine must do at the least: zstd over the values, and Kafka's record batches without a client around them.
//! Never: clever; each is the plainest loop that does the work, in reused memory.

use anyhow::Result;
use crc_fast::{CrcAlgorithm, checksum};
use tapedeck_common::event::Header;
use zstd::bulk::{Compressor, Decompressor};

/// Bytes that are compressed at once: those of a value page.
pub const BLOCK_BYTES: usize = 1 << 20;

/// Bytes of records in a batch: those that our producer asks for.
const BATCH_BYTES: usize = 512 << 10;

/// Compresses bytes in blocks; answers how many came out.
pub fn compress(level: i32, bytes: &[u8]) -> Result<u64> {
    let mut context = Compressor::new(level)?;
    let mut out = Vec::with_capacity(zstd::zstd_safe::compress_bound(BLOCK_BYTES));
    let mut total = 0;
    for block in bytes.chunks(BLOCK_BYTES) {
        out.clear();
        total += context.compress_to_buffer(block, &mut out)? as u64;
    }
    Ok(total)
}

/// The blocks themselves, to be decompressed.
pub fn compressed(level: i32, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut context = Compressor::new(level)?;
    bytes.chunks(BLOCK_BYTES).map(|block| Ok(context.compress(block)?)).collect()
}

/// Decompresses blocks into one reused buffer; answers how many bytes came out.
pub fn decompress(blocks: &[Vec<u8>]) -> Result<u64> {
    let mut context = Decompressor::new()?;
    let mut out = Vec::with_capacity(BLOCK_BYTES);
    let mut total = 0;
    for block in blocks {
        out.clear();
        total += context.decompress_to_buffer(block, &mut out)? as u64;
    }
    Ok(total)
}

/// Encodes record batches of Kafka's format 2, as a producer without any other duty would.
pub struct BatchEncoder {
    codec: Option<Compressor<'static>>,
    records: Vec<u8>,
    packed: Vec<u8>,
    batch: Vec<u8>,
    count: i32,
    base_time: i64,
    /// Bytes of all batches.
    pub written: u64,
    /// Keeps the checksums alive, so that they are really computed.
    pub checksums: u64,
}

impl BatchEncoder {
    /// Batches with zstd at this level, or without compression.
    pub fn new(zstd_level: Option<i32>) -> Result<Self> {
        let codec = zstd_level.map(Compressor::new).transpose()?;
        let (records, packed, batch) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { codec, records, packed, batch, count: 0, base_time: 0, written: 0, checksums: 0 })
    }

    /// Appends one record.
    pub fn push(&mut self, millis: i64, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[Header<'_>]) -> Result<()> {
        if self.count == 0 {
            self.base_time = millis;
        }
        let time = millis - self.base_time;
        let sized = |bytes: Option<&[u8]>| bytes.map_or(1, |bytes| varint_len(bytes.len() as i64) + bytes.len());
        let in_headers: usize = headers.iter().map(|(name, value)| sized(Some(name.as_bytes())) + sized(*value)).sum();
        let fixed = 1 + varint_len(time) + varint_len(i64::from(self.count)) + varint_len(headers.len() as i64);
        let out = &mut self.records;
        varint(out, (fixed + sized(key) + sized(value) + in_headers) as i64);
        out.push(0);
        varint(out, time);
        varint(out, i64::from(self.count));
        field(out, key);
        field(out, value);
        varint(out, headers.len() as i64);
        for (name, value) in headers {
            field(out, Some(name.as_bytes()));
            field(out, *value);
        }
        self.count += 1;
        if self.records.len() >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    /// Ends the open batch.
    pub fn flush(&mut self) -> Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let body = match &mut self.codec {
            Some(codec) => {
                self.packed.clear();
                self.packed.reserve(zstd::zstd_safe::compress_bound(self.records.len()));
                codec.compress_to_buffer(&self.records, &mut self.packed)?;
                &self.packed
            }
            None => &self.records,
        };
        let batch = &mut self.batch;
        batch.clear();
        // Attributes to the count of records: all that the checksum covers in front of them.
        batch.extend_from_slice(&[0; 2 + 4 + 8 + 8 + 8 + 2 + 4]);
        batch.extend_from_slice(&self.count.to_be_bytes());
        batch.extend_from_slice(body);
        self.checksums ^= checksum(CrcAlgorithm::Crc32Iscsi, batch);
        self.written += batch.len() as u64;
        self.records.clear();
        self.count = 0;
        Ok(())
    }
}

fn field(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => varint(out, -1),
        Some(bytes) => {
            varint(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}

fn zigzag(number: i64) -> u64 {
    (number.cast_unsigned() << 1) ^ (number >> 63).cast_unsigned()
}

fn varint_len(number: i64) -> usize {
    (70 - (zigzag(number) | 1).leading_zeros() as usize) / 7
}

fn varint(out: &mut Vec<u8>, number: i64) {
    let mut rest = zigzag(number);
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_numbers_are_known_before_they_are_written() {
        for number in [0, 1, -1, 63, 64, -64, -65, 8_191, 8_192, 1_083, i64::from(i32::MAX), i64::MAX, i64::MIN] {
            let mut out = Vec::new();
            varint(&mut out, number);
            assert_eq!(out.len(), varint_len(number), "{number}");
        }
    }

    #[test]
    fn blocks_read_back() {
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 7) as u8).collect();
        let blocks = compressed(1, &bytes).expect("memory");
        assert_eq!(blocks.len(), 3);
        assert_eq!(decompress(&blocks).expect("whole blocks"), bytes.len() as u64);
        let sum: usize = blocks.iter().map(Vec::len).sum();
        assert_eq!(compress(1, &bytes).expect("memory"), sum as u64);
    }
}
