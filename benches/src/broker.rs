//! A broker beside the bench: librdkafka's mock cluster in a child process, so that its CPU time is not ours.
//!
//! Promise: it ends with us, however we end. It keeps about 5 MiB a partition; more than that is refused before it is sent.
//! Never: a measure of Kafka itself; no replication, no disk, no network but loopback.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use rdkafka::mocking::MockCluster;
use tapedeck_testbed::{Generator, Loader};

use crate::rows::{PARTITIONS, places};

/// In a child's environment: it is to be a broker, with this topic.
const ASKED: &str = "TAPEDECK_BENCH_BROKER_TOPIC";

/// What the mock keeps of a partition, less a margin for the heads of batches.
const PARTITION_KEEPS: u64 = 4_700_000;

/// A running mock broker with one topic of [`PARTITIONS`] partitions.
#[derive(Debug)]
pub struct Broker {
    /// The address for `bootstrap.servers`.
    pub bootstrap: String,
    /// Its topic.
    pub topic: String,
    child: Child,
    alive: Option<ChildStdin>,
}

/// Turns a child that was started by [`Broker::start`] into the broker, for the rest of its life.
pub(crate) fn serve_if_asked() {
    let Ok(topic) = std::env::var(ASKED) else { return };
    let served = serve(&topic);
    if let Err(error) = &served {
        eprintln!("the mock broker: {error:#}");
    }
    std::process::exit(i32::from(served.is_err()));
}

fn serve(topic: &str) -> Result<()> {
    let cluster = MockCluster::new(1).map_err(|error| anyhow!("{error}"))?;
    cluster.create_topic(topic, PARTITIONS, 1).map_err(|error| anyhow!("topic {topic}: {error}"))?;
    println!("{}", cluster.bootstrap_servers());
    // The pipe closes when the bench ends, even if it is killed.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    Ok(())
}

impl Broker {
    /// Starts a broker with an empty topic.
    pub fn start(topic: &str) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .env(ASKED, topic)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the broker's process")?;
        let alive = child.stdin.take();
        let mut bootstrap = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut bootstrap)?;
        ensure!(!bootstrap.trim().is_empty(), "the mock broker did not start");
        Ok(Self { bootstrap: bootstrap.trim().to_owned(), topic: topic.to_owned(), child, alive })
    }

    /// Fills the topic with all events of `generator`; answers their bytes.
    pub fn fill(&self, generator: &Generator, compression: &str) -> Result<u64> {
        // The mock hands out one batch a fetch, so batches should be large.
        let settings = [("linger.ms", "200"), ("batch.size", "900000"), ("compression.type", compression)];
        let loader = Loader::new(&self.bootstrap, &settings)?;
        let place = places(generator);
        let mut bytes = 0;
        let mut kept = [0; PARTITIONS as usize];
        for (index, event) in (0..).zip(generator.events()) {
            let partition = place(index);
            bytes += event.raw_bytes();
            kept[partition as usize] += event.raw_bytes() + 16;
            ensure!(kept[partition as usize] < PARTITION_KEEPS, "more than the mock broker keeps; ask for a smaller scale");
            loader.send(&self.topic, Some(partition), &event)?;
        }
        loader.finish()?;
        Ok(bytes)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.alive.take();
        let _ = self.child.wait();
    }
}
