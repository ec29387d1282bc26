//! One node as it is stored: its record, and for each address when the node was last alive.
//!
//! As RLP: `[record, [ip, 0, last-pong, 0], …]`. Times are Unix seconds. Liveness is stored per address, because an
//! endpoint proof is for one address: a node that answered at one has proven nothing about another. Earlier versions
//! wrote the last PING and the failed requests in place of the zeros. Nothing used them; their places stay, so that
//! each version reads the rows of the other.

use std::net::IpAddr;

use crate::{
    node::{Record, endpoint::canonical, record::RecordError},
    rlp::{self, Reader},
};

/// The most addresses of a node that are stored. The address that was alive the longest time ago makes room.
const MAX_ADDRESSES: usize = 4;

/// The liveness of a node at one of its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// The address.
    pub ip: IpAddr,
    /// When the node last answered us, in Unix seconds; 0 for never.
    pub last_pong: u64,
}

/// A node from the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredNode {
    /// Its record. The signature was checked when the row was read.
    pub record: Record,
    /// Its liveness by address.
    pub seen: Vec<Liveness>,
}

/// Why a row cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum RowError {
    #[error(transparent)]
    Rlp(#[from] rlp::Error),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("an address is neither 4 nor 16 bytes long")]
    Address,
    #[error("a key is no point of the curve")]
    Key,
}

impl StoredNode {
    /// Returns a node with its record and without liveness.
    #[must_use]
    pub fn new(record: Record) -> Self {
        Self { record, seen: Vec::new() }
    }

    /// The node answered from `ip` at `at`, in Unix seconds. Answers may be noted out of order: the latest counts. A
    /// new address may displace another one ([`MAX_ADDRESSES`]).
    pub(super) fn answered(&mut self, ip: IpAddr, at: u64) {
        let ip = canonical(ip);
        if let Some(seen) = self.seen.iter_mut().find(|seen| seen.ip == ip) {
            seen.last_pong = seen.last_pong.max(at);
            return;
        }
        if self.seen.len() >= MAX_ADDRESSES {
            let oldest = self.seen.iter().enumerate().min_by_key(|(_, seen)| seen.last_pong);
            if let Some((index, _)) = oldest {
                self.seen.swap_remove(index);
            }
        }
        self.seen.push(Liveness { ip, last_pong: at });
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut row = ::rlp::RlpStream::new_list(1 + self.seen.len());
        row.append_raw(self.record.encoded(), 1);
        for seen in &self.seen {
            row.begin_list(4);
            match seen.ip {
                IpAddr::V4(ip) => row.append(&ip.octets().as_slice()),
                IpAddr::V6(ip) => row.append(&ip.octets().as_slice()),
            };
            row.append(&0_u64).append(&seen.last_pong).append(&0_u32);
        }
        row.out().to_vec()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, RowError> {
        let mut row = Reader::list(bytes)?;
        let mut node = Self::new(Record::decode(row.raw()?)?);
        while !row.is_empty() {
            node.seen.push(liveness(&mut row)?);
        }
        Ok(node)
    }
}

/// Reads an address of 4 or 16 bytes.
pub(super) fn ip(bytes: &[u8]) -> Result<IpAddr, RowError> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .map_err(|_| RowError::Address)
}

fn liveness(row: &mut Reader<'_>) -> Result<Liveness, RowError> {
    let mut fields = row.nested()?;
    let ip = ip(fields.bytes()?)?;
    let (_last_ping, last_pong, _failures) = (fields.u64()?, fields.u64()?, fields.u32()?);
    fields.finish()?;
    Ok(Liveness { ip, last_pong })
}

/// Returns when the node of a row last answered, in Unix seconds, without reading its record. The sweep calls this for
/// every row.
pub(super) fn last_pong(bytes: &[u8]) -> Result<u64, RowError> {
    let mut row = Reader::list(bytes)?;
    row.raw()?;
    let mut latest = 0;
    while !row.is_empty() {
        latest = latest.max(liveness(&mut row)?.last_pong);
    }
    Ok(latest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dnsdisc::zone::records;

    #[test]
    fn rows_round_trip() {
        let mut node = StoredNode::new(records(0..1).remove(0));
        assert_eq!(StoredNode::decode(&node.encode()).unwrap(), node);
        node.answered("1.2.3.4".parse().unwrap(), u64::MAX);
        node.answered("2a00::1".parse().unwrap(), 7);
        let bytes = node.encode();
        assert_eq!(StoredNode::decode(&bytes).unwrap(), node);
        assert_eq!(last_pong(&bytes).unwrap(), u64::MAX);
        for len in 0..bytes.len() {
            assert!(StoredNode::decode(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn a_node_that_moves_keeps_its_latest_addresses() {
        let mut node = StoredNode::new(records(0..1).remove(0));
        for host in 1..=6_u64 {
            node.answered(format!("1.2.3.{host}").parse().unwrap(), 10 - host);
        }
        let at = |ip: &str| node.seen.iter().find(|seen| seen.ip == ip.parse::<IpAddr>().unwrap());
        assert_eq!(node.seen.len(), MAX_ADDRESSES);
        assert!(at("1.2.3.1").is_some(), "the most recently alive one stays");
        assert!(at("1.2.3.6").is_some(), "the new one is stored");
        assert!(at("1.2.3.5").is_none(), "the least recently alive one is removed");
        node.answered("::ffff:1.2.3.1".parse().unwrap(), 20);
        assert_eq!(node.seen.len(), MAX_ADDRESSES, "it is the same address");
        assert!(node.seen.contains(&Liveness { ip: "1.2.3.1".parse().unwrap(), last_pong: 20 }));
    }
}
