//! Admission: the checkpoints that every connection passes, inbound or dialed.
//!
//! ```text
//!  accept(ip)                 identified(id)                 ready(capabilities)
//!  net restriction, bans  →   self, bans, allow-list,    →   useful? duplicates,     →  peer
//!  throttle, handshake slots  duplicates, limits             limits again
//! ```
//!
//! Limits are checked twice because handshakes take time: early, to save work and to send the reason before Hello;
//! late, because others may have come first. Static and trusted peers pass all limits, but not bans.
//!
//! Two nodes that dial each other at the same moment get two connections; `duplicates` holds the rule by which one
//! of them goes, and why it is that rule.

pub mod checkpoints;
mod duplicates;
mod pending;
mod throttle;

pub use checkpoints::{Admission, Closed, PeerView, Verdict};
