//! discv4, the older of the two discovery protocols (discv4.md, EIP-8, EIP-868): packets, endpoint proofs, requests and
//! answers, and the [`Engine`] that owns them with a Kademlia table.
//!
//! Every host on the Internet can send us datagrams, from any address that it chooses to claim. These rules follow:
//!
//! - A packet is dropped at the cheapest check that fails ([`packet`]), and the number of packets that reach the
//!   expensive ones is limited by source ([`limits`]).
//! - Before an address has proved itself, at most 2.5 times the bytes that came from it are sent to it ([`bonds`]).
//! - An answer counts only if we asked that node at that address ([`conversation`]).
//! - A node that has just proved itself gets nothing unasked from us for a second: it reads the answer to its own
//!   request.
//!
//! Reading order: [`packet`], [`crypto`], [`limits`], [`bonds`], [`conversation`], `admissions`, [`skew`], `checks`
//! (the checks of a packet), [`verdict`] (the outcome of a packet), `answer` (answers, ours and theirs), [`action`],
//! `outbox`, [`engine`]. [`crate::kademlia::searches`] decides which node is asked next.
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
