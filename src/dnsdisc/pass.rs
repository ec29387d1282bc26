//! One walk through a subtree: the entries that are still to be requested, each at most once.
//!
//! Entries are named by their content, so a branch cannot contain itself. But it can name the same child a thousand
//! times, and that child the next one: a small zone can have an unlimited number of paths. The walk therefore remembers
//! the entries it has met, and accepts no new ones at its limit.

use std::collections::HashSet;

use rand::{Rng, rngs::StdRng};

use super::entry::Hash;

/// How often an entry is requested within one walk if no answer comes.
const MAX_ATTEMPTS: u8 = 3;

/// An entry to request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) hash: Hash,
    attempts: u8,
}

#[derive(Debug)]
pub(super) struct Pass {
    root: Hash,
    /// Distinguishes answers to this walk from answers to an earlier one.
    pub(super) number: u64,
    limit: usize,
    missing: Vec<Wanted>,
    asked: usize,
    met: HashSet<u64>,
    /// Entries given up in this walk; the next one tries them again.
    pub(super) given_up: usize,
    /// Nodes or links that were found.
    pub(super) leaves: usize,
}

impl Pass {
    /// A walk that starts at `root` and accepts at most `limit` entries.
    pub(super) fn new(root: Hash, number: u64, limit: usize) -> Self {
        let missing = vec![Wanted { hash: root, attempts: 0 }];
        let met = HashSet::from([root.short()]);
        Self { root, number, limit, missing, asked: 0, met, given_up: 0, leaves: 0 }
    }

    pub(super) fn root(&self) -> Hash {
        self.root
    }

    /// Whether there are entries to request.
    pub(super) fn has_missing(&self) -> bool {
        !self.missing.is_empty()
    }

    /// Whether every entry was requested and every answer has come.
    pub(super) fn is_done(&self) -> bool {
        self.missing.is_empty() && self.asked == 0
    }

    /// Chooses a random entry to request next: no two clients walk in the same order, and none reads all of a bad
    /// branch first.
    pub(super) fn next(&mut self, rng: &mut StdRng) -> Option<Wanted> {
        if self.missing.is_empty() {
            return None;
        }
        let wanted = self.missing.swap_remove(rng.random_range(0..self.missing.len()));
        self.asked += 1;
        Some(wanted)
    }

    /// Adds the children of a branch. Returns how many were refused because the walk is at its limit.
    pub(super) fn branch(&mut self, children: &[Hash]) -> usize {
        let mut refused = 0;
        for hash in children {
            if self.met.contains(&hash.short()) {
                continue;
            }
            if self.met.len() >= self.limit {
                refused += 1;
                continue;
            }
            self.met.insert(hash.short());
            self.missing.push(Wanted { hash: *hash, attempts: 0 });
        }
        refused
    }

    /// Counts an answer, good or bad.
    pub(super) fn answered(&mut self) {
        self.asked = self.asked.saturating_sub(1);
    }

    /// Counts a missing answer: the entry is requested again, or given up until the next walk.
    pub(super) fn unanswered(&mut self, wanted: Wanted) {
        self.answered();
        let attempts = wanted.attempts.saturating_add(1);
        if attempts < MAX_ATTEMPTS {
            self.missing.push(Wanted { attempts, ..wanted });
        } else {
            self.given_up += 1;
        }
    }

    /// Counts a bad answer. The entry is not requested again, because the answer would be the same.
    pub(super) fn spoiled(&mut self) {
        self.answered();
        self.given_up += 1;
    }

    /// Drops every entry that was not requested yet.
    pub(super) fn cut(&mut self) {
        self.missing.clear();
    }
}
