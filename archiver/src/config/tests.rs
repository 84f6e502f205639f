use tapedeck_common::bus::Replayed;
use tapedeck_daemon::config::Layers;

use super::*;
use crate::maintain::choose::CompactPolicy;
use crate::maintain::{SweepPolicy, Work};

fn shaped(yaml: &str) -> RawConfig {
    Layers::new().text("test", yaml).load().expect("the shape is right").raw
}

fn checked(yaml_tail: &str) -> Result<Config, String> {
    let yaml = format!("archive: {{ url: file:///tmp/a }}\n{yaml_tail}");
    Config::check(shaped(&yaml), Timestamp::from_micros(0)).map_err(|error| error.to_string())
}

const SOURCE: &str = "sources: [{ name: main, kafka: { brokers: [b:9092], group: g, topics: [t] } }]";

#[test]
fn the_example_is_valid() {
    let config = Config::check(shaped(EXAMPLE), Timestamp::from_micros(0)).expect("values");
    assert!(config.warnings(None).is_empty());
}

#[test]
fn the_maintenance_of_the_example_is_valid_once_it_is_no_comment() {
    let (before, maintain) = EXAMPLE.split_once("\n# maintain:").expect("it shows maintenance");
    let text = format!("{before}\nmaintain:{}\n", maintain.replace("\n# ", "\n"));
    let config = Config::check(shaped(&text), Timestamp::from_micros(0)).expect("values");
    assert_eq!(config.maintain.duties.len(), 3);
    assert!(config.warnings(None).is_empty());
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let config = checked(SOURCE).expect("valid");
    assert_eq!(config.seal, SealPolicy { bytes_max: 128 << 20, age_max: Duration::from_secs(300) });
    assert_eq!((config.memory_budget, config.grace), (512 << 20, Duration::from_secs(25)));
    let kafka = config.sources[0].bus.kafka().expect("it is Kafka");
    assert_eq!((kafka.replayed, config.listen.to_string().as_str()), (Replayed::Skip, "127.0.0.1:9464"));
}

#[test]
fn bad_values_are_named_with_their_path() {
    let source = |kafka: &str| format!("sources: [{{ name: main, kafka: {{ {kafka} }} }}]");
    let cases = [
        ("sources: []".to_owned(), "sources: nothing to archive"),
        (format!("{SOURCE}\nseal: {{ max_bytes: 0 }}"), "seal.max_bytes: must be above zero"),
        (format!("{SOURCE}\nseal: {{ max_age: 0s }}"), "seal.max_age: must be above zero"),
        (format!("{SOURCE}\nmemory: {{ budget: 1MiB }}"), "memory.budget: must be at least 32MiB"),
        (format!("{SOURCE}\nadmin: {{ listen: here }}"), "admin.listen: `here` is no address:port"),
        (source("brokers: [], group: g, topics: [t]"), "sources[0].kafka.brokers: name at least one broker"),
        (source("brokers: [b], group: '', topics: [t]"), "sources[0].kafka.group: name the consumer group"),
        (source("brokers: [b], group: g, topics: ['^t']"), "sources[0].kafka.topics: ^t: a pattern must end with $"),
        (source("brokers: [b], group: g, topics: [t], client: { group.id: x }"), "sources[0].kafka.client.group.id: use `group`"),
        (
            source("brokers: [b], group: g, topics: [t], client: { group.instance.id: x }"),
            "sources[0].kafka.client.group.instance.id: use `group_instance_id`",
        ),
        (
            source("brokers: [b], group: g, topics: [t], group_protocol: consumer, client: { session.timeout.ms: '6000' }"),
            "sources[0].kafka.client.session.timeout.ms: with group_protocol consumer the broker sets it",
        ),
        (
            source("brokers: [b], group: g, topics: [t], group_instance_id: 'pod 0'"),
            "sources[0].kafka.group_instance_id: use letters",
        ),
        (
            source("brokers: [b], group: g, topics: [t], start: soon"),
            "sources[0].kafka.start: must be earliest, latest or a time",
        ),
    ];
    for (yaml, text) in cases {
        let error = checked(&yaml).expect_err(&yaml);
        assert!(error.contains(text), "{yaml}: {error}");
    }
}

#[test]
fn no_maintenance_is_done_unless_asked_for_and_each_kind_has_its_defaults() {
    let config = checked(SOURCE).expect("valid");
    assert_eq!((config.maintain.duties, config.maintain.memory), (vec![], 0));
    let config = checked(&format!("{SOURCE}\nmaintain: {{ rate: 1GiB/s, memory: 48MiB }}")).expect("valid");
    assert_eq!((config.maintain.duties.len(), config.maintain.memory), (0, 0), "a rate asks for nothing");
    let config = checked(&format!("{SOURCE}\nmaintain: {{ compact: {{}}, sweep: {{}}, expire: {{ keep: 90d, every: 2h }} }}"));
    let config = config.expect("valid");
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let wanted = vec![
        (Work::Compact(CompactPolicy::default()), hours(1)),
        (Work::Expire(hours(90 * 24)), hours(2)),
        (Work::Sweep(SweepPolicy::default()), hours(24)),
    ];
    assert_eq!((config.maintain.duties.as_slice(), config.maintain.memory), (wanted.as_slice(), 64 << 20));
    assert_eq!(config.maintain.rate, 16.0 * 1024.0 * 1024.0);
    assert!(config.warnings(None).is_empty(), "{:?}", config.warnings(None));
}

#[test]
fn bad_maintenance_is_refused_and_what_may_surprise_is_warned_of() {
    let refused = [
        ("compact: { every: 1s }", "maintain.compact.every: must be at least 10s"),
        ("compact: { small_below: 0 }", "maintain.compact.small_below: must be above zero"),
        ("compact: { max_size: 64MiB }", "maintain.compact.max_size: must not be below small_below"),
        ("expire: { keep: 0s }", "maintain.expire.keep: must be above zero"),
        ("sweep: {}, memory: 1MiB", "maintain.memory: must be at least 32MiB"),
        ("sweep: {}, memory: 500MiB", "maintain.memory: is taken from memory.budget"),
    ];
    for (block, text) in refused {
        let error = checked(&format!("{SOURCE}\nmaintain: {{ {block} }}")).expect_err(block);
        assert!(error.contains(text), "{block}: {error}");
    }
    let warned = [
        ("compact: {}", "nothing sweeps their files here"),
        ("sweep: { removed_after: 1h }", "maintain.sweep.removed_after is below 1d"),
        ("sweep: { orphans_after: 1h }", "maintain.sweep.orphans_after is below 1d"),
    ];
    for (block, text) in warned {
        let warnings = checked(&format!("{SOURCE}\nmaintain: {{ {block} }}")).expect(block).warnings(None);
        assert!(matches!(warnings.as_slice(), [one] if one.contains(text)), "{block}: {warnings:?}");
    }
}

#[test]
fn two_sources_are_never_one_static_member() {
    let sources = |second: &str| {
        let kafka = |name: &str, more: &str| {
            format!("{{ name: {name}, kafka: {{ brokers: [b], group: g, topics: [{name}], group_instance_id: {more} }} }}")
        };
        checked(&format!("sources: [{}, {}]", kafka("one", "pod-0"), kafka("two", second)))
    };
    assert!(sources("pod-0-two").is_ok());
    let error = sources("pod-0").expect_err("the group would take them for one member");
    assert!(error.contains("sources[1].kafka.group_instance_id: is that of an earlier source"), "{error}");
}

#[test]
fn what_may_surprise_is_warned_of() {
    let config = checked(&format!("{SOURCE}\nmemory: {{ budget: 512MiB }}")).expect("valid");
    assert_eq!(config.warnings(Some(600 << 20)).len(), 1);
    assert!(config.warnings(Some(2 << 30)).is_empty());
}

#[test]
fn where_the_archive_lies_reaches_the_store_as_it_is_written() {
    let raw = shaped("archive: { url: gs://bucket/prod, endpoint: https://h, ca_file: /etc/ca.pem }\nsources: []");
    let options = crate::wiring::store_options(&raw.archive);
    assert_eq!((options.url.as_str(), options.endpoint.as_deref()), ("gs://bucket/prod", Some("https://h")));
    assert_eq!((options.ca_file, options.region, options.path_style), (Some(PathBuf::from("/etc/ca.pem")), None, None));
}

#[test]
fn a_stream_is_a_source_and_what_cannot_work_is_named_with_its_path() {
    let rabbit = |more: &str| {
        checked(&format!(
            "sources: [{{ name: orders, rabbitmq: {{ hosts: [localhost], user: archiver, password: x, {more} }} }}]"
        ))
    };
    let config = rabbit("stream: orders").expect("valid");
    let BusSettings::Rabbit(settings) = &config.sources[0].bus else { panic!("it is RabbitMQ") };
    assert_eq!((settings.place.vhost.as_str(), settings.prefetch.events, settings.prefetch.bytes), ("/", 1_000, 128 << 20));
    assert!(config.sources[0].bus.selects("orders") && !config.sources[0].bus.selects("order"));
    assert!(config.warnings(None).is_empty());
    assert_eq!(rabbit("stream: orders, prefetch: { bytes: 300MiB }").expect("valid").warnings(None).len(), 1);
    let cases = [
        ("stream: ''", "sources[0].rabbitmq.stream: name the stream"),
        ("stream: s, start: soon", "sources[0].rabbitmq.start: must be earliest, latest or a time"),
        ("stream: s, prefetch: { events: 0 }", "sources[0].rabbitmq.prefetch.events: must be above zero"),
        ("stream: s, vhost: ''", "sources[0].rabbitmq.vhost: must have"),
        ("vhost: /", "sources[0].rabbitmq: name one of stream, queue"),
        ("stream: s, queue: q", "sources[0].rabbitmq: name one of stream, queue"),
        ("stream: s, delivery_limit: accepted", "sources[0].rabbitmq.delivery_limit: is of queues"),
        ("queue: q, on_gap: record", "sources[0].rabbitmq.on_gap: a queue has no positions"),
    ];
    for (more, text) in cases {
        let error = rabbit(more).expect_err(more);
        assert!(error.contains(text), "{more}: {error}");
    }
    let queue = rabbit("queue: jobs, delivery_limit: accepted").expect("valid");
    let BusSettings::Rabbit(settings) = &queue.sources[0].bus else { panic!("it is RabbitMQ") };
    assert_eq!((settings.inflow.name(), settings.prefetch.events), ("jobs", 65_535));
    let long = "sources: [{ name: j, rabbitmq: { hosts: [localhost], user: u, password: x, queue: q } }]\nseal: { max_age: 16m }";
    assert!(checked(long).expect_err("too long").contains("seal.max_age: must be at most 15m where a queue is read"));
    let hosts = |hosts: &str, user: &str| {
        let rabbit = format!("rabbitmq: {{ hosts: [{hosts}], user: {user}, password: x, stream: s }}");
        checked(&format!("sources: [{{ name: orders, {rabbit} }}]")).expect_err("refused")
    };
    assert!(hosts("'a:b'", "me").contains("sources[0].rabbitmq.hosts[0]: `a:b` is no host:port"));
    assert!(hosts("rabbit-1", "guest").contains("sources[0].rabbitmq.user: guest works on loopback only; make a user"));
    assert!(hosts("rabbit-1", "me").contains("sources[0].rabbitmq.hosts: the way to rabbit-1:5672 is not encrypted"));
    for both in
        ["", ", kafka: { brokers: [b], group: g, topics: [t] }, rabbitmq: { hosts: [h], user: u, password: p, stream: s }"]
    {
        let error = checked(&format!("sources: [{{ name: main{both} }}]")).expect_err("one bus");
        assert!(error.contains("sources[0]: name one bus: kafka or rabbitmq"), "{error}");
    }
}
