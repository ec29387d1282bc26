//! One node as it is stored: its record, and per address when it was last alive.
//!
//! As RLP: `[record, [ip, last-ping, last-pong, failures], …]`. Times are Unix seconds. Liveness is kept per address,
//! because an endpoint proof is: a node that answered at one address has proven nothing about another.

use std::net::IpAddr;

use crate::{
    node::{Record, endpoint::canonical, record::RecordError},
    rlp::{self, Reader},
};

/// Addresses kept per node; the one that was alive the longest time ago makes room.
const MAX_ADDRESSES: usize = 4;

/// What is known of a node at one of its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// Where.
    pub ip: IpAddr,
    /// When it last sent us a PING, Unix seconds; 0 for never.
    pub last_ping: u64,
    /// When it last answered us, Unix seconds; 0 for never.
    pub last_pong: u64,
    /// Requests in a row without an answer.
    pub failures: u32,
}

impl Liveness {
    fn at(ip: IpAddr) -> Self {
        Self { ip, last_ping: 0, last_pong: 0, failures: 0 }
    }

    fn last_seen(&self) -> u64 {
        self.last_ping.max(self.last_pong)
    }
}

/// A node from the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredNode {
    /// Its record, signature checked when it was read.
    pub record: Record,
    /// What is known per address.
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
    /// A node of which only the record is known.
    #[must_use]
    pub fn new(record: Record) -> Self {
        Self { record, seen: Vec::new() }
    }

    /// When it last answered at any address, Unix seconds; 0 for never.
    #[must_use]
    pub fn last_pong(&self) -> u64 {
        self.seen.iter().map(|seen| seen.last_pong).max().unwrap_or(0)
    }

    /// What is known about it at `ip`, if anything.
    #[must_use]
    pub fn at(&self, ip: IpAddr) -> Option<&Liveness> {
        self.seen.iter().find(|seen| seen.ip == canonical(ip))
    }

    /// Changes what is known about it at `ip`.
    pub(super) fn update(&mut self, ip: IpAddr, change: impl FnOnce(&mut Liveness)) {
        let ip = canonical(ip);
        let known = self.seen.iter().position(|seen| seen.ip == ip);
        let mut seen = known.map_or(Liveness::at(ip), |index| self.seen.swap_remove(index));
        change(&mut seen);
        if self.seen.len() >= MAX_ADDRESSES {
            let oldest = self.seen.iter().enumerate().min_by_key(|(_, seen)| seen.last_seen());
            if let Some((index, _)) = oldest {
                self.seen.swap_remove(index);
            }
        }
        self.seen.push(seen);
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
            row.append(&seen.last_ping).append(&seen.last_pong).append(&seen.failures);
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

/// An address of 4 or 16 bytes.
pub(super) fn ip(bytes: &[u8]) -> Result<IpAddr, RowError> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .map_err(|_| RowError::Address)
}

fn liveness(row: &mut Reader<'_>) -> Result<Liveness, RowError> {
    let mut fields = row.nested()?;
    let ip = ip(fields.bytes()?)?;
    let seen = Liveness { ip, last_ping: fields.u64()?, last_pong: fields.u64()?, failures: fields.u32()? };
    fields.finish()?;
    Ok(seen)
}

/// When a node with this row last answered, without reading the rest: what the sweep asks of every row.
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
        node.update("1.2.3.4".parse().unwrap(), |seen| (seen.last_ping, seen.last_pong) = (5, u64::MAX));
        node.update("2a00::1".parse().unwrap(), |seen| seen.failures = 7);
        let bytes = node.encode();
        assert_eq!(StoredNode::decode(&bytes).unwrap(), node);
        assert_eq!((last_pong(&bytes).unwrap(), node.last_pong()), (u64::MAX, u64::MAX));
        for len in 0..bytes.len() {
            assert!(StoredNode::decode(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn a_node_that_moves_keeps_its_latest_addresses() {
        let mut node = StoredNode::new(records(0..1).remove(0));
        for host in 1..=6_u64 {
            let ip: IpAddr = format!("1.2.3.{host}").parse().unwrap();
            node.update(ip, |seen| seen.last_pong = 10 - host);
        }
        assert_eq!(node.seen.len(), MAX_ADDRESSES);
        assert!(node.at("1.2.3.1".parse().unwrap()).is_some(), "the freshest stays");
        assert!(node.at("1.2.3.6".parse().unwrap()).is_some(), "the newest came in");
        assert!(node.at("1.2.3.5".parse().unwrap()).is_none(), "the stalest went");
        assert!(node.at("::ffff:1.2.3.1".parse().unwrap()).is_some());
    }
}
