//! What the clients of all clouds have in common: time limits, certificates, repetition, and the three handles of a store.
//!
//! Promises: the handle for records, and the one for parts, send each request once; TLS is by ring; proxies are taken from the
//! environment (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`), by the HTTP library below. Never: accepts a certificate unchecked.

use std::sync::{Arc, Once};
use std::time::Duration;

use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{Certificate, ClientOptions, ObjectStore, RetryConfig};
use tapedeck_common::ErrorKind;

use super::connector::LONGEST;
use super::{Store, StoreError, StoreKind, StoreOptions};
use crate::segment::parts::PrefixedParts;

/// Reaching the endpoint.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Repeats inside one read, enough for a dropped connection; everything longer is the caller's patience.
const READ_RETRIES: usize = 3;

/// What every client is given. Plain HTTP only where the operator wrote it into the endpoint.
pub(super) fn client_options(options: &StoreOptions, plain_http: bool) -> Result<ClientOptions, StoreError> {
    install_tls();
    let client = ClientOptions::new().with_allow_http(plain_http).with_timeout(LONGEST).with_connect_timeout(CONNECT_TIMEOUT);
    Ok(certificates(options)?.into_iter().fold(client, ClientOptions::with_root_certificate))
}

/// The certificates of `ca_file`.
fn certificates(options: &StoreOptions) -> Result<Vec<Certificate>, StoreError> {
    let Some(file) = &options.ca_file else { return Ok(Vec::new()) };
    let wrong = |what: String| options.invalid(format!("ca_file {}: {what}", file.display()));
    let pem = std::fs::read(file).map_err(|error| wrong(format!("it cannot be read: {error}")))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|error| wrong(format!("it is no PEM: {error}")))?;
    if found.is_empty() {
        return Err(wrong("it holds no certificate; it must be PEM, with -----BEGIN CERTIFICATE-----".to_owned()));
    }
    Ok(found)
}

/// The three handles of a store: `client` makes one for so many repeats of a request.
pub(super) fn handles<C: ObjectStore + MultipartStore>(
    (kind, url): (StoreKind, &str),
    prefix: Path,
    options: &StoreOptions,
    client: impl Fn(RetryConfig) -> Result<C, object_store::Error>,
) -> Result<Store, StoreError> {
    let client = |max_retries| {
        let retry = RetryConfig { max_retries, ..RetryConfig::default() };
        client(retry).map_err(|error| StoreError {
            what: format!("archive {}: the client of {kind} refuses its settings{}", options.url, hint(&error)),
            kind: ErrorKind::Invalid,
            source: Some(Box::new(error)),
        })
    };
    Ok(Store {
        store: below(client(0)?, &prefix),
        patient: below(client(READ_RETRIES)?, &prefix),
        parts: Arc::new(PrefixedParts::new(client(0)?, prefix)),
        kind,
        url: Arc::from(url),
    })
}

fn below(client: impl ObjectStore, prefix: &Path) -> Arc<dyn ObjectStore> {
    if prefix.is_root() { Arc::new(client) } else { Arc::new(PrefixStore::new(client, prefix.clone())) }
}

/// What the client's own words leave out.
fn hint(error: &object_store::Error) -> &'static str {
    let text = error.to_string();
    if text.contains("external_account") || text.contains("impersonated_service_account") {
        return "; of Google's credential files it reads those of service accounts and of users, not those of workload \
                identity federation (inside GKE none is needed: the metadata server is asked)";
    }
    if text.contains("builder error") {
        return "; look at ca_file, and at the system's certificates";
    }
    ""
}

/// TLS by ring, once for the process, before any client is built. Whoever was first wins; both are the same.
fn install_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}
