//! Takes the bytes of a segment and hands them out as whole parts.
//!
//! Promises: parts are exactly `part_bytes` long but for the last, as some stores demand; the hash covers every byte in order.
//! Never: copies a byte twice.

use std::collections::VecDeque;
use std::io;

use bytes::Bytes;

/// Bytes are hashed in pieces of this size, while they are still in the CPU's cache.
const HASH_BYTES: usize = 64 * 1024;

/// Buffers begin this small: most segments of a quiet hour stay below it.
const BUFFER_BYTES_FIRST: usize = 16 * 1024;

pub(crate) struct PartSink {
    part_bytes: usize,
    done: VecDeque<Bytes>,
    open: Vec<u8>,
    hashed: usize,
    hasher: blake3::Hasher,
    written: u64,
}

impl PartSink {
    pub(crate) fn new(part_bytes: usize) -> Self {
        Self { part_bytes, done: VecDeque::new(), open: Vec::new(), hashed: 0, hasher: blake3::Hasher::new(), written: 0 }
    }

    /// Bytes so far, taken ones included.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Bytes held.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.done.iter().map(Bytes::len).sum::<usize>() + self.open.capacity()
    }

    /// Bytes in whole parts.
    pub(crate) fn ready_bytes(&self) -> usize {
        self.done.iter().map(Bytes::len).sum()
    }

    /// Takes the whole parts.
    pub(crate) fn take_ready(&mut self) -> Vec<Bytes> {
        self.done.drain(..).collect()
    }

    /// Everything that was not taken, the number of all bytes and their hash.
    pub(crate) fn finish(mut self) -> (Vec<Bytes>, u64, blake3::Hash) {
        self.hash_open();
        if !self.open.is_empty() {
            self.done.push_back(Bytes::from(std::mem::take(&mut self.open)));
        }
        (self.done.into(), self.written, self.hasher.finalize())
    }

    fn hash_open(&mut self) {
        self.hasher.update(&self.open[self.hashed..]);
        self.hashed = self.open.len();
    }

    fn grow(&mut self, by: usize) {
        let needed = self.open.len() + by;
        if needed > self.open.capacity() {
            let target = needed.max(self.open.capacity() * 3 / 2).max(BUFFER_BYTES_FIRST).min(self.part_bytes.max(needed));
            self.open.reserve_exact(target - self.open.len());
        }
    }
}

impl io::Write for PartSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(self.part_bytes - self.open.len()));
            self.grow(now.len());
            self.open.extend_from_slice(now);
            rest = later;
            let is_whole = self.open.len() == self.part_bytes;
            if is_whole || self.open.len() - self.hashed >= HASH_BYTES {
                self.hash_open();
            }
            if is_whole {
                self.done.push_back(Bytes::from(std::mem::take(&mut self.open)));
                self.hashed = 0;
            }
        }
        self.written += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn parts_are_whole_and_the_hash_is_of_the_object() {
        for writes in [vec![1; 999], vec![64 * 1024, 3, 200_000], vec![250_000], vec![100_000, 100_000]] {
            let mut sink = PartSink::new(100_000);
            let mut object = Vec::new();
            let mut parts = Vec::new();
            for (n, size) in writes.iter().enumerate() {
                let bytes: Vec<u8> = (0..*size).map(|at| (at * 7 + n) as u8).collect();
                object.extend_from_slice(&bytes);
                sink.write_all(&bytes).expect("memory");
                parts.extend(sink.take_ready());
            }
            assert!(parts.iter().all(|part| part.len() == 100_000));
            let (last, size, hash) = sink.finish();
            parts.extend(last);
            assert_eq!(parts.concat(), object);
            assert_eq!((size, hash), (object.len() as u64, blake3::hash(&object)));
        }
    }
}
