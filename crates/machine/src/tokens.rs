//! Rates: how much of something is granted at once, and per second.

use crate::Moment;

/// A rate, and how much may be used at once.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// How many tokens may be used at once.
    pub burst: u64,
    /// How many come back in each second; not 0.
    pub per_s: u64,
}

/// How much of a bucket somebody has used up; it drains with time. The same bucket has to be passed each time.
#[derive(Debug, Default)]
pub struct Tokens {
    /// Thousandths of a token.
    used: u64,
    at: Moment,
}

impl Tokens {
    /// Whether nothing is left of the bucket.
    pub fn is_full(&mut self, bucket: Bucket, now: Moment) -> bool {
        self.drain(bucket, now);
        self.used >= bucket.burst * 1_000
    }

    /// Uses up so many tokens, even beyond the bucket.
    pub fn take(&mut self, count: u64) {
        self.used = self.used.saturating_add(count.saturating_mul(1_000));
    }

    /// Uses up one token if a whole one is left. Returns whether it did.
    pub fn try_take(&mut self, bucket: Bucket, now: Moment) -> bool {
        self.drain(bucket, now);
        let is_granted = self.used + 1_000 <= bucket.burst * 1_000;
        self.take(u64::from(is_granted));
        is_granted
    }

    /// Whether the whole bucket is there again.
    pub fn is_unused(&mut self, bucket: Bucket, now: Moment) -> bool {
        self.drain(bucket, now);
        self.used == 0
    }

    /// How long until it is no more than full, milliseconds.
    pub fn over_ms(&mut self, bucket: Bucket, now: Moment) -> u64 {
        self.drain(bucket, now);
        self.used.saturating_sub(bucket.burst * 1_000) / bucket.per_s
    }

    fn drain(&mut self, bucket: Bucket, now: Moment) {
        self.used = self.used.saturating_sub(now.since(self.at).saturating_mul(bucket.per_s));
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_fills_at_once_and_drains_at_its_rate() {
        let bucket = Bucket { burst: 3, per_s: 2 };
        let mut tokens = Tokens::default();
        assert_eq!((0..10).filter(|_| tokens.try_take(bucket, Moment(0))).count(), 3);
        assert!(tokens.is_full(bucket, Moment(0)));
        assert!(!tokens.is_full(bucket, Moment(1)));
        assert!(!tokens.try_take(bucket, Moment(1)), "no whole one");
        tokens.take(4);
        assert_eq!(tokens.over_ms(bucket, Moment(1)), 1_999);
        assert_eq!(tokens.over_ms(bucket, Moment(2_000)), 0);
        assert!(!tokens.is_unused(bucket, Moment(3_000)));
        assert!(tokens.is_unused(bucket, Moment(4_000)));
    }
}
