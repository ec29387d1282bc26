//! FINDNODE (0x03): `[target, expiration, ...]`.

use ::rlp::RlpStream;

use super::Expiration;
use crate::rlp::{Error, Reader};

/// A request for the nodes near this key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FindNode {
    /// 64 bytes whose Keccak-256 is the id to search. Random walks send bytes that are no key.
    pub target: [u8; 64],
    /// When the request expires.
    pub expiration: Expiration,
}

impl FindNode {
    pub(super) fn read(list: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { target: list.array()?, expiration: Expiration::read(list)? })
    }

    /// Appends the body.
    pub fn append(&self, stream: &mut RlpStream) {
        stream.begin_list(2);
        stream.append(&self.target.as_slice()).append(&self.expiration.to_wire());
    }
}
