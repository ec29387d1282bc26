//! NEIGHBORS (0x04): `[[[ip, udp-port, tcp-port, key], ...], expiration, ...]`.

use std::net::IpAddr;

use ::rlp::RlpStream;

use super::{
    Expiration,
    wire_endpoint::{append_ip, ip},
};
use crate::rlp::{Error, Reader};

/// The most nodes that fit into one packet of 1,280 bytes when all have IPv6 addresses and long ports: each takes
/// 2 + 17 + 3 + 3 + 66 = 91 bytes, the rest 98 + 3 + 3 + 9. geth sends 12 too; 16 nodes go as 12 and 4.
pub const MAX_PER_PACKET: usize = 12;
/// The most nodes that are read from one packet: the number that an answer has in all.
const MAX_READ: usize = 16;

/// A node as its neighbor describes it. The key is not checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// The address, if it is one.
    pub ip: Option<IpAddr>,
    /// The UDP port.
    pub udp: u16,
    /// The TCP port.
    pub tcp: u16,
    /// Both coordinates of the public key.
    pub key: [u8; 64],
}

/// Nodes near the target of a FINDNODE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbors {
    /// The nodes.
    pub nodes: Vec<Neighbor>,
    /// When the answer expires.
    pub expiration: Expiration,
}

impl Neighbors {
    pub(super) fn read(list: &mut Reader<'_>) -> Result<Self, Error> {
        let mut items = list.nested()?;
        let mut nodes = Vec::new();
        while !items.is_empty() && nodes.len() < MAX_READ {
            let mut node = items.nested()?;
            nodes.push(Neighbor {
                ip: ip(node.bytes()?),
                udp: node.u16()?,
                tcp: node.u16()?,
                key: node.array()?,
            });
        }
        Ok(Self { nodes, expiration: Expiration::read(list)? })
    }

    /// Appends the body. More than [`MAX_PER_PACKET`] nodes may not fit into a datagram.
    pub fn append(&self, stream: &mut RlpStream) {
        stream.begin_list(2);
        stream.begin_list(self.nodes.len());
        for node in &self.nodes {
            stream.begin_list(4);
            append_ip(stream, node.ip);
            stream.append(&node.udp).append(&node.tcp).append(&node.key.as_slice());
        }
        stream.append(&self.expiration.to_wire());
    }
}
