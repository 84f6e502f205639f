//! The servers themselves, real ones: they start, stop, die and come back with their data; and the judge agrees with the bus.
//! What every other integration test leans on.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::Result;
use tapedeck_testbed::events::nasty::Nasty;
use tapedeck_testbed::{
    Admin, Generator, Isolation, KafkaOptions, KafkaServer, Loader, S3Server, Truth, Workload, read_all, shared_kafka,
};

#[test]
fn a_killed_broker_comes_back_with_its_events() -> Result<()> {
    let kafka = KafkaServer::start(KafkaOptions::default())?;
    let admin = Admin::new(&kafka.bootstrap())?;
    admin.create_topic("orders", 2, &[])?;
    let loader = Loader::new(&kafka.bootstrap(), &[])?;
    for (index, event) in (0..).zip(Generator::new(Workload::Orders, 1, 1_000).events()) {
        loader.send("orders", Some(index % 2), &event)?;
    }
    loader.finish()?;
    let before = Truth::from_bus(&kafka.bootstrap(), &["orders"])?;
    kafka.kill9()?;
    kafka.start_again()?;
    let after = Truth::from_bus(&kafka.bootstrap(), &["orders"])?;
    assert_eq!((before.len(), before.digest_sum()), (1_000, after.digest_sum()));
    kafka.stop()
}

#[test]
fn the_nasty_topic_arrives_whole_and_aborted_events_stay_hidden() -> Result<()> {
    let bootstrap = shared_kafka().bootstrap();
    let nasty = Nasty { plain: 2_000, transactional: 900, large: 4, ..Nasty::default() };
    let loaded = nasty.load(&bootstrap, "nasty")?;
    let truth = Truth::from_bus(&bootstrap, &["nasty"])?;
    assert_eq!(truth.len(), loaded.visible);
    let everything = read_all(&bootstrap, "nasty", Isolation::Uncommitted)?;
    let count: usize = everything.values().map(Vec::len).sum();
    assert_eq!(count as u64, loaded.visible + loaded.aborted);

    // Byte for byte what was made: the digests of what was sent, whatever partition and order.
    let made = (0..nasty.plain + nasty.transactional).map(|index| nasty.event(index).digest());
    let came = everything.values().flatten().map(|received| received.event.digest());
    assert_eq!(made.fold(0, u64::wrapping_add), came.fold(0, u64::wrapping_add));
    Ok(())
}

#[test]
fn topics_grow_lose_their_beginning_and_go() -> Result<()> {
    let bootstrap = shared_kafka().bootstrap();
    let admin = Admin::new(&bootstrap)?;
    admin.create_topic("growing", 1, &[])?;
    admin.add_partitions("growing", 3)?;
    let loader = Loader::new(&bootstrap, &[])?;
    for event in Generator::new(Workload::C, 1, 100).events() {
        loader.send("growing", Some(0), &event)?;
    }
    loader.finish()?;
    admin.delete_records("growing", 0, 40)?;
    assert_eq!(admin.watermarks("growing")?[&0], (40, 100));
    assert!(admin.committed("nobody", "growing")?.is_empty());
    admin.delete_topic("growing")?;
    assert_eq!(admin.partition_count("growing")?, 0);
    Ok(())
}

#[test]
fn a_killed_store_comes_back_with_its_objects() -> Result<()> {
    let store = S3Server::start()?;
    store.make_bucket("events")?;
    std::fs::write(store.bucket_dir("events").join("object"), "body")?;
    assert!(answers(&store));
    store.kill9()?;
    assert!(!answers(&store));
    store.start_again()?;
    assert!(answers(&store));
    store.stop()?;
    assert_eq!(std::fs::read(store.bucket_dir("events").join("object"))?, b"body");
    Ok(())
}

fn answers(store: &S3Server) -> bool {
    let address = store.endpoint().replace("http://", "");
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let mut answer = String::new();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1")
}
