//! The timers of the core: at most one per purpose, ordered by time.

use crate::time::Moment;
use libp2p_identity::PeerId;
use std::collections::{BTreeMap, BTreeSet};

/// What a timer is for. There is one timer for each value, so the peers bound their number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Timer {
    /// Our publication has something to say.
    Publish,
    /// Anti-entropy with the next peer.
    Sync,
    /// The greeting of a new connection, its retry, or the second sync after it.
    Greet(PeerId),
    /// The next attempt of a pull.
    Pull(PeerId),
    /// The first of our requests has waited too long for its answer.
    Requests,
    /// The lifetime of a peer's summary ends.
    Expire(PeerId),
    /// A peer is no longer set aside, or no longer demoted.
    Conduct(PeerId),
}

/// All timers that are set.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    by_time: BTreeSet<(Moment, Timer)>,
    by_timer: BTreeMap<Timer, Moment>,
}

impl Timers {
    /// When the first timer is due.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        self.by_time.first().map(|(moment, _)| *moment)
    }

    /// When a timer is due, if it is set.
    pub(crate) fn get(&self, timer: Timer) -> Option<Moment> {
        self.by_timer.get(&timer).copied()
    }

    /// Sets or moves a timer; `None` removes it.
    pub(crate) fn set(&mut self, timer: Timer, moment: Option<Moment>) {
        let before = match moment {
            Some(moment) => self.by_timer.insert(timer, moment),
            None => self.by_timer.remove(&timer),
        };
        if let Some(before) = before {
            self.by_time.remove(&(before, timer));
        }
        if let Some(moment) = moment {
            self.by_time.insert((moment, timer));
        }
    }

    /// Takes the first timer that is due.
    pub(crate) fn pop(&mut self, now: Moment) -> Option<Timer> {
        let (moment, timer) = *self.by_time.first()?;
        if moment > now {
            return None;
        }
        self.set(timer, None);
        Some(timer)
    }

    /// How many timers are set.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_timer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_alarm_rings_once() {
        let mut timers = Timers::default();
        timers.set(Timer::Sync, Some(Moment(5)));
        timers.set(Timer::Sync, Some(Moment(9)));
        timers.set(Timer::Publish, Some(Moment(7)));
        assert_eq!(timers.deadline(), Some(Moment(7)));
        assert_eq!(timers.pop(Moment(6)), None);
        assert_eq!(timers.pop(Moment(9)), Some(Timer::Publish));
        assert_eq!(timers.pop(Moment(9)), Some(Timer::Sync));
        assert_eq!(timers.pop(Moment(9)), None);
        assert_eq!(timers.len(), 0);
    }
}
