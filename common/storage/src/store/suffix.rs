//! Reads of an object's last bytes, for a store that knows ranges only from the front: Azure.
//!
//! Promises: what is read is the end of one version of the object, though two requests are made. Everything else passes as it is.
//! Never: two requests for any other read.

use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetRange, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};

/// A store whose missing reads of last bytes are made up for.
#[derive(Debug)]
pub(super) struct WithSuffix<C>(pub(super) C);

impl<C: fmt::Display> fmt::Display for WithSuffix<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<C: ObjectStore> ObjectStore for WithSuffix<C> {
    async fn put_opts(&self, key: &Path, body: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.0.put_opts(key, body, options).await
    }

    async fn put_multipart_opts(&self, key: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Path, mut options: GetOptions) -> Result<GetResult> {
        if let Some(GetRange::Suffix(length)) = options.range {
            let look = GetOptions { head: true, range: None, ..options.clone() };
            let object = self.0.get_opts(key, look).await?.meta;
            let from = object.size.saturating_sub(length);
            // No store has a range of nothing; all of an empty object is its end.
            options.range = (object.size > 0).then_some(GetRange::Bounded(from..object.size));
            options.if_match = options.if_match.or(object.e_tag);
        }
        self.0.get_opts(key, options).await
    }

    async fn get_ranges(&self, key: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.0.get_ranges(key, ranges).await
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.0.rename_opts(from, to, options).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<C: MultipartStore> MultipartStore for WithSuffix<C> {
    async fn create_multipart(&self, key: &Path) -> Result<MultipartId> {
        self.0.create_multipart(key).await
    }

    async fn create_multipart_opts(&self, key: &Path, options: PutMultipartOptions) -> Result<MultipartId> {
        self.0.create_multipart_opts(key, options).await
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

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use object_store::{Error, ObjectStoreExt};

    use super::*;

    #[tokio::test]
    async fn the_last_bytes_are_read_whatever_the_object_holds() {
        let store = WithSuffix(InMemory::new());
        let key = Path::from("k");
        for (body, length, end) in [("abcdef", 2, "ef"), ("abc", 9, "abc"), ("", 3, "")] {
            store.put(&key, body.into()).await.expect("stores");
            let options = GetOptions { range: Some(GetRange::Suffix(length)), ..GetOptions::default() };
            let read = store.get_opts(&key, options).await.expect("reads");
            assert_eq!(read.meta.size, body.len() as u64);
            assert_eq!(read.bytes().await.expect("reads"), end.as_bytes());
        }
        let options = GetOptions { range: Some(GetRange::Suffix(1)), ..GetOptions::default() };
        let missing = store.get_opts(&Path::from("none"), options).await;
        assert!(matches!(missing, Err(Error::NotFound { .. })));
    }
}
