//! An HTTP proxy before a real server that spoils what it is told to: answers without asking, loses answers, closes, is late.
//!
//! It promises that a request reaches the server byte for byte as the client sent it, signature and host included, once at
//! most, and that each request is written down, or counted in a run that lasts. What no rule names passes as it is. Behind [`TestCa`] it speaks HTTPS.
//! It must never repeat a request, or answer in the server's name without a rule.

mod rules;
mod tls;
mod wire;

use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};

pub use rules::{HttpFault, Reply, Which};
pub use tls::TestCa;

use rules::Rules;
use wire::RawRequest;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The method, in capitals.
    pub method: String,
    /// Path and query as they were sent, still encoded; a whole URL if the client took us for its proxy.
    pub target: String,
    /// All headers, names in small letters.
    pub headers: Vec<(String, String)>,
    /// The body as text.
    pub body: String,
    /// What was done to it, if anything.
    pub fault: Option<HttpFault>,
    /// True once the client was sent an answer to it, whole as far as we know.
    pub answered: bool,
}

impl Seen {
    /// The value of a header; `name` in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Debug, Default)]
struct State {
    rules: Rules,
    seen: Vec<Seen>,
    forgetful: bool,
    struck: Vec<(HttpFault, usize)>,
    late: Vec<RawRequest>,
}

impl State {
    /// Decides about a request, writes it down, and answers where.
    fn note(&mut self, request: &RawRequest) -> (Option<usize>, Option<HttpFault>) {
        let fault = self.rules.fault_for(&request.method, &request.target);
        if let Some(fault) = &fault {
            match self.struck.iter_mut().find(|(known, _)| known == fault) {
                Some((_, times)) => *times += 1,
                None => self.struck.push((fault.clone(), 1)),
            }
        }
        if fault == Some(HttpFault::Late) {
            self.late.push(request.clone());
        }
        if self.forgetful {
            return (None, fault);
        }
        self.seen.push(request.seen(fault.clone()));
        (Some(self.seen.len() - 1), fault)
    }
}

/// A running proxy; it ends on drop.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    scheme: &'static str,
    upstream: SocketAddr,
    state: Arc<Mutex<State>>,
    ended: Arc<AtomicBool>,
}

impl FaultProxy {
    /// A proxy before the server at `upstream`, over plain HTTP.
    pub fn before(upstream: SocketAddr) -> Result<Self> {
        Self::start(upstream, None)
    }

    /// A proxy before nothing: every request needs a rule that answers in place of a server.
    pub fn before_nothing() -> Result<Self> {
        // Nobody listens on the port of "discard" here; a request without a rule gets no answer.
        Self::before(SocketAddr::from((Ipv4Addr::LOCALHOST, 9)))
    }

    /// A proxy that speaks HTTPS with a certificate of `ca`, before a server that speaks plain HTTP.
    pub fn with_tls(upstream: SocketAddr, ca: &TestCa) -> Result<Self> {
        Self::start(upstream, Some(ca.server_config()?))
    }

    fn start(upstream: SocketAddr, tls: Option<Arc<rustls::ServerConfig>>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a port for the proxy")?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (state, ended) = (Arc::<Mutex<State>>::default(), Arc::<AtomicBool>::default());
        let proxy = Self { address: listener.local_addr()?, scheme, upstream, state, ended };
        let (state, ended) = (Arc::clone(&proxy.state), Arc::clone(&proxy.ended));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (state, tls) = (Arc::clone(&state), tls.clone());
                // A connection that breaks is the business of its two ends.
                std::thread::spawn(move || serve(client, tls, upstream, &state));
            }
        });
        Ok(proxy)
    }

    /// The address, `http://127.0.0.1:port`, or with `https`.
    pub fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// From now on, `fault` happens to what `which` names. Earlier rules go first.
    pub fn strike(&self, which: Which, fault: HttpFault) {
        lock(&self.state).rules.add(which, fault);
    }

    /// From now on, one of `faults` happens to a request that `which` names, with this chance; the seed decides when and which.
    pub fn unleash(&self, which: Which, seed: u64, rate: f64, faults: &[HttpFault]) {
        lock(&self.state).rules.unleash(which, seed, rate, faults);
    }

    /// Requests are not written down any more, only counted: for runs that last.
    pub fn forget(&self) {
        lock(&self.state).forgetful = true;
    }

    /// No rules any more. What is late stays late.
    pub fn heal(&self) {
        lock(&self.state).rules = Rules::default();
    }

    /// How many requests wait to land.
    pub fn late(&self) -> usize {
        lock(&self.state).late.len()
    }

    /// The requests that were late reach the server now, in their order. Answers its statuses, `None` where it closed the
    /// connection before it had read all.
    pub fn land(&self) -> Vec<Option<u16>> {
        let late = std::mem::take(&mut lock(&self.state).late);
        late.iter().map(|request| wire::ask(self.upstream, request).and_then(|answer| answer.status()).ok()).collect()
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.state).seen.clone()
    }

    /// How many requests a rule was applied to.
    pub fn struck(&self) -> usize {
        lock(&self.state).struck.iter().map(|(_, times)| times).sum()
    }

    /// How many requests this fault happened to.
    pub fn struck_by(&self, fault: &HttpFault) -> usize {
        lock(&self.state).struck.iter().find(|(known, _)| known == fault).map_or(0, |(_, times)| *times)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        // One last visitor, so that the accepting thread wakes up and reads that it is over.
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(client: TcpStream, tls: Option<Arc<rustls::ServerConfig>>, upstream: SocketAddr, state: &Mutex<State>) -> Result<()> {
    client.set_nodelay(true)?;
    let end = client.try_clone()?;
    match tls {
        None => converse(client, upstream, state)?,
        Some(config) => converse(tls::accept(client, config)?, upstream, state)?,
    }
    end.shutdown(Shutdown::Both)?;
    Ok(())
}

/// Requests and answers in turn until either side, or a rule, ends the connection.
fn converse(client: impl Read + Write, upstream: SocketAddr, state: &Mutex<State>) -> Result<()> {
    let mut client = BufReader::new(client);
    while let Some(request) = wire::read_request(&mut client)? {
        let (number, fault) = lock(state).note(&request);
        let answer = match fault {
            None => wire::ask(upstream, &request)?.bytes(),
            Some(HttpFault::Instead(reply)) => reply.bytes(&request.method),
            Some(HttpFault::After(reply)) => {
                wire::ask(upstream, &request)?;
                reply.bytes(&request.method)
            }
            Some(HttpFault::CloseBefore | HttpFault::Late) => return Ok(()),
            Some(HttpFault::CloseAfter) => {
                wire::ask(upstream, &request)?;
                return Ok(());
            }
            Some(HttpFault::Cut(body_bytes)) => {
                client.get_mut().write_all(wire::ask(upstream, &request)?.cut(body_bytes))?;
                return Ok(client.get_mut().flush()?);
            }
        };
        client.get_mut().write_all(&answer)?;
        client.get_mut().flush()?;
        if let Some(number) = number {
            lock(state).seen[number].answered = true;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
