//! `archiver maintain gaps`: brings `_gaps` up to date with one table's log.

use serde_json::{Value as Json, json};
use tapedeck_common::clock::Clock;
use tapedeck_storage::archive::Archive;
use tapedeck_storage::gap_table;

use crate::maintain::MaintainError;

/// Answers what was done, for machines and for people.
pub(super) async fn one(
    archive: &Archive,
    table: &str,
    dry_run: bool,
    clock: &dyn Clock,
    chance: &mut fastrand::Rng,
) -> Result<(Json, String), MaintainError> {
    let derived = gap_table::derive(archive, table, dry_run, clock, chance).await?;
    let positions: u64 = derived.added.iter().map(|gap| gap.until - gap.from).sum();
    let added = derived.added.len();
    let text = match dry_run {
        true => format!("{added} gap(s) with {positions} position(s) would be added to {}", gap_table::FOLDER),
        false => format!("{added} gap(s) with {positions} position(s) were added to {}", gap_table::FOLDER),
    };
    Ok((json!({ "added": derived.added, "known": derived.known }), text))
}
