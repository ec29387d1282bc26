//! The delivery contract under any sequence of operations: inbox, lease and watch, each against a model.
//!
//! The input is a script; most operations take two bytes. The models are simpler than the code that they check: they
//! only count.

mod inbox;
mod lease;
mod watch;

use std::time::{Duration, Instant};

use devp2pd::Now;

/// Runs pushes, pulls, credit, streams that begin and break, and sessions that end. No message is delivered twice, lost
/// without a report, out of order or without credit, and the queue stays below its bound.
pub fn inbox(data: &[u8]) {
    inbox::run(data);
}

/// Runs claims, broken streams, the passing of time, and wrong requests. Each name has one owner and each registration
/// one valid token; no lease outlives its time.
pub fn lease(data: &[u8]) {
    lease::run(data);
}

/// Runs changes, slow pulls and resumptions. A watcher that has caught up has the current state, whichever changes it
/// missed.
pub fn watch(data: &[u8]) {
    watch::run(data);
}

/// Reads a script: the next number, or `None` at its end.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn next(&mut self) -> Option<usize> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(usize::from(*first))
    }

    fn below(&mut self, bound: usize) -> Option<usize> {
        self.next().map(|value| value % bound)
    }
}

#[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
fn origin() -> Now {
    Now { mono: Instant::now(), unix: Duration::from_secs(1_700_000_000) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_script_of_an_inbox(data in proptest::collection::vec(any::<u8>(), 0..600)) {
            super::inbox(&data);
        }

        #[test]
        fn any_script_of_leases(data in proptest::collection::vec(any::<u8>(), 0..400)) {
            super::lease(&data);
        }

        #[test]
        fn any_script_of_a_watch(data in proptest::collection::vec(any::<u8>(), 0..400)) {
            super::watch(&data);
        }
    }
}
