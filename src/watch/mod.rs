//! Watches: a copy of some state, kept up to date in whoever watches. One mechanism for peers, nodes, registrations.
//!
//! A watcher gets a snapshot, then changes, with marks between them that it can resume from. A watch replicates
//! state, it is not a log: a watcher that falls behind loses history, never state.
//!
//! - **Slow watchers cost next to nothing.** A watcher is a position in a ring of changes that all share. When it
//!   comes to a change of a key that changed again since, it is told the state of now and passes over what came
//!   between ([`Mark::coalesced`] counts that). It remembers which keys it is ahead on, so its memory is bounded by
//!   the number of keys.
//! - **Nothing is ever refused for being old.** A watcher that lags by more than the ring, or resumes from a mark of
//!   another run, is told so in band ([`Mark::reset`]) and gets a fresh snapshot.
//! - **A key that went and came back** is told as removed and added, however much was folded: a new session with an
//!   old peer is not an update.
//!
//! The number of keys that are there is the owner's to bound. What keys that went have left behind is bounded here, in
//! changes and in bytes ([`MAX_GONE_BYTES`]): when it is too much, the oldest changes go, and a watcher that had not
//! come so far begins anew. Where strangers choose the keys, there is no state to replicate and [`Happenings`] is the
//! right thing.
//!
//! `cursor` is the position of one watcher; `happenings` is the ring for keys that strangers choose; `shared`
//! puts watched state under a lock and wakes its watchers.
//!
//! Left out: filters, text on the wire, and how a watcher waits.

mod cursor;
mod happenings;
mod shared;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub use cursor::{Cursor, Mark, WatchToken};
pub use happenings::{Happenings, MAX_HAPPENINGS, Missed};
pub use shared::Shared;

/// How many changes are kept for watchers that lag or resume.
pub const MAX_CHANGES: usize = 65_536;

/// How many bytes the last values of keys that went may have in all: some thousand peers.
pub const MAX_GONE_BYTES: usize = 4 << 20;

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It was there when the watch began.
    Snapshot,
    /// It is new.
    Added,
    /// Its value changed.
    Updated,
    /// It is gone.
    Removed,
}

/// One change, as a watcher is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<K, V> {
    /// What happened.
    pub kind: Kind,
    /// To whom.
    pub key: K,
    /// The value of now; for [`Kind::Removed`] the last one, which says why. A key that was removed and added again
    /// before the watcher was told has its new value in both changes.
    pub value: Arc<V>,
}

/// A key's state, kept after its removal for as long as the ring has a change of it.
#[derive(Debug)]
struct Entry<V> {
    value: Arc<V>,
    present: bool,
    /// The position at which it was last added: tells a key that came back from one that stayed.
    life: u64,
    /// The position of its last change.
    latest: u64,
    /// Bytes of the last value of a key that went; 0 while it is there.
    gone_bytes: usize,
}

/// A change in the ring. Its position follows from its place.
#[derive(Debug)]
struct Past<K> {
    key: K,
    kind: Kind,
    life: u64,
}

/// Some state that can be watched.
#[derive(Debug)]
pub struct Watch<K, V> {
    instance: u64,
    entries: BTreeMap<K, Entry<V>>,
    present: usize,
    ring: VecDeque<Past<K>>,
    capacity: usize,
    /// The sum over all entries.
    gone_bytes: usize,
    /// The position of the last change; the first has 1.
    head: u64,
}

impl<K: Ord + Clone, V> Watch<K, V> {
    /// Watchable state without keys. `instance` tells this run of the sidecar from others; `capacity` is how many
    /// changes to keep, usually [`MAX_CHANGES`].
    #[must_use]
    pub fn new(instance: u64, capacity: usize) -> Self {
        Self {
            instance,
            entries: BTreeMap::new(),
            present: 0,
            ring: VecDeque::new(),
            capacity: capacity.max(1),
            gone_bytes: 0,
            head: 0,
        }
    }

    /// How many keys there are.
    #[must_use]
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.present
    }

    /// Whether there is no key.
    #[must_use]
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.present == 0
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&Arc<V>> {
        self.entries.get(key).filter(|entry| entry.present).map(|entry| &entry.value)
    }

    /// All keys with their values, in order.
    #[cfg(any(test, feature = "internals"))]
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Arc<V>)> {
        self.entries.iter().filter(|(_, entry)| entry.present).map(|(key, entry)| (key, &entry.value))
    }

    /// Whether a watcher has nothing to pull.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn is_current(&self, cursor: &Cursor<K>) -> bool {
        cursor.is_live() && cursor.position == self.head
    }

    /// A key is there, or has a new value.
    pub fn set(&mut self, key: K, value: V) {
        let latest = self.head.saturating_add(1);
        let (value, mut life, mut kind) = (Arc::new(value), latest, Kind::Added);
        if let Some(entry) = self.entries.get_mut(&key) {
            if entry.present {
                (life, kind) = (entry.life, Kind::Updated);
            } else {
                self.present = self.present.saturating_add(1);
            }
            self.gone_bytes = self.gone_bytes.saturating_sub(entry.gone_bytes);
            *entry = Entry { value, present: true, life, latest, gone_bytes: 0 };
        } else {
            self.present = self.present.saturating_add(1);
            self.entries.insert(key.clone(), Entry { value, present: true, life, latest, gone_bytes: 0 });
        }
        self.record(Past { key, kind, life });
    }

    /// A key is gone. `last` is told to watchers, so it should say why. It is kept for watchers that lag, so it should
    /// be small; `bytes` is what it takes, on the heap too.
    pub fn remove(&mut self, key: &K, last: V, bytes: usize) {
        let latest = self.head.saturating_add(1);
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.present) else { return };
        let life = entry.life;
        *entry = Entry { value: Arc::new(last), present: false, life, latest, gone_bytes: bytes };
        self.gone_bytes = self.gone_bytes.saturating_add(bytes);
        self.present = self.present.saturating_sub(1);
        self.record(Past { key: key.clone(), kind: Kind::Removed, life });
    }

    fn record(&mut self, past: Past<K>) {
        self.head = self.head.saturating_add(1);
        self.ring.push_back(past);
        while self.ring.len() > self.capacity || self.gone_bytes > MAX_GONE_BYTES {
            let position = self.oldest();
            let Some(past) = self.ring.pop_front() else { return };
            if self.entries.get(&past.key).is_some_and(|entry| !entry.present && entry.latest == position)
                && let Some(entry) = self.entries.remove(&past.key)
            {
                self.gone_bytes = self.gone_bytes.saturating_sub(entry.gone_bytes);
            }
        }
    }

    /// The position of the oldest change in the ring.
    fn oldest(&self) -> u64 {
        self.head.saturating_add(1).saturating_sub(self.ring.len() as u64)
    }
}
