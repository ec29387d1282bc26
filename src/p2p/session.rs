//! The words that a connection and the owner of peers exchange, as values: what is asked at the two checkpoints, what is
//! told to a running connection, how it ended, and the door through which messages leave ([`MessageSink`]).
//!
//! Left out: how a word gets there (`net::connection` has tasks and reply channels for that), and what is decided
//! (`switch`, `policy`).

use std::time::Instant;

use super::{DisconnectReason, Fault, HeldTime, Inbound, LocalCapability, Offer, Side};
use crate::node::PublicKey;

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

/// The answer to the first checkpoint: the capabilities to offer in our Hello, or why not to.
pub type Admission = Result<Vec<LocalCapability>, DisconnectReason>;

/// Where the messages of each channel go, by index.
pub type Sinks = Vec<Box<dyn MessageSink>>;

/// The answer to the second checkpoint: what becomes of the connection, or why it goes.
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
    /// Send a Ping now, and report the next thing that is heard ([`Action::Heard`](super::Action::Heard)).
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

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Who ended it.
    pub by: Side,
    /// The reason given or received, where there was one.
    pub reason: Option<DisconnectReason>,
    /// What exactly went wrong, in words; empty when nothing did.
    pub detail: String,
    /// Whether it ended because nothing came in time.
    pub timed_out: bool,
    /// Whether the other side had proved its key: its Hello came in a frame that verified.
    pub proven: bool,
}

impl End {
    /// How the engine says that it ended ([`Action::Closed`](super::Action::Closed)).
    #[must_use]
    pub fn closed(by: Side, reason: Option<DisconnectReason>, fault: Option<Fault>) -> Self {
        let timed_out = fault.as_ref().is_some_and(Fault::is_timeout);
        let detail = fault.map(|fault| fault.to_string()).unwrap_or_default();
        Self { by, reason, detail, timed_out, proven: false }
    }

    /// The socket ended, as `detail` says.
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
