//! The four ways in which a person or an application may name a node: node id (64 hex digits), public key (128 hex
//! digits), `enode://` URL, `enr:` record. Hex is read with or without `0x`.

use std::{fmt, net::IpAddr, str::FromStr};

use super::{
    Enode, Host, NodeId, PublicKey, Record, endpoint::is_unicast, enode::EnodeError, key::KeyError,
    record::RecordError,
};

/// A node in the form in which it was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeRef {
    /// By id: no key and no address is known.
    Id(NodeId),
    /// By public key: no address is known.
    Key(PublicKey),
    /// By URL.
    Enode(Enode),
    /// By record.
    Record(Record),
}

/// The reason why a text names no node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeRefError {
    /// None of the four forms.
    #[error("{given} is none of: a node id (64 hex digits), a public key (128 hex digits), enode://…, enr:…")]
    Form {
        /// The text as it was given, cut to a length that fits a log line.
        given: String,
    },
    /// 128 hex digits that are not a key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A URL that does not parse.
    #[error(transparent)]
    Enode(#[from] EnodeError),
    /// A record that does not parse or verify.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// The reason why a node cannot be dialed at the address in its reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotDialable {
    /// It has no TCP port.
    #[error(
        "the URL has TCP port 0: this node takes part in discovery alone, so it can be a bootnode and cannot be dialed; \
         give its TCP port"
    )]
    NoTcpPort,
    /// Its address is not that of a single node.
    #[error(
        "{0} is not the address of one node (unspecified, multicast or broadcast); give the address to dial"
    )]
    NotUnicast(IpAddr),
}

impl NodeRef {
    /// The node's id, which every form determines.
    #[must_use]
    pub fn id(&self) -> NodeId {
        match self {
            Self::Id(id) => *id,
            Self::Key(key) => key.id(),
            Self::Enode(enode) => enode.id(),
            Self::Record(record) => record.id(),
        }
    }

    /// The node's public key, unless only its id was given.
    #[must_use]
    pub fn public_key(&self) -> Option<PublicKey> {
        match self {
            Self::Id(_) => None,
            Self::Key(key) => Some(*key),
            Self::Enode(enode) => Some(enode.public_key),
            Self::Record(record) => Some(record.public_key()),
        }
    }

    /// The URL by which the node can be dialed, if an address and a TCP port are known.
    #[must_use]
    pub fn enode(&self) -> Option<Enode> {
        match self {
            Self::Id(_) | Self::Key(_) => None,
            Self::Enode(enode) => Some(enode.clone()).filter(|enode| enode.tcp != 0),
            Self::Record(record) => {
                let endpoint = record.endpoint()?;
                let addr = endpoint.tcp_addr()?;
                Some(Enode { udp: endpoint.udp, ..Enode::at(record.public_key(), addr) })
            }
        }
    }
}

impl NodeRef {
    /// Returns an error if the reference has an address to which no connection can be made. A reference without an
    /// address is accepted: discovery may find one.
    pub fn check_dialable(&self) -> Result<(), NotDialable> {
        if matches!(self, Self::Enode(enode) if enode.tcp == 0) {
            return Err(NotDialable::NoTcpPort);
        }
        self.check_address()
    }

    /// Returns an error if the reference has an address that is not the address of one node. A TCP port is not needed:
    /// this is for nodes that are let in and need not be dialed.
    pub fn check_address(&self) -> Result<(), NotDialable> {
        match self.enode().map(|enode| enode.host) {
            Some(Host::Ip(ip)) if !is_unicast(ip) => Err(NotDialable::NotUnicast(ip)),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for NodeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Key(key) => key.fmt(f),
            Self::Enode(enode) => enode.fmt(f),
            Self::Record(record) => record.fmt(f),
        }
    }
}

impl FromStr for NodeRef {
    type Err = NodeRefError;

    fn from_str(text: &str) -> Result<Self, NodeRefError> {
        let text = text.trim();
        if text.starts_with("enode:") {
            return Ok(Self::Enode(text.parse()?));
        }
        if text.starts_with("enr:") {
            return Ok(Self::Record(text.parse()?));
        }
        let digits = text.strip_prefix("0x").unwrap_or(text);
        let hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let unknown =
            || NodeRefError::Form { given: format!("{:?}", text.chars().take(40).collect::<String>()) };
        match digits.len() {
            64 if hex => digits.parse().map(Self::Id).map_err(|_| unknown()),
            128 if hex => Ok(Self::Key(digits.parse()?)),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::node::{NodeKey, RecordBuilder};

    #[test]
    fn all_four_forms_name_the_same_node() {
        let key = NodeKey::random(&mut StdRng::seed_from_u64(1));
        let mut builder = RecordBuilder::new(1);
        builder.ip("10.0.0.1".parse().unwrap()).port("tcp", 30303).port("udp", 30304);
        let record = builder.sign(&key).unwrap();
        let url = format!("enode://{}@10.0.0.1:30303?discport=30304", key.public());
        for text in [
            key.id().to_string(),
            format!("0x{}", key.id()),
            key.public().to_string(),
            format!("0x{}", key.public()),
            url.clone(),
            record.to_string(),
        ] {
            assert_eq!(text.parse::<NodeRef>().unwrap().id(), key.id(), "{text}");
        }
        assert_eq!(NodeRef::Record(record).enode().unwrap().to_string(), url);
        // A node without a TCP port cannot be dialed, in whatever form it is named.
        let discovery_alone = format!("enode://{}@10.0.0.1:0?discport=30304", key.public());
        assert_eq!(discovery_alone.parse::<NodeRef>().unwrap().enode(), None);
    }

    #[test]
    fn only_the_address_of_one_node_can_be_dialed() {
        let key = NodeKey::random(&mut StdRng::seed_from_u64(1)).public();
        let check = |at: &str| format!("enode://{key}@{at}").parse::<NodeRef>().unwrap().check_dialable();
        for at in ["10.0.0.1:30303", "[2001:db8::1]:30303", "node.example:30303", "255.1.1.1:1"] {
            assert_eq!(check(at), Ok(()), "{at}");
        }
        for at in ["0.0.0.0", "[::]", "224.0.0.1", "[ff02::1]", "255.255.255.255", "[::ffff:0.0.0.0]"] {
            assert!(matches!(check(&format!("{at}:30303")), Err(NotDialable::NotUnicast(_))), "{at}");
        }
        assert_eq!(check("10.0.0.1:0?discport=1"), Err(NotDialable::NoTcpPort));
        let trusted: NodeRef = format!("enode://{key}@10.0.0.1:0?discport=1").parse().unwrap();
        assert_eq!(trusted.check_address(), Ok(()), "it can be let in");
        assert_eq!(key.to_string().parse::<NodeRef>().unwrap().check_dialable(), Ok(()));
    }

    #[test]
    fn errors_say_what_would_be_right() {
        for text in ["", "hello", "0x12", &"g".repeat(64), &"1".repeat(127)] {
            let error = text.parse::<NodeRef>().unwrap_err();
            assert!(error.to_string().contains("64 hex digits"), "{error}");
        }
        assert!(matches!("enode://x".parse::<NodeRef>(), Err(NodeRefError::Enode(_))));
        assert!(matches!("0".repeat(128).parse::<NodeRef>(), Err(NodeRefError::Key(_))));
    }
}
