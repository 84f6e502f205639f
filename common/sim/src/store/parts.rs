//! Uploads in parts by number, as S3 has them: parts are kept aside until the upload is completed, and each step can be
//! repeated until then. The same faults strike here as on the general upload handle.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{Error, MultipartId, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result};

use super::FaultyStore;
use super::fault::Call;

/// How many uploads were ever begun, and the parts of those that are open, by number.
type Begun = (u64, BTreeMap<MultipartId, BTreeMap<usize, PutPayload>>);

/// Uploads that are neither complete nor given up.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    begun: Mutex<Begun>,
}

impl Uploads {
    fn begun(&self) -> MutexGuard<'_, Begun> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> MultipartId {
        let mut begun = self.begun();
        begun.0 += 1;
        let id = format!("upload-{}", begun.0);
        begun.1.insert(id.clone(), BTreeMap::new());
        id
    }

    fn with<T>(&self, key: &Path, id: &MultipartId, act: impl FnOnce(&mut BTreeMap<usize, PutPayload>) -> T) -> Result<T> {
        let unknown = || Error::NotFound { path: key.to_string(), source: format!("404, NoSuchUpload {id}").into() };
        self.begun().1.get_mut(id).map(act).ok_or_else(unknown)
    }
}

impl FaultyStore {
    /// The store forgets every upload that is not complete, as a life-cycle rule makes it do.
    pub fn forget_uploads(&self) {
        self.uploads.begun().1.clear();
    }

    /// How many uploads are begun and neither complete nor given up.
    pub fn uploads_begun(&self) -> usize {
        self.uploads.begun().1.len()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl MultipartStore for FaultyStore {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        self.run(Call::Begin, path, async { Ok(self.uploads.begin()) }).await
    }

    async fn create_multipart_opts(&self, path: &Path, _opts: PutMultipartOptions) -> Result<MultipartId> {
        self.create_multipart(path).await
    }

    async fn put_part(&self, path: &Path, id: &MultipartId, part_idx: usize, data: PutPayload) -> Result<PartId> {
        let stored = async { self.uploads.with(path, id, |parts| parts.insert(part_idx, data)) };
        self.run(Call::Part, path, stored).await?;
        Ok(PartId { content_id: part_idx.to_string() })
    }

    async fn complete_multipart(&self, path: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        let complete = async {
            let held = self.uploads.with(path, id, |held| held.clone())?;
            let missing = || Error::Generic { store: super::NAME, source: "400, InvalidPart".into() };
            let numbers = parts.iter().map(|part| part.content_id.parse::<usize>().map_err(|_| missing()));
            let whole: Result<Vec<_>> = numbers.map(|number| held.get(&number?).ok_or_else(missing)).collect();
            let whole: PutPayload = whole?.into_iter().flatten().cloned().collect();
            let result = self.below.put_opts(path, whole, PutOptions::default()).await?;
            self.uploads.begun().1.remove(id);
            Ok(result)
        };
        self.run(Call::Complete, path, complete).await
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        let abort = async {
            self.uploads.begun().1.remove(id);
            Ok(())
        };
        self.run(Call::Abort, path, abort).await
    }
}
