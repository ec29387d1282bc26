//! The methods to find our outside address and to open our ports, as the operator writes them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use crate::node::endpoint::{canonical, is_unicast};

/// The port of STUN servers (RFC 8489).
const STUN_PORT: u16 = 3478;

/// The method to find our outside address and to open our ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NatMethod {
    /// No gateway is asked. The votes of other nodes give the address.
    None,
    /// UPnP or NAT-PMP: the first gateway that answers.
    Any,
    /// A UPnP gateway.
    Upnp,
    /// A NAT-PMP gateway at this address. `None`: the gateway of the default route.
    Pmp(Option<Ipv4Addr>),
    /// The operator gives the addresses, one or one of each family. The operator opens the ports.
    ExtIp(Vec<IpAddr>),
    /// A STUN server, by host and port, tells the address. `None`: one of the known servers. The operator opens the
    /// ports.
    Stun(Option<(String, u16)>),
}

/// A text that names no method.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NatMethodError {
    /// The text is none of the methods.
    #[error(
        "{0:?} is none of: any, none, upnp, pmp, pmp:IPv4, extip:IP, extip:IPv4,IPv6, stun, stun:HOST, stun:HOST:PORT"
    )]
    Form(String),
    /// The text after `extip:` is not a list of addresses.
    #[error(
        "{0:?} has no valid address after extip: (extip:IP or extip:IPv4,IPv6); write an IP address that others can \
         reach, or one of each family, for example extip:203.0.113.7,2001:db8::7"
    )]
    Addresses(String),
}

impl FromStr for NatMethod {
    type Err = NatMethodError;

    fn from_str(text: &str) -> Result<Self, NatMethodError> {
        let shown = || text.chars().take(80).collect();
        let error = || NatMethodError::Form(shown());
        let (kind, argument) = match text.split_once(':') {
            Some((kind, argument)) => (kind, Some(argument)),
            None => (text, None),
        };
        match (kind, argument) {
            ("none" | "off", None) => Ok(Self::None),
            ("any" | "auto" | "on", None) => Ok(Self::Any),
            ("upnp", None) => Ok(Self::Upnp),
            ("pmp" | "natpmp" | "nat-pmp", None) => Ok(Self::Pmp(None)),
            ("pmp" | "natpmp" | "nat-pmp", Some(ip)) => {
                ip.parse().map(|ip| Self::Pmp(Some(ip))).map_err(|_| error())
            }
            ("extip" | "ip", Some(list)) => {
                addresses(list).map(Self::ExtIp).ok_or_else(|| NatMethodError::Addresses(shown()))
            }
            ("stun", None) => Ok(Self::Stun(None)),
            ("stun", Some(server)) => {
                server_name(server).map(|server| Self::Stun(Some(server))).ok_or_else(error)
            }
            _ => Err(error()),
        }
    }
}

/// Reads one address, or one of each family with a comma between them. IPv6 may have brackets.
fn addresses(list: &str) -> Option<Vec<IpAddr>> {
    let address = |text: &str| {
        let text = text.trim();
        let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        let ip = match inner {
            Some(inner) => IpAddr::V6(inner.parse().ok()?),
            None => text.parse().ok()?,
        };
        Some(canonical(ip)).filter(|ip| is_unicast(*ip))
    };
    let parts = list.split(',').map(str::trim).filter(|part| !part.is_empty());
    let addresses: Vec<IpAddr> = parts.map(address).collect::<Option<_>>()?;
    match addresses.as_slice() {
        [_] => Some(addresses),
        [a, b] if a.is_ipv4() != b.is_ipv4() => Some(addresses),
        _ => None,
    }
}

/// Reads `host`, `host:port`, `[IPv6]` or `[IPv6]:port`. Digits that resolvers read as an octal or shortened IPv4
/// address are not a host.
fn server_name(text: &str) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => (host, Some(rest.strip_prefix(':')?)),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = port.map_or(Some(STUN_PORT), |port| port.parse().ok().filter(|port| *port != 0))?;
    let ends_in_number = |host: &str| {
        let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
        !last.is_empty() && (last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x"))
    };
    let plain = host.parse::<IpAddr>().is_ok() || !ends_in_number(host);
    (!host.is_empty() && !host.contains('/') && plain).then(|| (host.to_owned(), port))
}

impl fmt::Display for NatMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Any => f.write_str("any"),
            Self::Upnp => f.write_str("upnp"),
            Self::Pmp(None) => f.write_str("pmp"),
            Self::Pmp(Some(ip)) => write!(f, "pmp:{ip}"),
            Self::ExtIp(ips) => {
                let ips: Vec<String> = ips.iter().map(ToString::to_string).collect();
                write!(f, "extip:{}", ips.join(","))
            }
            Self::Stun(None) => f.write_str("stun"),
            Self::Stun(Some((host, port))) if host.contains(':') => write!(f, "stun:[{host}]:{port}"),
            Self::Stun(Some((host, port))) => write!(f, "stun:{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_as_they_are_written() {
        // The text that the operator writes, and the text that is printed.
        let table = [
            ("none", "none"),
            ("any", "any"),
            ("auto", "any"),
            ("upnp", "upnp"),
            ("pmp", "pmp"),
            ("natpmp", "pmp"),
            ("pmp:192.168.1.1", "pmp:192.168.1.1"),
            ("extip:1.2.3.4", "extip:1.2.3.4"),
            ("extip:2a00::1", "extip:2a00::1"),
            ("extip:[2a00::1]", "extip:2a00::1"),
            ("extip:1.2.3.4,2a00::1", "extip:1.2.3.4,2a00::1"),
            ("extip:1.2.3.4,", "extip:1.2.3.4"),
            ("extip:[2a00::1], 1.2.3.4", "extip:2a00::1,1.2.3.4"),
            ("stun", "stun"),
            ("stun:stun.example.org", "stun:stun.example.org:3478"),
            ("stun:stun.example.org:19302", "stun:stun.example.org:19302"),
            ("stun:1.2.3.4:5", "stun:1.2.3.4:5"),
            ("stun:[2a00::1]", "stun:[2a00::1]:3478"),
            ("stun:[2a00::1]:5", "stun:[2a00::1]:5"),
        ];
        for (written, printed) in table {
            let method: NatMethod = written.parse().unwrap();
            assert_eq!(method.to_string(), printed);
            assert_eq!(printed.parse(), Ok(method));
        }
        let bad = [
            "",
            "x",
            "upnp:1.2.3.4",
            "pmp:",
            "pmp:::1",
            "extip",
            "extip:",
            "extip:host",
            "extip:,",
            "extip:1.2.3.4,1.2.3.5",
            "extip:1.2.3.4,2a00::1,1.2.3.5",
            "extip:[1.2.3.4]",
            "extip:1.2.3.010",
            "extip:0.0.0.0",
            "extip:[::]",
            "extip:224.0.0.1",
            "stun:192.168.001.010",
            "stun:127.1",
            "stun:0x7f000001",
            "stun:",
            "stun::1",
            "stun:h:0",
            "stun:h:65536",
            "stun:http://h",
            "stun:[::1",
            "stun:[::1]x",
        ];
        for text in bad {
            let error = text.parse::<NatMethod>().unwrap_err().to_string();
            assert!(error.contains("extip:IP") && error.contains(&format!("{text:?}")), "{text}: {error}");
        }
    }
}
