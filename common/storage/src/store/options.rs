//! Where an archive lies, word for word and checked.
//!
//! Promises: an address that cannot be meant is refused with the mend, before any request; a secret in it is not repeated.
//! Never: reads the environment.

use std::fmt;
use std::path::PathBuf;

use object_store::path::Path;
use tapedeck_common::ErrorKind;
use url::Url;

use super::StoreError;

/// The forms of an address, for refusals.
const FORMS: &str = "s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///folder";

/// Where an archive lies and how to reach it. Credentials come from the environment, as the cloud's own tools take them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreOptions {
    /// `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`,
    /// `abfss://container@account.dfs.core.windows.net/prefix`, `file:///folder`, or `memory:///` in tests.
    pub url: String,
    /// The store's address, where it is not the cloud's own. Plain `http://` is allowed only here.
    pub endpoint: Option<String>,
    /// The region of an S3 bucket.
    pub region: Option<String>,
    /// Whether an S3 bucket stands in the path instead of the host name. Default: true with an endpoint of one's own.
    pub path_style: Option<bool>,
    /// A file of certificates (PEM) that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
}

impl StoreOptions {
    /// Only an address; everything else by default or from the environment.
    pub fn at(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    /// A refusal of these options that names the archive.
    pub(super) fn invalid(&self, what: impl fmt::Display) -> StoreError {
        invalid(&self.url, what)
    }

    /// Refuses what only an S3 bucket has.
    pub(super) fn refuse_s3_settings(&self, scheme: &str) -> Result<(), StoreError> {
        match (&self.region, self.path_style) {
            (None, None) => Ok(()),
            _ => Err(self.invalid(format!("region and path_style belong to s3://, not to {scheme}://"))),
        }
    }
}

/// The address as a URL, whose scheme is not looked at yet.
pub(super) fn parse_url(text: &str) -> Result<Url, StoreError> {
    let url = Url::parse(text).map_err(|error| invalid(text, format!("it is no URL ({error}); write {FORMS}")))?;
    // Azure's own tools write the container before the account; in every other place a name there is a key.
    let may_name_container = url.scheme() == "abfss";
    if url.password().is_some() || !(url.username().is_empty() || may_name_container) {
        // The text holds a secret, so it is not repeated.
        return Err(invalid("<hidden>", "credentials do not belong into the URL; set them in the environment"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(invalid(text, "nothing may follow the path: no ? and no #"));
    }
    Ok(url)
}

/// The refusal of a scheme.
pub(super) fn unknown_scheme(text: &str, scheme: &str) -> StoreError {
    invalid(text, format!("it knows no {scheme}://; use {FORMS}"))
}

fn invalid(url: &str, what: impl fmt::Display) -> StoreError {
    StoreError::new(ErrorKind::Invalid, format!("archive {url}: {what}"))
}

/// The bucket or container of `url`, which is its host.
pub(super) fn bucket_of<'a>(url: &'a Url, options: &StoreOptions, form: &str) -> Result<&'a str, StoreError> {
    let bucket = url.host_str().filter(|host| !host.is_empty());
    bucket.ok_or_else(|| options.invalid(format!("it names no bucket: {form}")))
}

/// What all keys begin with.
pub(super) fn prefix_of(url: &Url, options: &StoreOptions) -> Result<Path, StoreError> {
    Path::parse(url.path().trim_matches('/')).map_err(|error| options.invalid(format!("the prefix cannot be a key: {error}")))
}

/// Scheme, host and port of a store, and nothing else.
pub(super) fn parse_endpoint(text: &str, options: &StoreOptions) -> Result<Url, StoreError> {
    let wrong = |what: String| options.invalid(format!("endpoint {text}: {what}"));
    let endpoint = Url::parse(text).map_err(|error| wrong(format!("it is no URL ({error})")))?;
    if !matches!(endpoint.scheme(), "http" | "https") || endpoint.host_str().is_none() {
        return Err(wrong("it must begin with http:// or https:// and name a host".to_owned()));
    }
    if endpoint.query().is_some() || !endpoint.username().is_empty() || endpoint.path() != "/" {
        return Err(wrong("nothing may follow the host and port; the bucket belongs into the archive's URL".to_owned()));
    }
    Ok(endpoint)
}

/// An endpoint as the store clients take it: without a slash at its end.
pub(super) fn endpoint_text(endpoint: &Url) -> String {
    endpoint.as_str().trim_end_matches('/').to_owned()
}
