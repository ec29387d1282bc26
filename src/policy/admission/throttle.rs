//! How often one address may connect: once per window (30 s).
//!
//! A refused try does not extend the window, so that a client that retries gets in when its time has come. IPv6
//! counts by /64, since one line has all of it. The table is bounded; when strangers from very many addresses fill
//! it, the oldest are forgotten, and what protects us then are the limits on handshakes.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use super::super::expiring::ExpiringMap;
use crate::node::endpoint::canonical;

/// Addresses remembered: 270 a second from distinct addresses before any is forgotten early; below 2 MiB.
const MAX_ADDRESSES: usize = 8192;

/// Who connected lately.
#[derive(Debug)]
pub(super) struct Throttle(ExpiringMap<IpAddr, ()>);

impl Throttle {
    pub(super) fn new() -> Self {
        Self(ExpiringMap::new(MAX_ADDRESSES))
    }

    /// Whether `ip` may connect; if so, it may not again for `window`.
    pub(super) fn pass(&mut self, now: Instant, window: Duration, ip: IpAddr) -> bool {
        let key = match canonical(ip) {
            IpAddr::V4(ip) => IpAddr::V4(ip),
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        };
        if window.is_zero() {
            return true;
        }
        if self.0.get(now, &key).is_some() {
            return false;
        }
        self.0.insert(now, key, now + window, ());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::test_now, *};

    #[test]
    fn one_connection_per_address_and_window() {
        let (start, window) = (test_now().mono, Duration::from_secs(30));
        let mut throttle = Throttle::new();
        // second, address, whether it passes
        let table = [
            (0, "8.8.8.8", true),
            (0, "8.8.8.9", true),
            (1, "8.8.8.8", false),
            (2, "::ffff:8.8.8.8", false),
            (29, "8.8.8.8", false),
            (30, "8.8.8.8", true),
            (30, "2001:4860::1", true),
            (31, "2001:4860::ffff:1", false),
            (31, "2001:4860:0:1::1", true),
        ];
        for (secs, ip, expected) in table {
            let now = start + Duration::from_secs(secs);
            assert_eq!(throttle.pass(now, window, ip.parse().unwrap()), expected, "{ip} at {secs} s");
        }
        let last = start + Duration::from_secs(31);
        assert!(throttle.pass(last, Duration::ZERO, "2001:4860:0:1::1".parse().unwrap()), "switched off");
        assert!((0..9).all(|_| throttle.pass(start, Duration::ZERO, "9.9.9.9".parse().unwrap())));
    }
}
