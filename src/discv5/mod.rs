//! Node discovery v5.1: nodes that prove to each other who they are, speak in encrypted sessions, and keep a table of
//! those that live.
//!
//! ```text
//!   a message that we cannot read ──> WHOAREYOU ──> handshake ──> session ──> requests and answers
//!                                     (challenge)                 (session)   (message, call, answer, talk)
//! ```
//!
//! Reading order: [`header`] and [`packet`] (bytes on the wire), [`crypto`], [`message`]; [`peer`] (an id at an
//! endpoint), [`session`], [`challenge`], [`handshake`], `outbox` (packets that wait to be sent), [`wire`], which holds them together; [`call`] (what we
//! ask), [`answer`] and [`talk`] (what we are asked); [`action`]; [`engine`], which puts them together.
//! Which node is asked next is decided in [`crate::kademlia::searches`].
//!
//! Identities cost nothing and UDP addresses are easily forged, so every store here has a capacity and a share per
//! subnet, nothing is linear in the number of strangers, and what is known to be good is kept apart from what just
//! came: sessions that we work with from sessions that strangers began, challenges of known peers from others. To an
//! address that has proven nothing goes at most one WHOAREYOU for a packet, which is smaller than that packet.
//!
//! Left out: topic advertisement, which has not been settled (its messages are ignored and counted); the socket and
//! the clock (`net`); our own record and what votes make of it (the owner of the engine).
//!
//! Sources: devp2p, discv5/discv5-wire.md and discv5-theory.md. Constants are go-ethereum's where nothing else is said.

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
