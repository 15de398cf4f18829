//! Random choices that all follow from one seed.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The only source of chance of a state machine.
#[derive(Debug)]
pub struct Chance {
    rng: ChaCha8Rng,
}

impl Chance {
    /// Every choice follows from `seed`.
    pub fn new(seed: [u8; 32]) -> Self {
        Self { rng: ChaCha8Rng::from_seed(seed) }
    }

    /// A random number.
    pub fn draw(&mut self) -> u64 {
        self.rng.next_u64()
    }

    /// A random number from 0 to `below` - 1; 0 when `below` is 0.
    pub fn draw_below(&mut self, below: u64) -> u64 {
        self.draw().checked_rem(below).unwrap_or(0)
    }

    /// Chooses up to `count` of these.
    pub fn choose<T>(&mut self, mut among: Vec<T>, count: usize) -> Vec<T> {
        let count = count.min(among.len());
        for place in 0..count {
            // Each place is drawn from those that are left, so that all choices are as likely.
            let left = u64::try_from(among.len() - place).unwrap_or(1);
            let chosen = place + usize::try_from(self.draw_below(left)).unwrap_or(0);
            among.swap(place, chosen);
        }
        among.truncate(count);
        among
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn chosen_are_distinct_and_follow_from_the_seed() {
        let choose = |seed| Chance::new([seed; 32]).choose((0..100).collect(), 10);
        assert_eq!(choose(1), choose(1));
        assert_ne!(choose(1), choose(2));
        assert_eq!(choose(1).into_iter().collect::<BTreeSet<u32>>().len(), 10);
        assert_eq!(Chance::new([1; 32]).choose(vec![7, 8], 5).len(), 2, "not more than there are");
        assert_eq!(Chance::new([1; 32]).draw_below(0), 0);
    }
}
