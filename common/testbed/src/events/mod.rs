//! Seeded events: what the tests and benches load onto the bus.
//!
//! An event depends on the workload, the seed, the count and its index alone, so any range can be made anywhere, in any order,
//! and be made again. The shapes are those that the figures in the docs were measured with.

mod documents;
pub mod nasty;
pub mod nasty_amqp;
mod partition;
pub mod samples;
mod words;

use fastrand::Rng;

pub use partition::partition_of;

/// 2026-11-19T10:00:00Z: where event times begin unless a test says otherwise.
pub const BASE_MS: i64 = 1_795_082_400_000;

/// One hour in milliseconds.
pub const HOUR_MS: i64 = 3_600_000;

/// An event as a producer hands it to the bus.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// Key; null is not the same as empty.
    pub key: Option<Vec<u8>>,
    /// Value; null is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Headers in order; names may repeat, values may be null.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// CreateTime in milliseconds since 1970.
    pub timestamp: i64,
}

impl Event {
    /// Key, value, header names and header values, in bytes.
    pub fn raw_bytes(&self) -> u64 {
        let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let headers = self.headers.iter().map(|(name, value)| name.len() + length(value));
        (length(&self.key) + length(&self.value) + headers.sum::<usize>()) as u64
    }
}

/// The shapes of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Orders and clicks of a shop, JSON of about 1.2 KB, keyed by customer, no headers.
    Orders,
    /// JSON of 1 KB, UUID key, three headers: 1,227 bytes in all.
    A,
    /// JSON of 4 KB, UUID key, three headers: 4,000 bytes in all.
    B,
    /// Small JSON, 114 bytes of value and two headers: 161 bytes in all.
    C,
    /// 1,024 random bytes that nothing can compress, UUID key and three headers: 1,154 bytes in all.
    D,
    /// As A, with less JSON: 400 bytes in all.
    E,
}

/// Makes the events of one workload.
#[derive(Debug, Clone)]
pub struct Generator {
    workload: Workload,
    seed: u64,
    count: u64,
    from_ms: i64,
    span_ms: i64,
    words: words::Words,
}

impl Generator {
    /// `count` events whose times are spread evenly over two hours from [`BASE_MS`] on.
    pub fn new(workload: Workload, seed: u64, count: u64) -> Self {
        Self { workload, seed, count, from_ms: BASE_MS, span_ms: 2 * HOUR_MS, words: words::Words::new() }
    }

    /// Spreads the event times over `hours` from `from_ms` on instead.
    pub fn over(mut self, from_ms: i64, hours: f64) -> Self {
        self.from_ms = from_ms;
        self.span_ms = (hours * HOUR_MS as f64) as i64;
        self
    }

    /// How many events there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The event with this index.
    pub fn event(&self, index: u64) -> Event {
        let mut rng = rng(self.seed, index);
        let share = index as f64 / self.count.max(1) as f64;
        let timestamp = self.from_ms + (share * self.span_ms as f64) as i64;
        let maker = documents::Maker { words: &self.words, index, timestamp };
        match self.workload {
            Workload::Orders => maker.shop(&mut rng),
            Workload::A => maker.sized(&mut rng, 1_083),
            Workload::B => maker.sized(&mut rng, 3_856),
            Workload::C => maker.small(&mut rng),
            Workload::D => maker.noise(&mut rng),
            Workload::E => maker.sized(&mut rng, 290),
        }
    }

    /// All events in order.
    pub fn events(&self) -> impl Iterator<Item = Event> + '_ {
        (0..self.count).map(|index| self.event(index))
    }
}

/// Chance of one event. Neighbouring indexes must not give neighbouring streams, so both are mixed.
pub(crate) fn rng(seed: u64, index: u64) -> Rng {
    let mut mixed = seed ^ index.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    Rng::with_seed(mixed ^ (mixed >> 31))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Workload; 6] = [Workload::Orders, Workload::A, Workload::B, Workload::C, Workload::D, Workload::E];

    #[test]
    fn the_same_seed_makes_the_same_events_in_any_order() {
        for workload in ALL {
            let first: Vec<u64> = Generator::new(workload, 7, 200).events().map(|event| event.digest()).collect();
            let again = Generator::new(workload, 7, 200);
            for index in (0..200).rev() {
                assert_eq!(again.event(index).digest(), first[index as usize], "{workload:?} {index}");
            }
            assert_ne!(Generator::new(workload, 8, 200).event(0).digest(), first[0]);
        }
    }

    #[test]
    fn the_shapes_have_the_sizes_they_say() {
        let average = |workload| {
            let generator = Generator::new(workload, 1, 500);
            generator.events().map(|event| event.raw_bytes()).sum::<u64>() as f64 / 500.0
        };
        for (workload, bytes) in [
            (Workload::Orders, 1_200.0),
            (Workload::A, 1_227.0),
            (Workload::B, 4_000.0),
            (Workload::C, 161.0),
            (Workload::D, 1_154.0),
            (Workload::E, 400.0),
        ] {
            let found = average(workload);
            assert!((found - bytes).abs() < bytes * 0.05, "{workload:?}: {found} for {bytes}");
        }
    }

    #[test]
    fn event_times_fill_the_span_evenly() {
        let generator = Generator::new(Workload::C, 1, 1_000).over(BASE_MS, 4.0);
        assert_eq!(generator.event(0).timestamp, BASE_MS);
        assert_eq!(generator.event(500).timestamp, BASE_MS + 2 * HOUR_MS);
    }
}
