//! Whether most refused connections come from one private address: the sign of an address translation in front of us.
//!
//! Behind a bridge, a proxy or a Service that hides the sources of connections, all peers have one address. Limits per
//! source then hold for all of them together, and most of them are refused. The operator cannot see that from the
//! counts by reason alone. So the address is found here, and the warning names the cause and the settings to change.
//!
//! The address is found by majority vote (Boyer and Moore), in constant memory: strangers choose how many addresses
//! there are.

use std::{
    fmt,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::refusal::Refusal;
use crate::node::{AddressClass, endpoint::canonical};

/// Refusals are counted over this time, then anew.
const WINDOW: Duration = Duration::from_secs(600);

/// Fewer refusals are no evidence: one host that retries causes some.
const ENOUGH: u32 = 12;

/// The warning is repeated after this time at the earliest.
const REPEAT: Duration = Duration::from_secs(3600);

/// The private address from which most refused connections came. Its text is the warning for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OneSource(pub IpAddr);

impl fmt::Display for OneSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "most refused connections come from {}, a private address: a bridge, proxy or Service in front of this node \
             seems to hide the addresses of peers, so that limits per source hold for all of them together. Let their \
             addresses through (host network, externalTrafficPolicy: Local), or switch these limits off: \
             inbound-throttle 0s, max-peers-per-subnet 0, max-pending-per-subnet 0",
            self.0
        )
    }
}

/// Counts refusals by source.
#[derive(Debug)]
pub(super) struct Sources {
    began: Instant,
    /// Refusals of the window.
    total: u32,
    /// The address that may have the majority, its lead in the vote, and its refusals since it became the candidate.
    candidate: Option<(IpAddr, u32, u32)>,
    told: Option<(Instant, IpAddr)>,
    found: Option<OneSource>,
}

impl Sources {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, total: 0, candidate: None, told: None, found: None }
    }

    /// A connection from `ip` was refused. Returns the source if the operator should hear of it now.
    pub(super) fn refused(&mut self, now: Instant, ip: IpAddr, refusal: Refusal) -> Option<OneSource> {
        if !matches!(refusal, Refusal::Throttled | Refusal::PendingPerSubnet | Refusal::SubnetFull) {
            return None;
        }
        self.turn(now);
        let ip = canonical(ip);
        self.total = self.total.saturating_add(1);
        self.candidate = match self.candidate {
            Some((held, lead, count)) if held == ip => {
                Some((ip, lead.saturating_add(1), count.saturating_add(1)))
            }
            Some((held, lead, count)) if lead > 1 => Some((held, lead - 1, count)),
            _ => Some((ip, 1, 1)),
        };
        let (ip, _, count) = self.candidate?;
        let private = matches!(AddressClass::of(ip), AddressClass::Private | AddressClass::LinkLocal);
        if !private || self.total < ENOUGH || count <= self.total / 2 {
            return None;
        }
        self.found = Some(OneSource(ip));
        let told_lately =
            self.told.is_some_and(|(at, told)| told == ip && now.saturating_duration_since(at) < REPEAT);
        if told_lately {
            return None;
        }
        self.told = Some((now, ip));
        self.found
    }

    /// The source, while its refusals are not older than the last window.
    pub(super) fn found(&mut self, now: Instant) -> Option<OneSource> {
        self.turn(now);
        self.found
    }

    /// Begins a new window when the current one is over. A finding stands for one window more.
    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.began);
        if age < WINDOW {
            return;
        }
        let majority = self.candidate.is_some_and(|(_, _, count)| count > self.total / 2);
        if age >= 2 * WINDOW || self.total < ENOUGH || !majority {
            self.found = None;
        }
        (self.began, self.total, self.candidate) = (now, 0, None);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::test_now, *};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_private_majority_is_named_once() {
        let start = test_now().mono;
        let mut sources = Sources::new(start);
        let bridge = ip("172.17.0.1");
        let mut told = Vec::new();
        for n in 0..60 {
            let from = if n % 3 == 0 { ip("8.8.8.8") } else { bridge };
            told.extend(sources.refused(start, from, Refusal::Throttled));
        }
        assert_eq!(told, [OneSource(bridge)]);
        let text = told[0].to_string();
        for part in ["172.17.0.1", "inbound-throttle 0s", "max-peers-per-subnet 0", "externalTrafficPolicy"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(sources.found(start + WINDOW), Some(OneSource(bridge)), "for one window more");
        assert_eq!(sources.found(start + 3 * WINDOW), None);
        // Again, an hour later.
        let later = start + REPEAT;
        let again = (0..60).filter_map(|_| sources.refused(later, bridge, Refusal::SubnetFull)).count();
        assert_eq!(again, 1);
    }

    #[test]
    fn what_is_no_sign_of_translation_is_not_named() {
        let start = test_now().mono;
        let refuse = |count: u8, ip: &dyn Fn(u8) -> IpAddr, refusal| {
            let mut sources = Sources::new(start);
            (0..count).find_map(|n| sources.refused(start, ip(n), refusal))
        };
        let bridge = ip("10.0.0.1");
        for (what, told) in [
            ("few", refuse(11, &|_| bridge, Refusal::Throttled)),
            ("a public address", refuse(99, &|_| ip("8.8.8.8"), Refusal::Throttled)),
            ("loopback", refuse(99, &|_| ip("127.0.0.1"), Refusal::Throttled)),
            ("many", refuse(99, &|n| [10, 0, 0, n].into(), Refusal::Throttled)),
            ("not a limit per source", refuse(99, &|_| bridge, Refusal::TooManyPeers)),
        ] {
            assert_eq!(told, None, "{what}");
        }
    }
}
