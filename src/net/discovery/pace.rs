//! The limit on packets that discovery sends per second, for firewalls and NATs that count flows (`--discovery-rate`).
//!
//! A packet beyond the rate is dropped and counted: UDP may lose packets, requests are repeated, and a late answer is
//! useless. So that strangers cannot use up the rate that our own searches need, the engines answer strangers with at
//! most half of it (a quarter each). The rest carries our requests and the answers to known nodes.

use std::{num::NonZeroU32, time::Instant};

use crate::node::ration::{Rate, Ration};

/// The rate, if there is one. The default lets everything pass.
#[derive(Debug, Default)]
pub(super) struct Pace(Option<(Rate, Ration)>);

impl Pace {
    /// A rate of `packets` per second; the packets of one second may be sent at once.
    pub(super) fn new(packets: Option<NonZeroU32>) -> Self {
        Self(packets.map(|packets| (Rate::per_second(packets.get()), Ration::default())))
    }

    /// Whether one more packet may be sent now.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        self.0.as_mut().is_none_or(|(rate, ration)| ration.take(*rate, now))
    }
}

/// The most packets per second that strangers may make each engine send, so that this rate holds for both.
pub(super) fn share_of_strangers(packets: NonZeroU32) -> u32 {
    (packets.get() / 4).max(1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_more_than_the_rate_passes_and_no_less() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let start = Instant::now();
        let mut pace = Pace::new(NonZeroU32::new(50));
        let mut passed = 0;
        // Ten seconds of a thousand packets each.
        for tick in 0..10_000 {
            passed += u32::from(pace.allows(start + Duration::from_millis(tick)));
        }
        assert!((50 * 10..=50 * 11).contains(&passed), "{passed}");
        let mut free = Pace::default();
        assert!((0..10_000).all(|_| free.allows(start)));
        assert_eq!(share_of_strangers(NonZeroU32::MIN), 1);
    }
}
