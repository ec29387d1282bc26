//! What a peer can do wrong, and what it is told for it.
//!
//! One function turns a fault into a reason ([`Fault::reason`]). The reason is sent wherever there are keys to send it
//! with; before that the connection closes in silence, so that a stranger without keys learns nothing.

use super::{
    DisconnectReason,
    wire::{FrameError, Refused, SnappyError},
};
use crate::rlp;

/// Why we left a peer: it was its doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The RLPx handshake failed.
    #[error(transparent)]
    Handshake(#[from] Refused),
    /// The handshake, Hello included, was not finished in time.
    #[error("the handshake was not finished in time")]
    HandshakeTimeout,
    /// A frame broke the format.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Another message where Hello is due.
    #[error("message {code:#04x} came before Hello")]
    HelloExpected {
        /// The code of that message.
        code: u64,
    },
    /// A Hello that cannot be read.
    #[error("Hello cannot be read: {0}")]
    BadHello(rlp::Error),
    /// A Hello without a usable node key.
    #[error("Hello carries no node key")]
    InvalidIdentity,
    /// A Hello with the key of another node than the one that shook hands.
    #[error("Hello names another node than the one that shook hands")]
    UnexpectedIdentity,
    /// No capability in common.
    #[error("no capability is shared")]
    NoSharedCapability,
    /// A base message over 2 KiB.
    #[error("base message {code:#04x} of {size} bytes, at most 2048 are accepted")]
    BaseMessageTooLarge {
        /// The code of the message.
        code: u64,
        /// Its size as it was received.
        size: usize,
    },
    /// A code that belongs to no shared capability.
    #[error("message code {code:#x} belongs to no shared capability")]
    CodeOutOfRange {
        /// The code on the wire.
        code: u64,
    },
    /// A payload that does not decompress to an acceptable message.
    #[error(transparent)]
    Snappy(#[from] SnappyError),
    /// Nothing was heard for too long.
    #[error("nothing was heard from the peer for too long")]
    Silence,
    /// A frame began and did not end in time.
    #[error("a frame began and did not end in time")]
    FrameTimeout,
    /// Something waited to be written and the socket took none of it for too long.
    #[error("the peer took no byte for 20 seconds while something waited to be written")]
    WriteTimeout,
}

impl Fault {
    /// Whether nothing came, or went, in time.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::HandshakeTimeout | Self::Silence | Self::FrameTimeout | Self::WriteTimeout)
    }

    /// The reason to give for this fault.
    #[must_use]
    pub fn reason(&self) -> DisconnectReason {
        match self {
            Self::Handshake(_)
            | Self::Frame(_)
            | Self::HelloExpected { .. }
            | Self::BadHello(_)
            | Self::BaseMessageTooLarge { .. }
            | Self::CodeOutOfRange { .. }
            | Self::Snappy(_) => DisconnectReason::BreachOfProtocol,
            Self::InvalidIdentity => DisconnectReason::InvalidIdentity,
            Self::UnexpectedIdentity => DisconnectReason::UnexpectedIdentity,
            Self::NoSharedCapability => DisconnectReason::UselessPeer,
            Self::HandshakeTimeout | Self::Silence | Self::FrameTimeout | Self::WriteTimeout => {
                DisconnectReason::ReadTimeout
            }
        }
    }
}
