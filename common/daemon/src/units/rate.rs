//! Rates: `5k/s` for things that are counted, `20MB/s` for bytes. Without `/s`, `/m` or `/h` a second is meant.

use std::fmt;
use std::str::FromStr;

use super::{BadUnit, ByteSize, Number, as_text};

/// How many of something in a second. Always above zero and finite.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Rate(f64);

impl Rate {
    /// So many a second; `None` unless above zero and finite.
    pub fn new(per_second: f64) -> Option<Self> {
        (per_second > 0.0 && per_second.is_finite()).then_some(Self(per_second))
    }

    /// How many a second.
    pub const fn per_second(self) -> f64 {
        self.0
    }
}

/// The text before the slash, and the seconds of the period after it.
fn split_period(text: &str) -> Option<(&str, f64)> {
    let Some((amount, period)) = text.split_once('/') else {
        return Some((text, 1.0));
    };
    let seconds = match period.trim() {
        "s" | "sec" | "second" => 1.0,
        "m" | "min" | "minute" => 60.0,
        "h" | "hour" => 3_600.0,
        "d" | "day" => 86_400.0,
        _ => return None,
    };
    Some((amount, seconds))
}

impl FromStr for Rate {
    type Err = BadUnit;

    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let read = || {
            let (amount, seconds) = split_period(text.trim())?;
            let number = Number::take(amount.trim())?;
            let unit = match number.rest.trim() {
                "" => 1.0,
                "k" | "K" => 1e3,
                "m" | "M" => 1e6,
                _ => return None,
            };
            Self::new(number.as_f64() * unit / seconds)
        };
        read().ok_or_else(|| BadUnit::new(text, "a rate above zero such as `5k/s`, `200/s` or `90/m`"))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            rate if rate >= 1e6 && rate % 1e5 == 0.0 => write!(f, "{}M/s", rate / 1e6),
            rate if rate >= 1e3 && rate % 1e2 == 0.0 => write!(f, "{}k/s", rate / 1e3),
            rate => write!(f, "{rate}/s"),
        }
    }
}

/// How many bytes in a second. Always above zero and finite.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct ByteRate(f64);

impl ByteRate {
    /// So many bytes a second; `None` unless above zero and finite.
    pub fn new(per_second: f64) -> Option<Self> {
        Rate::new(per_second).map(|rate| Self(rate.0))
    }

    /// How many bytes a second.
    pub const fn per_second(self) -> f64 {
        self.0
    }
}

impl FromStr for ByteRate {
    type Err = BadUnit;

    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let read = || {
            let (amount, seconds) = split_period(text.trim())?;
            let size: ByteSize = amount.parse().ok()?;
            Self::new(size.bytes() as f64 / seconds)
        };
        read().ok_or_else(|| BadUnit::new(text, "a rate of bytes above zero such as `20MB/s` or `512KiB/s`"))
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.fract() == 0.0 && self.0 < 9e15 {
            return write!(f, "{}/s", ByteSize::new(self.0 as u64));
        }
        write!(f, "{}/s", self.0)
    }
}

as_text!(Rate, "Rate", r"^\s*\d+(\.\d+)?\s*[kKmM]?\s*(/\s*[a-z]+)?\s*$", "A rate: 5k/s, 200/s, 90/m");
as_text!(ByteRate, "ByteRate", r"^\s*\d+(\.\d+)?\s*([kKmMgGtT]?[iI]?[bB]?)\s*(/\s*[a-z]+)?\s*$", "Bytes in a time: 20MB/s");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_written() {
        for (text, rate) in [("5k/s", 5e3), ("200", 200.0), ("90/m", 1.5), ("1.5M/s", 1.5e6), ("0.1/s", 0.1), ("3600/hour", 1.0)]
        {
            assert_eq!(text.parse(), Ok(Rate(rate)), "{text}");
        }
        for (text, rate) in [("20MB/s", 2e7), ("512KiB/s", 524_288.0), ("60 kB / min", 1e3), ("100", 100.0)] {
            assert_eq!(text.parse(), Ok(ByteRate(rate)), "{text}");
        }
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for text in ["", "0/s", "-1/s", "k/s", "5k/fortnight", "5MB/s", "fast"] {
            assert!(text.parse::<Rate>().expect_err(text).to_string().contains("5k/s"));
        }
        for text in ["", "0MB/s", "5x/s", "MB/s", "5MB/"] {
            assert!(text.parse::<ByteRate>().expect_err(text).to_string().contains("20MB/s"));
        }
    }

    #[test]
    fn rates_print_as_people_write_them() {
        for (text, printed) in [("5000/s", "5k/s"), ("1500000", "1.5M/s"), ("90/m", "1.5/s"), ("999", "999/s")] {
            assert_eq!(text.parse::<Rate>().expect(text).to_string(), printed);
        }
        assert_eq!("20MB/s".parse::<ByteRate>().expect("rate").to_string(), "20MB/s");
    }
}
