//! The order of turns: events that cost nothing first, then messages by deficit round robin.
//!
//! Each turn adds a quantum of bytes to a channel's deficit. The channel sends while its deficit is above zero, and a
//! message may take it below zero. The channel then pays that debt by turns in which it sends nothing, even if its
//! queue is empty meanwhile. Otherwise a peer of large messages, whose queue never holds two, would get one of them for
//! every quantum of the others. Debts are cancelled when no other channel has anything to send.

use std::collections::VecDeque;

use super::slab::ChannelKey;

/// The bytes a channel may send each round. A frame of 256 KiB has room for sixteen channels' turns.
pub(super) const QUANTUM: i64 = 16 << 10;

/// The order of channels on a stream.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// Channels whose next event costs nothing: to be announced, a gap, or closed.
    pub(super) free: VecDeque<ChannelKey>,
    /// Channels whose next event is a message, and channels without an event that still have a debt.
    pub(super) round: VecDeque<ChannelKey>,
    /// How many in `round` have something to hand over.
    pub(super) ready: usize,
    /// Whether the first of `round` has had its quantum for this turn.
    pub(super) served: bool,
}

impl Schedule {
    /// The channel at the front of the round had its turn; it goes to the end.
    pub(super) fn rotate(&mut self) {
        self.served = false;
        self.round.rotate_left(usize::from(!self.round.is_empty()));
    }

    /// The channel at the front of the round leaves it.
    pub(super) fn leave(&mut self) {
        self.served = false;
        self.round.pop_front();
    }
}
