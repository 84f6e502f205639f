//! RabbitMQ into the archive, on a real broker. A stream: every event once, bit for bit, whatever is killed; what the broker lost is
//! written down; a stream that is shorter than the archive is not mixed with it. A queue: every message at least once, and what came
//! again is marked. The truth is what a client of its own reads, or sent.

#![allow(clippy::disallowed_methods, reason = "real servers live in real time; the seed is printed")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use support::{PATIENCE, Site, block_on, metric, number};
use tapedeck_rabbitmq::table;
use tapedeck_storage::layout;
use tapedeck_storage::segment::{EventBatch, Scan, SegmentReader};
use tapedeck_testbed::events::nasty_amqp::NastyAmqp;
use tapedeck_testbed::rabbitmq::types::{AMQPValue, FieldTable};
use tapedeck_testbed::rabbitmq::{BasicProperties, QueueKind, read_queue, read_stream, read_stream_while};
use tapedeck_testbed::{RabbitEvent, RabbitLoader, RabbitServer, Running, has_rabbitmq, shared_rabbitmq, wait_until};

/// The stages of a batch, by the words with which each begins.
const STAGES: [&str; 4] = ["batch opened", "batch sealed, storing", "segments stored, committing", "\"committed\""];

fn event(stream: &str, number: u64) -> RabbitEvent {
    let mut headers = FieldTable::default();
    headers.insert("number".into(), AMQPValue::LongLongInt(number as i64));
    headers.insert("name".into(), AMQPValue::LongString(format!("ü {number}").into()));
    let properties = BasicProperties::default()
        .with_message_id(number.to_string().into())
        .with_timestamp(1_760_000_000 + number / 1_000)
        .with_headers(headers);
    RabbitEvent { properties, ..RabbitEvent::to_queue(stream, vec![number as u8; (number % 200) as usize]) }
}

fn load(server: &RabbitServer, stream: &str, numbers: std::ops::Range<u64>) -> Result<()> {
    let mut loader = RabbitLoader::new(&server.uri())?;
    for number in numbers {
        loader.send(event(stream, number))?;
    }
    loader.finish()
}

/// Rows of a table by source and offset, each with the digest of the event that it was.
fn archived(site: &Site, table: &str) -> Result<BTreeMap<(String, u64), u64>> {
    let mut rows = BTreeMap::new();
    each_row(site, table, |source, batch, row| {
        let at = (source.to_owned(), batch.row(row).position.get());
        let double = rows.insert(at.clone(), event_of(batch, row)?.digest());
        ensure!(double.is_none(), "{at:?} is there twice");
        Ok(())
    })?;
    Ok(rows)
}

fn each_row(site: &Site, table: &str, mut each: impl FnMut(&str, &EventBatch, usize) -> Result<()>) -> Result<()> {
    let store = site.store()?;
    let view = site.view(table)?.context("the table is there")?;
    for live in &view.segments {
        let key = layout::table_object(&view.table, &live.segment.path);
        block_on(async {
            let reader = SegmentReader::open_vouched(Arc::clone(&store.store), key, &live.segment).await?;
            let mut scan = reader.scan(Scan::default());
            while let Some(batch) = scan.next().await? {
                for row in 0..batch.len() {
                    each(&live.segment.source, &batch, row)?;
                }
            }
            anyhow::Ok(())
        })?;
    }
    Ok(())
}

/// The event that a row was.
fn event_of(batch: &EventBatch, row: usize) -> Result<RabbitEvent> {
    let fields = batch.row(row);
    let mut event = RabbitEvent {
        routing_key: String::from_utf8(fields.key.context("a routing key is never null")?.to_vec())?,
        body: fields.value.context("a body is never null")?.to_vec(),
        ..RabbitEvent::default()
    };
    for (name, text) in batch.properties(row) {
        let bare = std::mem::take(&mut event.properties);
        event.properties = match name {
            "exchange" => {
                event.exchange = text.to_owned();
                bare
            }
            "headers" => bare.with_headers(table::read(text).context("typed headers")?),
            "content_type" => bare.with_content_type(text.into()),
            "content_encoding" => bare.with_content_encoding(text.into()),
            "delivery_mode" => bare.with_delivery_mode(text.parse()?),
            "priority" => bare.with_priority(text.parse()?),
            "correlation_id" => bare.with_correlation_id(text.into()),
            "reply_to" => bare.with_reply_to(text.into()),
            "expiration" => bare.with_expiration(text.into()),
            "message_id" => bare.with_message_id(text.into()),
            "timestamp" => bare.with_timestamp(text.parse()?),
            "type" => bare.with_type(text.into()),
            "user_id" => bare.with_user_id(text.into()),
            "app_id" => bare.with_app_id(text.into()),
            "cluster_id" => bare.with_cluster_id(text.into()),
            // What the broker of a queue says of earlier deliveries.
            "redelivered" | "delivery_count" | "acquired_count" => bare,
            other => anyhow::bail!("nobody knows a property {other}"),
        };
    }
    Ok(event)
}

/// What another reader sees of the stream, under the name of this source.
fn truth(server: &RabbitServer, stream: &str, source: &str, from: u64, until: u64) -> Result<BTreeMap<(String, u64), u64>> {
    let events = read_stream(&server.uri(), stream, from, until)?;
    Ok(events.into_iter().map(|(offset, event)| ((source.to_owned(), offset), event.digest())).collect())
}

fn source_of(server: &RabbitServer, stream: &str, generation: u32) -> Result<String> {
    Ok(format!("rabbitmq-stream/{}/%2F/{stream}/{generation}", server.admin().cluster_name()?))
}

fn first_offset(server: &RabbitServer, stream: &str) -> Result<u64> {
    let mut first = 0;
    read_stream_while(&server.uri(), stream, 0, |offset, _| {
        first = offset;
        Ok(false)
    })?;
    Ok(first)
}

fn end(archiver: Running) -> Result<()> {
    archiver.terminate()?;
    let ended = archiver.wait(PATIENCE)?;
    ensure!(ended.code == Some(0), "{:?}\n{}", ended.code, ended.stderr);
    Ok(())
}

/// At least so many events, and for as long as things are killed; answers how many there were.
fn produce(server: &RabbitServer, stream: &str, events: u64, stop: &AtomicBool) -> Result<u64> {
    let (mut loader, mut number) = (RabbitLoader::new(&server.uri())?, 0);
    while number < events || !stop.load(Ordering::Relaxed) {
        loader.send(event(stream, number))?;
        number += 1;
        if number % 500 == 0 && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    loader.finish()?;
    Ok(number)
}

/// Archivers that are killed, one after another; answers the one that lives at the end.
fn kill_in_turns(server: &RabbitServer, site: &Site, source: &str, kills: usize) -> Result<Running> {
    let mut archiver = site.archiver()?;
    for kill in 0..kills {
        archiver.wait_for_text("connected to RabbitMQ", PATIENCE)?;
        if kill % 2 == 0 {
            // A connection that breaks is no crash: the same process goes on.
            let title = format!("tapedeck archiver {source}");
            // For some seconds the broker lists connections of a killed process, and not yet those of the next.
            wait_until("a connection to be closed", PATIENCE, || Ok(server.admin().close_connections(&title)? > 0))?;
            archiver.wait_for_text("trying again", PATIENCE)?;
        }
        let words = STAGES[kill % STAGES.len()];
        let seen = archiver.stderr().matches(words).count();
        wait_until(words, PATIENCE, || {
            archiver.must_run()?;
            Ok(archiver.stderr().matches(words).count() > seen)
        })?;
        archiver.kill9()?;
        archiver = site.archiver()?;
    }
    Ok(archiver)
}

#[test]
fn a_stream_is_archived_exactly_once() -> Result<()> {
    if !has_rabbitmq() {
        return Ok(());
    }
    let (server, stream, least) = (shared_rabbitmq(), "once", number("TAPEDECK_EVENTS", 100_000));
    let kills = number("TAPEDECK_KILLS", 5) as usize;
    println!("RabbitMQ {}", server.admin().version()?);
    server.admin().declare(stream, QueueKind::Stream, json!({}))?;
    let mut site = Site::on_disk()?.rabbit_source(stream, server, &format!("stream: {stream}"));
    site.settings = site.settings.replace("max_age: 2s", "max_age: 500ms");
    let stop = AtomicBool::new(false);
    let (archiver, events) = std::thread::scope(|scope| -> Result<(Running, u64)> {
        let producer = scope.spawn(|| produce(server, stream, least, &stop));
        let killed = kill_in_turns(server, &site, stream, kills);
        stop.store(true, Ordering::Relaxed);
        let events = producer.join().map_err(|_| anyhow::anyhow!("the producer panicked"))??;
        Ok((killed?, events))
    })?;
    site.wait_for_rows(stream, events)?;
    ensure!(metric(&archiver, "tapedeck_archiver_stream_holes_total", "")? == 0.0);
    end(archiver)?;
    let source = source_of(server, stream, 0)?;
    let (archived, truth) = (archived(&site, stream)?, truth(server, stream, &source, 0, events)?);
    ensure!(archived.len() as u64 == events && archived == truth, "{} of {} are there", archived.len(), truth.len());
    site.verify(&["--deep"])?;
    Ok(())
}

#[test]
fn what_retention_took_first_is_written_down() -> Result<()> {
    if !has_rabbitmq() {
        return Ok(());
    }
    let (server, stream) = (shared_rabbitmq(), "aged");
    let small = json!({ "x-max-length-bytes": 400_000, "x-stream-max-segment-size-bytes": 100_000 });
    server.admin().declare(stream, QueueKind::Stream, small)?;
    let site = Site::on_disk()?.rabbit_source("main", server, &format!("stream: {stream}"));
    load(server, stream, 0..500)?;
    let archiver = site.archiver()?;
    site.wait_for_rows(stream, 500)?;
    end(archiver)?;
    let end_of_first = end_of(server, stream, 500)?;
    let mut next = 500;
    overtake(server, stream, &mut next, 1_000)?;
    let mut archiver = site.archiver()?;
    let lost = caught_up(&site, &mut archiver, stream, end_of(server, stream, next)?, 0)?;
    // Now while it reads, and is too slow.
    archiver.freeze()?;
    let at = next;
    overtake(server, stream, &mut next, at + 2_000)?;
    archiver.thaw()?;
    let until = end_of(server, stream, next)?;
    let lost = caught_up(&site, &mut archiver, stream, until, lost)?;
    let holes = metric(&archiver, "tapedeck_archiver_stream_holes_total", "")? as u64;
    end(archiver)?;
    let rows = archived(&site, stream)?;
    println!("{} archived, {lost} positions lost and {holes} without an event of {until}", rows.len());
    ensure!(rows.len() as u64 + lost + holes == until - (end_of_first - 500), "something is neither here nor there");
    // Segments of the stream begin with a position that is no event.
    ensure!(holes < 100 && lost > 1_000, "a loss was taken for a hole");
    let there = truth(server, stream, &source_of(server, stream, 0)?, first_offset(server, stream)?, until)?;
    ensure!(there.iter().all(|(at, digest)| rows.get(at) == Some(digest)), "an event is not what it was");
    site.verify(&["--deep"])?;
    Ok(())
}

/// Events until retention has deleted all before `position`.
fn overtake(server: &RabbitServer, stream: &str, next: &mut u64, position: u64) -> Result<()> {
    wait_until("the broker to delete what was not archived", PATIENCE, || {
        load(server, stream, *next..*next + 2_000)?;
        *next += 2_000;
        Ok(first_offset(server, stream)? > position)
    })
}

/// The offset after event `count - 1`.
fn end_of(server: &RabbitServer, stream: &str, count: u64) -> Result<u64> {
    let (last, mut end) = ((count - 1).to_string(), 0);
    read_stream_while(&server.uri(), stream, 0, |offset, event| {
        end = offset + 1;
        Ok(event.properties.message_id().as_ref().is_none_or(|id| id.as_str() != last))
    })?;
    Ok(end)
}

/// Waits until the log stands at `until`, and more positions are lost than `before`. Answers how many.
fn caught_up(site: &Site, archiver: &mut Running, stream: &str, until: u64, before: u64) -> Result<u64> {
    archiver.wait_for_text("admin endpoint", PATIENCE)?;
    let mut lost = 0;
    wait_until("the log to stand at the end", PATIENCE, || {
        lost = metric(archiver, "tapedeck_archiver_gap_events_total", "retention")? as u64;
        let stands = site.view(stream)?.and_then(|view| view.positions.values().max().map(|position| position.get()));
        Ok(before < lost && stands == Some(until))
    })
    .with_context(|| format!("{lost} lost before {until}\n{}", archiver.stderr()))?;
    Ok(lost)
}

#[test]
fn a_stream_that_is_shorter_than_the_archive_halts_and_begins_anew_only_if_told() -> Result<()> {
    if !has_rabbitmq() {
        return Ok(());
    }
    let (server, stream) = (shared_rabbitmq(), "short");
    server.admin().declare(stream, QueueKind::Stream, json!({}))?;
    load(server, stream, 0..1_000)?;
    let site = Site::on_disk()?.rabbit_source("main", server, &format!("stream: {stream}"));
    let archiver = site.archiver()?;
    site.wait_for_rows(stream, 1_000)?;
    end(archiver)?;
    server.admin().delete(stream)?;
    server.admin().declare(stream, QueueKind::Stream, json!({}))?;
    load(server, stream, 5_000..5_300)?;
    let mut archiver = site.archiver()?;
    archiver.wait_for_text("the archive is ahead of the bus", PATIENCE)?;
    wait_until("the halt to be counted", PATIENCE, || {
        Ok(metric(&archiver, "tapedeck_archiver_lanes_halted_total", stream)? == 1.0)
    })?;
    ensure!(site.rows(stream)? == 1_000, "two histories are mixed");
    end(archiver)?;
    // The same archive, told that it is another stream.
    let site = site.rabbit_source_only("main", server, &format!("stream: {stream}, on_recreated: begin"));
    let archiver = site.archiver()?;
    site.wait_for_rows(stream, 1_300)?;
    end(archiver)?;
    // And what it is now goes on without a word.
    load(server, stream, 5_300..5_400)?;
    let archiver = site.archiver()?;
    site.wait_for_rows(stream, 1_400)?;
    end(archiver)?;
    let (rows, now) = (archived(&site, stream)?, truth(server, stream, &source_of(server, stream, 1)?, 0, 400)?);
    ensure!(rows.len() == 1_400 && now.len() == 400 && now.iter().all(|(at, digest)| rows.get(at) == Some(digest)));
    site.verify(&["--deep"])?;
    Ok(())
}

/// The copies of each message: how many, and how many of them are marked as handed over before.
fn copies(site: &Site, queue: &str) -> Result<BTreeMap<u64, (u64, u64)>> {
    let mut copies: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    each_row(site, queue, |_, batch, row| {
        let number = batch.property(row, "message_id").context("every message has its number")?.parse()?;
        ensure!(event_of(batch, row)?.digest() == event(queue, number).digest(), "message {number} is not what was sent");
        let (all, marked) = copies.entry(number).or_default();
        *all += 1;
        *marked += u64::from(batch.property(row, "redelivered") == Some("true"));
        Ok(())
    })?;
    Ok(copies)
}

#[test]
fn a_queue_loses_nothing_over_kills_and_what_comes_again_is_marked() -> Result<()> {
    const PREFETCH: u64 = 500;
    if !has_rabbitmq() {
        return Ok(());
    }
    let (server, queue, kills) = (shared_rabbitmq(), "jobs", number("TAPEDECK_KILLS", 5) as usize);
    // Before 4.0 there is no limit unless somebody sets one, and no way to say so.
    let is_old = server.admin().version()?.starts_with("3.");
    let without_limit = if is_old { json!({}) } else { json!({ "x-delivery-limit": -1 }) };
    server.admin().declare(queue, QueueKind::Quorum, without_limit)?;
    let what = format!("queue: {queue}, delivery_limit: accepted, prefetch: {{ events: {PREFETCH} }}");
    let mut site = Site::on_disk()?.rabbit_source(queue, server, &what);
    site.settings = site.settings.replace("max_age: 2s", "max_age: 500ms");
    let stop = AtomicBool::new(false);
    let (archiver, events) = std::thread::scope(|scope| -> Result<(Running, u64)> {
        let producer = scope.spawn(|| produce(server, queue, 20_000, &stop));
        let killed = kill_in_turns(server, &site, queue, kills);
        stop.store(true, Ordering::Relaxed);
        let events = producer.join().map_err(|_| anyhow::anyhow!("the producer panicked"))??;
        Ok((killed?, events))
    })?;
    wait_until("the queue to be empty", PATIENCE, || {
        let depth = server.admin().depth(queue)?;
        Ok(site.rows(queue)? >= events && depth.ready + depth.unacked == 0)
    })?;
    let windows = metric(&archiver, "tapedeck_archiver_seals_total", "window")?;
    end(archiver)?;
    let copies = copies(&site, queue)?;
    let (again, unmarked) = copies
        .values()
        .fold((0, 0), |(again, unmarked), (all, marked)| (again + all - 1, unmarked + (all - 1).saturating_sub(*marked)));
    println!("{events} messages, {again} came again, {unmarked} of them unmarked, {windows} batches sealed for the window");
    ensure!(copies.len() as u64 == events && copies.keys().copied().eq(0..events), "{} of {events} are there", copies.len());
    ensure!(unmarked == 0 && windows > 0.0);
    // Connections are closed before every other kill; each end brings back what was not acknowledged.
    let ends = (kills + kills.div_ceil(2)) as u64;
    ensure!(again <= ends * 2 * PREFETCH, "{again} copies after {ends} ends");
    let left = server.admin().depth(queue)?;
    ensure!(left.ready + left.unacked == 0, "{left:?}");
    site.verify(&["--deep"])?;
    Ok(())
}

#[test]
fn a_stream_is_not_read_as_a_queue_nor_a_queue_as_a_stream() -> Result<()> {
    if !has_rabbitmq() {
        return Ok(());
    }
    let server = shared_rabbitmq();
    server.admin().declare("taken", QueueKind::Stream, json!({}))?;
    server.admin().declare("for.another", QueueKind::Classic, json!({}))?;
    for (name, what) in [("taken", "queue: taken, delivery_limit: accepted"), ("for.another", "stream: for.another")] {
        load(server, name, 0..10)?;
        let site = Site::on_disk()?.rabbit_source("main", server, what);
        let ended = site.archiver()?.wait(PATIENCE)?;
        ensure!(ended.code == Some(78) && ended.stderr.contains("name it as `"), "{what}: {:?}\n{}", ended.code, ended.stderr);
        ensure!(site.rows(name)? == 0);
    }
    Ok(())
}

#[test]
fn a_queue_that_may_drop_messages_is_refused_before_anything_is_taken() -> Result<()> {
    if !has_rabbitmq() {
        return Ok(());
    }
    let (server, queue) = (shared_rabbitmq(), "dropping");
    server.admin().declare(queue, QueueKind::Quorum, json!({}))?;
    load(server, queue, 0..10)?;
    if server.admin().version()?.starts_with("3.") {
        // It has no limit unless somebody set one.
        return Ok(());
    }
    let site = Site::on_disk()?.rabbit_source("main", server, &format!("queue: {queue}"));
    let ended = site.archiver()?.wait(PATIENCE)?;
    ensure!(ended.code == Some(78) && ended.stderr.contains("delivery_limit: accepted"), "{:?}\n{}", ended.code, ended.stderr);
    let there = read_queue(&server.uri(), queue)?;
    ensure!(there.len() == 10 && there.iter().all(|taken| !taken.redelivered), "somebody had them: {there:?}");
    Ok(())
}

#[test]
fn whatever_amqp_can_say_is_archived_bit_for_bit() -> Result<()> {
    if !has_rabbitmq() {
        return Ok(());
    }
    let (server, queue, stream) = (shared_rabbitmq(), "nasty.queue", "nasty.stream");
    let is_old = server.admin().version()?.starts_with("3.");
    let without_limit = if is_old { json!({}) } else { json!({ "x-delivery-limit": -1 }) };
    server.admin().declare(queue, QueueKind::Quorum, without_limit)?;
    server.admin().declare(stream, QueueKind::Stream, json!({}))?;
    // A stream takes no decimals.
    let to_queue = NastyAmqp { exchange: "to.queue".to_owned(), ..NastyAmqp::default() };
    let to_stream = NastyAmqp { exchange: "to.stream".to_owned(), decimals: false, ..NastyAmqp::default() };
    to_queue.load(server, &[queue])?;
    to_stream.load(server, &[stream])?;
    let site = Site::on_disk()?
        .rabbit_source("queue", server, &format!("queue: {queue}, delivery_limit: accepted"))
        .rabbit_source("stream", server, &format!("stream: {stream}"));
    let archiver = site.archiver()?;
    for (table, nasty) in [(queue, &to_queue), (stream, &to_stream)] {
        site.wait_for_rows(table, nasty.count)?;
    }
    end(archiver)?;
    let mut there: Vec<u64> = archived(&site, queue)?.into_values().collect();
    there.sort_unstable();
    let is_there = |index: &u64| there.binary_search(&to_queue.event(*index).digest()).is_ok();
    let missing: Vec<u64> = (0..to_queue.count).filter(|index| !is_there(index)).collect();
    let first = missing.first().map(|index| to_queue.event(*index));
    ensure!(
        missing.is_empty() && there.len() as u64 == to_queue.count,
        "{} of {}: {missing:?} {first:?}",
        missing.len(),
        there.len()
    );
    // What the broker converts on the way into a stream is its own affair: the truth is what another client reads.
    let rows = archived(&site, stream)?;
    let until = rows.keys().map(|(_, offset)| offset + 1).max().context("rows")?;
    let read = read_stream(&server.uri(), stream, 0, until)?;
    ensure!(read.len() == rows.len() && rows.len() as u64 == to_stream.count, "{} read, {} rows", read.len(), rows.len());
    for ((offset, event), ((_, at), digest)) in read.iter().zip(&rows) {
        ensure!(offset == at && event.digest() == *digest, "offset {offset}: {event:?}");
    }
    site.verify(&["--deep"])?;
    Ok(())
}
