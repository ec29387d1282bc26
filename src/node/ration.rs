//! The work that a source of packets may cause: a rate with bursts, for one source, or for each subnet and all
//! together.
//!
//! Both discovery protocols do work for packets of strangers: discv4 recovers a key from each packet, discv5 finishes a
//! handshake for each challenge that it sends. A ration per subnet (IPv4 /24, IPv6 /64) prevents one network from using
//! up the share of the others. A ration for all subnets prevents many networks together from using up the processor.
//! GCRA (ITU-T I.371) keeps the rate: it is the token bucket that stores one instant instead of a level and a time.
//!
//! Left out: byte rates, where one message may exceed the rest of the bucket (`policy::token_bucket`), and which
//! packets take from a ration (the engines).

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use lru::LruCache;

use super::endpoint::Subnet;

/// A rate with bursts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many may be taken at once; zero allows nothing.
    pub burst: u32,
    /// How many may be taken per second after that.
    pub per_second: u32,
}

impl Rate {
    /// `n` at once and `n` per second. Zero allows nothing.
    #[must_use]
    pub const fn per_second(n: u32) -> Self {
        Self { burst: n, per_second: n }
    }
}

/// The used part of one source's rate, as the time at which the full ration is available again. The default is a full
/// ration.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ration(Option<Instant>);

impl Ration {
    /// Takes one, if `rate` allows it.
    pub fn take(&mut self, rate: Rate, now: Instant) -> bool {
        self.take_several(rate, now, 1)
    }

    /// Takes `count` at once, if `rate` allows all of them.
    pub fn take_several(&mut self, rate: Rate, now: Instant, count: u32) -> bool {
        let interval = Duration::from_secs(1) / rate.per_second.max(1);
        let used = self.0.map_or(Duration::ZERO, |paid| paid.saturating_duration_since(now));
        let next = used + interval * count;
        let allowed = rate.burst > 0 && next <= interval * rate.burst;
        if allowed {
            self.0 = Some(now + next);
        }
        allowed
    }
}

/// A ration for each subnet, and one for all subnets together.
#[derive(Debug)]
pub struct SubnetRations {
    per_subnet: Rate,
    in_all: Rate,
    /// The least recently seen subnet is dropped when the map is full. It then starts with a full ration; the ration
    /// for all still holds.
    subnets: LruCache<Subnet, Ration>,
    all: Ration,
}

impl SubnetRations {
    /// Full rations of these rates; at most `capacity` subnets (about 100 bytes each) are remembered.
    #[must_use]
    pub fn new(per_subnet: Rate, in_all: Rate, capacity: NonZeroUsize) -> Self {
        Self { per_subnet, in_all, subnets: LruCache::sparse(capacity), all: Ration::default() }
    }

    /// Takes one for `ip`, if its subnet (unless `exempt`) and all together have some left.
    pub fn take(&mut self, now: Instant, ip: IpAddr, exempt: bool) -> bool {
        self.take_several(now, ip, exempt, 1)
    }

    fn take_several(&mut self, now: Instant, ip: IpAddr, exempt: bool, count: u32) -> bool {
        // The subnet is checked first: a packet that its ration refuses must not take from the ration for all.
        if !exempt {
            let ration = self.subnets.get_or_insert_mut(Subnet::narrow(ip), Ration::default);
            if !ration.take_several(self.per_subnet, now, count) {
                return false;
            }
        }
        self.all.take_several(self.in_all, now, count)
    }
}

/// The rates of [`ProvenRations`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProvenRates {
    /// Of each address.
    pub each: Rate,
    /// Of each subnet.
    pub subnet: Rate,
    /// Of all addresses together.
    pub all: Rate,
}

impl Default for ProvenRates {
    /// An honest node sends some packets per second at its busiest. One host proves as many ports as it likes, so its
    /// network has a ration, too. All together: the signatures of 4,000 packets cost about a fifth of a core.
    fn default() -> Self {
        Self {
            each: Rate { burst: 128, per_second: 32 },
            subnet: Rate { burst: 256, per_second: 64 },
            all: Rate { burst: 8_000, per_second: 4_000 },
        }
    }
}

/// The rations of addresses that have proved themselves: one for each address, one for each subnet, and one for all.
///
/// Nodes of the table do not depend on the last two: other nodes must not use up what they need.
#[derive(Debug)]
pub struct ProvenRations {
    rates: ProvenRates,
    /// The least recently proven address is dropped when the map is full.
    addrs: LruCache<SocketAddr, Ration>,
    networks: SubnetRations,
}

impl ProvenRations {
    /// Full rations for no address yet; at most `capacity` addresses, and as many subnets, are remembered.
    #[must_use]
    pub fn new(rates: ProvenRates, capacity: NonZeroUsize) -> Self {
        Self {
            rates,
            addrs: LruCache::sparse(capacity),
            networks: SubnetRations::new(rates.subnet, rates.all, capacity),
        }
    }

    /// The address proved itself. Proving again refills nothing.
    pub fn prove(&mut self, addr: SocketAddr) {
        if !self.addrs.promote(&addr) {
            self.addrs.put(addr, Ration::default());
        }
    }

    /// Takes `count` for `addr`. `None` if the address has not proved itself. `in_table`: whether a node of the table is
    /// at that address; it is asked only when the ration of the subnet or of all is used up.
    pub fn take(
        &mut self,
        now: Instant,
        addr: SocketAddr,
        count: u32,
        in_table: impl FnOnce() -> bool,
    ) -> Option<bool> {
        let each = self.addrs.get_mut(&addr)?.take_several(self.rates.each, now, count);
        Some(each && (self.networks.take_several(now, addr.ip(), false, count) || in_table()))
    }

    /// How many addresses are remembered.
    #[must_use]
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.addrs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: NonZeroUsize = NonZeroUsize::new(64).unwrap();

    #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_subnet_gets_its_share_and_no_more() {
        let now = start();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut rations = SubnetRations::new(Rate::per_second(4), Rate::per_second(10), CAPACITY);
        let taken = |rations: &mut SubnetRations, now, text: &str, exempt| {
            (0..100).filter(|_| rations.take(now, ip(text), exempt)).count()
        };
        assert_eq!(taken(&mut rations, now, "1.2.3.4", false), 4);
        assert_eq!(taken(&mut rations, now, "1.2.3.9", false), 0, "same /24");
        assert_eq!(taken(&mut rations, now, "2a00::1", false), 4);
        assert_eq!(taken(&mut rations, now, "2a00::ffff:1", false), 0, "same /64");
        assert_eq!(taken(&mut rations, now, "127.0.0.1", true), 2, "what is left for all");
        let later = now + Duration::from_millis(250);
        assert_eq!(taken(&mut rations, later, "1.2.3.4", false), 1, "a quarter of a second and of the rate");
        let much_later = now + Duration::from_secs(9);
        assert_eq!(taken(&mut rations, much_later, "1.2.3.4", false), 4, "never more than the burst");
        let mut nothing = SubnetRations::new(Rate::per_second(0), Rate::per_second(1), CAPACITY);
        assert_eq!(taken(&mut nothing, now, "1.2.3.4", false), 0);
    }

    #[test]
    fn burst_and_rate_are_separate() {
        let now = start();
        let rate = Rate { burst: 5, per_second: 1 };
        let mut ration = Ration::default();
        let mut taken = |at| (0..100).filter(|_| ration.take(rate, at)).count();
        assert_eq!(taken(now), 5);
        assert_eq!(taken(now + Duration::from_millis(999)), 0);
        assert_eq!(taken(now + Duration::from_secs(1)), 1);
        assert_eq!(taken(now + Duration::from_secs(60)), 5);
        assert_eq!(taken(now), 0, "a clock that stands still gives nothing");
    }

    #[test]
    fn a_host_with_many_proven_ports_has_the_ration_of_its_network() {
        let now = start();
        let rates = ProvenRates {
            each: Rate { burst: 8, per_second: 1 },
            subnet: Rate { burst: 20, per_second: 2 },
            all: Rate { burst: 50, per_second: 4 },
        };
        let mut rations = ProvenRations::new(rates, CAPACITY);
        let addr = |host: u8, port: u16| SocketAddr::from(([1, 2, host, 4], port));
        let mut taken = |addr: SocketAddr, count: u32, in_table: bool| {
            rations.prove(addr);
            (0..100).filter(|_| rations.take(now, addr, count, || in_table) == Some(true)).count()
        };
        let ports: Vec<_> = (1..5).map(|port| taken(addr(3, port), 1, false)).collect();
        assert_eq!(ports, [8, 8, 4, 0], "a network");
        assert_eq!(taken(addr(3, 9), 1, true), 8, "a node of the table");
        assert_eq!(taken(addr(5, 1), 4, false), 2, "each request takes four");
        let others: usize = (6..20).map(|host| taken(addr(host, 1), 1, false)).sum();
        assert_eq!(others, 50 - 20 - 8, "all together");
        assert_eq!(rations.take(now, addr(99, 1), 1, || true), None, "not proven");
    }

    #[test]
    fn memory_is_bounded() {
        let now = start();
        let mut rations = SubnetRations::new(Rate::per_second(4), Rate::per_second(1000), CAPACITY);
        for index in 0..1_000_u32 {
            rations.take(now, IpAddr::from((index << 8).to_be_bytes()), false);
        }
        assert_eq!(rations.subnets.len(), CAPACITY.get());
    }
}
