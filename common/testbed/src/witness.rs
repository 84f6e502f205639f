//! A producer that goes on by itself and keeps the truth: every acknowledged event with its lane, its offset and its digest.
//!
//! It promises that what it says was acknowledged by the bus, all of it, also what retention took away since. An event that
//! the bus never acknowledged, or without its offset, makes it an error, for then nobody knows whether and where it is there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail};
use rdkafka::ClientContext;
use rdkafka::Message as _;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{Producer as _, ProducerContext, ThreadedProducer};

use crate::events::{BASE_MS, Generator, HOUR_MS, Workload};
use crate::oracle::Truth;
use crate::produce::{config, record, send_record};
use crate::wait::wait_until;

/// An outage of the broker is waited out; nothing may fail before this.
const DELIVERED_WITHIN_MS: &str = "600000";
/// How long the last events may take once the bus is well.
const LIMIT: Duration = Duration::from_secs(120);
/// Events come in bursts of so many, with this pause: about a thousand a second.
const BURST: u64 = 50;
const PAUSE: Duration = Duration::from_millis(50);
/// Their times are spread over some hours, so that a batch holds several segments.
const HOURS: f64 = 6.0;
const EVENTS_IN_THESE_HOURS: u64 = 60_000;

#[derive(Debug, Default)]
struct Ledger {
    lanes: Mutex<BTreeMap<i32, BTreeMap<i64, u64>>>,
    failed: AtomicU64,
    /// Held while a burst is handed over, so that whoever sets it knows that none is under way.
    rests: Mutex<bool>,
    ended: AtomicBool,
}

#[derive(Clone)]
struct Notes(Arc<Ledger>);

impl ClientContext for Notes {}

impl ProducerContext for Notes {
    /// The event's digest.
    type DeliveryOpaque = Box<u64>;

    fn delivery(&self, result: &DeliveryResult<'_>, digest: Box<u64>) {
        match result {
            Ok(message) if message.offset() >= 0 => {
                let mut lanes = lock(&self.0.lanes);
                lanes.entry(message.partition()).or_default().insert(message.offset(), *digest);
            }
            Ok(_) | Err(_) => {
                self.0.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// A producer of one topic; it ends on drop.
pub struct Witness {
    topic: String,
    producer: Arc<ThreadedProducer<Notes>>,
    ledger: Arc<Ledger>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Witness {
    /// Begins to produce; the seed decides what.
    pub fn start(bootstrap: &str, topic: &str, seed: u64) -> Result<Self> {
        let ledger = Arc::<Ledger>::default();
        let settings = [
            ("message.timeout.ms", DELIVERED_WITHIN_MS),
            ("topic.metadata.refresh.interval.ms", "1000"),
            // A broker that was killed knows only the last batch of a producer again. One that is sent once more from further back
            // it would acknowledge as a duplicate without its offset, and then nobody could say which event stands where.
            ("max.in.flight.requests.per.connection", "1"),
        ];
        let producer = config(bootstrap, &settings).create_with_context(Notes(Arc::clone(&ledger)))?;
        let producer: Arc<ThreadedProducer<Notes>> = Arc::new(producer);
        let (ours, notes, name) = (Arc::clone(&producer), Arc::clone(&ledger), topic.to_owned());
        let thread = std::thread::spawn(move || produce(&ours, &notes, &name, seed));
        Ok(Self { topic: topic.to_owned(), producer, ledger, thread: Some(thread) })
    }

    /// Goes on after a rest.
    pub fn go_on(&self) {
        *lock(&self.ledger.rests) = false;
    }

    /// Stops for a while, and returns once everything is acknowledged.
    pub fn rest(&self) -> Result<()> {
        *lock(&self.ledger.rests) = true;
        wait_until("the bus to acknowledge everything", LIMIT, || Ok(self.producer.in_flight_count() == 0))?;
        match self.ledger.failed.load(Ordering::SeqCst) {
            0 if self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) => Ok(()),
            0 => bail!("the producer has ended"),
            failed => bail!("the bus did not acknowledge {failed} events, or did not say where they are"),
        }
    }

    /// Everything acknowledged so far.
    pub fn truth(&self) -> Truth {
        let lanes = lock(&self.ledger.lanes);
        let mut truth = Truth::new();
        for (partition, events) in &*lanes {
            events.iter().for_each(|(offset, digest)| truth.add(&self.topic, *partition, *offset, *digest));
        }
        truth
    }

    /// Per partition, the offset after the last acknowledged event.
    pub fn ends(&self) -> BTreeMap<i32, i64> {
        let lanes = lock(&self.ledger.lanes);
        lanes.iter().filter_map(|(partition, events)| Some((*partition, events.last_key_value()?.0 + 1))).collect()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.ledger.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn produce(producer: &ThreadedProducer<Notes>, ledger: &Ledger, topic: &str, seed: u64) -> Result<()> {
    let from = BASE_MS - (HOURS * HOUR_MS as f64) as i64;
    let events = Generator::new(Workload::C, seed, EVENTS_IN_THESE_HOURS).over(from, HOURS);
    let mut index = 0;
    while !ledger.ended.load(Ordering::SeqCst) {
        let rests = lock(&ledger.rests);
        if !*rests {
            for _ in 0..BURST {
                let mut event = events.event(index);
                // Times go round in the hours that they have; the broker takes none that lie ahead.
                event.timestamp = from + (event.timestamp - from) % (HOURS * HOUR_MS as f64) as i64;
                send_record(producer, topic, record(topic, None, &event, Box::new(event.digest())))?;
                index += 1;
            }
        }
        drop(rests);
        std::thread::sleep(PAUSE);
    }
    Ok(())
}
