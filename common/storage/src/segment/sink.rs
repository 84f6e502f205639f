//! Takes the bytes of a segment and hands them out as whole parts.
//!
//! Promises: parts are exactly `part_bytes` long but for the last, as some stores demand; the hash covers every byte in order.
//! Never: copies a byte twice, but for the first eighth of a part.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Bytes are hashed in pieces of this size, while they are still in the CPU's cache.
const HASH_BYTES: usize = 64 * 1024;

/// Buffers begin this small: most segments of a quiet hour stay below it.
const BUFFER_BYTES_FIRST: usize = 16 * 1024;

/// Used part buffers, kept for reuse: memory that was used before costs a fraction of fresh memory.
#[derive(Debug)]
pub struct PartPool {
    idle: Mutex<Vec<Vec<u8>>>,
    idle_bytes_max: usize,
}

impl PartPool {
    /// A pool that keeps at most `idle_bytes_max` bytes of idle buffers.
    pub fn new(idle_bytes_max: usize) -> Self {
        Self { idle: Mutex::default(), idle_bytes_max }
    }

    /// An empty buffer for `bytes`.
    fn take(&self, bytes: usize) -> Vec<u8> {
        let used = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        used.filter(|buffer| buffer.capacity() >= bytes).unwrap_or_else(|| Vec::with_capacity(bytes))
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let held: usize = idle.iter().map(Vec::capacity).sum();
        if held + buffer.capacity() <= self.idle_bytes_max {
            idle.push(buffer);
        }
    }
}

/// A part whose buffer goes back once the last one who looks at it is done.
struct Part {
    buffer: Vec<u8>,
    pool: Arc<PartPool>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.buffer));
    }
}

pub(crate) struct PartSink {
    part_bytes: usize,
    pool: Arc<PartPool>,
    done: VecDeque<Bytes>,
    open: Vec<u8>,
    hashed: usize,
    hasher: blake3::Hasher,
    written: u64,
}

impl PartSink {
    pub(crate) fn new(part_bytes: usize, pool: Arc<PartPool>) -> Self {
        let (done, open) = (VecDeque::new(), Vec::new());
        Self { part_bytes, pool, done, open, hashed: 0, hasher: blake3::Hasher::new(), written: 0 }
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
        if needed <= self.open.capacity() {
            return;
        }
        if needed > self.part_bytes / 8 {
            let grown = self.pool.take(self.part_bytes);
            let small = std::mem::replace(&mut self.open, grown);
            self.open.extend_from_slice(&small);
            return;
        }
        let target = needed.max(self.open.capacity() * 3 / 2).max(BUFFER_BYTES_FIRST);
        self.open.reserve_exact(target - self.open.len());
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
                let buffer = std::mem::take(&mut self.open);
                self.done.push_back(Bytes::from_owner(Part { buffer, pool: Arc::clone(&self.pool) }));
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
            let mut sink = PartSink::new(100_000, Arc::new(PartPool::new(100_000)));
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
