//! The archive against a real broker: what is behind, lost, without a lane, made anew, gone or beyond the end is said exactly.

mod support;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value as Json, json};
use support::{PATIENCE, Site};
use tapedeck_testbed::{Admin, Ended, Generator, KafkaOptions, KafkaServer, Loader, Program, Workload, shared_kafka};

fn load(kafka: &str, topic: &str, partition: i32, count: u64) -> Result<()> {
    let loader = Loader::new(kafka, &[])?;
    for event in Generator::new(Workload::C, 11, count).events() {
        loader.send(topic, Some(partition), &event)?;
    }
    loader.finish()
}

/// Runs the archiver until the tables hold so many rows, and stops it.
fn archive(site: &Site, rows: &[(&str, u64)]) -> Result<()> {
    let archiver = site.archiver()?;
    for (table, rows) in rows {
        site.wait_for_rows(table, *rows)?;
    }
    archiver.terminate()?;
    assert_eq!(archiver.wait(PATIENCE)?.code, Some(0));
    Ok(())
}

fn verify(site: &Site, more: &[&str]) -> Result<Ended> {
    let config = site.config()?.display().to_string();
    site.program(&[&["verify", "--against-bus", "-c", &config], more].concat()).run(PATIENCE)
}

/// The exit code, and the part of the report about the bus.
fn compared(site: &Site, more: &[&str]) -> Result<(Option<i32>, Json)> {
    let ended = verify(site, &[&["--json"], more].concat())?;
    let mut report: Json = serde_json::from_str(&ended.stdout).with_context(|| format!("{}{}", ended.stdout, ended.stderr))?;
    assert_eq!((&report["report"], &report["complete"]), (&json!(1), &json!(true)), "{report:#}");
    assert_eq!(report["exit_code"].as_i64(), ended.code.map(i64::from), "{report:#}");
    Ok((ended.code, report["bus"].take()))
}

/// Lanes of a topic: partition, state, behind, lost, ahead.
fn lanes(bus: &Json, topic: &str) -> Vec<(String, String, u64, u64, u64)> {
    let lanes = bus["lanes"].as_array().map_or(&[][..], Vec::as_slice);
    let number = |lane: &Json, name: &str| lane[name].as_u64().expect("a number");
    let one = |lane: &Json| {
        let (name, state) = (lane["lane"].as_str().expect("a name"), lane["state"].as_str().expect("a word"));
        let partition = name.rsplit('/').next().unwrap_or_default();
        (partition.to_owned(), state.to_owned(), number(lane, "behind"), number(lane, "lost"), number(lane, "ahead"))
    };
    lanes.iter().filter(|lane| lane["topic"] == topic).map(one).collect()
}

fn lane(partition: &str, state: &str, behind: u64, lost: u64, ahead: u64) -> (String, String, u64, u64, u64) {
    (partition.to_owned(), state.to_owned(), behind, lost, ahead)
}

fn topic<'a>(bus: &'a Json, name: &str) -> &'a Json {
    bus["topics"].as_array().into_iter().flatten().find(|topic| topic["topic"] == name).unwrap_or(&Json::Null)
}

#[test]
fn verify_against_the_bus_says_exactly_what_is_missing() -> Result<()> {
    let kafka = shared_kafka().bootstrap();
    let admin = Admin::new(&kafka)?;
    let topics = ["proof", "proof-anew", "proof-gone"];
    for (name, partitions) in topics.into_iter().zip([2, 1, 1]) {
        admin.create_topic(name, partitions, &[("retention.ms", "-1")])?;
        (0..partitions).try_for_each(|partition| load(&kafka, name, partition, 100))?;
    }
    let site = Site::on_disk()?.source("main", &kafka, "proof", &[&topics[..], &["proof-never"]].concat(), "");
    archive(&site, &[("proof", 200), ("proof-anew", 100), ("proof-gone", 100)])?;

    let (code, bus) = compared(&site, &[])?;
    assert_eq!((code, &bus["verdict"], &bus["missing_topics"]), (Some(0), &json!("fine"), &json!(["proof-never"])), "{bus:#}");
    assert_eq!(lanes(&bus, "proof"), [lane("0", "archived", 0, 0, 0), lane("1", "archived", 0, 0, 0)]);
    for name in topics {
        assert_eq!(topic(&bus, name)["complete_up_to"], bus["asked_at"], "{bus:#}");
    }

    // More is produced while nobody archives: that alone is no fault.
    load(&kafka, "proof", 0, 50)?;
    let (code, bus) = compared(&site, &[])?;
    assert_eq!((code, &bus["verdict"]), (Some(0), &json!("fine")), "{bus:#}");
    assert_eq!(lanes(&bus, "proof")[0], lane("0", "behind", 50, 0, 0));
    assert_eq!((&topic(&bus, "proof")["complete_up_to"], &topic(&bus, "proof")["behind"]), (&Json::Null, &json!(50)));
    assert_eq!(topic(&bus, "proof-gone")["complete_up_to"], bus["asked_at"]);

    // A partition that nobody archives.
    admin.add_partitions("proof", 3)?;
    load(&kafka, "proof", 2, 10)?;
    let (code, bus) = compared(&site, &[])?;
    assert_eq!((code, &bus["verdict"]), (Some(1), &json!("unarchived")), "{bus:#}");
    assert_eq!(lanes(&bus, "proof")[2], lane("2", "unarchived", 10, 0, 0));

    // Retention overtakes, and no gap says so yet; one topic is made anew, another one goes.
    admin.delete_records("proof", 0, 130)?;
    admin.delete_topic("proof-anew")?;
    admin.create_topic("proof-anew", 1, &[("retention.ms", "-1")])?;
    load(&kafka, "proof-anew", 0, 5)?;
    admin.delete_topic("proof-gone")?;
    let (code, bus) = compared(&site, &[])?;
    assert_eq!((code, &bus["verdict"]), (Some(65), &json!("broken")), "{bus:#}");
    assert_eq!(lanes(&bus, "proof")[0], lane("0", "lost", 20, 30, 0));
    assert_eq!(lanes(&bus, "proof-anew"), [lane("0", "unarchived", 5, 0, 0), lane("0", "recreated", 0, 0, 0)]);
    assert_eq!(lanes(&bus, "proof-gone"), [lane("0", "gone", 0, 0, 0)]);
    let said = verify(&site, &[])?;
    println!("{}", said.stdout);
    for part in ["complete\n", "LOST [100, 130), 30 position(s)", "NOT ARCHIVED: the bus holds [0, 10)", "deleted and made again"]
    {
        assert!(said.stdout.contains(part), "`{part}` is not in {}", said.stdout);
    }
    let (code, bus) = compared(&site, &["--table", "proof-gone"])?;
    assert_eq!((code, bus["lanes"].as_array().map(Vec::len)), (Some(0), Some(1)), "{bus:#}");

    // An archiver writes the gap and archives the rest, and waiting for it is enough.
    let archiver = site.archiver()?;
    let (code, bus) = compared(&site, &["--wait", "90s"])?;
    assert_eq!((code, &bus["verdict"]), (Some(0), &json!("fine")), "{bus:#}");
    assert_eq!(topic(&bus, "proof")["complete_up_to"], bus["asked_at"], "{bus:#}");
    archiver.terminate()?;
    assert_eq!(archiver.wait(PATIENCE)?.code, Some(0));
    let (_, bus) = compared(&site, &[])?;
    assert_eq!(topic(&bus, "proof")["lost_recorded"], 30, "{bus:#}");
    gaps_are_a_table(&site)
}

/// `maintain gaps`, and what an engine that knows nothing of us reads then.
fn gaps_are_a_table(site: &Site) -> Result<()> {
    for (added, known) in [(1, 0), (0, 1)] {
        let ended = site.program(&["maintain", "gaps", site.url(), "--json"]).run(PATIENCE)?;
        ensure!(ended.code == Some(0), "{}{}", ended.stdout, ended.stderr);
        let done: Json = serde_json::from_str(&ended.stdout)?;
        let tables = done["tables"].as_array().context("tables")?;
        let proof = tables.iter().find(|table| table["table"] == "proof").context("the table")?;
        assert_eq!(proof["added"].as_array().map(Vec::len), Some(added), "{done:#}");
        assert_eq!(tables.iter().map(|table| table["added"].as_array().map_or(0, Vec::len)).sum::<usize>(), added);
        assert!(proof["known"].as_u64() >= Some(known), "{done:#}");
    }
    for engine in ["deltalake", "polars"] {
        let rows = read_gaps(engine, &site.file("archive/_gaps"))?;
        let row = rows.as_array().and_then(|rows| rows.first()).context("a row")?;
        assert_eq!((rows.as_array().map(Vec::len), &row["table_name"]), (Some(1), &json!("proof")), "{engine}: {rows}");
        let spans = (&row["from_position"], &row["until_position"], &row["cause"]);
        assert_eq!(spans, (&json!(100), &json!(130), &json!("retention")), "{engine}: {rows}");
        assert!(
            row["lane"].as_str().is_some_and(|lane| lane.starts_with("kafka/") && lane.ends_with("/0/0")),
            "{engine}: {rows}"
        );
    }
    site.verify(&["--deep"]).map(drop)
}

/// The rows of the table as JSON, as an engine reads them.
fn read_gaps(engine: &str, folder: &Path) -> Result<Json> {
    let script = r#"
import json, sys
engine, folder = sys.argv[1:]
if engine == "deltalake":
    from deltalake import DeltaTable
    rows = DeltaTable(folder).to_pyarrow_table().to_pylist()
else:
    import polars
    rows = polars.scan_delta(folder).collect().to_dicts()
print(json.dumps(rows, default=str))
"#;
    let python = std::env::var("TAPEDECK_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let ended = Program::at(python).args(["-c", script, engine]).args([folder]).run(PATIENCE)?;
    ensure!(ended.code == Some(0), "{engine} (see scripts/needs.sh python): {}{}", ended.stdout, ended.stderr);
    Ok(serde_json::from_str(&ended.stdout)?)
}

/// The broker loses the log of a partition and keeps the topic: everything archived lies beyond its end.
#[test]
fn an_archive_that_is_ahead_of_the_bus_and_a_bus_that_is_away_are_told() -> Result<()> {
    let broker = KafkaServer::start(KafkaOptions::default())?;
    let kafka = broker.bootstrap();
    Admin::new(&kafka)?.create_topic("cut", 1, &[])?;
    load(&kafka, "cut", 0, 40)?;
    let site = Site::on_disk()?.source("main", &kafka, "cut", &["cut"], "");
    archive(&site, &[("cut", 40)])?;

    broker.stop()?;
    let away = verify(&site, &[])?;
    assert_eq!(away.code, Some(69), "{}{}", away.stdout, away.stderr);
    assert!(away.stdout.contains("\ncomplete\n") && away.stderr.contains(&kafka), "{}{}", away.stdout, away.stderr);

    let folder = broker.segment_file("cut", 0).parent().context("a folder")?.to_owned();
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        if !path.ends_with("partition.metadata") {
            std::fs::remove_file(path)?;
        }
    }
    broker.start_again()?;
    load(&kafka, "cut", 0, 3)?;
    let (code, bus) = compared(&site, &[])?;
    assert_eq!((code, &bus["verdict"]), (Some(65), &json!("broken")), "{bus:#}");
    assert_eq!(lanes(&bus, "cut"), [lane("0", "ahead", 0, 0, 37)]);
    Ok(())
}
