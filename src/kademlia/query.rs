//! Queries: a caller's questions to an engine, the names of the answers, and the reasons why a request was not made or
//! failed.
//!
//! Both protocols answer the same queries and refuse for the same reasons. A refusal names its cause for the caller:
//! the node, the request, or a full queue. Left out: how a node is asked (the engines), and the errors for remote
//! callers (`rpc`).

use std::{net::SocketAddr, time::Duration};

use super::Contact;
use crate::node::{NodeId, PublicKey, id::keccak256};

/// The most lookups of one protocol at a time. Each asks three nodes at a time; refresh and walk make at most five.
pub const MAX_LOOKUPS: usize = 64;

/// Names a query in the actions that answer it. The caller chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryId(pub u64);

/// The target of a lookup: an id, and the key that has this id where it is known. discv5 asks for ids; discv4 can only
/// ask for keys, of which the id is the Keccak-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    id: NodeId,
    key: Option<[u8; 64]>,
}

impl Target {
    /// The id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The 64 bytes that have this id, if they are known. They need not be a valid key.
    #[must_use]
    pub fn key(&self) -> Option<[u8; 64]> {
        self.key
    }
}

impl From<NodeId> for Target {
    fn from(id: NodeId) -> Self {
        Self { id, key: None }
    }
}

impl From<[u8; 64]> for Target {
    fn from(key: [u8; 64]) -> Self {
        Self { id: NodeId(keccak256(&[&key])), key: Some(key) }
    }
}

impl From<PublicKey> for Target {
    fn from(key: PublicKey) -> Self {
        Self { id: key.id(), key: Some(key.to_uncompressed()) }
    }
}

/// A caller's question. A lookup ends in `Action::LookupDone`, the others in `Action::PingResult` and
/// `Action::Resolved`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// Whether the node answers, and how fast.
    Ping(Contact),
    /// The nodes closest to the target.
    Lookup(Target),
    /// The newest record and address of a node.
    Resolve(Target),
}

/// The contents of a node's PONG to a queried PING.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ponged {
    /// From the newest PING to the PONG.
    pub round_trip: Duration,
    /// Where the node sees us.
    pub sees_us_at: Option<SocketAddr>,
    /// The sequence number of its record, if the PONG had one.
    pub enr_seq: Option<u64>,
}

/// Why a request to a node was not made, or came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Too many requests wait for this node, or for all.
    #[error("too many requests to this node, or to all nodes, wait for their answers; try again later")]
    QueueFull,
    /// As many lookups run as may.
    #[error("{MAX_LOOKUPS} lookups run already, which is the limit; try again when one has ended")]
    TooManyLookups,
    /// discv4 looks for keys, and only an id was given.
    #[error(
        "discv4 searches for public keys, and a node id alone does not tell the key; give 128 hex digits, an enode:// or an enr:"
    )]
    KeyNeeded,
    /// The node has no UDP endpoint.
    #[error("the node has no UDP endpoint; give enode://KEY@IP:PORT, or an enr: with udp")]
    NoEndpoint,
    /// The configured restriction of networks forbids the address, or our announced address cannot reach it.
    #[error(
        "the node's address is outside --netrestrict, or is private while this node announces a public address"
    )]
    Address,
    /// The node is ourselves.
    #[error("the node is this one; give another node")]
    Myself,
    /// The request does not fit into a packet: its bytes, and the room for them.
    #[error("the request has {0} bytes; a packet has room for {1}")]
    TooLarge(usize, usize),
    /// No answer came in time.
    #[error("the node did not answer in time")]
    Timeout,
}

impl CallError {
    /// Whether the same request may be made later: neither the node nor the request is to blame.
    #[must_use]
    pub fn is_busy(self) -> bool {
        matches!(self, Self::QueueFull | Self::TooManyLookups)
    }
}
