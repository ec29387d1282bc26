//! How many handshakes strangers may start, per subnet and in all.
//!
//! Finishing a handshake costs us elliptic-curve arithmetic (about 0.15 ms), and each one begins with a WHOAREYOU of
//! ours. So it is the making of challenges that is rationed: a rate per subnet (IPv4 /24, IPv6 /64), so that one
//! network cannot use up the rest's share, and a rate for all, so that many networks together cannot use up the
//! processor. The rates are kept by GCRA: one instant per subnet instead of counters and windows.

use std::{
    net::IpAddr,
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use lru::LruCache;

use crate::node::endpoint::Subnet;

/// How many subnets are remembered. Who is forgotten starts with a full ration; the rate for all holds nevertheless.
const MAX_SUBNETS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// A rate with bursts: up to `burst` at once, then one each `interval`.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    burst: u32,
    interval: Duration,
}

impl Rate {
    /// `n` at once and `n` per second. Zero allows nothing.
    #[must_use]
    pub fn per_second(n: u32) -> Self {
        Self { burst: n, interval: Duration::from_secs(1).checked_div(n).unwrap_or_default() }
    }

    /// Takes one from the ration that `until` stands for, if there is one left.
    fn take(self, until: &mut Option<Instant>, now: Instant) -> bool {
        let used = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let next = used + self.interval;
        let allowed = self.burst > 0 && next <= self.interval * self.burst;
        if allowed {
            *until = Some(now + next);
        }
        allowed
    }
}

/// A ration per subnet and one for all.
#[derive(Debug)]
pub struct Budget {
    per_subnet: Rate,
    in_all: Rate,
    subnets: LruCache<Subnet, Option<Instant>>,
    all: Option<Instant>,
}

impl Budget {
    /// A budget of these rates.
    #[must_use]
    pub fn new(per_subnet: Rate, in_all: Rate) -> Self {
        Self { per_subnet, in_all, subnets: LruCache::sparse(MAX_SUBNETS), all: None }
    }

    /// Takes one for `ip`, if its subnet (unless `exempt`) and all together have some left.
    pub fn take(&mut self, now: Instant, ip: IpAddr, exempt: bool) -> bool {
        // The subnet first: what it is refused must not be taken from the rest.
        if !exempt {
            let until = self.subnets.get_or_insert_mut(Subnet::narrow(ip), || None);
            if !self.per_subnet.take(until, now) {
                return false;
            }
        }
        self.in_all.take(&mut self.all, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_gets_its_share_and_no_more() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Instant::now();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut budget = Budget::new(Rate::per_second(4), Rate::per_second(10));
        let taken = |budget: &mut Budget, now, text: &str, exempt| {
            (0..100).filter(|_| budget.take(now, ip(text), exempt)).count()
        };
        assert_eq!(taken(&mut budget, now, "1.2.3.4", false), 4);
        assert_eq!(taken(&mut budget, now, "1.2.3.9", false), 0, "same /24");
        assert_eq!(taken(&mut budget, now, "2a00::1", false), 4);
        assert_eq!(taken(&mut budget, now, "2a00::ffff:1", false), 0, "same /64");
        assert_eq!(taken(&mut budget, now, "127.0.0.1", true), 2, "what is left for all");
        let later = now + Duration::from_millis(250);
        assert_eq!(
            taken(&mut budget, later, "1.2.3.4", false),
            1,
            "a quarter of a second, a quarter of the rate"
        );
        assert_eq!(
            taken(&mut budget, now + Duration::from_secs(9), "1.2.3.4", false),
            4,
            "never more than the burst"
        );
        assert_eq!(
            taken(&mut Budget::new(Rate::per_second(0), Rate::per_second(1)), now, "1.2.3.4", false),
            0
        );
    }

    #[test]
    fn memory_is_bounded() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Instant::now();
        let mut budget = Budget::new(Rate::per_second(4), Rate::per_second(1000));
        for index in 0..20_000_u32 {
            budget.take(now, IpAddr::from((index << 8).to_be_bytes()), false);
        }
        assert_eq!(budget.subnets.len(), MAX_SUBNETS.get());
    }
}
