//! Says when events may go out: absolute deadlines from one anchor, never sleeps between events.
//!
//! Promises: over time exactly the rate that was asked; what a stall made late is caught up with at most 6.5 % above it, so
//! that no second ever carries more than a tenth too much; past [`LATE_MAX`] the rest of the debt is forgiven. Limits
//! delay, they never drop. Pure: the time is an argument. Never: wait, read a clock.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Events of one group at most: smaller groups bring no accuracy, larger ones are bursts.
const GROUP_EVENTS_MAX: u64 = 100;

/// Length of a group: its events go out together, at most this much ahead of their time.
const GROUP: Duration = Duration::from_millis(1);

/// How much faster than asked a debt is paid back. A window of one second may carry a tenth too much: this much of it is
/// ours, [`SILENCE_MIN`] and [`JITTER`] take their share, the rest is for what the bus itself bunches up.
const CATCH_UP: f64 = 1.065;

/// Lateness of wake-ups that is made good at once: a timer's grain, far below a hundredth of a second's events.
const JITTER: Duration = Duration::from_millis(5);

/// Further behind than this the schedule starts anew: whoever was away for minutes must not run above the rate for hours.
pub const LATE_MAX: Duration = Duration::from_secs(5);

/// What may be published per second; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Events per second, above zero.
    pub events: Option<f64>,
    /// Payload bytes per second, above zero.
    pub bytes: Option<f64>,
}

impl Limits {
    /// How long `events` and `bytes` take at these limits; `None` without a limit.
    pub fn duration(&self, events: u64, bytes: u64) -> Option<Duration> {
        let by = |amount: u64, rate: Option<f64>| rate.map(|rate| seconds(amount as f64 / rate));
        by(events, self.events).max(by(bytes, self.bytes))
    }
}

/// A time that may be longer than a clock can tell: then it is as long as that.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// What may happen now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit {
    /// One group may go out: at least one event, and then more while neither number is reached. Tell [`Pacer::sent`].
    Now {
        /// Events of the group.
        events: u64,
        /// Payload bytes of the group.
        bytes: u64,
    },
    /// Nothing before this moment.
    At(Duration),
}

/// The schedule of one amount (events, or bytes) per second.
#[derive(Debug)]
struct Schedule {
    rate: f64,
    group: u64,
    /// The moment of the schedule's zero, and what has been sent since.
    anchor: Option<Duration>,
    sent: f64,
    /// When the catch-up limit would have everything sent behind it.
    cap_until: Duration,
}

impl Schedule {
    fn new(rate: f64, group_max: u64) -> Self {
        let group = (rate * GROUP.as_secs_f64()) as u64;
        Self { rate, group: group.clamp(1, group_max), anchor: None, sent: 0.0, cap_until: Duration::ZERO }
    }

    /// When the next group may go out.
    fn due(&mut self, now: Duration) -> Duration {
        let anchor = *self.anchor.get_or_insert(now);
        let mut due = anchor.saturating_add(seconds(self.sent / self.rate));
        if now > due.saturating_add(LATE_MAX) {
            (self.anchor, self.sent, due) = (Some(now), 0.0, now);
        }
        due.max(self.cap_until)
    }

    fn sent(&mut self, now: Duration, amount: u64) {
        self.sent += amount as f64;
        let fastest = seconds(amount as f64 / (self.rate * CATCH_UP));
        self.cap_until = self.cap_until.max(now.saturating_sub(JITTER)).saturating_add(fastest);
    }
}

/// Paces one job, across all its lanes.
#[derive(Debug)]
pub struct Pacer {
    events: Option<Schedule>,
    bytes: Option<Schedule>,
}

impl Pacer {
    /// A pacer whose schedule begins with its first question.
    pub fn new(limits: Limits) -> Self {
        Self {
            events: limits.events.map(|rate| Schedule::new(rate, GROUP_EVENTS_MAX)),
            bytes: limits.bytes.map(|rate| Schedule::new(rate, u64::MAX)),
        }
    }

    /// Says whether a group may go out at `now`, or when.
    pub fn admit(&mut self, now: Duration) -> Admit {
        let due = |schedule: &mut Option<Schedule>| schedule.as_mut().map_or(now, |schedule| schedule.due(now));
        let due = due(&mut self.events).max(due(&mut self.bytes));
        if due > now {
            return Admit::At(due);
        }
        let group = |schedule: &Option<Schedule>, unlimited| schedule.as_ref().map_or(unlimited, |schedule| schedule.group);
        Admit::Now { events: group(&self.events, GROUP_EVENTS_MAX), bytes: group(&self.bytes, u64::MAX) }
    }

    /// Notes what was sent of an admitted group.
    pub fn sent(&mut self, now: Duration, events: u64, bytes: u64) {
        for (schedule, amount) in [(&mut self.events, events), (&mut self.bytes, bytes)] {
            if let Some(schedule) = schedule {
                schedule.sent(now, amount);
            }
        }
    }

    /// Begins anew, without any debt: the schedule starts when the way is open.
    pub fn restart(&mut self) {
        for schedule in [&mut self.events, &mut self.bytes].into_iter().flatten() {
            (schedule.anchor, schedule.sent, schedule.cap_until) = (None, 0.0, Duration::ZERO);
        }
    }

    /// True without any limit: then nobody needs to ask for the time.
    pub fn is_unlimited(&self) -> bool {
        self.events.is_none() && self.bytes.is_none()
    }
}

/// Notices that the bus has stopped confirming, or has not begun to. Whoever went on publishing would fill the client's
/// queue, and all of it would reach the topic at once when the bus comes back: a burst that no schedule on our side could
/// see. The first event only opens connections and the second one shows how long a confirm takes; until then each waits
/// for the one before.
#[derive(Debug, Default)]
pub struct ConfirmWatch {
    /// Since when events wait without any new confirm.
    waiting_since: Option<Duration>,
    confirmed: u64,
    /// One event under observation: its number and when it was published.
    probe: Option<(u64, Duration)>,
    /// Confirms that were timed.
    samples: u32,
    /// Smoothed time from publishing to confirm.
    latency: Option<Duration>,
}

/// Shortest silence that counts as a stall.
const SILENCE_MIN: Duration = Duration::from_millis(25);

impl ConfirmWatch {
    /// Takes in how many events were published and confirmed so far. Answers true when the way has just become open.
    pub fn note(&mut self, now: Duration, published: u64, confirmed: u64) -> bool {
        let was_open = self.latency.is_some();
        if let Some((number, since)) = self.probe
            && confirmed >= number
        {
            self.samples = self.samples.saturating_add(1);
            let sample = now.saturating_sub(since);
            if self.samples > 1 {
                self.latency = Some(self.latency.map_or(sample, |latency| (latency * 7 + sample) / 8));
            }
            self.probe = None;
        }
        let waiting = published > confirmed;
        if !waiting {
            self.waiting_since = None;
        } else if confirmed > self.confirmed || self.waiting_since.is_none() {
            self.waiting_since = Some(now);
        }
        if waiting && self.probe.is_none() {
            self.probe = Some((published, now));
        }
        self.confirmed = confirmed;
        !was_open && self.latency.is_some()
    }

    /// True if nothing has been confirmed for suspiciously long: publish no more until something is.
    pub fn is_stalled(&self, now: Duration) -> bool {
        let Some(since) = self.waiting_since else { return false };
        self.latency.is_none_or(|latency| now.saturating_sub(since) > (latency * 2).max(SILENCE_MIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends for `length` on a simulated clock, asleep during `stalls`; wake-ups come up to `late` after their time.
    fn run(limits: Limits, event_bytes: u64, length: Duration, stalls: &[(f64, f64)], seed: u64) -> Vec<(Duration, u64)> {
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut pacer = Pacer::new(limits);
        let mut stalls =
            stalls.iter().map(|(at, time)| (Duration::from_secs_f64(*at), Duration::from_secs_f64(*time))).peekable();
        let (mut now, mut sends) = (Duration::from_secs(1000), Vec::new());
        let start = now;
        while now < start + length {
            if let Some((_, time)) = stalls.next_if(|(at, _)| now >= start + *at) {
                now += time;
            }
            match pacer.admit(now) {
                Admit::At(due) => {
                    assert!(due > now, "a deadline lies ahead");
                    now = due + Duration::from_micros(chance.u64(0..1_500));
                }
                Admit::Now { events, bytes } => {
                    let events = events.min(bytes.div_ceil(event_bytes)).max(1);
                    pacer.sent(now, events, events * event_bytes);
                    sends.push((now - start, events));
                    now += Duration::from_micros(events / 10);
                }
            }
        }
        sends
    }

    fn worst_second(sends: &[(Duration, u64)]) -> u64 {
        let (mut first, mut sum, mut worst) = (0, 0, 0);
        for (at, events) in sends {
            sum += events;
            while sends[first].0 + Duration::from_secs(1) <= *at {
                sum -= sends[first].1;
                first += 1;
            }
            worst = worst.max(sum);
        }
        worst
    }

    fn per_second(rate: f64) -> Limits {
        Limits { events: Some(rate), bytes: None }
    }

    #[test]
    fn the_mean_is_right_and_no_second_carries_a_tenth_more() {
        for (seed, rate) in [1.0, 7.0, 1_000.0, 20_000.0, 100_000.0, 150_000.0].into_iter().enumerate() {
            let sends = run(per_second(rate), 1_200, Duration::from_secs(30), &[], seed as u64);
            let mean = sends.iter().map(|(_, events)| events).sum::<u64>() as f64 / 30.0;
            assert!((mean / rate - 1.0).abs() < 0.01 || rate < 10.0, "{rate}: {mean}");
            assert!(worst_second(&sends) as f64 <= (rate * 1.1).max(rate + 1.0), "{rate}: {}", worst_second(&sends));
        }
    }

    #[test]
    fn a_stall_is_made_good_slowly() {
        for (seed, stall) in [0.02, 0.3, 1.0, 2.5].into_iter().enumerate() {
            for rate in [1_000.0, 20_000.0, 100_000.0] {
                let sends = run(per_second(rate), 1_200, Duration::from_secs(120), &[(5.0, stall), (60.0, stall)], seed as u64);
                let mean = sends.iter().map(|(_, events)| events).sum::<u64>() as f64 / 120.0;
                assert!((mean / rate - 1.0).abs() < 0.01, "{rate} stall {stall}: {mean}");
                assert!(worst_second(&sends) as f64 <= rate * 1.1, "{rate} stall {stall}: {}", worst_second(&sends));
            }
        }
    }

    #[test]
    fn a_long_absence_is_forgiven() {
        let sends = run(per_second(1_000.0), 1, Duration::from_secs(60), &[(10.0, 20.0)], 3);
        let total: u64 = sends.iter().map(|(_, events)| events).sum();
        assert!((39_500..=40_500).contains(&total), "{total}");
        assert!(worst_second(&sends) <= 1_100);
    }

    #[test]
    fn both_limits_hold_at_once() {
        let limits = Limits { events: Some(10_000.0), bytes: Some(1_000_000.0) };
        let sends = run(limits, 1_000, Duration::from_secs(20), &[], 4);
        let total: u64 = sends.iter().map(|(_, events)| events).sum();
        assert!((19_800..=20_200).contains(&total), "bytes are the tighter one: {total}");
        let giants = run(Limits { events: None, bytes: Some(1_000_000.0) }, 3_000_000, Duration::from_secs(31), &[], 5);
        assert!((10..=11).contains(&giants.len()), "an event above the limit passes, and its debt is paid");
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let mut pacer = Pacer::new(Limits::default());
        pacer.sent(Duration::ZERO, 1 << 40, 1 << 50);
        assert!(pacer.is_unlimited());
        assert!(matches!(pacer.admit(Duration::ZERO), Admit::Now { .. }));
        assert_eq!(Limits::default().duration(5, 5), None);
        assert_eq!(Limits { events: Some(10.0), bytes: Some(1.0) }.duration(20, 3), Some(Duration::from_secs(3)));
    }

    #[test]
    fn a_rate_beyond_all_time_waits_and_never_panics() {
        let limits = Limits { events: Some(1e-300), bytes: Some(f64::MAX) };
        assert_eq!(limits.duration(u64::MAX, 1), Some(Duration::MAX));
        let mut pacer = Pacer::new(limits);
        assert!(matches!(pacer.admit(Duration::ZERO), Admit::Now { .. }));
        for _ in 0..3 {
            pacer.sent(Duration::from_secs(9), u64::MAX, u64::MAX);
            assert_eq!(pacer.admit(Duration::from_secs(10)), Admit::At(Duration::MAX));
        }
    }

    #[test]
    fn silence_of_the_bus_is_a_stall_and_a_slow_bus_is_not() {
        let ms = Duration::from_millis;
        let mut watch = ConfirmWatch::default();
        assert!(!watch.is_stalled(ms(0)), "the first event may go");
        watch.note(ms(0), 10, 0);
        assert!(watch.is_stalled(ms(1)), "and the next only once it is confirmed");
        assert!(!watch.note(ms(900), 10, 10), "that took a connection");
        assert!(!watch.is_stalled(ms(900)));
        watch.note(ms(900), 20, 10);
        assert!(watch.note(ms(1_200), 20, 20), "now the way is open");
        watch.note(ms(1_200), 300, 20);
        for step in 0..100 {
            watch.note(ms(1_400 + step), 300 + step, 20 + step);
        }
        assert!(!watch.is_stalled(ms(2_000)), "confirms come 300 ms late, and steadily");
        assert!(watch.is_stalled(ms(2_200)));
        watch.note(ms(2_200), 400, 400);
        assert!(!watch.is_stalled(ms(9_000)), "nothing is awaited");
    }
}
