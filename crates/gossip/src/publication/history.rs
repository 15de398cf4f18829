//! The deltas of our present epoch: a peer that is only a few behind gets one delta instead of a whole body.

use std::collections::{BTreeSet, VecDeque};

/// The most steps kept; a puller with an older base gets the whole body.
const STEPS_MAX: usize = 64;
/// The most bit positions kept in all steps together: 16,000 are 64 KB, as large as the body of 20,000 paths.
const POSITIONS_MAX: usize = 16_000;

/// What changed from one `seq` to the next: bits of the filter, and which of the two lists.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// Bits set that were not set before; ascending.
    pub(crate) positions: Vec<u32>,
    pub(crate) audience: bool,
    pub(crate) addresses: bool,
}

/// The last steps, one for each `seq`, up to the present one.
#[derive(Debug, Default)]
pub(crate) struct History {
    steps: VecDeque<Step>,
    positions: usize,
}

impl History {
    /// Adds the step that led to the present `seq`.
    pub(crate) fn push(&mut self, step: Step) {
        self.positions += step.positions.len();
        self.steps.push_back(step);
        while self.steps.len() > STEPS_MAX || self.positions > POSITIONS_MAX {
            let Some(oldest) = self.steps.pop_front() else { break };
            self.positions -= oldest.positions.len();
        }
    }

    /// The last `count` steps merged into one; `None` when some of them are no longer kept.
    pub(crate) fn merge_last(&self, count: u64) -> Option<Step> {
        let skipped = self.steps.len().checked_sub(usize::try_from(count).ok()?)?;
        let mut positions = BTreeSet::new();
        let (mut audience, mut addresses) = (false, false);
        for step in self.steps.iter().skip(skipped) {
            positions.extend(&step.positions);
            audience |= step.audience;
            addresses |= step.addresses;
        }
        Some(Step { positions: positions.into_iter().collect(), audience, addresses })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(positions: &[u32]) -> Step {
        Step { positions: positions.to_vec(), audience: false, addresses: positions.is_empty() }
    }

    #[test]
    fn merges_the_last_steps_in_order_and_forgets_old_ones() {
        let mut history = History::default();
        history.push(step(&[9, 10]));
        history.push(step(&[1, 12]));
        history.push(step(&[]));
        assert_eq!(history.merge_last(0).unwrap().positions, Vec::<u32>::new());
        assert!(history.merge_last(1).unwrap().addresses);
        assert_eq!(history.merge_last(3).unwrap().positions, [1, 9, 10, 12]);
        assert!(history.merge_last(4).is_none());
        for _ in 0..STEPS_MAX {
            history.push(step(&[2]));
        }
        assert!(history.merge_last(65).is_none());
        assert_eq!(history.merge_last(64).unwrap().positions, [2]);
        history.push(step(&vec![0; POSITIONS_MAX + 1]));
        assert!(history.merge_last(1).is_none(), "a step over the bound is not kept");
        assert_eq!(history.positions, 0);
    }
}
