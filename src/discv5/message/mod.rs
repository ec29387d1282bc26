//! The messages inside the packets, one file for each request with its response.
//!
//! A plaintext is one type byte and one RLP list whose first element is the request id. Decoded messages borrow from
//! the plaintext; lists inside them are read on demand and have been checked once, when the message was decoded. Extra
//! list elements are refused, as geth does. Unknown types (the topic messages 0x07 to 0x0a among them) are
//! distinguished from malformed messages, because they are no fault.
//!
//! Source: devp2p, discv5/discv5-wire.md, "Protocol Messages".

mod nodes;
mod ping;
mod talk;

use bytes::{BufMut, BytesMut};

pub use nodes::{FindNode, MAX_NODES_BYTES, Nodes, encode_findnode, encode_nodes};
pub use ping::{Ping, Pong};
pub use talk::{TalkRequest, TalkResponse};

use crate::rlp::{self, Reader};

/// The most bytes a request id may have.
const MAX_REQUEST_ID: usize = 8;

/// The reason why a plaintext is not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// No type byte.
    #[error("the message is empty")]
    Empty,
    /// A type that we do not support. It is no fault: the topic messages have such types.
    #[error("message type {0:#04x} is not one of 0x01 to 0x06")]
    Unknown(u8),
    /// The request id is longer than 8 bytes.
    #[error("the request id has more than {MAX_REQUEST_ID} bytes")]
    RequestId,
    /// Not the RLP that the type demands.
    #[error("the message is malformed: {0}")]
    Rlp(#[from] rlp::Error),
}

/// A request id as the requester chose it: 0 to 8 bytes that the response repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct RequestId {
    length: u8,
    bytes: [u8; MAX_REQUEST_ID],
}

impl RequestId {
    /// The id that is `bytes`, if they are not too many.
    pub fn new(bytes: &[u8]) -> Result<Self, MessageError> {
        let mut id = Self { length: 0, bytes: [0; MAX_REQUEST_ID] };
        id.bytes.get_mut(..bytes.len()).ok_or(MessageError::RequestId)?.copy_from_slice(bytes);
        id.length = u8::try_from(bytes.len()).map_err(|_| MessageError::RequestId)?;
        Ok(id)
    }

    /// An id of 8 bytes. They should be random: a guessed id is the first half of a forged answer.
    #[must_use]
    pub fn from_u64(value: u64) -> Self {
        Self { length: 8, bytes: value.to_be_bytes() }
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }
}

/// The type byte of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MessageType {
    /// Asks whether the node is alive.
    Ping = 0x01,
    /// Answers a PING.
    Pong = 0x02,
    /// Asks for nodes at given distances.
    FindNode = 0x03,
    /// Answers a FINDNODE with records.
    Nodes = 0x04,
    /// A request to an application.
    TalkRequest = 0x05,
    /// Its response.
    TalkResponse = 0x06,
}

/// A decoded message.
#[derive(Clone, Copy, Debug)]
pub enum Message<'a> {
    /// PING.
    Ping(Ping),
    /// PONG.
    Pong(Pong),
    /// FINDNODE.
    FindNode(FindNode<'a>),
    /// NODES.
    Nodes(Nodes<'a>),
    /// TALKREQ.
    TalkRequest(TalkRequest<'a>),
    /// TALKRESP.
    TalkResponse(TalkResponse<'a>),
}

impl<'a> Message<'a> {
    /// Reads a plaintext.
    pub fn decode(plaintext: &'a [u8]) -> Result<Self, MessageError> {
        let (kind, body) = plaintext.split_first().ok_or(MessageError::Empty)?;
        if !matches!(kind, 0x01..=0x06) {
            return Err(MessageError::Unknown(*kind));
        }
        let mut list = Reader::list(body)?;
        let id = RequestId::new(list.bytes()?)?;
        let message = match kind {
            0x01 => Self::Ping(Ping::decode(id, &mut list)?),
            0x02 => Self::Pong(Pong::decode(id, &mut list)?),
            0x03 => Self::FindNode(FindNode::decode(id, &mut list)?),
            0x04 => Self::Nodes(Nodes::decode(id, &mut list)?),
            0x05 => Self::TalkRequest(TalkRequest::decode(id, &mut list)?),
            _ => Self::TalkResponse(TalkResponse::decode(id, &mut list)?),
        };
        list.finish()?;
        Ok(message)
    }

    /// The request id.
    #[must_use]
    pub fn id(&self) -> RequestId {
        match self {
            Self::Ping(m) => m.id,
            Self::Pong(m) => m.id,
            Self::FindNode(m) => m.id,
            Self::Nodes(m) => m.id,
            Self::TalkRequest(m) => m.id,
            Self::TalkResponse(m) => m.id,
        }
    }

    /// The type.
    #[must_use]
    pub fn kind(&self) -> MessageType {
        match self {
            Self::Ping(_) => MessageType::Ping,
            Self::Pong(_) => MessageType::Pong,
            Self::FindNode(_) => MessageType::FindNode,
            Self::Nodes(_) => MessageType::Nodes,
            Self::TalkRequest(_) => MessageType::TalkRequest,
            Self::TalkResponse(_) => MessageType::TalkResponse,
        }
    }
}

/// Writes type byte, list header and request id into `out`, then the `rest` elements that `body` appends.
fn encode(
    out: &mut BytesMut,
    kind: MessageType,
    id: RequestId,
    rest: usize,
    body: impl FnOnce(&mut ::rlp::RlpStream),
) {
    out.put_u8(kind as u8);
    // The stream appends to the buffer it is given and hands it back: nothing is allocated but growth.
    let mut stream = ::rlp::RlpStream::new_with_buffer(std::mem::take(out));
    stream.begin_list(1 + rest).append(&id.as_bytes());
    body(&mut stream);
    *out = stream.out();
}

#[cfg(test)]
mod tests;
