//! Free ports that two test processes never share.
//!
//! All lie below 32768, since the kernel hands out those above to anybody's outgoing connections. A lock file in the cache
//! claims a pair (port, port + 1) for as long as the [`PortPair`] lives; the lock dies with its process.

use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

const FIRST: u16 = 22_000;
const PAIRS: u16 = 4_000;

/// Two neighbouring ports, ours until dropped.
#[derive(Debug)]
pub struct PortPair {
    first: u16,
    _claim: File,
}

impl PortPair {
    /// Claims a free pair.
    pub fn claim() -> Result<Self> {
        let folder = cache_dir()?.join("ports");
        std::fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
        // Processes start at different places, so that they rarely meet.
        let start = (std::process::id() * 37) % u32::from(PAIRS);
        for step in 0..PAIRS {
            let pair = (start as u16 + step) % PAIRS;
            let first = FIRST + 2 * pair;
            let claim = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(folder.join(first.to_string()))
                .context("a port's lock file")?;
            if claim.try_lock().is_ok() && is_free(first) && is_free(first + 1) {
                return Ok(Self { first, _claim: claim });
            }
        }
        bail!("no free pair of ports between {FIRST} and {}", FIRST + 2 * PAIRS)
    }

    /// The lower port of the two.
    pub fn first(&self) -> u16 {
        self.first
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// Where servers and port claims are kept between runs: `TAPEDECK_CACHE`, else `~/.cache/tapedeck`.
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("TAPEDECK_CACHE") {
        return Ok(PathBuf::from(folder));
    }
    let home = std::env::var_os("HOME").context("neither TAPEDECK_CACHE nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cache/tapedeck"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claimed_pair_is_not_given_twice() {
        let one = PortPair::claim().expect("a first pair");
        let two = PortPair::claim().expect("a second pair");
        assert_ne!(one.first(), two.first());
        assert!(two.first() < 32_767);
    }
}
