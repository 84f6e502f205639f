//! When a batch closes, and what gives way when memory runs short. Pure: takes ages and sizes, never asks for them.

use std::time::Duration;

/// Why a batch was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SealReason {
    /// Its encoded bytes reached `seal.max_bytes`.
    Bytes,
    /// It was open for `seal.max_age`.
    Age,
    /// The memory budget ran short.
    Memory,
    /// It holds half of what the bus hands over without an acknowledgement.
    Window,
    /// One of its lanes goes to another member of the group.
    Revoke,
    /// The process is leaving.
    Shutdown,
    /// Somebody asked for it.
    Manual,
}

impl SealReason {
    /// All reasons, for metrics that begin at zero.
    pub const ALL: [Self; 7] = [Self::Bytes, Self::Age, Self::Memory, Self::Window, Self::Revoke, Self::Shutdown, Self::Manual];

    /// The word in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Age => "age",
            Self::Memory => "memory",
            Self::Window => "window",
            Self::Revoke => "revoke",
            Self::Shutdown => "shutdown",
            Self::Manual => "manual",
        }
    }
}

/// How large and how old a batch may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealPolicy {
    /// Encoded bytes of all its segments.
    pub bytes_max: u64,
    /// Time since its first event came in, on the process's own clock.
    pub age_max: Duration,
}

impl SealPolicy {
    /// Says why a batch of that size and age must close now, or that it may stay open.
    pub fn reason(&self, encoded_bytes: u64, age: Duration) -> Option<SealReason> {
        if encoded_bytes >= self.bytes_max {
            return Some(SealReason::Bytes);
        }
        (age >= self.age_max).then_some(SealReason::Age)
    }
}

/// What a table holds in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableLoad {
    /// The caller's number of the table.
    pub table: usize,
    /// Bytes of events that could be encoded now, in its fullest group.
    pub fullest_group: usize,
    /// Bytes of events that could be encoded now, and wait for more.
    pub raw: usize,
    /// Bytes that are encoded, and wait for their row group to be full.
    pub encoded: usize,
    /// True if its previous batch is still on the way to the store, so that this one cannot be sealed yet.
    pub storing: bool,
}

/// What to do so that the bus can go on being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relief {
    /// Encode the fullest group of this table now, though its chunk is not full: packed, it takes about a quarter.
    EncodeFullest(usize),
    /// Seal this table's batch.
    Seal(usize),
}

/// Chooses what gives way. Encoding goes first, since it costs nothing but smaller pages; sealing costs a small segment, and
/// helps only against what would stay for ever: rows before a busy encoder and parts on their way to the store leave anyhow.
/// Raw bytes of less than `encode_bytes_min` are not worth an early encoding.
pub fn relief(loads: &[TableLoad], used: usize, capacity: usize, encode_bytes_min: usize) -> Option<Relief> {
    if used < capacity / 2 {
        return None;
    }
    let fullest = loads.iter().max_by_key(|load| load.fullest_group).filter(|load| load.fullest_group >= encode_bytes_min);
    if let Some(load) = fullest {
        return Some(Relief::EncodeFullest(load.table));
    }
    let stays: usize = loads.iter().map(|load| load.raw + load.encoded).sum();
    if stays < capacity / 2 {
        return None;
    }
    let heaviest =
        loads.iter().filter(|load| !load.storing && load.raw + load.encoded > 0).max_by_key(|load| load.raw + load.encoded)?;
    Some(Relief::Seal(heaviest.table))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: SealPolicy = SealPolicy { bytes_max: 100, age_max: Duration::from_secs(60) };

    #[test]
    fn size_and_age_close_a_batch() {
        let cases = [
            (0, 0, None),
            (99, 59, None),
            (100, 0, Some(SealReason::Bytes)),
            (0, 60, Some(SealReason::Age)),
            (100, 60, Some(SealReason::Bytes)),
        ];
        for (bytes, seconds, reason) in cases {
            assert_eq!(POLICY.reason(bytes, Duration::from_secs(seconds)), reason, "{bytes} bytes, {seconds} s");
        }
    }

    fn load(table: usize, fullest_group: usize, encoded: usize, storing: bool) -> TableLoad {
        TableLoad { table, fullest_group, raw: fullest_group, encoded, storing }
    }

    #[test]
    fn encoding_gives_way_before_sealing() {
        let loads = [load(0, 10, 500, false), load(1, 40, 0, false)];
        assert_eq!(relief(&loads, 499, 1000, 8), None);
        assert_eq!(relief(&loads, 500, 1000, 8), Some(Relief::EncodeFullest(1)));
        assert_eq!(relief(&loads, 750, 1000, 50), Some(Relief::Seal(0)));
    }

    #[test]
    fn what_leaves_by_itself_is_waited_for() {
        assert_eq!(relief(&[load(0, 0, 400, false)], 1000, 1000, 8), None, "the rest is with encoders and the store");
        assert_eq!(relief(&[load(0, 0, 500, false)], 1000, 1000, 8), Some(Relief::Seal(0)));
    }

    #[test]
    fn a_table_that_is_storing_is_not_sealed_again() {
        let loads = [load(0, 0, 900, true), load(1, 0, 5, false)];
        assert_eq!(relief(&loads, 990, 1000, 50), Some(Relief::Seal(1)));
        assert_eq!(relief(&loads[..1], 990, 1000, 50), None);
        assert_eq!(relief(&[], 990, 1000, 50), None);
    }
}
