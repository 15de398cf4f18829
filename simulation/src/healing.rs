//! Worlds whose network is cut and healed, and which must come to one state then.

use crate::agenda::Agenda;

/// How often machines are compared after the heal, milliseconds.
const LOOK_MS: u64 = 250;

/// Such a world.
pub(crate) trait Healing {
    /// What is due at some moment.
    type Event;

    /// The clock, and what is due.
    fn agenda(&mut self) -> &mut Agenda<Self::Event>;

    fn handle(&mut self, event: Self::Event);

    /// Ends the cut and all that machines suffer.
    fn heal(&mut self);

    /// What is not yet the same on all machines that must be alike, in words.
    fn find_difference(&self) -> Option<String>;

    fn run_until(&mut self, end_ms: u64) {
        while let Some(event) = self.agenda().pop_until(end_ms) {
            self.handle(event);
        }
    }

    /// Runs for `run_s` seconds, heals, and waits at most `bound_s` seconds until nothing differs. Returns how long that took,
    /// milliseconds.
    ///
    /// # Errors
    /// The difference that is left.
    fn run_and_heal(&mut self, run_s: u64, bound_s: u64) -> Result<u64, String> {
        let healed_ms = run_s * 1_000;
        self.run_until(healed_ms);
        self.heal();
        loop {
            let now_ms = self.agenda().now_ms();
            match self.find_difference() {
                None => return Ok(now_ms - healed_ms),
                Some(difference) if now_ms >= healed_ms + bound_s * 1_000 => return Err(difference),
                Some(_) => self.run_until(now_ms + LOOK_MS),
            }
        }
    }
}
