//! Reads ranges of one object, and proves whole objects.
//!
//! Promises: neighbouring ranges travel in one request; a range of the wrong length is an error, never padded or cut.
//! Never: retries; the store's client or the caller does.

use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{GetResultPayload, ObjectStore, ObjectStoreExt};
use tapedeck_common::commit::SegmentRef;

use super::error::SegmentError;

/// Objects up to this size are fetched in one request: two more would take longer than the bytes.
pub(crate) const WHOLE_BYTES_MAX: u64 = 2 * 1024 * 1024;

/// A file is hashed in pieces of this size, which stay in the CPU's cache.
const FILE_PIECE_BYTES: usize = 256 * 1024;

/// One object, far away or in memory.
#[derive(Debug, Clone)]
pub(crate) struct ObjectBytes {
    pub(crate) key: Path,
    pub(crate) size: u64,
    store: Option<Arc<dyn ObjectStore>>,
    whole: Option<Bytes>,
}

impl ObjectBytes {
    pub(crate) fn in_memory(key: Path, bytes: Bytes) -> Self {
        Self { key, size: bytes.len() as u64, store: None, whole: Some(bytes) }
    }

    /// Fetches small objects at once.
    pub(crate) async fn open(store: Arc<dyn ObjectStore>, key: Path, size: u64) -> Result<Self, SegmentError> {
        let mut object = Self { key, size, store: Some(store), whole: None };
        if size <= WHOLE_BYTES_MAX {
            object.whole = object.fetch(std::slice::from_ref(&(0..size))).await?.pop();
        }
        Ok(object)
    }

    /// All bytes, if they are in memory.
    pub(crate) fn whole(&self) -> Option<&Bytes> {
        self.whole.as_ref()
    }

    /// The ranges, if the object is in memory.
    pub(crate) fn held(&self, ranges: &[Range<u64>]) -> Option<Result<Vec<Bytes>, SegmentError>> {
        let whole = self.whole.as_ref()?;
        let slice = |range: &Range<u64>| {
            if range.start > range.end || range.end > self.size {
                return Err(SegmentError::corrupt(self.key.as_ref(), format!("its footer points outside it, to {range:?}")));
            }
            Ok(whole.slice(range.start as usize..range.end as usize))
        };
        Some(ranges.iter().map(slice).collect())
    }

    pub(crate) async fn ranges(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, SegmentError> {
        match self.held(ranges) {
            Some(held) => held,
            None => self.fetch(ranges).await,
        }
    }

    async fn fetch(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, SegmentError> {
        if let Some(outside) = ranges.iter().find(|range| range.start > range.end || range.end > self.size) {
            return Err(SegmentError::corrupt(self.key.as_ref(), format!("its footer points outside it, to {outside:?}")));
        }
        let store = self.store.as_ref().expect("an object without a store is in memory");
        let fetched = store.get_ranges(&self.key, ranges).await.map_err(|error| SegmentError::read(&self.key, error))?;
        for (range, bytes) in ranges.iter().zip(&fetched) {
            if bytes.len() as u64 != range.end - range.start {
                let what = format!("the store answered {} bytes for {range:?}", bytes.len());
                return Err(SegmentError::corrupt(self.key.as_ref(), what));
            }
        }
        Ok(fetched)
    }
}

/// Checks bytes in memory against what the log vouches for.
pub(crate) fn verify_bytes(key: &Path, bytes: &[u8], expected: &SegmentRef) -> Result<(), SegmentError> {
    compare(key, bytes.len() as u64, &blake3::hash(bytes), expected)
}

/// Reads a whole object and checks its size and BLAKE3 against what the log vouches for.
pub async fn verify_object(store: &dyn ObjectStore, key: &Path, expected: &SegmentRef) -> Result<(), SegmentError> {
    let result = store.get(key).await.map_err(|error| SegmentError::read(key, error))?;
    let (size, hash) = match result.payload {
        // As a stream a file comes in pieces of 8 KiB, each from another thread.
        GetResultPayload::File(file, _) => {
            let hashed = tokio::task::spawn_blocking(move || hash_file(file)).await;
            hashed.map_err(|error| SegmentError::stopped(key, error))?.map_err(|error| SegmentError::stopped(key, error))?
        }
        GetResultPayload::Stream(mut stream) => {
            let (mut size, mut hasher) = (0, blake3::Hasher::new());
            while let Some(bytes) = stream.try_next().await.map_err(|error| SegmentError::read(key, error))? {
                hasher.update(&bytes);
                size += bytes.len() as u64;
            }
            (size, hasher.finalize())
        }
    };
    compare(key, size, &hash, expected)
}

fn hash_file(mut file: File) -> io::Result<(u64, blake3::Hash)> {
    let (mut size, mut hasher) = (0, blake3::Hasher::new());
    let mut piece = vec![0; FILE_PIECE_BYTES];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok((size, hasher.finalize())),
            bytes => {
                hasher.update(&piece[..bytes]);
                size += bytes as u64;
            }
        }
    }
}

fn compare(key: &Path, size: u64, hash: &blake3::Hash, expected: &SegmentRef) -> Result<(), SegmentError> {
    if size != expected.size {
        let what = format!("it has {size} bytes, the log says {}", expected.size);
        return Err(SegmentError::corrupt(key.as_ref(), what));
    }
    if hash.to_hex().as_str() != expected.blake3 {
        let what = format!("its BLAKE3 is {}, the log says {}", hash.to_hex(), expected.blake3);
        return Err(SegmentError::corrupt(key.as_ref(), what));
    }
    Ok(())
}
