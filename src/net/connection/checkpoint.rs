//! The events of a connection for the owner of peers, and the reply that the connection awaits at each of the two
//! checkpoints.
//!
//! Left out: the content of the replies (`p2p::session`).

use std::{future::pending, sync::Arc};

use tokio::sync::oneshot;

use crate::{
    node::PublicKey,
    p2p::{
        Channel, ChannelIndex, DisconnectReason, RemoteHello,
        session::{Admission, ConnectionId, End, Opening},
    },
};

/// An event of a connection for the owner of peers.
pub enum Event {
    /// The remote node has proven its identity. This is the first checkpoint.
    Authenticated {
        /// The connection.
        connection: ConnectionId,
        /// The remote node's key.
        remote: PublicKey,
        /// Takes the decision, which the connection awaits.
        reply: oneshot::Sender<Admission>,
    },
    /// Hellos are exchanged. This is the second checkpoint.
    Negotiated {
        /// The connection.
        connection: ConnectionId,
        /// The Hello of the remote node.
        hello: Arc<RemoteHello>,
        /// The shared capabilities; never empty.
        channels: Arc<[Channel]>,
        /// Takes the decision, which the connection awaits.
        reply: oneshot::Sender<Opening>,
    },
    /// The remote node has sent bytes on a connection that was probed.
    Heard {
        /// The connection.
        connection: ConnectionId,
    },
    /// A channel was closed because its application reads too slowly (`ChannelOffer::ChannelClosed`).
    ChannelClosed {
        /// The connection.
        connection: ConnectionId,
        /// The channel.
        channel: ChannelIndex,
    },
    /// The connection has ended. This event is always sent, and it is always the last one.
    Closed {
        /// The connection.
        connection: ConnectionId,
        /// How it ended.
        end: End,
    },
}

/// A reply of the owner of peers.
pub(super) enum Verdict {
    Admission(Admission),
    Opening(Opening),
}

/// The reply that the connection awaits.
#[derive(Default)]
pub(super) enum Awaiting {
    #[default]
    Nothing,
    Admission(oneshot::Receiver<Admission>),
    Opening(oneshot::Receiver<Opening>),
}

impl Awaiting {
    /// Waits for the reply. If no reply is awaited, waits for ever. Cancel-safe.
    pub(super) async fn reply(&mut self) -> Verdict {
        // The owner of peers drops the sender without a reply only if the process is stopping.
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
