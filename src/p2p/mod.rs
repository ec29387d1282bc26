//! The devp2p base protocol, version 5: the messages that two nodes exchange before and beside those of their
//! applications.
//!
//! After the RLPx handshake each side sends [`hello`] unprompted. [`capability`] lays out the capabilities that both
//! nodes have in one space of message codes. From then on [`keepalive`] checks that the other side is alive. A side
//! that ends the connection sends its reason ([`disconnect`]). [`Connection`] is the engine that runs all of it for one
//! connection.
//!
//! | file | what it is |
//! | --- | --- |
//! | [`intake`] | the messages that were read and not delivered, and whether reading goes on |
//! | [`outbound`] | the queue of messages to one peer, and the fate of each message |
//! | [`outgoing`] | the trait by which the engine pulls from that queue |
//! | `in_flight` | which messages the socket has taken whole |
//! | [`incomplete`] | messages that are not complete, and which gives way when memory is short |
//! | [`pings`] | the Ping and the Pongs that are due |
//! | `session_delivery` | the way from the intake to the queues of applications |
//! | [`wire`] | the transport below messages: RLPx |
//! | [`session`] | the values that a connection and the owner of peers exchange |
//! | [`traffic`] | the counters of a connection |
//! | [`fault`] | the faults of a peer, and the Disconnect reason of each |
//!
//! The specification is ethereum/devp2p, rlpx.md, "p2p Capability". Where go-ethereum writes something else, we read
//! that too.
//!
//! [`Connection`] is in [`connection`], the events for its driver are in [`action`], and our own key and name in
//! `local`.
//!
//! Left out: which connections are wanted (`policy`), sockets (`net`), and the contents of application messages.

pub mod action;
pub mod capability;
pub mod connection;
pub mod disconnect;
pub mod fault;
pub mod hello;
mod in_flight;
pub mod incomplete;
pub mod intake;
pub mod keepalive;
mod local;
pub mod outbound;
pub mod outgoing;
pub mod pings;
pub mod session;
mod session_delivery;
pub mod traffic;
pub mod wire;

pub use action::{Action, Side};
pub use capability::{Capability, Channel, ChannelIndex, LocalCapability};
pub use connection::{Connection, Counters};
pub use disconnect::DisconnectReason;
pub use fault::Fault;
pub use hello::RemoteHello;
pub use intake::{Delivery, HeldTime, Inbound, Intake, Offer};
pub use local::LocalNode;
pub use outbound::{ChannelLimits, Lane, MESSAGE_COST, Outbound, Refused, SEND_WINDOW};
pub use outgoing::{Next, Outgoing, Source};
pub use session_delivery::SessionDelivery;
pub use traffic::{BaseTotals, ChannelTraffic, Traffic};

/// The version of the base protocol in our Hello. Version 5 brought snappy (EIP-706).
pub const VERSION: u8 = 5;

/// Codes below this one belong to the base protocol.
pub const BASE_CODES: u64 = 0x10;

/// The largest payload of a base message, in bytes; go-ethereum and others check the same bound. Hello is by far the
/// largest.
pub const MAX_BASE_MESSAGE: usize = 2048;

/// Message codes of the base protocol.
mod code {
    pub(super) const HELLO: u64 = 0x00;
    pub(super) const DISCONNECT: u64 = 0x01;
    pub(super) const PING: u64 = 0x02;
    pub(super) const PONG: u64 = 0x03;
}
