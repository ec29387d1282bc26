//! The address of a node: IP address with UDP and TCP ports, and the class of that address.
//!
//! The class decides which nodes may learn an address, by the relay rule: a LAN address is never sent to the Internet,
//! and a loopback address never leaves the machine. It also decides which of two addresses of a record is preferred.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An IP address with the ports of discovery (UDP) and RLPx (TCP). A port of 0 means there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address; IPv4-mapped IPv6 is stored as IPv4 (see [`canonical`]).
    pub ip: IpAddr,
    /// The discovery port.
    pub udp: u16,
    /// The RLPx port.
    pub tcp: u16,
}

impl Endpoint {
    /// The socket address of discovery, if there is a port.
    #[must_use]
    pub fn udp_addr(&self) -> Option<SocketAddr> {
        (self.udp != 0).then(|| SocketAddr::new(self.ip, self.udp))
    }

    /// The socket address of RLPx, if there is a port.
    #[must_use]
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        (self.tcp != 0).then(|| SocketAddr::new(self.ip, self.tcp))
    }
}

/// Returns an IPv4-mapped IPv6 address as its IPv4 address, and all others unchanged.
#[must_use]
pub fn canonical(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
    }
}

/// Whether a connection to `ip` can reach one node: not if it is unspecified (`0.0.0.0`, `::`), multicast or broadcast.
#[must_use]
pub fn is_unicast(ip: IpAddr) -> bool {
    let ip = canonical(ip);
    !(ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST))
}

/// The reach of an address, from the narrowest to the widest. The order is the order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AddressClass {
    /// Unspecified, multicast, documentation, reserved: not the address of a node.
    Special,
    /// This machine.
    Loopback,
    /// This link (169.254/16, fe80::/10).
    LinkLocal,
    /// A private network (RFC 1918, RFC 6598 carrier NAT, fc00::/7).
    Private,
    /// The Internet.
    Global,
}

impl AddressClass {
    /// The class of the address that a record announces; loopback while it announces none.
    #[must_use]
    pub fn announced(record: &super::Record) -> Self {
        record.endpoint().map_or(Self::Loopback, |endpoint| Self::of(endpoint.ip))
    }

    /// The class of `ip` by the IANA special-purpose registries.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        match canonical(ip) {
            IpAddr::V4(ip) => of_v4(ip),
            IpAddr::V6(ip) => of_v6(ip),
        }
    }

    /// Whether the address is on a local network (private, link-local or loopback), as geth's `IsLAN`.
    #[must_use]
    pub fn is_lan(self) -> bool {
        matches!(self, Self::Loopback | Self::LinkLocal | Self::Private)
    }
}

fn of_v4(ip: Ipv4Addr) -> AddressClass {
    let [a, b, c, _] = ip.octets();
    match (a, b, c) {
        (127, ..) => AddressClass::Loopback,
        (169, 254, _) => AddressClass::LinkLocal,
        (10, ..) | (172, 16..=31, _) | (192, 168, _) | (100, 64..=127, _) => AddressClass::Private,
        // "This network"; protocol assignments, documentation, 6to4 relays, AS112, benchmarking; multicast, reserved.
        (0 | 224..=255, ..)
        | (192, 0, 0 | 2)
        | (192, 88, 99)
        | (192, 31, 196)
        | (192, 52, 193)
        | (192, 175, 48)
        | (198, 18 | 19, _)
        | (198, 51, 100)
        | (203, 0, 113) => AddressClass::Special,
        _ => AddressClass::Global,
    }
}

fn of_v6(ip: Ipv6Addr) -> AddressClass {
    if ip.is_loopback() {
        return AddressClass::Loopback;
    }
    match ip.segments() {
        [0xfe80..=0xfebf, ..] => AddressClass::LinkLocal,
        [0xfc00..=0xfdff, ..] => AddressClass::Private,
        // Unspecified and IPv4-compatible; discard-only; protocol assignments and Teredo; ORCHIDv2; documentation;
        // 6to4 (deprecated); multicast.
        [0, 0, 0, 0, 0, 0, ..]
        | [0x0100, 0, 0, 0, ..]
        | [0x2001, 0x0000..=0x01ff, ..]
        | [0x2001, 0x0db8, ..]
        | [0x3fff, 0x0000..=0x0fff, ..]
        | [0x2002, ..]
        | [0xff00..=0xffff, ..] => AddressClass::Special,
        _ => AddressClass::Global,
    }
}

/// Whether a node seen at `teller` may send us the address `addr` (or get it from us): the relay rule of geth's
/// `netutil.CheckRelayAddr`. Only loopback may send loopback, only LAN may send LAN, and no node may send special
/// addresses.
#[must_use]
pub fn may_relay(teller: IpAddr, addr: IpAddr) -> bool {
    let (teller, addr) = (AddressClass::of(teller), AddressClass::of(addr));
    match addr {
        AddressClass::Special => false,
        AddressClass::Loopback => teller == AddressClass::Loopback,
        AddressClass::LinkLocal | AddressClass::Private => teller.is_lan(),
        AddressClass::Global => true,
    }
}

/// The network of an address, where strangers are limited per subnet: IPv4 /24, IPv6 /64 or /48.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subnet {
    /// 24 bits of an IPv4 address.
    V4([u8; 3]),
    /// 64 bits of an IPv6 address: the smallest network of one customer's line.
    V6Net64([u8; 8]),
    /// 48 bits of an IPv6 address: the network of one site.
    V6Net48([u8; 6]),
}

impl Subnet {
    /// The narrow network of `ip`: IPv4 /24 or IPv6 /64.
    #[must_use]
    pub fn narrow(ip: IpAddr) -> Self {
        match canonical(ip) {
            IpAddr::V4(ip) => {
                let [a, b, c, _] = ip.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h, ..] = ip.octets();
                Self::V6Net64([a, b, c, d, e, f, g, h])
            }
        }
    }

    /// The wide network of `ip`: IPv4 /24 or IPv6 /48.
    #[must_use]
    pub fn wide(ip: IpAddr) -> Self {
        match canonical(ip) {
            IpAddr::V4(_) => Self::narrow(ip),
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, ..] = ip.octets();
                Self::V6Net48([a, b, c, d, e, f])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_follow_the_registries() {
        let table = [
            ("8.8.8.8", AddressClass::Global),
            ("127.0.0.2", AddressClass::Loopback),
            ("10.1.2.3", AddressClass::Private),
            ("172.31.0.1", AddressClass::Private),
            ("172.32.0.1", AddressClass::Global),
            ("100.64.0.1", AddressClass::Private),
            ("169.254.0.1", AddressClass::LinkLocal),
            ("0.0.0.0", AddressClass::Special),
            ("192.0.2.1", AddressClass::Special),
            ("224.0.0.1", AddressClass::Special),
            ("255.255.255.255", AddressClass::Special),
            ("::", AddressClass::Special),
            ("::1", AddressClass::Loopback),
            ("::ffff:10.0.0.1", AddressClass::Private),
            ("fe80::1", AddressClass::LinkLocal),
            ("fd00::1", AddressClass::Private),
            ("2001:db8::1", AddressClass::Special),
            ("2a00:1450::1", AddressClass::Global),
            ("ff02::1", AddressClass::Special),
        ];
        for (ip, class) in table {
            assert_eq!(AddressClass::of(ip.parse().unwrap()), class, "{ip}");
        }
    }

    #[test]
    fn relay_rule() {
        // teller, addr, allowed: the cases of geth's p2p/netutil/net_test.go.
        let table = [
            ("127.0.0.1", "0.0.0.0", false),
            ("192.168.0.1", "0.0.0.0", false),
            ("23.55.1.242", "0.0.0.0", false),
            ("127.0.0.1", "255.255.255.255", false),
            ("127.0.0.1", "127.0.2.19", true),
            ("192.168.0.1", "127.0.2.19", false),
            ("23.55.1.242", "127.0.2.19", false),
            ("127.0.0.1", "192.168.0.1", true),
            ("192.168.0.1", "192.168.0.2", true),
            ("23.55.1.242", "192.168.0.1", false),
            ("127.0.0.1", "23.55.1.242", true),
        ];
        for (teller, addr, allowed) in table {
            assert_eq!(may_relay(teller.parse().unwrap(), addr.parse().unwrap()), allowed, "{teller} {addr}");
        }
    }
}
