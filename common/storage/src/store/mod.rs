//! Opens the store behind an archive's address and sorts its answers.
//!
//! Promises: the address is checked in full before any request; the handle for records never repeats a request by itself,
//! since a repeated create reports its own success as "already exists"; every local file is synced.
//! Never: treats the failure of a create as proof that nothing was stored.

mod azure;
mod client;
mod connector;
mod file;
mod gcs;
mod options;
mod outcome;
mod s3;
mod suffix;

use std::fmt;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::multipart::MultipartStore;
use tapedeck_common::Clock;

use crate::segment::SegmentStore;
use crate::segment::parts::HeldParts;

pub use options::StoreOptions;
pub use outcome::{Outcome, StoreError, classify, is_throttled, is_upload_lost};

/// What kind of store an archive lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoreKind {
    /// A folder of this machine.
    File,
    /// A bucket with the S3 protocol.
    S3,
    /// A bucket of Google Cloud Storage.
    Gcs,
    /// A container of Azure Blob Storage.
    Azure,
    /// Nothing that outlives the process.
    Memory,
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "a folder",
            Self::S3 => "S3",
            Self::Gcs => "Google Cloud Storage",
            Self::Azure => "Azure Blob Storage",
            Self::Memory => "memory",
        })
    }
}

/// An open store, rooted at the archive. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    /// For records and everything else that is created once: one call is one request.
    pub store: Arc<dyn ObjectStore>,
    /// For reads, and for uploads under fresh names: repeats a request that fails, a few times. Never create through it.
    pub patient: Arc<dyn ObjectStore>,
    /// For segments too large for one request.
    pub parts: Arc<dyn MultipartStore>,
    /// What kind of store it is.
    pub kind: StoreKind,
    /// The archive's address, as people know it; holds no secret.
    pub url: Arc<str>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.url)
    }
}

impl Store {
    /// A store for tests and simulated worlds: `store` as it is, for everything.
    pub fn of(store: Arc<dyn ObjectStore>) -> Self {
        let parts = Arc::new(HeldParts::new(Arc::clone(&store)));
        Self { patient: Arc::clone(&store), store, parts, kind: StoreKind::Memory, url: Arc::from("memory:///") }
    }

    /// Where segments are put.
    pub fn segments(&self, clock: Arc<dyn Clock>) -> SegmentStore {
        SegmentStore::new(Arc::clone(&self.store), Arc::clone(&self.parts), clock)
    }
}

/// Opens the store at `options.url`, without a request to it: the start-up probe makes the first.
pub fn open_store(options: &StoreOptions) -> Result<Store, StoreError> {
    let url = options::parse_url(&options.url)?;
    match url.scheme() {
        "s3" => s3::open(&url, options),
        "gs" => gcs::open(&url, options),
        "az" | "abfss" => azure::open(&url, options),
        "file" => file::open(&url, options),
        "memory" => Ok(Store { url: Arc::from(url.as_str()), ..Store::of(Arc::new(InMemory::new())) }),
        other => Err(options::unknown_scheme(&options.url, other)),
    }
}

#[cfg(test)]
mod tests {
    use tapedeck_common::ErrorKind;
    use url::Url;

    use super::*;

    fn refusal(options: &StoreOptions) -> String {
        let error = open_store(options).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        error.to_string()
    }

    #[test]
    fn an_address_that_cannot_be_meant_is_refused_with_the_mend() {
        let cases = [
            ("events", "it is no URL"),
            ("s3:///prefix", "names no bucket"),
            ("s3://bucket/a?x=1", "nothing may follow"),
            ("ftp://host/a", "knows no ftp://"),
            ("gs:///prefix", "names no bucket"),
            ("az:///prefix", "names no bucket"),
            ("file://relative/a", "three slashes"),
        ];
        for (url, part) in cases {
            let text = refusal(&StoreOptions::at(url));
            assert!(text.contains(part) && text.contains(url), "{url}: {text}");
        }
    }

    #[test]
    fn a_secret_in_the_address_is_not_repeated() {
        let text = refusal(&StoreOptions::at("s3://key:hunter2@bucket/a"));
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn an_endpoint_is_a_host_and_nothing_else() {
        for endpoint in ["127.0.0.1:9000", "ftp://h", "http://h/bucket", "http://u@h"] {
            let options = StoreOptions { endpoint: Some(endpoint.to_owned()), ..StoreOptions::at("s3://b/p") };
            assert!(refusal(&options).contains("endpoint"), "{endpoint}");
        }
    }

    #[test]
    fn a_folder_is_made_and_takes_no_bucket_settings() {
        let dir = tempfile::tempdir().expect("tempdir");
        let url = Url::from_directory_path(dir.path().join("new/archive")).expect("url").to_string();
        open_store(&StoreOptions::at(&url)).expect("opens");
        assert!(dir.path().join("new/archive").is_dir());
        let options = StoreOptions { region: Some("x".to_owned()), ..StoreOptions::at(&url) };
        assert!(refusal(&options).contains("belong to s3://"));
    }

    #[test]
    fn settings_of_another_store_are_refused_by_name() {
        let options = |url: &str| StoreOptions { region: Some("x".to_owned()), ..StoreOptions::at(url) };
        for url in ["gs://bucket/a", "az://container/a"] {
            assert!(refusal(&options(url)).contains("region and path_style belong to s3://"), "{url}");
        }
        let folder = StoreOptions { endpoint: Some("http://h".to_owned()), ..StoreOptions::at("file:///tmp") };
        assert!(refusal(&folder).contains("endpoint and ca_file belong to a store behind a network"));
    }

    #[test]
    fn a_ca_file_that_cannot_serve_is_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("ca.pem");
        let options = StoreOptions { ca_file: Some(file.clone()), region: None, ..StoreOptions::at("s3://bucket/a") };
        assert!(refusal(&options).contains("ca.pem: it cannot be read"));
        std::fs::write(&file, "not a certificate").expect("writes");
        assert!(refusal(&options).contains("ca.pem: it holds no certificate"));
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nbm90IG9uZQ==\n-----END CERTIFICATE-----\n").expect("writes");
        assert!(refusal(&options).contains("look at ca_file"));
    }
}
