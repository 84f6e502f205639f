//! The start-up probe against stores that keep the promises, and against each way of not keeping them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tapedeck_common::ErrorKind;
use tapedeck_sim::{Call, Fault, FaultyStore, ManualClock, When};
use tapedeck_storage::probe::{Probed, probe};
use tapedeck_storage::store::{Store, StoreError, StoreOptions, open_store};

/// How a store breaks its promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// It takes every create for a put.
    IgnoresCreate,
    /// It looks first and stores later, with a pause between.
    LooksThenStores,
    /// It lets one create win, and keeps the bytes of whoever came last.
    KeepsTheLast,
    /// It does not list what it has.
    ListsNothing,
    /// It does not find what it just stored.
    ForgetsForAMoment,
    /// It lets one change of an object through and puts off the others, for so long.
    AsksForPatience,
}

#[derive(Debug)]
struct Careless {
    below: InMemory,
    flaw: Flaw,
    asked: AtomicBool,
    changes: AtomicUsize,
}

impl Careless {
    fn with(flaw: Flaw) -> Self {
        Self { below: InMemory::new(), flaw, asked: AtomicBool::new(false), changes: AtomicUsize::new(0) }
    }
}

impl fmt::Display for Careless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a store that {:?}", self.flaw)
    }
}

#[async_trait]
impl ObjectStore for Careless {
    async fn put_opts(&self, key: &Path, body: PutPayload, options: PutOptions) -> Result<PutResult> {
        let anyway = PutOptions { mode: PutMode::Overwrite, ..options.clone() };
        match self.flaw {
            Flaw::IgnoresCreate => self.below.put_opts(key, body, anyway).await,
            Flaw::LooksThenStores => {
                if self.below.head(key).await.is_ok() {
                    return self.below.put_opts(key, body, options).await;
                }
                tokio::task::yield_now().await;
                self.below.put_opts(key, body, anyway).await
            }
            Flaw::KeepsTheLast => {
                let answer = self.below.put_opts(key, body.clone(), options).await;
                self.below.put_opts(key, body, anyway).await?;
                answer
            }
            Flaw::ListsNothing | Flaw::ForgetsForAMoment => self.below.put_opts(key, body, options).await,
            Flaw::AsksForPatience => {
                // The race, and two tries after it.
                let earlier = self.changes.fetch_add(1, Ordering::Relaxed);
                if (1..18).contains(&earlier) {
                    return Err(Error::Generic { store: "paced", source: "429 Too Many Requests: rateLimitExceeded".into() });
                }
                self.below.put_opts(key, body, options).await
            }
        }
    }

    async fn put_multipart_opts(&self, key: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.below.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
        if self.flaw == Flaw::ForgetsForAMoment && !self.asked.swap(true, Ordering::Relaxed) {
            return self.below.get(&Path::from("nothing/here")).await;
        }
        self.below.get_opts(key, options).await
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.below.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if self.flaw == Flaw::ListsNothing { futures::stream::empty().boxed() } else { self.below.list(prefix) }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.below.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.below.copy_opts(from, to, options).await
    }
}

async fn probed(store: &Store) -> std::result::Result<Probed, StoreError> {
    probe(store, &ManualClock::default(), &mut fastrand::Rng::with_seed(3)).await
}

#[tokio::test]
async fn stores_that_keep_the_promises_pass() {
    let dir = tempfile::tempdir().expect("tempdir");
    let folder = open_store(&StoreOptions::at(format!("file://{}/a", dir.path().display()))).expect("opens");
    for store in [Store::of(Arc::new(InMemory::new())), folder] {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..3 {
            let probed = probe(&store, &ManualClock::default(), &mut rng).await.expect("keeps the promises");
            assert_eq!(probed, Probed { creators: 16, refused: 15, throttled: 0 });
        }
    }
}

#[tokio::test]
async fn each_broken_promise_is_refused_by_name() {
    let cases = [
        (Flaw::IgnoresCreate, "16 of 16 writers"),
        (Flaw::LooksThenStores, "writers create the same object"),
        (Flaw::KeepsTheLast, "kept the bytes of another"),
        (Flaw::ListsNothing, "does not list"),
        (Flaw::ForgetsForAMoment, "does not find"),
    ];
    for (flaw, part) in cases {
        let error = probed(&Store::of(Arc::new(Careless::with(flaw)))).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{flaw:?}: {error}");
        assert!(error.to_string().contains(part), "{flaw:?}: {error}");
    }
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_not_called_broken() {
    let cases = [
        (When::at(Call::Put), Fault::FailBefore, ErrorKind::Unavailable, "create"),
        (When::at(Call::Put).times(5), Fault::FailAfter, ErrorKind::Unavailable, "create"),
        (When::at(Call::Put).times(16), Fault::Conflict, ErrorKind::Unavailable, "conflict"),
        (When::at(Call::Get), Fault::FailBefore, ErrorKind::Unavailable, "read"),
        (When::at(Call::List), Fault::FailBefore, ErrorKind::Unavailable, "list"),
        (When::at(Call::Put), Fault::Deny, ErrorKind::Invalid, "refuses to create"),
        (When::at(Call::Get), Fault::Deny, ErrorKind::Invalid, "refuses to read"),
        (When::at(Call::List), Fault::Deny, ErrorKind::Invalid, "refuses to list"),
    ];
    for (when, fault, kind, part) in cases {
        let faulty = FaultyStore::default();
        faulty.inject(when, fault);
        let error = probed(&Store::of(Arc::new(faulty))).await.expect_err("no answer");
        assert_eq!(error.kind(), kind, "{fault}: {error}");
        assert!(error.to_string().contains(part) && error.to_string().contains("_archive/probe/"), "{error}");
    }
}

/// S9: Google lets an object be changed about once a second, so most of the race is put off.
#[tokio::test(start_paused = true)]
async fn a_store_that_paces_its_clients_is_waited_for_and_passes() {
    let (store, clock) = (Store::of(Arc::new(Careless::with(Flaw::AsksForPatience))), ManualClock::default());
    let waits = clock.clone();
    let probing = tokio::spawn(async move { probe(&store, &waits, &mut fastrand::Rng::with_seed(3)).await });
    assert!(clock.advance_until(std::time::Duration::from_secs(60), || probing.is_finished()).await, "never settled");
    let probed = probing.await.expect("no panic").expect("it keeps the promises, slowly");
    assert_eq!(probed, Probed { creators: 16, refused: 0, throttled: 15 });
    assert!(probed.to_string().contains("1 won") && probed.to_string().contains("(15 were put off)"), "{probed}");
}
