//! ENRResponse (0x06, EIP-868): `[request-hash, record, ...]`.

use ::rlp::RlpStream;

use crate::rlp::{Error, Reader};

/// The sender's node record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrResponse<'a> {
    /// The hash of the request.
    pub request_hash: [u8; 32],
    /// The record as RLP. It is decoded, which verifies a signature, only once it matches a request.
    pub record: &'a [u8],
}

impl<'a> EnrResponse<'a> {
    pub(super) fn read(list: &mut Reader<'a>) -> Result<Self, Error> {
        Ok(Self { request_hash: list.array()?, record: list.raw()? })
    }

    /// Appends the body.
    pub fn append(&self, stream: &mut RlpStream) {
        stream.begin_list(2);
        stream.append(&self.request_hash.as_slice());
        stream.append_raw(self.record, 1);
    }
}
