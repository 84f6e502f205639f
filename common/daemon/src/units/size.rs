//! Sizes in bytes: `128MiB`, `64kB`, `1.5GiB`, `100`. Binary and decimal units mean what they say.

use std::fmt;
use std::str::FromStr;

use super::{BadUnit, Number, as_text};

const WANTED: &str = "a size in bytes such as `128MiB`, `64kB` or `1000000`";

/// Longest first within a base, so that printing picks the largest unit that divides.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(u64);

impl ByteSize {
    /// So many bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The number of bytes, for memory of this process.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = BadUnit;

    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let refused = || BadUnit::new(text, WANTED);
        let number = Number::take(text.trim()).ok_or_else(refused)?;
        let unit = unit(number.rest.trim_start()).ok_or_else(refused)?;
        number.times(unit).map(Self).ok_or_else(refused)
    }
}

/// Upper or lower case, with or without the `B` (Kubernetes writes `Mi`).
fn unit(written: &str) -> Option<u64> {
    if written.is_empty() {
        return Some(1);
    }
    let same = |name: &str| {
        name.eq_ignore_ascii_case(written) || name.strip_suffix('B').is_some_and(|short| short.eq_ignore_ascii_case(written))
    };
    UNITS.iter().find(|(name, _)| same(name)).map(|(_, bytes)| *bytes)
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let divides = |unit: u64| self.0 != 0 && self.0.is_multiple_of(unit);
        match UNITS.iter().find(|(_, unit)| *unit > 1 && divides(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

as_text!(ByteSize, "ByteSize", r"^\s*\d+(\.\d+)?\s*([kKmMgGtT]?[iI]?[bB]?)\s*$", "Bytes: 128MiB, 64kB, 1000000");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_written() {
        let cases = [
            ("0", 0),
            ("100", 100),
            ("64kB", 64_000),
            ("64 KB", 64_000),
            ("1KiB", 1024),
            ("128MiB", 128 << 20),
            ("128Mi", 128 << 20),
            ("1.5GiB", 3 << 29),
            ("2m", 2_000_000),
            ("7B", 7),
            ("1TiB", 1 << 40),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_an_example() {
        for text in ["", "MiB", "-1", "1.5B", "1..5MB", "12 parsecs", "99999999999TiB", "1,5MB", "0x10", "1e3"] {
            let error = text.parse::<ByteSize>().expect_err(text).to_string();
            assert!(error.contains("128MiB"), "{error}");
        }
    }

    #[test]
    fn printing_loses_nothing() {
        for bytes in [0, 1, 999, 1000, 1023, 1024, 1025, 64_000, 128 << 20, 1_500_000, u64::MAX, 1 << 40, 1 << 50] {
            let printed = ByteSize(bytes).to_string();
            assert_eq!(printed.parse(), Ok(ByteSize(bytes)), "{printed}");
        }
        assert_eq!(ByteSize(128 << 20).to_string(), "128MiB");
        assert_eq!(ByteSize(64_000).to_string(), "64kB");
    }
}
