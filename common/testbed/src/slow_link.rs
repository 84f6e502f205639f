//! A network link with latency: a TCP forwarder that holds every byte back for a while, each way.
//!
//! On loopback a request takes a millisecond, too short to kill anybody in. Behind this link a request waits for its server,
//! and its answer for the client, as long as over a real network. Bytes are neither lost nor reordered; bandwidth is not limited.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Pieces of at most this size are held back one by one.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces on the way; with more the sender waits.
const PIECES_MAX: usize = 256;

/// A link that stays up as long as the test runs.
#[derive(Debug)]
pub struct SlowLink {
    address: SocketAddr,
}

impl SlowLink {
    /// A link to a server on this machine. Every byte takes `latency` there, and `latency` back.
    pub fn to(server: SocketAddr, latency: Duration) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("a port for the slow link")?;
        let address = listener.local_addr()?;
        thread::spawn(move || {
            // A connection that breaks is the business of its two ends.
            for client in listener.incoming().flatten() {
                if let Ok(server) = TcpStream::connect(server) {
                    drop(join(client, server, latency));
                }
            }
        });
        Ok(Self { address })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn join(client: TcpStream, server: TcpStream, latency: Duration) -> Result<()> {
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    forward(client.try_clone()?, server.try_clone()?, latency);
    forward(server, client, latency);
    Ok(())
}

fn forward(from: TcpStream, to: TcpStream, latency: Duration) {
    let (pieces, waiting) = sync_channel(PIECES_MAX);
    thread::spawn(move || take(from, &pieces, latency));
    thread::spawn(move || give(to, &waiting));
}

fn take(mut from: TcpStream, pieces: &SyncSender<(Instant, Vec<u8>)>, latency: Duration) {
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(length) = from.read(&mut piece) {
        let arrives = Instant::now() + latency;
        if length == 0 || pieces.send((arrives, piece[..length].to_vec())).is_err() {
            return;
        }
    }
}

fn give(mut to: TcpStream, waiting: &Receiver<(Instant, Vec<u8>)>) {
    for (arrives, piece) in waiting {
        thread::sleep(arrives.saturating_duration_since(Instant::now()));
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    // Both ways end together: the other side may have gone already.
    let _ = to.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_arrive_late_whole_and_in_order_and_the_end_arrives_too() {
        let server = TcpListener::bind("127.0.0.1:0").expect("a port");
        let echo = server.local_addr().expect("bound");
        thread::spawn(move || {
            let (mut stream, _) = server.accept().expect("a client");
            let mut text = Vec::new();
            let mut byte = [0];
            while stream.read(&mut byte).expect("readable") == 1 && byte[0] != b'\n' {
                text.push(byte[0]);
            }
            stream.write_all(&text).expect("writable");
        });
        let latency = Duration::from_millis(30);
        let link = SlowLink::to(echo, latency).expect("a link");
        let began = Instant::now();
        let mut client = TcpStream::connect(link.address()).expect("it listens");
        let sent: Vec<u8> = (0..200_000_u32).map(|number| b'a' + (number % 26) as u8).collect();
        client.write_all(&sent).expect("writable");
        client.write_all(b"\n").expect("writable");
        let mut back = Vec::new();
        client.read_to_end(&mut back).expect("readable");
        assert!(back == sent, "{} of {} bytes", back.len(), sent.len());
        assert!(began.elapsed() >= 2 * latency, "both ways take their time: {:?}", began.elapsed());
    }
}
