//! Multipart uploads whose every step can be repeated, over each kind of store.
//!
//! The general upload handle of the store client cannot repeat a part or a completion that failed; the client's other
//! interface, by part numbers, can. S3 speaks it already; a folder and a simulated store learn it here.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{Error, MultipartId, ObjectStore, ObjectStoreExt, PutPayload, PutResult, Result};

/// Multipart uploads below a prefix of a bucket.
#[derive(Debug)]
pub struct PrefixedParts<S> {
    inner: S,
    prefix: Path,
}

impl<S> PrefixedParts<S> {
    /// Uploads go to `inner`, each key below `prefix`.
    pub fn new(inner: S, prefix: Path) -> Self {
        Self { inner, prefix }
    }

    fn below(&self, key: &Path) -> Path {
        Path::from_iter(self.prefix.parts().chain(key.parts()))
    }
}

#[async_trait]
impl<S: MultipartStore> MultipartStore for PrefixedParts<S> {
    async fn create_multipart(&self, key: &Path) -> Result<MultipartId> {
        self.inner.create_multipart(&self.below(key)).await
    }

    async fn put_part(&self, key: &Path, id: &MultipartId, number: usize, data: PutPayload) -> Result<PartId> {
        self.inner.put_part(&self.below(key), id, number, data).await
    }

    async fn complete_multipart(&self, key: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        self.inner.complete_multipart(&self.below(key), id, parts).await
    }

    async fn abort_multipart(&self, key: &Path, id: &MultipartId) -> Result<()> {
        self.inner.abort_multipart(&self.below(key), id).await
    }
}

/// Multipart uploads into a folder: parts go to their places in a staged file, which is synced and renamed at the end.
#[derive(Debug)]
pub struct FolderParts {
    root: PathBuf,
    part_bytes: u64,
    /// Makes a folder's entries durable.
    sync: fn(&std::path::Path) -> io::Result<()>,
}

/// Makes names of staged files unique within the process; `create_new` does it between processes.
static STAGED: AtomicU64 = AtomicU64::new(0);

impl FolderParts {
    /// Uploads below `root`. All parts but the last must have `part_bytes`.
    pub fn new(root: PathBuf, part_bytes: usize) -> Self {
        Self { root, part_bytes: part_bytes as u64, sync: |folder| File::open(folder)?.sync_all() }
    }

    fn object(&self, key: &Path) -> PathBuf {
        self.root.join(key.as_ref())
    }
}

fn failed(key: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::NotFound { path: key.to_string(), source: Box::new(error) },
        _ => Error::Generic { store: "folder", source: Box::new(error) },
    }
}

/// After a failed sync nobody knows what lies on the disk, and a second one may not tell: the upload is gone, begin again.
fn unsynced(what: &dyn Display, error: &io::Error) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{what} could not be synced: {error}"))
}

/// Asks the system to begin writing what it still holds of a file, and to forget what it has written. A segment is read much
/// later, if ever; its bytes would push out what others on this machine read, first of all a broker.
fn let_go(file: &File) {
    #[cfg(target_os = "linux")]
    // Advice: whether it was taken changes nothing that was promised.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

async fn blocking<T: Send + 'static>(key: &Path, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await?.map_err(|error| failed(key, error))
}

#[async_trait]
impl MultipartStore for FolderParts {
    async fn create_multipart(&self, key: &Path) -> Result<MultipartId> {
        let object = self.object(key);
        blocking(key, move || {
            if let Some(folder) = object.parent() {
                fs::create_dir_all(folder)?;
            }
            loop {
                // The store client hides names with a number behind '#' from listings: they are its own staged files.
                let staged = format!("{}#{}", object.display(), STAGED.fetch_add(1, Ordering::Relaxed));
                match OpenOptions::new().write(true).create_new(true).open(&staged) {
                    Ok(_) => return Ok(staged),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(error),
                }
            }
        })
        .await
    }

    async fn put_part(&self, key: &Path, id: &MultipartId, number: usize, data: PutPayload) -> Result<PartId> {
        let (staged, part_bytes) = (id.clone(), self.part_bytes);
        blocking(key, move || {
            let size = data.content_length() as u64;
            if size > part_bytes {
                return Err(io::Error::other(format!("part {number} has {size} bytes, more than {part_bytes}")));
            }
            let file = OpenOptions::new().write(true).open(&staged)?;
            let mut at = number as u64 * part_bytes;
            for bytes in &data {
                file.write_all_at(bytes, at)?;
                at += bytes.len() as u64;
            }
            let_go(&file);
            Ok(PartId { content_id: size.to_string() })
        })
        .await
    }

    async fn complete_multipart(&self, key: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        let (staged, object, root) = (id.clone(), self.object(key), self.root.clone());
        let (part_bytes, sync) = (self.part_bytes, self.sync);
        let sizes: Vec<u64> = parts.iter().filter_map(|part| part.content_id.parse().ok()).collect();
        blocking(key, move || {
            let file = File::open(&staged)?;
            let all_but_last = sizes.split_last().map_or(&[][..], |(_, before)| before);
            let size: u64 = sizes.iter().sum();
            if all_but_last.iter().any(|size| *size != part_bytes) || file.metadata()?.len() != size {
                return Err(io::Error::other(format!("{staged} does not hold its {} parts end to end", sizes.len())));
            }
            if let Err(error) = file.sync_all() {
                let _ = fs::remove_file(&staged);
                return Err(unsynced(&staged, &error));
            }
            let_go(&file);
            fs::rename(&staged, &object)?;
            let mut folders = object.ancestors().skip(1).take_while(|folder| folder.starts_with(&root));
            if let Err(error) = folders.try_for_each(sync) {
                // No record names it yet. Where it cannot even be removed, its size must tell that it is not whole.
                let _ = fs::remove_file(&object).or_else(|_| File::create(&object).map(drop));
                return Err(unsynced(&object.display(), &error));
            }
            Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
        })
        .await
    }

    async fn abort_multipart(&self, key: &Path, id: &MultipartId) -> Result<()> {
        let staged = id.clone();
        blocking(key, move || fs::remove_file(staged)).await
    }
}

/// Multipart uploads over any store: parts are held, and put as one object at the end. For tests and simulated worlds.
#[derive(Debug)]
pub struct HeldParts {
    store: Arc<dyn ObjectStore>,
    held: Mutex<BTreeMap<MultipartId, BTreeMap<usize, PutPayload>>>,
}

impl HeldParts {
    /// Uploads into `store`.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, held: Mutex::default() }
    }

    fn with<T>(&self, key: &Path, id: &MultipartId, act: impl FnOnce(&mut BTreeMap<usize, PutPayload>) -> T) -> Result<T> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = || Error::NotFound { path: key.to_string(), source: format!("no upload {id}").into() };
        held.get_mut(id).map(act).ok_or_else(gone)
    }
}

#[async_trait]
impl MultipartStore for HeldParts {
    async fn create_multipart(&self, key: &Path) -> Result<MultipartId> {
        let id = format!("{key}#{}", STAGED.fetch_add(1, Ordering::Relaxed));
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), BTreeMap::new());
        Ok(id)
    }

    async fn put_part(&self, key: &Path, id: &MultipartId, number: usize, data: PutPayload) -> Result<PartId> {
        self.with(key, id, |parts| parts.insert(number, data))?;
        Ok(PartId { content_id: number.to_string() })
    }

    async fn complete_multipart(&self, key: &Path, id: &MultipartId, _parts: Vec<PartId>) -> Result<PutResult> {
        let whole = self.with(key, id, |parts| parts.values().flatten().cloned().collect::<PutPayload>())?;
        let result = self.store.put(key, whole).await?;
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        Ok(result)
    }

    async fn abort_multipart(&self, _key: &Path, id: &MultipartId) -> Result<()> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_object_whose_folder_could_not_be_synced_is_not_there() {
        let folder = tempfile::tempdir().expect("tempdir");
        let mut parts = FolderParts::new(folder.path().to_owned(), 4);
        parts.sync = |_| Err(io::Error::other("the disk is gone"));
        let key = Path::from("orders/hour=07/x.parquet");
        for works in [false, true] {
            let id = parts.create_multipart(&key).await.expect("begins");
            let part = parts.put_part(&key, &id, 0, "abc".into()).await.expect("stored");
            let completed = parts.complete_multipart(&key, &id, vec![part]).await;
            assert_eq!(parts.object(&key).exists(), works);
            match completed {
                Ok(_) => assert!(works),
                Err(error) => assert!(!works && matches!(error, Error::NotFound { .. }), "{error}"),
            }
            parts.sync = |_| Ok(());
        }
    }
}
