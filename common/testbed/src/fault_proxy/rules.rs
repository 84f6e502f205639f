//! Which requests suffer, and what.

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpFault {
    /// The server never sees it; the client gets this answer.
    Instead(Reply),
    /// The server carries it out; the client gets this answer in place of the server's.
    After(Reply),
    /// The connection ends; the server never sees the request.
    CloseBefore,
    /// The server carries it out; the connection ends without an answer.
    CloseAfter,
    /// The connection ends; the request reaches the server when the test lets it.
    Late,
    /// The server's answer ends after so many bytes of its body.
    Cut(usize),
}

impl HttpFault {
    /// An error in place of the server's work, with the words of S3.
    pub fn instead(status: u16, code: &str) -> Self {
        Self::Instead(Reply::error(status, code))
    }

    /// An error after the server's work, with the words of S3.
    pub fn after(status: u16, code: &str) -> Self {
        Self::After(Reply::error(status, code))
    }
}

/// An answer of the proxy's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl Reply {
    /// An error as S3 words it. With status 200 it is the error that some operations hide in a success.
    pub fn error(status: u16, code: &str) -> Self {
        Self { status, body: format!("<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>") }
    }

    pub(super) fn bytes(&self, method: &str) -> Vec<u8> {
        let Self { status, body } = self;
        let head = format!("HTTP/1.1 {status} .\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n", body.len());
        let body = if method == "HEAD" { "" } else { body };
        (head + body).into_bytes()
    }
}

/// Which requests a rule is for.
#[derive(Debug, Clone)]
pub struct Which {
    method: Option<&'static str>,
    parts: Vec<String>,
    skip: usize,
    times: usize,
}

impl Which {
    /// Every request.
    pub fn all() -> Self {
        Self { method: None, parts: Vec::new(), skip: 0, times: usize::MAX }
    }

    /// Requests of one method.
    pub fn of(method: &'static str) -> Self {
        Self { method: Some(method), ..Self::all() }
    }

    /// Only those whose path and query, as they were sent, hold `part`.
    #[must_use]
    pub fn with(mut self, part: &str) -> Self {
        self.parts.push(part.to_owned());
        self
    }

    /// Not the first `skip` of them.
    #[must_use]
    pub fn after(self, skip: usize) -> Self {
        Self { skip, ..self }
    }

    /// So many of them, then no more.
    #[must_use]
    pub fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }

    fn names(&self, method: &str, target: &str) -> bool {
        self.method.is_none_or(|only| only == method) && self.parts.iter().all(|part| target.contains(part))
    }

    /// Takes part in the count, so it is asked once for each request.
    fn strikes(&mut self, method: &str, target: &str) -> bool {
        if self.times == 0 || !self.names(method, target) {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.times -= 1;
        true
    }
}

#[derive(Debug)]
struct Chaos {
    which: Which,
    rng: fastrand::Rng,
    rate: f64,
    faults: Vec<HttpFault>,
}

#[derive(Debug, Default)]
pub(super) struct Rules {
    written: Vec<(Which, HttpFault)>,
    chaos: Option<Chaos>,
}

impl Rules {
    pub(super) fn add(&mut self, which: Which, fault: HttpFault) {
        self.written.push((which, fault));
    }

    pub(super) fn unleash(&mut self, which: Which, seed: u64, rate: f64, faults: &[HttpFault]) {
        self.chaos = Some(Chaos { which, rng: fastrand::Rng::with_seed(seed), rate, faults: faults.to_vec() });
    }

    pub(super) fn fault_for(&mut self, method: &str, target: &str) -> Option<HttpFault> {
        let strikes = |(which, fault): &mut (Which, HttpFault)| which.strikes(method, target).then(|| fault.clone());
        if let Some(fault) = self.written.iter_mut().find_map(strikes) {
            return Some(fault);
        }
        let chaos = self.chaos.as_mut().filter(|chaos| chaos.which.names(method, target))?;
        if chaos.rng.f64() >= chaos.rate {
            return None;
        }
        chaos.rng.choice(chaos.faults.iter()).cloned()
    }
}
