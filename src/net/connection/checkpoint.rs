//! What a connection tells the owner of peers: events, and at the two checkpoints where the reply is awaited.
//!
//! Left out: the words of the replies, which are values (`p2p::session`).

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::{
    node::PublicKey,
    p2p::{
        Channel, ChannelIndex, RemoteHello,
        session::{Admission, ConnectionId, End, Opening},
    },
};

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
    /// A channel was closed because its application is late (`Sunk::ChannelClosed`).
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
