//! ENRRequest (0x05, EIP-868): `[expiration, ...]`.

use ::rlp::RlpStream;

use super::Expiration;
use crate::rlp::{Error, Reader};

/// A request for the node's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrRequest {
    /// When the request expires.
    pub expiration: Expiration,
}

impl EnrRequest {
    pub(super) fn read(list: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { expiration: Expiration::read(list)? })
    }

    /// Appends the body.
    pub fn append(&self, stream: &mut RlpStream) {
        stream.begin_list(1);
        stream.append(&self.expiration.to_wire());
    }
}
