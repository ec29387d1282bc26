//! The values that a connection and the owner of peers exchange: the answers to the two checkpoints, the orders to a
//! running connection, and how it ended. [`ChannelInbox`] is the interface by which its messages leave.
//!
//! Left out: how a value gets there (`net::connection` has tasks and reply channels for that), and the decisions
//! (`switch`, `policy`).

use std::time::Instant;

use super::{DisconnectReason, Fault, HeldTime, Inbound, LocalCapability, Offer, Side};
use crate::node::PublicKey;

/// The number of a connection in this process; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// The result of handing a message to an application's queue.
#[derive(Debug)]
pub enum ChannelOffer {
    /// The connection has to act on this.
    Offer(Offer),
    /// The message is accounted for, and its channel was closed: the application is late, and its policy is to
    /// disconnect the peer. Only the channel ends, because another application uses the peer too.
    ChannelClosed,
}

/// The queue that takes the messages of one channel.
pub trait ChannelInbox: Send + Sync {
    /// Takes a message of the channel, or returns why it cannot be taken now. Codes are relative to the capability.
    fn offer(&self, now: Instant, message: Inbound, held: HeldTime) -> ChannelOffer;
    /// Takes a message that was read before the connection ended.
    fn offer_last(&self, now: Instant, message: Inbound);
}

/// The answer to the first checkpoint: the capabilities to offer in our Hello, or the reason to refuse the connection.
pub type Admission = Result<Vec<LocalCapability>, DisconnectReason>;

/// The queues that take the messages of each channel, by index.
pub type ChannelInboxes = Vec<Box<dyn ChannelInbox>>;

/// The answer to the second checkpoint: how the connection goes on, or the reason to refuse it.
pub type Opening = Result<Open, DisconnectReason>;

/// How a connection goes on once its handshake is complete.
pub enum Open {
    /// A session: messages flow.
    Session(ChannelInboxes),
    /// The node is a peer over another connection. The connection stays, answers pings and holds the first message,
    /// until [`Control::Promote`] or a Disconnect.
    Parked,
}

/// An order from the owner of peers to a running connection.
pub enum Control {
    /// Send a Ping now, and report the next frame that is read ([`Action::Heard`](super::Action::Heard)).
    Probe,
    /// A parked connection becomes the session.
    Promote(ChannelInboxes),
}

/// Which side opened the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We did, to the node with this key.
    Dial(PublicKey),
    /// They did.
    Accept,
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// The side that ended it.
    pub by: Side,
    /// The Disconnect reason that was written or read, if there was one.
    pub reason: Option<DisconnectReason>,
    /// A description of the fault or of the socket's error; empty if there was neither.
    pub detail: String,
    /// Whether it ended because of a timeout.
    pub timed_out: bool,
    /// Whether the other side had proven its key: its Hello came in a frame that verified.
    pub proven: bool,
}

impl End {
    /// The end as the engine reports it ([`Action::Closed`](super::Action::Closed)).
    #[must_use]
    pub fn closed(by: Side, reason: Option<DisconnectReason>, fault: Option<Fault>) -> Self {
        let timed_out = fault.as_ref().is_some_and(Fault::is_timeout);
        let detail = fault.map(|fault| fault.to_string()).unwrap_or_default();
        Self { by, reason, detail, timed_out, proven: false }
    }

    /// The socket ended; `detail` says why.
    #[must_use]
    pub fn lost(detail: String) -> Self {
        Self { by: Side::Remote, reason: None, detail, timed_out: false, proven: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_says_what_the_peer_did_wrong_and_whether_it_was_late() {
        let end = |fault| End::closed(Side::Local, Some(DisconnectReason::ReadTimeout), fault);
        assert_eq!(end(None).detail, "");
        assert!(!end(None).timed_out);
        for (fault, timed_out) in [
            (Fault::HandshakeTimeout, true),
            (Fault::Silence, true),
            (Fault::FrameTimeout, true),
            (Fault::WriteTimeout, true),
            (Fault::NoSharedCapability, false),
            (Fault::CodeOutOfRange { code: 99 }, false),
        ] {
            let End { timed_out: late, detail, .. } = end(Some(fault));
            assert_eq!((late, detail), (timed_out, fault.to_string()));
        }
    }
}
