//! Node discovery v5.1: nodes that prove their identity to each other, exchange messages in encrypted sessions, and
//! keep a table of live nodes.
//!
//! ```text
//!   a message that we cannot read ──> WHOAREYOU ──> handshake ──> session ──> requests and answers
//!                                     (challenge)                 (session)   (message, call, answer, talk)
//! ```
//!
//! Reading order: [`header`] and [`packet`] (bytes on the wire), [`crypto`], [`message`]; [`peer`] (an id at an
//! endpoint), [`session`], [`challenge`], [`handshake`], `outbox` (packets that wait to be sent), [`wire`], which
//! combines them; [`call`] (our requests), [`answer`] and [`talk`] (requests of others); [`action`]; [`engine`], which
//! combines all of them. [`crate::kademlia::searches`] decides which node is asked next.
//!
//! Identities cost nothing and UDP addresses are easily forged. So every store here has a capacity and a share per
//! subnet, and no cost is linear in the number of strangers. Known good entries are kept apart from new ones: sessions
//! that we use from sessions that strangers began, challenges of known peers from others. An address that has proven
//! nothing gets at most one WHOAREYOU for a packet, which is smaller than that packet.
//!
//! Left out: topic advertisement, which the specification has not settled (its messages are ignored and counted); the
//! socket and the clock (`net`); our own record and the votes that change it (the owner of the engine).
//!
//! Sources: devp2p, discv5/discv5-wire.md and discv5-theory.md. Constants without another source are go-ethereum's.

pub mod action;
pub mod answer;
pub mod call;
pub mod challenge;
pub mod crypto;
pub mod engine;
pub mod handshake;
pub mod header;
pub mod message;
mod outbox;
pub mod packet;
pub mod peer;
pub mod session;
pub mod talk;
mod wire;

pub use action::{Config, Counters, TalkAction};
pub use challenge::STRANGERS_PER_SECOND;
pub use engine::Engine;
pub use header::Unmasker;
pub use talk::{MAX_TALK_RESPONSE, TalkError, TalkToken};
