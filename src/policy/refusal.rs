//! The reasons why a node is not dialed, or a connection not let in, although nothing failed.
//!
//! The dialer and admission share these reasons, so that "why have I no peers" has one kind of answer. Each refusal is
//! counted by reason; nothing is refused in silence.

use std::fmt;

use super::cause::Cause;

/// A decision against a dial or a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// It is us.
    OwnIdentity,
    /// Neither an address nor discovery to ask for one.
    AddressUnknown,
    /// There is an address but no TCP port: a node that only discovers.
    NoTcpPort,
    /// Unspecified, multicast, documentation or reserved: never a node.
    SpecialAddress,
    /// A private address from a stranger, which by our own address is not on our network.
    LanAddress,
    /// Outside the networks of `--netrestrict`.
    NetRestricted,
    /// The node is banned.
    BannedNode,
    /// The address is banned, or its network.
    BannedAddress,
    /// Only static and trusted peers are wanted (`--allowlist-only`).
    NotOnAllowlist,
    /// On the static or trusted list, which dials it by itself.
    Listed,
    /// Connected already.
    Connected,
    /// Being dialed already.
    Dialing,
    /// Waiting in line already.
    Waiting,
    /// It failed lately; its back-off has not run out.
    BackingOff,
    /// Dialed within the history window.
    NodeTried,
    /// Its IP and port were dialed within the history window, perhaps under another node's name.
    AddressTried,
    /// Its network got its share of dials within the history window.
    SubnetTried,
    /// Its network has its share of our peers.
    SubnetFull,
    /// No registration's dial filter wants it.
    Filtered,
    /// No protocol is registered, so the peer would have no use.
    NoProtocol,
    /// Dialing is off (`--nodial`, or no peer slots).
    DialingOff,
    /// The line of candidates, of dials or of requests is full.
    QueueFull,
    /// All slots are taken.
    TooManyPeers,
    /// The slots for inbound peers are taken.
    TooManyInbound,
    /// The slots for those we dial are taken.
    TooManyDialed,
    /// The address connected within the throttle's window.
    Throttled,
    /// The address's network has its share of connections in handshake.
    PendingPerSubnet,
    /// A younger or better connection took the place of this one before it had authenticated.
    PushedOut,
    /// A connection with that node stands already.
    Duplicate,
    /// No capability in common.
    Useless,
}

impl Refusal {
    /// The meaning of a refused connection for later dials of the node.
    pub(super) fn cause(self) -> Cause {
        match self {
            Self::Useless => Cause::UselessPeer,
            Self::Duplicate => Cause::AlreadyConnected,
            Self::OwnIdentity => Cause::WrongIdentity,
            _ => Cause::LocalPolicy,
        }
    }

    /// All refusals, for tables of counters.
    pub const ALL: [Self; 30] = [
        Self::OwnIdentity,
        Self::AddressUnknown,
        Self::NoTcpPort,
        Self::SpecialAddress,
        Self::LanAddress,
        Self::NetRestricted,
        Self::BannedNode,
        Self::BannedAddress,
        Self::NotOnAllowlist,
        Self::Listed,
        Self::Connected,
        Self::Dialing,
        Self::Waiting,
        Self::BackingOff,
        Self::NodeTried,
        Self::AddressTried,
        Self::SubnetTried,
        Self::SubnetFull,
        Self::Filtered,
        Self::NoProtocol,
        Self::DialingOff,
        Self::QueueFull,
        Self::TooManyPeers,
        Self::TooManyInbound,
        Self::TooManyDialed,
        Self::Throttled,
        Self::PendingPerSubnet,
        Self::PushedOut,
        Self::Duplicate,
        Self::Useless,
    ];

    /// A stable machine-readable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OwnIdentity => "own_identity",
            Self::AddressUnknown => "address_unknown",
            Self::NoTcpPort => "no_tcp_port",
            Self::SpecialAddress => "special_address",
            Self::LanAddress => "lan_address",
            Self::NetRestricted => "net_restricted",
            Self::BannedNode => "banned_node",
            Self::BannedAddress => "banned_address",
            Self::NotOnAllowlist => "not_on_allowlist",
            Self::Listed => "listed",
            Self::Connected => "connected",
            Self::Dialing => "dialing",
            Self::Waiting => "waiting",
            Self::BackingOff => "backing_off",
            Self::NodeTried => "node_tried",
            Self::AddressTried => "address_tried",
            Self::SubnetTried => "subnet_tried",
            Self::SubnetFull => "subnet_full",
            Self::Filtered => "filtered",
            Self::NoProtocol => "no_protocol",
            Self::DialingOff => "dialing_off",
            Self::QueueFull => "queue_full",
            Self::TooManyPeers => "too_many_peers",
            Self::TooManyInbound => "too_many_inbound",
            Self::TooManyDialed => "too_many_dialed",
            Self::Throttled => "throttled",
            Self::PendingPerSubnet => "pending_per_subnet",
            Self::PushedOut => "pushed_out",
            Self::Duplicate => "duplicate",
            Self::Useless => "useless",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnIdentity => "this is our own identity",
            Self::AddressUnknown => "no address is known and discovery is off; give enode://KEY@IP:PORT",
            Self::NoTcpPort => "the node announces no TCP port",
            Self::SpecialAddress => "the address is unspecified, multicast or reserved",
            Self::LanAddress => "a private address from a source that must not name one",
            Self::NetRestricted => "outside the networks of --netrestrict",
            Self::BannedNode => "the node is banned (ListBans, UnbanPeer)",
            Self::BannedAddress => "the address is banned (ListBans, UnbanPeer)",
            Self::NotOnAllowlist => "only static and trusted peers may connect (--allowlist-only)",
            Self::Listed => "static and trusted peers are dialed by their list",
            Self::Connected => "connected already",
            Self::Dialing => "being dialed already",
            Self::Waiting => "waiting to be dialed already",
            Self::BackingOff => "the node failed recently and is dialed again later",
            Self::NodeTried => "the node was dialed a moment ago",
            Self::AddressTried => "the address was dialed a moment ago",
            Self::SubnetTried => "too many dials to the address's network a moment ago",
            Self::SubnetFull => "too many peers in the address's network (--max-peers-per-subnet)",
            Self::Filtered => "no registration's dial filter wants the node",
            Self::NoProtocol => {
                "no protocol is registered, so a peer would be of no use; call RegisterProtocols first"
            }
            Self::DialingOff => "dialing is off (--nodial)",
            Self::QueueFull => "too many are waiting already",
            Self::TooManyPeers => {
                "all peer slots are taken (--maxpeers); static and trusted peers need no slot"
            }
            Self::TooManyInbound => "all slots for inbound peers are taken (--maxpeers, --dial-ratio)",
            Self::TooManyDialed => "all slots for dialed peers are taken (--maxpeers, --dial-ratio)",
            Self::Throttled => "the address connected a moment ago (--inbound-throttle)",
            Self::PendingPerSubnet => {
                "too many handshakes with the address's network (--max-pending-per-subnet)"
            }
            Self::PushedOut => "made room for a newer connection before it authenticated",
            Self::Duplicate => "a connection with the node stands already",
            Self::Useless => "no capability in common",
        })
    }
}
