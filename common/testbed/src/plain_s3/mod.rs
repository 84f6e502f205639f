//! A store with bad manners, for tests of the start-up probe: S3 in memory that ignores `If-None-Match`, forbids, or fails.
//!
//! It answers what a client of an archive asks: PUT, GET with ranges, HEAD, DELETE, lists, multipart uploads; also from a client
//! of Google Cloud Storage, whose XML interface differs in the header of a create. It checks no signature.
//! It must never be taken for a real store: the promises are tested on [`crate::S3Server`].

mod http;
mod objects;

use std::io::BufReader;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};

use http::Answer;
use objects::Objects;

use crate::ports::PortBlock;

/// How the store behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manners {
    /// As it should: a create of what exists is refused.
    Good,
    /// A create of what exists overwrites it and answers 200: a store without conditional writes.
    IgnoresConditions,
    /// Each call answers 403: no rights.
    Forbids,
    /// Each call answers 503.
    Unwell,
}

/// A running store; gone with its objects on drop.
#[derive(Debug)]
pub struct PlainS3 {
    ports: PortBlock,
    manners: Arc<AtomicU8>,
}

impl PlainS3 {
    /// Starts it, with no objects; every bucket exists.
    pub fn start(manners: Manners) -> Result<Self> {
        let ports = PortBlock::claim(2)?;
        let listener = TcpListener::bind(("127.0.0.1", ports.first())).context("a port for the store")?;
        let shared = Arc::new(AtomicU8::new(manners as u8));
        let objects = Arc::new(Mutex::new(Objects::default()));
        let for_thread = Arc::clone(&shared);
        std::thread::spawn(move || accept(&listener, &objects, &for_thread));
        Ok(Self { ports, manners: shared })
    }

    /// The address, `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.first())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.first()))
    }

    /// Changes its manners from now on.
    pub fn behave(&self, manners: Manners) {
        self.manners.store(manners as u8, Ordering::SeqCst);
    }
}

impl Drop for PlainS3 {
    fn drop(&mut self) {
        // One last visitor, so that the accepting thread wakes up and reads that it is over.
        self.manners.store(u8::MAX, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.ports.first()));
    }
}

fn accept(listener: &TcpListener, objects: &Arc<Mutex<Objects>>, manners: &Arc<AtomicU8>) {
    for stream in listener.incoming() {
        if manners.load(Ordering::SeqCst) == u8::MAX {
            return;
        }
        let Ok(stream) = stream else { continue };
        let (objects, manners) = (Arc::clone(objects), Arc::clone(manners));
        std::thread::spawn(move || {
            // A client that hangs up is no news.
            let _ = serve(&stream, &objects, &manners);
        });
    }
}

fn serve(stream: &TcpStream, objects: &Mutex<Objects>, manners: &AtomicU8) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = http::read(&mut reader)? {
        let manners = manners.load(Ordering::SeqCst);
        let answer = if manners == Manners::Forbids as u8 {
            Answer::error(403, "AccessDenied")
        } else if manners == Manners::Unwell as u8 {
            Answer::error(503, "SlowDown")
        } else {
            let keeps_conditions = manners == Manners::Good as u8;
            objects.lock().expect("no request panics").answer(&request, keeps_conditions)
        };
        let head_only = request.method == "HEAD";
        http::write(stream, &answer, head_only)?;
        if request.headers.get("connection").is_some_and(|word| word == "close") {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn ask(store: &PlainS3, request: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", store.ports.first())).expect("connect");
        let length = body.len();
        write!(stream, "{request}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}").expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        answer
    }

    const CREATE: &str = "PUT /events/a/b%3D1 HTTP/1.1\r\nIf-None-Match: *\r\n";

    #[test]
    fn a_second_create_is_refused_or_overwrites_as_its_manners_are() {
        let store = PlainS3::start(Manners::Good).expect("start");
        assert!(ask(&store, CREATE, "one").starts_with("HTTP/1.1 200"));
        assert!(ask(&store, CREATE, "two").starts_with("HTTP/1.1 412"));
        let read = "GET /events/a/b=1 HTTP/1.1\r\n";
        assert!(ask(&store, read, "").ends_with("\r\n\r\none"));
        store.behave(Manners::IgnoresConditions);
        assert!(ask(&store, CREATE, "three").starts_with("HTTP/1.1 200"));
        assert!(ask(&store, &format!("{read}Range: bytes=1-2\r\n"), "").ends_with("\r\n\r\nhr"));
        store.behave(Manners::Forbids);
        assert!(ask(&store, read, "").starts_with("HTTP/1.1 403"));
    }

    #[test]
    fn lists_show_objects_and_folders_in_order() {
        let store = PlainS3::start(Manners::Good).expect("start");
        for key in ["b/2", "b/1", "a", "c/1"] {
            ask(&store, &format!("PUT /events/{key} HTTP/1.1\r\n"), "x");
        }
        let all = ask(&store, "GET /events?list-type=2&prefix=b%2F&start-after=b%2F1 HTTP/1.1\r\n", "");
        assert!(all.contains("<Key>b/2</Key>") && !all.contains("<Key>b/1</Key>"), "{all}");
        let folders = ask(&store, "GET /events?list-type=2&delimiter=%2F HTTP/1.1\r\n", "");
        assert!(folders.contains("<Prefix>b/</Prefix>") && folders.contains("<Key>a</Key>"), "{folders}");
    }

    #[test]
    fn parts_become_one_object() {
        let store = PlainS3::start(Manners::Good).expect("start");
        let begun = ask(&store, "POST /events/big?uploads HTTP/1.1\r\n", "");
        let id = begun.split("<UploadId>").nth(1).and_then(|rest| rest.split('<').next()).expect("an id");
        for (number, body) in [(2, "two"), (1, "one")] {
            ask(&store, &format!("PUT /events/big?partNumber={number}&uploadId={id} HTTP/1.1\r\n"), body);
        }
        ask(&store, &format!("POST /events/big?uploadId={id} HTTP/1.1\r\n"), "<x/>");
        assert!(ask(&store, "GET /events/big HTTP/1.1\r\n", "").ends_with("onetwo"));
    }
}
