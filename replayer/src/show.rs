//! Shows a running replay: a bar on a terminal, JSON lines elsewhere.
//!
//! Promises: follows the counters, a few times a second; costs the loop nothing. Never: hold the replay up.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tapedeck_common::Clock;
use tapedeck_daemon::units::HumanDuration;

use crate::progress::{Counters, Throttled};

/// How often the bar moves, and how often a line comes.
const BAR_EVERY: Duration = Duration::from_millis(200);
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How a replay is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// For people, on a terminal.
    Bar,
    /// For machines.
    Lines,
}

/// Writes one line of JSON to stdout; a reader that is gone is no reason to stop.
pub fn line(value: &serde_json::Value) {
    let _ = writeln!(std::io::stdout().lock(), "{value}");
}

/// Follows a job until it is dropped.
pub async fn follow(show: Show, job: String, planned: u64, counters: Arc<Counters>, clock: Arc<dyn Clock>) {
    match show {
        Show::Bar => bar(planned, &counters, clock.as_ref()).await,
        Show::Lines => lines(&job, planned, &counters, clock.as_ref()).await,
    }
}

async fn bar(planned: u64, counters: &Counters, clock: &dyn Clock) {
    let bar = ProgressBar::with_draw_target(Some(planned), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("  {bar:36} {percent:>3} %  {human_pos}/{human_len} events  {msg}");
    bar.set_style(style.expect("the template is fixed and right").progress_chars("=> "));
    let _cleared = Cleared(bar.clone());
    let mut rate = Rate::new(clock.monotonic());
    loop {
        let now = counters.now();
        let done = now.before + now.confirmed;
        let per_second = rate.update(clock.monotonic(), now.confirmed);
        bar.set_position(done);
        let left = planned.saturating_sub(done) as f64 / per_second.max(1e-9);
        let eta = if per_second > 0.0 && left < 1e7 {
            format!(", {} left", HumanDuration::new(Duration::from_secs(left as u64)))
        } else {
            String::new()
        };
        bar.set_message(format!("{per_second:.0}/s{eta}"));
        clock.sleep(BAR_EVERY).await;
    }
}

struct Cleared(ProgressBar);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

async fn lines(job: &str, planned: u64, counters: &Counters, clock: &dyn Clock) {
    let mut rate = Rate::new(clock.monotonic());
    loop {
        clock.sleep(LINE_EVERY).await;
        let now = counters.now();
        let done = now.before + now.confirmed;
        let throttled: serde_json::Map<String, serde_json::Value> = Throttled::ALL
            .iter()
            .map(|cause| (cause.as_str().to_owned(), json!(counters.throttled_for(*cause).as_secs_f64())))
            .collect();
        line(&json!({
            "event": "progress",
            "job": job,
            "planned": planned,
            "confirmed": done,
            "unconfirmed": now.unconfirmed,
            "ratio": done as f64 / planned.max(1) as f64,
            "events_per_second": rate.update(clock.monotonic(), now.confirmed),
            "throttled_seconds": throttled,
        }));
    }
}

/// Events per second, smoothed over the last looks.
struct Rate {
    at: Duration,
    events: u64,
    per_second: Option<f64>,
}

impl Rate {
    fn new(now: Duration) -> Self {
        Self { at: now, events: 0, per_second: None }
    }

    fn update(&mut self, now: Duration, events: u64) -> f64 {
        let seconds = now.saturating_sub(self.at).as_secs_f64();
        if seconds > 0.0 {
            let latest = events.saturating_sub(self.events) as f64 / seconds;
            self.per_second = Some(self.per_second.map_or(latest, |before| before * 0.8 + latest * 0.2));
            (self.at, self.events) = (now, events);
        }
        self.per_second.unwrap_or(0.0)
    }
}
