//! Handing over: one frame of what is ready.

use super::attach::{Stream, StreamId};
use super::channel::{Channel, Place};
use super::credit::{MESSAGE_COST, cost};
use super::event::{Event, Opened, Part};
use super::queue::Item;
use super::schedule::QUANTUM;
use super::slab::ChannelKey;
use super::{Folded, Inbox};

/// The largest part of a message that is too large for the client's frames. Small enough that other channels' events
/// come between, large enough that the cost of a frame does not count.
const MAX_PART: usize = 1 << 20;

/// What framing adds to a payload at most: tags, lengths and numbers of the event and its frame.
pub(super) const EVENT_OVERHEAD: usize = 64;

/// What an announcement takes in a frame, beside its first messages: a peer with its enode, record and names.
const OPENED_BYTES: usize = 2 << 10;

/// How a pull ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pull {
    /// The frame is full; there may be more.
    Full,
    /// There is nothing (more) that credit allows; `on_readable` will tell.
    Idle,
    /// This stream is not attached any more.
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
    /// Whether `bytes` more have room. The first event of a frame always has.
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
    /// The next channel's turn.
    Next,
    /// The frame is full.
    Full,
    /// The stream's window is closed.
    NoCredit,
}

impl<P> Inbox<P> {
    /// Appends to `out` what is ready, in order, at most `max_events` events and about `max_bytes` bytes: a message or
    /// part that is larger than that comes alone.
    pub fn pull(
        &mut self,
        stream: StreamId,
        max_bytes: usize,
        max_events: usize,
        out: &mut Vec<Event<P>>,
    ) -> Pull {
        // The stream is taken out for the time of the pull, so that it and the channels can be borrowed apart.
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
        if self.folded.sessions > 0 {
            if !frame.fits(EVENT_OVERHEAD) {
                return Pull::Full;
            }
            let Folded { sessions, lost } = std::mem::take(&mut self.folded);
            // Another channel of the same session that folds later has to be told, too.
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

    /// Hands over the events at the head of a channel that cost nothing. `false`: the frame is full.
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
                    frame.push(
                        EVENT_OVERHEAD.saturating_add(close.detail.len()),
                        Event::Closed { channel: number, close: close.clone() },
                    );
                    stream.numbers.remove(&number);
                    self.remove(key);
                    return true;
                }
                _ => return true,
            }
        }
    }

    /// One turn of the channel that stands first in the round.
    fn turn(&mut self, stream: &mut Stream, key: ChannelKey, frame: &mut Frame<'_, P>) -> Turn {
        let Some(channel) = self.channels.get_mut(key) else {
            stream.schedule.leave();
            return Turn::Next;
        };
        if !std::mem::replace(&mut stream.schedule.served, true) {
            channel.on.deficit = channel.on.deficit.saturating_add(QUANTUM);
        }
        if stream.schedule.ready == 1 && channel.on.ready {
            channel.on.deficit = channel.on.deficit.max(QUANTUM); // nobody else waits
        }
        while let Some(channel) = self.channels.get_mut(key) {
            match channel.queue.head() {
                Some(Item::Message { .. }) => {}
                None if channel.closed.is_none() => {
                    if channel.on.deficit < 0 {
                        break; // it stays in the round until its debt is paid
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

    /// Hands over the message at the head of a channel, or its next part. `false`: the frame is full.
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

    /// Nobody has a message: all debts are forgiven.
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

/// Tells the stream of a channel; `None` when the frame is full (or four billion channels were told already).
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
