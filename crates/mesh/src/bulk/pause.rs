//! How long to wait between two dials of a bulk connection that fail.

use std::time::Duration;

/// The pause after the second failure in a row; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// The longest pause: shorter than the time after which Nix gives up a download that does not move (30 s by default),
/// so that several dials fit in.
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// The failures in a row of dials to one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Failures(u32);

impl Failures {
    /// Counts one more.
    pub(super) fn count(&mut self) {
        self.0 = self.0.saturating_add(1);
    }

    /// How long to wait before the next dial. Not at all after the first failure: a packet was lost, or the peer was
    /// just restarting.
    pub(super) fn pause(self) -> Duration {
        match self.0.checked_sub(2) {
            None => Duration::ZERO,
            Some(doublings) => (PAUSE_MIN * 2_u32.pow(doublings.min(8))).min(PAUSE_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_costs_no_pause_and_later_ones_longer_ones_up_to_a_bound() {
        let mut failures = Failures::default();
        let mut pauses = vec![failures.pause()];
        for _ in 0..8 {
            failures.count();
            pauses.push(failures.pause());
        }
        let ms: Vec<_> = pauses.iter().map(Duration::as_millis).collect();
        assert_eq!(ms, [0, 0, 250, 500, 1_000, 2_000, 4_000, 4_000, 4_000]);
    }
}
