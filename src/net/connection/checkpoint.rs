//! What a connection and the owner of peers say to each other: events and checkpoints one way, verdicts and controls
//! the other, and the door through which messages leave ([`MessageSink`]).

use std::{sync::Arc, time::Instant};

use tokio::sync::oneshot;

use crate::{
    node::PublicKey,
    p2p::{
        self, Channel, ChannelIndex, DisconnectReason, HeldTime, Inbound, LocalCapability, Offer, RemoteHello,
    },
};

/// Numbers the connections of this process; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// What became of a message handed to an application's queue.
#[derive(Debug)]
pub enum Sunk {
    /// What the connection has to do.
    Offer(Offer),
    /// The message is accounted for, and its channel was closed: the application is late, and its policy is to let go of
    /// the peer, which another application uses as well.
    ChannelClosed,
}

/// Where the messages of one channel go.
pub trait MessageSink: Send + Sync {
    /// Takes a message of the channel, or says why not now. Codes are relative to the capability.
    fn offer(&self, now: Instant, message: Inbound, held: HeldTime) -> Sunk;
    /// Takes a message that was read before the connection ended.
    fn offer_last(&self, now: Instant, message: Inbound);
}

/// The answer to [`Event::Authenticated`]: the capabilities to offer in our Hello, or why not to.
pub type Admission = Result<Vec<LocalCapability>, DisconnectReason>;

/// Where the messages of each channel go, by index.
pub type Sinks = Vec<Box<dyn MessageSink>>;

/// The answer to [`Event::Negotiated`]: what becomes of the connection, or why it goes.
pub type Opening = Result<Open, DisconnectReason>;

/// What becomes of a connection whose handshake is complete.
pub enum Open {
    /// A session: messages flow.
    Session(Sinks),
    /// The node is a peer over another connection. Stay, answer pings, hold the first message, until
    /// [`Control::Promote`] or a Disconnect.
    Parked,
}

/// What the owner of peers tells a running connection.
pub enum Control {
    /// Send a Ping now, and report the next thing that is heard ([`Event::Heard`]).
    Probe,
    /// A parked connection becomes the session.
    Promote(Sinks),
}

/// Which side opened the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We did, to the node with this key.
    Dial(PublicKey),
    /// They did.
    Accept,
}

/// What a connection tells the owner of peers.
pub enum Event {
    /// The remote proved its identity. First checkpoint.
    Authenticated {
        /// Which connection.
        connection: ConnectionId,
        /// Who it is.
        remote: PublicKey,
        /// Where the decision is awaited.
        reply: oneshot::Sender<Admission>,
    },
    /// Hellos are exchanged. Second checkpoint.
    Negotiated {
        /// Which connection.
        connection: ConnectionId,
        /// What the remote said of itself.
        hello: Arc<RemoteHello>,
        /// The capabilities shared with it; never empty.
        channels: Arc<[Channel]>,
        /// Where the decision is awaited.
        reply: oneshot::Sender<Opening>,
    },
    /// Something was heard on a connection that was probed.
    Heard {
        /// Which connection.
        connection: ConnectionId,
    },
    /// A channel was closed because its application is late ([`Sunk::ChannelClosed`]).
    ChannelClosed {
        /// Which connection.
        connection: ConnectionId,
        /// Which of its channels.
        channel: ChannelIndex,
    },
    /// The connection is over. Always the last event, and always sent.
    Closed {
        /// Which connection.
        connection: ConnectionId,
        /// How it ended.
        end: End,
    },
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Who ended it.
    pub by: p2p::Side,
    /// The reason given or received, where there was one.
    pub reason: Option<DisconnectReason>,
    /// What exactly went wrong, in words; empty when nothing did.
    pub detail: String,
    /// Whether it ended because nothing came in time.
    pub timed_out: bool,
    /// Whether the other side had proved its key: its Hello came in a frame that verified.
    pub proven: bool,
}
