//! The addresses to which discovery may write, and which it may learn from other nodes: one rule for both protocols and
//! their driver.
//!
//! Three inputs decide. First, the operator may restrict us to some networks (`--netrestrict`). Second, the address
//! that we announce: a host on the Internet does not send into private ranges, because its provider would take that for
//! a scan. Third, the relay rule, which says which addresses we accept from another node ([`may_relay`]).
//!
//! Left out: the addresses that the dialer may connect to (`policy::rules`), which also has bans and lists.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{
    Record,
    endpoint::{AddressClass, canonical, may_relay},
};

/// The lowest UDP port that we accept in an address from another node (geth: 1025). Lower ports belong to other
/// services, and discovery must not be aimed at them.
const LOWEST_PORT: u16 = 1025;

/// The rule, for our own address and restrictions.
#[derive(Clone, Debug)]
pub struct Reach {
    /// The only networks that we exchange packets with; empty means all.
    restrict: Vec<IpNet>,
    /// The address that our record announces.
    own: Option<IpAddr>,
}

impl Reach {
    /// The rule of a node with this record and these restrictions; an empty list means none.
    #[must_use]
    pub fn new(restrict: Vec<IpNet>, record: &Record) -> Self {
        let mut reach = Self { restrict, own: None };
        reach.set_local_record(record);
        reach
    }

    /// Our record has changed: uses its address from now on.
    pub fn set_local_record(&mut self, record: &Record) {
        self.own = record.endpoint().map(|endpoint| endpoint.ip);
    }

    /// Whether the operator allows packets to and from `ip` at all.
    #[must_use]
    pub fn allows(&self, ip: IpAddr) -> bool {
        let ip = canonical(ip);
        self.restrict.is_empty() || self.restrict.iter().any(|net| net.contains(&ip))
    }

    /// Whether our announced address is private: then other private addresses may be our neighbours. Loopback is
    /// announced while no address is known, so it counts as not private.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.own.is_some_and(|ip| is_private(AddressClass::of(ip)))
    }

    /// Whether a packet to `ip` can arrive: a public address has no route into private ranges. Loopback always has a
    /// route, and no stranger can send us a loopback address.
    #[must_use]
    pub fn carries(&self, ip: IpAddr) -> bool {
        !self.is_global() || !is_private(AddressClass::of(ip))
    }

    /// Whether we may send a request to a node at `ip` on our own initiative.
    #[must_use]
    pub fn may_ask(&self, ip: IpAddr) -> bool {
        self.carries(ip) && AddressClass::of(ip) != AddressClass::Special && self.allows(ip)
    }

    /// Whether we accept from a node at `teller` that there is a node at `addr`.
    #[must_use]
    pub fn may_accept(&self, teller: IpAddr, addr: SocketAddr) -> bool {
        // Behind an address translation strangers seem to be neighbours. They must not send us to private addresses
        // while we are on the Internet ourselves.
        let carried = !self.is_global() || AddressClass::of(addr.ip()) == AddressClass::Global;
        addr.port() >= LOWEST_PORT && carried && may_relay(teller, addr.ip()) && self.allows(addr.ip())
    }

    fn is_global(&self) -> bool {
        self.own.is_some_and(|ip| AddressClass::of(ip) == AddressClass::Global)
    }
}

fn is_private(class: AddressClass) -> bool {
    matches!(class, AddressClass::Private | AddressClass::LinkLocal)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::node::{NodeKey, RecordBuilder};

    fn at(own: &str, restrict: &[&str]) -> Reach {
        let mut builder = RecordBuilder::new(1);
        if !own.is_empty() {
            builder.ip(own.parse().unwrap()).port("udp", 30303);
        }
        let record = builder.sign(&NodeKey::random(&mut StdRng::seed_from_u64(1))).unwrap();
        Reach::new(restrict.iter().map(|net| net.parse().unwrap()).collect(), &record)
    }

    #[test]
    fn nothing_goes_to_private_ranges_from_a_public_address() {
        let (global, private, loopback, none) = ("9.9.9.9", "192.168.0.9", "127.0.0.1", "");
        // Our address, the other address, whether a packet can arrive, and whether we may ask.
        let table = [
            (global, "192.168.1.1", false, false),
            (global, "10.0.0.1", false, false),
            (global, "169.254.1.1", false, false),
            (global, "fd00::1", false, false),
            (global, "fe80::1", false, false),
            (global, "8.8.8.8", true, true),
            (global, "2a00::1", true, true),
            // Bootnodes of a test network on the same machine.
            (global, "127.0.0.1", true, true),
            (global, "198.18.0.1", true, false),
            (private, "192.168.1.1", true, true),
            (loopback, "192.168.1.1", true, true),
            (none, "192.168.1.1", true, true),
            (none, "0.0.0.0", true, false),
        ];
        for (own, ip, carried, asked) in table {
            let (reach, ip) = (at(own, &[]), ip.parse().unwrap());
            assert_eq!((reach.carries(ip), reach.may_ask(ip)), (carried, asked), "{own:?} to {ip}");
        }
        assert!(at(private, &[]).is_private());
        assert!(
            !at(loopback, &[]).is_private() && !at(global, &[]).is_private() && !at(none, &[]).is_private()
        );
    }

    #[test]
    fn restrictions_hold_for_mapped_addresses_too() {
        let reach = at("9.9.9.9", &["8.8.0.0/16", "2a00::/32"]);
        for (ip, allowed) in [
            ("8.8.1.1", true),
            ("::ffff:8.8.1.1", true),
            ("8.9.1.1", false),
            ("2a00::1", true),
            ("::1", false),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!((reach.allows(ip), reach.may_ask(ip)), (allowed, allowed), "{ip}");
            assert_eq!(reach.may_accept(ip, SocketAddr::new(ip, 30303)), allowed, "{ip}");
        }
    }

    #[test]
    fn tellers_send_us_where_they_may_and_no_further() {
        let (global, private) = ("9.9.9.9", "192.168.0.9");
        // Our address, the sender, the address it sends, and whether we accept it.
        let table = [
            (global, "8.8.8.8", "7.7.7.7:30303", true),
            (global, "8.8.8.8", "7.7.7.7:1024", false),
            (global, "8.8.8.8", "7.7.7.7:1025", true),
            (global, "8.8.8.8", "192.168.1.1:30303", false),
            // An address translation in front of us makes strangers look like this.
            (global, "172.17.0.1", "172.17.0.2:30303", false),
            (global, "172.17.0.1", "8.8.2.1:30303", true),
            (global, "127.0.0.1", "127.0.0.1:30303", false),
            (private, "192.168.1.1", "192.168.1.2:30303", true),
            (private, "8.8.8.8", "192.168.1.2:30303", false),
            (private, "127.0.0.1", "127.0.0.1:30303", true),
            (private, "8.8.8.8", "127.0.0.1:30303", false),
            ("", "8.8.8.8", "198.18.0.1:30303", false),
        ];
        for (own, teller, addr, believed) in table {
            let reach = at(own, &[]);
            assert_eq!(
                reach.may_accept(teller.parse().unwrap(), addr.parse().unwrap()),
                believed,
                "{own}: {teller} tells of {addr}"
            );
        }
    }
}
