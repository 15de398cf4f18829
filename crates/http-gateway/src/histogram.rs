//! A latency histogram made of atomics: the one in `prometheus_client` takes a mutex for every observation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Upper bounds of the buckets in microseconds, each about four times the previous one: an answer from memory takes a
/// few microseconds, the deadline of a narinfo is a second, and a distant holder can take seconds to its first byte.
/// A choice, not a measurement.
const BOUNDS_US: [u64; 12] = [4, 16, 64, 256, 1_000, 4_000, 16_000, 64_000, 250_000, 1_000_000, 4_000_000, 16_000_000];

/// Counts latencies by bucket. A clone counts into the same buckets.
#[derive(Clone, Debug, Default)]
pub(crate) struct LatencyHistogram(Arc<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    /// One count for each bound.
    counts: [AtomicU64; BOUNDS_US.len()],
    beyond: AtomicU64,
    sum_ns: AtomicU64,
}

impl LatencyHistogram {
    pub(crate) fn observe(&self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let bucket =
            BOUNDS_US.iter().zip(&self.0.counts).find(|(bound, _)| ns <= **bound * 1_000).map(|(_, count)| count);
        bucket.unwrap_or(&self.0.beyond).fetch_add(1, Ordering::Relaxed);
        self.0.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }
}

impl EncodeMetric for LatencyHistogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let buckets: Vec<(f64, u64)> = BOUNDS_US
            .iter()
            .zip(&self.0.counts)
            .map(|(bound, count)| (Duration::from_micros(*bound).as_secs_f64(), count.load(Ordering::Relaxed)))
            .chain([(f64::INFINITY, self.0.beyond.load(Ordering::Relaxed))])
            .collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_nanos(self.0.sum_ns.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for LatencyHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    #[test]
    fn prints_cumulative_buckets() {
        let histogram = LatencyHistogram::default();
        for us in [1, 4, 5, 2_000_000, 60_000_000] {
            histogram.observe(Duration::from_micros(us));
        }
        let mut registry = Registry::default();
        registry.register("answer_seconds", "help", histogram);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(
            text.contains("answer_seconds_bucket{le=\"0.000004\"} 2\n")
                || text.contains("answer_seconds_bucket{le=\"4e-6\"} 2\n"),
            "{text}"
        );
        assert!(text.contains("answer_seconds_bucket{le=\"1.0\"} 3\n"), "{text}");
        assert!(text.contains("answer_seconds_bucket{le=\"4.0\"} 4\n"), "{text}");
        assert!(text.contains("answer_seconds_bucket{le=\"+Inf\"} 5\n"), "{text}");
        assert!(text.contains("answer_seconds_count 5\n"), "{text}");
        assert!(text.contains("answer_seconds_sum 62.00001\n"), "{text}");
    }
}
