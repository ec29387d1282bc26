//! One stream of an application: its windows, the numbers of its channels, and the events that it takes, in the order
//! of [`super::schedule`].
//!
//! Left out: attaching and detaching (`inbox`), and everything that outlives the stream (`backlog`).

use std::collections::HashMap;

use super::backlog::{Backlog, Folded};
use super::channel::{Channel, OnStream, Place};
use super::credit::{DEFAULT_CHANNEL_WINDOW, DEFAULT_STREAM_WINDOW, Uncredited, Window, cost};
use super::event::{Event, Opened, Part};
use super::frame::{EVENT_OVERHEAD, Frame, MAX_PART, OPENED_BYTES, Pull};
use super::queue::Item;
use super::schedule::{QUANTUM, Schedule};
use super::slab::ChannelKey;

/// The largest gRPC message that a client takes when it names none: 4 MiB, the default of every gRPC library.
pub const DEFAULT_MAX_FRAME: usize = 4 << 20;

/// The smallest `max_frame_bytes` that is used; with less, one announcement would not fit.
pub const MIN_MAX_FRAME: usize = 64 << 10;

/// The settings of a stream, as its application asked for them. Zero means the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttachParams {
    /// Credit over all channels, in bytes; [`DEFAULT_STREAM_WINDOW`].
    pub stream_window: u64,
    /// Credit of each channel, in bytes; [`DEFAULT_CHANNEL_WINDOW`].
    pub channel_window: u64,
    /// The largest gRPC message the application takes; [`DEFAULT_MAX_FRAME`]. Larger messages come in parts.
    pub max_frame_bytes: usize,
    /// Whether credit returns by itself.
    pub auto_credit: bool,
}

/// The most credit that one update may give, in bytes: more than any window or memory. A client that returns more has
/// computed a wrong number.
pub(super) const MAX_CREDIT: u64 = 1 << 40;

/// Why an update of credit was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreditError {
    /// No channel has had this number on this stream.
    #[error(
        "no channel {channel} was opened on this stream; channel_opened tells the numbers, and 0 is the stream itself"
    )]
    NeverOpened {
        /// The number.
        channel: u32,
    },
    /// The amount is above [`MAX_CREDIT`].
    #[error(
        "{bytes} bytes of credit are beyond any window; return the cost of the messages that you have processed"
    )]
    TooMuch {
        /// The amount.
        bytes: u64,
    },
}

/// The id of a stream that is attached to a registration. The registration's owner counts streams, so that a later
/// stream has another id. A stream that is attached no more can neither pull nor give credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamId(pub u64);

/// The current stream.
#[derive(Debug)]
pub(super) struct Stream {
    id: StreamId,
    window: Window,
    channel_window: u64,
    auto_credit: bool,
    /// The largest payload that goes in one piece.
    max_whole: usize,
    numbers: HashMap<u32, ChannelKey>,
    next_number: u32,
    /// Whether credit came for a number of this stream: then the client knows its numbers.
    credited: bool,
    schedule: Schedule,
    /// Whether its last pull found nothing: then it must be woken for the next event.
    idle: bool,
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

/// The state of a channel on a stream to which it has not been announced.
pub(super) fn on_stream(stream: Option<&Stream>) -> OnStream {
    let (window, auto_credit) =
        stream.map_or((0, false), |stream| (stream.channel_window, stream.auto_credit));
    OnStream {
        number: None,
        window: Window::new(window, auto_credit),
        log: (!auto_credit).then(Uncredited::default),
        offset: 0,
        place: Place::Idle,
        ready: false,
        deficit: 0,
    }
}

impl Stream {
    /// A stream that no channel has been announced to.
    pub(super) fn new(id: StreamId, params: AttachParams) -> Self {
        let or = |value, default| if value == 0 { default } else { value };
        let max_frame = match params.max_frame_bytes {
            0 => DEFAULT_MAX_FRAME,
            bytes => bytes.max(MIN_MAX_FRAME),
        };
        Self {
            id,
            window: Window::new(or(params.stream_window, DEFAULT_STREAM_WINDOW), params.auto_credit),
            channel_window: or(params.channel_window, DEFAULT_CHANNEL_WINDOW),
            auto_credit: params.auto_credit,
            max_whole: max_frame.saturating_sub(EVENT_OVERHEAD),
            numbers: HashMap::new(),
            next_number: 1,
            credited: false,
            schedule: Schedule::default(),
            idle: false,
        }
    }

    pub(super) fn id(&self) -> StreamId {
        self.id
    }

    /// The channel that has this number.
    pub(super) fn channel(&self, number: u32) -> Option<ChannelKey> {
        self.numbers.get(&number).copied()
    }

    /// Takes credit for the channel with this number, or for the stream (`0`). `resumed`: there was a stream before
    /// this one.
    pub(super) fn credit<P>(
        &mut self,
        backlog: &mut Backlog<P>,
        number: u32,
        bytes: u64,
        resumed: bool,
    ) -> Result<(), CreditError> {
        if bytes > MAX_CREDIT {
            return Err(CreditError::TooMuch { bytes });
        }
        if number == 0 {
            self.window.give(bytes);
            return Ok(());
        }
        // The client may not have read an announcement of this stream yet, and still return credit for the stream
        // before.
        if number >= self.next_number {
            let just_resumed = resumed && !self.credited;
            return if just_resumed { Ok(()) } else { Err(CreditError::NeverOpened { channel: number }) };
        }
        self.credited = true;
        let Some(key) = self.channel(number) else { return Ok(()) };
        let Some(channel) = backlog.get_mut(key) else { return Ok(()) };
        channel.credit(bytes);
        if channel.on.place == Place::NoCredit {
            self.enlist(key, channel);
        }
        Ok(())
    }

    /// Whether the stream is to be woken: its last pull found nothing, and there is something for it now. Returns true
    /// once for each such pull.
    pub(super) fn wants_waking<P>(&mut self, backlog: &Backlog<P>) -> bool {
        let messages = self.schedule.ready > 0 && self.window.is_open();
        let wake = self.idle && (messages || !self.schedule.free.is_empty() || backlog.has_folded());
        if wake {
            self.idle = false;
        }
        wake
    }

    /// Puts the channel into the queue where it waits for its turn, unless it waits already.
    pub(super) fn enlist<P>(&mut self, key: ChannelKey, channel: &mut Channel<P>) {
        if matches!(channel.on.place, Place::Idle | Place::NoCredit) {
            // The next event decides the queue. An announcement, a gap and the end cost nothing, and wait for no
            // credit. A message goes into the round if the channel has credit; without credit the channel waits for it
            // in no queue.
            let costs_nothing = match channel.queue.head() {
                _ if channel.on.number.is_none() => Some(true),
                Some(Item::Gap(_)) => Some(true),
                Some(Item::Message { .. }) => Some(false),
                None => channel.closed.is_some().then_some(true),
            };
            channel.on.place = match costs_nothing {
                None => Place::Idle,
                Some(true) => {
                    self.schedule.free.push_back(key);
                    Place::Free
                }
                Some(false) if channel.on.window.is_open() => {
                    self.schedule.round.push_back(key);
                    Place::Round
                }
                Some(false) => Place::NoCredit,
            };
        }
        self.count_ready(channel);
    }

    /// Updates the number of channels in the round that have something to hand over.
    fn count_ready<P>(&mut self, channel: &mut Channel<P>) {
        let ready =
            channel.on.place == Place::Round && (!channel.queue.is_empty() || channel.closed.is_some());
        if ready != channel.on.ready {
            channel.on.ready = ready;
            let count = self.schedule.ready;
            self.schedule.ready = if ready { count.saturating_add(1) } else { count.saturating_sub(1) };
        }
    }

    /// Appends the events that are ready to `frame`, in order.
    pub(super) fn pull<P>(&mut self, backlog: &mut Backlog<P>, frame: &mut Frame<'_, P>) -> Pull {
        let pull = self.fill(backlog, frame);
        self.idle = pull == Pull::Idle;
        pull
    }

    fn fill<P>(&mut self, backlog: &mut Backlog<P>, frame: &mut Frame<'_, P>) -> Pull {
        // First the folded sessions, then the events that cost nothing, then messages by turns: credit limits only the
        // last.
        if backlog.has_folded() {
            if !frame.fits(EVENT_OVERHEAD) {
                return Pull::Full;
            }
            let Folded { sessions, lost } = backlog.take_folded();
            let event = Event::Gap { channel: 0, sessions, messages: lost.messages, bytes: lost.bytes };
            frame.push(EVENT_OVERHEAD, event);
        }
        while let Some(&key) = self.schedule.free.front() {
            if !self.free_events(backlog, key, frame) {
                return Pull::Full;
            }
            self.schedule.free.pop_front();
            if let Some(channel) = backlog.get_mut(key) {
                channel.on.place = Place::Idle;
                self.enlist(key, channel);
            }
        }
        while self.schedule.ready > 0
            && let Some(&key) = self.schedule.round.front()
        {
            match self.turn(backlog, key, frame) {
                Turn::Next => {}
                Turn::Full => return Pull::Full,
                Turn::NoCredit => return Pull::Idle,
            }
        }
        self.forgive(backlog);
        Pull::Idle
    }

    /// Hands over the events at the head of a channel that cost nothing. Returns false if the frame is full.
    fn free_events<P>(
        &mut self,
        backlog: &mut Backlog<P>,
        key: ChannelKey,
        frame: &mut Frame<'_, P>,
    ) -> bool {
        let Some((channel, totals)) = backlog.entry(key) else { return true };
        let number = match channel.on.number {
            Some(number) => number,
            None => match self.announce(key, channel, frame) {
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
                    totals.gap_reported(*lost, channel.closed.is_some());
                    let (messages, bytes) = (lost.messages, lost.bytes);
                    frame.push(EVENT_OVERHEAD, Event::Gap { channel: number, sessions: 0, messages, bytes });
                    channel.queue.pop();
                }
                None if let Some(close) = &channel.closed => {
                    if !frame.fits(EVENT_OVERHEAD) {
                        return false;
                    }
                    frame.push(
                        EVENT_OVERHEAD.saturating_add(close.detail.len()),
                        Event::Closed { channel: number, close: close.clone() },
                    );
                    self.numbers.remove(&number);
                    backlog.remove(key);
                    return true;
                }
                _ => return true,
            }
        }
    }

    /// One turn of the channel at the front of the round. It hands over messages until its queue or its deficit is used
    /// up, a window is closed, or the frame is full.
    fn turn<P>(&mut self, backlog: &mut Backlog<P>, key: ChannelKey, frame: &mut Frame<'_, P>) -> Turn {
        let Some(channel) = backlog.get_mut(key) else {
            self.schedule.leave();
            return Turn::Next;
        };
        if !std::mem::replace(&mut self.schedule.served, true) {
            channel.on.deficit = channel.on.deficit.saturating_add(QUANTUM);
        }
        if self.schedule.ready == 1 && channel.on.ready {
            channel.on.deficit = channel.on.deficit.max(QUANTUM); // no other channel has a message: no debt counts
        }
        while let Some(channel) = backlog.get_mut(key) {
            match channel.queue.head() {
                Some(Item::Message { .. }) => {}
                None if channel.closed.is_none() => {
                    if channel.on.deficit < 0 {
                        break; // it stays in the round until its debt is paid by turns
                    }
                    channel.on.deficit = 0;
                    channel.on.place = Place::Idle;
                    self.schedule.leave();
                    return Turn::Next;
                }
                _ => {
                    let had = channel.on.ready;
                    if !self.free_events(backlog, key, frame) {
                        return Turn::Full;
                    }
                    match backlog.get_mut(key) {
                        Some(channel) => self.count_ready(channel),
                        None => {
                            self.schedule.ready = self.schedule.ready.saturating_sub(usize::from(had));
                            self.schedule.leave();
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
                self.count_ready(channel);
                self.schedule.leave();
                return Turn::Next;
            }
            if channel.on.deficit <= 0 {
                break;
            }
            if !self.window.is_open() {
                return Turn::NoCredit;
            }
            if !self.message(backlog, key, frame) {
                return Turn::Full;
            }
        }
        self.schedule.rotate();
        Turn::Next
    }

    /// Hands over the message at the head of a channel, or its next part. Returns false if the frame is full.
    fn message<P>(&mut self, backlog: &mut Backlog<P>, key: ChannelKey, frame: &mut Frame<'_, P>) -> bool {
        let Some((channel, totals)) = backlog.entry(key) else { return true };
        let (Some(Item::Message { code, payload }), Some(number)) = (channel.queue.head(), channel.on.number)
        else {
            return true;
        };
        let (code, total, offset) = (*code, payload.len(), channel.on.offset);
        let whole = total <= self.max_whole;
        let end = if whole { total } else { total.min(offset.saturating_add(MAX_PART.min(self.max_whole))) };
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
            totals.handed_over(freed, channel.closed.is_some());
            channel.position = channel.position.saturating_add(1);
            if let Some(log) = &mut channel.on.log {
                log.add(cost(total));
            }
            if channel.held.is_some_and(|held| channel.queue.cost() <= held.room_at) {
                channel.held = None;
                totals.release(key);
            }
        } else {
            channel.on.offset = end;
        }
        channel.taken = channel.taken.saturating_add(len as u64);
        channel.on.window.take(price);
        channel.on.deficit = channel.on.deficit.saturating_sub_unsigned(price);
        self.window.take(price);
        self.count_ready(channel);
        frame.push(
            len.saturating_add(EVENT_OVERHEAD),
            Event::Message { channel: number, code, payload: piece, part },
        );
        true
    }

    /// No channel has a message: all debts are cancelled.
    fn forgive<P>(&mut self, backlog: &mut Backlog<P>) {
        self.schedule.served = false;
        for key in self.schedule.round.drain(..) {
            if let Some(channel) = backlog.get_mut(key) {
                channel.on.deficit = 0;
                channel.on.place = Place::Idle;
            }
        }
    }

    /// Announces a channel to the stream and returns its number; `None` when the frame is full (or four billion
    /// channels were announced on this stream).
    fn announce<P>(
        &mut self,
        key: ChannelKey,
        channel: &mut Channel<P>,
        frame: &mut Frame<'_, P>,
    ) -> Option<u32> {
        let first_messages = channel.first_messages();
        let size = first_messages
            .iter()
            .fold(OPENED_BYTES, |sum, message| sum.saturating_add(message.payload.len()));
        if !frame.fits(size) {
            return None;
        }
        let number = self.next_number;
        self.next_number = number.checked_add(1)?;
        self.numbers.insert(number, key);
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
}
