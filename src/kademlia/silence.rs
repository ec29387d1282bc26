//! Addresses that do not answer: they are not asked again for other nodes.
//!
//! A node that lies can answer a lookup with any number of fresh ids at the address of a victim. Each of them would be
//! asked, so that a few lies a second make us send the victim many times as many packets. So an address that has left
//! [`MAX_UNANSWERED`] questions without an answer is not asked for [`WINDOW`], whatever ids are said to be there. One
//! answer clears it. Nodes of the table and requests of callers are exempt: both are few, and not chosen by others.
//!
//! An address is an IP address, because one with other ports is the same victim. Loopback is exempt: test networks have
//! all their nodes there.

use std::{
    net::IpAddr,
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use lru::LruCache;

use crate::node::AddressClass;

/// So many questions in a row without an answer make an address silent.
const MAX_UNANSWERED: u32 = 3;
/// How long the questions count, and how long a silent address is not asked.
const WINDOW: Duration = Duration::from_secs(30);
/// How many addresses are remembered, about 0.4 MB. A lookup asks at most 128 nodes.
const MAX_ADDRESSES: NonZeroUsize = NonZeroUsize::new(4_096).unwrap();

#[derive(Clone, Copy, Debug)]
struct Unanswered {
    count: u32,
    since: Instant,
}

/// The addresses that did not answer lately.
#[derive(Debug)]
pub(super) struct Silence(LruCache<IpAddr, Unanswered>);

impl Default for Silence {
    fn default() -> Self {
        Self(LruCache::sparse(MAX_ADDRESSES))
    }
}

impl Silence {
    /// A question to this address got no answer.
    pub(super) fn unanswered(&mut self, now: Instant, ip: IpAddr) {
        if AddressClass::of(ip) == AddressClass::Loopback {
            return;
        }
        let entry = self.0.get_or_insert_mut(ip, || Unanswered { count: 0, since: now });
        if now.saturating_duration_since(entry.since) >= WINDOW {
            *entry = Unanswered { count: 0, since: now };
        }
        entry.count = entry.count.saturating_add(1);
        if entry.count == MAX_UNANSWERED {
            entry.since = now;
        }
    }

    /// An answer came from this address.
    pub(super) fn heard(&mut self, ip: IpAddr) {
        self.0.pop(&ip);
    }

    /// Whether this address is not to be asked.
    pub(super) fn is_silent(&self, now: Instant, ip: IpAddr) -> bool {
        self.0.peek(&ip).is_some_and(|entry| {
            entry.count >= MAX_UNANSWERED && now.saturating_duration_since(entry.since) < WINDOW
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_unanswered_questions_silence_an_address_for_half_a_minute() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (ip, other) = (IpAddr::from([1, 2, 3, 4]), IpAddr::from([1, 2, 3, 5]));
        let mut silence = Silence::default();
        for second in 0..2 {
            silence.unanswered(at(second), ip);
            assert!(!silence.is_silent(at(second), ip));
        }
        silence.unanswered(at(2), ip);
        assert!(silence.is_silent(at(2), ip) && !silence.is_silent(at(2), other));
        assert!(silence.is_silent(at(31), ip) && !silence.is_silent(at(32), ip), "half a minute");
        silence.unanswered(at(33), ip);
        assert!(!silence.is_silent(at(33), ip), "it begins anew");
        silence.unanswered(at(34), ip);
        silence.heard(ip);
        silence.unanswered(at(35), ip);
        assert!(!silence.is_silent(at(35), ip), "it has answered");
        for second in 40..50 {
            silence.unanswered(at(second), IpAddr::from([127, 0, 0, 1]));
        }
        assert!(!silence.is_silent(at(50), IpAddr::from([127, 0, 0, 1])), "loopback is exempt");
        for n in 0..10_000_u32 {
            silence.unanswered(start, IpAddr::from((n << 8).to_be_bytes()));
        }
        assert_eq!(silence.0.len(), MAX_ADDRESSES.get());
    }
}
