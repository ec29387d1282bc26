//! The devp2p base protocol, version 5: what two nodes say to each other before and beside their applications.
//!
//! After the RLPx handshake each side says [`hello`] unprompted. What both have is laid out by [`capability`] into one
//! space of message codes. From then on [`keepalive`] watches that the other side lives, and whoever leaves says why
//! ([`disconnect`]). [`Connection`] is the engine that runs all of it for one connection; [`intake`] holds what was read
//! and decides whether reading goes on, [`outbound`] is the queue of messages to one peer, [`outbox`] holds what the engine
//! has taken of it, [`session`] has the words by which the owner of peers decides, [`traffic`] counts, and [`fault`] says what a peer can do wrong and what it is told for it.
//!
//! The specification is ethereum/devp2p, rlpx.md, "p2p Capability". Where go-ethereum differs, we read what it writes.
//!
//! [`Connection`] stands in [`connection`], what it tells its driver in [`action`], and what it is told of us in `local`.
//!
//! Left out: which connections are wanted (`policy`), sockets (`net`), and every message of an application.

pub mod action;
pub mod capability;
pub mod connection;
pub mod disconnect;
pub mod fault;
pub mod hello;
pub mod intake;
pub mod keepalive;
mod local;
pub mod outbound;
pub mod outbox;
pub mod session;
pub mod traffic;

pub use action::{Action, Side};
pub use capability::{Capability, Channel, ChannelIndex, LocalCapability};
pub use connection::{Connection, Counters};
pub use disconnect::DisconnectReason;
pub use fault::Fault;
pub use hello::RemoteHello;
pub use intake::{Delivery, HeldTime, Inbound, Intake, Offer};
pub use local::LocalNode;
pub use outbound::{Lane, MESSAGE_COST, Outbound, OutboundBudget, Refused, SEND_WINDOW};
pub use outbox::SendError;
pub use traffic::{BaseTotals, ChannelTraffic, Traffic};

/// The version of the base protocol in our Hello. Version 5 brought snappy (EIP-706).
pub const VERSION: u8 = 5;

/// Codes below this one belong to the base protocol.
pub const BASE_CODES: u64 = 0x10;

/// The most bytes a base message may have, as geth and others check it. Hello is by far the largest.
pub const MAX_BASE_MESSAGE: usize = 2048;

/// Message codes of the base protocol.
mod code {
    pub(super) const HELLO: u64 = 0x00;
    pub(super) const DISCONNECT: u64 = 0x01;
    pub(super) const PING: u64 = 0x02;
    pub(super) const PONG: u64 = 0x03;
}
