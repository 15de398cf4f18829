//! A map by hash part with a memory bound: it drops the least recently used values first.

use narmesh_protocol::HashPart;
use std::collections::{BTreeMap, HashMap};

/// A map by hash part that drops the least recently used values when it takes more than `bytes_max`.
#[derive(Debug)]
pub(crate) struct ByUse<V> {
    entries: HashMap<HashPart, Entry<V>>,
    /// The hash part of each entry by the number of its last use, oldest first.
    uses: BTreeMap<u64, HashPart>,
    last_use: u64,
    /// Memory of all values, as stated by the callers of `put`.
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Entry<V> {
    last_use: u64,
    bytes: usize,
    value: V,
}

impl<V> ByUse<V> {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { entries: HashMap::new(), uses: BTreeMap::new(), last_use: 0, bytes: 0, bytes_max }
    }

    /// The value for `part`; it becomes the most recently used one.
    pub(crate) fn get(&mut self, part: &HashPart) -> Option<&V> {
        let entry = self.entries.get_mut(part)?;
        self.uses.remove(&entry.last_use);
        self.last_use += 1;
        entry.last_use = self.last_use;
        self.uses.insert(self.last_use, *part);
        Some(&entry.value)
    }

    /// Puts a value that takes `bytes` in place of the previous one. A value larger than the whole bound is not kept.
    pub(crate) fn put(&mut self, part: HashPart, bytes: usize, value: V) {
        self.remove(&part);
        // It would push out all others, and then itself.
        if bytes > self.bytes_max {
            return;
        }
        self.bytes += bytes;
        self.last_use += 1;
        self.uses.insert(self.last_use, part);
        self.entries.insert(part, Entry { last_use: self.last_use, bytes, value });
        while self.bytes > self.bytes_max {
            let Some((_, oldest)) = self.uses.first_key_value() else { break };
            let oldest = *oldest;
            self.remove(&oldest);
        }
    }

    pub(crate) fn remove(&mut self, part: &HashPart) {
        let Some(entry) = self.entries.remove(part) else { return };
        self.uses.remove(&entry.last_use);
        self.bytes -= entry.bytes;
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.bytes_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_protocol::StorePath;

    fn part(number: u32) -> HashPart {
        StorePath::parse(&format!("{number:032}-x")).unwrap().hash_part()
    }

    fn held(values: &ByUse<u32>) -> Vec<u32> {
        let mut held: Vec<_> = values.entries.values().map(|entry| entry.value).collect();
        held.sort_unstable();
        assert_eq!(values.uses.len(), held.len());
        held
    }

    #[test]
    fn least_recently_used_goes_first() {
        let mut values = ByUse::new(30);
        for number in 1..=3 {
            values.put(part(number), 10, number);
        }
        assert_eq!((held(&values), values.bytes), (vec![1, 2, 3], 30));
        assert_eq!(values.get(&part(1)), Some(&1));
        values.put(part(4), 10, 4);
        assert_eq!((held(&values), values.bytes), (vec![1, 3, 4], 30));
        values.put(part(5), 15, 5);
        assert_eq!((held(&values), values.bytes), (vec![4, 5], 25));
        values.put(part(5), 1, 6);
        assert_eq!((held(&values), values.bytes), (vec![4, 6], 11));
        values.remove(&part(4));
        assert_eq!(values.get(&part(4)), None);
        assert_eq!((held(&values), values.bytes), (vec![6], 1));
        values.clear();
        assert_eq!((held(&values), values.bytes), (vec![], 0));
    }

    #[test]
    fn oversized_value_removes_only_its_predecessor() {
        let mut values = ByUse::new(30);
        values.put(part(1), 10, 1);
        values.put(part(2), 10, 2);
        values.put(part(1), 31, 3);
        assert_eq!((held(&values), values.bytes), (vec![2], 10));
    }
}
