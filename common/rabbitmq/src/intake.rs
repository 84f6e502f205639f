//! One read: deliveries that the client holds become rows, as many as there are and as there is room for.
//!
//! Promises: a read may be dropped at any moment, since nothing is waited for between a delivery that was taken and the row that it
//! becomes; an error comes after everything that came before it. Never: waits for a second delivery.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::{FutureExt as _, StreamExt as _};
use lapin::Consumer;
use lapin::message::Delivery;
use tapedeck_common::budget::BytePermit;
use tapedeck_common::bus::{BusError, Deliveries};
use tapedeck_common::columns::Columns;
use tapedeck_common::error::ErrorKind;
use tapedeck_common::limits::{OVERSIZE_SHARE, READ_BATCH_EVENTS};
use tapedeck_common::position::{LaneId, Position, Span};
use tapedeck_common::time::Timestamp;

use crate::keeper::Means;
use crate::trouble::trouble;

/// The usual room for a read: 256 events of 4 KB.
const READ_BYTES: usize = 1 << 20;

/// What one read brought.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) span: Span,
    pub(crate) events: Columns,
    pub(crate) skipped: u64,
    /// Positions inside of the span at which nothing came.
    pub(crate) holes: u64,
    /// Events that came before, to us or to others.
    pub(crate) redelivered: u64,
    /// The broker leaps to there: the reading goes on once it is known whether it lost what lies between.
    pub(crate) leap: Option<Position>,
    /// The last delivery's, and how many deliveries there were.
    pub(crate) last_tag: u64,
    pub(crate) taken: u16,
    /// When it was read.
    pub(crate) arrival: Timestamp,
    bytes: usize,
    room: BytePermit,
}

impl Run {
    /// For the pipeline. Its room is what its rows take.
    pub(crate) fn into_deliveries(mut self, lane: LaneId, topic: Arc<str>, capacity: usize, window: Option<u64>) -> Deliveries {
        let bytes = self.events.room_bytes(capacity);
        let mut permit = self.room.split(bytes);
        permit.resize(bytes);
        Deliveries { lane, topic, span: self.span, events: self.events, skipped: self.skipped, permit, window }
    }
}

/// What became of a delivery.
pub(crate) enum Taken {
    /// A row of this memory.
    Row(usize),
    /// It was left out.
    Left,
    /// It comes first in the next read.
    Later,
}

/// Consumers of one channel. One that was cancelled has handed over all that it held before the next one begins.
#[derive(Default)]
pub(crate) struct Consumers(VecDeque<Consumer>);

impl Consumers {
    pub(crate) fn add(&mut self, consumer: Consumer) {
        self.0.push_back(consumer);
    }

    /// The one that is not cancelled.
    pub(crate) fn newest(&self) -> Option<&Consumer> {
        self.0.back()
    }

    /// `None` once the newest was cancelled too, by the broker then. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Result<Delivery, lapin::Error>> {
        loop {
            match self.0.front_mut()?.next().await {
                None if self.0.len() > 1 => drop(self.0.pop_front()),
                next => return next,
            }
        }
    }
}

/// What is remembered from one read to the next.
#[derive(Default)]
pub(crate) struct Intake {
    /// The memory of the largest of the latest events.
    largest: usize,
    failed: Option<BusError>,
    held: Option<Delivery>,
}

impl Intake {
    /// Waits for room and for deliveries of `what`. Cancel safe.
    pub(crate) async fn read(
        &mut self,
        what: &str,
        from: Position,
        consumers: &mut Consumers,
        means: &Means,
        mut take: impl FnMut(&mut Run, &Delivery) -> Result<Taken, BusError>,
    ) -> Result<Run, BusError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let room = self.room(means).await;
        let mut next = match self.held.take() {
            Some(held) => Some(Ok(held)),
            None => consumers.next().await,
        };
        // Nothing is waited for from here on.
        let mut run = Run::begin(from, means, room);
        loop {
            match next {
                Some(Ok(delivery)) => match take(&mut run, &delivery)? {
                    Taken::Later => {
                        self.held = Some(delivery);
                        break;
                    }
                    taken => self.note(&mut run, &delivery, taken),
                },
                Some(Err(error)) => self.failed = Some(trouble(format_args!("reading {what}"), error)),
                None => self.failed = Some(cancelled(what)),
            }
            if run.taken == 0
                && let Some(error) = self.failed.take()
            {
                return Err(error);
            }
            let is_full = usize::from(run.taken) >= READ_BATCH_EVENTS || run.bytes + self.largest > run.room.bytes();
            if is_full || self.failed.is_some() {
                break;
            }
            match consumers.next().now_or_never() {
                Some(delivery) => next = delivery,
                None => break,
            }
        }
        // Forgotten bit by bit, so that one giant does not hold room for ever.
        self.largest -= self.largest / 16;
        Ok(run)
    }

    fn note(&mut self, run: &mut Run, delivery: &Delivery, taken: Taken) {
        (run.last_tag, run.taken) = (delivery.delivery_tag, run.taken + 1);
        if let Taken::Row(bytes) = taken {
            run.bytes += bytes;
            self.largest = self.largest.max(bytes);
        }
    }

    /// Room for the worst read of usual events. Over-size ones are not waited for: one at a time gets in beside it.
    async fn room(&self, means: &Means) -> BytePermit {
        let capacity = means.budget.capacity();
        let bytes = READ_BYTES.min(capacity / 16) + self.largest.min(capacity / OVERSIZE_SHARE);
        if let Some(room) = means.budget.try_reserve(bytes) {
            return room;
        }
        let began = means.clock.monotonic();
        let room = means.budget.reserve(bytes).await;
        means.figures.add_backpressure(means.clock.monotonic().saturating_sub(began));
        room
    }
}

impl Run {
    fn begin(from: Position, means: &Means, room: BytePermit) -> Self {
        Self {
            span: Span::empty_at(from),
            events: means.pool.take(),
            skipped: 0,
            holes: 0,
            redelivered: 0,
            leap: None,
            last_tag: 0,
            taken: 0,
            arrival: means.clock.now(),
            bytes: 0,
            room,
        }
    }
}

pub(crate) fn cancelled(what: &str) -> BusError {
    let what =
        format!("{what}: the broker ended the reading: it was deleted, its node went away, or we held messages for too long");
    BusError::new(ErrorKind::Unavailable, what)
}
