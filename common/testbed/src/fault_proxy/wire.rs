//! Requests and answers as bytes: enough of HTTP/1.1 to know where each ends. A request has a length before its body or none.

use std::io::{BufRead, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, bail};

use super::{HttpFault, Seen};

/// A request whose bytes were kept.
#[derive(Debug, Clone)]
pub(super) struct RawRequest {
    pub(super) method: String,
    pub(super) target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl RawRequest {
    pub(super) fn seen(&self, fault: Option<HttpFault>) -> Seen {
        let headers = self.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
        let body = String::from_utf8_lossy(&self.body).into_owned();
        Seen { method: self.method.clone(), target: self.target.clone(), headers, body, fault, answered: false }
    }

    /// The same request, but for who closes the connection; no signature covers that.
    fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        for (name, value) in self.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("connection")) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("Connection: close\r\n\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// Reads the next request; `None` when the client is done.
pub(super) fn read_request(reader: &mut impl BufRead) -> Result<Option<RawRequest>> {
    let Some(first) = read_line(reader)? else { return Ok(None) };
    let mut words = first.split(' ');
    let method = words.next().context("a method")?.to_owned();
    let target = words.next().context("a target")?.to_owned();
    let mut headers = Vec::new();
    while let Some(line) = read_line(reader)?.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').context("a header")?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let find = |wanted: &str| headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
    if find("transfer-encoding").is_some() {
        bail!("a request in chunks");
    }
    let length = find("content-length").map_or(Ok(0), |(_, length)| length.parse())?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(RawRequest { method, target, headers, body }))
}

fn read_line(reader: &mut impl BufRead) -> Result<Option<String>> {
    let mut line = String::new();
    match reader.read_line(&mut line)? {
        0 => Ok(None),
        _ => Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned())),
    }
}

/// A whole answer, from its status line to the end of its body.
#[derive(Debug)]
pub(super) struct RawAnswer {
    bytes: Vec<u8>,
    head_bytes: usize,
}

/// Sends a request over a connection of its own, and reads the answer to its end.
pub(super) fn ask(server: SocketAddr, request: &RawRequest) -> Result<RawAnswer> {
    let mut stream = TcpStream::connect(server).with_context(|| format!("{server}"))?;
    stream.set_nodelay(true)?;
    stream.write_all(&request.bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").context("the answer has no end of its head")?;
    Ok(RawAnswer { bytes, head_bytes: end + 4 })
}

impl RawAnswer {
    fn head(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes[..self.head_bytes])
    }

    pub(super) fn status(&self) -> Result<u16> {
        Ok(self.head().split(' ').nth(1).context("a status")?.parse()?)
    }

    /// For a client that goes on with the connection.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let head = self.head();
        let ends_us = |line: &&str| line.to_ascii_lowercase().starts_with("connection:");
        let lines: Vec<&str> = head.trim_end().split("\r\n").filter(|line| !ends_us(line)).collect();
        let mut bytes = (lines.join("\r\n") + "\r\n\r\n").into_bytes();
        bytes.extend_from_slice(&self.bytes[self.head_bytes..]);
        bytes
    }

    /// The head and so many bytes of the body.
    pub(super) fn cut(&self, body_bytes: usize) -> &[u8] {
        &self.bytes[..self.bytes.len().min(self.head_bytes + body_bytes)]
    }
}
