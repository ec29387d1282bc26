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
    net::IpAddr,
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
        let interval = Duration::from_secs(1) / rate.per_second.max(1);
        let used = self.0.map_or(Duration::ZERO, |paid| paid.saturating_duration_since(now));
        let next = used + interval;
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
        // The subnet is checked first: a packet that its ration refuses must not take from the ration for all.
        if !exempt {
            let ration = self.subnets.get_or_insert_mut(Subnet::narrow(ip), Ration::default);
            if !ration.take(self.per_subnet, now) {
                return false;
            }
        }
        self.all.take(self.in_all, now)
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
    fn memory_is_bounded() {
        let now = start();
        let mut rations = SubnetRations::new(Rate::per_second(4), Rate::per_second(1000), CAPACITY);
        for index in 0..1_000_u32 {
            rations.take(now, IpAddr::from((index << 8).to_be_bytes()), false);
        }
        assert_eq!(rations.subnets.len(), CAPACITY.get());
    }
}
