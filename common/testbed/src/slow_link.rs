//! A network link that a test may slow down, narrow, silence, cut or half-open: a TCP forwarder between us and a real server.
//!
//! On loopback a request takes a millisecond, too short to kill anybody in. Behind this link a request waits for its server,
//! and its answer for the client, as long as over a real network. Bytes are never reordered, and lost only where the link was
//! told so ([`SlowLink::reset`], [`SlowLink::half_open`]). Whatever suffers is counted, so that a test knows what it tested.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::SockRef;

/// Pieces of at most this size are held back one by one.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces on the way; with more the sender waits.
const PIECES_MAX: usize = 256;
/// A writer whose reader does not read looks up this often, so that a reset reaches it.
const LOOK_UP_EVERY: Duration = Duration::from_millis(100);

/// How the link is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Weather {
    /// How long each byte takes, each way.
    pub latency: Duration,
    /// How many bytes pass in a second, per connection and way.
    pub bytes_per_second: Option<u64>,
    /// Nothing arrives while this holds, neither bytes nor ends; afterwards all of it does. New connections wait too.
    pub silent: bool,
}

/// A connection, alive as long as one of its two ways is.
#[derive(Debug)]
struct Connection {
    client: TcpStream,
    server: TcpStream,
    fate: Mutex<Fate>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Well,
    /// Swallows what it is given, and says nothing.
    HalfOpen,
    /// Ends with a reset on both sides.
    Reset,
}

impl Connection {
    fn fate(&self) -> Fate {
        *lock(&self.fate)
    }
}

#[derive(Debug)]
struct State {
    calm: Weather,
    now: Weather,
    connections: Vec<Arc<Connection>>,
    struck: u64,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A link that stays up as long as the test runs.
#[derive(Debug)]
pub struct SlowLink {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl SlowLink {
    /// A link to a server on this machine. Every byte takes `latency` there, and `latency` back.
    pub fn to(server: SocketAddr, latency: Duration) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("a port for the link")?;
        let address = listener.local_addr()?;
        let calm = Weather { latency, ..Weather::default() };
        let state = State { calm, now: calm, connections: Vec::new(), struck: 0 };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let link = Self { address, shared: Arc::clone(&shared) };
        thread::spawn(move || {
            // A connection that breaks is the business of its two ends.
            for client in listener.incoming().flatten() {
                if let Ok(server) = TcpStream::connect(server) {
                    drop(join(client, server, &shared));
                }
            }
        });
        Ok(link)
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on the link is like this.
    pub fn set(&self, weather: Weather) {
        lock(&self.shared.state).now = weather;
        self.shared.changed.notify_all();
    }

    /// The link is again as it was made. Connections that are half open stay so.
    pub fn heal(&self) {
        let calm = lock(&self.shared.state).calm;
        self.set(calm);
    }

    /// Every connection of this moment ends with a reset on both sides; what was on its way is lost. Answers how many did.
    pub fn reset(&self) -> usize {
        self.doom(Fate::Reset)
    }

    /// Every connection of this moment swallows from now on what both sides say, and never ends by itself, as when a firewall
    /// forgets it. New ones pass. Answers how many are concerned.
    pub fn half_open(&self) -> usize {
        self.doom(Fate::HalfOpen)
    }

    /// How many pieces of traffic suffered so far: were late for the weather, were held back, or were swallowed.
    pub fn struck(&self) -> u64 {
        lock(&self.shared.state).struck
    }

    fn doom(&self, fate: Fate) -> usize {
        let mut state = lock(&self.shared.state);
        // Those that the link alone holds have ended, unless they are half open: these it keeps from ending.
        state.connections.retain(|one| Arc::strong_count(one) > 1 || one.fate() == Fate::HalfOpen);
        let well = state.connections.iter().filter(|one| one.fate() == Fate::Well).count();
        for connection in &state.connections {
            *lock(&connection.fate) = fate;
        }
        if fate == Fate::Reset {
            for connection in state.connections.drain(..) {
                for end in [&connection.client, &connection.server] {
                    // Closing says "reset" then. Its reader wakes up; the other side hears nothing before the close.
                    let _ = SockRef::from(end).set_linger(Some(Duration::ZERO));
                    let _ = end.shutdown(Shutdown::Read);
                }
            }
        }
        drop(state);
        self.shared.changed.notify_all();
        well
    }
}

impl Shared {
    /// Waits until the weather lets a piece pass. False if its connection does not forward any more.
    fn lets_pass(&self, connection: &Connection, bytes: usize) -> bool {
        let mut state = lock(&self.state);
        let mut suffers = state.now != state.calm;
        while state.now.silent && connection.fate() == Fate::Well {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let fate = connection.fate();
        suffers |= fate == Fate::HalfOpen;
        if bytes > 0 && suffers {
            state.struck += 1;
        }
        let takes = state.now.bytes_per_second.map(|rate| Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64));
        drop(state);
        if fate == Fate::Well {
            thread::sleep(takes.unwrap_or_default());
        }
        fate == Fate::Well
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn join(client: TcpStream, server: TcpStream, shared: &Arc<Shared>) -> Result<()> {
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(LOOK_UP_EVERY))?;
    }
    let connection = Arc::new(Connection { client, server, fate: Mutex::new(Fate::Well) });
    let mut state = lock(&shared.state);
    state.connections.retain(|one| Arc::strong_count(one) > 1 || one.fate() == Fate::HalfOpen);
    state.connections.push(Arc::clone(&connection));
    drop(state);
    forward(&connection, shared, |one| (&one.client, &one.server));
    forward(&connection, shared, |one| (&one.server, &one.client));
    Ok(())
}

/// From where to where.
type Way = fn(&Connection) -> (&TcpStream, &TcpStream);

fn forward(connection: &Arc<Connection>, shared: &Arc<Shared>, way: Way) {
    let (pieces, waiting) = sync_channel(PIECES_MAX);
    let (taker, giver) = (Arc::clone(connection), Arc::clone(connection));
    let (mine, yours) = (Arc::clone(shared), Arc::clone(shared));
    thread::spawn(move || take(way(&taker).0, &pieces, &mine));
    thread::spawn(move || give(&giver, way(&giver).1, &waiting, &yours));
}

fn take(mut from: &TcpStream, pieces: &SyncSender<(Instant, Vec<u8>)>, shared: &Shared) {
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(length) = from.read(&mut piece) {
        let arrives = Instant::now() + lock(&shared.state).now.latency;
        if length == 0 || pieces.send((arrives, piece[..length].to_vec())).is_err() {
            return;
        }
    }
}

fn give(connection: &Connection, to: &TcpStream, waiting: &Receiver<(Instant, Vec<u8>)>, shared: &Shared) {
    for (arrives, piece) in waiting {
        thread::sleep(arrives.saturating_duration_since(Instant::now()));
        if !shared.lets_pass(connection, piece.len()) {
            match connection.fate() {
                Fate::HalfOpen => continue,
                _ => return,
            }
        }
        if !write_out(connection, to, &piece) {
            break;
        }
    }
    // Both ways end together: the other side may have gone already. An end is held back like bytes are.
    if shared.lets_pass(connection, 0) {
        let _ = connection.client.shutdown(Shutdown::Both);
        let _ = connection.server.shutdown(Shutdown::Both);
    }
}

/// False if the receiver is gone, or the connection was doomed while it did not read.
fn write_out(connection: &Connection, mut to: &TcpStream, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return false,
            Ok(written) => bytes = &bytes[written..],
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                if connection.fate() != Fate::Well {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends every byte back; a reset of a client does not end it.
    fn echo() -> SocketAddr {
        let server = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = server.local_addr().expect("bound");
        thread::spawn(move || {
            for stream in server.incoming().flatten() {
                thread::spawn(move || {
                    let (mut from, mut to) = (&stream, &stream);
                    let _ = std::io::copy(&mut from, &mut to);
                });
            }
        });
        address
    }

    fn client(link: &SlowLink) -> TcpStream {
        let client = TcpStream::connect(link.address()).expect("it listens");
        client.set_read_timeout(Some(Duration::from_millis(300))).expect("a limit");
        client
    }

    fn answers(mut client: &TcpStream) -> Result<bool, ErrorKind> {
        let mut byte = [0];
        client.write_all(b"x").map_err(|error| error.kind())?;
        client.read(&mut byte).map(|length| length == 1).map_err(|error| error.kind())
    }

    #[test]
    fn bytes_arrive_late_whole_and_in_order_and_the_end_arrives_too() {
        let latency = Duration::from_millis(30);
        let link = SlowLink::to(echo(), latency).expect("a link");
        let began = Instant::now();
        let mut client = TcpStream::connect(link.address()).expect("it listens");
        let sent: Vec<u8> = (0..200_000_u32).map(|number| b'a' + (number % 26) as u8).collect();
        let mut back = vec![0; sent.len()];
        client.write_all(&sent).expect("writable");
        client.read_exact(&mut back).expect("readable");
        assert!(back == sent);
        assert!(began.elapsed() >= 2 * latency, "both ways take their time: {:?}", began.elapsed());
        drop(client);
        let link = SlowLink::to(closing(), latency).expect("a link");
        let mut client = TcpStream::connect(link.address()).expect("it listens");
        assert_eq!(client.read(&mut back).expect("the end"), 0);
        assert_eq!(link.struck(), 0);
    }

    /// A server that ends each connection.
    fn closing() -> SocketAddr {
        let server = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = server.local_addr().expect("bound");
        thread::spawn(move || server.incoming().flatten().for_each(drop));
        address
    }

    #[test]
    fn a_reset_ends_what_is_there_and_nothing_else() {
        let link = SlowLink::to(echo(), Duration::ZERO).expect("a link");
        let old = client(&link);
        assert_eq!(answers(&old), Ok(true));
        assert_eq!(link.reset(), 1);
        let mut byte = [0];
        let broken = (&old).read(&mut byte).expect_err("nothing but a reset");
        assert_eq!(broken.kind(), ErrorKind::ConnectionReset);
        let new = client(&link);
        assert_eq!(answers(&new), Ok(true));
        assert_eq!(link.reset(), 1, "what has ended does not count");
    }

    #[test]
    fn a_half_open_connection_swallows_and_does_not_end() {
        let link = SlowLink::to(echo(), Duration::ZERO).expect("a link");
        let old = client(&link);
        assert_eq!(answers(&old), Ok(true));
        assert_eq!(link.half_open(), 1);
        assert_eq!(answers(&old), Err(ErrorKind::WouldBlock), "neither an answer nor an end");
        assert_eq!(answers(&client(&link)), Ok(true));
        assert_eq!(link.struck(), 1);
    }

    #[test]
    fn a_silent_link_holds_everything_back_and_then_hands_it_over() {
        let link = SlowLink::to(echo(), Duration::ZERO).expect("a link");
        let client = client(&link);
        link.set(Weather { silent: true, ..Weather::default() });
        assert_eq!(answers(&client), Err(ErrorKind::WouldBlock));
        link.heal();
        let mut byte = [0];
        assert_eq!((&client).read(&mut byte).expect("it arrives"), 1);
        assert_eq!(link.struck(), 1);
    }

    #[test]
    fn a_narrow_link_takes_its_time() {
        let link = SlowLink::to(echo(), Duration::ZERO).expect("a link");
        link.set(Weather { bytes_per_second: Some(100_000), ..Weather::default() });
        let mut client = TcpStream::connect(link.address()).expect("it listens");
        let began = Instant::now();
        let mut back = vec![0; 20_000];
        client.write_all(&back).expect("writable");
        client.read_exact(&mut back).expect("readable");
        assert!(began.elapsed() >= Duration::from_millis(400), "20 kB each way at 100 kB/s: {:?}", began.elapsed());
        assert!(link.struck() >= 2);
    }
}
