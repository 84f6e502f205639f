//! From one bus to another: what came from RabbitMQ, by a stream and by a queue, is replayed to Kafka and read there by a client that
//! knows nothing of us.

#![allow(clippy::disallowed_methods, reason = "real servers live in real time")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tapedeck_testbed::events::nasty_amqp::NastyAmqp;
use tapedeck_testbed::rabbitmq::QueueKind;
use tapedeck_testbed::{
    Ended, Isolation, Program, RabbitServer, has_rabbitmq, read_each, shared_kafka, shared_rabbitmq, wait_until,
};

const LIMIT: Duration = Duration::from_secs(300);
const NAMES: [&str; 2] = ["across.stream", "across.queue"];
const NASTY: u64 = 1_000;

/// A program of the workspace: they all lie in one folder, and are built for their own tests.
fn program(name: &str, arguments: &[&str]) -> Program {
    let path: PathBuf = Path::new(env!("CARGO_BIN_EXE_replayer")).with_file_name(name);
    Program::at(path).args(arguments).envs([("RUST_BACKTRACE", "0")])
}

fn must(name: &str, arguments: &[&str]) -> Result<Ended> {
    let ended = program(name, arguments).run(LIMIT)?;
    ensure!(ended.code == Some(0), "{name} {arguments:?}: {:?}\n{}\n{}", ended.code, ended.stdout, ended.stderr);
    Ok(ended)
}

fn archive(folder: &Path, url: &str, server: &RabbitServer, events: u64) -> Result<()> {
    let (host, user) = (server.amqp(), RabbitServer::USER);
    let source = |name: &str, what: &str| {
        format!("  - {{ name: {name}, rabbitmq: {{ hosts: ['{host}'], user: {user}, password: {user}, {what}: {name} }} }}\n")
    };
    let sources = [source(NAMES[0], "stream"), source(NAMES[1], "delivery_limit: accepted, queue")].concat();
    let text = format!(
        "archive: {{ url: '{url}' }}\nsources:\n{sources}seal: {{ max_age: 2s }}\nmemory: {{ budget: 256MiB }}\nadmin: {{ listen: '127.0.0.1:0' }}\n"
    );
    let config = folder.join("archiver.yaml");
    std::fs::write(&config, text)?;
    let archiver = program("archiver", &["run", "-c", &config.display().to_string()]).start()?;
    wait_until("all is archived", LIMIT, || {
        let status = program("archiver", &["status", url, "--json"]).run(LIMIT)?;
        let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap_or_default();
        let topics = status["tables"].as_array().into_iter().flatten().flat_map(|table| table["topics"].as_array()).flatten();
        let counts: Vec<u64> = topics.filter_map(|topic| topic["events"].as_u64()).collect();
        Ok(counts.len() == NAMES.len() && counts.iter().all(|count| *count >= events))
    })?;
    archiver.terminate()?;
    let ended = archiver.wait(LIMIT)?;
    ensure!(ended.code == Some(0), "{}", ended.stderr);
    Ok(())
}

/// How often each key and value is there.
type Counts = BTreeMap<(Vec<u8>, Vec<u8>), u64>;

#[test]
fn what_came_from_rabbitmq_goes_to_kafka() -> Result<()> {
    if !has_rabbitmq() {
        return Ok(());
    }
    let (server, kafka, folder) = (shared_rabbitmq(), shared_kafka().bootstrap(), tempfile::tempdir()?);
    let url = format!("file://{}", folder.path().join("archive").display());
    server.admin().declare(NAMES[0], QueueKind::Stream, json!({}))?;
    server.admin().declare(NAMES[1], QueueKind::Quorum, json!({}))?;
    let nasty = NastyAmqp { exchange: "across".to_owned(), count: NASTY, large: 4, decimals: false, ..NastyAmqp::default() };
    nasty.load(server, &NAMES)?;
    archive(folder.path(), &url, server, NASTY)?;
    let mut sent = Counts::new();
    for index in 0..NASTY {
        let event = nasty.event(index);
        *sent.entry((event.routing_key.into_bytes(), event.body)).or_default() += 1;
    }
    // One body of 10 MiB: the client's queue has to hold it.
    let settings = folder.path().join("replayer.yaml");
    std::fs::write(&settings, "target: { kafka: { client: { queue.buffering.max.kbytes: '32768' } } }\n")?;
    let (settings, to) = (settings.display().to_string(), format!("kafka://{kafka}"));
    let mut arguments = vec!["run", "-c", &settings, "--archive", &url, "--to", &to, "--job", "across", "--yes"];
    NAMES.iter().for_each(|name| arguments.extend(["--topic", name]));
    must("replayer", &arguments)?;
    for name in NAMES {
        let mut there = Counts::new();
        read_each(&kafka, &format!("{name}.replay.across"), Isolation::Committed, |received| {
            ensure!(received.partition == 0, "{name}: partition {}", received.partition);
            let (key, value) = (received.event.key.unwrap_or_default(), received.event.value.unwrap_or_default());
            *there.entry((key, value)).or_default() += 1;
            Ok(())
        })?;
        ensure!(there == sent, "{name}: {} kinds of events there, {} were sent", there.len(), sent.len());
    }
    let verdict = must("replayer", &["verify", "across", "--archive", &url, "--json"])?;
    let verdict: serde_json::Value = serde_json::from_str(&verdict.stdout)?;
    ensure!(verdict["good"] == true && verdict["total"]["proved"] == 2 * NASTY, "{verdict:#}");
    Ok(())
}
