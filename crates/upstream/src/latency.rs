//! How long a cache usually takes, by which a second one is asked when the first is late.

use std::time::Duration;

/// Weight of the newest measurement, as in RFC 6298.
const MEAN_GAIN: f64 = 1.0 / 8.0;
/// Weight of the newest deviation, from the same source.
const DEVIATION_GAIN: f64 = 1.0 / 4.0;

/// A smoothed latency and its deviation (RFC 6298, section 2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// The usual time until an answer, seconds.
    pub mean_s: f64,
    /// The usual distance from it, seconds.
    pub deviation_s: f64,
}

impl Latency {
    /// The latency after a first measurement, or after one more.
    pub(crate) fn after(earlier: Option<Self>, measured: Duration) -> Self {
        let measured_s = measured.as_secs_f64();
        match earlier {
            None => Self { mean_s: measured_s, deviation_s: measured_s / 2.0 },
            Some(Self { mean_s, deviation_s }) => Self {
                mean_s: mean_s + MEAN_GAIN * (measured_s - mean_s),
                deviation_s: deviation_s + DEVIATION_GAIN * ((measured_s - mean_s).abs() - deviation_s),
            },
        }
    }

    /// The time after which an answer is late: the mean and four deviations.
    pub fn late_after(&self) -> Duration {
        Duration::try_from_secs_f64(4.0f64.mul_add(self.deviation_s, self.mean_s)).unwrap_or_default()
    }

    /// The usual time until an answer.
    pub fn mean(&self) -> Duration {
        Duration::try_from_secs_f64(self.mean_s).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steady_answers_narrow_the_wait_and_a_slow_one_widens_it() {
        let steady = (0..50).fold(None, |latency, _| Some(Latency::after(latency, Duration::from_millis(40)))).unwrap();
        assert!(steady.late_after() < Duration::from_millis(45), "{steady:?}");
        let after_slow = Latency::after(Some(steady), Duration::from_millis(400));
        assert!(after_slow.late_after() > Duration::from_millis(300), "{after_slow:?}");
    }
}
