//! What one connection's engine tells its driver.

use std::{sync::Arc, time::Duration};

use super::{Channel, DisconnectReason, Fault, RemoteHello};
use crate::node::PublicKey;

/// Which side ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// We did.
    Local,
    /// The peer did, with a Disconnect or without a word.
    Remote,
}

/// What happened on a connection, in the order it happened. Messages of the peer come through
/// [`Connection::deliver`](super::Connection::deliver).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Keys exist: first checkpoint. Answer with `greet` or `disconnect`; nothing more is read before.
    ///
    /// On an accepted connection this is who the other side claims to be, not yet who it is: a recorded auth can be
    /// replayed by anybody. Only who can also read the ack gets to [`Action::Negotiated`].
    Authenticated {
        /// The node's key.
        remote: PublicKey,
    },
    /// Both Hellos were exchanged and something is shared: second checkpoint. Answer with `open` or `disconnect`;
    /// nothing more is read before.
    Negotiated {
        /// What the peer said of itself.
        hello: Arc<RemoteHello>,
        /// What is shared, by index.
        channels: Arc<[Channel]>,
    },
    /// The peer answered a ping.
    RoundTrip(Duration),
    /// Something was read on a connection that was probed.
    Heard,
    /// The connection is over. The last action: flush what `poll_transmit` wrote, then close the socket.
    Closed {
        /// Whose decision it was.
        by: Side,
        /// The reason that was written to the peer (by us) or read from it; `None` if it was left without a word.
        reason: Option<DisconnectReason>,
        /// What the peer did wrong, if that is why.
        fault: Option<Fault>,
    },
}
