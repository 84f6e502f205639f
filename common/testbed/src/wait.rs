//! Waiting for the real world, with a limit.
//! A condition is asked again and again; time alone never counts as an answer.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks `condition` every 20 ms until it holds. Past `limit` it is an error that names `what`.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !condition()? {
        if Instant::now() >= deadline {
            bail!("waited {} s in vain: {what}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
