//! A folder of this machine.
//!
//! Promises: the folder is made; every file, and every folder on the way to it, is synced before it counts.
//! Never: more than one machine; creates are hard links, which network file systems treat in their own ways.

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use tapedeck_common::error::BoxError;
use tapedeck_common::{ErrorKind, limits};
use url::Url;

use super::{Store, StoreError, StoreKind, StoreOptions};
use crate::segment::parts::FolderParts;

pub(super) fn open(url: &Url, options: &StoreOptions) -> Result<Store, StoreError> {
    options.refuse_s3_settings("file")?;
    if options.endpoint.is_some() || options.ca_file.is_some() {
        return Err(options.invalid("endpoint and ca_file belong to a store behind a network, not to file://"));
    }
    let folder =
        url.to_file_path().map_err(|()| options.invalid("the folder must be absolute: file:///folder, with three slashes"))?;
    let failed = |what: &str, source: BoxError| StoreError {
        what: format!("archive {}: {what} {}", options.url, folder.display()),
        kind: ErrorKind::Invalid,
        source: Some(source),
    };
    std::fs::create_dir_all(&folder).map_err(|error| failed("cannot make the folder", error.into()))?;
    let store = LocalFileSystem::new_with_prefix(&folder)
        .map_err(|error| failed("cannot open the folder", error.into()))?
        .with_fsync(true);
    let store: Arc<dyn ObjectStore> = Arc::new(store);
    let parts = Arc::new(FolderParts::new(folder, limits::PART_BYTES));
    Ok(Store { patient: Arc::clone(&store), store, parts, kind: StoreKind::File, url: Arc::from(url.as_str()) })
}
