//! Keeps a source's pipeline going: there is no second way of recovery, a pipeline that fails is built anew.

use std::sync::Arc;
use std::time::Duration;

use tapedeck_common::backoff::Backoff;
use tapedeck_common::clock::Clock;
use tapedeck_common::error::{ErrorKind, report};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::pipeline::{Pipeline, PipelineError};

/// Runs pipelines of one source, one after another: whatever unexpected happens to one, the next begins from the log.
pub async fn supervise<F>(
    mut build: F,
    clock: Arc<dyn Clock>,
    mut chance: fastrand::Rng,
    stop: CancellationToken,
) -> Result<(), PipelineError>
where
    F: AsyncFnMut() -> Result<Pipeline, PipelineError>,
{
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    loop {
        let began = clock.monotonic();
        let result = match build().await {
            Ok(pipeline) => pipeline.run(stop.clone()).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Invalid || stop.is_cancelled() => return Err(error),
            Err(error) => {
                error!(kind = error.kind().as_str(), error = %report(&error), "pipeline failed, beginning again from the log")
            }
        }
        if clock.monotonic() > began + Duration::from_secs(60) {
            backoff.reset();
        }
        let wait = backoff.next_wait(chance.f64());
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = clock.sleep(wait) => {}
        }
    }
}
