//! The program itself against a real Kafka and an archive in a folder: what a user types, kills included.

#![allow(clippy::unwrap_used, reason = "tests say so by failing")]
#![allow(clippy::disallowed_methods, reason = "real servers keep real time")]

#[path = "../replay/kit.rs"]
mod kit;
mod pace;

use std::time::Duration;

use base64::Engine as _;
use kit::{Event, HOUR, MINUTE, TEN, World};
use tapedeck_common::event::{PROPERTY_RAW_HEADER, PROPERTY_RAW_TIME, TimeKind};
use tapedeck_storage::store::{StoreOptions, open_store};
use tapedeck_testbed::{Admin, Ended, Program, shared_kafka};

const LIMIT: Duration = Duration::from_secs(120);

/// An archive in a folder, and the program to run against it.
struct Bench {
    folder: tempfile::TempDir,
    world: World,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open_store(&StoreOptions::at(format!("file://{}", folder.path().display()))).expect("a folder");
        Self { world: World::at(store).await, folder }
    }

    fn program(&self, arguments: &[&str]) -> Program {
        let url = format!("file://{}", self.folder.path().display());
        Program::at(env!("CARGO_BIN_EXE_replayer"))
            .args(arguments)
            .envs([("TAPEDECK__ARCHIVE__URL", url.as_str()), ("RUST_BACKTRACE", "0")])
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        self.program(arguments).run(LIMIT).expect("it ends")
    }

    fn must(&self, arguments: &[&str]) -> Ended {
        let ended = self.run(arguments);
        assert_eq!(ended.code, Some(0), "{arguments:?}\n{}\n{}", ended.stdout, ended.stderr);
        ended
    }
}

fn to() -> String {
    format!("kafka://{}", shared_kafka().bootstrap())
}

/// Null, empty and large, odd headers, odd times, three days, 16 partitions.
fn nasty() -> Vec<Event> {
    let mut chance = fastrand::Rng::with_seed(5);
    let mut events: Vec<Event> = (0..2_000)
        .flat_map(|position| (0..16).map(move |partition| (partition, position)))
        .map(|(partition, position)| Event::plain(partition, position, TEN + chance.i64(0..72 * 60) * MINUTE))
        .collect();
    for event in &mut events {
        match chance.u8(0..40) {
            0 => event.key = None,
            1 => event.key = Some(vec![]),
            2 => event.value = None,
            3 => event.value = Some(vec![]),
            4 => event.headers = vec![("a".into(), None), ("a".into(), Some(vec![])), (String::new(), Some(vec![0xFF]))],
            5 => {
                event.headers = vec![("plain".into(), None), ("odd\\xFF".into(), Some(b"1".to_vec()))];
                let raw = base64::engine::general_purpose::STANDARD.encode(b"odd\xFF");
                event.properties = vec![(format!("{PROPERTY_RAW_HEADER}1"), raw)];
            }
            6 => {
                event.kind = TimeKind::Arrival;
                event.properties = vec![(PROPERTY_RAW_TIME.into(), "-1".into())];
            }
            7 if event.position % 50 == 0 => event.value = Some(vec![chance.u8(..); 900_000]),
            _ => {}
        }
    }
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nasty_topic_arrives_whole_and_the_plan_said_so() {
    let mut bench = Bench::new().await;
    bench.world.commit(&nasty(), 5_000).await;
    let plan_file = bench.folder.path().join("plan.json");
    let file = plan_file.to_str().expect("text");
    let plan = bench.must(&["plan", "--topic", "orders", "--to", &to(), "-o", file]);
    assert!(plan.stdout.contains("32,000"), "{}", plan.stdout);
    let run = bench.must(&["run", file, "--job", "nasty-1"]);
    assert!(run.stdout.lines().next().expect("a line").contains("\"job\":\"nasty-1\""), "{}", run.stdout);
    assert!(run.stderr.contains("made topic orders.replay.nasty-1: 16 partitions"), "{}", run.stderr);
    assert!(run.stdout.contains("\"result\":\"completed\""), "{}", run.stdout);
    let verdict = bench.must(&["verify", "nasty-1", "--json"]);
    let verdict: serde_json::Value = serde_json::from_str(&verdict.stdout).expect("json");
    assert_eq!(
        (&verdict["good"], &verdict["total"]["proved"], &verdict["total"]["duplicates"]),
        (&true.into(), &32_000.into(), &0.into())
    );
    let ends =
        Admin::new(&shared_kafka().bootstrap()).expect("it answers").watermarks("orders.replay.nasty-1").expect("readable");
    assert_eq!(ends.values().map(|(low, high)| high - low).sum::<i64>(), 32_000);
    let again = bench.must(&["run", file, "--job", "nasty-1"]);
    assert!(again.stdout.contains("\"already\":true"), "{}", again.stdout);
    assert!(bench.must(&["list"]).stdout.contains("nasty-1  completed (32,000 of 32,000 events"));
    assert!(bench.must(&["status", "nasty-1"]).stdout.contains("orders partition 15: 2,000 of 2,000, to offset 1999"));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_it_loses_nothing_and_repeats_what_it_said() {
    let mut bench = Bench::new().await;
    let events: Vec<Event> = (0..40_000)
        .flat_map(|position| (0..4).map(move |partition| Event::plain(partition, position, TEN + position as i64 * 100_000)))
        .collect();
    for batch in events.chunks(60_000) {
        bench.world.commit(batch, 8_000).await;
    }
    let to = to();
    let arguments = ["run", "--topic", "orders", "--to", &to, "--rate", "40k/s", "--job", "killed", "--yes"];
    let mut chance = fastrand::Rng::with_seed(2);
    let mut kills = 0;
    while kills < 4 {
        let mut running = bench.program(&arguments).start().expect("it starts");
        running.wait_for_text("topic orders.replay.killed", LIMIT).expect("it begins");
        std::thread::sleep(Duration::from_millis(chance.u64(100..900)));
        if running.has_ended().expect("it is ours") {
            break;
        }
        running.kill9().expect("it is ours");
        kills += 1;
    }
    bench.must(&arguments);
    let verdict = bench.must(&["verify", "killed", "--json"]);
    let verdict: serde_json::Value = serde_json::from_str(&verdict.stdout).expect("json");
    assert_eq!((&verdict["good"], &verdict["total"]["proved"]), (&true.into(), &160_000.into()), "{verdict}");
    assert_eq!(kills, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn term_pauses_and_the_same_job_goes_on_without_repeating() {
    let mut bench = Bench::new().await;
    let events: Vec<Event> = (0..8_000).map(|position| Event::plain(0, position, TEN)).collect();
    bench.world.commit(&events, 8_000).await;
    let to = to();
    let arguments = ["run", "--topic", "orders", "--to", &to, "--rate", "2k/s", "--job", "paused", "--yes"];
    let mut first = bench.program(&arguments).start().expect("it starts");
    first.wait_for_text("made topic", LIMIT).expect("it begins");
    let second = bench.run(&arguments);
    assert_eq!(second.code, Some(75), "{}", second.stderr);
    assert!(second.stderr.contains("job paused is being run by another replayer"), "{}", second.stderr);
    first.terminate().expect("it is ours");
    let ended = first.wait(LIMIT).expect("it ends");
    assert_eq!(ended.code, Some(1), "unfinished: a Job must start another pod: {}", ended.stderr);
    assert!(ended.stdout.contains("\"result\":\"paused\"") && ended.stdout.contains("evicted"), "{}", ended.stdout);
    assert!(bench.must(&["status", "paused"]).stdout.contains("paused ("));
    bench.must(&["run", "--job", "paused", "--rate", "1M/s"]);
    let verdict = bench.must(&["verify", "paused"]);
    assert!(verdict.stdout.contains("8,000 of 8,000 events proved; everything arrived"), "{}", verdict.stdout);
    assert!(!verdict.stdout.contains("came twice"), "{}", verdict.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_notices_what_is_wrong() {
    let mut bench = Bench::new().await;
    bench.world.commit(&(0..500).map(|position| Event::plain(0, position, TEN)).collect::<Vec<_>>(), 500).await;
    let to = to();
    bench.must(&["run", "--topic", "orders", "--offsets", "0..300", "--to", &format!("{to}/half"), "--job", "half", "--yes"]);
    assert_eq!(bench.run(&["verify", "half"]).code, Some(0));
    let admin = Admin::new(&shared_kafka().bootstrap()).expect("it answers");
    admin.delete_topic("half").expect("it was made");
    let gone = bench.run(&["verify", "half"]);
    assert!(gone.code != Some(0) && gone.stderr.contains("half"), "{}", gone.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn cat_prints_and_ends_quietly() {
    let mut bench = Bench::new().await;
    bench
        .world
        .commit(
            &(0..3_000).map(|position| Event::plain(0, position, TEN + position as i64 * HOUR / 1000)).collect::<Vec<_>>(),
            500,
        )
        .await;
    let ten = bench.must(&["cat", "--topic", "orders", "--from", "2026-11-20T11:00:00Z", "-n", "10"]);
    let lines: Vec<serde_json::Value> = ten.stdout.lines().map(|line| serde_json::from_str(line).expect("json")).collect();
    assert_eq!(lines.len(), 10);
    assert_eq!(
        (&lines[0]["offset"], &lines[0]["value"], &lines[0]["headers"][0][0]),
        (&1000.into(), &"0/1000".into(), &"trace".into())
    );
    let shell = format!(
        "{} cat --archive file://{} --topic orders | head -n 2",
        env!("CARGO_BIN_EXE_replayer"),
        bench.folder.path().display()
    );
    let piped = Program::at("/bin/bash").args(["-c", &format!("set -o pipefail; {shell}")]).run(LIMIT).expect("it ends");
    assert_eq!((piped.code, piped.stderr.as_str()), (Some(0), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_told_apart_by_text_and_code() {
    let mut bench = Bench::new().await;
    bench.world.commit(&[Event::plain(3, 0, TEN)], 8).await;
    let admin = Admin::new(&shared_kafka().bootstrap()).expect("it answers");
    admin.create_topic("narrow", 2, &[]).expect("made");
    let (to, nowhere) = (to(), "kafka://127.0.0.1:1".to_owned());
    let narrow = format!("{to}/narrow");
    let cases: &[(&[&str], i32, &str)] = &[
        (&["plan", "--topic", "ordres", "--to", &to], 64, "topic ordres is not in the archive"),
        (&["plan", "--topic", "orders", "--from", "2030-01-01", "--to", &to], 64, "nothing to replay: no event matches"),
        (&["plan", "--topic", "orders", "--from", "soon", "--to", &to], 64, "--from: `soon` is not a time"),
        (&["plan", "--topic", "orders"], 64, "where to?"),
        (&["plan", "--topic", "orders", "--to", "amqp://h/x"], 64, "amqp:// as a target is not in this version"),
        (&["run", "--topic", "orders", "--to", &to], 64, "add --yes"),
        (
            &["run", "--topic", "orders", "--to", &to, "--yes", "--guarantee", "exactly-once"],
            64,
            "--guarantee exactly-once is not in this version",
        ),
        (&["run", "--topic", "orders", "--to", &to, "--yes", "--rate", "fast"], 64, "--rate"),
        (&["run", "--topic", "orders", "--to", &narrow, "--yes", "--job", "narrow"], 78, "topic narrow has 2 partitions"),
        (&["run", "--topic", "orders", "--to", &nowhere, "--yes", "--job", "nowhere"], 69, "127.0.0.1:1"),
        (&["run", "missing.json"], 64, "cannot read the plan missing.json"),
        (&["run"], 64, "what is to be replayed?"),
        (&["status", "never"], 64, "there is no job never"),
        (&["verify", "never"], 64, "there is no job never"),
        (&["pause", "x"], 64, "`replayer pause` is not in this version"),
        (&["frobnicate"], 64, "frobnicate"),
        (&["plan", "--archive", "file:///nowhere/at/all", "--topic", "x", "--to", "stdout:"], 78, "no such folder"),
        (&["plan", "--memory", "1MiB", "--topic", "orders", "--to", &to], 78, "at least 32MiB"),
    ];
    for (arguments, code, text) in cases {
        let ended = bench.run(arguments);
        assert_eq!(ended.code, Some(*code), "{arguments:?}\n{}\n{}", ended.stdout, ended.stderr);
        assert!(ended.stderr.contains(text), "{arguments:?}: {}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_worker_is_replaced_and_leaves_at_once_when_it_wakes() {
    let mut bench = Bench::new().await;
    let events: Vec<Event> = (0..12_000).map(|position| Event::plain(0, position, TEN)).collect();
    bench.world.commit(&events, 8_000).await;
    let to = to();
    let arguments = ["run", "--topic", "orders", "--to", &to, "--rate", "1k/s", "--job", "frozen", "--yes"];
    let mut first = bench.program(&arguments).start().expect("it starts");
    first.wait_for_text("made topic", LIMIT).expect("it begins");
    std::thread::sleep(Duration::from_secs(2));
    first.freeze().expect("it is ours");
    let second = bench.program(&["run", "--job", "frozen", "--rate", "4k/s"]).start().expect("it starts");
    let ended = second.wait(LIMIT).expect("it ends");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    first.thaw().expect("it is ours");
    let ended = first.wait(Duration::from_secs(10)).expect("it ends at once");
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);
    assert!(ended.stderr.contains("another replayer has taken over job frozen (lease 2)"), "{}", ended.stderr);
    assert!(bench.must(&["verify", "frozen"]).stdout.contains("12,000 of 12,000 events proved; everything arrived"));
    assert!(
        bench.must(&["status", "frozen"]).stdout.contains("completed (12,000 of 12,000 events"),
        "its state is the second one's"
    );
}
