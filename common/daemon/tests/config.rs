//! What an operator meets when a configuration is wrong, and what is merged when it is right.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tapedeck_daemon::config::{ConfigError, Layers, Loaded, schema};
use tapedeck_daemon::units::{ByteSize, HumanDuration};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Raw {
    archive: Archive,
    #[serde(default)]
    sources: Vec<Source>,
    #[serde(default)]
    seal: Seal,
    mode: Option<Mode>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Archive {
    url: String,
    path_style: Option<bool>,
    access_key: Option<String>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Source {
    name: String,
    #[serde(flatten)]
    bus: Bus,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Bus {
    Kafka(Kafka),
    Memory(BTreeMap<String, u16>),
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Kafka {
    brokers: Vec<String>,
    group: String,
    #[serde(default)]
    client: BTreeMap<String, String>,
}

#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Seal {
    max_bytes: Option<ByteSize>,
    max_age: Option<HumanDuration>,
    parts: Option<u16>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Mode {
    Skip,
    Archive,
}

const GOOD: &str = "\
archive:
  url: s3://events/prod
sources:
  - name: main
    kafka:
      brokers: [k1:9092, k2:9092]
      group: 007
      client: { security.protocol: sasl_ssl, session.timeout.ms: 6000, sasl.password: hunter2 }
seal: { max_bytes: 128MiB, max_age: 5m }
mode: skip
";

fn load_with(text: &str, environment: &[(&str, &str)], flags: &[(&str, &str, &str)]) -> Result<Loaded<Raw>, ConfigError> {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("c.yaml");
    std::fs::write(&path, text).expect("file");
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let layers = Layers::new().file(path).environment("TAPEDECK__", environment);
    flags.iter().fold(layers, |layers, (path, flag, value)| layers.flag(path, flag, value)).load()
}

fn load(text: &str, environment: &[(&str, &str)]) -> Result<Loaded<Raw>, ConfigError> {
    load_with(text, environment, &[])
}

fn kafka(raw: &Raw, source: usize) -> &Kafka {
    match &raw.sources[source].bus {
        Bus::Kafka(kafka) => kafka,
        Bus::Memory(_) => panic!("not kafka"),
    }
}

#[test]
fn a_good_file_is_read_as_it_was_meant() {
    let loaded = load(GOOD, &[]).unwrap_or_else(|error| panic!("{error}"));
    let raw = &loaded.raw;
    assert_eq!(raw.archive.url, "s3://events/prod");
    assert_eq!(kafka(raw, 0).group, "007", "text stays as it was written");
    assert_eq!(kafka(raw, 0).client["session.timeout.ms"], "6000");
    assert_eq!(raw.seal.max_bytes.map(ByteSize::bytes), Some(128 << 20));
    assert_eq!(raw.mode, Some(Mode::Skip));
    assert!(loaded.origin("sources[0].kafka.client.\"sasl.password\"").ends_with("c.yaml:8"));
    assert_eq!(loaded.origin("seal.parts"), "default");
}

#[test]
fn the_environment_lies_over_the_file_and_flags_over_both() {
    let environment = [
        ("TAPEDECK__SEAL__MAX_AGE", "1m"),
        ("TAPEDECK__ARCHIVE__URL", "file:///a#b: c"),
        ("TAPEDECK__ARCHIVE__PATH_STYLE", "true"),
        ("TAPEDECK__SOURCES__0__KAFKA__GROUP", "42"),
        ("TAPEDECK__SOURCES__0__KAFKA__BROKERS", "[x:1, y:2]"),
        ("TAPEDECK__SOURCES__0__KAFKA__CLIENT__SECURITY_PROTOCOL", "ssl"),
        ("TAPEDECK__SOURCES__1__NAME", "second"),
        ("TAPEDECK__SOURCES__1__KAFKA__BROKERS__0", "z:3"),
        ("TAPEDECK__SOURCES__1__KAFKA__GROUP", "\"quoted\""),
        ("TAPEDECK_OTHER", "ignored"),
    ];
    let flags = [("seal.max_bytes", "--max-bytes", "1GiB"), ("archive.path_style", "--path-style", "false")];
    let loaded = load_with(GOOD, &environment, &flags).unwrap_or_else(|error| panic!("{error}"));
    let raw = &loaded.raw;
    assert_eq!(raw.archive.url, "file:///a#b: c", "a scalar is taken as it stands");
    assert_eq!(raw.archive.path_style, Some(false));
    assert_eq!(kafka(raw, 0).group, "42");
    assert_eq!(kafka(raw, 0).brokers, ["x:1", "y:2"]);
    assert_eq!(kafka(raw, 0).client["security.protocol"], "ssl", "the key in the file is the one that is meant");
    assert_eq!(kafka(raw, 1).group, "quoted");
    assert_eq!(kafka(raw, 1).brokers, ["z:3"]);
    assert_eq!(raw.seal.max_bytes.map(ByteSize::bytes), Some(1 << 30));
    assert_eq!(loaded.origin("seal.max_age"), "TAPEDECK__SEAL__MAX_AGE");
    assert_eq!(loaded.origin("seal.max_bytes"), "--max-bytes");
    assert_eq!(loaded.origin("sources[1].name"), "TAPEDECK__SOURCES__1__NAME");
}

#[test]
fn eleven_elements_arrive_in_the_order_of_their_numbers() {
    let mut environment = vec![("TAPEDECK__ARCHIVE__URL".to_owned(), "file:///a".to_owned())];
    for index in 0..11 {
        environment.push((format!("TAPEDECK__SOURCES__{index}__NAME"), format!("s{index}")));
        environment.push((format!("TAPEDECK__SOURCES__{index}__MEMORY__A"), "1".to_owned()));
    }
    let loaded = Layers::new().environment("TAPEDECK__", environment).load::<Raw>().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(loaded.raw.sources[10].name, "s10");
}

/// A file, variables, and what the error must say.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);

#[test]
fn errors_name_the_place_the_path_and_the_mend() {
    let cases: &[Case<'_>] = &[
        (
            "archive: { url: a }\nseal:\n  max_agee: 5m\n",
            &[],
            &["c.yaml:3: ", "unknown key `seal.max_agee`", "did you mean `max_age`?"],
        ),
        ("archive: { url: a }\nmax_age: 5m\n", &[], &["c.yaml:2: ", "unknown key `max_age`", "it belongs at `seal.max_age`"]),
        (
            "archive: { url: a, colour: red }\n",
            &[],
            &["unknown key `archive.colour`", "known here: `access_key`, `path_style`, `url`"],
        ),
        ("archive: { ulr: a }\n", &[], &["unknown key `archive.ulr`, did you mean `url`?", "`archive`: key `url` is missing"]),
        (
            "archive: { url: a }\nseal:\n  parts: many\n",
            &[],
            &["c.yaml:3: ", "`seal.parts`", "expected a whole number", "found the text `many`"],
        ),
        ("archive: { url: a }\nseal:\n  parts: 70000\n", &[], &["c.yaml:3: ", "expected a whole number", "`70000`"]),
        (
            "archive: { url: a }\nseal:\n  max_age: 5\n",
            &[],
            &["c.yaml:3: ", "`seal.max_age`", "`5` is not a duration with a unit", "`1h30m`"],
        ),
        ("archive: { url: a }\nseal:\n  max_bytes: 12 parsecs\n", &[], &["c.yaml:3: ", "`12 parsecs` is not a size", "`128MiB`"]),
        ("archive: { url: a }\nseal: [1]\n", &[], &["c.yaml:2: ", "`seal`: expected a map of keys, found a list"]),
        ("archive: nowhere\n", &[], &["c.yaml:1: ", "`archive`: expected a map of keys, found the text `nowhere`"]),
        ("archive: { url: [a] }\n", &[], &["`archive.url`: expected a string, found a list"]),
        (
            "archive: { url: a, path_style: yes }\n",
            &[],
            &["`archive.path_style`: expected `true` or `false`, found the text `yes`"],
        ),
        (
            "archive: { url: a }\nmode: skipp\n",
            &[],
            &["c.yaml:2: ", "`mode`", "`skipp` is not known here", "did you mean `skip`?"],
        ),
        (
            "archive: { url: a }\nsources:\n  - name: m\n    kafak: {}\n",
            &[],
            &["c.yaml:4: ", "unknown key `sources[0].kafak`", "did you mean `kafka`?"],
        ),
        (
            "archive: { url: a }\nsources:\n  - name: m\n    kafka:\n      groupp: g\n",
            &[],
            &["c.yaml:5: ", "`sources[0].kafka.groupp`", "`group`"],
        ),
        ("archive: { url: a }\narchive: { url: b }\n", &[], &["c.yaml:2: ", "key `archive` is written twice", "c.yaml:1"]),
        ("- a\n", &[], &["c.yaml:1: ", "a configuration is a map of keys"]),
        ("", &[], &["key `archive` is missing"]),
        (
            "archive: { url: a }\n",
            &[("TAPEDECK__SEAL__MAX_AGE", "soon")],
            &["TAPEDECK__SEAL__MAX_AGE: ", "`soon` is not a duration"],
        ),
        (
            "archive: { url: a }\n",
            &[("TAPEDECK__SEAL__MAX_AGEE", "5m")],
            &["TAPEDECK__SEAL__MAX_AGEE: ", "unknown key `seal.max_agee`, did you mean `max_age`?"],
        ),
        ("archive: { url: a }\n", &[("TAPEDECK__SEAL___MAX_AGE", "5m")], &["TAPEDECK__SEAL___MAX_AGE: "]),
        (
            "archive: { url: a }\n",
            &[("TAPEDECK__SOURCES__FIRST__NAME", "x")],
            &["TAPEDECK__SOURCES__FIRST__NAME: ", "`sources` is a list"],
        ),
        (
            "archive: { url: a }\n",
            &[("TAPEDECK__SOURCES__3__NAME", "x")],
            &["TAPEDECK__SOURCES__3__NAME: ", "`sources` has 0 elements"],
        ),
        ("archive:\n  url: ${env:NOT_SET}\n", &[], &["c.yaml:2: ", "variable `NOT_SET` is not set"]),
        ("archive:\n  url: ${file:/nowhere/at/all}\n", &[], &["c.yaml:2: ", "file `/nowhere/at/all` cannot be read"]),
        ("archive:\n  url: s3://${env:BUCKET}/x\n", &[("BUCKET", "b")], &["c.yaml:2: ", "can only stand for a whole value"]),
        ("archive:\n  url: ${vault:x}\n", &[], &["c.yaml:2: ", "`${vault:...}` is not known"]),
        ("archive: { url: a }\nseal:\n  parts: ${env:N}\n", &[("N", "x")], &["c.yaml:3 (${env:N}): ", "expected a whole number"]),
    ];
    for (text, environment, expected) in cases {
        let error = load(text, environment).expect_err(text).to_string();
        for part in *expected {
            assert!(error.contains(part), "for {text:?} {environment:?} expected {part:?} in:\n{error}");
        }
    }
}

#[test]
fn all_unknown_keys_are_told_at_once() {
    let error = load("archive: { url: a, a1: 1 }\nb2: 2\n", &[("TAPEDECK__C3", "3")]).expect_err("three slips").to_string();
    assert_eq!(error.lines().count(), 3, "{error}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Layers::new().file("/nowhere/c.yaml").load::<Raw>().expect_err("no file").to_string();
    assert!(error.contains("configuration file `/nowhere/c.yaml` cannot be read"), "{error}");
}

#[test]
fn text_that_the_program_carries_is_read_like_a_file() {
    let loaded = Layers::new().text("example", GOOD).load::<Raw>().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(loaded.origin("seal.max_age"), "example:9");
}

#[test]
fn whole_values_are_interpolated_after_parsing() {
    let folder = tempfile::tempdir().expect("folder");
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "pass: word # not a comment\n").expect("file");
    let text = format!(
        "archive:\n  url: ${{env:URL}}\n  access_key: ${{file:{}}}\nseal: {{ parts: \"${{env:PARTS}}\" }}\nsources:\n- name: $${{env:URL}}\n  memory: {{}}\n",
        secret.display()
    );
    let loaded = load(&text, &[("URL", "s3://b: [c"), ("PARTS", "7")]).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(loaded.raw.archive.url, "s3://b: [c");
    assert_eq!(loaded.raw.archive.access_key.as_deref(), Some("pass: word # not a comment"));
    assert_eq!(loaded.raw.seal.parts, Some(7));
    assert_eq!(loaded.raw.sources[0].name, "${env:URL}");
    assert!(loaded.origin("archive.url").ends_with("c.yaml:2 (${env:URL})"));
}

#[test]
fn secrets_are_never_shown() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("any");
    std::fs::write(&file, "canary-in-a-file").expect("file");
    let text = format!(
        "archive: {{ url: \"s3://me:canary-in-a-url@host/x\", access_key: canary-access }}\nsources:\n- name: ${{file:{}}}\n  \
         kafka: {{ brokers: [a], group: g, client: {{ sasl.password: canary-sasl }} }}\n",
        file.display()
    );
    let loaded = load(&text, &[]).unwrap_or_else(|error| panic!("{error}"));
    let printed = loaded.print(&loaded.raw);
    assert!(!printed.contains("canary"), "{printed}");
    assert_eq!(printed.matches("<hidden>").count(), 4, "{printed}");
    assert!(!format!("{loaded:?}").contains("canary"));

    // Also not when they are the error.
    let wrong = format!("archive: {{ url: a, access_key: [canary] }}\nseal: {{ max_age: \"${{file:{}}}\" }}\n", file.display());
    let error = load(&wrong, &[]).expect_err("wrong").to_string();
    assert!(!error.contains("canary"), "{error}");
    let wrong = format!("archive: {{ url: a }}\nseal: {{ max_age: \"${{file:{}}}\" }}\n", file.display());
    let error = load(&wrong, &[]).expect_err("wrong").to_string();
    assert!(error.contains("`seal.max_age`") && error.contains("${file:") && !error.contains("canary"), "{error}");
}

#[test]
fn what_is_printed_has_origins_and_can_be_read_back() {
    let loaded = load(GOOD, &[("TAPEDECK__SEAL__PARTS", "3")]).unwrap_or_else(|error| panic!("{error}"));
    let printed = loaded.print(&loaded.raw);
    for part in [
        "url: s3://events/prod",
        "parts: 3",
        "# TAPEDECK__SEAL__PARTS",
        "c.yaml:2",
        "group: \"007\"",
        "path_style: null",
        "# default",
    ] {
        assert!(printed.contains(part), "{part} in:\n{printed}");
    }
    let again = load(&printed, &[]).unwrap_or_else(|error| panic!("{error}\n{printed}"));
    assert_eq!(again.raw.seal.max_age, loaded.raw.seal.max_age);
    assert_eq!(kafka(&again.raw, 0).brokers, kafka(&loaded.raw, 0).brokers);
}

#[test]
fn checks_of_the_program_point_at_the_nearest_place() {
    let loaded = load(GOOD, &[]).unwrap_or_else(|error| panic!("{error}"));
    let error = loaded.refuse("seal.max_age", "too long").and(loaded.refuse("seal.parts", "needed")).to_string();
    let lines: Vec<_> = error.lines().collect();
    assert!(lines[0].ends_with("c.yaml:9: `seal.max_age`: too long"), "{error}");
    assert!(lines[1].ends_with("c.yaml:9: `seal.parts`: needed"), "{error}");
}

#[test]
fn the_schema_closes_every_struct() {
    let schema = schema::<Raw>();
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["$defs"]["Seal"]["additionalProperties"], false);
    assert_ne!(schema["$defs"]["Kafka"]["properties"]["client"]["additionalProperties"], false);
}
