//! What tools ask of a broker: is it there, is there such a stream or queue.
//!
//! Promise: every question has a time limit. Never: changes anything.

use std::sync::Arc;

use tapedeck_common::bus::BusError;
use tapedeck_common::clock::Clock;

use crate::config::{Inflow, RabbitSettings};
use crate::link::Link;
use crate::queue::may_be_read;
use crate::streams::Probe;

/// What a check against the running broker found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnlineReport {
    /// The cluster's name in the archive.
    pub cluster: String,
    /// The product and its version, as the server tells them.
    pub server: String,
    /// What was seen of the stream or queue.
    pub seen: Seen,
}

/// What was seen of what is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A stream's first event, if there is one, and where it ends at least, if that could be seen.
    Stream(Option<u64>, Option<u64>),
    /// Messages that wait in a queue. Whether we may take them is not tried: it would take one.
    Queue(u32),
}

/// Connects as an archiver would, and reads a little of a stream. On the caller's runtime.
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
    let ready = link.ready(settings.inflow.name()).await?;
    let seen = match &settings.inflow {
        Inflow::Stream(stream) => {
            let ends = Probe { link, stream: &stream.name, clock }.ends(None).await?;
            Seen::Stream(ends.first.map(|first| first.get()), ends.end.map(|end| end.get()))
        }
        Inflow::Queue(queue) => {
            may_be_read(link, queue)?;
            Seen::Queue(ready)
        }
    };
    let greeting = link.greeting();
    let words = [&greeting.product, &greeting.version].into_iter().flatten().map(String::as_str);
    Ok(OnlineReport { cluster: link.cluster().to_owned(), server: words.collect::<Vec<_>>().join(" "), seen })
}
