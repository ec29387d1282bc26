//! The delivery contract under any sequence of operations: inbox, lease and watch, each against a model.
//!
//! The bytes are a script, mostly two an operation. The models are simpler than what they check: they count.

mod inbox;
mod lease;
mod watch;

use std::time::{Duration, Instant};

use devp2pd::Now;

/// Pushes, pulls, credit, streams that come and break, sessions that end: never twice, never lost unreported, never
/// above the bound, in order, within credit.
pub fn inbox(data: &[u8]) {
    inbox::run(data);
}

/// Claims, breaks, time and mistakes: one owner a name, one valid token a registration, no lease beyond its time.
pub fn lease(data: &[u8]) {
    lease::run(data);
}

/// Changes, slow pulls, resumption: a watcher that catches up has the state, whatever it missed.
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
