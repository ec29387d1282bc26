//! What a connection and the owner of peers say to each other: events and checkpoints one way, verdicts and controls
//! the other, and the door through which messages leave ([`MessageSink`]).

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::{
    Now,
    node::PublicKey,
    p2p::{self, Channel, DisconnectReason, LocalCapability, RemoteHello},
};

/// Numbers the connections of this process; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// What becomes of a message handed to an application's queue.
#[derive(Debug)]
pub enum Offer {
    /// Queued, or reported as lost: either way it is accounted for.
    Taken,
    /// The queue is full. Offer the payload again when there is space, or at `until`, whichever comes first.
    Wait {
        /// The message, handed back.
        payload: Bytes,
        /// When to stop waiting.
        until: Instant,
    },
    /// The registration's policy is to let go of this peer.
    Disconnect(DisconnectReason),
}

/// Where the messages of one channel go.
pub trait MessageSink: Send + Sync {
    /// Takes a message of the channel, or says why not now. `code` is relative to the capability.
    fn offer(&self, now: Now, code: u64, payload: Bytes) -> Offer;
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
}
