//! discv4, the older of the two discovery protocols (discv4.md, EIP-8, EIP-868): packets, endpoint proofs, requests
//! and answers, and the [`Engine`] that owns them with a Kademlia table.
//!
//! Everybody on the Internet can send us datagrams, from any address they like to claim. What follows from that
//! shapes the room:
//!
//! - A packet is dropped at the cheapest check that tells ([`packet`]), and how many get to the dear ones is
//!   rationed by where they come from ([`limits`]).
//! - Nothing larger than 2.5 times what came from an address goes to it before it proved itself ([`bonds`]).
//! - An answer counts only if we asked that node at that address ([`conversation`]).
//! - A node that just proved itself hears nothing unasked from us for a second: it is reading what it asked for.
//!
//! Reading order: [`packet`], [`crypto`], [`limits`], [`bonds`], [`conversation`], `admissions`, [`skew`], `checks`
//! (what a packet has to pass), [`verdict`] (what became of it), `answer` (what may be told and believed), [`action`],
//! `outbox`, [`engine`]. Which node is asked next is decided in
//! [`crate::kademlia::searches`].
//!
//! Left out: the socket, telling discv4 from discv5, the node database, signing our record (`net`).

pub mod action;
mod admissions;
mod answer;
pub mod bonds;
mod checks;
mod conversation;
pub mod crypto;
pub mod engine;
pub mod limits;
mod outbox;
pub mod packet;
pub mod skew;
pub mod verdict;

pub use action::{ClockSkew, Config};
pub use engine::Engine;
pub use verdict::{Counters, Verdict};
