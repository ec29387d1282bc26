//! When the table is refreshed: bootnodes and seeds offered again, a lookup of ourselves, three random lookups.

use std::time::{Duration, Instant};

use rand::{Rng, rngs::StdRng};

/// The shortest and the longest time between two refreshes (geth: uniform in 15 to 30 minutes).
const INTERVAL: std::ops::Range<Duration> = Duration::from_secs(15 * 60)..Duration::from_secs(30 * 60);
/// When the second refresh comes. A node that joins together with many others, as a network starts, finds next to no
/// nodes at first, and is not found before its next lookup.
const INTERVAL_SECOND: std::ops::Range<Duration> = Duration::from_secs(30)..Duration::from_secs(60);
/// How soon an empty table is refreshed again: bootnodes may have come up, our own network may be back.
const INTERVAL_EMPTY: std::ops::Range<Duration> = Duration::from_secs(15)..Duration::from_secs(30);
/// A table with fewer nodes after a refresh is refreshed again as soon as an empty one, then after twice that, and so
/// on: in a network that is just starting, the first answers of all nodes are empty.
const SMALL_TABLE: usize = 16;
/// How many random lookups a refresh makes beside that of our own id (geth: 3).
pub const RANDOM_LOOKUPS: usize = 3;

/// The timer of refreshes. The first is due at once.
#[derive(Clone, Copy, Debug)]
pub struct Refresh {
    next: Instant,
    is_first: bool,
    /// How many refreshes in a row have left the table small.
    small: u32,
}

impl Refresh {
    /// A timer that is due at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { next: now, is_first: true, small: 0 }
    }

    /// When the next refresh is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        self.next
    }

    /// Whether a refresh is due; if so, the next one is set.
    pub fn is_due(&mut self, now: Instant, rng: &mut StdRng) -> bool {
        let due = self.next <= now;
        if due {
            let first = std::mem::replace(&mut self.is_first, false);
            self.next = now + rng.random_range(if first { INTERVAL_SECOND } else { INTERVAL });
        }
        due
    }

    /// The table is empty: the next refresh is due within 30 s.
    pub fn table_is_empty(&mut self, now: Instant, rng: &mut StdRng) {
        let soon = now + rng.random_range(INTERVAL_EMPTY);
        if self.next > now + INTERVAL_EMPTY.end {
            self.next = soon;
        }
    }

    /// A refresh is over and left this many nodes in use.
    pub fn ended(&mut self, now: Instant, nodes: usize, rng: &mut StdRng) {
        if nodes >= SMALL_TABLE {
            self.small = 0;
            return;
        }
        // From the sixth on this is more than the ordinary interval.
        let wait = rng.random_range(INTERVAL_EMPTY) * 2_u32.pow(self.small.min(6));
        self.small = if nodes == 0 { 0 } else { self.small.saturating_add(1) };
        self.next = self.next.min(now + wait);
    }

    /// A refresh is wanted now, because bootnodes were added.
    pub fn now(&mut self, now: Instant) {
        self.next = self.next.min(now);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn first_at_once_then_soon_then_within_half_an_hour_unless_empty() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Instant::now();
        for seed in 0..50 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut refresh = Refresh::new(now);
            assert!(refresh.is_due(now, &mut rng));
            assert!(!refresh.is_due(now, &mut rng));
            assert!(INTERVAL_SECOND.contains(&(refresh.poll_timeout() - now)));
            refresh.now(now);
            assert!(refresh.is_due(now, &mut rng));
            assert!(INTERVAL.contains(&(refresh.poll_timeout() - now)));
            refresh.table_is_empty(now, &mut rng);
            let soon = refresh.poll_timeout();
            assert!(INTERVAL_EMPTY.contains(&(soon - now)));
            // Said again and again, it is not put off.
            refresh.table_is_empty(now + INTERVAL_EMPTY.start / 2, &mut rng);
            assert_eq!(refresh.poll_timeout(), soon);
            refresh.now(now);
            assert!(refresh.is_due(now, &mut rng));
            // A small table waits longer each time, at last as long as any.
            let waits: Vec<Duration> = (0..8)
                .map(|_| {
                    refresh.ended(now, 3, &mut rng);
                    let wait = refresh.poll_timeout() - now;
                    refresh.now(now);
                    refresh.is_due(now, &mut rng);
                    wait
                })
                .collect();
            assert!(INTERVAL_EMPTY.contains(&waits[0]));
            assert!((INTERVAL_EMPTY.start * 8..INTERVAL_EMPTY.end * 8).contains(&waits[3]));
            assert!(INTERVAL.contains(&waits[7]));
            refresh.ended(now, 0, &mut rng);
            assert!(refresh.poll_timeout() - now < INTERVAL_EMPTY.end * 64);
            refresh.ended(now, 0, &mut rng);
            assert!(INTERVAL_EMPTY.contains(&(refresh.poll_timeout() - now)), "an empty one does not");
        }
    }
}
