//! The events that an inbox hands to the current stream.
//!
//! The events of one channel come in order: opened, messages and gaps, closed. Events of different channels have no
//! order.

use std::sync::Arc;

use bytes::Bytes;

/// The properties of a channel that never change: its session and its peer.
#[derive(Clone, Debug)]
pub struct About<P> {
    /// The connection this channel belongs to; it outlives the application's streams.
    pub session_id: u64,
    /// The peer and the negotiated capability, as the owner of the queue describes them.
    pub peer: P,
    /// How many first messages to keep for later streams (`ProtocolSpec.keep_first`), at most
    /// [`MAX_KEEP_FIRST`](super::MAX_KEEP_FIRST).
    pub keep_first: usize,
    /// Whether the sidecar sent the registered greeting on this channel.
    pub greeting_sent: bool,
}

/// A message that is kept while the session lives, and repeated to an application that attaches again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstMessage {
    /// Its code inside the capability.
    pub code: u32,
    /// Its payload.
    pub payload: Bytes,
}

/// A channel's first event on a stream.
#[derive(Clone, Debug)]
pub struct Opened<P> {
    /// The channel's number on this stream; never used again on it.
    pub channel: u32,
    /// The channel's session, peer and capability.
    pub about: Arc<About<P>>,
    /// Whether the channel was announced on an earlier stream.
    pub existing: bool,
    /// How many of its messages were handed over or reported as gaps before this event, on all streams.
    pub position: u64,
    /// The most of those messages that the application may not have processed: they were handed to streams that broke
    /// before their credit came back. `None` if a stream had automatic credit, so that the number is unknown.
    pub uncredited_messages: Option<u64>,
    /// The kept first messages that this stream will not deliver as messages.
    pub first_messages: Vec<FirstMessage>,
}

/// The position of a part in its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The size of the whole message in bytes.
    pub total: usize,
    /// The offset of this part, in bytes.
    pub offset: usize,
}

/// The side that ended a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClosedBy {
    /// The peer, or its connection.
    Remote,
    /// The sidecar.
    Sidecar,
    /// The operator.
    Operator,
    /// The application with this client id.
    Client(Arc<str>),
}

/// How a channel ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    /// The devp2p disconnect reason.
    pub reason: u8,
    /// The side that ended it.
    pub by: ClosedBy,
    /// A description (`rehello`, `queue full` …); empty if there is nothing to add.
    pub detail: Arc<str>,
    /// Outbound messages that were accepted and never written to the socket.
    pub unsent_messages: u64,
}

/// One event of a stream.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// A channel exists.
    Opened(Box<Opened<P>>),
    /// A message, or a part of one.
    Message {
        /// The channel's number.
        channel: u32,
        /// The message code inside the capability.
        code: u32,
        /// The payload of the message, or of this part.
        payload: Bytes,
        /// Set when the message comes in parts; the parts of one message are consecutive on their channel. If a gap
        /// comes before the last part, the message is lost and counted in the gap.
        part: Option<Part>,
    },
    /// Messages were lost at this place.
    Gap {
        /// The channel's number; 0 for whole sessions that opened and closed without an announcement.
        channel: u32,
        /// How many whole sessions; 0 unless `channel` is 0.
        sessions: u64,
        /// How many messages.
        messages: u64,
        /// The bytes of their payloads.
        bytes: u64,
    },
    /// A channel's last event.
    Closed {
        /// The channel's number.
        channel: u32,
        /// How it ended.
        close: Arc<Close>,
    },
}
