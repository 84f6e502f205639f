//! A bucket of Google Cloud Storage.
//!
//! Promises: credentials come from the environment (`GOOGLE_APPLICATION_CREDENTIALS`, the file that `gcloud` leaves, else the
//! metadata server, which is also how workload identity reaches a pod of GKE). Creates carry `x-goog-if-generation-match: 0`.
//! Never: needs a region; a bucket's name says where it lies.

use object_store::gcp::GoogleCloudStorageBuilder;
use url::Url;

use super::client::{client_options, handles};
use super::connector::Connector;
use super::options::{bucket_of, endpoint_text, parse_endpoint, prefix_of};
use super::{Store, StoreError, StoreKind, StoreOptions};

pub(super) fn open(url: &Url, options: &StoreOptions) -> Result<Store, StoreError> {
    options.refuse_s3_settings("gs")?;
    let bucket = bucket_of(url, options, "gs://bucket/prefix")?;
    let prefix = prefix_of(url, options)?;
    let endpoint = options.endpoint.as_deref().map(|text| parse_endpoint(text, options)).transpose()?;
    let plain_http = endpoint.as_ref().is_some_and(|endpoint| endpoint.scheme() == "http");
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(client_options(options, plain_http)?)
        .with_http_connector(Connector::default());
    if let Some(endpoint) = &endpoint {
        builder = builder.with_base_url(&endpoint_text(endpoint));
    }
    handles((StoreKind::Gcs, url.as_str()), prefix, options, |retry| builder.clone().with_retry(retry).build())
}
