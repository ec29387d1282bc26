//! How many packets get as far as their hash and the recovery of their key, which is what costs (about 45 µs each).
//!
//! Before a packet is checked nothing about it is known but the address it claims. So there are three rations:
//! packets from addresses that have proved themselves take from one of their own; all others take from that of
//! their subnet (IPv4 /24, IPv6 /64), so that one network cannot use up the rest's share, and from one for all
//! strangers together, so that many networks cannot use up the processor. Whoever sends from addresses that are
//! not his spoils the ration of strangers, and no ration of those who are known.
//!
//! Answers take from none of these: a PONG or ENRResponse must name the hash of an open request of ours, which only
//! its recipient knows, and NEIGHBORS are taken only while a FINDNODE to that address is open. Their number per
//! request is bounded instead (see `conversation`).

use std::{
    net::SocketAddr,
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use lru::LruCache;

use crate::node::{AddressClass, endpoint::Subnet};

/// How many subnets are remembered, about 1.5 MB. Who is forgotten starts with a full ration; the one for all
/// strangers holds nevertheless.
const MAX_SUBNETS: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();
/// How many proven addresses are remembered. Who is forgotten counts as a stranger until the next proof.
const MAX_PROVEN: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();

/// A rate with bursts, kept as one instant (GCRA): the time at which everything taken so far would be paid back.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// How many at once.
    pub burst: u32,
    /// How many per second thereafter.
    pub per_second: u32,
}

impl Rate {
    fn take(self, paid: &mut Instant, now: Instant) -> bool {
        let interval = Duration::from_secs(1) / self.per_second.max(1);
        let owed = paid.saturating_duration_since(now) + interval;
        let granted = owed <= interval * self.burst;
        if granted {
            *paid = now + owed;
        }
        granted
    }
}

/// The three rations. An honest node sends some packets per second at its busiest; a public bootnode hears several
/// thousand strangers per second.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Of each proven address.
    pub proven: Rate,
    /// Of each subnet of strangers.
    pub subnet: Rate,
    /// Of all strangers together: about a fifth of a core.
    pub strangers: Rate,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            proven: Rate { burst: 128, per_second: 32 },
            subnet: Rate { burst: 64, per_second: 16 },
            strangers: Rate { burst: 8_000, per_second: 4_000 },
        }
    }
}

/// Who may still send.
#[derive(Debug)]
pub struct Limits {
    rates: Rates,
    proven: LruCache<SocketAddr, Instant>,
    subnets: LruCache<Subnet, Instant>,
    strangers: Instant,
}

impl Limits {
    /// Full rations.
    #[must_use]
    pub fn new(rates: Rates, now: Instant) -> Self {
        Self {
            rates,
            proven: LruCache::sparse(MAX_PROVEN),
            subnets: LruCache::sparse(MAX_SUBNETS),
            strangers: now,
        }
    }

    /// Whether a packet from `from` may be looked at. Loopback always may: this machine is not a stranger, and test
    /// networks run on it.
    pub fn admit(&mut self, now: Instant, from: SocketAddr) -> bool {
        if AddressClass::of(from.ip()) == AddressClass::Loopback {
            return true;
        }
        if let Some(paid) = self.proven.get_mut(&from) {
            return self.rates.proven.take(paid, now);
        }
        let paid = self.subnets.get_or_insert_mut(Subnet::narrow(from.ip()), || now);
        // The subnet first: what it is refused must not be taken from the rest.
        self.rates.subnet.take(paid, now) && self.rates.strangers.take(&mut self.strangers, now)
    }

    /// The address answered what only its owner could answer: it has a ration of its own from now on.
    pub fn prove(&mut self, now: Instant, addr: SocketAddr) {
        if !self.proven.promote(&addr) {
            self.proven.put(addr, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates = Rates {
        proven: Rate { burst: 5, per_second: 1 },
        subnet: Rate { burst: 4, per_second: 2 },
        strangers: Rate { burst: 10, per_second: 10 },
    };

    fn admitted(limits: &mut Limits, now: Instant, from: &str) -> usize {
        let from = from.parse().unwrap();
        (0..100).filter(|_| limits.admit(now, from)).count()
    }

    #[test]
    fn every_ration_holds_and_comes_back() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Instant::now();
        let mut limits = Limits::new(RATES, now);
        limits.prove(now, "1.2.3.4:30303".parse().unwrap());
        for (from, count, why) in [
            ("1.2.3.5:30303", 4, "a stranger next to the proven address uses up the subnet"),
            ("1.2.3.6:1", 0, "which its neighbours feel"),
            ("1.2.3.4:30304", 0, "as does another port of the proven address"),
            ("1.2.3.4:30303", 5, "but not the address itself"),
            ("[2a00::1]:1", 4, "nor another subnet"),
            ("[2a00::ffff]:1", 0, "of 64 bits"),
            ("9.9.9.9:1", 2, "all strangers together had ten"),
            ("127.0.0.1:1", 100, "loopback is exempt"),
        ] {
            assert_eq!(admitted(&mut limits, now, from), count, "{from}: {why}");
        }
        let later = now + Duration::from_secs(1);
        assert_eq!(admitted(&mut limits, later, "1.2.3.5:30303"), 2);
        assert_eq!(admitted(&mut limits, later, "1.2.3.4:30303"), 1);
        // Proving again refills nothing.
        limits.prove(later, "1.2.3.4:30303".parse().unwrap());
        assert_eq!(admitted(&mut limits, later, "1.2.3.4:30303"), 0);
        let rested = now + Duration::from_secs(60);
        assert_eq!(admitted(&mut limits, rested, "1.2.3.4:30303"), 5, "never more than the burst");
    }

    #[test]
    fn memory_is_bounded() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Instant::now();
        let mut limits = Limits::new(Rates::default(), now);
        for n in 0..40_000_u32 {
            let addr = SocketAddr::new(std::net::IpAddr::from((n << 8).to_be_bytes()), 1);
            limits.admit(now, addr);
            limits.prove(now, addr);
        }
        assert_eq!((limits.subnets.len(), limits.proven.len()), (MAX_SUBNETS.get(), MAX_PROVEN.get()));
    }
}
