//! A table with everything that happens in a long life: several runs, a zombie whose commit was refused and whose file stays,
//! a gap, checkpoints, compaction and a sweep, and records after all of it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tapedeck_common::commit::{Advance, Appended, CommitLog, Record, SegmentRef};
use tapedeck_common::{LaneId, Position, Span};
use tapedeck_daemon::SystemClock;
use tapedeck_storage::layout;
use tapedeck_storage::log::checkpoint::{Shape, write_checkpoint};
use tapedeck_storage::log::{History, LogReader, TableLog, TableOptions, TableView};
use tapedeck_testbed::{Admin, Generator, Isolation, Loader, Truth, Workload, read_each};

use super::support::{PATIENCE, Site, block_on};

/// The topic, and its table.
pub(super) const TOPIC: &str = "lived-in";

const PARTITIONS: i32 = 4;

/// Makes the archive out of about so many events; answers it and what readers must find there.
pub(super) fn make(kafka: &str, count: u64) -> Result<(Site, Truth)> {
    let (admin, round) = (Admin::new(kafka)?, count / 4);
    admin.create_topic(TOPIC, PARTITIONS, &[("retention.ms", "-1")])?;
    let site = Site::on_disk()?.source("main", kafka, "lived-in", &[TOPIC], "");
    let mut archived = Seen::default();
    load(kafka, TOPIC, 0..round)?;
    archive_until(&site, TOPIC, round)?;
    // Sees the log as it is now, and stands still while others go on.
    let zombie = block_on(Zombie::new(&site))?;
    load(kafka, TOPIC, round..2 * round)?;
    archive_until(&site, TOPIC, 2 * round)?;
    block_on(zombie.commit(&site))?;
    block_on(checkpoint(&site))?;
    archived.look(kafka)?;
    // Nobody is there to archive half of these before they go.
    load(kafka, TOPIC, 2 * round..3 * round)?;
    let lost = lose_half(&admin, &archived)?;
    archived.look(kafka)?;
    archive_until(&site, TOPIC, 3 * round - lost)?;
    compact_and_sweep(&site)?;
    block_on(checkpoint(&site))?;
    load(kafka, TOPIC, 3 * round..4 * round)?;
    archive_until(&site, TOPIC, 4 * round - lost)?;
    archived.look(kafka)?;
    check_life(&site)?;
    Ok((site, archived.truth()))
}

/// Puts events of one generator onto the topic, in turns over its partitions.
pub(super) fn load(kafka: &str, topic: &str, indexes: Range<u64>) -> Result<()> {
    let events = Generator::new(Workload::C, 7, indexes.end);
    let loader = Loader::new(kafka, &[])?;
    for index in indexes {
        loader.send(topic, Some((index % PARTITIONS as u64) as i32), &events.event(index))?;
    }
    loader.finish()
}

/// Runs an archiver until the table holds so many rows.
pub(super) fn archive_until(site: &Site, table: &str, rows: u64) -> Result<()> {
    let archiver = site.archiver()?;
    site.wait_for_rows(table, rows)?;
    archiver.terminate()?;
    let ended = archiver.wait(PATIENCE)?;
    ensure!(ended.code == Some(0), "{:?}: {}", ended.code, ended.stderr);
    Ok(())
}

/// What the bus ever showed, also of what it has no longer.
#[derive(Default)]
struct Seen(BTreeMap<(i32, i64), u64>);

impl Seen {
    fn look(&mut self, kafka: &str) -> Result<()> {
        read_each(kafka, TOPIC, Isolation::Committed, |received| {
            self.0.insert((received.partition, received.offset), received.event.digest());
            Ok(())
        })
    }

    fn truth(&self) -> Truth {
        let mut truth = Truth::new();
        for ((partition, offset), digest) in &self.0 {
            truth.add(TOPIC, *partition, *offset, *digest);
        }
        truth
    }
}

/// Retention takes the first half of what was not archived yet; answers how many events that were.
fn lose_half(admin: &Admin, archived: &Seen) -> Result<u64> {
    let mut lost = 0;
    for (partition, (_, end)) in admin.watermarks(TOPIC)? {
        let of_lane = archived.0.keys().filter(|(of, _)| *of == partition);
        let next = of_lane.map(|(_, offset)| offset + 1).max().context("every partition was archived")?;
        let begin = next + (end - next) / 2;
        admin.delete_records(TOPIC, partition, begin)?;
        lost += (begin - next) as u64;
    }
    Ok(lost)
}

async fn view(site: &Site) -> Result<TableView> {
    Ok(TableView::load(&site.store()?, TOPIC, None, History::Whole).await?)
}

async fn checkpoint(site: &Site) -> Result<()> {
    let version = view(site).await?.version;
    Ok(write_checkpoint(&LogReader::new(&site.store()?, TOPIC), version, Shape::default()).await?)
}

/// A writer that fell asleep with a batch in its hands.
struct Zombie {
    log: TableLog,
    lane: LaneId,
    stands: Position,
}

impl Zombie {
    async fn new(site: &Site) -> Result<Self> {
        let (options, rng) = (TableOptions::of(TOPIC, "zombie"), fastrand::Rng::with_seed(1));
        let log = TableLog::open(&site.store()?, options, Arc::new(SystemClock::new()), rng, Arc::new(())).await?;
        let positions = log.state().positions();
        let (lane, stands) = positions.iter().next().map(|(lane, at)| (lane.clone(), *at)).context("a lane")?;
        Ok(Self { log, lane, stands })
    }

    /// Wakes and commits what somebody else has archived meanwhile, out of a file of its own with the same rows.
    async fn commit(mut self, site: &Site) -> Result<()> {
        let since = |segment: &SegmentRef| {
            let is_ours = |part: &&tapedeck_common::commit::SegmentLane| part.partition == self.lane.partition;
            segment.lanes.iter().find(is_ours).filter(|part| part.first >= self.stands).cloned()
        };
        let twin = view(site).await?.segments.into_iter().find_map(|live| Some((since(&live.segment)?, live.segment)));
        let (part, mut twin) = twin.context("a segment of the second run")?;
        let path = twin.path.replace(".parquet", "-zombie.parquet");
        let folder = site.file("archive").join(layout::table_folder(TOPIC));
        std::fs::copy(folder.join(&twin.path), folder.join(&path))?;
        twin.path = path;
        (twin.rows, twin.lanes) = (part.rows, vec![part]);
        let span = Span::new(self.stands, part.last.next())?;
        let advance = Advance { lane: self.lane, expected: Some(self.stands), span, rows: part.rows, skipped: 0, gap: None };
        let appended = self.log.append(&Record { advances: vec![advance], segments: vec![twin] }).await?;
        ensure!(matches!(appended, Appended::Stale(_)), "the zombie was let in: {appended:?}");
        Ok(())
    }
}

fn compact_and_sweep(site: &Site) -> Result<()> {
    let maintain = |arguments: &[&str]| -> Result<serde_json::Value> {
        let ended = site.program(&[&["maintain"], arguments, &[site.url(), "--json"]].concat()).run(PATIENCE)?;
        ensure!(ended.code == Some(0), "{}", ended.stderr);
        Ok(serde_json::from_str(&ended.stdout)?)
    };
    let done = maintain(&["compact", "--closed-for", "0s"])?;
    let (inputs, outputs) = (&done["tables"][0]["inputs"], &done["tables"][0]["outputs"]);
    ensure!(inputs.as_u64() > outputs.as_u64() && outputs.as_u64() > Some(0), "{done}");
    let swept = maintain(&["sweep", "--removed-after", "0s"])?;
    ensure!(&swept["tables"][0]["removed"] == inputs, "{swept}");
    Ok(())
}

/// The test would prove less than it says if one of its chapters were missing.
fn check_life(site: &Site) -> Result<()> {
    let view = block_on(view(site))?;
    let folder = site.file("archive").join(layout::table_folder(TOPIC));
    let (mut files, mut checkpoints) = (Vec::new(), 0);
    for path in walk(&folder)? {
        let name = path.strip_prefix(&folder)?.display().to_string();
        checkpoints += usize::from(name.ends_with(".checkpoint.parquet"));
        if name.starts_with("topic=") {
            files.push(name);
        }
    }
    let live = view.segments.len();
    println!(
        "{} records, {checkpoints} checkpoints, {} gaps, {live} live segments, {} files",
        view.version,
        view.gaps.len(),
        files.len()
    );
    ensure!(view.gaps.len() == PARTITIONS as usize, "gaps: {:?}", view.gaps);
    ensure!(checkpoints >= 2, "{checkpoints} checkpoints");
    ensure!(files.iter().any(|name| name.ends_with("-zombie.parquet")) && files.len() > live, "no orphan is left: {files:?}");
    ensure!(!view.removed.is_empty(), "nothing was compacted");
    Ok(())
}

fn walk(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(walk(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}
