//! Streams that come and go: attaching, credit, detaching.

use std::collections::HashMap;

use super::channel::{Channel, OnStream, Place};
use super::credit::{DEFAULT_CHANNEL_WINDOW, DEFAULT_STREAM_WINDOW, MESSAGE_COST, Uncredited, Window};
use super::pull::EVENT_OVERHEAD;
use super::queue::{Item, Lost};
use super::schedule::Schedule;
use super::slab::ChannelKey;
use super::{Folded, Inbox};

/// The largest gRPC message a client takes when it names none: the default of every gRPC library, 4 MiB.
pub const DEFAULT_MAX_FRAME: usize = 4 << 20;

/// The smallest `max_frame_bytes` that is honoured; below it one announcement would not fit.
pub const MIN_MAX_FRAME: usize = 64 << 10;

/// What an application asks for when it attaches. Zero means the default throughout.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttachParams {
    /// Credit over all channels, in bytes; [`DEFAULT_STREAM_WINDOW`].
    pub stream_window: u64,
    /// Credit of each channel, in bytes; [`DEFAULT_CHANNEL_WINDOW`].
    pub channel_window: u64,
    /// The largest gRPC message the application takes; [`DEFAULT_MAX_FRAME`]. Larger messages come in parts.
    pub max_frame_bytes: usize,
    /// Credit returns by itself.
    pub auto_credit: bool,
}

/// The most credit that one update may give, in bytes: more than any window or memory. A client that returns more has
/// a number wrong.
pub(super) const MAX_CREDIT: u64 = 1 << 40;

/// Why credit was not taken.
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
    /// The amount cannot be right.
    #[error("{bytes} bytes are beyond any window; return what the messages that you have processed cost")]
    TooMuch {
        /// The amount.
        bytes: u64,
    },
}

/// Names one attachment of an inbox. An older one can neither pull nor give credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamId(u64);

/// The stream of the moment.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: StreamId,
    pub(super) window: Window,
    pub(super) channel_window: u64,
    pub(super) auto_credit: bool,
    /// The largest payload that goes in one piece.
    pub(super) max_whole: usize,
    pub(super) numbers: HashMap<u32, ChannelKey>,
    pub(super) next_number: u32,
    /// Credit came for a number of this stream: the client knows them.
    pub(super) credited: bool,
    pub(super) schedule: Schedule,
    /// Whether its last pull found nothing: then it wants to be woken.
    pub(super) idle: bool,
}

/// What a channel is to a stream that has not heard of it.
pub(super) fn place_on(stream: Option<&Stream>) -> OnStream {
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

impl<P> Inbox<P> {
    /// Attaches a stream; the one before it, if any, has ended. All channels will be announced to it by number,
    /// oldest first, and then what waits.
    pub fn attach(&mut self, params: AttachParams) -> StreamId {
        self.streams = self.streams.saturating_add(1);
        let id = StreamId(self.streams);
        let or = |value, default| if value == 0 { default } else { value };
        let max_frame = match params.max_frame_bytes {
            0 => DEFAULT_MAX_FRAME,
            bytes => bytes.max(MIN_MAX_FRAME),
        };
        let stream = Stream {
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
        };
        let mut keys = Vec::with_capacity(self.channels.len());
        for (key, channel) in self.channels.iter_mut() {
            channel.leave(place_on(Some(&stream)));
            keys.push(key);
        }
        keys.sort_unstable();
        self.stream = Some(stream);
        for key in keys {
            self.enlist(key);
        }
        // Whoever pulled for the stream before must hear that it ended.
        self.wake.readable = true;
        id
    }

    /// The stream is gone. Ignored if another has taken its place. What waits beyond the bound of an absent
    /// application is given up, the newest of the fullest channels first.
    pub fn detach(&mut self, stream: StreamId) {
        if self.stream.as_ref().is_none_or(|attached| attached.id != stream) {
            return;
        }
        self.stream = None;
        self.wake.readable = true;
        let mut unheard = Vec::new();
        for (key, channel) in self.channels.iter_mut() {
            channel.leave(place_on(None));
            if channel.closed.is_some() && !channel.announced && channel.queue.is_empty() {
                unheard.push(key);
            }
        }
        for key in unheard {
            self.remove(key);
        }
        self.wake_held(); // no application would end these holds
        self.fold_closed();
        self.lower();
        self.share.hold(self.waiting);
    }

    /// Trims all queues to one level so that what waits is within the bound of an absent application.
    fn lower(&mut self) {
        let Some(mut excess) = self.waiting.checked_sub(self.config.away_bytes).filter(|excess| *excess > 0)
        else {
            return;
        };
        let mut costs: Vec<u64> = self.channels.iter().map(|(_, channel)| channel.queue.cost()).collect();
        costs.sort_unstable_by(|a, b| b.cmp(a));
        // The level to which the fullest queues must sink together until the excess is gone.
        let mut level = 0;
        for (count, pair) in (1_u64..).zip(costs.windows(2)) {
            let [higher, lower] = pair else { continue };
            let step = (higher - lower).saturating_mul(count);
            if step >= excess {
                level = higher.saturating_sub(excess.div_ceil(count));
                break;
            }
            excess = excess.saturating_sub(step);
            level = lower.saturating_sub(excess.div_ceil(count + 1));
        }
        if let [only] = costs.as_slice() {
            level = only.saturating_sub(excess);
        }
        // A gap takes the place of what is trimmed and costs as much as an empty message.
        let level = level.saturating_sub(MESSAGE_COST);
        for (_, channel) in self.channels.iter_mut() {
            let before = channel.queue.cost();
            let dropped = channel.queue.trim(level);
            if dropped != Lost::default() {
                self.counters.dropped.add(dropped);
                let after = channel.queue.cost();
                self.waiting = self.waiting.saturating_sub(before).saturating_add(after);
                if channel.closed.is_some() {
                    self.closed_waiting = self.closed_waiting.saturating_sub(before).saturating_add(after);
                }
            }
        }
    }

    /// The registration is gone: every channel ends untold, and connections that wait for room go on.
    pub fn clear(&mut self) {
        self.stream = None;
        self.wake.readable = true;
        let keys: Vec<ChannelKey> = self.channels.iter().map(|(key, _)| key).collect();
        for key in keys {
            if self.remove(key).is_some_and(|channel| channel.held.is_some()) {
                self.wake.space.push(key);
            }
        }
        self.folded = Folded::default();
        self.share.hold(self.waiting);
    }

    /// The application returned credit: for the channel with this number, or for the stream (`0`). Credit for a
    /// channel that is closed is ignored, and so is what a client that has just resumed says of numbers of its stream
    /// before.
    ///
    /// # Errors
    ///
    /// The number was never used on this stream, or the amount is beyond any window.
    pub fn credit(&mut self, stream: StreamId, number: u32, bytes: u64) -> Result<(), CreditError> {
        let earlier_streams = self.streams > 1;
        let Some(attached) = self.stream.as_mut().filter(|attached| attached.id == stream) else {
            return Ok(());
        };
        if bytes > MAX_CREDIT {
            return Err(CreditError::TooMuch { bytes });
        }
        if number == 0 {
            attached.window.give(bytes);
            self.signal();
            return Ok(());
        }
        if number >= attached.next_number {
            let just_resumed = earlier_streams && !attached.credited;
            return if just_resumed { Ok(()) } else { Err(CreditError::NeverOpened { channel: number }) };
        }
        attached.credited = true;
        let Some(&key) = attached.numbers.get(&number) else { return Ok(()) };
        let Some(channel) = self.channels.get_mut(key) else { return Ok(()) };
        channel.credit(bytes);
        if channel.on.place == Place::NoCredit {
            self.enlist(key);
        }
        Ok(())
    }

    /// Puts the channel where it waits for its turn, unless it waits already.
    pub(super) fn enlist(&mut self, key: ChannelKey) {
        let (Some(stream), Some(channel)) = (self.stream.as_mut(), self.channels.get_mut(key)) else {
            return;
        };
        stream.enlist(key, channel);
        self.signal();
    }

    /// Wakes the stream if it sleeps and there is something for it.
    pub(super) fn signal(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        let messages = stream.schedule.ready > 0 && stream.window.is_open();
        if stream.idle && (messages || !stream.schedule.free.is_empty() || self.folded.sessions > 0) {
            stream.idle = false;
            self.wake.readable = true;
        }
    }
}

impl Stream {
    pub(super) fn enlist<P>(&mut self, key: ChannelKey, channel: &mut Channel<P>) {
        if matches!(channel.on.place, Place::Idle | Place::NoCredit) {
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

    /// Keeps the count of channels in the round that have something to hand over.
    pub(super) fn count_ready<P>(&mut self, channel: &mut Channel<P>) {
        let ready =
            channel.on.place == Place::Round && (!channel.queue.is_empty() || channel.closed.is_some());
        if ready != channel.on.ready {
            channel.on.ready = ready;
            let count = self.schedule.ready;
            self.schedule.ready = if ready { count.saturating_add(1) } else { count.saturating_sub(1) };
        }
    }
}
