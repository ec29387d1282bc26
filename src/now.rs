//! The time, as an argument of engines.
//!
//! Pure rooms never read a clock: every call that needs the time takes a [`Now`]. It has both clocks, for different
//! uses. Expirations on the wire, record sequences and bans use wall time. Timers and deadlines use monotonic time, so
//! that a step of the wall clock fires none of them.

use std::time::{Duration, Instant};

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time: timers, deadlines, ages.
    pub mono: Instant,
    /// Wall time since the Unix epoch: expirations on the wire, record sequences, bans.
    pub unix: Duration,
}

impl Now {
    /// This reading plus `by` on both clocks, for virtual time in tests and simulations.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn after(self, by: Duration) -> Self {
        Self { mono: self.mono + by, unix: self.unix.saturating_add(by) }
    }
}
