//! Publishes what no decent client can: routing keys and names of headers that are no UTF-8. RabbitMQ looks at neither, so they lie
//! in queues, and a client that wants text there stumbles over them each time they are delivered. Frames by hand, one event for
//! each connection, confirmed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, bail, ensure};

const LIMIT: Duration = Duration::from_secs(30);
const END: u8 = 0xCE;
/// The bit of the property flags that says that there are headers.
const HAS_HEADERS: u16 = 1 << 13;

/// An event of plain bytes.
#[derive(Debug, Clone, Default)]
pub struct RawEvent {
    /// The exchange; at most 255 bytes, as are key and name.
    pub exchange: Vec<u8>,
    /// The routing key.
    pub routing_key: Vec<u8>,
    /// The name of its one header; its value is a long string of the same bytes.
    pub header: Vec<u8>,
    /// The payload; it must fit into one frame.
    pub body: Vec<u8>,
}

/// Publishes one event to the vhost `/`; an event that no queue wants is an error.
pub fn publish_raw(amqp: SocketAddr, event: &RawEvent) -> Result<()> {
    let mut wire = Wire { stream: TcpStream::connect_timeout(&amqp, LIMIT)? };
    wire.stream.set_read_timeout(Some(LIMIT))?;
    wire.stream.write_all(b"AMQP\0\0\x09\x01")?;
    wire.expect((10, 10))?;
    wire.method(0, (10, 11), &[&long(b""), &short(b"PLAIN"), &long(b"\0guest\0guest"), &short(b"en_US")])?;
    let tune = wire.expect((10, 30))?;
    // Its channels and its size of a frame, no heartbeats: it will not take that long.
    wire.method(0, (10, 31), &[&tune[..6], &[0, 0]])?;
    wire.method(0, (10, 40), &[&short(b"/"), &short(b""), &[0]])?;
    wire.expect((10, 41))?;
    wire.method(1, (20, 10), &[&short(b"")])?;
    wire.expect((20, 11))?;
    wire.method(1, (85, 10), &[&[0]])?;
    wire.expect((85, 11))?;

    let mandatory = [1];
    wire.method(1, (60, 40), &[&[0, 0], &short(&event.exchange), &short(&event.routing_key), &mandatory])?;
    let headers = long(&[&short(&event.header)[..], b"S", &long(&event.header)].concat());
    let size = (event.body.len() as u64).to_be_bytes();
    wire.frame(2, 1, &[&[0, 60, 0, 0], &size[..], &HAS_HEADERS.to_be_bytes(), &headers].concat())?;
    wire.frame(3, 1, &event.body)?;
    wire.expect((60, 80))?;
    wire.method(0, (10, 50), &[&[0, 200], &short(b"done"), &[0, 0, 0, 0]])?;
    wire.expect((10, 51)).map(drop)
}

struct Wire {
    stream: TcpStream,
}

impl Wire {
    fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) -> Result<()> {
        let mut frame = vec![kind];
        frame.extend(channel.to_be_bytes());
        frame.extend(long(payload));
        frame.push(END);
        Ok(self.stream.write_all(&frame)?)
    }

    fn method(&mut self, channel: u16, (class, method): (u16, u16), arguments: &[&[u8]]) -> Result<()> {
        let payload = [&class.to_be_bytes()[..], &method.to_be_bytes(), &arguments.concat()].concat();
        self.frame(1, channel, &payload)
    }

    /// The arguments of the method that must come next.
    fn expect(&mut self, wanted: (u16, u16)) -> Result<Vec<u8>> {
        let mut head = [0; 7];
        self.stream.read_exact(&mut head)?;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
        let mut payload = vec![0; size as usize + 1];
        self.stream.read_exact(&mut payload)?;
        ensure!(payload.pop() == Some(END) && size >= 4, "no frame of AMQP");
        let arguments = payload.split_off(4);
        let found = (u16::from_be_bytes([payload[0], payload[1]]), u16::from_be_bytes([payload[2], payload[3]]));
        if found != wanted {
            bail!("RabbitMQ says {found:?} instead of {wanted:?}: {}", String::from_utf8_lossy(&arguments));
        }
        Ok(arguments)
    }
}

fn short(bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).expect("a short string has at most 255 bytes");
    [&[length], bytes].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("it fits into a frame");
    [&length.to_be_bytes()[..], bytes].concat()
}
