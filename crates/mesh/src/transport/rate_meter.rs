//! How fast something may arrive: so much at once, and so much per second in the long run.

use narmesh_machine::Bucket;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// What arrived, measured against a [`Bucket`]. It counts what has arrived already, so that the last part may have any
/// size, and in fractions of a millisecond.
#[derive(Debug)]
pub(super) struct RateMeter {
    rate: Bucket,
    /// When everything that arrived is paid for, at the rate per second.
    paid_at: Instant,
}

impl RateMeter {
    pub(super) fn new(rate: Bucket) -> Self {
        Self { rate, paid_at: Instant::now() }
    }

    /// Counts what arrived.
    pub(super) fn count(&mut self, amount: usize) {
        let cost = Duration::from_secs(1).mul_f64(amount as f64 / self.rate.per_s as f64);
        self.paid_at = self.paid_at.max(Instant::now()) + cost;
    }

    /// When more may arrive; `None` if it may now.
    fn waits_until(&self) -> Option<Instant> {
        let burst = Duration::from_secs(1).mul_f64(self.rate.burst as f64 / self.rate.per_s as f64);
        let now = Instant::now();
        self.paid_at.checked_duration_since(now + burst).filter(|wait| !wait.is_zero()).map(|wait| now + wait)
    }
}

/// Waits until a meter allows more. Each reader has one of its own, because each has a waker of its own.
#[derive(Debug, Default)]
pub(super) struct Wait {
    timer: Option<Pin<Box<Sleep>>>,
}

impl Wait {
    /// Ready when more may arrive.
    pub(super) fn poll(&mut self, meter: &RateMeter, context: &mut Context<'_>) -> Poll<()> {
        while let Some(until) = meter.waits_until() {
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
            ready!(timer.as_mut().poll(context));
            self.timer = None;
        }
        self.timer = None;
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    const RATE: Bucket = Bucket { burst: 1_000, per_s: 100 };

    async fn seconds_for(meter: &mut RateMeter, parts: usize, amount: usize) -> u64 {
        let (mut wait, since) = (Wait::default(), Instant::now());
        for _ in 0..parts {
            poll_fn(|context| wait.poll(meter, context)).await;
            meter.count(amount);
        }
        since.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_at_once_and_the_rest_at_the_rate() {
        let mut meter = RateMeter::new(RATE);
        assert_eq!(seconds_for(&mut meter, 10, 100).await, 0);
        assert_eq!(seconds_for(&mut meter, 50, 100).await, 49);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unused_rate_is_saved_up_to_the_burst() {
        let mut meter = RateMeter::new(RATE);
        seconds_for(&mut meter, 11, 100).await;
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        assert_eq!(seconds_for(&mut meter, 10, 100).await, 0);
        assert_eq!(seconds_for(&mut meter, 3, 100).await, 2);
    }
}
