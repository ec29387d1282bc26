//! PING (0x01): `[version, from, to, expiration, enr-seq, ...]`.

use ::rlp::RlpStream;

use super::{Expiration, WireEndpoint, enr_seq};
use crate::rlp::{Error, Reader};

/// The version that we name. Nobody checks it (EIP-8).
const VERSION: u64 = 4;

/// Are you there?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ping {
    /// The sender's own idea of its endpoint. Only its TCP port is used: address and UDP port are in the datagram.
    pub from: WireEndpoint,
    /// Where the sender sees the recipient.
    pub to: WireEndpoint,
    /// When the ping expires.
    pub expiration: Expiration,
    /// The sequence number of the sender's record.
    pub enr_seq: Option<u64>,
}

impl Ping {
    pub(super) fn read(list: &mut Reader<'_>) -> Result<Self, Error> {
        let _version = list.u64()?;
        Ok(Self {
            from: WireEndpoint::read(list)?,
            to: WireEndpoint::read(list)?,
            expiration: Expiration::read(list)?,
            enr_seq: enr_seq(list),
        })
    }

    /// Appends the body.
    pub fn append(&self, stream: &mut RlpStream) {
        stream.begin_list(if self.enr_seq.is_some() { 5 } else { 4 });
        stream.append(&VERSION);
        self.from.append(stream);
        self.to.append(stream);
        stream.append(&self.expiration.to_wire());
        if let Some(seq) = self.enr_seq {
            stream.append(&seq);
        }
    }
}
