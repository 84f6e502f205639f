//! A bucket behind the S3 protocol, Amazon's or another's.
//!
//! Promises: credentials come from the environment (keys, a web identity's token file, a container's or a machine's own
//! service); bodies are signed where nobody has shown that the store checks them otherwise. Never: reads `~/.aws`.

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use url::Url;

use super::client::{client_options, handles};
use super::connector::Connector;
use super::options::{bucket_of, parse_endpoint, prefix_of};
use super::{Store, StoreError, StoreKind, StoreOptions};

pub(super) fn open(url: &Url, options: &StoreOptions) -> Result<Store, StoreError> {
    let bucket = bucket_of(url, options, "s3://bucket/prefix")?;
    let prefix = prefix_of(url, options)?;
    let from_env = AmazonS3Builder::from_env();
    let endpoint = options.endpoint.clone().or_else(|| {
        use AmazonS3ConfigKey::{Endpoint, S3Endpoint};
        from_env.get_config_value(&S3Endpoint).or_else(|| from_env.get_config_value(&Endpoint))
    });
    let endpoint = endpoint.as_deref().map(|text| parse_endpoint(text, options)).transpose()?;
    let builder = builder(from_env, bucket, endpoint.as_ref(), options)?;
    handles((StoreKind::S3, url.as_str()), prefix, options, |retry| builder.clone().with_retry(retry).build())
}

fn builder(
    from_env: AmazonS3Builder,
    bucket: &str,
    endpoint: Option<&Url>,
    options: &StoreOptions,
) -> Result<AmazonS3Builder, StoreError> {
    let plain_http = endpoint.is_some_and(|endpoint| endpoint.scheme() == "http");
    let path_style = options.path_style.unwrap_or(endpoint.is_some());
    let mut builder = from_env
        .with_bucket_name(bucket)
        .with_client_options(client_options(options, plain_http)?)
        .with_http_connector(Connector::default())
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_virtual_hosted_style_request(!path_style);
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    let Some(endpoint) = endpoint else {
        // Amazon checks CRC64NVME, so signing every byte would only cost; of other stores nobody has shown that they do.
        return Ok(builder.with_unsigned_payload(true).with_checksum_algorithm(Checksum::CRC64NVME));
    };
    // By this key, since it outranks whatever the environment says.
    let text = with_bucket(endpoint, bucket, path_style);
    Ok(builder.with_config(AmazonS3ConfigKey::S3Endpoint, text).with_unsigned_payload(false))
}

/// The library wants the bucket inside the endpoint when the host name carries it.
fn with_bucket(endpoint: &Url, bucket: &str, path_style: bool) -> String {
    let host = endpoint.host_str().unwrap_or_default();
    let host = if path_style { host.to_owned() } else { format!("{bucket}.{host}") };
    let port = endpoint.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{host}{port}", endpoint.scheme())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::open_store;

    #[test]
    fn a_bucket_opens_by_path_and_by_host_name() {
        for path_style in [None, Some(true), Some(false)] {
            let options = StoreOptions {
                endpoint: Some("http://127.0.0.1:9000".to_owned()),
                region: Some("us-east-1".to_owned()),
                path_style,
                ..StoreOptions::at("s3://bucket/a/b")
            };
            assert_eq!(open_store(&options).expect("opens").kind, StoreKind::S3);
        }
        let endpoint = Url::parse("http://h:9000").expect("url");
        assert_eq!(with_bucket(&endpoint, "b", true), "http://h:9000");
        assert_eq!(with_bucket(&endpoint, "b", false), "http://b.h:9000");
    }
}
