//! The channel of one peer that an application sees, the messages that are queued for it, and why one is refused.
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

/// Encodes messages for peers. It keeps its tables and its buffer from one message to the next, so each stream has its own.
#[derive(Debug, Default)]
pub struct Encoder(Compressor);

impl Encoder {
    /// Encodes a message.
    ///
    /// # Errors
    ///
    /// No frame of any peer has room for the payload.
    pub fn encode(&mut self, code: u32, payload: &[u8]) -> Result<Encoded, MessageTooLarge> {
        Ok(Encoded { code, payload: self.0.compress(payload)? })
    }
}

/// One channel of one session, as an inbox knows it.
#[derive(Clone, Debug)]
pub struct PeerChannel {
    /// The session.
    pub session: Arc<Session>,
    /// Which of its channels.
    pub channel: SessionChannel,
}

impl PeerChannel {
    /// Queues a message of a call for this peer, or refuses it; never waits. Returns the message's number, for
    /// `net::wake`.
    ///
    /// # Errors
    ///
    /// The peer cannot get the message, or its queue has no room for it.
    pub fn send(&self, message: &Encoded) -> Result<u64, SendError> {
        self.queue(Lane::Call, message)
    }

    /// The same for a message that goes to this peer alone.
    ///
    /// # Errors
    ///
    /// As for [`Self::send`].
    pub fn send_payload(&self, code: u32, payload: &[u8]) -> Result<u64, SendError> {
        let too_large = |_| SendError::TooLarge { bytes: payload.len(), limit: self.channel.max_message };
        self.send(&Encoder::default().encode(code, payload).map_err(too_large)?)
    }

    /// The one way into the queue of a peer, for streams and calls.
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
    #[error("the channel is closed")]
    NotConnected,
    /// No channel has had this number on this stream.
    #[error("no channel {channel} was opened on this stream; channel_opened tells the numbers")]
    NeverOpened {
        /// The number.
        channel: u32,
    },
    /// The capability has fewer codes.
    #[error("the protocol has message codes 0 to {}", message_count.saturating_sub(1))]
    CodeOutOfRange {
        /// How many it has.
        message_count: u64,
    },
    /// It is larger than the protocol's owner allows, or than a frame carries.
    #[error(
        "{bytes} bytes; a message has at most {limit} bytes, and its compressed frame must fit 24 bits (16776442 bytes of \
         data that does not compress)"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit: the owner's for its protocol, or RLPx's.
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
