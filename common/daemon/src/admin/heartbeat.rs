//! Heartbeats: each loop of the process says now and then that it still goes round.
//! Law: a heartbeat is about this process alone; a broker or store that is away makes none of them late.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tapedeck_common::Clock;

/// All loops of the process that promised to tick. Clones share them.
#[derive(Clone)]
pub struct Heartbeats(Arc<Shared>);

struct Shared {
    clock: Arc<dyn Clock>,
    loops: Mutex<Loops>,
}

#[derive(Default)]
struct Loops {
    next: u64,
    all: BTreeMap<u64, Arc<Loop>>,
}

struct Loop {
    name: String,
    silence_max: Duration,
    last_micros: AtomicU64,
}

impl fmt::Debug for Heartbeats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Heartbeats")
    }
}

impl Heartbeats {
    /// None yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Shared { clock, loops: Mutex::default() }))
    }

    /// A loop that will tick at least every `silence_max`, until its heartbeat is dropped.
    pub fn register(&self, name: impl Into<String>, silence_max: Duration) -> Heartbeat {
        let ticking = Arc::new(Loop { name: name.into(), silence_max, last_micros: AtomicU64::new(self.now_micros()) });
        let mut loops = self.lock();
        let id = loops.next;
        loops.next += 1;
        loops.all.insert(id, ticking.clone());
        Heartbeat { id, ticking, all: self.clone() }
    }

    /// The loops that have been silent for too long, and for how long.
    pub fn late(&self) -> Vec<(String, Duration)> {
        let now = self.now_micros();
        let silence = |one: &Loop| Duration::from_micros(now.saturating_sub(one.last_micros.load(Ordering::Relaxed)));
        let loops = self.lock();
        loops
            .all
            .values()
            .map(|one| (one, silence(one)))
            .filter(|(one, silence)| *silence > one.silence_max)
            .map(|(one, silence)| (one.name.clone(), silence))
            .collect()
    }

    fn now_micros(&self) -> u64 {
        u64::try_from(self.0.clock.monotonic().as_micros()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Loops> {
        // A panic while it was held leaves a whole map behind.
        self.0.loops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pulse of one loop. Dropping it says that the loop ended on purpose.
pub struct Heartbeat {
    id: u64,
    ticking: Arc<Loop>,
    all: Heartbeats,
}

impl Heartbeat {
    /// Says that the loop goes round. Cheap: one atomic store.
    pub fn tick(&self) {
        self.ticking.last_micros.store(self.all.now_micros(), Ordering::Relaxed);
    }
}

impl fmt::Debug for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Heartbeat({})", self.ticking.name)
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.all.lock().all.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapedeck_common::Timestamp;

    struct HandClock(AtomicU64);

    #[async_trait::async_trait]
    impl Clock for HandClock {
        fn now(&self) -> Timestamp {
            Timestamp::default()
        }

        fn monotonic(&self) -> Duration {
            Duration::from_secs(self.0.load(Ordering::Relaxed))
        }

        async fn sleep_until(&self, _: Duration) {}
    }

    #[test]
    fn silence_is_noticed_ticks_and_ends_are_not_late() {
        let clock = Arc::new(HandClock(AtomicU64::new(0)));
        let beats = Heartbeats::new(clock.clone());
        let (poll, pipeline) =
            (beats.register("poll", Duration::from_secs(10)), beats.register("pipeline", Duration::from_secs(30)));
        clock.0.store(11, Ordering::Relaxed);
        assert_eq!(beats.late(), [("poll".to_owned(), Duration::from_secs(11))]);
        poll.tick();
        assert!(beats.late().is_empty());
        clock.0.store(60, Ordering::Relaxed);
        assert_eq!(beats.late().len(), 2);
        drop((poll, pipeline));
        assert!(beats.late().is_empty());
    }
}
