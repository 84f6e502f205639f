//! Events as JSON lines: `replayer cat`, and `--to stdout:`.
//!
//! Promises: one line an event, lanes in order; bytes that are no text come as base64 and say so. A reader that has seen
//! enough ends it quietly. Never: interpret a payload.

use std::io::{self, Write};

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use serde::ser::{SerializeSeq as _, SerializeStruct as _};
use serde::{Serialize, Serializer};
use tapedeck_common::event::Header;
use tapedeck_storage::segment::EventBatch;
use tokio::sync::mpsc;

use crate::plan::Plan;
use crate::stream::{Chunk, StreamError};

/// Why printing ended early.
#[derive(Debug, thiserror::Error)]
pub enum CatError {
    /// The archive could not be read.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// Nobody takes the lines.
    #[error("cannot write to stdout")]
    Write(#[from] io::Error),
}

/// Prints events until there are no more, or `limit` is reached, or the reader goes away. Answers how many.
pub async fn print(
    plan: &Plan,
    mut chunks: mpsc::Receiver<Result<Chunk, StreamError>>,
    out: &mut impl Write,
    limit: Option<u64>,
) -> Result<u64, CatError> {
    let mut printed = 0;
    while let Some(chunk) = chunks.recv().await {
        match print_chunk(plan, &chunk?, out, limit, &mut printed) {
            Ok(()) if limit.is_none_or(|limit| printed < limit) => {}
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(printed),
            Err(error) => return Err(error.into()),
        }
    }
    match out.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(printed),
    }
}

fn print_chunk(plan: &Plan, chunk: &Chunk, out: &mut impl Write, limit: Option<u64>, printed: &mut u64) -> io::Result<()> {
    for piece in chunk {
        let topic = &plan.lanes[piece.lane as usize].topic;
        for row in piece.rows.clone() {
            if limit.is_some_and(|limit| *printed >= limit) {
                return Ok(());
            }
            print_event(out, topic, &piece.batch.events, row)?;
            *printed += 1;
        }
    }
    Ok(())
}

fn print_event(out: &mut impl Write, topic: &str, batch: &EventBatch, row: usize) -> io::Result<()> {
    let event = batch.row(row);
    let mut headers = Vec::new();
    batch.headers(row, &mut headers);
    let line = Line {
        topic,
        partition: event.partition,
        offset: event.position.get(),
        ts: event.time.millis_floor(),
        time: event.time.to_string(),
        time_kind: event.time_kind.as_str(),
        key: event.key,
        value: event.value,
        headers: &headers,
    };
    serde_json::to_writer(&mut *out, &line).map_err(io::Error::from)?;
    out.write_all(b"\n")
}

/// One event as it is printed.
struct Line<'a> {
    topic: &'a str,
    partition: i32,
    offset: u64,
    ts: i64,
    time: String,
    time_kind: &'static str,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: &'a [Header<'a>],
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let mut line = out.serialize_struct("event", 11)?;
        line.serialize_field("topic", self.topic)?;
        line.serialize_field("partition", &self.partition)?;
        line.serialize_field("offset", &self.offset)?;
        line.serialize_field("ts", &self.ts)?;
        line.serialize_field("time", &self.time)?;
        line.serialize_field("tstype", self.time_kind)?;
        line.serialize_field("key", &Text(self.key))?;
        if is_binary(self.key) {
            line.serialize_field("key_encoding", "base64")?;
        }
        line.serialize_field("value", &Text(self.value))?;
        if is_binary(self.value) {
            line.serialize_field("value_encoding", "base64")?;
        }
        line.serialize_field("headers", &Headers(self.headers))?;
        line.end()
    }
}

fn is_binary(bytes: Option<&[u8]>) -> bool {
    bytes.is_some_and(|bytes| std::str::from_utf8(bytes).is_err())
}

/// Bytes as text, or as base64 if they are none; null stays null.
struct Text<'a>(Option<&'a [u8]>);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self.0.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
            None => out.serialize_none(),
            Some((_, Ok(text))) => out.serialize_str(text),
            Some((bytes, Err(_))) => out.collect_str(&Base64Display::new(bytes, &STANDARD)),
        }
    }
}

struct Headers<'a>(&'a [Header<'a>]);

impl Serialize for Headers<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let mut list = out.serialize_seq(Some(self.0.len()))?;
        for (name, value) in self.0 {
            if is_binary(*value) {
                list.serialize_element(&(name, Text(*value), "base64"))?;
            } else {
                list.serialize_element(&(name, Text(*value)))?;
            }
        }
        list.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<'a>(key: Option<&'a [u8]>, value: Option<&'a [u8]>, headers: &'a [Header<'a>]) -> String {
        let line = Line {
            topic: "orders",
            partition: 2,
            offset: 7,
            ts: 1_795_082_400_123,
            time: "2026-11-19T10:00:00.123Z".into(),
            time_kind: "create",
            key,
            value,
            headers,
        };
        serde_json::to_string(&line).expect("plain data")
    }

    #[test]
    fn text_is_shown_as_text_and_bytes_say_that_they_are_base64() {
        let plain = line(Some(b"k"), None, &[("a", None), ("a", Some(b"x"))]);
        let expected = r#"{"topic":"orders","partition":2,"offset":7,"ts":1795082400123,"time":"2026-11-19T10:00:00.123Z","tstype":"create","key":"k","value":null,"headers":[["a",null],["a","x"]]}"#;
        assert_eq!(plain, expected);
        let bytes = line(None, Some(b"\xff\x00"), &[("b", Some(b"\xfe"))]);
        assert!(
            bytes.contains(r#""key":null,"value":"/wA=","value_encoding":"base64","headers":[["b","/g==","base64"]]"#),
            "{bytes}"
        );
    }
}
