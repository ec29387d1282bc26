//! Which node is checked next: one at a time from each of two lists.
//!
//! The fast list holds nodes that are new, moved, or failed their last check; the slow list those that passed. At
//! each tick of a list one of its nodes is picked at random. The intervals are geth's, and conformance suites count
//! on them: a fresh node must be checked within seconds (devp2p `discv5 test`, FindnodeResults).

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use rand::{Rng, rngs::StdRng};

use crate::node::NodeId;

/// The longest wait between two checks of nodes that are not yet proven.
pub const FAST_INTERVAL: Duration = Duration::from_secs(3);
/// The longest wait between two checks of nodes that are.
pub const SLOW_INTERVAL: Duration = Duration::from_secs(9);
/// The shortest wait of both, so that a tick is never repeated at the same instant.
const SHORTEST: Duration = Duration::from_millis(1);

/// The list a node stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// Not yet proven.
    Fast,
    /// Proven.
    Slow,
}

/// Both lists. Adding, removing and picking take constant time.
#[derive(Debug)]
pub(super) struct Revalidation {
    fast: List,
    slow: List,
}

impl Revalidation {
    pub(super) fn new() -> Self {
        Self { fast: List::new(FAST_INTERVAL), slow: List::new(SLOW_INTERVAL) }
    }

    /// Puts `id` on the list of `pace` and takes it off the other.
    pub(super) fn put(&mut self, id: NodeId, pace: Pace, now: Instant, rng: &mut StdRng) {
        let (to, from) = match pace {
            Pace::Fast => (&mut self.fast, &mut self.slow),
            Pace::Slow => (&mut self.slow, &mut self.fast),
        };
        from.remove(&id);
        to.insert(id, now, rng);
    }

    pub(super) fn remove(&mut self, id: &NodeId) {
        self.fast.remove(id);
        self.slow.remove(id);
    }

    /// When the next tick is due; `None` while both lists are empty.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        [self.fast.next, self.slow.next].into_iter().flatten().min()
    }

    /// The pick of one list whose tick is due. Call until `None`.
    pub(super) fn tick(&mut self, now: Instant, rng: &mut StdRng) -> Option<NodeId> {
        self.fast.tick(now, rng).or_else(|| self.slow.tick(now, rng))
    }

    #[cfg(test)]
    pub(super) fn pace(&self, id: &NodeId) -> Option<Pace> {
        let on = |list: &List| list.places.contains_key(id);
        on(&self.fast).then_some(Pace::Fast).or_else(|| on(&self.slow).then_some(Pace::Slow))
    }
}

#[derive(Debug)]
struct List {
    interval: Duration,
    ids: Vec<NodeId>,
    places: HashMap<NodeId, usize>,
    /// `None` exactly while the list is empty.
    next: Option<Instant>,
}

impl List {
    fn new(interval: Duration) -> Self {
        Self { interval, ids: Vec::new(), places: HashMap::new(), next: None }
    }

    fn insert(&mut self, id: NodeId, now: Instant, rng: &mut StdRng) {
        if self.places.contains_key(&id) {
            return;
        }
        self.places.insert(id, self.ids.len());
        self.ids.push(id);
        if self.next.is_none() {
            self.schedule(now, rng);
        }
    }

    fn remove(&mut self, id: &NodeId) {
        let Some(place) = self.places.remove(id) else { return };
        self.ids.swap_remove(place);
        if let Some(moved) = self.ids.get(place) {
            self.places.insert(*moved, place);
        }
        if self.ids.is_empty() {
            self.next = None;
        }
    }

    fn schedule(&mut self, now: Instant, rng: &mut StdRng) {
        self.next = Some(now + rng.random_range(SHORTEST..self.interval));
    }

    fn tick(&mut self, now: Instant, rng: &mut StdRng) -> Option<NodeId> {
        if self.next.is_none_or(|next| next > now) {
            return None;
        }
        self.schedule(now, rng);
        self.ids.get(rng.random_range(0..self.ids.len())).copied()
    }
}
