//! How many packets get as far as their hash and the recovery of their key, which is what costs (about 45 µs each).
//!
//! Before a packet is checked nothing about it is known but the address it claims. So there are two kinds of rations.
//! Packets from addresses that have proved themselves take from a ration of their own, from that of their network, and
//! from one for all proven addresses ([`ProvenRations`]). All others take from that of their subnet (IPv4 /24, IPv6
//! /64), so that one network cannot use up the share of the rest. They also take from one for all strangers together, so
//! that many networks cannot use up the processor. A sender with forged addresses spoils the ration of strangers, and no
//! ration of known nodes.
//!
//! Answers take from none of these: a PONG or ENRResponse must name the hash of an open request of ours, which only its
//! recipient has seen, and NEIGHBORS are taken only while a FINDNODE to that address is open. Their number per request
//! is bounded instead (see `conversation`).

use std::{net::SocketAddr, num::NonZeroUsize, time::Instant};

use crate::node::{
    AddressClass,
    ration::{ProvenRates, ProvenRations, Rate, SubnetRations},
};

/// How many subnets are remembered, about 1.5 MB.
const MAX_SUBNETS: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();
/// How many proven addresses are remembered. Who is forgotten counts as a stranger until the next proof.
const MAX_PROVEN: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();

/// The rations. A public bootnode hears several thousand strangers per second.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Of proven addresses.
    pub proven: ProvenRates,
    /// Of each subnet of strangers.
    pub subnet: Rate,
    /// Of all strangers together: about a fifth of a core.
    pub strangers: Rate,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            proven: ProvenRates::default(),
            subnet: Rate { burst: 64, per_second: 16 },
            strangers: Rate { burst: 8_000, per_second: 4_000 },
        }
    }
}

/// Who may still send.
#[derive(Debug)]
pub struct Limits {
    proven: ProvenRations,
    strangers: SubnetRations,
}

impl Limits {
    /// Full rations.
    #[must_use]
    pub fn new(rates: Rates) -> Self {
        Self {
            proven: ProvenRations::new(rates.proven, MAX_PROVEN),
            strangers: SubnetRations::new(rates.subnet, rates.strangers, MAX_SUBNETS),
        }
    }

    /// Whether a packet from `from` may be checked. Loopback always may: this machine is not a stranger, and test
    /// networks run on it. `in_table`: whether a node of the table is at that address.
    pub fn admit(&mut self, now: Instant, from: SocketAddr, in_table: impl FnOnce() -> bool) -> bool {
        if AddressClass::of(from.ip()) == AddressClass::Loopback {
            return true;
        }
        let proven = self.proven.take(now, from, 1, in_table);
        proven.unwrap_or_else(|| self.strangers.take(now, from.ip(), false))
    }

    /// The address gave an answer that only its owner can give: it has a ration of its own from now on.
    pub fn prove(&mut self, addr: SocketAddr) {
        self.proven.prove(addr);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const RATES: Rates = Rates {
        proven: ProvenRates {
            each: Rate { burst: 5, per_second: 1 },
            subnet: Rate { burst: 9, per_second: 9 },
            all: Rate { burst: 9, per_second: 9 },
        },
        subnet: Rate { burst: 4, per_second: 2 },
        strangers: Rate { burst: 10, per_second: 10 },
    };

    fn admitted(limits: &mut Limits, now: Instant, from: &str) -> usize {
        let from = from.parse().unwrap();
        (0..100).filter(|_| limits.admit(now, from, || false)).count()
    }

    #[test]
    fn every_ration_holds_and_comes_back() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Instant::now();
        let mut limits = Limits::new(RATES);
        limits.prove("1.2.3.4:30303".parse().unwrap());
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
        limits.prove("1.2.3.4:30303".parse().unwrap());
        assert_eq!(admitted(&mut limits, later, "1.2.3.4:30303"), 0);
        let rested = now + Duration::from_secs(60);
        assert_eq!(admitted(&mut limits, rested, "1.2.3.4:30303"), 5, "never more than the burst");
    }

    #[test]
    fn memory_is_bounded() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Instant::now();
        let mut limits = Limits::new(Rates::default());
        for n in 0..40_000_u32 {
            let addr = SocketAddr::new(std::net::IpAddr::from((n << 8).to_be_bytes()), 1);
            limits.admit(now, addr, || false);
            limits.prove(addr);
        }
        assert_eq!(limits.proven.len(), MAX_PROVEN.get());
    }
}
