//! `archiver status`: what an archive holds, from its logs alone; with `--daemon` also what a running archiver knows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tapedeck_common::commit::SegmentRef;
use tapedeck_common::{Timestamp, Window};
use tapedeck_daemon::{Exit, Failure};
use tapedeck_storage::log::TableView;
use tapedeck_storage::log::reach::{Reach, Reached};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cli;

/// How long a running archiver may take to answer.
const DAEMON_PATIENCE: Duration = Duration::from_secs(5);

/// What an archive holds.
#[derive(Debug, Serialize)]
struct ArchiveStatus {
    archive: String,
    archive_id: String,
    tables: Vec<TableStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    daemon: Option<serde_json::Value>,
}

/// What a table holds.
#[derive(Debug, Serialize)]
struct TableStatus {
    table: String,
    version: u64,
    committed_at: String,
    topics: Vec<TopicStatus>,
    lanes: BTreeMap<String, u64>,
    skipped: u64,
    gaps: Vec<GapStatus>,
}

#[derive(Debug, Serialize)]
struct TopicStatus {
    topic: String,
    events: u64,
    payload_bytes: u64,
    stored_bytes: u64,
    segments: u64,
    hours: u64,
    first_event: String,
    last_event: String,
    reached: Option<Reached>,
}

#[derive(Debug, Serialize)]
struct GapStatus {
    lane: String,
    from: u64,
    until: u64,
    cause: &'static str,
    record: u64,
}

/// Prints the status.
pub(super) async fn run(archive: cli::Archive, daemon: Option<String>, json: bool) -> Result<Exit, Failure> {
    let opened = super::open_archive(&archive).await?;
    let mut tables = Vec::new();
    for table in super::tables_of(&opened, None).await? {
        let summed = TableView::tally(&opened.store, &table, None, BTreeMap::new, TopicSum::add).await;
        let (view, sums) = summed.map_err(|error| Failure::new(error.kind(), error))?;
        tables.push(table_status(&view, sums));
    }
    let daemon = match daemon {
        Some(address) => Some(ask(&address).await?),
        None => None,
    };
    let status = ArchiveStatus { archive: opened.store.url.to_string(), archive_id: opened.config.id, tables, daemon };
    if json {
        outln!("{}", serde_json::to_string_pretty(&status).expect("plain data"));
    } else {
        print(&status);
    }
    Ok(Exit::Done)
}

/// What the segments of one topic add up to.
#[derive(Default)]
struct TopicSum {
    events: u64,
    payload_bytes: u64,
    stored_bytes: u64,
    segments: u64,
    hours: BTreeSet<Window>,
    times: Option<(Timestamp, Timestamp)>,
    reach: Reach,
}

impl TopicSum {
    fn add(sums: &mut BTreeMap<Arc<str>, Self>, segment: &SegmentRef) {
        let sum = sums.entry(Arc::clone(&segment.topic)).or_default();
        sum.events += segment.rows;
        sum.payload_bytes += segment.lanes.iter().map(|lane| lane.payload_bytes).sum::<u64>();
        sum.stored_bytes += segment.size;
        sum.segments += 1;
        sum.hours.insert(segment.window);
        sum.reach.add(segment);
        let (first, last) = sum.times.unwrap_or(segment.times);
        sum.times = Some((first.min(segment.times.0), last.max(segment.times.1)));
    }

    fn status(self, topic: &str) -> TopicStatus {
        let time = |time: Option<Timestamp>| time.map(|time| time.to_string()).unwrap_or_default();
        TopicStatus {
            topic: topic.to_owned(),
            events: self.events,
            payload_bytes: self.payload_bytes,
            stored_bytes: self.stored_bytes,
            segments: self.segments,
            hours: self.hours.len() as u64,
            first_event: time(self.times.map(|times| times.0)),
            last_event: time(self.times.map(|times| times.1)),
            reached: self.reach.reached(),
        }
    }
}

fn table_status(view: &TableView, sums: BTreeMap<Arc<str>, TopicSum>) -> TableStatus {
    let gaps = view.gaps.iter().map(|gap| GapStatus {
        lane: gap.lane.to_string(),
        from: gap.span.from().get(),
        until: gap.span.until().get(),
        cause: gap.cause.as_str(),
        record: gap.version,
    });
    TableStatus {
        table: view.table.clone(),
        version: view.version,
        committed_at: view.committed_at.to_string(),
        topics: sums.into_iter().map(|(topic, sum)| sum.status(&topic)).collect(),
        lanes: view.positions.iter().map(|(lane, next)| (lane.to_string(), next.get())).collect(),
        skipped: view.skipped.values().sum(),
        gaps: gaps.collect(),
    }
}

fn print(status: &ArchiveStatus) {
    outln!("archive {} ({})", status.archive, status.archive_id);
    if status.tables.is_empty() {
        outln!("  no tables yet");
    }
    for table in &status.tables {
        outln!(
            "\ntable {}: record {}, committed {}, {} lane(s)",
            table.table,
            table.version,
            table.committed_at,
            table.lanes.len()
        );
        for topic in &table.topics {
            outln!(
                "  topic {}: {} events, {} in {} segment(s) over {} hour(s), {} of payload",
                topic.topic,
                topic.events,
                size(topic.stored_bytes),
                topic.segments,
                topic.hours,
                size(topic.payload_bytes)
            );
            outln!("    event times {} to {}", topic.first_event, topic.last_event);
            if let Some(reached) = &topic.reached {
                outln!("    {}", super::reached(reached));
            }
        }
        if table.skipped > 0 {
            outln!("  {} copies that a replay published were left out", table.skipped);
        }
        for gap in &table.gaps {
            outln!("  GAP {} [{}, {}): lost on the bus ({})", gap.lane, gap.from, gap.until, gap.cause);
        }
    }
    if let Some(daemon) = &status.daemon {
        outln!("\nrunning archiver:");
        print_daemon(daemon);
        print_duties(daemon);
    }
}

fn print_daemon(daemon: &serde_json::Value) {
    let none = serde_json::Map::new();
    for (name, source) in daemon["sources"].as_object().unwrap_or(&none) {
        let lanes = source["lanes"].as_array().map_or(&[][..], Vec::as_slice);
        let oldest = source["oldest_unarchived"].as_str().unwrap_or("none");
        outln!(
            "  source {name}: {} lane(s), {} buffered event(s), oldest unarchived {oldest}",
            lanes.len(),
            source["buffered_events"]
        );
        for lane in lanes {
            let text = |key: &str| lane[key].as_u64().map_or_else(|| "-".to_owned(), |number| number.to_string());
            let (committed, end) = (text("committed"), text("bus_end"));
            let watermark = lane["watermark"].as_str().unwrap_or("-");
            outln!(
                "    {}: committed {committed} of {end}, archived up to {watermark}",
                lane["lane"].as_str().unwrap_or_default()
            );
        }
    }
}

fn print_duties(daemon: &serde_json::Value) {
    let none = serde_json::Map::new();
    for (name, duty) in daemon["maintain"].as_object().unwrap_or(&none) {
        let time = |key: &str| duty[key].as_str().unwrap_or("-").to_owned();
        let done = match &duty["done"] {
            serde_json::Value::Object(done) => {
                let part = |(name, count): (&String, &serde_json::Value)| format!("{name} {count}");
                format!(" ({})", done.iter().map(part).collect::<Vec<_>>().join(", "))
            }
            _ => String::new(),
        };
        let next = if duty["running"] == true { "running now".to_owned() } else { format!("next at {}", time("next")) };
        outln!("  maintenance {name}: last done {}{done}, {next}", time("succeeded"));
        if let Some(error) = duty["error"].as_str() {
            outln!("    failed at {}: {error}", time("ended"));
        }
    }
}

fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// Asks a running archiver over its admin endpoint, which speaks plain HTTP.
async fn ask(address: &str) -> Result<serde_json::Value, Failure> {
    let host = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/').to_owned();
    let unreachable = |why: String| Failure::new(Exit::Unavailable, format!("the archiver at {address} does not answer: {why}"));
    let answer = async {
        let mut stream = TcpStream::connect(&host).await?;
        // Version 1.0: the answer ends where the connection does.
        stream.write_all(format!("GET /api/v1/status HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer =
        tokio::time::timeout(DAEMON_PATIENCE, answer).await.map_err(|_| unreachable("no answer within 5 s".to_owned()))?;
    let answer = answer.map_err(|error| unreachable(error.to_string()))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).map_err(|error| unreachable(format!("what it says is no status ({error})")))
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_read_like_sizes() {
        let cases = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }
}
