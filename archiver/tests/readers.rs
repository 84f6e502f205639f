//! Engines that know nothing of us read the archive, and find every visible event once, byte for byte.

mod support;

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use support::{PATIENCE, Site};
use tapedeck_testbed::events::nasty::Nasty;
use tapedeck_testbed::{Admin, Generator, Loader, Program, Truth, Workload, oracle, shared_kafka};

/// Spark takes most of a minute on a busy machine.
const ENGINE_PATIENCE: Duration = Duration::from_secs(300);

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
fn script(arguments: &[&str]) -> Result<String> {
    let python = std::env::var("TAPEDECK_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/readers/read_back.py");
    let ended = Program::at(python).args([script]).args(arguments).run(ENGINE_PATIENCE)?;
    ensure!(ended.code == Some(0), "{arguments:?} (see scripts/needs.sh python): {}\n{}", ended.stdout, ended.stderr);
    Ok(ended.stdout)
}

fn read_back(engine: &str, folder: &Path, out: &Path) -> Result<Vec<(i32, i64, u64)>> {
    let said = script(&[engine, &folder.display().to_string(), &out.display().to_string()])?;
    let count: usize = said.split_whitespace().last().context("a count")?.parse()?;
    let mut dump = Dump(std::io::BufReader::new(std::fs::File::open(out)?));
    let mut events = (0..count).map(|_| dump.next()).collect::<Result<Vec<_>>>()?;
    // Engines promise no order; the judge wants each lane's.
    events.sort_by_key(|(partition, offset, _)| (*partition, *offset));
    Ok(events)
}

#[test]
fn every_engine_finds_every_event_once() -> Result<()> {
    let kafka = shared_kafka().bootstrap();
    let events = Nasty { plain: 6_000, transactional: 3_000, large: 4, ..Nasty::default() };
    let loaded = events.load(&kafka, "readers")?;
    let site = Site::on_disk()?.source("main", &kafka, "readers", &["readers"], "");
    let archiver = site.archiver()?;
    site.wait_for_rows("readers", loaded.visible)?;
    archiver.terminate()?;
    assert_eq!(archiver.wait(PATIENCE)?.code, Some(0));
    let truth = Truth::from_bus(&kafka, &["readers"])?;
    for engine in ["deltalake", "polars", "duckdb", "spark"] {
        let found = read_back(engine, &site.file("archive/readers"), &site.file(engine))?;
        let report = truth.compare(found.into_iter().map(|(partition, offset, digest)| ("readers", partition, offset, digest)));
        println!("{engine}: {report}");
        assert!(report.is_clean(), "{engine}: {report}");
    }
    Ok(())
}

/// Loads the topic in rounds, each archived by a run of its own, so that an hour has several segments.
fn archive_in_rounds(site: &Site, kafka: &str, topic: &str, after_each: impl Fn() -> Result<()>) -> Result<()> {
    let events = Generator::new(Workload::C, 7, 9_000);
    for round in 0..3 {
        let loader = Loader::new(kafka, &[])?;
        for index in round * 3_000..(round + 1) * 3_000 {
            loader.send(topic, Some((index % 4) as i32), &events.event(index))?;
        }
        loader.finish()?;
        let archiver = site.archiver()?;
        site.wait_for_rows(topic, (round + 1) * 3_000)?;
        archiver.terminate()?;
        assert_eq!(archiver.wait(PATIENCE)?.code, Some(0));
        after_each()?;
    }
    Ok(())
}

/// Compaction writes removes and moved adds, and the sweep deletes files: nobody may read anything else than before.
#[test]
fn every_engine_reads_a_table_that_was_compacted_and_swept() -> Result<()> {
    let kafka = shared_kafka().bootstrap();
    Admin::new(&kafka)?.create_topic("compacted", 4, &[])?;
    let site = Site::on_disk()?.source("main", &kafka, "compacted", &["compacted"], "");
    archive_in_rounds(&site, &kafka, "compacted", || Ok(()))?;
    let maintain = |arguments: &[&str]| -> Result<serde_json::Value> {
        let ended = site.program(&[&["maintain"], arguments, &[site.url(), "--json"]].concat()).run(PATIENCE)?;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        Ok(serde_json::from_str(&ended.stdout)?)
    };
    let done = maintain(&["compact", "--closed-for", "0s"])?;
    let (inputs, outputs) = (&done["tables"][0]["inputs"], &done["tables"][0]["outputs"]);
    assert!(inputs.as_u64() > outputs.as_u64() && outputs.as_u64() > Some(0), "{done}");
    let swept = maintain(&["sweep", "--removed-after", "0s"])?;
    assert_eq!(&swept["tables"][0]["removed"], inputs, "{swept}");
    site.verify(&["--deep"])?;
    let truth = Truth::from_bus(&kafka, &["compacted"])?;
    for engine in ["deltalake", "polars", "duckdb", "spark"] {
        let found = read_back(engine, &site.file("archive/compacted"), &site.file(engine))?;
        let report = truth.compare(found.into_iter().map(|(partition, offset, digest)| ("compacted", partition, offset, digest)));
        println!("{engine}: {report}");
        assert!(report.is_clean(), "{engine}: {report}");
    }
    Ok(())
}

/// Somebody lets another tool tidy up "the Delta table": its checkpoint knows nothing of our lanes' promises.
#[test]
fn a_checkpoint_that_another_tool_writes_into_the_log_is_lived_with() -> Result<()> {
    let kafka = shared_kafka().bootstrap();
    Admin::new(&kafka)?.create_topic("tidied", 4, &[])?;
    let site = Site::on_disk()?.source("main", &kafka, "tidied", &["tidied"], "");
    archive_in_rounds(&site, &kafka, "tidied", || {
        script(&["checkpoint", &site.file("archive/tidied").display().to_string()]).map(drop)
    })?;
    site.verify(&["--deep"])?;
    let report = site.judge(&Truth::from_bus(&kafka, &["tidied"])?, "tidied")?;
    assert!(report.is_clean(), "{report}");
    Ok(())
}
