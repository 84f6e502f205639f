//! Free ports that two test processes never share.
//!
//! All lie below 32768, since the kernel hands out those above to anybody's outgoing connections. A lock file in the cache
//! claims a pair (port, port + 1) for as long as its [`PortBlock`] lives; the lock dies with its process.

use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const FIRST: u16 = 22_000;
const PAIRS: u16 = 4_000;

/// Neighbouring ports, ours until dropped.
#[derive(Debug)]
pub struct PortBlock {
    first: u16,
    _claims: Vec<File>,
}

impl PortBlock {
    /// Claims `count` free ports in a row. Odd counts take one more.
    pub fn claim(count: u16) -> Result<Self> {
        let folder = cache_dir()?.join("ports");
        std::fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
        let wanted = count.div_ceil(2);
        // Processes start at different places, so that they rarely meet.
        let start = (std::process::id() * 37) % u32::from(PAIRS);
        for step in 0..PAIRS {
            let pair = (start as u16 + step) % PAIRS;
            if pair + wanted > PAIRS {
                continue;
            }
            if let Some(claims) = claim_pairs(&folder, pair, wanted)? {
                return Ok(Self { first: FIRST + 2 * pair, _claims: claims });
            }
        }
        bail!("no {count} free ports in a row between {FIRST} and {}", FIRST + 2 * PAIRS)
    }

    /// The lowest of them.
    pub fn first(&self) -> u16 {
        self.first
    }
}

/// All of these pairs, or none: what was locked on the way to one that is taken is let go.
fn claim_pairs(folder: &Path, first: u16, wanted: u16) -> Result<Option<Vec<File>>> {
    let mut claims = Vec::new();
    for pair in first..first + wanted {
        let port = FIRST + 2 * pair;
        let claim = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join(port.to_string()))
            .context("a port's lock file")?;
        if claim.try_lock().is_err() || !is_free(port) || !is_free(port + 1) {
            return Ok(None);
        }
        claims.push(claim);
    }
    Ok(Some(claims))
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
    fn blocks_of_any_size_never_overlap() {
        let blocks: Vec<(u16, PortBlock)> =
            [2, 8, 1, 8, 2].map(|count| (count, PortBlock::claim(count).expect("a free block"))).into();
        let mut ports: Vec<u16> = blocks.iter().flat_map(|(count, block)| block.first()..block.first() + count).collect();
        ports.sort_unstable();
        assert!(ports.windows(2).all(|pair| pair[0] < pair[1]), "{ports:?}");
        assert!(ports.iter().all(|port| *port < 32_768));
    }
}
