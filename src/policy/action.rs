//! The actions that the policy asks for: one flat list for the whole room.
//!
//! Left out: how it is done (`switch` turns each action into effects).

use std::{fmt, net::SocketAddr};

use super::{
    cause::Cause,
    dial::{ConnectId, ConnectOutcome, Dial, Kind, TaskId},
    fork_following::News,
    one_source::OneSource,
    refusal::Refusal,
    warnings::Warning,
};
use crate::{
    node::{NodeId, PublicKey},
    p2p::session::ConnectionId,
};

/// An action that the caller must carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Resolve a host name and call [`Policy::host_resolved`](super::Policy::host_resolved), within some seconds.
    LookupHost {
        /// Names the dial in its result.
        task: TaskId,
        /// The name.
        name: String,
    },
    /// Dial, and call either [`Policy::conn_opened`](super::Policy::conn_opened) or
    /// [`Policy::dial_failed`](super::Policy::dial_failed).
    Dial(Dial),
    /// Give this dial up. The scheduler has forgotten it and expects no result.
    AbortDial(TaskId),
    /// Ask discovery where the node is, and call [`Policy::node_resolved`](super::Policy::node_resolved).
    ResolveNode {
        /// The node.
        id: NodeId,
        /// Its key, if known.
        public_key: Option<PublicKey>,
    },
    /// A static or trusted entry, or its state, changed; see [`Policy::entry`](super::Policy::entry).
    EntryChanged(NodeId),
    /// A one-off dial ended.
    ConnectDone {
        /// Which one.
        connect: ConnectId,
        /// The node that was dialed.
        id: NodeId,
        /// How it ended.
        outcome: ConnectOutcome,
    },
    /// A dial ended without a peer.
    DialFailed {
        /// The node that was dialed.
        id: NodeId,
        /// Where, unless the dial ended while a name was looked up.
        addr: Option<SocketAddr>,
        /// Why it was made.
        kind: Kind,
        /// Why it failed.
        cause: Cause,
        /// In more words.
        detail: String,
    },
    /// A change about forks that schedules lack.
    Fork(News),
    /// So many more candidates are wanted from all sources together. 0: stop looking.
    Demand(usize),
    /// Disconnect, flush, close. The connection is forgotten here already.
    Close(ConnectionId, CloseReason),
    /// Send a Ping and report the next message with [`Policy::conn_heard`](super::Policy::conn_heard).
    Probe(ConnectionId),
    /// A parked connection is the node's from now on: open its session, and end that of `before` if it is open.
    Promoted {
        /// The connection that stays.
        conn: ConnectionId,
        /// The one in whose place it is.
        before: ConnectionId,
        /// Whose.
        id: NodeId,
    },
    /// A warning begins to hold: report it to the operator.
    Warn(Warning),
    /// The warning of this name does not hold any more.
    WarningOver(&'static str),
    /// The lists that survive restarts changed: write [`Policy::lists`](super::Policy::lists).
    ListsChanged,
    /// Most refused connections come from one private address: warn the operator.
    OneSource(OneSource),
}

/// Why a connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// A checkpoint or a limit ends it.
    Refused(Refusal),
    /// The operator took the peer off the static list.
    Removed,
    /// The peer, or its address, was banned.
    Banned,
    /// The rotation chose it.
    Rotated,
}

impl CloseReason {
    /// The meaning of the close for later dials of the node.
    pub(super) fn cause(self) -> Cause {
        match self {
            Self::Refused(refusal) => refusal.cause(),
            Self::Removed | Self::Banned => Cause::Operator,
            Self::Rotated => Cause::LocalPolicy,
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Removed => f.write_str("removed from the static list"),
            Self::Banned => f.write_str("banned"),
            Self::Rotated => f.write_str("made room by rotation"),
        }
    }
}
