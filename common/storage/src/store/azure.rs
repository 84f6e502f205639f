//! A container of Azure Blob Storage.
//!
//! Promises: credentials come from the environment (a key, a SAS token, a service principal, a workload identity's token file,
//! else the machine's managed identity), by the names of Azure's own tools. Creates carry `If-None-Match: *`.
//! Never: a connection string; it mixes an address with a secret.

use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use url::Url;

use super::client::{client_options, handles};
use super::connector::Connector;
use super::options::{bucket_of, endpoint_text, parse_endpoint, prefix_of};
use super::suffix::WithSuffix;
use super::{Store, StoreError, StoreKind, StoreOptions};

/// Names of the `az` tool that the store client does not know by itself.
const NAMES_OF_AZ: [(&str, AzureConfigKey); 2] =
    [("AZURE_STORAGE_ACCOUNT", AzureConfigKey::AccountName), ("AZURE_STORAGE_KEY", AzureConfigKey::AccessKey)];

pub(super) fn open(url: &Url, options: &StoreOptions) -> Result<Store, StoreError> {
    options.refuse_s3_settings(url.scheme())?;
    let place = Place::of(url, options)?;
    let prefix = prefix_of(url, options)?;
    let mut builder = from_environment();
    if let Some(account) = &place.account {
        builder = builder.with_account(account);
    }
    let is_emulator = builder.get_config_value(&AzureConfigKey::UseEmulator).is_some_and(|flag| flag == "true");
    if is_emulator && options.endpoint.is_some() {
        let what = "endpoint: with AZURE_STORAGE_USE_EMULATOR the address is that of AZURITE_BLOB_STORAGE_URL";
        return Err(options.invalid(what));
    }
    if !is_emulator && builder.get_config_value(&AzureConfigKey::AccountName).is_none() {
        return Err(options.invalid(
            "no storage account: set AZURE_STORAGE_ACCOUNT in the environment, or write \
             abfss://container@account.dfs.core.windows.net/prefix (a connection string is not read)",
        ));
    }
    let endpoint = options.endpoint.as_deref().map(|text| parse_endpoint(text, options)).transpose()?.or(place.endpoint);
    let plain_http = endpoint.as_ref().is_some_and(|endpoint| endpoint.scheme() == "http");
    if let Some(endpoint) = &endpoint {
        builder = builder.with_endpoint(endpoint_text(endpoint));
    }
    let builder = builder
        .with_container_name(place.container)
        .with_client_options(client_options(options, plain_http)?)
        .with_http_connector(Connector::default());
    let client = |retry| builder.clone().with_retry(retry).build().map(WithSuffix);
    handles((StoreKind::Azure, url.as_str()), prefix, options, client)
}

fn from_environment() -> MicrosoftAzureBuilder {
    NAMES_OF_AZ.into_iter().fold(MicrosoftAzureBuilder::from_env(), |builder, (name, key)| match std::env::var(name) {
        Ok(value) if builder.get_config_value(&key).is_none() => builder.with_config(key, value),
        _ => builder,
    })
}

/// What an address says.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    container: String,
    account: Option<String>,
    endpoint: Option<Url>,
}

impl Place {
    /// `az://container/...`, or `abfss://container@account.dfs.core.windows.net/...` with the suffix of any of Azure's clouds.
    fn of(url: &Url, options: &StoreOptions) -> Result<Self, StoreError> {
        if url.username().is_empty() {
            let container = bucket_of(url, options, "az://container/prefix")?.to_owned();
            if container.contains('.') {
                return Err(options.invalid(
                    "a container's name has no dots: az://container/prefix, or abfss://container@account.dfs.core.windows.net/prefix",
                ));
            }
            return Ok(Self { container, account: None, endpoint: None });
        }
        let host = url.host_str().unwrap_or_default();
        let parts = host.split_once('.').and_then(|(account, rest)| Some((account, rest.split_once('.')?)));
        let Some((account, ("dfs" | "blob", cloud))) = parts else {
            let what = format!("{host} is no storage account's address: account.dfs.core.windows.net");
            return Err(options.invalid(what));
        };
        // The log needs creates that fail where something lies; the blob service has them for every account.
        let endpoint = parse_endpoint(&format!("https://{account}.blob.{cloud}"), options)?;
        Ok(Self { container: url.username().to_owned(), account: Some(account.to_owned()), endpoint: Some(endpoint) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::options::parse_url;

    fn place(text: &str) -> Result<Place, StoreError> {
        Place::of(&parse_url(text).expect("a URL"), &StoreOptions::at(text))
    }

    #[test]
    fn an_address_names_the_container_and_maybe_the_account() {
        let only = Place { container: "events".to_owned(), account: None, endpoint: None };
        assert_eq!(place("az://events/prod").expect("good"), only);
        assert_eq!(place("abfss://events/prod").expect("good"), only);
        for (host, blobs) in [
            ("acc.dfs.core.windows.net", "https://acc.blob.core.windows.net/"),
            ("acc.blob.core.chinacloudapi.cn", "https://acc.blob.core.chinacloudapi.cn/"),
        ] {
            let found = place(&format!("abfss://events@{host}/prod")).expect("good");
            assert_eq!((found.container.as_str(), found.account.as_deref()), ("events", Some("acc")));
            assert_eq!(found.endpoint.expect("its own").as_str(), blobs);
        }
    }

    #[test]
    fn an_address_that_is_no_account_is_refused() {
        for (text, part) in [("abfss://events@acc/prod", "no storage account's"), ("az://acc.blob.core.windows.net/a", "no dots")]
        {
            let error = place(text).expect_err("refused").to_string();
            assert!(error.contains(part) && error.contains(text), "{error}");
        }
    }
}
