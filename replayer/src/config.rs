//! The configuration: a file, under the environment, under flags; checked once.
//!
//! Promises: every refusal names where the value was written. Never: connect, or print a secret.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tapedeck_daemon::Failure;
use tapedeck_daemon::config::{ENVIRONMENT_PREFIX, Layers, Loaded, process_environment};
use tapedeck_daemon::units::ByteSize;
use tapedeck_kafka::config::ClusterSettings;
use tapedeck_storage::store::StoreOptions;

use crate::cli::Place;
use crate::target::{KafkaTarget, Target, TargetBus};

/// Memory for objects and events on their way, unless configured.
const MEMORY_DEFAULT: u64 = 256 << 20;

/// Below this one row group and its events do not fit.
const MEMORY_MIN: u64 = 32 << 20;

/// The configuration of `replayer`.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// Where the archive lies.
    #[serde(default)]
    pub archive: RawArchive,
    /// Where replays go.
    #[serde(default)]
    pub target: RawTarget,
    /// Memory.
    #[serde(default)]
    pub memory: RawMemory,
    /// The admin listener; none without an address.
    #[serde(default)]
    pub admin: RawAdmin,
}

/// Where the archive lies.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawArchive {
    /// `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix` (or
    /// `abfss://container@account.dfs.core.windows.net/prefix`) or `file:///path`. Credentials come from the environment.
    pub url: Option<String>,
    /// The store's address, where it is not the cloud's own.
    pub endpoint: Option<String>,
    /// The region of an S3 bucket.
    pub region: Option<String>,
    /// Whether an S3 bucket stands in the path instead of the host name. Default: true with an endpoint.
    pub path_style: Option<bool>,
    /// A file of certificates (PEM) that are trusted beside the system's.
    pub ca_file: Option<String>,
}

/// Where replays go.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawTarget {
    /// A Kafka cluster.
    pub kafka: Option<RawKafka>,
}

/// A Kafka cluster.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawKafka {
    /// `host:port` of some brokers.
    #[serde(default)]
    pub brokers: Vec<String>,
    /// The topic there; `{topic}` and `{job}` are filled in. Default: `{topic}.replay.{job}`.
    #[serde(default)]
    pub topic: String,
    /// Properties of the client (librdkafka's names), such as `security.protocol`.
    #[serde(default)]
    pub client: BTreeMap<String, String>,
}

/// Memory.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawMemory {
    /// For objects and events on their way. Default: 256MiB.
    pub budget: Option<ByteSize>,
}

/// The admin listener.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawAdmin {
    /// `host:port`; port 0 picks a free one.
    pub listen: Option<String>,
}

/// The checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the archive lies, if it was said.
    pub archive: Option<StoreOptions>,
    /// Where replays go by default.
    pub target: Option<Target>,
    /// Properties for Kafka clients.
    pub client: BTreeMap<String, String>,
    /// Bytes for objects and events on their way.
    pub memory: usize,
    /// Where the admin endpoint listens, if anywhere.
    pub listen: Option<String>,
}

impl Config {
    /// Loads the layers: `place` and `memory` are flags.
    pub fn load(place: &Place, memory: Option<&str>) -> Result<Self, Failure> {
        let mut layers = Layers::new().environment(ENVIRONMENT_PREFIX, process_environment());
        if let Some(file) = &place.config {
            layers = layers.file(file);
        }
        let path_style = place.path_style.map(|path_style| path_style.to_string());
        let flags = [
            ("archive.url", "--archive", place.archive.as_deref()),
            ("archive.endpoint", "--endpoint", place.endpoint.as_deref()),
            ("archive.region", "--region", place.region.as_deref()),
            ("archive.path_style", "--path-style", path_style.as_deref()),
            ("archive.ca_file", "--ca-file", place.ca_file.as_deref()),
            ("memory.budget", "--memory", memory),
        ];
        for (path, flag, value) in flags {
            if let Some(value) = value {
                layers = layers.flag(path, flag, value);
            }
        }
        Self::check(&layers.load::<RawConfig>()?)
    }

    fn check(loaded: &Loaded<RawConfig>) -> Result<Self, Failure> {
        let RawConfig { archive, target, memory, admin } = loaded.raw.clone();
        let budget = memory.budget.map_or(MEMORY_DEFAULT, |size| size.bytes());
        if budget < MEMORY_MIN {
            return Err(loaded.refuse("memory.budget", "must be at least 32MiB: a row group and its events need that").into());
        }
        let (mut address, mut client) = (None, BTreeMap::new());
        if let Some(kafka) = target.kafka {
            // A section with properties alone serves the brokers that `--to` names.
            if !kafka.brokers.is_empty() {
                let named = Target::kafka(kafka.brokers, &kafka.topic);
                address = Some(named.map_err(|why| Failure::from(loaded.refuse("target.kafka", why)))?);
            }
            client = kafka.client;
        }
        let RawArchive { url, endpoint, region, path_style, ca_file } = archive;
        let ca_file = ca_file.map(PathBuf::from);
        Ok(Self {
            archive: url.map(|url| StoreOptions { url, endpoint, region, path_style, ca_file }),
            target: address,
            client,
            memory: usize::try_from(budget).unwrap_or(usize::MAX),
            listen: admin.listen,
        })
    }

    /// The bus of a target; none for the standard output.
    pub fn bus(&self, target: &Target) -> Option<Arc<dyn TargetBus>> {
        match target {
            Target::Kafka { brokers, .. } => {
                let settings = ClusterSettings { brokers: brokers.clone(), client: self.client.clone() };
                Some(Arc::new(KafkaTarget::new(settings)))
            }
            Target::Stdout => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_archive_lies_reaches_the_store_as_it_is_written() {
        let yaml = "archive: { url: az://container/prod, endpoint: https://h, ca_file: /etc/ca.pem }";
        let loaded = Layers::new().text("test", yaml).load::<RawConfig>().expect("the shape is right");
        let options = Config::check(&loaded).expect("valid").archive.expect("said");
        assert_eq!((options.url.as_str(), options.endpoint.as_deref()), ("az://container/prod", Some("https://h")));
        assert_eq!(options.ca_file, Some(PathBuf::from("/etc/ca.pem")));
    }
}
