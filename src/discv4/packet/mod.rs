//! The six packets of discv4 (discv4.md; EIP-8 for tolerance; EIP-868 for records).
//!
//! A packet is read in steps of growing cost, so that hostile bytes are dropped at the cheapest step that fails.
//! [`header::Header::read`] checks length, type and RLP header; [`header::Header::hash_is_right`] hashes;
//! [`Packet::decode`] reads the body; [`header::Header::signer`] recovers the key. By EIP-8 extra list elements, bytes
//! after the list and other ping versions are accepted.

pub mod enr_request;
pub mod enr_response;
pub mod expiration;
pub mod findnode;
pub mod header;
pub mod neighbors;
pub mod ping;
pub mod pong;
pub mod wire_endpoint;

pub use enr_request::EnrRequest;
pub use enr_response::EnrResponse;
pub use expiration::Expiration;
pub use findnode::FindNode;
pub use header::{Header, HeaderError, MAX_PACKET, Type, seal};
pub use neighbors::Neighbors;
pub use ping::Ping;
pub use pong::Pong;
pub use wire_endpoint::WireEndpoint;

use crate::rlp::{Error, Reader};

/// A packet's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// Are you there? Also the sender's claim to an endpoint.
    Ping(Ping),
    /// The answer to a ping, with the hash of that ping.
    Pong(Pong),
    /// A request for the nodes near this key.
    FindNode(FindNode),
    /// These.
    Neighbors(Neighbors),
    /// A request for the node's record.
    EnrRequest(EnrRequest),
    /// This.
    EnrResponse(EnrResponse<'a>),
}

impl<'a> Packet<'a> {
    /// Reads the body of a packet of type `kind` from the bytes after the header.
    pub fn decode(kind: Type, data: &'a [u8]) -> Result<Self, Error> {
        let (mut list, _ignored) = Reader::list_prefix(data)?;
        Ok(match kind {
            Type::Ping => Self::Ping(Ping::read(&mut list)?),
            Type::Pong => Self::Pong(Pong::read(&mut list)?),
            Type::FindNode => Self::FindNode(FindNode::read(&mut list)?),
            Type::Neighbors => Self::Neighbors(Neighbors::read(&mut list)?),
            Type::EnrRequest => Self::EnrRequest(EnrRequest::read(&mut list)?),
            Type::EnrResponse => Self::EnrResponse(EnrResponse::read(&mut list)?),
        })
    }

    /// When the packet expires. An ENRResponse does not: it names the request that it answers.
    #[must_use]
    pub fn expiration(&self) -> Option<Expiration> {
        match self {
            Self::Ping(ping) => Some(ping.expiration),
            Self::Pong(pong) => Some(pong.expiration),
            Self::FindNode(findnode) => Some(findnode.expiration),
            Self::Neighbors(neighbors) => Some(neighbors.expiration),
            Self::EnrRequest(request) => Some(request.expiration),
            Self::EnrResponse(_) => None,
        }
    }
}

/// The sequence number of the sender's record, which EIP-868 put after the older elements. A node without EIP-868 may
/// have anything there, or nothing.
fn enr_seq(list: &mut Reader<'_>) -> Option<u64> {
    list.u64().ok()
}

#[cfg(test)]
mod tests;
