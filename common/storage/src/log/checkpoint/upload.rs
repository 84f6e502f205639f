//! Brings a checkpoint into the store: a small one in one request, a large one in parts while it is still being made.
//!
//! Promises: a name is taken over only by a whole file. Writing one again is harmless, since what a checkpoint means follows
//! from its name. Never: tries again; there will be another checkpoint.

use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::task::JoinSet;

use crate::log::tail::LogReader;
use crate::store::{Outcome, StoreError, classify};

/// Parts in flight: they are as large as those of segments, and nobody waits for a checkpoint.
const IN_FLIGHT: usize = 2;

/// One checkpoint on its way. Dropping it gives up what was begun, as well as the store lets it.
pub(super) struct Upload<'a> {
    reader: &'a LogReader,
    key: Path,
    /// Whatever lies there does not serve.
    replace: bool,
    begun: Option<Box<dyn MultipartUpload>>,
    in_flight: JoinSet<object_store::Result<()>>,
}

impl<'a> Upload<'a> {
    pub(super) fn new(reader: &'a LogReader, key: Path, replace: bool) -> Self {
        Self { reader, key, replace, begun: None, in_flight: JoinSet::new() }
    }

    /// Sends the next part; all but the last are of the same size.
    pub(super) async fn push(&mut self, part: Bytes) -> Result<(), StoreError> {
        while self.in_flight.len() >= IN_FLIGHT {
            self.settle_one().await?;
        }
        if self.begun.is_none() {
            let begun = self.reader.store.put_multipart(&self.key).await;
            self.begun = Some(begun.map_err(|error| self.failed(error))?);
        }
        if let Some(upload) = &mut self.begun {
            self.in_flight.spawn(upload.put_part(PutPayload::from_bytes(part)));
        }
        Ok(())
    }

    /// Sends what is left and ends the file.
    pub(super) async fn finish(mut self, rest: Vec<Bytes>) -> Result<(), StoreError> {
        if self.begun.is_none() {
            return self.create(rest).await;
        }
        for part in rest.into_iter().filter(|part| !part.is_empty()) {
            self.push(part).await?;
        }
        while !self.in_flight.is_empty() {
            self.settle_one().await?;
        }
        if let Some(upload) = &mut self.begun {
            let completed = upload.complete().await;
            completed.map_err(|error| self.failed(error))?;
        }
        self.begun = None;
        Ok(())
    }

    async fn create(&mut self, whole: Vec<Bytes>) -> Result<(), StoreError> {
        let create = PutOptions::from(if self.replace { PutMode::Overwrite } else { PutMode::Create });
        match self.reader.store.put_opts(&self.key, whole.into_iter().collect(), create).await {
            // Somebody else wrote what means the same.
            Err(error) if classify(&error) != Outcome::Exists => Err(self.failed(error)),
            _ => Ok(()),
        }
    }

    async fn settle_one(&mut self) -> Result<(), StoreError> {
        let Some(settled) = self.in_flight.join_next().await else { return Ok(()) };
        let stopped = |error: tokio::task::JoinError| object_store::Error::JoinError { source: error };
        settled.map_err(stopped).flatten().map_err(|error| self.failed(error))
    }

    fn failed(&self, error: object_store::Error) -> StoreError {
        StoreError::request(format!("cannot write {}", self.key), error)
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        // Its parts cost money and are invisible.
        let Some(mut upload) = self.begun.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move { upload.abort().await });
    }
}
