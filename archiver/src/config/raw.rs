//! The configuration file, word for word. Nothing is checked here but the shape; [`super::Config`] holds what was checked.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tapedeck_daemon::units::{ByteRate, ByteSize, HumanDuration};

/// The configuration of `archiver`.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// Where the archive lies.
    pub archive: RawArchive,
    /// What is archived.
    pub sources: Vec<RawSource>,
    /// When a batch is closed and committed.
    #[serde(default)]
    pub seal: RawSeal,
    /// How the process leaves.
    #[serde(default)]
    pub shutdown: RawShutdown,
    /// Events that carry the header `x-replay-job`: `skip` counts them and leaves them out, `archive` keeps them like any other.
    #[serde(default)]
    pub replayed: RawReplayed,
    /// Memory.
    #[serde(default)]
    pub memory: RawMemory,
    /// The admin listener.
    #[serde(default)]
    pub admin: RawAdmin,
    /// Maintenance in the background. Nothing of it is done unless its own block is there.
    #[serde(default)]
    pub maintain: RawMaintain,
}

/// Where the archive lies.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawArchive {
    /// `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix` (or
    /// `abfss://container@account.dfs.core.windows.net/prefix`) or `file:///path`. Credentials come from the environment.
    pub url: String,
    /// The store's address, where it is not the cloud's own, for example `http://127.0.0.1:9000` of an S3-compatible server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The region of an S3 bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// True puts an S3 bucket into the path instead of the host name. Default: true with an endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
    /// A file of certificates (PEM) that are trusted beside the system's, for a store behind a certificate authority of one's
    /// own. A proxy is taken from the environment: HTTPS_PROXY, HTTP_PROXY, NO_PROXY.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
}

/// One inflow.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawSource {
    /// Its name in logs and metrics.
    pub name: String,
    /// Topics of a Kafka cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kafka: Option<RawKafka>,
    /// A stream or a queue of a RabbitMQ cluster. Each source names one bus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rabbitmq: Option<RawRabbit>,
    /// Which table a topic goes to; the first rule that matches wins. Default: a table for each topic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<RawTableRule>,
}

/// Topics of a Kafka cluster.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawKafka {
    /// `host:port` of some brokers.
    pub brokers: Vec<String>,
    /// The consumer group. All replicas of one archiver share it; no other consumer may.
    pub group: String,
    /// How the group shares out its partitions: `classic`, or `consumer` (KIP-848), which wants brokers from 4.0 on and leaves
    /// sessions and heartbeats to them.
    #[serde(default)]
    pub group_protocol: RawGroupProtocol,
    /// A name of this replica that outlives the process (static membership): its partitions wait for it while it restarts,
    /// for one session. Each replica needs its own, for example `${env:HOSTNAME}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_instance_id: Option<String>,
    /// Topic names; `^...$` is a pattern.
    pub topics: Vec<String>,
    /// Where a topic begins that the archive has never seen: `earliest`, `latest` or a time.
    #[serde(default = "earliest")]
    pub start: String,
    /// What happens where the bus lost events before they were archived: `record` writes the gap into the log and goes on,
    /// `halt` stops the partition until somebody decides.
    #[serde(default)]
    pub on_gap: RawOnGap,
    /// librdkafka properties. The ones that guard the promises are refused.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub client: BTreeMap<String, String>,
}

/// A stream or a queue of a RabbitMQ cluster. See docs/rabbitmq.md.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawRabbit {
    /// `host:port` of some nodes; the port is 5672 if it is left out.
    pub hosts: Vec<String>,
    /// The virtual host.
    #[serde(default = "root_vhost")]
    pub vhost: String,
    /// The user. It needs the right to read the stream or queue, and no other.
    pub user: String,
    /// The password, for example `${file:/etc/tapedeck/rabbitmq-password}`.
    pub password: String,
    /// True accepts that the password and the events cross a network as they are.
    #[serde(default)]
    pub insecure: bool,
    /// The cluster's name, which is part of every event's address. Default: what the server calls itself. Set it, so that a server
    /// that is called otherwise one day is no other cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// A stream; its name is the topic of its events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// A queue, in place of a stream; its name is the topic of its events. What is archived leaves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// Of a stream: where it begins if the archive has never seen it: `earliest`, `latest` or a time. Default earliest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// Of a stream: what happens where the bus lost events before they were archived: `record` writes the gap into the log and goes
    /// on, `halt` stops the stream until somebody decides. Default record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_gap: Option<RawOnGap>,
    /// Of a stream: what happens if it is found shorter than the archive and begins at 0: `halt` stops it, `begin` takes it for a
    /// stream that was made anew and archives it from its first event, beside what was archived. Default halt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_recreated: Option<RawOnRecreated>,
    /// Of a queue: `accepted` says that its messages survive coming back often, by a policy or otherwise. From RabbitMQ 4.0 on a
    /// queue is not read without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery_limit: Option<RawDeliveryLimit>,
    /// How much the broker may hand over beyond what was taken in.
    #[serde(default)]
    pub prefetch: RawPrefetch,
}

/// What is known of how often a queue's messages may come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawDeliveryLimit {
    /// Somebody vouches for it.
    Accepted,
}

/// What happens if a stream is found shorter than the archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawOnRecreated {
    /// It stands still.
    #[default]
    Halt,
    /// It begins anew.
    Begin,
}

/// How much a broker may hand over beyond what was taken in.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawPrefetch {
    /// Events at most. Default 1000 of a stream, 65535 of a queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<u16>,
    /// Their bytes, by the sizes of late. Default: a quarter of `memory.budget` for all RabbitMQ sources together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<ByteSize>,
}

/// How members of a group and its coordinator speak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawGroupProtocol {
    /// The members share out the partitions.
    #[default]
    Classic,
    /// The broker does.
    Consumer,
}

/// What happens where the bus lost events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawOnGap {
    /// The gap is written into the log.
    #[default]
    Record,
    /// The partition stands still.
    Halt,
}

fn root_vhost() -> String {
    "/".to_owned()
}

fn earliest() -> String {
    "earliest".to_owned()
}

/// Puts topics into one table.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawTableRule {
    /// A topic name, or a pattern `^...$`.
    pub topics: String,
    /// The table.
    pub table: String,
}

/// When a batch is closed and committed.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawSeal {
    /// Encoded bytes of a table's batch. Default 128MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<ByteSize>,
    /// Time since the batch's first event; fires on a quiet topic too. Default 5m.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<HumanDuration>,
}

/// How the process leaves.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawShutdown {
    /// Time from the first signal to the end. Past it the work is abandoned, which loses nothing. Default 25s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace: Option<HumanDuration>,
}

/// What happens to copies that a replay published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawReplayed {
    /// Counted and left out.
    #[default]
    Skip,
    /// Archived like any other event.
    Archive,
}

/// Memory.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawMemory {
    /// Bytes for events on their way. The process needs about 100 MiB beside it. Default 512MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<ByteSize>,
}

/// The admin listener.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawAdmin {
    /// `address:port` for `/livez`, `/readyz`, `/metrics` and `/api/v1/status`. Default 127.0.0.1:9464; port 0 picks a free one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// A file with the token that changing requests must carry when the listener is not on loopback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<String>,
}

/// Maintenance in the background, of the tables of the topics that the sources name. See docs/maintenance.md.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawMaintain {
    /// Merge the small segments of closed hours. `{}` takes all defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compact: Option<RawCompact>,
    /// Take out all hours that are older than `keep`. Events are gone with them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expire: Option<RawExpire>,
    /// Delete files that no record names, and those of segments that were removed long ago. `{}` takes all defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sweep: Option<RawSweep>,
    /// Bytes to and from the store in a second, for all of it together. Default 16MiB/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<ByteRate>,
    /// Bytes of `memory.budget` that are set aside for it, if there is anything to do. Default 64MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
}

/// Merge the small segments of closed hours.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawCompact {
    /// How often, give or take a quarter. Default 1h.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<HumanDuration>,
    /// An hour is closed once it has been over for so long. Default 2h.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_for: Option<HumanDuration>,
    /// Segments of this size and more stay as they are. Default 128MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub small_below: Option<ByteSize>,
    /// No merged segment is made of more than this. Default 512MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_size: Option<ByteSize>,
}

/// Take out old hours.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawExpire {
    /// How long events are kept after the end of their hour, for example 90d.
    pub keep: HumanDuration,
    /// How often, give or take a quarter. Default 1h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<HumanDuration>,
}

/// Delete files that nobody needs.
#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawSweep {
    /// How often, give or take a quarter. Default 1d.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<HumanDuration>,
    /// Files that no record names are deleted at this age. Longer than any archiver may hang and come back. Default 7d.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orphans_after: Option<HumanDuration>,
    /// Files of removed segments are deleted so long after. Longer than any reader reads. Default 7d.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub removed_after: Option<HumanDuration>,
}
