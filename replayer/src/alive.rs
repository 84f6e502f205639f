//! Signs of life of a job's owner while something else takes its time.
//!
//! Promises: as long as the work lasts the owner's cursor beats, so that nobody takes the job for abandoned; a newer owner ends
//! the work. Never: moves the cursor on.

use std::pin::pin;
use std::time::Duration;

use tapedeck_common::Clock;

use crate::cursor::Cursor;
use crate::replay::{Ledger, LedgerError};

/// Between two beats: several of them while a second starter watches.
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// Does the work and beats meanwhile. An error says that the job is somebody else's by now.
pub async fn alive<T>(
    work: impl Future<Output = T>,
    cursor: &Cursor,
    ledger: &dyn Ledger,
    clock: &dyn Clock,
) -> Result<T, LedgerError> {
    let mut work = pin!(work);
    let mut cursor = cursor.clone();
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            () = clock.sleep(BEAT_EVERY) => {
                cursor.beat += 1;
                if let Err(error @ LedgerError::Fenced { .. }) = ledger.save(cursor.clone()).await {
                    return Err(error);
                }
            }
        }
    }
}
