//! The faults of a peer, and the Disconnect reason for each.
//!
//! One function turns a fault into a reason ([`Fault::reason`]). The reason is sent if there are keys to encrypt it
//! with. Before that the connection closes without a message, so that a stranger without keys learns nothing.

use super::{
    DisconnectReason,
    wire::{FrameError, Refused, SnappyError},
};
use crate::rlp;

/// A fault of the peer, for which we ended the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The RLPx handshake failed.
    #[error(transparent)]
    Handshake(#[from] Refused),
    /// The handshake, Hello included, was not finished within 5 seconds.
    #[error("the handshake was not finished within 5 seconds")]
    HandshakeTimeout,
    /// A frame broke the format of RLPx.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Another message came where Hello is due.
    #[error("message {code:#04x} came before Hello")]
    HelloExpected {
        /// The code of that message.
        code: u64,
    },
    /// A Hello that cannot be read.
    #[error("Hello cannot be read: {0}")]
    BadHello(rlp::Error),
    /// A Hello whose node key is not 64 bytes, or is all zeros.
    #[error("Hello carries no node key")]
    InvalidIdentity,
    /// A Hello with the key of another node than the one in the handshake.
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
    /// Nothing was read for 30 seconds ([`MAX_SILENCE`](super::keepalive::MAX_SILENCE)).
    #[error("nothing was read from the peer for 30 seconds")]
    Silence,
    /// A frame began and did not end within 30 seconds.
    #[error("a frame began and did not end within 30 seconds")]
    FrameTimeout,
    /// Bytes waited to be written, and the socket took none of them for 20 seconds.
    #[error("the peer took no byte for 20 seconds while bytes waited to be written")]
    WriteTimeout,
    /// The memory for incomplete messages was used up, and the peer's message gave way
    /// ([`verdict`](super::incomplete::verdict)).
    #[error("its message arrived too slowly while other peers waited for the memory that it took")]
    GaveWay,
}

impl Fault {
    /// Whether the fault is that nothing came, or that nothing was taken, in time.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(
            self,
            Self::HandshakeTimeout | Self::Silence | Self::FrameTimeout | Self::WriteTimeout | Self::GaveWay
        )
    }

    /// The Disconnect reason for this fault.
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
            Self::HandshakeTimeout
            | Self::Silence
            | Self::FrameTimeout
            | Self::WriteTimeout
            | Self::GaveWay => DisconnectReason::ReadTimeout,
        }
    }
}
