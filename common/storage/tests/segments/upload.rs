//! Uploads end with the whole object at its key, whatever the store does on the way.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tapedeck_common::{ByteBudget, Clock, ErrorKind, Timestamp};
use tapedeck_storage::segment::SegmentStore;
use tapedeck_storage::segment::parts::{FolderParts, HeldParts, PrefixedParts};

const PART: usize = 64 * 1024;

/// Time that passes only when somebody waits.
#[derive(Debug, Default)]
struct WaitingClock(AtomicU64);

#[async_trait]
impl Clock for WaitingClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(0)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }

    async fn sleep_until(&self, deadline: Duration) {
        self.0.fetch_max(deadline.as_millis() as u64, Ordering::Relaxed);
        tokio::task::yield_now().await;
    }
}

/// A store that fails by plan: of every two calls one fails, before or after it was carried out.
#[derive(Debug)]
struct Flaky {
    store: Arc<InMemory>,
    parts: HeldParts,
    chance: std::sync::Mutex<fastrand::Rng>,
    forget_uploads: bool,
}

enum Fate {
    Works,
    FailsBefore,
    FailsAfter,
}

impl Flaky {
    fn new(seed: u64, forget_uploads: bool) -> Self {
        let chance = std::sync::Mutex::new(fastrand::Rng::with_seed(seed));
        let store = Arc::new(InMemory::new());
        Self { parts: HeldParts::new(store.clone()), store, chance, forget_uploads }
    }

    fn fate(&self) -> Fate {
        match self.chance.lock().expect("not poisoned").u8(..4) {
            0 => Fate::FailsBefore,
            1 => Fate::FailsAfter,
            _ => Fate::Works,
        }
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        let away = || Error::Generic { store: "flaky", source: "away".into() };
        match self.fate() {
            Fate::Works => call.await,
            Fate::FailsBefore => Err(away()),
            Fate::FailsAfter => call.await.and(Err(away())),
        }
    }
}

impl fmt::Display for Flaky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flaky")
    }
}

#[async_trait]
impl ObjectStore for Flaky {
    async fn put_opts(&self, key: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.call(self.store.put_opts(key, payload, options)).await
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        unreachable!("uploads go by part numbers")
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
        self.call(self.store.get_opts(key, options)).await
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}

#[async_trait]
impl MultipartStore for Flaky {
    async fn create_multipart(&self, key: &Path) -> Result<MultipartId> {
        self.call(self.parts.create_multipart(key)).await
    }

    async fn put_part(&self, key: &Path, id: &MultipartId, number: usize, data: PutPayload) -> Result<PartId> {
        self.call(self.parts.put_part(key, id, number, data)).await
    }

    async fn complete_multipart(&self, key: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        if self.forget_uploads {
            return Err(Error::NotFound { path: key.to_string(), source: "NoSuchUpload".into() });
        }
        self.call(self.parts.complete_multipart(key, id, parts)).await
    }

    async fn abort_multipart(&self, key: &Path, id: &MultipartId) -> Result<()> {
        self.parts.abort_multipart(key, id).await
    }
}

fn object(size: usize) -> Vec<Bytes> {
    let bytes: Vec<u8> = (0..size).map(|at| ((at * 31) >> 3) as u8).collect();
    bytes.chunks(PART).map(Bytes::copy_from_slice).collect()
}

fn stores(objects: Arc<dyn ObjectStore>, parts: Arc<dyn MultipartStore>) -> SegmentStore {
    SegmentStore::new(objects, parts, Arc::new(WaitingClock::default())).with_part_bytes(PART)
}

/// Pushes whole parts on the way and the rest at the end, as a writer does.
async fn store_segment(store: &SegmentStore, key: &Path, parts: &[Bytes], seed: u64) -> Result<(), ErrorKind> {
    let mut upload = store.upload(key.clone(), fastrand::Rng::with_seed(seed));
    let (last, before) = parts.split_last().expect("not empty");
    for part in before {
        upload.push(part.clone(), None).await.map_err(|error| error.kind())?;
    }
    let size = parts.iter().map(|part| part.len() as u64).sum();
    upload.finish(vec![last.clone()], size).await.map_err(|error| error.kind())
}

async fn stored(store: &dyn ObjectStore, key: &Path) -> Bytes {
    store.get(key).await.expect("there").bytes().await.expect("readable")
}

const SIZES: [usize; 5] = [1, PART - 1, PART, PART + 1, PART * 9 + 17];

#[tokio::test]
async fn segments_of_every_size_arrive_whole() {
    let folder = tempfile::tempdir().expect("tempdir");
    let local = LocalFileSystem::new_with_prefix(folder.path()).expect("opens").with_fsync(true);
    let local: Arc<dyn ObjectStore> = Arc::new(local);
    let memory = Arc::new(InMemory::new());
    let held: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    type Case = (&'static str, Arc<dyn ObjectStore>, Arc<dyn MultipartStore>);
    let cases: [Case; 3] = [
        ("memory", memory.clone(), memory),
        ("folder", local, Arc::new(FolderParts::new(folder.path().to_owned(), PART))),
        ("held", held.clone(), Arc::new(HeldParts::new(held))),
    ];
    for (name, objects, parts) in cases {
        let store = stores(objects.clone(), parts);
        for size in SIZES {
            let key = Path::from(format!("orders/topic=a/date=2026-01-01/hour=07/{size}.parquet"));
            let expected = object(size);
            store_segment(&store, &key, &expected, 1).await.expect("stored");
            assert!(stored(&*objects, &key).await == expected.concat(), "{name}, {size}");
        }
        let found: Vec<_> = objects.list(None).try_collect().await.expect("listed");
        assert_eq!(found.len(), SIZES.len(), "{name}: nothing else is left");
    }
    let staged = walk(folder.path()).into_iter().filter(|name| name.contains('#')).count();
    assert_eq!(staged, 0, "no staged file is left");
}

fn walk(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path.display().to_string()] }).collect()
}

#[tokio::test]
async fn a_store_that_fails_half_of_its_calls_still_gets_everything() {
    for seed in 0..60 {
        let flaky = Arc::new(Flaky::new(seed, false));
        let store = stores(flaky.clone(), flaky.clone());
        for size in SIZES {
            let key = Path::from(format!("{size}"));
            let expected = object(size);
            match store_segment(&store, &key, &expected, seed).await {
                Ok(()) => assert!(stored(&*flaky.store, &key).await == expected.concat(), "seed {seed}, {size}"),
                // A completion that was carried out and answered with a failure forgets the upload; the object is then found.
                Err(kind) => panic!("seed {seed}, {size}: {kind:?}"),
            }
        }
    }
}

#[tokio::test]
async fn an_upload_that_the_store_forgot_is_stale() {
    let flaky = Arc::new(Flaky::new(3, true));
    let store = stores(flaky.clone(), flaky.clone());
    let key = Path::from("x");
    assert_eq!(store_segment(&store, &key, &object(PART * 3), 1).await, Err(ErrorKind::Stale));
    assert!(flaky.store.head(&key).await.is_err(), "nothing lies there");
}

#[tokio::test]
async fn room_comes_back_as_parts_arrive() {
    let memory = Arc::new(InMemory::new());
    let store = stores(memory.clone(), memory);
    let budget = ByteBudget::new(PART * 3);
    let parts = object(PART * 20);
    let mut upload = store.upload(Path::from("x"), fastrand::Rng::with_seed(1));
    for part in &parts {
        let room = budget.reserve(part.len()).await;
        upload.push(part.clone(), Some(room)).await.expect("sent");
    }
    upload.finish(Vec::new(), (PART * 20) as u64).await.expect("stored");
    assert_eq!(budget.used(), 0);
}

#[tokio::test]
async fn a_dropped_upload_leaves_no_object_and_no_staged_file() {
    let folder = tempfile::tempdir().expect("tempdir");
    let objects = Arc::new(LocalFileSystem::new_with_prefix(folder.path()).expect("opens"));
    let store = stores(objects, Arc::new(FolderParts::new(folder.path().to_owned(), PART)));
    let mut upload = store.upload(Path::from("a/b"), fastrand::Rng::with_seed(1));
    for part in object(PART * 2) {
        upload.push(part, None).await.expect("sent");
    }
    drop(upload);
    // The clean-up runs on the same thread's queue of blocking work.
    while walk(folder.path()).iter().any(|name| name.contains('#')) {
        tokio::task::yield_now().await;
    }
    assert!(walk(folder.path()).is_empty());
}

#[tokio::test]
async fn a_prefix_stands_before_every_key() {
    let memory = Arc::new(InMemory::new());
    let below = PrefixedParts::new(InMemoryParts(memory.clone()), Path::from("team/archive"));
    let objects = Arc::new(object_store::prefix::PrefixStore::new(memory.clone(), "team/archive"));
    let store = stores(objects, Arc::new(below));
    store_segment(&store, &Path::from("a/b"), &object(PART * 3), 1).await.expect("stored");
    assert_eq!(stored(&*memory, &Path::from("team/archive/a/b")).await.len(), PART * 3);
}

#[derive(Debug)]
struct InMemoryParts(Arc<InMemory>);

#[async_trait]
impl MultipartStore for InMemoryParts {
    async fn create_multipart(&self, key: &Path) -> Result<MultipartId> {
        self.0.create_multipart(key).await
    }

    async fn put_part(&self, key: &Path, id: &MultipartId, number: usize, data: PutPayload) -> Result<PartId> {
        self.0.put_part(key, id, number, data).await
    }

    async fn complete_multipart(&self, key: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        self.0.complete_multipart(key, id, parts).await
    }

    async fn abort_multipart(&self, key: &Path, id: &MultipartId) -> Result<()> {
        self.0.abort_multipart(key, id).await
    }
}
