//! One peer as it is stored, so that the next run dials it first.
//!
//! As RLP: `[key, ip, port, served, last, record]`, with an empty record if none is known. Only peers that we dialed
//! are stored: the address on which an inbound peer listens is not known.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::row::RowError;
use crate::{
    node::{NodeId, PublicKey, Record},
    rlp::Reader,
};

/// A peer of this run or an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPeer {
    /// The public key of the peer.
    pub public_key: PublicKey,
    /// The address at which we dialed it.
    pub addr: SocketAddr,
    /// Its record, if one was known.
    pub record: Option<Record>,
    /// The time for which it has been our peer in all. Stored in whole seconds.
    pub served: Duration,
    /// The last time at which it was our peer, in Unix seconds.
    pub last: u64,
}

impl StoredPeer {
    /// Returns the node id of the peer.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.public_key.id()
    }

    /// Adds a session of the same peer. Its time is added, and a newer address or record replaces the older one.
    pub(super) fn add(&mut self, session: Self) {
        self.served = self.served.saturating_add(session.served);
        if session.last >= self.last {
            self.last = session.last;
            self.addr = session.addr;
        }
        let seq = |record: &Option<Record>| record.as_ref().map(Record::seq);
        if seq(&session.record) > seq(&self.record) {
            self.record = session.record;
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut row = ::rlp::RlpStream::new_list(6);
        row.append(&self.public_key.to_uncompressed().as_slice());
        match self.addr.ip() {
            IpAddr::V4(ip) => row.append(&ip.octets().as_slice()),
            IpAddr::V6(ip) => row.append(&ip.octets().as_slice()),
        };
        row.append(&self.addr.port()).append(&self.served.as_secs()).append(&self.last);
        row.append(&self.record.as_ref().map(|record| record.encoded()).unwrap_or_default());
        row.out().to_vec()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, RowError> {
        let mut row = Reader::list(bytes)?;
        let key = PublicKey::from_uncompressed(&row.array()?).map_err(|_| RowError::Key)?;
        let ip = super::row::ip(row.bytes()?)?;
        let addr = SocketAddr::new(ip, row.u16()?);
        let (served, last) = (Duration::from_secs(row.u64()?), row.u64()?);
        let record = row.bytes()?;
        row.finish()?;
        let record = if record.is_empty() { None } else { Some(Record::decode(record)?) };
        Ok(Self { public_key: key, addr, record, served, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dnsdisc::zone::records;

    #[test]
    fn rows_round_trip_and_sessions_add_up() {
        let record = records(0..1).remove(0);
        let mut peer = StoredPeer {
            public_key: record.public_key(),
            addr: "1.2.3.4:30303".parse().unwrap(),
            record: None,
            served: Duration::from_secs(5),
            last: 100,
        };
        assert_eq!(StoredPeer::decode(&peer.encode()).unwrap(), peer);
        let newer = StoredPeer {
            addr: "[2a00::1]:9".parse().unwrap(),
            record: Some(record),
            last: 200,
            ..peer.clone()
        };
        let older = StoredPeer { last: 50, served: Duration::MAX, ..peer.clone() };
        peer.add(newer.clone());
        assert_eq!(peer, StoredPeer { served: Duration::from_secs(10), ..newer.clone() });
        peer.add(older);
        assert_eq!((peer.addr, peer.last, peer.served), (newer.addr, 200, Duration::MAX));
        peer.served = Duration::from_secs(7);
        let bytes = peer.encode();
        assert_eq!(StoredPeer::decode(&bytes).unwrap(), peer);
        for len in 0..bytes.len() {
            assert!(StoredPeer::decode(&bytes[..len]).is_err());
        }
    }
}
