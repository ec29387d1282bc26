//! How many table nodes share a subnet, so that one network cannot fill the table.
//!
//! The limits are geth's, 2 per bucket and 10 per table, by IPv4 /24 and IPv6 /48. A /64 lies within one /48, so its
//! limit is the same one. Loopback is exempt: tests and private networks run many nodes on one machine. Private
//! ranges are exempt only while our own announced address is private: behind a cluster's address translation every
//! stranger looks like a neighbour.

use std::{collections::HashMap, net::IpAddr};

use crate::node::{AddressClass, endpoint::Subnet};

/// The most nodes of one subnet in a bucket, replacements included.
pub const MAX_PER_BUCKET: usize = 2;
/// The most nodes of one subnet in the table, replacements included.
pub const MAX_PER_TABLE: usize = 10;

/// Whether an address is free of limits per subnet.
#[must_use]
pub fn is_exempt(ip: IpAddr, we_are_private: bool) -> bool {
    match AddressClass::of(ip) {
        AddressClass::Loopback => true,
        AddressClass::LinkLocal | AddressClass::Private => we_are_private,
        AddressClass::Special | AddressClass::Global => false,
    }
}

/// Counts per subnet. Exempt addresses are counted too, so that the exemption can be withdrawn at any time.
#[derive(Debug, Default)]
pub struct SubnetCounts(HashMap<Subnet, usize>);

impl SubnetCounts {
    /// How many counted addresses share the subnet of `ip`.
    #[must_use]
    pub fn count(&self, ip: IpAddr) -> usize {
        self.0.get(&Subnet::wide(ip)).copied().unwrap_or(0)
    }

    pub(super) fn add(&mut self, ip: IpAddr) {
        *self.0.entry(Subnet::wide(ip)).or_default() += 1;
    }

    pub(super) fn remove(&mut self, ip: IpAddr) {
        let subnet = Subnet::wide(ip);
        match self.0.get_mut(&subnet) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) => drop(self.0.remove(&subnet)),
            None => debug_assert!(false, "an address was counted off that was never counted"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_ranges_are_exempt_only_for_private_nodes() {
        let table = [
            ("127.0.0.1", false, true),
            ("::1", false, true),
            ("10.0.0.1", false, false),
            ("10.0.0.1", true, true),
            ("fd00::1", true, true),
            ("169.254.1.1", true, true),
            ("8.8.8.8", true, false),
            ("2a00::1", true, false),
        ];
        for (ip, private, exempt) in table {
            assert_eq!(is_exempt(ip.parse().unwrap(), private), exempt, "{ip} {private}");
        }
    }

    #[test]
    fn counts_follow_subnets_and_leave_nothing_behind() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut counts = SubnetCounts::default();
        counts.add(ip("1.2.3.4"));
        counts.add(ip("1.2.3.200"));
        counts.add(ip("::ffff:1.2.3.9"));
        counts.add(ip("2a00:1:2:3::1"));
        counts.add(ip("2a00:1:2:4::1"));
        assert_eq!(counts.count(ip("1.2.3.77")), 3);
        assert_eq!(counts.count(ip("1.2.4.77")), 0);
        assert_eq!(counts.count(ip("2a00:1:2:ffff::")), 2);
        assert_eq!(counts.count(ip("2a00:1:3::")), 0);
        for text in ["1.2.3.4", "1.2.3.200", "1.2.3.9", "2a00:1:2:3::1", "2a00:1:2:4::1"] {
            counts.remove(ip(text));
        }
        assert!(counts.0.is_empty());
    }
}
