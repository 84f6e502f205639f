//! What the machines of one world borrow: it lives as long as the world and goes with it, so that millions of worlds leak nothing.

use std::cell::{Cell, OnceCell};

use tapedeck_common::commit::Record;
use tapedeck_storage::log::genesis::Genesis;
use tapedeck_storage::log::rewrite::Rewrite;

const CHUNKS: usize = 256;
const CHUNK: usize = 64;

/// Values that stay where they are. Room for 16,384 of them, far more than a world asks for.
pub(crate) struct Arena<T> {
    chunks: Vec<OnceCell<Box<[OnceCell<T>]>>>,
    used: Cell<usize>,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self { chunks: (0..CHUNKS).map(|_| OnceCell::new()).collect(), used: Cell::new(0) }
    }
}

impl<T> Arena<T> {
    pub(crate) fn keep(&self, value: T) -> &T {
        let at = self.used.replace(self.used.get() + 1);
        let chunk = self.chunks[at / CHUNK].get_or_init(|| (0..CHUNK).map(|_| OnceCell::new()).collect());
        chunk[at % CHUNK].get_or_init(|| value)
    }
}

/// All goals of a world.
#[derive(Default)]
pub(crate) struct Desk {
    pub(crate) begins: Arena<Genesis>,
    pub(crate) batches: Arena<Record>,
    pub(crate) rewrites: Arena<Rewrite>,
}
