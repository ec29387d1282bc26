//! One channel: the messages that wait on it, its position, and its state on the current stream.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::credit::{Uncredited, Window};
use super::event::{About, Close, FirstMessage};
use super::overflow::Overflow;
use super::queue::{Item, Queue};

/// The most first messages that a channel keeps. The handshake of most protocols needs one (eth's Status); some need a
/// second, and a few more are allowed.
pub const MAX_KEEP_FIRST: usize = 4;

/// The most bytes of first messages a channel keeps.
const MAX_KEEP_FIRST_BYTES: usize = 16 << 10;

/// The cost of a closed channel beyond its messages, in bytes, while its end waits to be reported: about the memory of
/// its record. So a stranger who connects over and over fills a bound and no more.
pub(super) const CLOSED_COST: u64 = 1 << 10;

/// Where a channel waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It has nothing to hand over.
    Idle,
    /// In the queue of events that cost nothing.
    Free,
    /// In the round robin of messages.
    Round,
    /// It has messages, and its window is closed.
    NoCredit,
}

/// The state of a channel on the current stream.
#[derive(Debug)]
pub(super) struct OnStream {
    /// Its number, once it is announced.
    pub(super) number: Option<u32>,
    pub(super) window: Window,
    /// `None` with automatic credit.
    pub(super) log: Option<Uncredited>,
    /// How many bytes of the first waiting message were handed over in parts.
    pub(super) offset: usize,
    pub(super) place: Place,
    /// Whether the round counts it as a channel that has something to hand over.
    pub(super) ready: bool,
    /// The rest of this round's bytes; below zero, a debt from a message larger than the quantum.
    pub(super) deficit: i64,
}

/// The hold of a connection for a channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldFor {
    /// The hold ends when the queue costs no more than this.
    pub(super) room_at: u64,
    pub(super) since: Instant,
}

/// A channel of an inbox.
#[derive(Debug)]
pub(super) struct Channel<P> {
    pub(super) about: Arc<About<P>>,
    pub(super) queue: Queue,
    /// Messages handed over or reported as gaps, on all streams.
    pub(super) position: u64,
    first: Vec<FirstMessage>,
    first_bytes: usize,
    arrived: u64,
    /// Whether it was announced on any stream.
    pub(super) announced: bool,
    /// How many messages earlier streams left uncredited; `None` when that is not known.
    uncredited: Option<u64>,
    pub(super) closed: Option<Arc<Close>>,
    /// The position of its end among those of the inbox's closed channels.
    pub(super) closing: u64,
    /// Set while its connection is held for it.
    pub(super) held: Option<HeldFor>,
    /// Bytes of payload that streams have taken, parts of messages included.
    pub(super) taken: u64,
    pub(super) overflow: Overflow,
    /// Its owner was told to close it: no more messages are taken.
    pub(super) muted: bool,
    pub(super) on: OnStream,
}

impl<P> Channel<P> {
    pub(super) fn new(about: About<P>, on: OnStream) -> Self {
        Self {
            about: Arc::new(about),
            queue: Queue::default(),
            position: 0,
            first: Vec::new(),
            first_bytes: 0,
            arrived: 0,
            announced: false,
            uncredited: Some(0),
            closed: None,
            closing: 0,
            held: None,
            taken: 0,
            overflow: Overflow::default(),
            muted: false,
            on,
        }
    }

    pub(super) fn takes_messages(&self) -> bool {
        self.closed.is_none() && !self.muted
    }

    /// Counts a message that was queued or lost, and keeps a copy if it is one of the first.
    pub(super) fn arrive(&mut self, code: u32, payload: &[u8]) {
        let kept = self.first.len();
        let bytes = self.first_bytes.saturating_add(payload.len());
        if kept < self.about.keep_first.min(MAX_KEEP_FIRST)
            && self.arrived == kept as u64
            && bytes <= MAX_KEEP_FIRST_BYTES
        {
            self.first.push(FirstMessage { code, payload: Bytes::copy_from_slice(payload) });
            self.first_bytes = bytes;
        }
        self.arrived = self.arrived.saturating_add(1);
    }

    /// The kept first messages that the queue will not deliver any more: handed over earlier, or lost in the gap at the
    /// queue's head.
    pub(super) fn first_messages(&self) -> Vec<FirstMessage> {
        let lost = match self.queue.head() {
            Some(Item::Gap(lost)) => lost.messages,
            _ => 0,
        };
        let gone = usize::try_from(self.position.saturating_add(lost)).unwrap_or(usize::MAX);
        self.first.iter().take(gone).cloned().collect()
    }

    /// The cost of the channel once it is closed: its messages and its record.
    pub(super) fn closed_cost(&self) -> u64 {
        CLOSED_COST.saturating_add(self.first_bytes as u64).saturating_add(self.queue.cost())
    }

    pub(super) fn uncredited(&self) -> Option<u64> {
        self.uncredited
    }

    /// Takes credit that came back on this stream. It proves that the application has read the channel's announcement
    /// on this stream, and so knows what earlier streams left uncredited.
    pub(super) fn credit(&mut self, bytes: u64) {
        self.on.window.give(bytes);
        if let Some(log) = &mut self.on.log {
            log.credit(bytes);
            self.uncredited = Some(0);
        }
    }

    /// The stream has ended; the messages that it left uncredited are counted for the next one.
    pub(super) fn leave(&mut self, next: OnStream) {
        self.overflow.forget();
        let stream = std::mem::replace(&mut self.on, next);
        if stream.number.is_some() {
            self.uncredited = match (self.uncredited, stream.log) {
                (Some(earlier), Some(log)) => Some(earlier.saturating_add(log.messages())),
                _ => None,
            };
        }
    }
}
