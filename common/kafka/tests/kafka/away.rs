//! A broker that goes away and comes back, and one that stays away.

use std::time::{Duration, Instant};

use tapedeck_common::bus::Consumer;
use tapedeck_testbed::{Admin, KafkaOptions, KafkaServer, Loader};

use crate::support::{Member, SharedArchive, event, settings};

fn produce(bootstrap: &str, topic: &str, numbers: std::ops::Range<u64>) {
    let loader = Loader::new(bootstrap, &[]).expect("a producer");
    for number in numbers {
        loader.send(topic, Some(0), &event(&number.to_string())).expect("sent");
    }
    loader.finish().expect("delivered");
}

/// The same broker for both halves, since starting one takes seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_comes_back_is_read_on_and_one_that_stays_away_does_not_hold_up_the_end() {
    let broker = KafkaServer::start(KafkaOptions::default()).expect("a broker of our own");
    let bootstrap = broker.bootstrap();
    Admin::new(&bootstrap).expect("an admin client").create_topic("t", 1, &[]).expect("a topic");
    produce(&bootstrap, "t", 0..1_000);
    let mut settings = settings("away", &["t"]);
    settings.cluster.brokers = vec![bootstrap.clone()];
    let archive = SharedArchive::default();
    let mut member = Member::join(settings, &archive);
    member.until("the first half is read", |member| member.archive.rows() == 1_000).await;

    broker.kill9().expect("killed");
    broker.start_again().expect("started again");
    produce(&bootstrap, "t", 1_000..2_000);
    member.until("the second half is read", |member| member.archive.rows() == 2_000).await;
    archive.assert_holds_once((0..2_000).map(|number| number.to_string()));

    broker.kill9().expect("killed");
    let began = Instant::now();
    Box::new(member.consumer).close().await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}
