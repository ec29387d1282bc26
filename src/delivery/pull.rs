//! Hands over the events that are ready, one frame at a time, in the order of [`super::schedule`].

use super::attach::{Stream, StreamId};
use super::channel::{Channel, Place};
use super::credit::{MESSAGE_COST, cost};
use super::event::{Event, Opened, Part};
use super::queue::Item;
use super::schedule::QUANTUM;
use super::slab::ChannelKey;
use super::{Folded, Inbox};

/// The largest part, in bytes, of a message that is too large for the client's frames. It is small enough that other
/// channels' events come between the parts, and large enough that the cost of a frame does not matter.
pub const MAX_PART: usize = 1 << 20;

/// The most bytes that framing adds to a payload: tags, lengths and numbers of the event and its frame.
pub(super) const EVENT_OVERHEAD: usize = 64;

/// The bytes of an announcement in a frame, without its first messages: a peer with its enode, record and names.
const OPENED_BYTES: usize = 2 << 10;

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
struct Frame<'a, P> {
    out: &'a mut Vec<Event<P>>,
    events: usize,
    bytes: usize,
    max_bytes: usize,
}

impl<P> Frame<'_, P> {
    /// Whether `bytes` more fit. The first event of a frame always fits.
    fn fits(&self, bytes: usize) -> bool {
        self.events > 0 && (self.bytes == 0 || self.bytes.saturating_add(bytes) <= self.max_bytes)
    }

    fn push(&mut self, bytes: usize, event: Event<P>) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.events = self.events.saturating_sub(1);
        self.out.push(event);
    }
}

/// How a channel's turn ended.
enum Turn {
    /// The next channel is due.
    Next,
    /// The frame is full.
    Full,
    /// The stream's window is closed: no channel may hand over a message.
    NoCredit,
}

impl<P> Inbox<P> {
    /// Appends the events that are ready to `out`, in order, at most `max_events` events and about `max_bytes` bytes: a
    /// message or part that is larger than that comes alone.
    pub fn pull(
        &mut self,
        stream: StreamId,
        max_bytes: usize,
        max_events: usize,
        out: &mut Vec<Event<P>>,
    ) -> Pull {
        // The stream is taken out during the pull, so that it and the channels can be borrowed separately.
        let Some(mut attached) = self.stream.take_if(|attached| attached.id == stream) else {
            return Pull::Ended;
        };
        let mut frame = Frame { out, events: max_events, bytes: 0, max_bytes };
        let pull = self.fill(&mut attached, &mut frame);
        attached.idle = pull == Pull::Idle;
        self.stream = Some(attached);
        self.share.hold(self.waiting);
        pull
    }

    fn fill(&mut self, stream: &mut Stream, frame: &mut Frame<'_, P>) -> Pull {
        // First the folded sessions, then the events that cost nothing, then messages by turns: credit limits only the
        // last.
        if self.folded.sessions > 0 {
            if !frame.fits(EVENT_OVERHEAD) {
                return Pull::Full;
            }
            let Folded { sessions, lost } = std::mem::take(&mut self.folded);
            // Another channel of the same session may fold later: that fold must be reported too.
            self.last_folded_session = None;
            let event = Event::Gap { channel: 0, sessions, messages: lost.messages, bytes: lost.bytes };
            frame.push(EVENT_OVERHEAD, event);
        }
        while let Some(&key) = stream.schedule.free.front() {
            if !self.free_events(stream, key, frame) {
                return Pull::Full;
            }
            stream.schedule.free.pop_front();
            if let Some(channel) = self.channels.get_mut(key) {
                channel.on.place = Place::Idle;
                stream.enlist(key, channel);
            }
        }
        while stream.schedule.ready > 0
            && let Some(&key) = stream.schedule.round.front()
        {
            match self.turn(stream, key, frame) {
                Turn::Next => {}
                Turn::Full => return Pull::Full,
                Turn::NoCredit => return Pull::Idle,
            }
        }
        self.forgive(stream);
        Pull::Idle
    }

    /// Hands over the events at the head of a channel that cost nothing. Returns false if the frame is full.
    fn free_events(&mut self, stream: &mut Stream, key: ChannelKey, frame: &mut Frame<'_, P>) -> bool {
        let Some(channel) = self.channels.get_mut(key) else { return true };
        let number = match channel.on.number {
            Some(number) => number,
            None => match announce(stream, key, channel, frame) {
                Some(number) => number,
                None => return false,
            },
        };
        loop {
            match channel.queue.head() {
                Some(Item::Gap(lost)) => {
                    if !frame.fits(EVENT_OVERHEAD) {
                        return false;
                    }
                    channel.position = channel.position.saturating_add(lost.messages);
                    self.counters.reported.add(*lost);
                    let (messages, bytes) = (lost.messages, lost.bytes);
                    frame.push(EVENT_OVERHEAD, Event::Gap { channel: number, sessions: 0, messages, bytes });
                    channel.queue.pop();
                    self.waiting = self.waiting.saturating_sub(MESSAGE_COST);
                    if channel.closed.is_some() {
                        self.closed_waiting = self.closed_waiting.saturating_sub(MESSAGE_COST);
                    }
                }
                None if let Some(close) = &channel.closed => {
                    if !frame.fits(EVENT_OVERHEAD) {
                        return false;
                    }
                    let session_id = channel.about.session_id;
                    frame.push(
                        EVENT_OVERHEAD.saturating_add(close.detail.len()),
                        Event::Closed { channel: number, session_id, close: close.clone() },
                    );
                    stream.numbers.remove(&number);
                    self.remove(key);
                    return true;
                }
                _ => return true,
            }
        }
    }

    /// One turn of the channel at the front of the round. It hands over messages until its queue or its deficit is used
    /// up, a window is closed, or the frame is full.
    fn turn(&mut self, stream: &mut Stream, key: ChannelKey, frame: &mut Frame<'_, P>) -> Turn {
        let Some(channel) = self.channels.get_mut(key) else {
            stream.schedule.leave();
            return Turn::Next;
        };
        if !std::mem::replace(&mut stream.schedule.served, true) {
            channel.on.deficit = channel.on.deficit.saturating_add(QUANTUM);
        }
        if stream.schedule.ready == 1 && channel.on.ready {
            channel.on.deficit = channel.on.deficit.max(QUANTUM); // no other channel has a message: no debt counts
        }
        while let Some(channel) = self.channels.get_mut(key) {
            match channel.queue.head() {
                Some(Item::Message { .. }) => {}
                None if channel.closed.is_none() => {
                    if channel.on.deficit < 0 {
                        break; // it stays in the round until its debt is paid by turns
                    }
                    channel.on.deficit = 0;
                    channel.on.place = Place::Idle;
                    stream.schedule.leave();
                    return Turn::Next;
                }
                _ => {
                    let had = channel.on.ready;
                    if !self.free_events(stream, key, frame) {
                        return Turn::Full;
                    }
                    match self.channels.get_mut(key) {
                        Some(channel) => stream.count_ready(channel),
                        None => {
                            stream.schedule.ready = stream.schedule.ready.saturating_sub(usize::from(had));
                            stream.schedule.leave();
                            return Turn::Next;
                        }
                    }
                    continue;
                }
            }
            // Three limits end a turn before a message. The channel's window is checked first: a channel without credit
            // leaves the round and holds no one up. Without deficit it stays in the round. The stream's window stops
            // all channels.
            if !channel.on.window.is_open() {
                channel.on.deficit = channel.on.deficit.min(0);
                channel.on.place = Place::NoCredit;
                stream.count_ready(channel);
                stream.schedule.leave();
                return Turn::Next;
            }
            if channel.on.deficit <= 0 {
                break;
            }
            if !stream.window.is_open() {
                return Turn::NoCredit;
            }
            if !self.message(stream, key, frame) {
                return Turn::Full;
            }
        }
        stream.schedule.rotate();
        Turn::Next
    }

    /// Hands over the message at the head of a channel, or its next part. Returns false if the frame is full.
    fn message(&mut self, stream: &mut Stream, key: ChannelKey, frame: &mut Frame<'_, P>) -> bool {
        let Some(channel) = self.channels.get_mut(key) else { return true };
        let (Some(Item::Message { code, payload }), Some(number)) = (channel.queue.head(), channel.on.number)
        else {
            return true;
        };
        let (code, total, offset) = (*code, payload.len(), channel.on.offset);
        let whole = total <= stream.max_whole;
        let end =
            if whole { total } else { total.min(offset.saturating_add(MAX_PART.min(stream.max_whole))) };
        let len = end.saturating_sub(offset);
        if !frame.fits(len.saturating_add(EVENT_OVERHEAD)) {
            return false;
        }
        let (piece, part) = if whole {
            (payload.clone(), None)
        } else {
            (payload.slice(offset..end), Some(Part { total, offset }))
        };
        let mut price = len as u64;
        if end == total {
            price = cost(len);
            channel.on.offset = 0;
            let before = channel.queue.cost();
            channel.queue.pop();
            let freed = before.saturating_sub(channel.queue.cost());
            self.waiting = self.waiting.saturating_sub(freed);
            if channel.closed.is_some() {
                self.closed_waiting = self.closed_waiting.saturating_sub(freed);
            }
            channel.position = channel.position.saturating_add(1);
            self.counters.handed_over = self.counters.handed_over.saturating_add(1);
            if let Some(log) = &mut channel.on.log {
                log.add(cost(total));
            }
            if channel.held.is_some_and(|held| channel.queue.cost() <= held.room_at) {
                channel.held = None;
                self.wake.space.push(key);
            }
        } else {
            channel.on.offset = end;
        }
        channel.taken = channel.taken.saturating_add(len as u64);
        channel.on.window.take(price);
        channel.on.deficit = channel.on.deficit.saturating_sub_unsigned(price);
        stream.window.take(price);
        stream.count_ready(channel);
        frame.push(
            len.saturating_add(EVENT_OVERHEAD),
            Event::Message { channel: number, code, payload: piece, part },
        );
        true
    }

    /// No channel has a message: all debts are cancelled.
    fn forgive(&mut self, stream: &mut Stream) {
        stream.schedule.served = false;
        for key in stream.schedule.round.drain(..) {
            if let Some(channel) = self.channels.get_mut(key) {
                channel.on.deficit = 0;
                channel.on.place = Place::Idle;
            }
        }
    }
}

/// Announces a channel to the stream and returns its number; `None` when the frame is full (or four billion channels
/// were announced on this stream).
fn announce<P>(
    stream: &mut Stream,
    key: ChannelKey,
    channel: &mut Channel<P>,
    frame: &mut Frame<'_, P>,
) -> Option<u32> {
    let first_messages = channel.first_messages();
    let size =
        first_messages.iter().fold(OPENED_BYTES, |sum, message| sum.saturating_add(message.payload.len()));
    if !frame.fits(size) {
        return None;
    }
    let number = stream.next_number;
    stream.next_number = number.checked_add(1)?;
    stream.numbers.insert(number, key);
    let opened = Opened {
        channel: number,
        about: channel.about.clone(),
        existing: channel.announced,
        position: channel.position,
        uncredited_messages: channel.uncredited(),
        first_messages,
    };
    channel.on.number = Some(number);
    channel.announced = true;
    frame.push(size, Event::Opened(Box::new(opened)));
    Some(number)
}
