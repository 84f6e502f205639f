//! Opens the store behind an archive's address and sorts its answers.
//!
//! Promises: the address is checked in full before any request; the handle for records never repeats a request by itself,
//! since a repeated create reports its own success as "already exists"; every local file is synced.
//! Never: treats the failure of a create as proof that nothing was stored.

use std::fmt;
use std::sync::{Arc, Once};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use tapedeck_common::error::BoxError;
use tapedeck_common::{Clock, ErrorKind, limits};
use url::Url;

use crate::segment::SegmentStore;
use crate::segment::parts::{FolderParts, HeldParts, PrefixedParts};

/// A whole request, body included: 8 MiB parts pass at 140 KB/s, and a hung connection is noticed within a minute.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Reaching the endpoint.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Repeats inside one read or upload, enough for a dropped connection; everything longer is the caller's patience.
const READ_RETRIES: usize = 3;

/// A failure in the archive's store, or in what lies there.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct StoreError {
    /// What failed, with the names of store, object and operation.
    pub what: String,
    /// What to do about it.
    pub kind: ErrorKind,
    /// The cause below, if there is one.
    #[source]
    pub source: Option<BoxError>,
}

impl StoreError {
    /// An error without a cause below it.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { what: what.into(), kind, source: None }
    }

    /// A failed request: what to do follows from the store's answer.
    pub fn request(what: impl Into<String>, source: object_store::Error) -> Self {
        let kind = match classify(&source) {
            Outcome::Denied => ErrorKind::Invalid,
            Outcome::Exists | Outcome::NotFound | Outcome::Unknown => ErrorKind::Unavailable,
        };
        Self { what: what.into(), kind, source: Some(Box::new(source)) }
    }

    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// What a store's error says about the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Something lies at the key. After a create it may be ours: only reading it back tells.
    Exists,
    /// Nothing lies at the key at this moment. After a lost create it may still appear.
    NotFound,
    /// Anything may have happened.
    Unknown,
    /// The store refuses for good: rights, or an operation that it does not know.
    Denied,
}

/// Refusals that mend themselves: clocks are set, tokens are renewed.
const PASSING_REFUSALS: [&str; 5] =
    ["RequestTimeTooSkewed", "ExpiredToken", "RequestExpired", "TokenRefreshRequired", "SlowDown"];

/// Sorts an answer that was no success.
pub fn classify(error: &object_store::Error) -> Outcome {
    use object_store::Error as E;
    match error {
        E::AlreadyExists { .. } | E::Precondition { .. } | E::NotModified { .. } => Outcome::Exists,
        E::NotFound { .. } => Outcome::NotFound,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
            let text = error.to_string();
            let passing = PASSING_REFUSALS.iter().any(|code| text.contains(code));
            if passing { Outcome::Unknown } else { Outcome::Denied }
        }
        E::NotImplemented { .. } | E::NotSupported { .. } | E::InvalidPath { .. } => Outcome::Denied,
        _ => Outcome::Unknown,
    }
}

/// Where an archive lies and how to reach it. Credentials come from the environment, as the cloud's own tools take them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreOptions {
    /// `s3://bucket/prefix`, `file:///folder`, or `memory:///` in tests.
    pub url: String,
    /// The S3 endpoint, where it is not Amazon's. Plain `http://` is allowed only here.
    pub endpoint: Option<String>,
    /// The S3 region.
    pub region: Option<String>,
    /// Whether the bucket stands in the path instead of the host name. Default: true with an endpoint of one's own.
    pub path_style: Option<bool>,
}

impl StoreOptions {
    /// Only an address; everything else by default or from the environment.
    pub fn at(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }
}

/// What kind of store an archive lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoreKind {
    /// A folder of this machine.
    File,
    /// A bucket with the S3 protocol.
    S3,
    /// Nothing that outlives the process.
    Memory,
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
    let url = parse_url(&options.url)?;
    match url.scheme() {
        "s3" => open_s3(&url, options),
        "file" => open_file(&url, options),
        "memory" => Ok(Store { url: Arc::from(url.as_str()), ..Store::of(Arc::new(InMemory::new())) }),
        "gs" | "az" | "abfss" => {
            Err(invalid(&options.url, format!("this version does not know {}:// yet; use s3:// or file://", url.scheme())))
        }
        other => Err(invalid(&options.url, format!("it knows no {other}://; use s3://bucket/prefix or file:///folder"))),
    }
}

fn parse_url(text: &str) -> Result<Url, StoreError> {
    let url = Url::parse(text)
        .map_err(|error| invalid(text, format!("it is no URL ({error}); write s3://bucket/prefix or file:///folder")))?;
    if !url.username().is_empty() || url.password().is_some() {
        // The text holds a secret, so it is not repeated.
        return Err(invalid("<hidden>", "credentials do not belong into the URL; set them in the environment"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(invalid(text, "nothing may follow the path: no ? and no #"));
    }
    Ok(url)
}

fn invalid(url: &str, what: impl fmt::Display) -> StoreError {
    StoreError::new(ErrorKind::Invalid, format!("archive {url}: {what}"))
}

fn open_file(url: &Url, options: &StoreOptions) -> Result<Store, StoreError> {
    if options.endpoint.is_some() || options.region.is_some() || options.path_style.is_some() {
        return Err(invalid(&options.url, "endpoint, region and path_style belong to s3://"));
    }
    let folder = url
        .to_file_path()
        .map_err(|()| invalid(&options.url, "the folder must be absolute: file:///folder, with three slashes"))?;
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

fn open_s3(url: &Url, options: &StoreOptions) -> Result<Store, StoreError> {
    let bucket = url.host_str().filter(|host| !host.is_empty());
    let bucket = bucket.ok_or_else(|| invalid(&options.url, "it names no bucket: s3://bucket/prefix"))?;
    let prefix = Path::parse(url.path().trim_matches('/'))
        .map_err(|error| invalid(&options.url, format!("the prefix cannot be a key: {error}")))?;
    let from_env = AmazonS3Builder::from_env();
    let endpoint = options.endpoint.clone().or_else(|| {
        use AmazonS3ConfigKey::{Endpoint, S3Endpoint};
        from_env.get_config_value(&S3Endpoint).or_else(|| from_env.get_config_value(&Endpoint))
    });
    let endpoint = endpoint.as_deref().map(|text| parse_endpoint(text, options)).transpose()?;
    install_tls();
    let builder = s3_builder(from_env, bucket, endpoint.as_ref(), options);
    let client = |max_retries| s3_client(builder.clone(), max_retries, options);
    Ok(Store {
        store: below(client(0)?, &prefix),
        patient: below(client(READ_RETRIES)?, &prefix),
        parts: Arc::new(PrefixedParts::new(client(0)?, prefix)),
        kind: StoreKind::S3,
        url: Arc::from(url.as_str()),
    })
}

fn parse_endpoint(text: &str, options: &StoreOptions) -> Result<Url, StoreError> {
    let wrong = |what: String| invalid(&options.url, format!("endpoint {text}: {what}"));
    let endpoint = Url::parse(text).map_err(|error| wrong(format!("it is no URL ({error})")))?;
    if !matches!(endpoint.scheme(), "http" | "https") || endpoint.host_str().is_none() {
        return Err(wrong("it must begin with http:// or https:// and name a host".to_owned()));
    }
    if endpoint.query().is_some() || !endpoint.username().is_empty() || endpoint.path() != "/" {
        return Err(wrong("nothing may follow the host and port; the bucket belongs into the archive's URL".to_owned()));
    }
    Ok(endpoint)
}

fn below(client: impl ObjectStore, prefix: &Path) -> Arc<dyn ObjectStore> {
    if prefix.is_root() { Arc::new(client) } else { Arc::new(PrefixStore::new(client, prefix.clone())) }
}

fn s3_builder(from_env: AmazonS3Builder, bucket: &str, endpoint: Option<&Url>, options: &StoreOptions) -> AmazonS3Builder {
    let plain_http = endpoint.is_some_and(|endpoint| endpoint.scheme() == "http");
    let path_style = options.path_style.unwrap_or(endpoint.is_some());
    let client =
        ClientOptions::new().with_allow_http(plain_http).with_timeout(REQUEST_TIMEOUT).with_connect_timeout(CONNECT_TIMEOUT);
    let mut builder = from_env
        .with_bucket_name(bucket)
        .with_client_options(client)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_virtual_hosted_style_request(!path_style);
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    let Some(endpoint) = endpoint else {
        // Amazon checks CRC64NVME, so signing every byte would only cost; of other stores nobody has shown that they do.
        return builder.with_unsigned_payload(true).with_checksum_algorithm(Checksum::CRC64NVME);
    };
    // By this key, since it outranks whatever the environment says.
    let text = endpoint_text(endpoint, bucket, path_style);
    builder.with_config(AmazonS3ConfigKey::S3Endpoint, text).with_unsigned_payload(false)
}

fn s3_client(
    builder: AmazonS3Builder,
    max_retries: usize,
    options: &StoreOptions,
) -> Result<impl ObjectStore + MultipartStore + use<>, StoreError> {
    let retry = RetryConfig { max_retries, ..RetryConfig::default() };
    builder.with_retry(retry).build().map_err(|error| StoreError {
        what: format!("archive {}: the S3 client refuses these settings", options.url),
        kind: ErrorKind::Invalid,
        source: Some(Box::new(error)),
    })
}

/// The library wants the bucket inside the endpoint when the host name carries it.
fn endpoint_text(endpoint: &Url, bucket: &str, path_style: bool) -> String {
    let host = endpoint.host_str().unwrap_or_default();
    let host = if path_style { host.to_owned() } else { format!("{bucket}.{host}") };
    let port = endpoint.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{host}{port}", endpoint.scheme())
}

/// TLS by ring, once for the process, before any client is built. Whoever was first wins; both are the same.
fn install_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

#[cfg(test)]
mod tests {
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
            ("gs://bucket/a", "does not know gs:// yet"),
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
    fn a_bucket_opens_by_path_and_by_host_name() {
        for path_style in [None, Some(true), Some(false)] {
            let options = StoreOptions {
                url: "s3://bucket/a/b".to_owned(),
                endpoint: Some("http://127.0.0.1:9000".to_owned()),
                region: Some("us-east-1".to_owned()),
                path_style,
            };
            assert_eq!(open_store(&options).expect("opens").kind, StoreKind::S3);
        }
        let endpoint = Url::parse("http://h:9000").expect("url");
        assert_eq!(endpoint_text(&endpoint, "b", true), "http://h:9000");
        assert_eq!(endpoint_text(&endpoint, "b", false), "http://b.h:9000");
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
    fn refusals_that_pass_are_not_final() {
        let denied = |text: &str| object_store::Error::PermissionDenied { path: "k".to_owned(), source: text.into() };
        assert_eq!(classify(&denied("AccessDenied")), Outcome::Denied);
        assert_eq!(classify(&denied("<Code>RequestTimeTooSkewed</Code>")), Outcome::Unknown);
    }
}
