//! What a connection tells the owner of peers, and the reply that it awaits at each of the two checkpoints.
//!
//! Left out: the words of the replies, which are values (`p2p::session`).

use std::{future::pending, sync::Arc};

use tokio::sync::oneshot;

use crate::{
    node::PublicKey,
    p2p::{
        Channel, ChannelIndex, DisconnectReason, RemoteHello,
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

/// A reply.
pub(super) enum Verdict {
    Admission(Admission),
    Opening(Opening),
}

/// The reply that is awaited.
#[derive(Default)]
pub(super) enum Awaiting {
    #[default]
    Nothing,
    Admission(oneshot::Receiver<Admission>),
    Opening(oneshot::Receiver<Opening>),
}

impl Awaiting {
    /// Waits for the reply; without one to come it waits for ever. Cancel-safe.
    pub(super) async fn reply(&mut self) -> Verdict {
        // A dropped sender means that the owner of peers is gone: the process is quitting.
        let verdict = match self {
            Self::Nothing => pending().await,
            Self::Admission(reply) => {
                Verdict::Admission(reply.await.unwrap_or(Err(DisconnectReason::Quitting)))
            }
            Self::Opening(reply) => Verdict::Opening(reply.await.unwrap_or(Err(DisconnectReason::Quitting))),
        };
        *self = Self::Nothing;
        verdict
    }
}
