//! Node lists in the DNS (EIP-1459): signed trees of node records, and a client that walks them.
//!
//! A tree is published under a domain name. Its root, a TXT record at that name, is signed. It names two subtrees by
//! the hash of their first entry: one of node records, one of links to other trees. Every further entry is a TXT record
//! at `<its own hash>.<domain>`, so a client that trusts the root can check everything below it.
//!
//! Reading order: [`entry`] (the contents of a TXT record), [`link`] (the name and the key of a tree), `pass` (one walk
//! through a subtree), `tree` (one tree over time), `limiter` (requests per second), [`client`] (all trees, and the
//! interface for the caller).
//!
//! Left out: DNS itself. The caller resolves names for the client, and joins the strings of each TXT record.

pub mod client;
pub mod entry;
mod limiter;
pub mod link;
mod pass;
mod tree;
#[cfg(test)]
pub(crate) mod zone;

pub use client::{Action, Answer, Client, Config, Counters, LookupId};
pub use link::Link;

#[cfg(test)]
mod tests;
