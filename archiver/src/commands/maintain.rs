//! `archiver maintain`: compaction, expiry and sweep of an archive's tables, and the table of their gaps, once.

use std::sync::Arc;

use serde::Serialize;
use tapedeck_common::clock::Clock;
use tapedeck_daemon::{Exit, Failure, SystemClock};
use tapedeck_storage::archive::Archive;

use crate::cli::{self, Maintain};
use crate::maintain::choose::CompactPolicy;
use crate::maintain::{Keeper, MaintainError, SweepPolicy};

/// What was done to one table.
#[derive(Debug, Serialize)]
struct Done<T> {
    table: String,
    #[serde(flatten)]
    done: T,
}

/// Maintains tables one after another.
pub(super) async fn run(what: Maintain) -> Result<Exit, Failure> {
    let archive = super::open_archive(what.archive()).await?;
    let common = what.common().clone();
    let mut done = Vec::new();
    for table in super::tables_of(&archive, common.table.as_deref()).await? {
        let report = one(&archive, &table, &what).await.map_err(|error| Failure::new(error.kind(), error))?;
        if !common.json {
            outln!("table {table}: {}", report.1);
        }
        done.push(Done { table, done: report.0 });
    }
    if common.json {
        outln!("{:#}", serde_json::json!({ "archive": &*archive.store.url, "dry_run": common.dry_run, "tables": done }));
    } else if common.dry_run {
        outln!("nothing was changed (--dry-run)");
    }
    Ok(Exit::Done)
}

/// Answers what was done, for machines and for people.
async fn one(archive: &Archive, table: &str, what: &Maintain) -> Result<(serde_json::Value, String), MaintainError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    // Two keepers that begin in one moment must not draw the same names.
    let seed = (clock.now().micros() as u64) ^ u64::from(std::process::id()).rotate_left(32);
    let mut keeper = Keeper::open(archive, table, clock, fastrand::Rng::with_seed(seed)).await?;
    match what {
        Maintain::Compact { common, closed_for, small_below, max_size, .. } => {
            let policy =
                CompactPolicy { closed_for: closed_for.get(), small_below: small_below.bytes(), bytes_max: max_size.bytes() };
            if common.dry_run {
                let merges = keeper.plan_compaction(&policy).await?;
                let inputs: usize = merges.iter().map(|merge| merge.inputs.len()).sum();
                let plan = serde_json::json!({ "inputs": inputs, "outputs": merges.len() });
                return Ok((plan, format!("{inputs} segment(s) would become {}", merges.len())));
            }
            let done = keeper.compact(&policy).await?;
            let text = format!(
                "{} segment(s) became {}, {} rows, {} bytes instead of {}; {} merge(s) were somebody else's",
                done.inputs, done.outputs, done.rows, done.bytes_after, done.bytes_before, done.refused
            );
            Ok((json(&done), text))
        }
        Maintain::Expire { common, keep, .. } => {
            let done = keeper.expire(keep.get(), common.dry_run).await?;
            let text = format!("{} hour(s) with {} segment(s) expired", done.hours, done.segments);
            Ok((json(&done), text))
        }
        Maintain::Sweep { common, orphans_after, removed_after, .. } => {
            let policy = SweepPolicy { orphans_after: orphans_after.get(), removed_after: removed_after.get() };
            let done = keeper.sweep(&policy, common.dry_run).await?;
            let text = format!(
                "{} file(s) that no record names and {} of removed segments, {} bytes; {} kept for replays, {} too young to judge",
                done.orphans, done.removed, done.bytes, done.pinned, done.young
            );
            Ok((json(&done), text))
        }
        Maintain::Gaps { common, .. } => super::gaps::one(archive, table, common.dry_run).await,
    }
}

fn json(done: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(done).expect("plain data always serialises")
}

impl Maintain {
    fn archive(&self) -> &cli::Archive {
        match self {
            Self::Compact { archive, .. }
            | Self::Expire { archive, .. }
            | Self::Sweep { archive, .. }
            | Self::Gaps { archive, .. } => archive,
        }
    }

    fn common(&self) -> &cli::MaintainCommon {
        match self {
            Self::Compact { common, .. }
            | Self::Expire { common, .. }
            | Self::Sweep { common, .. }
            | Self::Gaps { common, .. } => common,
        }
    }
}
