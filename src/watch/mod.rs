//! Watches: a client keeps a copy of some state up to date. One mechanism for peers, nodes and registrations.
//!
//! A watcher gets a snapshot, then changes, with marks between them from which it can resume. A watch replicates state,
//! it is not a log: a watcher that is too slow loses history, never state.
//!
//! - **Slow watchers cost little.** A watcher is a position in a ring of changes that all watchers share. If a change
//!   belongs to a key that has changed again since, the watcher gets the key's current state. It later passes over the
//!   changes in between ([`Mark::coalesced`] counts them). It remembers the keys for which it is ahead, so its memory
//!   is bounded by the number of keys.
//! - **No watcher is refused for being late.** A watcher may lag by more than the ring, or resume from a mark of
//!   another run. It then gets a mark that says so ([`Mark::reset`]), and a new snapshot.
//! - **A key that was removed and added again** is reported as removed and added, however many changes were passed
//!   over: a new session with an old peer is not an update.
//!
//! The owner of the state bounds the number of present keys. The traces of removed keys are bounded here, in changes
//! and in bytes ([`MAX_GONE_BYTES`]). Beyond that the oldest changes are dropped, and a watcher that has not reached
//! them starts again. Where strangers choose the keys, there is no state to replicate, and [`Happenings`] is used
//! instead.
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

/// How many changes are kept for watchers that are slow or that resume.
pub const MAX_CHANGES: usize = 65_536;

/// How many bytes the last values of removed keys may have in all: enough for some thousand peers.
pub const MAX_GONE_BYTES: usize = 4 << 20;

/// The kind of a change to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It was present when the watch began.
    Snapshot,
    /// It is new.
    Added,
    /// Its value changed.
    Updated,
    /// It was removed.
    Removed,
}

/// One change, as a watcher gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<K, V> {
    /// The kind of the change.
    pub kind: Kind,
    /// The key that changed.
    pub key: K,
    /// The current value; for [`Kind::Removed`] the last one, which says why. A key that was removed and added again
    /// before the watcher got the change has its new value in both changes.
    pub value: Arc<V>,
}

/// A key's state. After its removal it is kept for as long as the ring has a change of it.
#[derive(Debug)]
struct Entry<V> {
    value: Arc<V>,
    present: bool,
    /// The position at which the key was last added: it distinguishes a key that was added again from one that stayed.
    life: u64,
    /// The position of its last change.
    latest: u64,
    /// Bytes of the last value of a removed key; 0 while it is present.
    gone_bytes: usize,
}

/// A change in the ring. Its position follows from its index.
#[derive(Debug)]
struct PastChange<K> {
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
    ring: VecDeque<PastChange<K>>,
    capacity: usize,
    /// The sum of `gone_bytes` over all entries.
    gone_bytes: usize,
    /// The position of the last change; the first change has position 1.
    head: u64,
}

impl<K: Ord + Clone, V> Watch<K, V> {
    /// Watchable state without keys. `instance` identifies this run of the sidecar; `capacity` is how many changes to
    /// keep, usually [`MAX_CHANGES`].
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

    /// How many keys are present.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn len(&self) -> usize {
        self.present
    }

    /// Whether no key is present.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn is_empty(&self) -> bool {
        self.present == 0
    }

    /// The value of a key, if it is present.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&Arc<V>> {
        self.entries.get(key).filter(|entry| entry.present).map(|entry| &entry.value)
    }

    /// All present keys with their values, in order.
    #[cfg(any(test, feature = "internals"))]
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Arc<V>)> {
        self.entries.iter().filter(|(_, entry)| entry.present).map(|(key, entry)| (key, &entry.value))
    }

    /// Whether a watcher has nothing to pull.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn is_current(&self, cursor: &Cursor<K>) -> bool {
        cursor.is_current(self)
    }

    /// A watcher that begins with a snapshot, or after `token` if the ring still has the changes since then.
    #[must_use]
    pub fn watch(&self, token: Option<WatchToken>) -> Cursor<K> {
        Cursor::new(self, token)
    }

    /// A watcher with a token that this sidecar cannot have written: it gets a reset, then the snapshot.
    #[must_use]
    pub fn watch_anew(&self) -> Cursor<K> {
        Cursor::anew(self)
    }

    /// Appends the next changes for the watcher to `out`, about `max`, and returns the mark that follows them.
    pub fn pull(&self, cursor: &mut Cursor<K>, max: usize, out: &mut Vec<Change<K, V>>) -> Mark {
        cursor.pull(self, max, out)
    }

    /// Adds a key, or gives it a new value.
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
        self.record(PastChange { key, kind, life });
    }

    /// Removes a key. Watchers get `last` with the removal, so it should say why. It is kept for slow watchers, so it
    /// should be small; `bytes` is the memory it takes, the heap included.
    pub fn remove(&mut self, key: &K, last: V, bytes: usize) {
        let latest = self.head.saturating_add(1);
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.present) else { return };
        let life = entry.life;
        *entry = Entry { value: Arc::new(last), present: false, life, latest, gone_bytes: bytes };
        self.gone_bytes = self.gone_bytes.saturating_add(bytes);
        self.present = self.present.saturating_sub(1);
        self.record(PastChange { key: key.clone(), kind: Kind::Removed, life });
    }

    fn record(&mut self, change: PastChange<K>) {
        self.head = self.head.saturating_add(1);
        self.ring.push_back(change);
        // Dropping the oldest change of a removed key that has not changed since drops the key's entry too.
        while self.ring.len() > self.capacity || self.gone_bytes > MAX_GONE_BYTES {
            let position = self.oldest();
            let Some(oldest) = self.ring.pop_front() else { return };
            if self.entries.get(&oldest.key).is_some_and(|entry| !entry.present && entry.latest == position)
                && let Some(entry) = self.entries.remove(&oldest.key)
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
