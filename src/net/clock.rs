//! The only place where the process reads its clocks. All other code gets the time as a parameter ([`Now`]).

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::Now;

/// Reads both clocks. A wall clock before 1970 reads as 1970.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one reader of the clocks")]
pub fn now() -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Now { mono: Instant::now(), unix }
}
