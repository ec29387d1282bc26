//! PONG (0x02): `[to, ping-hash, expiration, enr-seq, ...]`.

use ::rlp::RlpStream;

use super::{Expiration, WireEndpoint, enr_seq};
use crate::rlp::{Error, Reader};

/// The answer to a ping, and the proof that its sender receives packets at the address that it claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pong {
    /// Where the sender saw the ping come from.
    pub to: WireEndpoint,
    /// The hash of the ping.
    pub ping_hash: [u8; 32],
    /// When the pong expires.
    pub expiration: Expiration,
    /// The sequence number of the sender's record.
    pub enr_seq: Option<u64>,
}

impl Pong {
    pub(super) fn read(list: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self {
            to: WireEndpoint::read(list)?,
            ping_hash: list.array()?,
            expiration: Expiration::read(list)?,
            enr_seq: enr_seq(list),
        })
    }

    /// Appends the body.
    pub fn append(&self, stream: &mut RlpStream) {
        stream.begin_list(if self.enr_seq.is_some() { 4 } else { 3 });
        self.to.append(stream);
        stream.append(&self.ping_hash.as_slice()).append(&self.expiration.to_wire());
        if let Some(seq) = self.enr_seq {
            stream.append(&seq);
        }
    }
}
