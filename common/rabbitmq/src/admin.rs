//! What tools ask of a broker: is it there, may we, is there such a stream.
//!
//! Promise: every question has a time limit. Never: changes anything.

use std::sync::Arc;

use tapedeck_common::bus::BusError;
use tapedeck_common::clock::Clock;

use crate::config::RabbitSettings;
use crate::link::Link;
use crate::streams::Probe;

/// What a check against the running broker found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnlineReport {
    /// The cluster's name in the archive.
    pub cluster: String,
    /// The product and its version, as the server tells them.
    pub server: String,
    /// The stream's first event, if there is one, and where it ends at least, if that could be seen.
    pub seen: (Option<u64>, Option<u64>),
}

/// Connects as an archiver would, and reads a little of the stream. On a thread of the caller's runtime.
pub async fn check_online(
    settings: &RabbitSettings,
    clock: Arc<dyn Clock>,
    mut chance: fastrand::Rng,
) -> Result<OnlineReport, BusError> {
    settings.check()?;
    let link = Link::open(&settings.place, &settings.title, &clock, &mut chance).await?;
    let looked = look(&link, settings, &*clock).await;
    link.close(&*clock).await;
    looked
}

async fn look(link: &Link, settings: &RabbitSettings, clock: &dyn Clock) -> Result<OnlineReport, BusError> {
    let probe = Probe { link, stream: &settings.stream, clock };
    probe.counted().await?;
    let ends = probe.ends(None).await?;
    let greeting = link.greeting();
    let words = [&greeting.product, &greeting.version].into_iter().flatten().map(String::as_str);
    Ok(OnlineReport {
        cluster: link.cluster().to_owned(),
        server: words.collect::<Vec<_>>().join(" "),
        seen: (ends.first.map(|first| first.get()), ends.end.map(|end| end.get())),
    })
}
