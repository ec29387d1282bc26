//! The outbox of a channel: what the application sent to one peer and the socket has not taken yet.
//!
//! Sending never waits. A message is accepted, and then it is written to the socket or counted as unsent when the
//! channel closes; or it is refused at once, with the reason. So a peer that does not read slows nobody but itself:
//! its window closes, and the others' stay open.
//!
//! # Windows
//!
//! A channel has two windows of its own, which messages take from (bytes and [`MESSAGE_COST`] each, below zero once)
//! and written messages give back: one for the registration's stream, whose client counts along and learns of what
//! came back by `WindowUpdate`; one for single calls, which have nothing to count with and are refused when it is
//! closed. Calls cannot use up the stream's window, nor the stream theirs.
//!
//! # Use
//!
//! ```text
//! stream or call:   send(…) → refused at once, or accepted
//! connection task:  take() until None, encode, write; written(n) when the socket took n of them; close() at the end
//! stream:           announce() with ChannelOpened; take_credit() now and then → WindowUpdate
//! ```
//!
//! Greetings go through the same queue, in their order, and take no window. Left out: what a message is (`M`: encoded
//! already or not, shared between peers or not) and which of a peer's channels is written first.
//!
//! [`MESSAGE_COST`]: super::inbox::MESSAGE_COST

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use super::budget::{Budget, Share};
use super::inbox::cost;
use super::reason::ErrorReason;

/// The window of a registration's stream on one channel, and that of calls: 1 MiB each.
pub const DEFAULT_SEND_WINDOW: u64 = 1 << 20;

/// What may be sent on a channel.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Codes run below this.
    pub message_count: u64,
    /// The largest payload, in bytes.
    pub max_message_bytes: usize,
    /// How much of the stream's messages may wait.
    pub stream_window: u64,
    /// How much of calls' messages may wait.
    pub call_window: u64,
}

/// Whose message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The sidecar's own: a greeting.
    Greeting,
    /// The registration's stream.
    Stream {
        /// Which stream: what [`Outbox::announce`] was called with. Outcomes and credit of older ones are not told.
        stream: u64,
        /// Set to be told the outcome.
        want_result: Option<u64>,
    },
    /// A single call.
    Call {
        /// Set to be told the outcome.
        want_result: Option<u64>,
    },
}

/// What became of a message whose sender wanted to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Who sent it.
    pub sender: Sender,
    /// The number it was sent with.
    pub send_id: u64,
    /// Written to the socket, or why not.
    pub result: Result<(), ErrorReason>,
}

#[derive(Debug)]
struct Entry<M> {
    sender: Sender,
    cost: u64,
    /// `None` once the connection took it.
    message: Option<M>,
}

/// See the [module's description](self).
#[derive(Debug)]
pub struct Outbox<M> {
    limits: Limits,
    share: Share,
    /// Accepted and not yet written, oldest first. Those that the connection took stand before the others.
    entries: VecDeque<Entry<M>>,
    taken: usize,
    /// How many of `entries` are the stream's.
    streams: usize,
    held: u64,
    stream_left: i64,
    call_left: i64,
    stream: u64,
    /// What came back and was not told yet; below zero, what the client was told that it does not have.
    credit: i64,
    closed: bool,
}

impl<M> Outbox<M> {
    /// An empty outbox.
    #[must_use]
    pub fn new(limits: Limits, budget: Arc<Budget>) -> Self {
        let window = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let mut share = Share::new(budget);
        share.set_channels(1);
        Self {
            limits,
            share,
            entries: VecDeque::new(),
            taken: 0,
            streams: 0,
            held: 0,
            stream_left: window(limits.stream_window),
            call_left: window(limits.call_window),
            stream: 0,
            credit: 0,
            closed: false,
        }
    }

    /// Accepts a message or says why not. `len` is the size of its payload, `code` its code inside the capability.
    pub fn send(&mut self, sender: Sender, code: u32, len: usize, message: M) -> Result<(), ErrorReason> {
        if self.closed {
            return Err(ErrorReason::PeerNotConnected);
        }
        if u64::from(code) >= self.limits.message_count {
            return Err(ErrorReason::MessageCodeOutOfRange);
        }
        if len > self.limits.max_message_bytes {
            return Err(ErrorReason::MessageTooLarge);
        }
        let cost = cost(len);
        let window = match sender {
            Sender::Greeting => None,
            Sender::Stream { .. } => Some(&mut self.stream_left),
            Sender::Call { .. } => Some(&mut self.call_left),
        };
        if let Some(left) = window {
            if *left <= 0 {
                return Err(ErrorReason::SendWindowExceeded);
            }
            if !self.share.allows(self.held) {
                return Err(ErrorReason::LimitReached);
            }
            *left = left.saturating_sub_unsigned(cost);
        }
        self.streams = self.streams.saturating_add(usize::from(matches!(sender, Sender::Stream { .. })));
        self.held = self.held.saturating_add(cost);
        self.share.hold(self.held);
        self.entries.push_back(Entry { sender, cost, message: Some(message) });
        Ok(())
    }

    /// The next message for the connection to encode and write.
    pub fn take(&mut self) -> Option<M> {
        let message = self.entries.get_mut(self.taken)?.message.take()?;
        self.taken = self.taken.saturating_add(1);
        Some(message)
    }

    /// Whether [`take`](Self::take) has something.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.taken < self.entries.len()
    }

    /// The socket took the oldest `messages` of those the connection took. Who wanted to know is told in `outcomes`.
    pub fn written(&mut self, messages: usize, outcomes: &mut Vec<Outcome>) {
        for _ in 0..messages.min(self.taken) {
            let Some(entry) = self.entries.pop_front() else { break };
            self.taken = self.taken.saturating_sub(1);
            self.held = self.held.saturating_sub(entry.cost);
            match entry.sender {
                Sender::Greeting => {}
                Sender::Stream { .. } => {
                    self.streams = self.streams.saturating_sub(1);
                    self.stream_left = self.stream_left.saturating_add_unsigned(entry.cost);
                    self.credit = self.credit.saturating_add_unsigned(entry.cost);
                }
                Sender::Call { .. } => self.call_left = self.call_left.saturating_add_unsigned(entry.cost),
            }
            self.tell(entry.sender, Ok(()), outcomes);
        }
        if self.entries.is_empty() {
            self.entries.shrink_to(8);
        }
        self.share.hold(self.held);
    }

    /// The channel is over. Returns how many accepted messages were never written; the sidecar's own do not count.
    pub fn close(&mut self, outcomes: &mut Vec<Outcome>) -> u64 {
        let mut unsent = 0;
        for entry in std::mem::take(&mut self.entries) {
            unsent += u64::from(entry.sender != Sender::Greeting);
            self.tell(entry.sender, Err(ErrorReason::PeerNotConnected), outcomes);
        }
        (self.closed, self.taken, self.held) = (true, 0, 0);
        self.share.hold(0);
        unsent
    }

    /// The window to announce to a stream that hears of this channel. Credit is counted for that stream from here on.
    pub fn announce(&mut self, stream: u64) -> u64 {
        self.stream = stream;
        // A window below zero is announced as none; the difference is kept back from the credit to come.
        self.credit = self.stream_left.min(0);
        u64::try_from(self.stream_left).unwrap_or(0)
    }

    /// Credit to return to the stream, once it is worth an event: a quarter of the window, or all there is when
    /// nothing of the stream waits any more. Otherwise 0.
    pub fn take_credit(&mut self) -> u64 {
        let credit = u64::try_from(self.credit).unwrap_or(0);
        let worth = self.streams == 0 || credit >= self.limits.stream_window / 4;
        if !worth || credit == 0 || self.closed {
            return 0;
        }
        self.credit = 0;
        credit
    }

    fn tell(&self, sender: Sender, result: Result<(), ErrorReason>, outcomes: &mut Vec<Outcome>) {
        let send_id = match sender {
            Sender::Greeting => None,
            Sender::Stream { stream, want_result } => want_result.filter(|_| stream == self.stream),
            Sender::Call { want_result } => want_result,
        };
        if let Some(send_id) = send_id {
            outcomes.push(Outcome { sender, send_id, result });
        }
    }
}
