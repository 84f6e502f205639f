//! The real RabbitMQ of the tests: it takes and gives events, dies and comes back with them, and is managed; and the reader sees
//! what the loader sent. `make compat` runs this on older brokers too.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tapedeck_testbed::events::nasty_amqp::NastyAmqp;
use tapedeck_testbed::rabbitmq::{
    Depth, QueueKind, RabbitAdmin, RabbitEvent, RabbitLoader, RabbitOptions, RabbitServer, RawEvent, has_rabbitmq, publish_raw,
    read_queue, read_stream, read_stream_while, shared_rabbitmq,
};
use tapedeck_testbed::wait_until;

const LIMIT: Duration = Duration::from_secs(30);

fn load(server: &RabbitServer, queue: &str, count: u64) -> Result<()> {
    let mut loader = RabbitLoader::new(&server.uri())?;
    for number in 0..count {
        loader.send(RabbitEvent::to_queue(queue, number.to_string()))?;
    }
    loader.flush()?;
    ensure!(loader.confirmed() == count);
    loader.finish()
}

fn numbers(events: impl IntoIterator<Item = RabbitEvent>) -> Vec<u64> {
    events.into_iter().map(|event| String::from_utf8_lossy(&event.body).parse().expect("a number")).collect()
}

fn wait_for_depth(admin: &RabbitAdmin, queue: &str, wanted: Depth) -> Result<()> {
    wait_until(&format!("queue {queue} with {wanted:?}"), LIMIT, || Ok(admin.depth(queue)? == wanted))
}

#[test]
fn the_broker_is_that_of_the_suite_asked_for() -> Result<()> {
    if !has_rabbitmq() {
        return Ok(());
    }
    let version = shared_rabbitmq().admin().version()?;
    println!("RabbitMQ {version}");
    match std::env::var("RABBITMQ_SUITE").as_deref() {
        Ok("trixie") => ensure!(version.starts_with("4.0."), "Debian trixie has {version}"),
        Ok("bookworm") => ensure!(version.starts_with("3.10."), "Debian bookworm has {version}"),
        _ => {}
    }
    Ok(())
}

#[test]
fn a_hundred_thousand_events_lie_in_a_stream_in_the_order_in_which_they_were_sent() -> Result<()> {
    if !has_rabbitmq() {
        return Ok(());
    }
    let server = shared_rabbitmq();
    server.admin().declare("ordered", QueueKind::Stream, json!({}))?;
    load(server, "ordered", 100_000)?;
    let events = read_stream(&server.uri(), "ordered", 0, 100_000)?;
    assert!(events.iter().map(|(offset, _)| *offset).eq(0..100_000));
    assert!(numbers(events.into_iter().map(|(_, event)| event)).into_iter().eq(0..100_000));

    let middle = read_stream(&server.uri(), "ordered", 70_001, 70_004)?;
    assert_eq!(middle.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), [70_001, 70_002, 70_003]);
    Ok(())
}

#[test]
fn a_killed_rabbitmq_comes_back_with_its_stream_and_its_queues() -> Result<()> {
    if !has_rabbitmq() {
        return Ok(());
    }
    let server = RabbitServer::start(RabbitOptions::default())?;
    let admin = server.admin();
    for (queue, kind) in [("log", QueueKind::Stream), ("quorum", QueueKind::Quorum), ("classic", QueueKind::Classic)] {
        admin.declare(queue, kind, json!({}))?;
    }
    load(&server, "log", 5_000)?;
    load(&server, "quorum", 5_000)?;
    server.kill9()?;
    assert!(RabbitLoader::new(&server.uri()).is_err());
    server.start_again()?;
    // The end of the stream is where the next event lands.
    wait_until("the stream's leader", LIMIT, || Ok(load(&server, "log", 1).is_ok()))?;
    let mut seen = Vec::new();
    read_stream_while(&server.uri(), "log", 0, |_, event| {
        let last = seen.len() == 5_000;
        seen.push(event);
        Ok(!last)
    })?;
    assert!(numbers(seen).into_iter().eq((0..5_000).chain([0])));
    let taken = read_queue(&server.uri(), "quorum")?;
    assert!(numbers(taken.into_iter().map(|taken| taken.event)).into_iter().eq(0..5_000));
    assert!(admin.queue("classic")?.is_some());
    server.stop()?;
    server.start_again()
}

#[test]
fn two_brokers_run_side_by_side_and_rabbitmqctl_reaches_each() -> Result<()> {
    if !has_rabbitmq() {
        return Ok(());
    }
    let settings = vec![("vm_memory_high_watermark.absolute".to_owned(), "600MB".to_owned())];
    let (one, two) = (shared_rabbitmq(), RabbitServer::start(RabbitOptions { settings })?);
    one.admin().declare("only-here", QueueKind::Classic, json!({}))?;
    load(one, "only-here", 10)?;
    assert!(two.admin().queue("only-here")?.is_none());
    assert!(one.ctl(&["list_queues", "-q", "name"])?.lines().any(|name| name == "only-here"));
    assert!(!two.ctl(&["list_queues", "-q", "name"])?.contains("only-here"));
    // The setting that was given wins over ours of 1 GB.
    let limit = two.ctl(&["eval", "vm_memory_monitor:get_memory_limit()."])?;
    assert_eq!(limit.trim(), "600000000");
    // Now all of its memory is too much, until it is told otherwise.
    two.ctl(&["set_vm_memory_high_watermark", "0.0001"])?;
    wait_until("a memory alarm", LIMIT, || Ok(two.ctl(&["eval", "rabbit_alarm:get_alarms()."])?.contains("memory")))?;
    Ok(())
}

#[test]
fn exchanges_policies_users_and_vhosts_are_managed() -> Result<()> {
    if !has_rabbitmq() {
        return Ok(());
    }
    let server = shared_rabbitmq();
    let admin = server.admin().in_vhost("a/b %")?;
    admin.declare_exchange("shop", "topic", json!({}))?;
    admin.declare("clicks", QueueKind::Quorum, json!({"x-max-length": 100}))?;
    admin.bind("shop", "clicks", "click.#")?;
    admin.set_policy("short", "^clicks$", json!({"message-ttl": 3_600_000}))?;
    admin.make_user("archiver", "secret")?;
    admin.permit("archiver", "^$", "^shop$", "^clicks$")?;
    let uri = format!("amqp://archiver:secret@{}/a%2Fb%20%25", server.amqp());
    let mut loader = RabbitLoader::new(&uri)?;
    loader.send(RabbitEvent { exchange: "shop".to_owned(), ..RabbitEvent::to_queue("click.red", "1") })?;
    loader.flush()?;
    let unwanted = RabbitEvent { exchange: "shop".to_owned(), ..RabbitEvent::to_queue("order.red", "2") };
    let error = loader.send(unwanted).and_then(|()| loader.flush()).expect_err("nobody wants it");
    assert!(format!("{error:#}").contains("order.red"), "{error:#}");

    let queue = admin.queue("clicks")?.unwrap_or_default();
    assert_eq!((&queue["type"], &queue["durable"]), (&json!("quorum"), &json!(true)));
    wait_until("the policy", LIMIT, || {
        Ok(admin.queue("clicks")?.unwrap_or_default()["effective_policy_definition"]["message-ttl"] == 3_600_000)
    })?;
    let taken = read_queue(&uri, "clicks")?;
    assert_eq!(taken.iter().map(|taken| taken.event.routing_key.as_str()).collect::<Vec<_>>(), ["click.red"]);
    admin.delete("clicks")?;
    assert!(admin.queue("clicks")?.is_none() && admin.delete("clicks").is_err());
    admin.delete_exchange("shop")
}

#[test]
fn depth_follows_a_queue_and_connections_are_closed_by_name() -> Result<()> {
    if !has_rabbitmq() {
        return Ok(());
    }
    let server = RabbitServer::start(RabbitOptions::default())?;
    let admin = server.admin();
    for (queue, kind) in [("jobs", QueueKind::Quorum), ("chores", QueueKind::Classic)] {
        admin.declare(queue, kind, json!({}))?;
        assert_eq!(admin.depth(queue)?, Depth { ready: 0, unacked: 0 });
        load(&server, queue, 1_000)?;
        wait_for_depth(&admin, queue, Depth { ready: 1_000, unacked: 0 })?;
        assert_eq!(read_queue(&server.uri(), queue)?.len(), 1_000);
        wait_for_depth(&admin, queue, Depth { ready: 0, unacked: 0 })?;
    }
    let mut loader = RabbitLoader::new(&server.uri())?;
    assert_eq!(admin.close_connections("tapedeck testbed loader")?, 1);
    let sends = (0..1_000).map(|number| loader.send(RabbitEvent::to_queue("jobs", number.to_string())));
    let sent: Result<Vec<()>> = sends.collect();
    assert!(sent.and_then(|_| loader.flush()).is_err());

    assert!(!admin.cluster_name()?.is_empty());
    admin.rename_cluster("another")?;
    assert_eq!(admin.cluster_name()?, "another");
    Ok(())
}

#[test]
fn certificates_and_ports_are_there() -> Result<()> {
    if !has_rabbitmq() {
        return Ok(());
    }
    let server = shared_rabbitmq();
    let (certificate, key) = server.client_certificate();
    for file in [server.ca_file(), certificate, key] {
        assert!(file.exists(), "{}", file.display());
    }
    let addresses = [server.amqp(), server.stream(), server.management(), server.amqps(), server.stream_tls()];
    for address in addresses {
        std::net::TcpStream::connect(address)?;
    }
    assert_eq!(BTreeSet::from(addresses).len(), addresses.len());
    Ok(())
}

#[test]
fn nasty_events_come_out_of_queues_as_they_went_in() -> Result<()> {
    if !has_rabbitmq() {
        return Ok(());
    }
    let server = shared_rabbitmq();
    let nasty = NastyAmqp { count: 2_000, large: 3, ..NastyAmqp::default() };
    let queues = [("nasty-classic", QueueKind::Classic), ("nasty-quorum", QueueKind::Quorum)];
    for (queue, kind) in queues {
        server.admin().declare(queue, kind, json!({}))?;
    }
    nasty.load(server, &queues.map(|(queue, _)| queue))?;
    let made: Vec<u64> = (0..nasty.count).map(|index| nasty.event(index).digest()).collect();
    let came =
        |queue| -> Result<Vec<u64>> { Ok(read_queue(&server.uri(), queue)?.iter().map(|taken| taken.event.digest()).collect()) };
    let classic = came("nasty-classic")?;
    let changed = made.iter().zip(&classic).position(|(made, came)| made != came);
    assert_eq!((changed, classic.len()), (None, made.len()));
    // A quorum queue hands over what has a high priority first.
    let sorted = |mut digests: Vec<u64>| {
        digests.sort_unstable();
        digests
    };
    assert!(sorted(came("nasty-quorum")?) == sorted(made));
    Ok(())
}

/// A stream holds AMQP 1.0, so some properties and headers come back changed or not at all.
#[test]
fn nasty_events_come_out_of_streams_with_their_bodies_and_keys() -> Result<()> {
    if !has_rabbitmq() {
        return Ok(());
    }
    let server = shared_rabbitmq();
    let exchange = "nasty-for-streams".to_owned();
    let nasty = NastyAmqp { exchange, count: 2_000, large: 3, decimals: false, ..NastyAmqp::default() };
    server.admin().declare("nasty-stream", QueueKind::Stream, json!({}))?;
    nasty.load(server, &["nasty-stream"])?;
    let events = read_stream(&server.uri(), "nasty-stream", 0, nasty.count)?;
    assert_eq!(events.len() as u64, nasty.count);
    for (offset, event) in events {
        let made = nasty.event(offset);
        assert_eq!((event.body, event.exchange, event.routing_key), (made.body, made.exchange, made.routing_key), "{offset}");
    }
    Ok(())
}

/// Why the archiver must look at names before its client does.
#[test]
fn names_that_are_no_text_are_taken_by_the_broker_and_kill_the_reader() -> Result<()> {
    if !has_rabbitmq() {
        return Ok(());
    }
    let server = shared_rabbitmq();
    let admin = server.admin();
    admin.declare_exchange("poison", "fanout", json!({}))?;
    let poisons = [(&b"key \xff"[..], &b"name"[..]), (b"key", b"name \xff")];
    for (number, (key, name)) in poisons.into_iter().enumerate() {
        let queue = format!("poisoned-{number}");
        admin.declare(&queue, QueueKind::Classic, json!({}))?;
        admin.bind("poison", &queue, "")?;
        let exchange = b"poison".to_vec();
        publish_raw(server.amqp(), &RawEvent { exchange, routing_key: key.into(), header: name.into(), body: b"x".into() })?;
        let error = read_queue(&server.uri(), &queue).expect_err("the client wants text");
        assert!(format!("{error:#}").to_lowercase().contains("pars"), "{error:#}");
        admin.delete(&queue)?;
    }
    // The same by hand, with text, is an event like any other.
    admin.declare("healthy", QueueKind::Classic, json!({}))?;
    let event = RawEvent { routing_key: b"healthy".into(), header: b"name".into(), body: b"x".into(), ..RawEvent::default() };
    publish_raw(server.amqp(), &event)?;
    let taken = read_queue(&server.uri(), "healthy")?;
    let headers = taken[0].event.properties.headers().as_ref().map(|table| table.contains_key("name"));
    assert_eq!((taken.len(), headers), (1, Some(true)));
    Ok(())
}
