//! Moments as people write them: RFC 3339, dates and times (UTC unless they say otherwise), and relative to a present that is handed in.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use tapedeck_common::Timestamp;

use super::{BadUnit, HumanDuration};

const WANTED: &str = "a time: write RFC 3339 (`2026-11-19T10:00:00Z`), a date or time in UTC (`2026-11-19`, `2026-11-19T10:00`), \
                      `now`, `today`, `yesterday`, or a distance from now (`-3h`, `-2d`)";
const DAY_MICROS: i64 = 86_400_000_000;

/// Reads a moment. A date means its first moment in UTC; `-3h` lies before `now`, `+3h` after it.
///
/// ```
/// # use tapedeck_common::Timestamp;
/// # use tapedeck_daemon::units::moment;
/// let now = moment("2026-11-19T10:30:00Z", Timestamp::default())?;
/// assert_eq!(moment("-3h", now)?.to_string(), "2026-11-19T07:30:00Z");
/// assert_eq!(moment("yesterday", now)?.to_string(), "2026-11-18T00:00:00Z");
/// # Ok::<(), tapedeck_daemon::units::BadUnit>(())
/// ```
pub fn moment(text: &str, now: Timestamp) -> Result<Timestamp, BadUnit> {
    let trimmed = text.trim();
    relative(trimmed, now)
        .or_else(|| absolute(trimmed))
        .filter(|time| time.is_calendar())
        .ok_or_else(|| BadUnit::new(text, WANTED))
}

fn relative(text: &str, now: Timestamp) -> Option<Timestamp> {
    let midnight = Timestamp::from_micros(now.micros() - now.micros().rem_euclid(DAY_MICROS));
    match text {
        "now" => return Some(now),
        "today" => return Some(midnight),
        "yesterday" => return Some(Timestamp::from_micros(midnight.micros() - DAY_MICROS)),
        _ => {}
    }
    let distance = |rest: &str| rest.parse::<HumanDuration>().ok().map(HumanDuration::get);
    if let Some(rest) = text.strip_prefix('-') {
        return Some(now - distance(rest)?);
    }
    Some(now + distance(text.strip_prefix('+')?)?)
}

fn absolute(text: &str) -> Option<Timestamp> {
    // Dates in the short forms (`20261119`) are refused: as numbers they are more often something else.
    if text.as_bytes().get(4) != Some(&b'-') {
        return None;
    }
    if let Ok(stamp) = text.parse::<jiff::Timestamp>() {
        return Some(Timestamp::from_micros(stamp.as_microsecond()));
    }
    let civil = if text.len() == "2026-11-19".len() {
        text.parse::<Date>().ok()?.to_datetime(jiff::civil::Time::midnight())
    } else {
        text.parse::<DateTime>().ok()?
    };
    let stamp = civil.to_zoned(TimeZone::UTC).ok()?.timestamp();
    Some(Timestamp::from_micros(stamp.as_microsecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_written() {
        let now = Timestamp::from_micros(1_795_084_200_000_000); // 2026-11-19T10:30:00Z
        let cases = [
            ("now", "2026-11-19T10:30:00Z"),
            ("today", "2026-11-19T00:00:00Z"),
            ("yesterday", "2026-11-18T00:00:00Z"),
            ("-3h", "2026-11-19T07:30:00Z"),
            ("-1h30m", "2026-11-19T09:00:00Z"),
            ("-2d", "2026-11-17T10:30:00Z"),
            ("+1h", "2026-11-19T11:30:00Z"),
            ("2026-11-19", "2026-11-19T00:00:00Z"),
            ("2026-11-19T10:00", "2026-11-19T10:00:00Z"),
            ("2026-11-19 10:00", "2026-11-19T10:00:00Z"),
            ("2026-11-19T10:00:00.5", "2026-11-19T10:00:00.500Z"),
            ("2026-11-19T10:00:00Z", "2026-11-19T10:00:00Z"),
            ("2026-11-19T10:00:00.123456Z", "2026-11-19T10:00:00.123456Z"),
            ("2026-11-19T10:00:00+02:00", "2026-11-19T08:00:00Z"),
            ("2026-11-19T10:00+02:00", "2026-11-19T08:00:00Z"),
        ];
        for (text, expected) in cases {
            let read = moment(text, now).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(read.to_string(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused_with_examples() {
        let bad = [
            "",
            "-",
            "-3",
            "tomorrowish",
            "2026-13-01",
            "2026-02-30",
            "2026-11-19T25:00",
            "10:00",
            "20261119",
            "1795084200",
            "2026-11-19T10:00:00 Mars/Base",
            "-9999999h",
            "2026-11-19T10:00:00+02:00[Europe/Paris]x",
        ];
        for text in bad {
            let error = moment(text, Timestamp::from_micros(0)).expect_err(text).to_string();
            assert!(error.contains("RFC 3339"), "{error}");
        }
    }
}
