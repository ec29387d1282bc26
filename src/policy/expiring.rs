//! A bounded map whose entries end by themselves: what histories, back-offs and throttles are made of.
//!
//! Strangers choose the keys, so the number of entries has a bound. When it is reached, the entry that would end
//! first makes room: it is the one whose loss changes least. Every operation is logarithmic; entries that ended are
//! removed a few at a time by the insertions, so there is neither a sweep nor a timer.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

/// A map from `K` to `V` in which each entry has an end.
#[derive(Clone, Debug)]
pub(super) struct ExpiringMap<K, V> {
    entries: BTreeMap<K, (Instant, V)>,
    ends: BTreeSet<(Instant, K)>,
    limit: usize,
    /// Entries that made room before their end.
    #[cfg(test)]
    pub(super) evicted: u64,
}

impl<K: Ord + Clone, V> ExpiringMap<K, V> {
    /// An empty map of at most `limit` entries (at least one).
    #[must_use]
    pub(super) fn new(limit: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            ends: BTreeSet::new(),
            limit: limit.max(1),
            #[cfg(test)]
            evicted: 0,
        }
    }

    /// The value of `key`, unless it ended.
    #[must_use]
    pub(super) fn get(&self, now: Instant, key: &K) -> Option<&V> {
        self.entries.get(key).filter(|(end, _)| *end > now).map(|(_, value)| value)
    }

    /// Sets `key` until `end`.
    pub(super) fn insert(&mut self, now: Instant, key: K, end: Instant, value: V) {
        self.remove(&key);
        // For each new entry up to two expired ones are removed, so expired entries cannot accumulate.
        for _ in 0..2 {
            if self.ends.first().is_some_and(|(end, _)| *end <= now) {
                self.drop_first();
            }
        }
        if self.entries.len() >= self.limit {
            #[cfg(test)]
            {
                self.evicted += u64::from(self.ends.first().is_some_and(|(end, _)| *end > now));
            }
            self.drop_first();
        }
        self.ends.insert((end, key.clone()));
        self.entries.insert(key, (end, value));
    }

    /// Removes `key` and returns its value, even one that ended.
    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let (end, value) = self.entries.remove(key)?;
        self.ends.remove(&(end, key.clone()));
        Some(value)
    }

    /// Keeps only the entries for which `keep` returns true. Linear, so for the operator's calls alone.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        let ends = &mut self.ends;
        self.entries.retain(|key, (end, value)| {
            let kept = keep(key, value);
            if !kept {
                ends.remove(&(*end, key.clone()));
            }
            kept
        });
    }

    fn drop_first(&mut self) {
        if let Some((_, key)) = self.ends.pop_first() {
            self.entries.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn entries_end_and_the_first_to_end_makes_room() {
        let start = super::super::test_now().mono;
        let at = |secs| start + Duration::from_secs(secs);
        let mut map = ExpiringMap::new(2);
        map.insert(start, "a", at(10), 1);
        map.insert(start, "b", at(5), 2);
        assert_eq!((map.get(at(4), &"b"), map.get(at(5), &"b")), (Some(&2), None));
        map.insert(at(1), "c", at(20), 3);
        assert_eq!((map.get(at(1), &"b"), map.get(at(1), &"a"), map.evicted), (None, Some(&1), 1));
        // An expired entry that is removed does not count as evicted, and never counts as held for long.
        map.insert(at(30), "d", at(40), 4);
        assert_eq!((map.entries.len(), map.ends.len(), map.evicted), (1, 1, 1));
        map.insert(at(30), "d", at(50), 5);
        assert_eq!((map.remove(&"d"), map.ends.len()), (Some(5), 0));
    }
}
