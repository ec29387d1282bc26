//! Why a dial failed or a connection ended, and whose fault that was.
//!
//! The wire's disconnect reasons are not enough to decide when to try again. Most ends have none (silent closes,
//! timeouts), and the same reason has another meaning from their side than from ours. A [`Cause`] has the facts that
//! the scheduler needs. The drivers translate socket errors and disconnect reasons into it, in one place each.
//!
//! Left out: how long to wait after which cause (`dial/backoff.rs`), and the text about one failure, which travels
//! beside the cause as `detail`.

use std::fmt;

/// Why there is no connection, or no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The TCP connection was refused, had no route or timed out: no node was reached.
    Unreachable,
    /// The host name resolved to nothing.
    NameUnknown,
    /// The host name, or discovery, gave only addresses that we do not dial.
    AddressRefused,
    /// Discovery found no address of the node.
    NotFound,
    /// Accepted and closed during the handshake without a word: the key is not theirs, so that they cannot read us, or
    /// an inbound throttle or net restriction of theirs. On the wire these look alike.
    HungUp,
    /// Said nothing until the handshake's deadline.
    Silent,
    /// The other side sent something other than RLPx, or broke the base protocol before we were peers.
    Garbled,
    /// Another node answers at that address.
    WrongIdentity,
    /// They are full (0x04).
    TooManyPeers,
    /// They hold a connection with us already (0x05).
    AlreadyConnected,
    /// No capability in common, or they found us useless (0x03).
    UselessPeer,
    /// They broke a protocol, or accuse us of that (0x02, 0x10, 0x06).
    Breach,
    /// They asked to end it (0x00).
    Requested,
    /// They are shutting down (0x08).
    Quitting,
    /// The connection of an established peer broke or fell silent.
    LinkLost,
    /// Our limits or our rotation ended it.
    LocalPolicy,
    /// The operator, or an application, ended it.
    Operator,
    /// We could not: out of file descriptors, no route at all, shutting down.
    LocalFault,
}

/// Whose fault a [`Cause`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The way there: a wrong or dead address.
    Path,
    /// The node at the other end.
    Theirs,
    /// Neither side is at fault: everyday answers of a healthy network.
    Nobody,
    /// Us.
    Ours,
}

impl Cause {
    /// All causes, for tables of counters.
    pub const ALL: [Self; 18] = [
        Self::Unreachable,
        Self::NameUnknown,
        Self::AddressRefused,
        Self::NotFound,
        Self::HungUp,
        Self::Silent,
        Self::Garbled,
        Self::WrongIdentity,
        Self::TooManyPeers,
        Self::AlreadyConnected,
        Self::UselessPeer,
        Self::Breach,
        Self::Requested,
        Self::Quitting,
        Self::LinkLost,
        Self::LocalPolicy,
        Self::Operator,
        Self::LocalFault,
    ];

    /// Whose fault it is.
    #[must_use]
    pub fn blame(self) -> Blame {
        match self {
            Self::Unreachable
            | Self::NameUnknown
            | Self::AddressRefused
            | Self::NotFound
            | Self::HungUp
            | Self::Silent
            | Self::WrongIdentity => Blame::Path,
            Self::Garbled | Self::Breach => Blame::Theirs,
            Self::TooManyPeers
            | Self::AlreadyConnected
            | Self::UselessPeer
            | Self::Requested
            | Self::Quitting
            | Self::LinkLost => Blame::Nobody,
            Self::LocalPolicy | Self::Operator | Self::LocalFault => Blame::Ours,
        }
    }

    /// Whether it comes after the handshake, in which the node proved its identity.
    pub(super) fn proved_identity(self) -> bool {
        matches!(self, Self::TooManyPeers | Self::AlreadyConnected | Self::UselessPeer | Self::Requested)
    }

    /// Whether a node accepted our connection. Then its inbound throttle (30 s in geth) has counted us, and an earlier
    /// dial would only be refused.
    #[must_use]
    pub fn reached_someone(self) -> bool {
        !matches!(
            self,
            Self::Unreachable | Self::NameUnknown | Self::AddressRefused | Self::NotFound | Self::LocalFault
        )
    }

    /// Whether asking discovery for a newer address may help.
    #[must_use]
    pub fn doubts_address(self) -> bool {
        self.blame() == Blame::Path
    }

    /// A stable machine-readable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::NameUnknown => "name_unknown",
            Self::AddressRefused => "address_refused",
            Self::NotFound => "not_found",
            Self::HungUp => "hung_up",
            Self::Silent => "silent",
            Self::Garbled => "garbled",
            Self::WrongIdentity => "wrong_identity",
            Self::TooManyPeers => "too_many_peers",
            Self::AlreadyConnected => "already_connected",
            Self::UselessPeer => "useless_peer",
            Self::Breach => "breach",
            Self::Requested => "requested",
            Self::Quitting => "quitting",
            Self::LinkLost => "link_lost",
            Self::LocalPolicy => "local_policy",
            Self::Operator => "operator",
            Self::LocalFault => "local_fault",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "no node answers at the address; check IP address, port and firewall",
            Self::NameUnknown => "the host name has no address; check its spelling",
            Self::AddressRefused => "none of the node's addresses may be dialed",
            Self::NotFound => "discovery does not find the node",
            Self::HungUp => {
                "closed during the handshake: the public key is not that node's (compare the enode or record with what the \
                 node prints), or its inbound throttle or net restriction keeps us out"
            }
            Self::Silent => "silent until the handshake's deadline; check that the port is that of a devp2p node",
            Self::Garbled => "the service at the address does not speak RLPx",
            Self::WrongIdentity => "another node answers at the address; compare the enode or record with what the node prints",
            Self::TooManyPeers => "the node has too many peers",
            Self::AlreadyConnected => "the node reports that we are connected already",
            Self::UselessPeer => "no capability in common",
            Self::Breach => "breach of protocol",
            Self::Requested => "the node asked to disconnect",
            Self::Quitting => "the node is shutting down",
            Self::LinkLost => "the connection broke",
            Self::LocalPolicy => "ended by our limits",
            Self::Operator => "ended by the operator",
            Self::LocalFault => "a fault on this side",
        })
    }
}
