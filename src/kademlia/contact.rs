//! A node as discovery holds it: its identity, its endpoint, and its record if we have one.
//!
//! discv4 learns key and endpoint from packets and the record later or never; discv5 always starts from a record. Both
//! fit here. The endpoint stands beside the record because a v4 node is at the address its packets come from, whatever
//! its record contains or lacks.

use std::net::SocketAddr;

use crate::node::{Endpoint, Enode, Host, NodeId, PublicKey, Record};

/// A node with an address. Cheap to clone: the record is shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// The node's id.
    pub id: NodeId,
    /// The node's key.
    pub public_key: PublicKey,
    /// Where it is reached. The UDP port is not 0 in any table.
    pub endpoint: Endpoint,
    /// Its newest record that we have.
    pub record: Option<Record>,
}

impl Contact {
    /// A node without a record.
    #[must_use]
    pub fn new(public_key: PublicKey, endpoint: Endpoint) -> Self {
        Self { id: public_key.id(), public_key, endpoint, record: None }
    }

    /// The node of a record. `None` if the record has no address.
    #[must_use]
    pub fn from_record(record: Record) -> Option<Self> {
        let endpoint = record.endpoint()?;
        Some(Self { id: record.id(), public_key: record.public_key(), endpoint, record: Some(record) })
    }

    /// The node of a URL. `None` if its host is a DNS name.
    #[must_use]
    pub fn from_enode(enode: &Enode) -> Option<Self> {
        match enode.host {
            Host::Ip(ip) => {
                Some(Self::new(enode.public_key, Endpoint { ip, udp: enode.udp, tcp: enode.tcp }))
            }
            Host::Name(_) => None,
        }
    }

    /// Where discovery packets go, if there is a UDP port.
    #[must_use]
    pub fn udp_addr(&self) -> Option<SocketAddr> {
        self.endpoint.udp_addr()
    }

    /// The record's sequence number; 0 without a record, so that any record is news.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.record.as_ref().map_or(0, Record::seq)
    }
}

/// The source from which we learned of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It is one of the configured bootnodes.
    Bootnode,
    /// It was read from the node database.
    Database,
    /// It contacted us and proved its endpoint.
    Inbound,
    /// Another node's answer.
    Relayed {
        /// The teller.
        by: NodeId,
    },
}

impl Source {
    /// Whether the node itself answered from the endpoint. Otherwise the endpoint comes from another source.
    #[must_use]
    pub fn is_proven(self) -> bool {
        self == Self::Inbound
    }
}
