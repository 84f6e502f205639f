//! Every metric of the replayer: names, help and labels in this one file. All names get the prefix `tapedeck_replayer_`.
//! Never: a label taken from an event's content.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::pacer::Limits;
use crate::plan::Plan;
use crate::progress::{Counters, Throttled};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabels {
    cause: &'static str,
}

/// The registry of a job.
pub fn registry(job: &str, plan: &Plan, limits: Limits, counters: &Arc<Counters>) -> Registry {
    let mut registry = Registry::with_prefix("tapedeck_replayer");
    let labels = vec![("job", job.to_owned()), ("plan_hash", plan.hash.clone()), ("target", plan.target.describe())];
    registry.register("job", "The job that runs here", Info::new(labels));
    registry.register("build", "The version that runs here", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
    registry.register_collector(Box::new(Live { counters: Arc::clone(counters), planned: plan.totals.events, limits }));
    registry
}

/// Computes from the counters when asked.
#[derive(Debug)]
struct Live {
    counters: Arc<Counters>,
    planned: u64,
    limits: Limits,
}

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let now = self.counters.now();
        let counters = [
            ("events_read", "Events decoded from the archive", now.read),
            ("events_published", "Events handed to the bus", now.published),
            ("events_confirmed", "Events that the bus confirmed", now.confirmed),
            ("bytes_published", "Payload bytes handed to the bus", now.published_bytes),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let done = (now.before + now.confirmed) as f64 / self.planned.max(1) as f64;
        let mut gauges = vec![
            ("progress_ratio", "Confirmed events of those planned", done),
            ("unconfirmed_events", "Events that the bus has not spoken of yet", now.unconfirmed as f64),
        ];
        if now.cursor_micros > 0 {
            gauges.push(("cursor_timestamp_seconds", "When the cursor was last saved", now.cursor_micros as f64 / 1e6));
        }
        if let Some(rate) = self.limits.events {
            gauges.push(("rate_limit_events_per_second", "The limit that was asked for", rate));
        }
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        self.encode_throttled(&mut encoder)
    }
}

impl Live {
    fn encode_throttled(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let family = Family::<CauseLabels, Counter<f64, AtomicU64>>::default();
        for cause in Throttled::ALL {
            family.get_or_create(&CauseLabels { cause: cause.as_str() }).inc_by(self.counters.throttled_for(cause).as_secs_f64());
        }
        let help = "How long publishing waited, by cause";
        family.encode(encoder.encode_descriptor("throttled_seconds", help, None, family.metric_type())?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn metrics_say_what_the_counters_hold() {
        let counters = Arc::new(Counters::default());
        counters.published(10, 1_000);
        counters.confirmed(8, 2);
        counters.throttled(Throttled::Limit, Duration::from_millis(1_500));
        let live = Live { counters, planned: 16, limits: Limits { events: Some(5.0), bytes: None } };
        let mut registry = Registry::with_prefix("tapedeck_replayer");
        registry.register_collector(Box::new(live));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("writing to a string");
        for line in [
            "tapedeck_replayer_events_published_total 10",
            "tapedeck_replayer_events_confirmed_total 8",
            "tapedeck_replayer_progress_ratio 0.5",
            "tapedeck_replayer_unconfirmed_events 2",
            "tapedeck_replayer_rate_limit_events_per_second 5",
            "tapedeck_replayer_throttled_seconds_total{cause=\"limit\"} 1.5",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(!text.contains("cursor_timestamp"), "absent until there is one");
    }
}
