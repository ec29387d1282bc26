//! The events that one connection's engine reports to its driver.

use std::{sync::Arc, time::Duration};

use super::{Channel, DisconnectReason, Fault, RemoteHello};
use crate::node::PublicKey;

/// Which side ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// We did.
    Local,
    /// The peer did, with a Disconnect or without one.
    Remote,
}

/// An event on a connection, in the order in which they happened. Messages of the peer do not come this way: see
/// [`Connection::deliver`](super::Connection::deliver).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Keys exist: the first checkpoint. Answer with `greet` or `disconnect`; nothing more is read before that.
    ///
    /// On an accepted connection the key is claimed and not yet proven: a recorded auth can be replayed by anyone. Only
    /// the holder of the key can read the ack, and so reach [`Action::Negotiated`].
    Authenticated {
        /// The node's key.
        remote: PublicKey,
    },
    /// Both Hellos were exchanged and at least one capability is shared: the second checkpoint. Answer with `open` or
    /// `disconnect`; nothing more is read before that.
    Negotiated {
        /// The peer's Hello.
        hello: Arc<RemoteHello>,
        /// The shared capabilities, by index.
        channels: Arc<[Channel]>,
    },
    /// The peer answered a ping: the time from our Ping to its Pong.
    RoundTrip(Duration),
    /// A frame was read on a connection that was probed.
    Heard,
    /// The connection is over. This is the last action: flush what `poll_transmit` wrote, then close the socket.
    Closed {
        /// The side that ended it.
        by: Side,
        /// The reason that was written to the peer (by us) or read from it; `None` if there was no Disconnect.
        reason: Option<DisconnectReason>,
        /// The peer's fault, if a fault ended the connection.
        fault: Option<Fault>,
    },
}
