//! Where brokers are: `host:port` as people write it, and whether the way there leaves this machine.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Where AMQP listens unless told otherwise.
const PORT_DEFAULT: u16 = 5672;

/// A broker's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port of AMQP.
    pub port: u16,
}

impl HostPort {
    /// True if what is said to it stays on this machine.
    pub fn is_loopback(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost") || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no host:port, for example rabbit-1:{PORT_DEFAULT}");
        let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let (host, port) = match bracketed {
            Some((host, "")) => (host, None),
            Some((host, rest)) => (host, Some(rest.strip_prefix(':').ok_or_else(wrong)?)),
            None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map_or(Ok(PORT_DEFAULT), |port| port.parse().map_err(|_| wrong()))?;
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
        let is_host = if bracketed.is_some() { host.parse::<IpAddr>().is_ok() } else { host.chars().all(is_name) };
        if host.is_empty() || port == 0 || !is_host {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_read_back_as_they_are_written() {
        for (text, host, port) in [
            ("rabbit-1:5671", "rabbit-1", 5671),
            ("rabbit", "rabbit", 5672),
            ("127.0.0.1:7", "127.0.0.1", 7),
            ("[::1]:7", "::1", 7),
        ] {
            let parsed: HostPort = text.parse().expect(text);
            assert_eq!((parsed.host.as_str(), parsed.port), (host, port));
            assert_eq!(parsed.to_string().parse(), Ok(parsed));
        }
        for bad in ["", ":5672", "a:b", "a:0", "a:5672:1", "[::1", "[a]:1", "[::1]5", "amqp://a", "user@a"] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (text, loopback) in
            [("localhost", true), ("127.9.9.9", true), ("[::1]:1", true), ("rabbit", false), ("10.0.0.1", false)]
        {
            assert_eq!(text.parse::<HostPort>().expect(text).is_loopback(), loopback, "{text}");
        }
    }
}
