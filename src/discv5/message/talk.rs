//! TALKREQ (0x05) and TALKRESP (0x06): a request to an application at another node, and its response.
//!
//! One datagram each way. An empty response means that no application there serves the protocol.

use bytes::BytesMut;

use super::{MessageError, MessageType, RequestId, encode};
use crate::rlp::Reader;

/// `[request-id, protocol, request]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TalkRequest<'a> {
    /// The request id.
    pub id: RequestId,
    /// The name of the application protocol; any bytes.
    pub protocol: &'a [u8],
    /// The question.
    pub request: &'a [u8],
}

impl<'a> TalkRequest<'a> {
    pub(super) fn decode(id: RequestId, list: &mut Reader<'a>) -> Result<Self, MessageError> {
        Ok(Self { id, protocol: list.bytes()?, request: list.bytes()? })
    }

    /// Appends the plaintext.
    pub fn encode(&self, out: &mut BytesMut) {
        encode(out, MessageType::TalkRequest, self.id, 2, |list| {
            list.append(&self.protocol).append(&self.request);
        });
    }
}

/// `[request-id, response]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TalkResponse<'a> {
    /// The TALKREQ's request id.
    pub id: RequestId,
    /// The response; empty if no application at the node serves the protocol.
    pub response: &'a [u8],
}

impl<'a> TalkResponse<'a> {
    pub(super) fn decode(id: RequestId, list: &mut Reader<'a>) -> Result<Self, MessageError> {
        Ok(Self { id, response: list.bytes()? })
    }

    /// Appends the plaintext.
    pub fn encode(&self, out: &mut BytesMut) {
        encode(out, MessageType::TalkResponse, self.id, 1, |list| {
            list.append(&self.response);
        });
    }
}
