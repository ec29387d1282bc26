//! A frame being filled: the events of one gRPC message, and how large it may become.

use super::event::Event;

/// The largest part, in bytes, of a message that is too large for the client's frames. It is small enough that other
/// channels' events come between the parts, and large enough that the cost of a frame does not matter.
pub(super) const MAX_PART: usize = 1 << 20;

/// The most bytes that framing adds to a payload: tags, lengths and numbers of the event and its frame.
pub(super) const EVENT_OVERHEAD: usize = 64;

/// The bytes of an announcement in a frame, without its first messages: a peer with its enode, record and names.
pub(super) const OPENED_BYTES: usize = 2 << 10;

/// How a pull ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pull {
    /// The frame is full; there may be more.
    Full,
    /// Credit allows nothing (more); `on_readable` is called when that changes.
    Idle,
    /// This stream is not attached any more: another one is, or none.
    Ended,
}

/// A frame being filled.
pub(super) struct Frame<'a, P> {
    out: &'a mut Vec<Event<P>>,
    /// How many events more it takes.
    events: usize,
    bytes: usize,
    max_bytes: usize,
}

impl<'a, P> Frame<'a, P> {
    /// A frame that appends at most `max_events` events of about `max_bytes` bytes to `out`.
    pub(super) fn new(out: &'a mut Vec<Event<P>>, max_events: usize, max_bytes: usize) -> Self {
        Self { out, events: max_events, bytes: 0, max_bytes }
    }

    /// Whether `bytes` more fit. The first event of a frame always fits.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        self.events > 0 && (self.bytes == 0 || self.bytes.saturating_add(bytes) <= self.max_bytes)
    }

    pub(super) fn push(&mut self, bytes: usize, event: Event<P>) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.events = self.events.saturating_sub(1);
        self.out.push(event);
    }
}
