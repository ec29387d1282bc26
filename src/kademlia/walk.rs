//! The random walk: lookups of random targets, as many as candidates are wanted and no more.
//!
//! A node that came without a record is asked for it before it is a candidate. Such nodes wait here, and few are asked
//! at a time.
//!
//! Nobody wanting candidates means that nothing is sent. A lookup finds more nodes than wanted at times; they are
//! given all the same, since they cost nothing more, and the debt is zero then, never negative.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::Contact;

/// The shortest time between the starts of two lookups (geth: 1 s). A small network is walked in milliseconds, and
/// must not be walked again and again.
const SPACING: Duration = Duration::from_secs(1);

/// The most nodes that wait to be asked for their record. Beyond, they are forgotten: the next walk meets others.
const MAX_WAITING: usize = 64;

/// The demand for candidates and the pace of meeting it.
#[derive(Clone, Debug)]
pub struct RandomWalk {
    wanted: usize,
    next: Instant,
    under_way: bool,
    waiting: VecDeque<Contact>,
    asked: usize,
}

impl RandomWalk {
    /// The most nodes asked for their record at a time, as geth.
    pub const MAX_ASKED: usize = 16;

    /// Nothing is wanted yet; the first lookup may start at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { wanted: 0, next: now, under_way: false, waiting: VecDeque::new(), asked: 0 }
    }

    /// How many candidates are wanted from now on; zero means no lookups.
    pub fn set_demand(&mut self, wanted: usize) {
        self.wanted = wanted;
        if wanted == 0 {
            self.waiting.clear();
        }
    }

    /// How many candidates are still wanted.
    #[cfg(test)]
    fn demand(&self) -> usize {
        self.wanted
    }

    /// A candidate was found.
    pub fn found(&mut self) {
        self.set_demand(self.wanted.saturating_sub(1));
    }

    /// The walk met a node that is to be asked for its record.
    pub fn met(&mut self, contact: Contact) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(contact);
        }
    }

    /// The next node to ask for its record, if more are wanted than are being asked.
    pub fn next_candidate(&mut self) -> Option<Contact> {
        if self.asked >= Self::MAX_ASKED.min(self.wanted) {
            return None;
        }
        let contact = self.waiting.pop_front()?;
        self.asked += 1;
        Some(contact)
    }

    /// A node of [`Self::next_candidate`] gave its record, or will not.
    pub fn candidate_ended(&mut self) {
        self.asked = self.asked.saturating_sub(1);
    }

    /// How many nodes are being asked for their record.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn candidates_asked(&self) -> usize {
        self.asked
    }

    /// Whether a lookup of the walk runs.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// When the next lookup should start; `None` while nothing is wanted, one is under way, or nodes of the last one
    /// still wait.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        (self.wanted > 0 && !self.under_way && self.waiting.is_empty()).then_some(self.next)
    }

    /// Whether a lookup should start now; if so, it counts as started.
    pub fn start(&mut self, now: Instant) -> bool {
        let due = self.poll_timeout().is_some_and(|at| at <= now);
        if due {
            self.under_way = true;
            self.next = now + SPACING;
        }
        due
    }

    /// The lookup ended.
    pub fn ended(&mut self) {
        self.under_way = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_only_while_wanted_one_at_a_time_and_spaced() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Instant::now();
        let mut walk = RandomWalk::new(now);
        assert!(!walk.start(now), "nothing is wanted");
        walk.set_demand(2);
        assert!(walk.start(now));
        assert!(!walk.start(now + SPACING), "one is under way");
        walk.found();
        walk.ended();
        assert_eq!(walk.poll_timeout(), Some(now + SPACING));
        assert!(!walk.start(now));
        assert!(walk.start(now + SPACING));
        walk.found();
        walk.found();
        walk.ended();
        assert_eq!((walk.demand(), walk.poll_timeout()), (0, None));
    }
}
