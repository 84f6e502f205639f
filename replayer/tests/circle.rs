//! Once around: a real Kafka, the archiver, the replayer, the same Kafka again. What comes back is judged against what was there,
//! by readers that share no code with either program. `TAPEDECK_CIRCLE_EVENTS` and `TAPEDECK_CIRCLE_KILLS` make it larger.

#![allow(clippy::disallowed_methods, reason = "real servers keep real time; the seed is printed")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tapedeck_testbed::events::nasty::Nasty;
use tapedeck_testbed::oracle::{Lane, compare_replay};
use tapedeck_testbed::{Admin, Ended, Generator, Isolation, Loader, Program, Truth, Workload, read_each, shared_kafka};

const LIMIT: Duration = Duration::from_secs(300);
const TOPICS: [&str; 2] = ["circle-plain", "circle-nasty"];

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

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

/// Fills both topics; answers how many events a reader sees.
fn load(kafka: &str, count: u64) -> Result<u64> {
    Admin::new(kafka)?.create_topic(TOPICS[0], 4, &[("retention.ms", "-1")])?;
    let loader = Loader::new(kafka, &[])?;
    for event in Generator::new(Workload::Orders, 3, count).events() {
        loader.send(TOPICS[0], None, &event)?;
    }
    loader.finish()?;
    let nasty = Nasty { plain: count / 10, transactional: count / 20, large: 8, ..Nasty::default() };
    Ok(count + nasty.load(kafka, TOPICS[1])?.visible)
}

fn archive(folder: &Path, url: &str, kafka: &str, visible: u64) -> Result<()> {
    let config = folder.join("archiver.yaml");
    let topics = TOPICS.join(", ");
    let text = format!(
        "archive: {{ url: '{url}' }}\nsources:\n  - {{ name: main, kafka: {{ brokers: ['{kafka}'], group: circle, topics: [{topics}] }} }}\n\
         seal: {{ max_age: 2s }}\nmemory: {{ budget: 128MiB }}\nadmin: {{ listen: '127.0.0.1:0' }}\n"
    );
    std::fs::write(&config, text)?;
    let archiver = program("archiver", &["run", "-c", &config.display().to_string()]).start()?;
    tapedeck_testbed::wait_until("all is archived", LIMIT, || {
        let status = program("archiver", &["status", url, "--json"]).run(LIMIT)?;
        let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap_or_default();
        let topics = status["tables"].as_array().into_iter().flatten().flat_map(|table| table["topics"].as_array()).flatten();
        Ok(topics.filter_map(|topic| topic["events"].as_u64()).sum::<u64>() >= visible)
    })?;
    archiver.terminate()?;
    let ended = archiver.wait(LIMIT)?;
    ensure!(ended.code == Some(0), "{}", ended.stderr);
    Ok(())
}

/// What lies in the side topics, per lane of the originals, without the markers.
fn arrived(kafka: &str, job: &str) -> Result<BTreeMap<Lane, Vec<u64>>> {
    let mut lanes: BTreeMap<Lane, Vec<u64>> = BTreeMap::new();
    for topic in TOPICS {
        let side = format!("{topic}.replay.{job}");
        read_each(kafka, &side, Isolation::Committed, |mut received| {
            let marked = received
                .event
                .headers
                .iter()
                .any(|(name, value)| name == "x-replay-job" && value.as_deref() == Some(job.as_bytes()));
            ensure!(marked, "{side}/{}@{} is not marked", received.partition, received.offset);
            received.event.headers.retain(|(name, _)| !name.starts_with("x-replay-"));
            lanes.entry((topic.to_owned(), received.partition)).or_default().push(received.event.digest());
            Ok(())
        })?;
    }
    Ok(lanes)
}

/// Kills the job `kills` times somewhere on its way, then lets it end; answers how often it was killed.
fn replay(arguments: &[&str], kills: u64, chance: &mut fastrand::Rng) -> Result<u64> {
    let mut killed = 0;
    while killed < kills {
        let mut running = program("replayer", arguments).start()?;
        running.wait_for_text("topic circle-plain.replay", LIMIT)?;
        std::thread::sleep(Duration::from_millis(chance.u64(50..1_200)));
        if running.has_ended()? {
            break;
        }
        running.kill9()?;
        killed += 1;
    }
    must("replayer", arguments)?;
    Ok(killed)
}

#[test]
fn what_was_archived_comes_back_whole_and_in_order() -> Result<()> {
    let (count, kills) = (number("TAPEDECK_CIRCLE_EVENTS", 40_000), number("TAPEDECK_CIRCLE_KILLS", 3));
    let (seed, kafka, folder) = (fastrand::u64(..), shared_kafka().bootstrap(), tempfile::tempdir()?);
    println!("seed {seed}, {count} events, {kills} kills");
    let url = format!("file://{}", folder.path().join("archive").display());
    let visible = load(&kafka, count)?;
    archive(folder.path(), &url, &kafka, visible)?;
    let truth = Truth::from_bus(&kafka, &TOPICS)?;
    ensure!(truth.len() == visible, "{} of {visible} events are on the bus", truth.len());
    let to = format!("kafka://{kafka}");
    // The kills must fall while it runs: they come in the first second or so of each start.
    let rate = format!("{}", count / 2 / kills.max(1) + 5_000);
    for (job, kills) in [("whole", 0), ("killed", kills)] {
        let mut arguments = vec!["run", "--archive", url.as_str(), "--to", to.as_str(), "--job", job, "--yes"];
        if kills > 0 {
            arguments.extend(["--rate", &rate]);
        }
        TOPICS.iter().for_each(|topic| arguments.extend(["--topic", topic]));
        let killed = replay(&arguments, kills, &mut fastrand::Rng::with_seed(seed))?;
        ensure!(killed == kills, "{job}: {killed} of {kills} kills found it running");
        let verdict = must("replayer", &["verify", job, "--archive", &url, "--json"])?;
        let verdict: serde_json::Value = serde_json::from_str(&verdict.stdout)?;
        let window = verdict["duplicate_window"].as_u64().context("a window")?;
        let report = compare_replay(&truth.sequences(), &arrived(&kafka, job)?);
        println!("{job}, {killed} kills: {report}, window {window}");
        let faults = report.lost + report.phantom + report.reordered + report.corrupted;
        let lanes = truth.sequences().len() as u64;
        ensure!(faults == 0 && report.duplicate <= killed * window * lanes, "seed {seed}, {job}: {report}");
        ensure!(verdict["good"] == true && verdict["total"]["proved"] == visible, "seed {seed}, {job}: {verdict:#}");
    }
    Ok(())
}
