//! Builds the runtime of the process and runs one future on it.
//!
//! Promises: few threads; leaving never hangs on work that was left behind. Never: knows what it runs.

use std::future::Future;
use std::io;
use std::time::Duration;

/// Worker threads unless configured: one async loop and its uploads need no more, encoding has its own pool.
pub const WORKER_THREADS_DEFAULT: usize = 2;

/// How long blocking calls that are still running may hold up the end. Whoever needed them has been answered already.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// Runs `body` to its end on a runtime with `worker_threads` (at least one).
///
/// ```
/// let sum = tapedeck_daemon::run::block_on(2, async { 1 + 1 })?;
/// assert_eq!(sum, 2);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn block_on<F: Future>(worker_threads: usize, body: F) -> io::Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(worker_threads.max(1))
        .thread_name("worker")
        .enable_all()
        .build()?;
    let output = runtime.block_on(body);
    runtime.shutdown_timeout(LEAVE_WITHIN);
    Ok(output)
}
