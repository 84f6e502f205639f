//! What is done beside the archiving, checked. Nothing is done that the file does not ask for.

use std::time::Duration;

use tapedeck_common::limits;
use tapedeck_daemon::units::{ByteSize, HumanDuration};

use super::raw::{RawCompact, RawExpire, RawMaintain, RawSweep};
use super::{BadConfig, bad};
use crate::maintain::choose::CompactPolicy;
use crate::maintain::{SweepPolicy, Work};

const HOURLY: Duration = Duration::from_secs(3600);
const DAILY: Duration = Duration::from_secs(24 * 3600);

/// More often would only ask the store for the same answer.
const EVERY_MIN: Duration = Duration::from_secs(10);

/// What is done, how often, and with how much of the machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Maintenance {
    /// Each kind of work at most once, and its period. Compaction comes before expiry, the sweep last.
    pub duties: Vec<(Work, Duration)>,
    /// Bytes a second to and from the store.
    pub rate: f64,
    /// Bytes of the memory budget; none where there is nothing to do.
    pub memory: usize,
}

impl Maintenance {
    /// Checks the block `maintain`. `budget` is `memory.budget`.
    pub(super) fn check(raw: &RawMaintain, budget: usize) -> Result<Self, BadConfig> {
        let mut duties = Vec::new();
        duties.extend(raw.compact.as_ref().map(compact).transpose()?);
        duties.extend(raw.expire.as_ref().map(expire).transpose()?);
        duties.extend(raw.sweep.as_ref().map(sweep).transpose()?);
        let rate = raw.rate.map_or(limits::MAINTAIN_RATE_DEFAULT as f64, |rate| rate.per_second());
        let memory = if duties.is_empty() { 0 } else { memory(raw.memory, budget)? };
        Ok(Self { duties, rate, memory })
    }

    /// What is allowed and yet may surprise.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let sweep = self.duties.iter().find_map(|(work, _)| match work {
            Work::Sweep(policy) => Some(policy),
            _ => None,
        });
        let removing = self.duties.iter().any(|(work, _)| !matches!(work, Work::Sweep(_)));
        if removing && sweep.is_none() {
            warnings.push(
                "maintain: segments are removed and nothing sweeps their files here: the bucket grows unless \
                 `archiver maintain sweep` runs elsewhere"
                    .to_owned(),
            );
        }
        if sweep.is_some_and(|sweep| sweep.removed_after < DAILY) {
            let what = "maintain.sweep.removed_after is below 1d: queries and replay plans lose files that they still read";
            warnings.push(what.to_owned());
        }
        if sweep.is_some_and(|sweep| sweep.orphans_after < DAILY) {
            let what = "maintain.sweep.orphans_after is below 1d: batches that take longer are archived once more";
            warnings.push(what.to_owned());
        }
        warnings
    }
}

fn compact(raw: &RawCompact) -> Result<(Work, Duration), BadConfig> {
    let plain = CompactPolicy::default();
    let size = |path: &str, size: Option<ByteSize>, plain: u64| match size.map(ByteSize::bytes) {
        Some(0) => Err(bad(path, "must be above zero")),
        bytes => Ok(bytes.unwrap_or(plain)),
    };
    let policy = CompactPolicy {
        closed_for: raw.closed_for.map_or(plain.closed_for, HumanDuration::get),
        small_below: size("maintain.compact.small_below", raw.small_below, plain.small_below)?,
        bytes_max: size("maintain.compact.max_size", raw.max_size, plain.bytes_max)?,
    };
    if policy.bytes_max < policy.small_below {
        return Err(bad("maintain.compact.max_size", "must not be below small_below: merged segments would be small again"));
    }
    Ok((Work::Compact(policy), every("maintain.compact.every", raw.every, HOURLY)?))
}

fn expire(raw: &RawExpire) -> Result<(Work, Duration), BadConfig> {
    if raw.keep.get().is_zero() {
        return Err(bad("maintain.expire.keep", "must be above zero: nothing would be kept"));
    }
    Ok((Work::Expire(raw.keep.get()), every("maintain.expire.every", raw.every, HOURLY)?))
}

fn sweep(raw: &RawSweep) -> Result<(Work, Duration), BadConfig> {
    let plain = SweepPolicy::default();
    let policy = SweepPolicy {
        orphans_after: raw.orphans_after.map_or(plain.orphans_after, HumanDuration::get),
        removed_after: raw.removed_after.map_or(plain.removed_after, HumanDuration::get),
    };
    Ok((Work::Sweep(policy), every("maintain.sweep.every", raw.every, DAILY)?))
}

fn every(path: &str, every: Option<HumanDuration>, plain: Duration) -> Result<Duration, BadConfig> {
    let every = every.map_or(plain, HumanDuration::get);
    if every < EVERY_MIN { Err(bad(path, "must be at least 10s")) } else { Ok(every) }
}

fn memory(memory: Option<ByteSize>, budget: usize) -> Result<usize, BadConfig> {
    let bytes = memory.map_or(limits::MAINTAIN_MEMORY_DEFAULT, ByteSize::bytes);
    if bytes < limits::MAINTAIN_MEMORY_MIN {
        let least = limits::MAINTAIN_MEMORY_MIN >> 20;
        return Err(bad("maintain.memory", format!("must be at least {least}MiB: row groups of usual size need that")));
    }
    if budget as u64 - limits::MEMORY_BUDGET_MIN.min(budget as u64) < bytes {
        let least = limits::MEMORY_BUDGET_MIN >> 20;
        let what =
            format!("is taken from memory.budget, which must leave {least}MiB for events: raise memory.budget, or lower this");
        return Err(bad("maintain.memory", what));
    }
    usize::try_from(bytes).map_err(|_| bad("maintain.memory", "is more than this machine can address"))
}
