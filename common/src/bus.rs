//! The seams to a bus. Calls carry hundreds of events, so dynamic dispatch costs nothing and nothing is generic over the bus.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::mpsc;

use crate::budget::BytePermit;
use crate::columns::Columns;
use crate::commit::{Checkpoint, GapCause, Receipt};
use crate::error::{BoxError, ErrorKind};
use crate::event::Header;
use crate::position::{LaneId, Position, Span};
use crate::time::Timestamp;

/// A failure of the bus.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct BusError {
    /// What failed, with the names of topics and brokers.
    pub what: String,
    /// What to do about it.
    pub kind: ErrorKind,
    /// The cause below, if there is one.
    #[source]
    pub source: Option<BoxError>,
}

impl BusError {
    /// An error without a cause below it.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { what: what.into(), kind, source: None }
    }

    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// Where a lane begins that the log has never seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the first event that the bus still has.
    Earliest,
    /// After the last event of now.
    Latest,
    /// At the first event of this time or later.
    At(Timestamp),
}

/// What happens with events that a replay published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Replayed {
    /// They are left out and counted.
    #[default]
    Skip,
    /// They are read like all others.
    Archive,
}

/// A run of events of one lane as the bus handed them over, not yet acknowledged. Its memory is reserved.
#[derive(Debug)]
pub struct Deliveries {
    /// The lane.
    pub lane: LaneId,
    /// The topic's true name.
    pub topic: Arc<str>,
    /// What the run covers, holes (control records, compacted events) inside. It begins where the lane was resumed, the previous
    /// run ended or the lane was last told to be [`Incoming::Idle`], whichever came last.
    pub span: Span,
    /// The events.
    pub events: Columns,
    /// Events of the span that the source left out because they are marked as a replay's copies.
    pub skipped: u64,
    /// The room that they take.
    pub permit: BytePermit,
    /// How many events of the lane the bus hands over before it wants an acknowledgement; `None` if it never waits for one.
    pub window: Option<u64>,
}

/// A lane that the bus gave us. Nothing is read from it before [`Consumer::resume`] names its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssignedLane {
    /// The lane.
    pub lane: LaneId,
    /// The topic's true name.
    pub topic: Arc<str>,
}

/// While one of these lives, the bus keeps the revoked lanes ours, for at most [`crate::limits::REVOKE_GRACE`].
#[derive(Debug, Clone)]
pub struct RevokeGuard {
    /// Dropped with the last clone; the receiver then reads the end of the channel.
    _alive: mpsc::Sender<()>,
}

impl RevokeGuard {
    /// A guard, and the end that learns (by `recv` answering `None`, or `is_closed`) that all clones are gone.
    pub fn new() -> (Self, mpsc::Receiver<()>) {
        let (alive, gone) = mpsc::channel(1);
        (Self { _alive: alive }, gone)
    }
}

/// What happens next on a bus.
#[derive(Debug)]
pub enum Incoming {
    /// Events.
    Deliveries(Vec<Deliveries>),
    /// These lanes are ours from now on, beside those that were before. Look up their positions, then [`Consumer::resume`] them.
    /// None at all tells a member that the bus knows it, and has nothing for it now.
    Assigned(Vec<AssignedLane>),
    /// These lanes are to be given up: commit what is held of them, then drop the guard.
    Revoking(Vec<LaneId>, RevokeGuard),
    /// These lanes are somebody else's already: abandon what is held of them.
    Lost(Vec<LaneId>),
    /// The bus cannot hand over the next event of this lane, for this reason. What came before stands, and the other lanes go on;
    /// of this one nothing comes until it is assigned again, which a bus that can try once more does by itself after a while.
    Halted(LaneId, BusError),
    /// These lanes have nothing more to read: their next position, where the bus ends at this moment.
    Idle(Vec<(LaneId, Position)>),
    /// Asked at this moment, the bus ended at these positions. Told every few seconds of all lanes, as long as the bus answers.
    Ends(Vec<(LaneId, Position)>, Timestamp),
}

/// Where a lane can go on, once the log has been asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Located {
    /// The log does not know the lane; it begins here.
    Start(Position),
    /// It goes on where the log stands.
    Continue(Position),
    /// The bus no longer has this span; the lane goes on at its end once the gap is in the log.
    Gap(Span, GapCause),
    /// The log stands behind the end of the bus: the bus lost events, or is another one.
    Beyond {
        /// Where the log stands.
        log: Position,
        /// The position after the last event of the bus.
        bus_end: Position,
    },
}

/// A lane to be located.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToLocate {
    /// The lane.
    pub lane: LaneId,
    /// The topic's true name.
    pub topic: Arc<str>,
    /// Where the log stands; `None` if it does not know the lane.
    pub log: Option<Position>,
    /// True if the log knows other lanes of the topic. Then an unknown lane is new and begins at its earliest event,
    /// whatever start is configured.
    pub topic_known: bool,
    /// Where all lanes of the table stand: by their names a bus without ids tells what became of a lane.
    pub table: Arc<Checkpoint>,
}

/// What the bus was asked. It comes by itself, whatever else is done meanwhile; dropping it gives the question up.
pub type Answer<T> = BoxFuture<'static, Result<T, BusError>>;

/// One inflow of deliveries.
#[async_trait]
pub trait Consumer: Send {
    /// Waits for what happens next. Cancel safe: dropping the call loses nothing.
    /// Within a lane positions only grow; between lanes no order is promised.
    async fn next(&mut self) -> Result<Incoming, BusError>;

    /// Finds where assigned lanes can go on; lanes that are no longer ours are left out. Asks the bus and waits for it without end,
    /// while other lanes are read.
    ///
    /// Where a topic is met for the first time and its start is not its earliest event, the other lanes that it has now are
    /// answered too, though nobody asked: begun in one record, they all begin at that moment, whoever comes to read them.
    fn locate(&mut self, lanes: Vec<ToLocate>) -> Answer<Vec<(LaneId, Located)>>;

    /// Reads these lanes from these positions on. For lanes that are read already it is a seek: deliveries from before are
    /// not handed over any more. Lanes that are no longer ours are passed over.
    async fn resume(&mut self, at: Vec<(LaneId, Position)>) -> Result<(), BusError>;

    /// Lets the bus forget what `receipt` covers. Advisory where the log has positions: should it fail nothing is lost.
    async fn acknowledge(&mut self, receipt: &Receipt);

    /// Where the bus begins and ends for a lane, as far as is known without asking it: for lag and head room.
    fn bounds(&self, lane: &LaneId) -> Option<Span>;

    /// Leaves the bus. Bounded: gives up waiting after a few seconds.
    async fn close(self: Box<Self>);
}

/// One event on its way out.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing<'a> {
    /// The topic it goes to.
    pub topic: &'a str,
    /// The partition it goes to.
    pub partition: i32,
    /// Its time; `None` lets the bus set one.
    pub time: Option<Timestamp>,
    /// The key; null and empty are different.
    pub key: Option<&'a [u8]>,
    /// The value; null is a tombstone. Shared: a bus may read it in place until the event is confirmed.
    pub value: Option<&'a Bytes>,
    /// The headers, in order.
    pub headers: &'a [Header<'a>],
    /// The caller's number of the lane that it comes from (its index into a list of its own).
    pub lane: u32,
    /// Its position in that lane.
    pub position: Position,
}

/// How far a lane has been confirmed by the bus: `position` and everything of the lane that was published before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirmed {
    /// The caller's number of the lane.
    pub lane: u32,
    /// The position after the last confirmed event.
    pub next: Position,
    /// Events confirmed so far.
    pub events: u64,
}

/// One outflow of events. Synchronous: it fills a queue of the client and looks at what has come back, and never waits.
pub trait Producer: Send {
    /// Queues one event; the bytes are copied. `Ok(false)` means that the queue is full: wait for [`Self::confirmed`], then try again.
    /// Events of one lane are published in the order of the calls.
    fn publish(&mut self, event: &Outgoing<'_>) -> Result<bool, BusError>;

    /// As [`Self::publish`], for an event with headers whose names are no text: `raw_names` holds the bytes of such a name
    /// under the index of its header, in the order of the headers, and they go out in place of the text.
    fn publish_raw(&mut self, event: &Outgoing<'_>, raw_names: &[(usize, &[u8])]) -> Result<bool, BusError> {
        let (topic, partition, count) = (event.topic, event.partition, raw_names.len());
        let what =
            format!("topic {topic}, partition {partition}: this bus carries no header names that are not text ({count} of them)");
        Err(BusError::new(ErrorKind::Invalid, what))
    }

    /// What the bus has confirmed so far, lane by lane. To be asked every few milliseconds while events are unconfirmed: some clients
    /// learn of it only then. Fails once an event was refused for good; nothing after it is confirmed.
    fn confirmed(&mut self) -> Result<Vec<Confirmed>, BusError>;

    /// Events that were published and were not confirmed when [`Self::confirmed`] was last asked.
    fn unconfirmed(&self) -> usize;
}
