//! enode URLs: `enode://<128 hex digits>@host:tcp-port?discport=udp-port`.
//!
//! The host is an address or a DNS name. A name is kept as written, and is resolved at each dial and never here: a node
//! that moves keeps its URL (go-ethereum#31208). A bare public key is a [`super::NodeRef`], not a URL.
//!
//! An IPv4 address is four decimal numbers without leading zeros. Other readers read `010` as 8 or as 10, `0x7f` as 127
//! and `1` as 0.0.0.1; a text that may mean two addresses is refused.
//!
//! A TCP port of 0 with a `discport` is a node that takes part in discovery only, as go-ethereum writes it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use super::{Endpoint, NodeId, PublicKey, endpoint::canonical, key::KeyError};

/// How many characters of a stranger's text an error repeats: enough to recognise it, and short enough for a log line
/// even if each of them is escaped.
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

/// A node with an address, in the form that people write.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Enode {
    /// Its key.
    pub public_key: PublicKey,
    /// The address or name of its host.
    pub host: Host,
    /// The RLPx port. 0: it has none, and takes part in discovery only.
    pub tcp: u16,
    /// The discovery port; the RLPx port unless the URL says otherwise.
    pub udp: u16,
}

/// The reason why a text is not an enode URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnodeError {
    /// Not a URL, or a URL of another scheme.
    #[error("an enode URL looks like enode://<128 hex digits>@<host>:<port>")]
    NotEnode,
    /// The part before `@` is no public key.
    #[error("the public key of the enode URL is wrong: {0}")]
    Key(#[from] KeyError),
    /// No host.
    #[error("the enode URL has no host after '@'; it looks like enode://<128 hex digits>@<host>:<port>")]
    NoHost,
    /// No TCP port, or 0 without a UDP port.
    #[error("the enode URL has no TCP port after the host (1 to 65535; 0 only with ?discport=<UDP port>)")]
    NoPort,
    /// Digits that other readers read as another address; the text as it was given, cut to [`MAX_SHOWN`].
    #[error(
        "{0:?} in the enode URL is not a plain IPv4 address: write four decimal numbers without leading zeros"
    )]
    Ambiguous(String),
    /// `discport` is not a port; the text as it was given, cut to [`MAX_SHOWN`].
    #[error("discport={0:?} in the enode URL is not a port (0 to 65535)")]
    DiscPort(String),
    /// A password, path or fragment, or a query other than `discport`.
    #[error("the enode URL has {0}; only ?discport=<UDP port> may follow the port")]
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

    /// The URL of a node of which only the TCP address is known.
    #[must_use]
    pub fn at(public_key: PublicKey, addr: SocketAddr) -> Self {
        Self { public_key, host: Host::Ip(canonical(addr.ip())), tcp: addr.port(), udp: addr.port() }
    }
}

impl FromStr for Enode {
    type Err = EnodeError;

    fn from_str(text: &str) -> Result<Self, EnodeError> {
        // The URL parser has the host rules that we want for "http" (names, IPv4, bracketed IPv6); "enode" would be
        // opaque to it.
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
        // The authority as it was written: the URL parser accepts octal and hexadecimal numbers in addresses.
        let written = rest.split(['?', '/', '#']).next().unwrap_or_default();
        let after_key = written.rsplit_once('@').map_or(written, |(_, after)| after);
        let written_host = after_key.rsplit_once(':').map_or(after_key, |(host, _)| host);
        let host = match url.host() {
            None => return Err(EnodeError::NoHost),
            Some(url::Host::Ipv4(ip)) if written_host.parse() != Ok(ip) => {
                return Err(EnodeError::Ambiguous(written_host.chars().take(MAX_SHOWN).collect()));
            }
            Some(url::Host::Ipv4(ip)) => Host::Ip(ip.into()),
            Some(url::Host::Ipv6(ip)) => Host::Ip(canonical(ip.into())),
            Some(url::Host::Domain(name)) => Host::Name(name.to_owned()),
        };
        // The URL parser drops a port of 80, which is the default of "http". `port_or_known_default` returns it again,
        // but would also return it if no port was written.
        let has_port = after_key
            .rsplit_once(':')
            .is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
        let tcp = match url.port_or_known_default() {
            Some(port) if has_port => port,
            _ => return Err(EnodeError::NoPort),
        };
        let mut udp = tcp;
        for (name, value) in url.query_pairs() {
            if name != "discport" {
                return Err(EnodeError::Superfluous("a query other than discport"));
            }
            // The standard library accepts a plus sign before a number.
            let digits = Some(&value).filter(|value| value.bytes().all(|byte| byte.is_ascii_digit()));
            let port = digits.and_then(|digits| digits.parse().ok());
            udp = port.ok_or_else(|| EnodeError::DiscPort(value.chars().take(MAX_SHOWN).collect()))?;
        }
        if tcp == 0 && udp == 0 {
            return Err(EnodeError::NoPort);
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
            // Discovery only, as go-ethereum writes it.
            ("@127.0.0.1:0?discport=30301", "127.0.0.1", 0, 30301),
        ];
        for (tail, host, tcp, udp) in table {
            let text = format!("enode://{KEY}{tail}");
            let enode: Enode = text.parse().unwrap();
            assert_eq!((enode.host.to_string().as_str(), enode.tcp, enode.udp), (host, tcp, udp), "{text}");
            assert_eq!(enode.to_string(), text);
        }
    }

    /// Some readers read each of these as an address, and others as another address or as none.
    #[test]
    fn an_address_has_one_meaning() {
        for host in [
            "192.168.001.010",
            "192.168.1.010",
            "0x7f.0.0.1",
            "0300.0250.1.1",
            "127.1",
            "2130706433",
            "1.2.3.4.",
            "\u{ff11}.2.3.4",
            "1.2.3.%34",
        ] {
            let error = format!("enode://{KEY}@{host}:30303").parse::<Enode>().unwrap_err();
            assert_eq!(error, EnodeError::Ambiguous(host.to_owned()), "{host}");
        }
        // A name may contain labels that are numbers.
        format!("enode://{KEY}@1.2.3.example:30303").parse::<Enode>().unwrap();
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
            (format!("enode://{KEY}@127.0.0.1:0?discport=0"), EnodeError::NoPort),
            (format!("enode://{KEY}@127.0.0.1:3?discport=foo"), EnodeError::DiscPort("foo".into())),
            (format!("enode://{KEY}@127.0.0.1:3?discport=%2B5"), EnodeError::DiscPort("+5".into())),
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
