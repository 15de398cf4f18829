//! What was noted lately.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The most entries; beyond that, the oldest expire early.
const ENTRIES_MAX: usize = 4_096;

/// Notes, each of which expires after the same time.
#[derive(Debug)]
pub(crate) struct Recent<K, V = ()> {
    lasting: Duration,
    entries: Mutex<HashMap<K, (Instant, V)>>,
}

impl<K: Hash + Eq + Copy, V: Copy> Recent<K, V> {
    pub(crate) fn new(lasting: Duration) -> Self {
        Self { lasting, entries: Mutex::default() }
    }

    /// Notes `value` under `key` from now on, whatever was noted there before.
    pub(crate) fn note(&self, key: K, value: V) {
        self.insert(&mut self.entries.lock(), key, value);
    }

    /// The same, unless something is noted under `key`. Returns whether nothing was.
    pub(crate) fn note_if_new(&self, key: K, value: V) -> bool {
        let mut entries = self.entries.lock();
        let is_new = entries.get(&key).is_none_or(|(at, _)| at.elapsed() >= self.lasting);
        if is_new {
            self.insert(&mut entries, key, value);
        }
        is_new
    }

    /// What is noted under `key`.
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.entries.lock().get(key).filter(|(at, _)| at.elapsed() < self.lasting).map(|(_, value)| *value)
    }

    /// Calls `look` with each key.
    pub(crate) fn for_each_key(&self, mut look: impl FnMut(K)) {
        let entries = self.entries.lock();
        entries.iter().filter(|(_, (at, _))| at.elapsed() < self.lasting).for_each(|(key, _)| look(*key));
    }

    fn insert(&self, entries: &mut HashMap<K, (Instant, V)>, key: K, value: V) {
        entries.retain(|_, (at, _)| at.elapsed() < self.lasting);
        // Others decide how much is noted here.
        if entries.len() >= ENTRIES_MAX
            && let Some(oldest) = entries.iter().min_by_key(|(_, (at, _))| *at).map(|(key, _)| *key)
        {
            entries.remove(&oldest);
        }
        entries.insert(key, (Instant::now(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn notes_expire_and_the_oldest_go_when_there_are_too_many() {
        let recent = Recent::new(Duration::from_secs(10));
        assert!(recent.note_if_new(0_usize, 'a') && !recent.note_if_new(0, 'b'));
        assert_eq!(recent.get(&0), Some('a'));
        tokio::time::advance(Duration::from_secs(9)).await;
        recent.note(1, 'c');
        tokio::time::advance(Duration::from_secs(1)).await;
        let mut keys = Vec::new();
        recent.for_each_key(|key| keys.push(key));
        assert_eq!((recent.get(&0), recent.get(&1), keys), (None, Some('c'), vec![1]));
        for key in 2..ENTRIES_MAX + 2 {
            tokio::time::advance(Duration::from_micros(1)).await;
            recent.note(key, 'd');
        }
        assert_eq!((recent.get(&1), recent.get(&2), recent.entries.lock().len()), (None, Some('d'), ENTRIES_MAX));
    }
}
