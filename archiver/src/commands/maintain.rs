//! `archiver maintain`: compaction, expiry and sweep of an archive's tables, and the table of their gaps, once.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value as Json, json};
use tapedeck_common::clock::Clock;
use tapedeck_daemon::{Exit, Failure, SystemClock};

use crate::cli::{self, Maintain};
use crate::maintain::choose::CompactPolicy;
use crate::maintain::{Keeper, MaintainError, Means, SweepPolicy, Work};

/// What was done to one table.
#[derive(Debug, Serialize)]
struct DoneTo {
    table: String,
    #[serde(flatten)]
    done: Json,
}

/// Maintains tables one after another.
pub(super) async fn run(what: Maintain) -> Result<Exit, Failure> {
    let archive = super::open_archive(what.archive()).await?;
    let (common, work) = (what.common().clone(), what.work());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    // Two keepers that begin in one moment must not draw the same names.
    let seed = (clock.now().micros() as u64) ^ u64::from(std::process::id()).rotate_left(32);
    let mut chance = fastrand::Rng::with_seed(seed);
    let memory = usize::try_from(common.memory.bytes()).unwrap_or(usize::MAX);
    let means = Means::new(memory, common.rate.map(|rate| rate.per_second()), Arc::clone(&clock));
    let mut all = Vec::new();
    for table in super::tables_of(&archive, common.table.as_deref()).await? {
        let done = async {
            let Some(work) = &work else {
                return super::gaps::one(&archive, &table, common.dry_run, &*clock, &mut chance).await;
            };
            let mut keeper = Keeper::open(&archive, &table, Arc::clone(&clock), chance.fork(), means.clone()).await?;
            let done = keeper.work(work, common.dry_run).await?;
            Ok((json!(done), done.to_string()))
        };
        let (done, said) = done.await.map_err(|error: MaintainError| Failure::new(error.kind(), error))?;
        if !common.json {
            outln!("table {table}: {said}");
        }
        all.push(DoneTo { table, done });
    }
    if common.json {
        outln!("{:#}", json!({ "archive": &*archive.store.url, "dry_run": common.dry_run, "tables": all }));
    } else if common.dry_run {
        outln!("nothing was changed (--dry-run): this is what would be");
    }
    Ok(Exit::Done)
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

    /// What to do to a table; `None` to derive its gaps, which changes no table.
    fn work(&self) -> Option<Work> {
        let work = match self {
            Self::Compact { closed_for, small_below, max_size, .. } => Work::Compact(CompactPolicy {
                closed_for: closed_for.get(),
                small_below: small_below.bytes(),
                bytes_max: max_size.bytes(),
            }),
            Self::Expire { keep, .. } => Work::Expire(keep.get()),
            Self::Sweep { orphans_after, removed_after, .. } => {
                Work::Sweep(SweepPolicy { orphans_after: orphans_after.get(), removed_after: removed_after.get() })
            }
            Self::Gaps { .. } => return None,
        };
        Some(work)
    }
}
