//! PING (0x01) and PONG (0x02): whether a node is alive, its record's sequence number, and our endpoint as it sees it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::BytesMut;

use super::{MessageError, MessageType, RequestId, encode};
use crate::{
    node::endpoint::canonical,
    rlp::{self, Reader},
};

/// `[request-id, enr-seq]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// The request id.
    pub id: RequestId,
    /// The sequence number of the sender's record.
    pub enr_seq: u64,
}

impl Ping {
    pub(super) fn decode(id: RequestId, list: &mut Reader<'_>) -> Result<Self, MessageError> {
        Ok(Self { id, enr_seq: list.u64()? })
    }

    /// Appends the plaintext.
    pub fn encode(&self, out: &mut BytesMut) {
        encode(out, MessageType::Ping, self.id, 1, |list| {
            list.append(&self.enr_seq);
        });
    }
}

/// `[request-id, enr-seq, recipient-ip, recipient-port]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pong {
    /// The PING's request id.
    pub id: RequestId,
    /// The sequence number of the sender's record.
    pub enr_seq: u64,
    /// The endpoint from which the PING came, as its receiver saw it.
    pub recipient: SocketAddr,
}

impl Pong {
    pub(super) fn decode(id: RequestId, list: &mut Reader<'_>) -> Result<Self, MessageError> {
        let enr_seq = list.u64()?;
        let ip = match list.bytes()? {
            ip if ip.len() == 4 => <[u8; 4]>::try_from(ip).map(|ip| IpAddr::V4(Ipv4Addr::from(ip))),
            ip => <[u8; 16]>::try_from(ip).map(|ip| canonical(IpAddr::V6(Ipv6Addr::from(ip)))),
        };
        let ip = ip.map_err(|_| rlp::Error::WrongLength)?;
        Ok(Self { id, enr_seq, recipient: SocketAddr::new(ip, list.u16()?) })
    }

    /// Appends the plaintext.
    pub fn encode(&self, out: &mut BytesMut) {
        encode(out, MessageType::Pong, self.id, 3, |list| {
            list.append(&self.enr_seq);
            match canonical(self.recipient.ip()) {
                IpAddr::V4(ip) => list.append(&ip.octets().as_slice()),
                IpAddr::V6(ip) => list.append(&ip.octets().as_slice()),
            };
            list.append(&self.recipient.port());
        });
    }
}
