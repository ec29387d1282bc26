//! enode URLs: `enode://<128 hex digits>@host:tcp-port?discport=udp-port`.
//!
//! The host is an address or a DNS name. A name is kept as written and resolved at each dial, never here: a node that
//! moves keeps its URL (go-ethereum#31208). A bare public key is a [`super::NodeRef`], not a URL.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use super::{Endpoint, NodeId, PublicKey, endpoint::canonical, key::KeyError};

/// Characters of a stranger's text that an error repeats: enough to recognise it, and fit for a log line even when
/// each of them is escaped.
const MAX_SHOWN: usize = 32;

/// The host part of an enode URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A DNS name, resolved at each dial.
    Name(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A node with an address, as people write it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Enode {
    /// Who it is.
    pub public_key: PublicKey,
    /// Where it is.
    pub host: Host,
    /// The RLPx port.
    pub tcp: u16,
    /// The discovery port; the RLPx port unless the URL says otherwise.
    pub udp: u16,
}

/// What is wrong with an enode URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnodeError {
    /// Not a URL, or of another scheme.
    #[error("an enode URL looks like enode://<128 hex digits>@<host>:<port>")]
    NotEnode,
    /// The part before `@` is no public key.
    #[error("the public key of the enode URL is wrong: {0}")]
    Key(#[from] KeyError),
    /// No host.
    #[error("the enode URL has no host after '@'")]
    NoHost,
    /// No TCP port, or 0.
    #[error("the enode URL has no TCP port after the host")]
    NoPort,
    /// `discport` is no port; what was given, cut to [`MAX_SHOWN`].
    #[error("discport={0:?} in the enode URL is not a port (0 to 65535)")]
    DiscPort(String),
    /// A password, path or fragment, or a query other than `discport`.
    #[error("the enode URL has {0}, which it must not have")]
    Superfluous(&'static str),
}

impl Enode {
    /// The node's id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.public_key.id()
    }

    /// The endpoint, unless the host is a name.
    #[must_use]
    pub fn endpoint(&self) -> Option<Endpoint> {
        match self.host {
            Host::Ip(ip) => Some(Endpoint { ip, udp: self.udp, tcp: self.tcp }),
            Host::Name(_) => None,
        }
    }

    /// The URL of a node of which only a TCP address is known.
    #[must_use]
    pub fn at(public_key: PublicKey, addr: SocketAddr) -> Self {
        Self { public_key, host: Host::Ip(canonical(addr.ip())), tcp: addr.port(), udp: addr.port() }
    }
}

impl FromStr for Enode {
    type Err = EnodeError;

    fn from_str(text: &str) -> Result<Self, EnodeError> {
        // "http" has the host rules we want (names, IPv4, bracketed IPv6); "enode" would be parsed as opaque.
        let rest = text.strip_prefix("enode://").ok_or(EnodeError::NotEnode)?;
        if !rest.contains('@') {
            return Err(EnodeError::NoHost);
        }
        let url = url::Url::parse(&format!("http://{rest}")).map_err(|error| match error {
            url::ParseError::EmptyHost => EnodeError::NoHost,
            url::ParseError::InvalidPort => EnodeError::NoPort,
            _ => EnodeError::NotEnode,
        })?;
        let public_key: PublicKey = url.username().parse()?;
        if url.password().is_some() {
            return Err(EnodeError::Superfluous("a password"));
        }
        if url.path() != "/" {
            return Err(EnodeError::Superfluous("a path"));
        }
        if url.fragment().is_some() {
            return Err(EnodeError::Superfluous("a fragment"));
        }
        let host = match url.host() {
            None => return Err(EnodeError::NoHost),
            Some(url::Host::Ipv4(ip)) => Host::Ip(ip.into()),
            Some(url::Host::Ipv6(ip)) => Host::Ip(canonical(ip.into())),
            Some(url::Host::Domain(name)) => Host::Name(name.to_owned()),
        };
        // The URL parser drops a port of 80 as the default of the borrowed scheme; port_or_known_default gives it
        // back, but must not invent it where none was written.
        let written = rest.split(['?', '/', '#']).next().unwrap_or_default();
        let has_port = written
            .rsplit_once(':')
            .is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
        let tcp = match url.port_or_known_default() {
            Some(port) if has_port && port != 0 => port,
            _ => return Err(EnodeError::NoPort),
        };
        let mut udp = tcp;
        for (name, value) in url.query_pairs() {
            if name != "discport" {
                return Err(EnodeError::Superfluous("a query other than discport"));
            }
            udp = value.parse().map_err(|_| EnodeError::DiscPort(value.chars().take(MAX_SHOWN).collect()))?;
        }
        Ok(Self { public_key, host, tcp, udp })
    }
}

impl fmt::Display for Enode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "enode://{}@{}:{}", self.public_key, self.host, self.tcp)?;
        if self.udp == self.tcp { Ok(()) } else { write!(f, "?discport={}", self.udp) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "1dd9d65c4552b5eb43d5ad55a2ee3f56c6cbc1c64a5c8d659f51fcd51bace24351232b8d7821617d2b29b54b81cdefb9b3e9c37d7fd5f63270bcc9e1a6f6a439";

    /// The cases of geth's p2p/enode/urlv4_test.go that concern URLs with a host.
    #[test]
    fn urls_round_trip() {
        let table = [
            ("@127.0.0.1:52150", "127.0.0.1", 52150, 52150),
            ("@[::]:52150", "[::]", 52150, 52150),
            ("@[2001:db8:3c4d:15::abcd:ef12]:52150", "[2001:db8:3c4d:15::abcd:ef12]", 52150, 52150),
            ("@127.0.0.1:52150?discport=22334", "127.0.0.1", 52150, 22334),
            ("@127.0.0.1:52150?discport=0", "127.0.0.1", 52150, 0),
            ("@valid.:3", "valid.", 3, 3),
            ("@node.example.org:30303", "node.example.org", 30303, 30303),
            ("@127.0.0.1:80", "127.0.0.1", 80, 80),
        ];
        for (tail, host, tcp, udp) in table {
            let text = format!("enode://{KEY}{tail}");
            let enode: Enode = text.parse().unwrap();
            assert_eq!((enode.host.to_string().as_str(), enode.tcp, enode.udp), (host, tcp, udp), "{text}");
            assert_eq!(enode.to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            (format!("http://{KEY}@127.0.0.1:1"), EnodeError::NotEnode),
            (format!("enode://{KEY}"), EnodeError::NoHost),
            (format!("enode://{KEY}@127.0.0.1"), EnodeError::NoPort),
            (format!("enode://{KEY}@127.0.0.1:0"), EnodeError::NoPort),
            (format!("enode://{KEY}@[::1]"), EnodeError::NoPort),
            (format!("enode://{KEY}@127.0.0.1:foo"), EnodeError::NoPort),
            (format!("enode://{KEY}@:30303"), EnodeError::NoHost),
            (format!("enode://{KEY}@127.0.0.1:3?discport=foo"), EnodeError::DiscPort("foo".into())),
            (
                format!("enode://{KEY}@127.0.0.1:3?discport={}x", "\u{4}".repeat(4096)),
                EnodeError::DiscPort("\u{4}".repeat(MAX_SHOWN)),
            ),
            (
                format!("enode://{KEY}@127.0.0.1:3?x=1"),
                EnodeError::Superfluous("a query other than discport"),
            ),
            (format!("enode://{KEY}:pass@127.0.0.1:3"), EnodeError::Superfluous("a password")),
            ("enode://01010101@123.124.125.126:3".into(), EnodeError::Key(KeyError::PublicLength)),
            (format!("enode://{}@1.2.3.4:3", "0".repeat(128)), EnodeError::Key(KeyError::PublicKey)),
        ];
        for (text, error) in table {
            assert_eq!(text.parse::<Enode>().unwrap_err(), error, "{text}");
        }
    }
}
