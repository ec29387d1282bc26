//! When the table is refreshed: bootnodes and seeds offered again, a lookup of ourselves, three random lookups.

use std::time::{Duration, Instant};

use rand::{Rng, rngs::StdRng};

/// The shortest and the longest time between two refreshes (geth: uniform in 15 to 30 minutes).
const INTERVAL: std::ops::Range<Duration> = Duration::from_secs(15 * 60)..Duration::from_secs(30 * 60);
/// How soon an empty table is refreshed again: bootnodes may have come up, our own network may be back.
const INTERVAL_EMPTY: std::ops::Range<Duration> = Duration::from_secs(15)..Duration::from_secs(30);
/// How many random lookups a refresh makes beside that of our own id (geth: 3).
pub const RANDOM_LOOKUPS: usize = 3;

/// The timer of refreshes. The first is due at once.
#[derive(Clone, Copy, Debug)]
pub struct Refresh {
    next: Instant,
}

impl Refresh {
    /// A timer that is due at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { next: now }
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
            self.next = now + rng.random_range(INTERVAL);
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
    fn first_at_once_then_within_half_an_hour_and_soon_when_empty() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Instant::now();
        for seed in 0..50 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut refresh = Refresh::new(now);
            assert!(refresh.is_due(now, &mut rng));
            assert!(!refresh.is_due(now, &mut rng));
            assert!(INTERVAL.contains(&(refresh.poll_timeout() - now)));
            refresh.table_is_empty(now, &mut rng);
            let soon = refresh.poll_timeout();
            assert!(INTERVAL_EMPTY.contains(&(soon - now)));
            // Said again and again, it is not put off.
            refresh.table_is_empty(now + INTERVAL_EMPTY.start / 2, &mut rng);
            assert_eq!(refresh.poll_timeout(), soon);
            refresh.now(now);
            assert!(refresh.is_due(now, &mut rng));
        }
    }
}
