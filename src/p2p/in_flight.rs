//! Messages that were encrypted and that the socket has not taken: the position in the byte stream where each one ends.
//!
//! The send buffer holds bytes, but senders wait for messages. [`InFlight`] counts the messages that a write completed.
//!
//! Left out: the bytes (the driver has them), and the messages themselves (the session's queue has them, in the same
//! order).

use std::collections::VecDeque;

/// Positions in the stream of bytes that one connection writes.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    /// Bytes appended to the send buffer so far, and bytes that the socket took from it so far.
    appended: u64,
    taken: u64,
    /// Where each message ends that the socket has not taken whole, in order. Bounded by the size of the send buffer.
    ends: VecDeque<u64>,
}

impl InFlight {
    /// Counts bytes that were appended to the send buffer.
    pub(super) fn append(&mut self, bytes: usize) {
        self.appended = self.appended.saturating_add(bytes as u64);
    }

    /// Counts a message that was appended, of this many bytes.
    pub(super) fn append_message(&mut self, bytes: usize) {
        self.append(bytes);
        self.ends.push_back(self.appended);
    }

    /// The socket took this many bytes. Returns how many messages are complete with them.
    pub(super) fn take(&mut self, bytes: usize) -> usize {
        self.taken = self.taken.saturating_add(bytes as u64).min(self.appended);
        let whole = self.ends.iter().take_while(|end| **end <= self.taken).count();
        self.ends.drain(..whole);
        if self.ends.is_empty() && self.ends.capacity() > 64 {
            // After a burst, an idle connection holds no large queue.
            self.ends = VecDeque::new();
        }
        whole
    }

    /// The send buffer was dropped: the socket takes nothing more.
    pub(super) fn clear(&mut self) {
        self.taken = self.appended;
        self.ends = VecDeque::new();
    }

    /// Whether the socket has taken all that was appended.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.taken == self.appended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_complete_with_its_last_byte() {
        let mut bytes = InFlight::default();
        bytes.append(100); // a Pong, which counts as no message
        bytes.append_message(50);
        bytes.append_message(50);
        assert_eq!(bytes.take(149), 0);
        assert_eq!(bytes.take(1), 1);
        bytes.append(10);
        bytes.append_message(1);
        assert_eq!(bytes.take(0), 0);
        assert_eq!(bytes.take(60), 1);
        assert!(!bytes.is_empty());
        assert_eq!(bytes.take(1), 1);
        assert!(bytes.is_empty());
        bytes.append_message(7);
        bytes.clear();
        assert!(bytes.is_empty());
        assert_eq!(bytes.take(7), 0, "what was dropped is not written");
        bytes.append_message(7);
        assert_eq!(bytes.take(7), 1);
    }
}
