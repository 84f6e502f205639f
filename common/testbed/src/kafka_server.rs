//! A real Apache Kafka for tests: one KRaft process on loopback, on ports and in a folder of its own.
//!
//! `start` returns when the broker answers, transactions and groups included. The data survives `stop` and `kill9` until the
//! value is dropped. A plain broker keeps its defaults: 1 MB batches and no timestamps above one hour ahead; tests that need
//! more say so per topic (see [`crate::events::nasty::topic_config`]).

use std::fs::File;
use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context, Result};

use crate::scripted::Scripted;

/// What may differ from one broker to another.
#[derive(Debug, Clone)]
pub struct KafkaOptions {
    /// Further server properties; they win over ours.
    pub extra: Vec<(String, String)>,
    /// Java heap, for example `512m`.
    pub heap: String,
    /// One more listener: the port where it listens, and the one that clients are told. Between them a test may put a link.
    pub door: Option<(u16, u16)>,
}

impl Default for KafkaOptions {
    fn default() -> Self {
        Self { extra: Vec::new(), heap: "512m".to_owned(), door: None }
    }
}

/// A running broker; gone with its data on drop.
#[derive(Debug)]
pub struct KafkaServer {
    server: Scripted,
}

impl KafkaServer {
    /// Starts a broker with an empty log.
    pub fn start(options: KafkaOptions) -> Result<Self> {
        let extra: Vec<String> = options.extra.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut environment = vec![("KAFKA_EXTRA".to_owned(), extra.join("\n")), ("KAFKA_HEAP".to_owned(), options.heap)];
        environment.extend(options.door.map(|(listens, told)| ("KAFKA_DOOR".to_owned(), format!("{listens}:{told}"))));
        let server = Scripted::start("kafka", "KAFKA", 2, environment)?;
        Ok(Self { server })
    }

    /// The address for `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.server.port())
    }

    /// The file that holds the first segment of a partition, for tests that damage it.
    pub fn segment_file(&self, topic: &str, partition: i32) -> PathBuf {
        self.server.folder().join("data").join(format!("{topic}-{partition}")).join("00000000000000000000.log")
    }

    /// Cuts the newest part off a partition whose log is one segment, as an unclean election does: `keep` of its bytes stay, down to
    /// the last whole batch. The broker must have been killed; as it starts again it looks through the segment, and everything
    /// that it knew of the events that are gone goes with them.
    pub fn cut_log(&self, topic: &str, partition: i32, keep: f64) -> Result<()> {
        let log = self.segment_file(topic, partition);
        let file = File::options().write(true).open(&log)?;
        file.set_len((file.metadata()?.len() as f64 * keep) as u64)?;
        for entry in log.parent().context("it lies in a folder")?.read_dir()? {
            let path = entry?.path();
            if path.extension().is_some_and(|kind| ["index", "timeindex", "snapshot"].iter().any(|old| kind == *old)) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Stops the broker cleanly; its data stays.
    pub fn stop(&self) -> Result<()> {
        self.server.verb("stop")
    }

    /// Kills the broker with SIGKILL; its data stays as it is.
    pub fn kill9(&self) -> Result<()> {
        self.server.verb("kill9")
    }

    /// Starts the broker again on the same port and data.
    pub fn start_again(&self) -> Result<()> {
        self.server.verb("start")
    }
}

/// One broker for all tests of a test binary, started on first use, ended with the process.
///
/// Panics when Kafka can't be had: a missing server is a failed test.
pub fn shared_kafka() -> &'static KafkaServer {
    static SHARED: OnceLock<KafkaServer> = OnceLock::new();
    SHARED.get_or_init(|| KafkaServer::start(KafkaOptions::default()).expect("the tests need a real Kafka"))
}
