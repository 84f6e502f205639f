//! `archiver verify`: the proof that an archive is complete, for people or for machines.

use tapedeck_daemon::{Exit, Failure};
use tapedeck_storage::log::verify::TableReport;
use tapedeck_storage::log::{VerifyOptions, verify_table};

use crate::cli;

/// Verifies tables one after another and prints what was found. Anything wrong ends with exit code 65.
pub(super) async fn run(archive: cli::Archive, table: Option<String>, deep: bool, json: bool) -> Result<Exit, Failure> {
    let opened = super::open_archive(&archive).await?;
    let options = VerifyOptions { deep, ..VerifyOptions::default() };
    let mut reports = Vec::new();
    for table in super::tables_of(&opened, table.as_deref()).await? {
        let report = verify_table(&opened.store, &table, &options).await;
        let report = report.map_err(|error| Failure::new(error.kind(), error))?;
        if !json {
            print(&report, deep);
        }
        reports.push(report);
    }
    let complete = reports.iter().all(TableReport::is_complete);
    if json {
        let text = serde_json::json!({ "archive": &*opened.store.url, "deep": deep, "complete": complete, "tables": reports });
        outln!("{text:#}");
    } else if reports.is_empty() {
        outln!("{}: no tables yet, nothing to verify", opened.store.url);
    } else {
        outln!("{}", if complete { "complete" } else { "NOT COMPLETE" });
    }
    Ok(if complete { Exit::Done } else { Exit::Corrupt })
}

fn print(report: &TableReport, deep: bool) {
    let chain = if report.is_complete() { " dense and linked" } else { "" };
    outln!(
        "table {}: records 0 to {}{chain}, {} segment(s), {} rows",
        report.table,
        report.version,
        report.segments,
        report.rows
    );
    for lane in &report.lanes {
        let more = [
            (lane.skipped, "left out as replayed"),
            (lane.lost, "LOST on the bus"),
            (lane.expired, "expired since"),
            (lane.empty, "that never held an event"),
        ];
        let more: Vec<_> = more.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        let more = if more.is_empty() { String::new() } else { format!(" ({})", more.join(", ")) };
        outln!("  {}: [{}, {}) archived, {} rows{more}", lane.lane, lane.from, lane.next, lane.rows);
        for gap in &lane.gaps {
            outln!("    GAP [{}, {}): {}, recorded in {}", gap.from, gap.until, gap.cause, gap.version);
        }
    }
    match deep {
        true if report.is_complete() => {
            outln!(
                "  {} object(s), {} bytes: checksums hold, {} rows read back in order",
                report.objects,
                report.bytes,
                report.rows_read
            );
        }
        true => outln!("  {} object(s), {} bytes, {} rows read back", report.objects, report.bytes, report.rows_read),
        false => outln!("  {} object(s) there, {} bytes in all (--deep reads them)", report.objects, report.bytes),
    }
    for finding in &report.findings {
        outln!("  WRONG {}: {}", finding.object, finding.text);
    }
}
