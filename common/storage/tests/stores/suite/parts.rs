//! Uploads in parts, as large segments use them.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{MultipartId, ObjectMeta, ObjectStoreExt, PutPayload, PutResult, Result};
use tapedeck_common::ErrorKind;
use tapedeck_common::limits::PART_BYTES;
use tapedeck_storage::segment::SegmentStore;
use tapedeck_storage::store::{Outcome, Store, StoreKind, classify, is_upload_lost};

use super::{folder, store_segment};
use crate::kit::{Given, segment};

fn part(given: &mut Given, bytes: usize) -> Bytes {
    let words: Vec<[u8; 8]> = (0..bytes.div_ceil(8)).map(|_| given.rng.u64(..).to_le_bytes()).collect();
    Bytes::from(words.concat()).slice(..bytes)
}

/// Nothing at the key, nothing in the listing.
async fn shows_nothing(store: &Store, key: &Path) {
    let error = store.patient.head(key).await.expect_err("no object yet");
    assert_eq!(classify(&error), Outcome::NotFound);
    let listed: Vec<ObjectMeta> = store.patient.list(key.parent().as_ref()).try_collect().await.expect("lists");
    assert!(listed.is_empty(), "{listed:?}");
}

pub(super) async fn parts_become_one_object_and_show_nothing_before(given: &mut Given) {
    let key = folder(given).join("parts.parquet");
    let bodies = [part(given, PART_BYTES), part(given, PART_BYTES), part(given, 100)];
    let (store, parts) = (given.store.clone(), &given.store.parts);
    let id = parts.create_multipart(&key).await.expect("begins");
    let mut stored = vec![None; bodies.len()];
    // Out of order, and one of them twice, as repeated requests come.
    for number in [2, 0, 1, 0] {
        let body = PutPayload::from_bytes(bodies[number].clone());
        stored[number] = Some(parts.put_part(&key, &id, number, body).await.expect("stores"));
    }
    shows_nothing(&store, &key).await;
    let stored = stored.into_iter().map(|part| part.expect("stored")).collect();
    parts.complete_multipart(&key, &id, stored).await.expect("completes");
    let whole = store.patient.get(&key).await.expect("it is there").bytes().await.expect("whole");
    assert!(whole == bodies.concat(), "{} bytes of {}", whole.len(), bodies.concat().len());
}

pub(super) async fn an_upload_that_was_given_up_leaves_nothing(given: &mut Given) {
    let key = folder(given).join("given-up.parquet");
    let body = PutPayload::from_bytes(part(given, PART_BYTES));
    let (store, parts) = (given.store.clone(), &given.store.parts);
    let id = parts.create_multipart(&key).await.expect("begins");
    let stored = parts.put_part(&key, &id, 0, body).await.expect("stores");
    parts.abort_multipart(&key, &id).await.expect("gives up");
    shows_nothing(&store, &key).await;
    // Azure cannot give up: parts that no object names go after a week.
    if store.kind != StoreKind::Azure {
        // A small one: some stores do not read a large part to its end before they refuse it, so that nobody hears them.
        let error = parts.put_part(&key, &id, 1, PutPayload::from_static(b"x")).await.expect_err("the upload is gone");
        assert!(is_upload_lost(&error), "{error}");
        // Not every store says why.
        parts.complete_multipart(&key, &id, vec![stored]).await.expect_err("the upload is gone");
        shows_nothing(&store, &key).await;
    }
}

/// A store whose uploads go away just before they are completed, as a rule of the bucket can do it.
struct Forgetful(Arc<dyn MultipartStore>);

#[async_trait::async_trait]
impl MultipartStore for Forgetful {
    async fn create_multipart(&self, key: &Path) -> Result<MultipartId> {
        self.0.create_multipart(key).await
    }

    async fn put_part(&self, key: &Path, id: &MultipartId, number: usize, data: PutPayload) -> Result<PartId> {
        self.0.put_part(key, id, number, data).await
    }

    async fn complete_multipart(&self, key: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        // The second time it is gone already.
        let _ = self.0.abort_multipart(key, id).await;
        self.0.complete_multipart(key, id, parts).await
    }

    async fn abort_multipart(&self, key: &Path, id: &MultipartId) -> Result<()> {
        self.0.abort_multipart(key, id).await
    }
}

/// Whatever words the store has for it: repeating the completion would never end.
pub(super) async fn an_upload_that_the_store_forgot_is_told(given: &mut Given) {
    if given.store.kind == StoreKind::Azure {
        return; // It forgets parts after a week only.
    }
    let table = given.name();
    let made = segment(given, 0, 0, 17, 1 << 20);
    let parts = Arc::new(Forgetful(Arc::clone(&given.store.parts)));
    let segments = SegmentStore::new(Arc::clone(&given.store.store), parts, Arc::clone(&given.clock));
    let error = store_segment(&segments, &table, &made, given.rng.fork()).await.expect_err("nothing can be completed");
    assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
    shows_nothing(&given.store, &tapedeck_storage::layout::table_object(&table, &made.by.path)).await;
}
