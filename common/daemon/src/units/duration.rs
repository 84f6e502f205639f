//! Durations: `5m`, `1h30m`, `250ms`. A unit is always asked for: a bare `5` has cost others an outage.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{BadUnit, Number, as_text};

const WANTED: &str = "a duration with a unit such as `30s`, `5m`, `1h30m` or `250ms`";

/// Largest first, in nanoseconds.
const UNITS: [(&str, u64); 8] = [
    ("w", 7 * 86_400_000_000_000),
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// A length of time as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HumanDuration(Duration);

impl HumanDuration {
    /// From a plain duration.
    pub const fn new(duration: Duration) -> Self {
        Self(duration)
    }

    /// The plain duration.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl From<HumanDuration> for Duration {
    fn from(duration: HumanDuration) -> Self {
        duration.0
    }
}

impl From<Duration> for HumanDuration {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl FromStr for HumanDuration {
    type Err = BadUnit;

    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let refused = || BadUnit::new(text, WANTED);
        let mut rest = text.trim();
        if rest == "0" {
            return Ok(Self::default());
        }
        let mut nanos: u64 = 0;
        let mut smallest = u64::MAX;
        while !rest.is_empty() {
            let number = Number::take(rest).ok_or_else(refused)?;
            let end = number.rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(number.rest.len());
            let unit = unit(&number.rest[..end]).ok_or_else(refused)?;
            // Falling units only: `5m1h` is more often a slip than a wish.
            if unit >= smallest {
                return Err(refused());
            }
            smallest = unit;
            nanos = number.times(unit).and_then(|part| nanos.checked_add(part)).ok_or_else(refused)?;
            rest = number.rest[end..].trim_start();
        }
        if smallest == u64::MAX { Err(refused()) } else { Ok(Self(Duration::from_nanos(nanos))) }
    }
}

fn unit(written: &str) -> Option<u64> {
    let name = match written {
        "sec" | "secs" => "s",
        "min" | "mins" => "m",
        "µs" => "us",
        other => other,
    };
    UNITS.iter().find(|(known, _)| *known == name).map(|(_, nanos)| *nanos)
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut nanos = self.0.as_nanos();
        if nanos == 0 {
            return f.write_str("0s");
        }
        for (name, unit) in UNITS.iter().skip(1) {
            let count = nanos / u128::from(*unit);
            nanos %= u128::from(*unit);
            if count > 0 {
                write!(f, "{count}{name}")?;
            }
        }
        Ok(())
    }
}

as_text!(
    HumanDuration,
    "Duration",
    r"^\s*(0|(\d+(\.\d+)?(w|d|h|m|min|mins|s|sec|secs|ms|us|ns)\s*)+)$",
    "A duration with a unit: 250ms, 30s, 5m, 1h30m, 7d"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_written() {
        let cases = [
            ("250ms", Duration::from_millis(250)),
            ("5m", Duration::from_secs(300)),
            ("1h30m", Duration::from_secs(5_400)),
            ("1h 30m", Duration::from_secs(5_400)),
            ("0.5s", Duration::from_millis(500)),
            ("2d", Duration::from_secs(172_800)),
            ("1w", Duration::from_secs(604_800)),
            ("0", Duration::ZERO),
            ("10us", Duration::from_micros(10)),
        ];
        for (text, duration) in cases {
            assert_eq!(text.parse(), Ok(HumanDuration(duration)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_with_an_example() {
        for text in ["", "5", "m", "5x", "-5m", "5m1h", "1h1h", "1.h", "99999999999w", "5 minutes or so", "1h30"] {
            let error = text.parse::<HumanDuration>().expect_err(text).to_string();
            assert!(error.contains("1h30m"), "{error}");
        }
    }

    #[test]
    fn printing_loses_nothing() {
        for nanos in [0, 1, 1_500, 250_000_000, 90_000_000_000, 5_400_000_000_000, 86_400_000_000_001] {
            let duration = HumanDuration(Duration::from_nanos(nanos));
            assert_eq!(duration.to_string().parse(), Ok(duration), "{duration}");
        }
        assert_eq!(HumanDuration(Duration::from_secs(5_400)).to_string(), "1h30m");
    }
}
