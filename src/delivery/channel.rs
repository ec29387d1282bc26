//! One channel: what waits on it, how far it has come, and where it stands on the stream of the moment.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::credit::{Uncredited, Window};
use super::event::{About, Close, FirstMessage};
use super::overflow::Overflow;
use super::queue::{Item, Queue};

/// The most first messages a channel keeps. One is what a protocol's handshake needs (eth's Status); a few more allow
/// for those that need a second.
pub const MAX_KEEP_FIRST: usize = 4;

/// The most bytes of first messages a channel keeps.
const MAX_KEEP_FIRST_BYTES: usize = 16 << 10;

/// What a closed channel costs on top of its messages while it waits to be told: about what its record takes. So a
/// stranger who connects over and over fills a bound and no more.
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

/// What a channel is to the stream of the moment.
#[derive(Debug)]
pub(super) struct OnStream {
    /// Its number, once it is announced.
    pub(super) number: Option<u32>,
    pub(super) window: Window,
    /// `None` with automatic credit.
    pub(super) log: Option<Uncredited>,
    /// How much of the first waiting message went out in parts.
    pub(super) offset: usize,
    pub(super) place: Place,
    /// Whether the round counts it among those that have something to hand over.
    pub(super) ready: bool,
    /// What is left of this round's bytes; below zero, a debt from a message larger than the quantum.
    pub(super) deficit: i64,
}

/// A connection that is held for a channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldFor {
    /// Until the queue costs no more than this.
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
    /// Whether some stream was told of it.
    pub(super) announced: bool,
    /// What earlier streams left uncredited; `None` when that is not known.
    uncredited: Option<u64>,
    pub(super) closed: Option<Arc<Close>>,
    /// When it closed, among the inbox's closed channels.
    pub(super) closing: u64,
    /// Its connection is held.
    pub(super) held: Option<HeldFor>,
    /// Bytes of payload that streams have taken, parts of messages included.
    pub(super) taken: u64,
    pub(super) overflow: Overflow,
    /// Its owner was told to close it: nothing more is taken.
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

    /// Counts a message that was queued or lost, and keeps it if it is one of the first.
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

    /// The first messages that nobody will get from the queue any more: handed over earlier, or lost in the gap that
    /// the queue begins with.
    pub(super) fn first_messages(&self) -> Vec<FirstMessage> {
        let lost = match self.queue.head() {
            Some(Item::Gap(lost)) => lost.messages,
            _ => 0,
        };
        let gone = usize::try_from(self.position.saturating_add(lost)).unwrap_or(usize::MAX);
        self.first.iter().take(gone).cloned().collect()
    }

    /// What the channel costs if it is closed: its messages and its record.
    pub(super) fn closed_cost(&self) -> u64 {
        CLOSED_COST.saturating_add(self.first_bytes as u64).saturating_add(self.queue.cost())
    }

    pub(super) fn uncredited(&self) -> Option<u64> {
        self.uncredited
    }

    /// Credit came back on this stream: the application has seen the channel announced on it, and with that what
    /// earlier streams left open.
    pub(super) fn credit(&mut self, bytes: u64) {
        self.on.window.give(bytes);
        if let Some(log) = &mut self.on.log {
            log.credit(bytes);
            self.uncredited = Some(0);
        }
    }

    /// The stream is gone; what it left uncredited is remembered for the next.
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
