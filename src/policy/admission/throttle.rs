//! How often one address may connect: once per window (30 s).
//!
//! A refused try does not extend the window, so that a client that retries gets in when its time has come. IPv6
//! counts by /64, since one line has all of it; and a /48, which one site has with its 65,536 lines, gets
//! [`SITE_BURST`] connections per window. The tables are bounded; when strangers from very many networks fill
//! them, the oldest entries are forgotten, and what protects us then are the limits on handshakes.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use super::super::expiring::ExpiringMap;
use crate::node::endpoint::{Subnet, canonical};

/// Addresses remembered: 270 a second from distinct addresses before any is forgotten early; below 2 MiB.
const MAX_ADDRESSES: usize = 8192;

/// Connections of one IPv6 /48 per window: above the peers that it may have (10), below what would matter to anybody.
const SITE_BURST: u32 = 16;

/// Who connected lately.
#[derive(Debug)]
pub(super) struct Throttle {
    addresses: ExpiringMap<IpAddr, ()>,
    /// When the window of an IPv6 /48 ends, and how many connections it had since it began.
    sites: ExpiringMap<Subnet, (Instant, u32)>,
}

impl Throttle {
    pub(super) fn new() -> Self {
        Self { addresses: ExpiringMap::new(MAX_ADDRESSES), sites: ExpiringMap::new(MAX_ADDRESSES) }
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
        if self.addresses.get(now, &key).is_some() {
            return false;
        }
        if key.is_ipv6() {
            let site = Subnet::wide(key);
            let (end, count) = self.sites.get(now, &site).copied().unwrap_or((now + window, 0));
            if count >= SITE_BURST {
                return false;
            }
            self.sites.insert(now, site, end, (end, count + 1));
        }
        self.addresses.insert(now, key, now + window, ());
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

    #[test]
    fn the_lines_of_one_site_have_a_burst_per_window_in_common() {
        let (start, window) = (test_now().mono, Duration::from_secs(30));
        let mut throttle = Throttle::new();
        let line = |site: u16, line: u16| IpAddr::from([0x2600, 0, site, line, 0, 0, 0, 1]);
        // A hundred lines a second, for ninety seconds.
        let mut passed = 0;
        for n in 0..9_000_u16 {
            let now = start + Duration::from_millis(u64::from(n) * 10);
            passed += u32::from(throttle.pass(now, window, line(1, n)));
        }
        assert_eq!(passed, 3 * SITE_BURST);
        // It pushed no other site out of the table, and another site is not affected.
        assert_eq!(throttle.addresses.evicted, 0);
        assert!(throttle.pass(start + window, window, line(2, 1)));
        assert!((0..99).all(|n| throttle.pass(start, Duration::ZERO, line(1, n))));
    }
}
