//! The channel of one peer that an application sees, the messages that are queued for it, and why a message is refused.
//!
//! Left out: the queue itself (`p2p::outbound`), and the numbers that a stream has for its channels (`attachment`).

use std::sync::Arc;

use super::session::{Session, SessionChannel};
use crate::{
    delivery::SharedInbox,
    p2p::{Lane, Refused},
    rlpx::{Compressed, Compressor, MessageTooLarge},
};

/// A message that is ready to be queued for any number of peers: its payload was compressed once, and all queues share
/// the bytes.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The message code inside the capability.
    code: u32,
    payload: Compressed,
}

/// Encodes messages for peers. It reuses its tables and its buffer for the next message, so each stream has its own
/// encoder.
#[derive(Debug, Default)]
pub struct Encoder(Compressor);

impl Encoder {
    /// Encodes a message.
    ///
    /// # Errors
    ///
    /// The compressed payload does not fit a frame of RLPx.
    pub fn encode(&mut self, code: u32, payload: &[u8]) -> Result<Encoded, MessageTooLarge> {
        Ok(Encoded { code, payload: self.0.compress(payload)? })
    }
}

/// One channel of one session, as an inbox knows it.
#[derive(Clone, Debug)]
pub struct PeerChannel {
    /// The session.
    pub session: Arc<Session>,
    /// The channel of the session.
    pub channel: SessionChannel,
}

impl PeerChannel {
    /// Queues a message of a call for this peer, or refuses it. Never waits. Returns the message's number, for
    /// `net::wake`.
    ///
    /// # Errors
    ///
    /// The peer cannot get the message, or its queue has no room for it.
    pub fn send(&self, message: &Encoded) -> Result<u64, SendError> {
        self.queue(Lane::Call, message)
    }

    /// Encodes and queues a message that goes to this peer alone.
    ///
    /// # Errors
    ///
    /// As for [`Self::send`].
    pub fn send_payload(&self, code: u32, payload: &[u8]) -> Result<u64, SendError> {
        let too_large = |_| SendError::TooLarge { bytes: payload.len(), limit: self.channel.max_message };
        self.send(&Encoder::default().encode(code, payload).map_err(too_large)?)
    }

    /// Queues a message for the peer. Streams and calls have no other way into this queue.
    pub(super) fn queue(&self, lane: Lane, message: &Encoded) -> Result<u64, SendError> {
        let (index, code) = (self.channel.index, u64::from(message.code));
        Ok(self.session.outbound.send(lane, index, code, message.payload.clone())?)
    }
}

/// The inbox of a registration of this process.
pub(super) type Inbox = SharedInbox<PeerChannel>;

/// Why a message was not accepted for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The channel's window is used up.
    #[error("the channel's send window is used up; wait for credit")]
    WindowExceeded,
    /// The channel has ended.
    #[error("the channel is closed; wait for the next channel_opened of this peer")]
    NotConnected,
    /// No channel has had this number on this stream.
    #[error("no channel {channel} was opened on this stream; the channel_opened events have the numbers")]
    NeverOpened {
        /// The number.
        channel: u32,
    },
    /// The code is not below the message count of the capability.
    #[error("the protocol has message codes 0 to {}", message_count.saturating_sub(1))]
    CodeOutOfRange {
        /// The number of codes that the capability has.
        message_count: u64,
    },
    /// The message is larger than the protocol's owner allows, or than a frame carries.
    #[error(
        "{bytes} bytes; a message has at most {limit} bytes, and its compressed frame must fit 24 bits (16776442 bytes of \
         data that does not compress)"
    )]
    TooLarge {
        /// The message's size, in bytes.
        bytes: usize,
        /// The limit, in bytes: that of the protocol's owner, or of RLPx.
        limit: usize,
    },
}

impl From<Refused> for SendError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full => Self::WindowExceeded,
            Refused::Closed => Self::NotConnected,
            Refused::CodeOutOfRange { message_count } => Self::CodeOutOfRange { message_count },
            Refused::TooLarge { bytes, limit } => Self::TooLarge { bytes, limit },
        }
    }
}
