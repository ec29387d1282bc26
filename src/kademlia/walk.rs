//! The random walk: lookups of random targets, as many as candidates are wanted and no more.
//!
//! Nobody wanting candidates means that nothing is sent. A lookup finds more nodes than wanted at times; they are
//! given all the same, since they cost nothing more, and the debt is zero then, never negative.

use std::time::{Duration, Instant};

/// The shortest time between the starts of two lookups (geth: 1 s). A small network is walked in milliseconds, and
/// must not be walked again and again.
const SPACING: Duration = Duration::from_secs(1);

/// The demand for candidates and the pace of meeting it.
#[derive(Clone, Copy, Debug)]
pub struct RandomWalk {
    wanted: usize,
    next: Instant,
    under_way: bool,
}

impl RandomWalk {
    /// Nothing is wanted yet; the first lookup may start at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { wanted: 0, next: now, under_way: false }
    }

    /// How many candidates are wanted from now on; zero means no lookups.
    pub fn set_demand(&mut self, wanted: usize) {
        self.wanted = wanted;
    }

    /// How many candidates are still wanted.
    #[must_use]
    pub fn demand(&self) -> usize {
        self.wanted
    }

    /// A candidate was found.
    pub fn found(&mut self) {
        self.wanted = self.wanted.saturating_sub(1);
    }

    /// When the next lookup should start; `None` while nothing is wanted or one is under way.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        (self.wanted > 0 && !self.under_way).then_some(self.next)
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
