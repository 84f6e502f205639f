//! Whatever is wrong gets a clear text that names the thing and the mend, the right exit code, and nothing is lost.

mod support;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use support::{PATIENCE, Site};
use tapedeck_testbed::{
    Admin, Ended, Generator, Loader, Manners, PlainS3, S3Server, Workload, shared_kafka, shared_s3, wait_until,
};

/// The exit code, and every part that must stand in what the program said.
fn assert_refused(name: &str, ended: &Ended, code: i32, parts: &[&str]) {
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert_eq!(ended.code, Some(code), "{name}: {said}");
    for part in parts {
        assert!(said.contains(part), "{name}: `{part}` is not in: {said}");
    }
}

const SOURCE: &str = "sources: [{ name: main, kafka: { brokers: ['127.0.0.1:1'], group: g, topics: [orders] } }]\n";

#[test]
fn a_bad_configuration_is_refused_with_the_line_and_the_mend() -> Result<()> {
    let site = Site::on_disk()?;
    let archive = "archive: { url: 'file:///tmp/a' }\n";
    let cases: [(&str, String, &[&str]); 8] = [
        ("unknown key", format!("{archive}{SOURCE}seal: {{ max_agee: 1m }}\n"), &["bad.yaml:3", "max_agee", "max_age"]),
        ("misspelt section", format!("{archive}{SOURCE}memmory: {{ budget: 1GiB }}\n"), &["bad.yaml:3", "memmory", "memory"]),
        ("no size", format!("{archive}{SOURCE}seal: {{ max_bytes: many }}\n"), &["bad.yaml:3", "max_bytes", "many"]),
        ("no time", format!("{archive}{}", SOURCE.replace("topics", "start: soon, topics")), &["bad.yaml:2", "start", "soon"]),
        ("nothing to do", format!("{archive}sources: []\n"), &["bad.yaml:2", "sources", "add at least one"]),
        (
            "a promise broken",
            format!("{archive}{}", SOURCE.replace("topics", "client: { isolation.level: read_uncommitted }, topics")),
            &["bad.yaml:2", "isolation.level", "aborted transactions"],
        ),
        ("half a pattern", format!("{archive}{}", SOURCE.replace("[orders]", "['^orders']")), &["bad.yaml:2", "must end with $"]),
        ("no archive", SOURCE.to_owned(), &["archive"]),
    ];
    for (name, yaml, parts) in cases {
        let path = site.file("bad.yaml");
        std::fs::write(&path, yaml)?;
        let ended = site.program(&["check", "-c", &path.display().to_string()]).run(PATIENCE)?;
        assert_refused(name, &ended, 78, parts);
    }
    let ended = site.program(&["check", "-c", "/nowhere/archiver.yaml"]).run(PATIENCE)?;
    assert_refused("no file", &ended, 78, &["/nowhere/archiver.yaml"]);
    let ended = site.program(&["archive"]).run(PATIENCE)?;
    assert_refused("no such command", &ended, 64, &["archive"]);
    Ok(())
}

#[test]
fn a_bus_that_is_away_or_lacks_a_topic_is_named() -> Result<()> {
    let away = Site::on_disk()?.source("main", "127.0.0.1:1", "g", &["orders"], "");
    let config = away.config()?.display().to_string();
    let ended = away.program(&["check", "--online", "-c", &config]).run(PATIENCE)?;
    assert_refused("broker away", &ended, 69, &["127.0.0.1:1"]);
    let lacking = Site::on_disk()?.source("main", &shared_kafka().bootstrap(), "g", &["no-such-topic"], "");
    let config = lacking.config()?.display().to_string();
    let ended = lacking.program(&["check", "--online", "-c", &config]).run(PATIENCE)?;
    assert_refused("topic missing", &ended, 78, &["no-such-topic", "does not exist", "create"]);
    Ok(())
}

#[test]
fn a_store_that_cannot_keep_the_promises_is_refused_at_start() -> Result<()> {
    let kafka = shared_kafka().bootstrap();
    let lying = PlainS3::start(Manners::IgnoresConditions)?;
    let site = Site::on_s3(shared_s3(), "refused")?.source("main", &kafka, "refused", &["t"], "");
    let config = std::fs::read_to_string(site.config()?)?.replace(&shared_s3().endpoint(), &lying.endpoint());
    let path = site.file("lying.yaml");
    std::fs::write(&path, config)?;
    let ended = site.program(&["run", "-c", &path.display().to_string()]).run(PATIENCE)?;
    assert_refused("conditions ignored", &ended, 78, &["s3://refused/prod", "only if it is absent"]);
    let guest = [("AWS_ACCESS_KEY_ID", S3Server::GUEST_ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", S3Server::GUEST_SECRET_KEY)];
    let config = site.config()?.display().to_string();
    let ended = site.program(&["run", "-c", &config]).envs(guest).run(PATIENCE)?;
    assert_refused("no rights", &ended, 78, &["the store s3://refused/prod refuses to", "403"]);
    Ok(())
}

#[test]
fn an_archive_that_is_not_there_is_not_made_by_looking() -> Result<()> {
    let site = Site::on_disk()?;
    for command in ["status", "verify"] {
        let ended = site.about(command, &[]).run(PATIENCE)?;
        assert_refused(command, &ended, 78, &["there is no archive at", site.url()]);
    }
    assert!(!site.file("archive").exists());
    Ok(())
}

/// The file in the folder whose path ends so, the last by name.
fn newest(folder: &Path, ending: &str) -> Option<std::path::PathBuf> {
    let mut found: Vec<_> = walk(folder).into_iter().filter(|path| path.to_string_lossy().ends_with(ending)).collect();
    found.sort();
    found.pop()
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.flat_map(|entry| if entry.path().is_dir() { walk(&entry.path()) } else { vec![entry.path()] }).collect()
}

fn flip_a_byte(path: &Path) -> Result<()> {
    let mut bytes = std::fs::read(path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    Ok(std::fs::write(path, bytes)?)
}

#[test]
fn damage_is_found_named_and_never_built_upon() -> Result<()> {
    let kafka = shared_kafka().bootstrap();
    Admin::new(&kafka)?.create_topic("damage", 2, &[("retention.ms", "-1")])?;
    let loader = Loader::new(&kafka, &[])?;
    for event in Generator::new(Workload::C, 3, 5_000).events() {
        loader.send("damage", None, &event)?;
    }
    loader.flush()?;
    let site = Site::on_disk()?.source("main", &kafka, "damage", &["damage"], "");
    let archiver = site.archiver()?;
    site.wait_for_rows("damage", 5_000)?;
    archiver.terminate()?;
    assert_eq!(archiver.wait(PATIENCE)?.code, Some(0));
    site.verify(&["--deep"])?;

    let segment = newest(&site.file("archive"), ".parquet").expect("a segment was written");
    let whole = std::fs::read(&segment)?;
    flip_a_byte(&segment)?;
    let name = segment.file_name().expect("a file").to_string_lossy().into_owned();
    assert_refused("segment", &site.about("verify", &["--deep"]).run(PATIENCE)?, 65, &[&name, "NOT COMPLETE"]);
    std::fs::write(&segment, &whole)?;
    site.verify(&["--deep"])?;

    let record = newest(&site.file("archive"), ".json").expect("a record was written");
    flip_a_byte(&record)?;
    let name = record.file_name().expect("a file").to_string_lossy().into_owned();
    let verified = site.about("verify", &[]).run(PATIENCE)?;
    assert_eq!(verified.code, Some(65), "{}{}", verified.stdout, verified.stderr);
    loader.send("damage", Some(0), &Generator::new(Workload::C, 4, 1).event(0))?;
    loader.finish()?;
    let mut stopped = site.archiver()?;
    let limit = Duration::from_secs(30);
    wait_until("the archiver to name the record", limit, || Ok(stopped.stderr().contains(&name) || stopped.has_ended()?))?;
    assert!(stopped.stderr().contains(&name), "{}", stopped.stderr());
    assert_eq!(newest(&site.file("archive"), ".json"), Some(record), "nothing is built upon a damaged record");
    Ok(())
}

#[test]
fn two_archives_that_share_a_group_are_warned_of() -> Result<()> {
    let kafka = shared_kafka().bootstrap();
    Admin::new(&kafka)?.create_topic("shared-group", 1, &[])?;
    let loader = Loader::new(&kafka, &[])?;
    for event in Generator::new(Workload::C, 5, 100).events() {
        loader.send("shared-group", None, &event)?;
    }
    loader.finish()?;
    let words = "was used by another archive";
    for first in [true, false] {
        let site = Site::on_disk()?.source("main", &kafka, "shared-group", &["shared-group"], "");
        let mut archiver = site.archiver()?;
        if first {
            site.wait_for_rows("shared-group", 100)?;
            assert!(!archiver.stderr().contains(words));
        } else {
            archiver.wait_for_text(words, PATIENCE)?;
        }
        archiver.terminate()?;
        assert_eq!(archiver.wait(PATIENCE)?.code, Some(0));
    }
    Ok(())
}
