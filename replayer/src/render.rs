//! Plans, jobs and verdicts as text for people. Pure.
//!
//! Promises: the numbers of the data, only easier to read. Never: a number that is not in the data.

use std::fmt::Write as _;
use std::time::Duration;

use tapedeck_common::Timestamp;
use tapedeck_daemon::units::HumanDuration;

use crate::cursor::{Cursor, State};
use crate::plan::Plan;
use crate::report::Report;
use crate::verify::Verdict;

/// Lanes shown before the rest is summed up.
const LANES_SHOWN: usize = 40;

/// `1234567` as `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes with a unit, for reading only.
pub fn bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut amount, mut unit) = (bytes as f64, 0);
    while amount >= 1024.0 && unit + 1 < units.len() {
        amount /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{amount:.1} {}", units[unit]) }
}

/// A length of time to the second.
pub fn duration(seconds: f64) -> String {
    if seconds < 1.0 {
        return "under 1s".to_owned();
    }
    HumanDuration::new(Duration::from_secs(seconds.round() as u64)).to_string()
}

/// A table whose columns line up; `right` says which columns are numbers.
fn table(rows: &[Vec<String>], right: &[bool]) -> String {
    let columns = right.len();
    let widths: Vec<usize> =
        (0..columns).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::from(" ");
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            if right[column] { write!(line, " {cell:>width$} ") } else { write!(line, " {cell:<width$} ") }
                .expect("writing to a string");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn time(time: Option<Timestamp>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| time.to_string())
}

/// A plan.
pub fn plan(plan: &Plan) -> String {
    let mut rows =
        vec![["topic", "partition", "events", "bytes", "offsets", "left out", "from", "to"].map(str::to_owned).to_vec()];
    for lane in plan.lanes.iter().take(LANES_SHOWN) {
        rows.push(vec![
            lane.topic.clone(),
            lane.partition.to_string(),
            count(lane.events),
            bytes(lane.bytes),
            format!("{}..{}", lane.first, lane.last.next()),
            count(lane.left_out),
            time(lane.earliest),
            time(lane.latest),
        ]);
    }
    let mut text = table(&rows, &[false, true, true, true, false, true, false, false]);
    if plan.lanes.len() > LANES_SHOWN {
        let rest: u64 = plan.lanes[LANES_SHOWN..].iter().map(|lane| lane.events).sum();
        writeln!(text, "  and {} more partitions with {} events (--json shows all)", plan.lanes.len() - LANES_SHOWN, count(rest))
            .expect("string");
    }
    let totals = &plan.totals;
    text.push('\n');
    let mut line = |name: &str, value: String| writeln!(text, "{name:<10} {value}").expect("writing to a string");
    line("events", format!("{} ({})", count(totals.events), bytes(totals.bytes)));
    line(
        "reads",
        format!(
            "{} files, {}, about {} requests",
            count(totals.files),
            bytes(totals.file_bytes),
            count(totals.requests_estimate)
        ),
    );
    line("target", plan.target.describe());
    let speed = plan.duration_seconds.map_or_else(
        || "no limit: as fast as the target takes it".to_owned(),
        |seconds| {
            let rates = [
                plan.limits.events.map(|rate| format!("{} events/s", count(rate as u64))),
                plan.limits.bytes.map(|rate| format!("{}/s", bytes(rate as u64))),
            ];
            format!("{} at {}", duration(seconds), rates.into_iter().flatten().collect::<Vec<_>>().join(" and "))
        },
    );
    line("duration", speed);
    line("twice", plan.duplicate_window.clone());
    for gap in &plan.gaps {
        line(
            "gap",
            format!("{} partition {}: offsets {}..{} are lost ({})", gap.topic, gap.partition, gap.from, gap.until, gap.cause),
        );
    }
    for warning in &plan.warnings {
        line("warning", warning.clone());
    }
    line("hash", plan.hash.clone());
    text
}

/// How a job stands.
pub fn job(plan: &Plan, cursor: Option<&Cursor>, now: Timestamp) -> String {
    let (state, done) = cursor.map_or((State::Planned, 0), |cursor| (cursor.state, cursor.events()));
    let total = plan.totals.events;
    let percent = if total == 0 { 100.0 } else { done as f64 * 100.0 / total as f64 };
    let mut text = format!("{} ({} of {} events, {percent:.1} %)", state.as_str(), count(done), count(total));
    if let Some(cursor) = cursor {
        if let Some(reason) = &cursor.reason {
            write!(text, ": {reason}").expect("writing to a string");
        }
        if let Some(at) = cursor.at {
            write!(text, ", last sign of life {} ago", duration(now.since(at).as_secs_f64())).expect("writing to a string");
        }
    }
    text
}

/// A report.
pub fn report(report: &Report) -> String {
    let mut text = format!(
        "job {} {}: {} of {} events to {} in {} ({} events/s)",
        report.job,
        report.result.as_str(),
        count(report.confirmed),
        count(report.planned),
        report.target,
        duration(report.active_seconds),
        count(report.events_per_second as u64),
    );
    if let Some(reason) = &report.reason {
        write!(text, "\n{reason}").expect("writing to a string");
    }
    text
}

/// A verdict.
pub fn verdict(verdict: &Verdict) -> String {
    let mut rows = vec![
        ["topic", "partition", "planned", "proved", "missing", "twice", "foreign", "differing", "out of order"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for lane in verdict.lanes.iter().take(LANES_SHOWN) {
        let found = &lane.findings;
        let numbers =
            [found.planned, found.proved, found.missing, found.duplicates, found.phantom, found.corrupted, found.out_of_order];
        rows.push([lane.topic.clone(), lane.partition.to_string()].into_iter().chain(numbers.map(count)).collect());
    }
    let mut text = table(&rows, &[false, true, true, true, true, true, true, true, true]);
    let total = &verdict.total;
    writeln!(text).expect("writing to a string");
    if total.duplicates > 0 {
        let (far, window) = (count(total.farthest_duplicate), count(verdict.duplicate_window));
        writeln!(text, "{} events came twice, at most {far} events back; {window} were stated", count(total.duplicates))
            .expect("string");
    }
    if verdict.misplaced > 0 {
        writeln!(text, "{} events of the job stand in a partition that is not theirs", count(verdict.misplaced)).expect("string");
    }
    if verdict.others > 0 {
        writeln!(text, "{} events at the target are not of this job", count(verdict.others)).expect("string");
    }
    if verdict.stamped_by_broker > 0 {
        writeln!(text, "{} events have the broker's time; theirs was compared by x-replay-ts", count(verdict.stamped_by_broker))
            .expect("string");
    }
    let (job, proved, planned) = (&verdict.job, count(total.proved), count(total.planned));
    let end = if verdict.good { "everything arrived, byte for byte and in order" } else { "this is NOT what was planned" };
    writeln!(text, "job {job}: {proved} of {planned} events proved; {end}").expect("writing to a string");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0, 1_023, 1_536, 3 << 30].map(bytes), ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]);
        assert_eq!(duration(0.2), "under 1s");
    }

    #[test]
    fn tables_line_up() {
        let rows = [vec!["a".to_owned(), "10".to_owned()], vec!["bcd".to_owned(), "7".to_owned()]];
        assert_eq!(table(&rows, &[false, true]), "  a    10\n  bcd   7\n");
    }
}
