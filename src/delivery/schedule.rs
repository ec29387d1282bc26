//! Whose turn it is: events that cost nothing first, then messages by deficit round robin.
//!
//! Each turn adds a quantum of bytes to a channel's deficit; the channel sends while its deficit is above zero, and a
//! message may take it below. What it sent beyond its turns it pays back by turns in which it sends nothing, even
//! when its queue is empty meanwhile: otherwise a peer of large messages, whose queue never holds two, would get one
//! of them for every quantum of the others. Debts are forgiven when nobody else has anything to send.

use std::collections::VecDeque;

use super::slab::ChannelKey;

/// The bytes a channel may send each round. A frame of 256 KiB has room for sixteen channels' turns.
pub(super) const QUANTUM: i64 = 16 << 10;

/// The order of channels on a stream.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// Channels whose next event costs nothing: to be announced, a gap, or closed.
    pub(super) free: VecDeque<ChannelKey>,
    /// Channels whose next event is a message, and channels that have nothing but a debt.
    pub(super) round: VecDeque<ChannelKey>,
    /// How many in `round` have something to hand over.
    pub(super) ready: usize,
    /// Whether the first of `round` has had its quantum for this turn.
    pub(super) served: bool,
}

impl Schedule {
    /// The first of the round had its turn and stays in it.
    pub(super) fn rotate(&mut self) {
        self.served = false;
        self.round.rotate_left(usize::from(!self.round.is_empty()));
    }

    /// The first of the round leaves it.
    pub(super) fn leave(&mut self) {
        self.served = false;
        self.round.pop_front();
    }
}
