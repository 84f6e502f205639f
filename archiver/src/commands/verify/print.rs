//! What `archiver verify` found, for people.

use tapedeck_storage::log::verify::TableReport;

use crate::against_bus::{Comparison, LaneOnBus, Standing, TopicOnBus, Verdict};

/// One table, from its log and its objects.
pub(super) fn table(report: &TableReport, deep: bool) {
    let chain = if report.is_complete() { " dense and linked" } else { "" };
    outln!(
        "table {}: records 0 to {}{chain}, {} segment(s), {} rows",
        report.table,
        report.version,
        report.segments,
        report.rows
    );
    for topic in &report.topics {
        outln!(
            "  topic {}: {} rows over {} hour(s), {} to {}",
            topic.topic,
            topic.rows,
            topic.hours,
            topic.first_hour,
            topic.last_hour
        );
        if let Some(reached) = &topic.reached {
            outln!("    {}", crate::commands::reached(reached));
        }
    }
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

/// What the comparison with the bus found.
pub(super) fn comparison(compared: &Comparison) {
    outln!("\nagainst the bus, asked at {}", compared.asked_at);
    for topic in &compared.topics {
        outln!("  topic {}: {}", topic.topic, standing_of(topic));
    }
    for topic in &compared.missing_topics {
        outln!("  topic {topic}: named in the configuration, not on the bus");
    }
    for lane in &compared.lanes {
        if let Some(text) = said_of(lane) {
            outln!("  {}: {text}", lane.lane);
        }
        if lane.before > 0 {
            outln!("  {}: {} position(s) of the bus are from before the lane began here (`start`)", lane.lane, lane.before);
        }
    }
    let others = compared.count(Standing::NotCompared);
    if others > 0 {
        outln!("  {others} lane(s) of topics or clusters that the configuration does not cover were not compared");
    }
    outln!("{}", verdict(compared.verdict));
}

fn standing_of(topic: &TopicOnBus) -> String {
    let partitions = topic.partitions;
    let gaps = match topic.lost_recorded {
        0 => String::new(),
        lost => format!(", but for {lost} position(s) that gaps name"),
    };
    match (&topic.complete_up_to, &topic.complete_hour) {
        (Some(moment), Some(hour)) => format!("complete up to {moment}, so up to hour {hour} ({partitions} partition(s)){gaps}"),
        _ => format!("not complete: {} of {partitions} partition(s) lack something{gaps}", topic.incomplete_partitions),
    }
}

/// `None` where there is nothing to say.
fn said_of(lane: &LaneOnBus) -> Option<String> {
    let number = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
    let (next, begin, end) = (number(lane.next), number(lane.bus_begin), number(lane.bus_end));
    let topic = lane.topic.as_deref().unwrap_or("?");
    Some(match lane.state {
        Standing::Archived | Standing::NotCompared => return None,
        Standing::Behind => format!("behind by {} position(s): archived up to {next}, the bus ends at {end}", lane.behind),
        Standing::Lost => format!(
            "LOST [{next}, {begin}), {} position(s): not archived, deleted on the bus, and no gap says so yet; behind by {} more",
            lane.lost, lane.behind
        ),
        Standing::Ahead => {
            format!("AHEAD by {} position(s): archived up to {next}, but the bus ends at {end}: it lost what it had", lane.ahead)
        }
        Standing::Unarchived if lane.is_complete() => "no lane yet, and nothing on the bus".to_owned(),
        Standing::Unarchived => format!("NOT ARCHIVED: the bus holds [{begin}, {end}), and no log knows the partition"),
        Standing::Unknown => {
            format!("NOT ANSWERED: {}", lane.problem.as_deref().unwrap_or("the bus says nothing of it"))
        }
        Standing::Recreated => {
            format!("topic {topic} was deleted and made again; archived up to {next}, what came after that is not known")
        }
        Standing::Gone => {
            format!("topic {topic} is not on the bus any more; archived up to {next}, what came after that is not known")
        }
    })
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Fine => "against the bus: nothing is missing but what is still to be had there",
        Verdict::Unarchived => "against the bus: partitions are NOT ARCHIVED",
        Verdict::Unknown => "against the bus: NOT EVERYTHING WAS ANSWERED",
        Verdict::Broken => "against the bus: NOT COMPLETE",
    }
}
