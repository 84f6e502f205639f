//! zstd contexts, shared by all open segments: a context is worth a megabyte, and sixty-four writers are open at once.
//! Promise: there are only as many contexts as encoders that run at the same time.

use std::sync::{Mutex, PoisonError};

use zstd::bulk::Compressor;
use zstd::zstd_safe::compress_bound;

/// Buffers larger than this are not kept: pages are of a mebibyte, unless a single event is larger.
pub(crate) const BUFFER_BYTES_KEPT: usize = 4 * 1024 * 1024;

/// A pool of contexts. One for the process is enough.
#[derive(Default)]
pub struct Codecs(Mutex<Vec<Codec>>);

impl std::fmt::Debug for Codecs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Codecs")
    }
}

impl Codecs {
    pub(crate) fn take(&self) -> Codec {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_else(Codec::new)
    }

    pub(crate) fn give_back(&self, codec: Codec) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(codec);
    }
}

/// One zstd context and the buffer that it writes into.
pub(crate) struct Codec {
    context: Compressor<'static>,
    level: i32,
    compressed: Vec<u8>,
}

impl Codec {
    fn new() -> Self {
        let level = 1;
        let context = Compressor::new(level).expect("zstd knows level 1");
        Self { context, level, compressed: Vec::new() }
    }

    /// Gives a buffer back to the system that a giant made large.
    pub(crate) fn slim(&mut self) {
        if self.compressed.capacity() > BUFFER_BYTES_KEPT {
            self.compressed = Vec::new();
        }
    }

    /// `body`, compressed; valid until the next call.
    pub(crate) fn compress(&mut self, level: i32, body: &[u8]) -> &[u8] {
        if self.level != level {
            self.context.set_compression_level(level).expect("only levels that zstd knows are used");
            self.level = level;
        }
        self.compressed.clear();
        self.compressed.reserve(compress_bound(body.len()));
        self.context.compress_to_buffer(body, &mut self.compressed).expect("the buffer holds the worst case");
        &self.compressed
    }
}
