//! The trait by which a connection's engine pulls the messages that it writes.
//!
//! The engine holds no message: it pulls the next one when there is room to write. `outbound` is the queue of a
//! session; a cap on bandwidth is between that queue and the engine (`net::bandwidth`).
//!
//! Left out: where messages wait, how many, and what a sender learns about them.

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

/// The next step of an engine whose connection is open.
#[derive(Debug)]
pub enum Next {
    /// Write this message.
    Message(Outgoing),
    /// Write nothing now. The driver is woken when that changes.
    Nothing,
    /// Write nothing before that time, because a cap is exceeded.
    NotBefore(Instant),
    /// All messages were written: disconnect from the peer with this reason.
    Leave(DisconnectReason),
}

/// The messages to one peer, oldest first.
pub trait Source {
    /// Returns what to write next. A message that is returned will be written, unless the socket ends.
    fn next(&mut self, now: Instant) -> Next;
    /// The message that was returned last was appended to the send buffer, as this many bytes.
    fn appended(&mut self, now: Instant, bytes: usize);
    /// The reason to disconnect from the peer, if the session is to end; messages may still wait.
    fn leaving(&self) -> Option<DisconnectReason>;
}
