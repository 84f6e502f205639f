//! Times as numbers: microseconds since 1970 UTC, and the UTC hour that an event belongs to.
//! Nobody here asks what time it is; clocks are handed in (see [`crate::clock`]).

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

const MICROS_PER_HOUR: i64 = 3_600_000_000;
const MICROS_PER_DAY: i64 = 24 * MICROS_PER_HOUR;

/// A moment, in microseconds since 1970-01-01T00:00:00 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The first moment past every date that the archive accepts as an event time: 10000-01-01 UTC.
    pub const CALENDAR_END: Self = Self(253_402_300_800_000_000);

    /// From microseconds since 1970 UTC.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From milliseconds since 1970 UTC; `None` where microseconds overflow.
    pub const fn from_millis(millis: i64) -> Option<Self> {
        match millis.checked_mul(1_000) {
            Some(micros) => Some(Self(micros)),
            None => None,
        }
    }

    /// Microseconds since 1970 UTC.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Whole milliseconds since 1970 UTC, rounded down.
    pub const fn millis_floor(self) -> i64 {
        self.0.div_euclid(1_000)
    }

    /// Whole milliseconds since 1970 UTC, rounded up.
    pub const fn millis_ceil(self) -> i64 {
        self.millis_floor() + (self.0.rem_euclid(1_000) != 0) as i64
    }

    /// Seconds since 1970 UTC with a fraction, as metrics want them.
    pub fn seconds(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// True for 1970 to 9999: what calendars, and the engines that read the archive, can hold.
    pub fn is_calendar(self) -> bool {
        self.0 >= 0 && self < Self::CALENDAR_END
    }

    /// The time since `earlier`, zero if that lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0).max(0) as u64)
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(rhs.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(rhs.as_micros()).unwrap_or(i64::MAX)))
    }
}

/// RFC 3339 in UTC, to the microsecond, without trailing zeros.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil(self.0.div_euclid(MICROS_PER_DAY));
        let of_day = self.0.rem_euclid(MICROS_PER_DAY);
        let (seconds, fraction) = (of_day / 1_000_000, of_day % 1_000_000);
        let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}")?;
        match fraction {
            0 => f.write_str("Z"),
            _ if fraction % 1_000 == 0 => write!(f, ".{:03}Z", fraction / 1_000),
            _ => write!(f, ".{fraction:06}Z"),
        }
    }
}

/// A UTC hour of event time: the grain of grouping, and of the `date` and `hour` partition columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Window(i64);

impl Window {
    /// The hour that holds `time`.
    pub const fn of(time: Timestamp) -> Self {
        Self(time.0.div_euclid(MICROS_PER_HOUR))
    }

    /// The hour that is named by its UTC date and hour of day, as the archive's folders write them.
    pub fn parse(date: &str, hour: &str) -> Option<Self> {
        let mut parts = date.split('-').map(|part| part.parse::<i64>().ok());
        let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
        let hour: i64 = hour.parse().ok()?;
        let window = Self(days_from_civil(year, month, day) * 24 + hour);
        ((0..24).contains(&hour) && parts.next().is_none() && window.date() == date).then_some(window)
    }

    /// The first moment of the hour.
    pub const fn start(self) -> Timestamp {
        Timestamp(self.0 * MICROS_PER_HOUR)
    }

    /// The first moment after the hour.
    pub const fn end(self) -> Timestamp {
        Timestamp((self.0 + 1) * MICROS_PER_HOUR)
    }

    /// The UTC date, `YYYY-MM-DD`.
    pub fn date(self) -> String {
        let (year, month, day) = civil(self.0.div_euclid(24));
        format!("{year:04}-{month:02}-{day:02}")
    }

    /// The UTC hour of the day, 0 to 23.
    pub const fn hour(self) -> u8 {
        self.0.rem_euclid(24) as u8
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}T{:02}", self.date(), self.hour())
    }
}

/// Days since 1970 to (year, month, day) in the proleptic Gregorian calendar.
/// Method: count in 400-year eras that begin on 1 March (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The inverse of [`civil`].
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let march_month = (month + 9) % 12;
    let of_year = (153 * march_month + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_as_rfc_3339() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400_000_000, "2000-02-29T00:00:00Z"),
            (1_795_082_400_123_000, "2026-11-19T10:00:00.123Z"),
            (253_402_300_799_999_999, "9999-12-31T23:59:59.999999Z"),
        ];
        for (micros, text) in cases {
            assert_eq!(Timestamp::from_micros(micros).to_string(), text);
        }
    }

    #[test]
    fn a_window_is_found_again_from_its_folder_names() {
        for days in (-1_000_000..4_000_000_i64).step_by(997) {
            let window = Window(days * 24 + days.rem_euclid(24));
            if !(0..=9999).contains(&civil(days).0) {
                continue;
            }
            assert_eq!(Window::parse(&window.date(), &format!("{:02}", window.hour())), Some(window), "{window}");
        }
    }

    #[test]
    fn folder_names_that_are_no_hour_are_refused() {
        for (date, hour) in [("2026-02-30", "00"), ("2026-1-1", "00"), ("2026-01-01", "24"), ("x", "1"), ("2026-01-01-1", "1")] {
            assert_eq!(Window::parse(date, hour), None, "{date} {hour}");
        }
    }

    #[test]
    fn milliseconds_round_outwards() {
        let time = Timestamp::from_micros(1_500);
        assert_eq!((time.millis_floor(), time.millis_ceil()), (1, 2));
        let whole = Timestamp::from_micros(2_000);
        assert_eq!((whole.millis_floor(), whole.millis_ceil()), (2, 2));
    }
}
