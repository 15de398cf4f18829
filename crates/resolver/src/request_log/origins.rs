//! Who sent the bytes of one NAR, and whom its transfer left on the way.

use parking_lot::Mutex;

use crate::source::SourceId;

/// Sources of one NAR that are told apart; the bytes of further ones are counted for the last.
const SHARES_MAX: usize = 16;
/// Sources left that are named; further ones are only counted.
const LEFT_MAX: usize = 8;
/// Most bytes of a reason that is kept: a source may have written part of it.
const REASON_BYTES_MAX: usize = 160;

/// What one source sent of a NAR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The source.
    pub source: SourceId,
    /// The first byte of the NAR that came from it.
    pub first_byte: u64,
    /// Bytes of the NAR that were taken over from it.
    pub bytes: u64,
}

/// A source that was left before the NAR was whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftSource {
    /// The source.
    pub source: SourceId,
    /// Up to this byte the NAR was there.
    pub at: u64,
    /// Why it was left, in words.
    pub why: String,
}

/// Where the bytes of a NAR came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OriginsNow {
    /// Whether it comes from our own store.
    pub(crate) is_own: bool,
    /// One for each source, in the order of their first bytes.
    pub(crate) shares: Vec<Share>,
    /// The first sources that were left.
    pub(crate) left: Vec<LeftSource>,
    /// How many were left.
    pub(crate) left_count: u64,
}

/// The same while the NAR is on its way: the transfer writes, and whoever looks reads.
#[derive(Debug, Default)]
pub(crate) struct Origins(Mutex<OriginsNow>);

impl Origins {
    /// Notes that the NAR comes from our own store.
    pub(crate) fn set_own(&self) {
        self.0.lock().is_own = true;
    }

    /// Notes that `bytes` from byte `at` on were taken over from this source.
    pub(crate) fn add(&self, source: SourceId, at: u64, bytes: u64) {
        let shares = &mut self.0.lock().shares;
        let is_full = shares.len() >= SHARES_MAX;
        match shares.iter_mut().find(|share| share.source == source) {
            Some(share) => share.bytes += bytes,
            // The sum stays right, whoever of the last ones it is counted for.
            None if is_full => shares.last_mut().into_iter().for_each(|share| share.bytes += bytes),
            None => shares.push(Share { source, first_byte: at, bytes }),
        }
    }

    /// Notes that a source was left.
    pub(crate) fn leave(&self, source: SourceId, at: u64, why: &str) {
        let mut now = self.0.lock();
        now.left_count += 1;
        if now.left.len() < LEFT_MAX {
            let why = why.get(..why.floor_char_boundary(REASON_BYTES_MAX)).unwrap_or_default().to_owned();
            now.left.push(LeftSource { source, at, why });
        }
    }

    /// Notes that what came so far is void.
    pub(crate) fn begin_anew(&self) {
        self.0.lock().shares.clear();
    }

    /// Takes over what another transfer noted, which read the NAR before it was asked for.
    pub(crate) fn take_over(&self, other: &Self) {
        let other = other.now();
        *self.0.lock() = other;
    }

    pub(crate) fn now(&self) -> OriginsNow {
        self.0.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_reasons_are_bounded_and_every_byte_is_counted() {
        let origins = Origins::default();
        let first = SourceId::random();
        origins.add(first, 0, 10);
        for at in 1..100 {
            origins.add(SourceId::random(), at * 10, 10);
            origins.leave(first, at * 10, &"ö".repeat(1_000));
        }
        origins.add(first, 1_000, 5);
        let now = origins.now();
        assert_eq!((now.shares.len(), now.left.len(), now.left_count), (SHARES_MAX, LEFT_MAX, 99));
        assert_eq!(now.shares.iter().map(|share| share.bytes).sum::<u64>(), 1_005);
        assert_eq!(now.shares[0], Share { source: first, first_byte: 0, bytes: 15 });
        assert!(now.left.iter().all(|left| left.why.len() <= REASON_BYTES_MAX));
        origins.begin_anew();
        assert!(origins.now().shares.is_empty());
    }
}
