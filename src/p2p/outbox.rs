//! What waits to be written to one peer.
//!
//! Messages wait in the order they were accepted, bounded in bytes. When the bound is reached a message is refused and
//! its sender told; nothing ever waits for room. Pings and pongs do not queue: one ping can be due, and pongs are a
//! number with a bound, so that a flood of pings is answered with as many pongs as fit, not with memory.

use std::collections::VecDeque;

use super::ChannelIndex;
use crate::rlpx::{Compressed, MessageTooLarge};

/// How many bytes may wait by default. Room for a broadcast of blocks to a peer that reads at 1 MB/s.
pub const DEFAULT_LIMIT: usize = 4 << 20;

/// What a waiting message costs beside its bytes, so that many tiny ones are bounded as well.
pub const OVERHEAD: usize = 64;

/// How many pongs can be owed at a time, as many as geth keeps. More pings than that are counted, not answered.
pub const MAX_PONGS: u32 = 16;

/// Why a message was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The connection is not open (any more).
    #[error("the connection is not open")]
    NotOpen,
    /// The connection has no such channel.
    #[error("the connection has no channel {}", .0.0)]
    UnknownChannel(ChannelIndex),
    /// The channel's protocol has fewer codes.
    #[error("message code {code} is not below the protocol's message count of {message_count}")]
    CodeOutOfRange {
        /// The protocol's own code, as it was given.
        code: u64,
        /// How many codes the protocol has.
        message_count: u64,
    },
    /// No frame can carry the message.
    #[error(transparent)]
    TooLarge(#[from] MessageTooLarge),
    /// The peer does not read as fast as we send.
    #[error("{queued} bytes wait to be written to the peer, of at most {limit}")]
    Full {
        /// How many bytes wait.
        queued: usize,
        /// The bound.
        limit: usize,
    },
}

/// A message with its code on the wire.
#[derive(Debug)]
pub struct Queued {
    /// The code on the wire.
    pub code: u64,
    /// The payload.
    pub message: Compressed,
}

impl Queued {
    fn cost(&self) -> usize {
        self.message.as_bytes().len().saturating_add(OVERHEAD)
    }
}

/// The outbound side of one connection.
#[derive(Debug)]
pub struct Outbox {
    queue: VecDeque<Queued>,
    bytes: usize,
    limit: usize,
    /// Whether a ping is due.
    pub ping: bool,
    pongs: u32,
}

impl Outbox {
    /// An empty outbox for `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { queue: VecDeque::new(), bytes: 0, limit, ping: false, pongs: 0 }
    }

    /// Accepts a message, or refuses it because the bound is reached. An empty outbox accepts any message.
    pub fn push(&mut self, message: Queued) -> Result<(), SendError> {
        let bytes = self.bytes.saturating_add(message.cost());
        if bytes > self.limit && !self.queue.is_empty() {
            return Err(SendError::Full { queued: self.bytes, limit: self.limit });
        }
        self.bytes = bytes;
        self.queue.push_back(message);
        Ok(())
    }

    /// The message that has waited longest.
    pub fn pop(&mut self) -> Option<Queued> {
        let message = self.queue.pop_front();
        self.bytes = self.bytes.saturating_sub(message.as_ref().map_or(0, Queued::cost));
        if self.queue.is_empty() && self.queue.capacity() > 64 {
            // After a burst, an idle connection holds no large queue.
            self.queue = VecDeque::new();
        }
        message
    }

    /// Owes a pong; `false` if too many are owed already.
    pub fn owe_pong(&mut self) -> bool {
        let room = self.pongs < MAX_PONGS;
        self.pongs += u32::from(room);
        room
    }

    /// One of the pongs that are owed.
    pub fn pop_pong(&mut self) -> bool {
        let owed = self.pongs > 0;
        self.pongs = self.pongs.saturating_sub(1);
        owed
    }

    /// How many messages wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether no message waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// How many bytes wait, with [`OVERHEAD`] for each message.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Drops what waits.
    pub fn clear(&mut self) {
        *self = Self::new(self.limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rlpx::Compressor;

    fn message(len: usize) -> Queued {
        Queued { code: 0x10, message: Compressor::default().compress(&vec![0; len]).unwrap() }
    }

    #[test]
    fn is_bounded_in_bytes_and_tells() {
        let mut outbox = Outbox::new(10 * OVERHEAD);
        let accepted = (0..100).take_while(|_| outbox.push(message(1)).is_ok()).count();
        assert_eq!(accepted, 9, "three bytes each and the overhead");
        assert_eq!(outbox.push(message(1)), Err(SendError::Full { queued: 9 * 67, limit: 640 }));
        assert!(outbox.pop().is_some());
        assert_eq!(outbox.push(message(1)), Ok(()));
        while outbox.pop().is_some() {}
        assert_eq!((outbox.bytes(), outbox.len()), (0, 0));
        // Larger than the bound, but alone.
        assert_eq!(outbox.push(message(100_000)), Ok(()));
        assert!(outbox.push(message(1)).is_err());
    }

    #[test]
    fn pongs_are_a_number_with_a_bound() {
        let mut outbox = Outbox::new(0);
        assert_eq!((0..10_000).filter(|_| outbox.owe_pong()).count(), 16);
        assert_eq!((0..10_000).filter(|_| outbox.pop_pong()).count(), 16);
    }
}
