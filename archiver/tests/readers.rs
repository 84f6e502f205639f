//! Engines that know nothing of us read the archive, and find every visible event once, byte for byte.
//!
//! None is left out in silence: those that `scripts/needs.sh` could not get stand in TAPEDECK_READERS_WITHOUT, and are named.
//! TAPEDECK_READERS_EVENTS makes the tables larger.

mod support;

#[path = "readers/lived_in.rs"]
mod lived_in;

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use support::{PATIENCE, Site, number};
use tapedeck_testbed::events::nasty::Nasty;
use tapedeck_testbed::{Admin, Program, Truth, oracle, shared_kafka};

/// Every engine, by its name in `readers/read_back.py`.
const ENGINES: [&str; 8] = ["deltalake", "pyarrow", "delta_kernel", "polars", "duckdb", "datafusion", "chdb", "spark"];

/// Spark takes most of a minute on a busy machine, and every engine some time for each event.
fn engine_patience(events: u64) -> Duration {
    Duration::from_secs(300 + events / 2_000)
}

/// The engines that there are. Those that could not be had are named.
fn engines() -> impl Iterator<Item = &'static str> {
    let without = std::env::var("TAPEDECK_READERS_WITHOUT").unwrap_or_default();
    let is_there = move |engine: &&str| {
        let missing = without.split_whitespace().any(|name| name == *engine);
        if missing {
            println!("{engine}: NOT TESTED, it cannot be had here");
        }
        !missing
    };
    ENGINES.into_iter().filter(is_there)
}

/// What `readers/read_back.py` wrote.
struct Dump<R>(R);

impl<R: Read> Dump<R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<Option<Vec<u8>>> {
        let Ok(length) = usize::try_from(i32::from_le_bytes(self.bytes()?)) else { return Ok(None) };
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Partition, offset and digest of the next event.
    fn next(&mut self) -> Result<(i32, i64, u64)> {
        let (partition, offset) = (i32::from_le_bytes(self.bytes()?), i64::from_le_bytes(self.bytes()?));
        let time = i64::from_le_bytes(self.bytes()?);
        let (key, value) = (self.text()?, self.text()?);
        let mut headers = Vec::new();
        for _ in 0..i32::from_le_bytes(self.bytes()?) {
            headers.push((self.text()?.context("a header has a name")?, self.text()?));
        }
        let pairs = headers.iter().map(|(name, value)| (name.as_slice(), value.as_deref()));
        Ok((partition, offset, oracle::digest(key.as_deref(), value.as_deref(), pairs, time)))
    }
}

/// Runs `readers/read_back.py`; answers what it printed.
fn script(arguments: &[&str], patience: Duration) -> Result<String> {
    let python = std::env::var("TAPEDECK_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/readers/read_back.py");
    let ended = Program::at(python).args([script]).args(arguments).run(patience)?;
    ensure!(ended.code == Some(0), "{arguments:?} (see scripts/needs.sh python): {}\n{}", ended.stdout, ended.stderr);
    Ok(ended.stdout)
}

/// What an engine read of one event: its partition, its offset, a checksum of its bytes.
type Place = (i32, i64, u64);

fn read_back(engine: &str, folder: &Path, out: &Path, patience: Duration) -> Result<(String, Vec<Place>)> {
    let said = script(&[engine, &folder.display().to_string(), &out.display().to_string()], patience)?;
    // Above it an engine may print what it likes.
    let said = said.lines().last().context("a line")?;
    let (way, count) = said.rsplit_once(' ').context("a count")?;
    let mut dump = Dump(std::io::BufReader::new(std::fs::File::open(out)?));
    let mut events = (0..count.parse::<usize>()?).map(|_| dump.next()).collect::<Result<Vec<_>>>()?;
    // Engines promise no order; the judge wants each lane's.
    events.sort_by_key(|(partition, offset, _)| (*partition, *offset));
    Ok((way.to_owned(), events))
}

/// Every engine must read exactly the truth.
fn judge_engines(site: &Site, table: &str, truth: &Truth) -> Result<()> {
    for engine in engines() {
        let (folder, out) = (site.file("archive").join(table), site.file(engine));
        let (way, found) = read_back(engine, &folder, &out, engine_patience(truth.len()))?;
        let report = truth.compare(found.into_iter().map(|(partition, offset, digest)| (table, partition, offset, digest)));
        println!("{way}: {report}");
        assert!(report.is_clean(), "{way}: {report}");
        std::fs::remove_file(out)?;
    }
    Ok(())
}

#[test]
fn every_engine_finds_every_event_once() -> Result<()> {
    let kafka = shared_kafka().bootstrap();
    let count = number("TAPEDECK_READERS_EVENTS", 9_000);
    let events = Nasty { plain: count / 3 * 2, transactional: count / 3, large: 4, ..Nasty::default() };
    let loaded = events.load(&kafka, "readers")?;
    let site = Site::on_disk()?.source("main", &kafka, "readers", &["readers"], "");
    let archiver = site.archiver()?;
    site.wait_for_rows("readers", loaded.visible)?;
    archiver.terminate()?;
    assert_eq!(archiver.wait(PATIENCE)?.code, Some(0));
    judge_engines(&site, "readers", &Truth::from_bus(&kafka, &["readers"])?)
}

/// A table with everything that happens in a long life: see `lived_in`.
#[test]
fn every_engine_reads_a_table_that_has_been_lived_in() -> Result<()> {
    let kafka = shared_kafka().bootstrap();
    let (site, truth) = lived_in::make(&kafka, number("TAPEDECK_READERS_EVENTS", 12_000))?;
    site.verify(&["--deep"])?;
    let report = site.judge(&truth, lived_in::TOPIC)?;
    assert!(report.is_clean(), "{report}");
    judge_engines(&site, lived_in::TOPIC, &truth)?;
    judge_gaps(&site)
}

/// Every engine must find in `_gaps` what the records say is lost.
fn judge_gaps(site: &Site) -> Result<()> {
    let gaps = site.view(lived_in::TOPIC)?.context("the table is there")?.gaps;
    let lost: u64 = gaps.iter().map(|gap| gap.span.len()).sum();
    let made = site.program(&["maintain", "gaps", site.url()]).run(PATIENCE)?;
    ensure!(made.code == Some(0), "{}", made.stderr);
    let folder = site.file("archive/_gaps").display().to_string();
    for engine in engines() {
        let said = script(&["gaps", engine, &folder], engine_patience(0))?;
        let said = said.lines().last().context("a line")?;
        println!("_gaps by {said}");
        ensure!(said.ends_with(&format!(" {} {lost}", gaps.len())), "{said}, not {} gaps of {lost} positions", gaps.len());
    }
    Ok(())
}

/// Somebody lets another tool tidy up "the Delta table": its checkpoint knows nothing of our lanes' promises.
#[test]
fn a_checkpoint_that_another_tool_writes_into_the_log_is_lived_with() -> Result<()> {
    let kafka = shared_kafka().bootstrap();
    Admin::new(&kafka)?.create_topic("tidied", 4, &[])?;
    let site = Site::on_disk()?.source("main", &kafka, "tidied", &["tidied"], "");
    let folder = site.file("archive/tidied").display().to_string();
    for round in 0..3 {
        lived_in::load(&kafka, "tidied", round * 3_000..(round + 1) * 3_000)?;
        lived_in::archive_until(&site, "tidied", (round + 1) * 3_000)?;
        script(&["checkpoint", &folder], PATIENCE)?;
    }
    site.verify(&["--deep"])?;
    let report = site.judge(&Truth::from_bus(&kafka, &["tidied"])?, "tidied")?;
    assert!(report.is_clean(), "{report}");
    Ok(())
}
