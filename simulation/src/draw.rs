//! Every random choice of a run, drawn from its one seed.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A stream of choices. Integers only, so that every machine draws the same.
#[derive(Debug)]
pub(crate) struct Draw(ChaCha8Rng);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// From 0 to `below` - 1; 0 when there is nothing to choose.
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        self.0.next_u64().checked_rem(below).unwrap_or(0)
    }

    /// At least `from` and less than `to`; `from` when the range is empty.
    pub(crate) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from))
    }

    /// True in `permille` of a thousand cases.
    pub(crate) fn chance(&mut self, permille: u64) -> bool {
        permille > 0 && self.below(1_000) < permille
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let index = self.index(from.len());
        from.get(index).copied()
    }

    /// `count` random elements in random order; all of them when there are fewer.
    pub(crate) fn some<T>(&mut self, mut from: Vec<T>, count: usize) -> Vec<T> {
        let count = count.min(from.len());
        for at in 0..count {
            let other = at + self.index(from.len() - at);
            from.swap(at, other);
        }
        from.truncate(count);
        from
    }

    pub(crate) fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.0.fill_bytes(&mut seed);
        seed
    }

    /// The size of one build, paths. Half are 1 to 3, a tenth hundreds, and one in two hundred has thousands. Guesses, from
    /// what rebuilds of packages, systems and whole package sets bring.
    pub(crate) fn build_size(&mut self) -> u32 {
        let (least, most) = match self.below(200) {
            0..=99 => (1, 4),
            100..=159 => (4, 21),
            160..=189 => (21, 201),
            190..=198 => (201, 1_001),
            _ => (1_001, 5_001),
        };
        u32::try_from(self.between(least, most)).unwrap_or(1)
    }
}
