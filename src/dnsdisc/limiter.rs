//! The rate at which names are requested. One instant is the whole state: the time at which the full burst would be
//! available again (the generic cell rate algorithm).

use std::time::{Duration, Instant};

/// Requests per second, as go-ethereum's client makes them.
const RATE: u32 = 3;

/// Requests at once after a pause, as go-ethereum's client makes them.
const BURST: u32 = 10;

/// [`RATE`] requests a second, [`BURST`] at once after a pause.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limiter {
    /// When the whole burst is available again.
    full_at: Instant,
}

impl Limiter {
    /// A limiter with the full burst available.
    pub(super) fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// The time at which the next request may be made.
    pub(super) fn free_at(&self, now: Instant) -> Instant {
        let ahead = self.full_at.saturating_duration_since(now);
        now + ahead.saturating_sub(interval() * (BURST - 1))
    }

    /// Counts a request.
    pub(super) fn take(&mut self, now: Instant) {
        self.full_at = self.full_at.max(now) + interval();
    }
}

fn interval() -> Duration {
    Duration::from_secs(1) / RATE
}
