//! The rate as the broker sees it, and the speed without one: measured runs, part of `make bars`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use tapedeck_kafka::admin::Cluster;
use tapedeck_kafka::config::ClusterSettings;
use tapedeck_testbed::{Admin, shared_kafka};

use crate::kit::{Event, TEN};
use crate::{Bench, LIMIT, to};

/// Seconds that each rate is held.
const HELD: u64 = 20;

async fn archive(events: u64, value_bytes: usize) -> Bench {
    let mut bench = Bench::new().await;
    let value: Vec<u8> = (0..value_bytes).map(|byte| b'a' + (byte % 23) as u8).collect();
    for start in (0..events).step_by(400_000) {
        let batch: Vec<Event> = (start..(start + 400_000).min(events))
            .map(|number| {
                let (partition, position) = ((number % 4) as i32, number / 4);
                Event { value: Some(value.clone()), ..Event::plain(partition, position, TEN + number as i64) }
            })
            .collect();
        bench.world.commit(&batch, 8_000).await;
    }
    bench
}

/// When the broker appended each event of a topic, in milliseconds, sorted.
fn appended(topic: &str) -> Vec<i64> {
    let cluster =
        Cluster::open(&ClusterSettings { brokers: vec![shared_kafka().bootstrap()], client: BTreeMap::new() }).expect("good");
    let spans = (0..4).map(|partition| (partition, cluster.watermarks(topic, partition).expect("readable"))).collect();
    let mut times = Vec::new();
    let read = cluster.read_back(topic, &spans, LIMIT, |event| {
        times.push(event.time().expect("every event has one").0.millis_floor());
        ControlFlow::Continue(())
    });
    read.expect("readable");
    times.sort_unstable();
    times
}

fn worst_second(times: &[i64]) -> usize {
    let (mut first, mut worst) = (0, 0);
    for (last, time) in times.iter().enumerate() {
        while times[first] <= time - 1_000 {
            first += 1;
        }
        worst = worst.max(last + 1 - first);
    }
    worst
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measured run: make bars"]
async fn the_broker_sees_the_rate_that_was_asked_for() {
    for rate in [1_000_u64, 20_000, 100_000] {
        let bench = archive(rate * HELD, 100).await;
        let (topic, target) = (format!("paced-{rate}"), format!("{}/paced-{rate}", to()));
        let admin = Admin::new(&shared_kafka().bootstrap()).expect("it answers");
        admin.create_topic(&topic, 4, &[("message.timestamp.type", "LogAppendTime")]).expect("made");
        let (rate_text, job) = (format!("{rate}/s"), format!("paced-{rate}"));
        bench.must(&["run", "--topic", "orders", "--to", &target, "--rate", &rate_text, "--job", &job, "--yes"]);
        let times = appended(&topic);
        assert_eq!(times.len() as u64, rate * HELD);
        let seconds = (times[times.len() - 1] - times[0]) as f64 / 1e3;
        let (mean, worst) = ((times.len() - 1) as f64 / seconds, worst_second(&times));
        let pauses: Vec<(i64, i64)> =
            times.windows(2).map(|pair| (pair[0] - times[0], pair[1] - pair[0])).filter(|(_, pause)| *pause > 60).collect();
        println!("{rate}/s asked: mean {mean:.1}/s, worst second {worst}, silences (at ms, for ms): {pauses:?}");
        assert!((mean / rate as f64 - 1.0).abs() < 0.01, "{rate}/s asked, {mean:.1}/s on average");
        assert!(worst as f64 <= rate as f64 * 1.1, "{rate}/s asked, {worst} in one second");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measured run: make bars"]
async fn without_a_limit_it_is_fast_and_small() {
    let events = 800_000;
    let bench = archive(events, 1_100).await;
    let running =
        bench.program(&["run", "--topic", "orders", "--to", &to(), "--job", "fast", "--yes"]).start().expect("it starts");
    let ended = running.wait(Duration::from_secs(300)).expect("it ends");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let cpu = ended.cpu.as_secs_f64();
    println!(
        "{events} events of 1.1 KB: {cpu:.1} CPU s, {:.0} events per CPU s, {} MiB at most",
        events as f64 / cpu,
        ended.peak_rss >> 20
    );
    println!("{}", ended.stdout.lines().last().unwrap_or_default().chars().take(400).collect::<String>());
}
