//! An upload in parts, with faults on its parts and on its end.

use std::sync::Arc;

use async_trait::async_trait;
use object_store::{MultipartUpload, PutPayload, PutResult, Result, UploadPart};

use super::Control;
use super::fault::Call;

#[derive(Debug)]
pub(super) struct FaultyUpload {
    below: Box<dyn MultipartUpload>,
    control: Arc<Control>,
    key: String,
}

impl FaultyUpload {
    pub(super) fn new(below: Box<dyn MultipartUpload>, control: Arc<Control>, key: String) -> Self {
        Self { below, control, key }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (part, control, key) = (self.below.put_part(data), Arc::clone(&self.control), self.key.clone());
        Box::pin(async move { control.run(Call::Part, &key, part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.control.run(Call::Complete, &self.key, self.below.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.control.run(Call::Abort, &self.key, self.below.abort()).await
    }
}
