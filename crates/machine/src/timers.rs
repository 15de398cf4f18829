//! Timers: at most one for each purpose, ordered by time.

use crate::Moment;
use std::collections::{BTreeMap, BTreeSet};

/// All timers that are set. There is at most one for each `K`, what a timer is for; those due at the same moment come in the
/// order of their `K`.
#[derive(Debug)]
pub struct Timers<K> {
    by_time: BTreeSet<(Moment, K)>,
    by_key: BTreeMap<K, Moment>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self { by_time: BTreeSet::new(), by_key: BTreeMap::new() }
    }
}

impl<K: Copy + Ord> Timers<K> {
    /// When the first timer is due.
    pub fn deadline(&self) -> Option<Moment> {
        self.by_time.first().map(|(moment, _)| *moment)
    }

    /// When a timer is due, if it is set.
    pub fn get(&self, timer: K) -> Option<Moment> {
        self.by_key.get(&timer).copied()
    }

    /// Sets or moves a timer; `None` removes it.
    pub fn set(&mut self, timer: K, moment: Option<Moment>) {
        let before = match moment {
            Some(moment) => self.by_key.insert(timer, moment),
            None => self.by_key.remove(&timer),
        };
        // A timer has one moment: the earlier one would go off as well.
        if let Some(before) = before {
            self.by_time.remove(&(before, timer));
        }
        if let Some(moment) = moment {
            self.by_time.insert((moment, timer));
        }
    }

    /// Takes the first timer that is due.
    pub fn pop(&mut self, now: Moment) -> Option<K> {
        let (moment, timer) = *self.by_time.first()?;
        if moment > now {
            return None;
        }
        self.set(timer, None);
        Some(timer)
    }

    /// What the timers that are set are for.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.by_key.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_timer_fires_once() {
        let mut timers = Timers::default();
        timers.set('a', Some(Moment(5)));
        timers.set('a', Some(Moment(9)));
        timers.set('b', Some(Moment(7)));
        assert_eq!((timers.deadline(), timers.get('a')), (Some(Moment(7)), Some(Moment(9))));
        assert_eq!(timers.pop(Moment(6)), None);
        assert_eq!(timers.pop(Moment(9)), Some('b'));
        assert_eq!(timers.pop(Moment(9)), Some('a'));
        assert_eq!(timers.pop(Moment(9)), None);
        assert_eq!(timers.keys().count(), 0);
    }
}
