//! How often something may happen.

use std::time::Instant;

/// A bound on how often something may happen: so often at once, and so often a second in the long run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RateBound {
    pub(crate) at_once: f64,
    pub(crate) per_s: f64,
}

/// How often it may still happen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    left: f64,
    at: Instant,
}

impl Rate {
    /// It has not happened yet.
    pub(crate) fn unused(bound: RateBound, now: Instant) -> Self {
        Self { left: bound.at_once, at: now }
    }

    /// When it happened last.
    pub(crate) fn at(self) -> Instant {
        self.at
    }

    /// Whether it may happen now.
    pub(crate) fn permits(self, bound: RateBound, now: Instant) -> bool {
        self.left_at(bound, now) >= 1.0
    }

    /// Counts that it happens now, whether it may or not.
    pub(crate) fn count(&mut self, bound: RateBound, now: Instant) {
        *self = Self { left: self.left_at(bound, now) - 1.0, at: now };
    }

    fn left_at(self, bound: RateBound, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.at);
        (self.left + since.as_secs_f64() * bound.per_s).min(bound.at_once)
    }
}
