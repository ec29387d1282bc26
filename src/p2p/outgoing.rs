//! What a connection's engine asks of the queue that it writes from.
//!
//! The engine holds no message: when there is room to write it pulls the next one. `outbound` is the queue of a session;
//! a cap on bandwidth stands between it and the engine (`net::bandwidth`).
//!
//! Left out: where messages wait, how many, and what a sender is told.

use std::time::Instant;

use super::{DisconnectReason, wire::Compressed};

/// A message that can be written: its code and size were checked when the queue took it.
#[derive(Debug)]
pub struct Outgoing {
    /// The code on the wire.
    pub code: u64,
    /// The payload.
    pub message: Compressed,
}

/// What the engine of an open connection writes next.
#[derive(Debug)]
pub enum Next {
    /// This message.
    Message(Outgoing),
    /// Nothing at present. The driver is woken when that changes.
    Nothing,
    /// Nothing before that time, because a cap is exceeded.
    NotBefore(Instant),
    /// All messages were written, and then the peer is to be left for this reason.
    Leave(DisconnectReason),
}

/// The messages to one peer, oldest first.
pub trait Source {
    /// What to write next. A message that is returned will be written, unless the socket ends.
    fn next(&mut self, now: Instant) -> Next;
    /// The message that was returned last was appended to the send buffer, as so many bytes.
    fn appended(&mut self, now: Instant, bytes: usize);
    /// The reason to leave the peer, if it is to be left; messages may still wait.
    fn leaving(&self) -> Option<DisconnectReason>;
}
