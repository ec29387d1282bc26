//! The inbox: connections push into it, the current stream pulls from it, and streams come and go.
//!
//! Left out: what waits and the sums over it (`backlog`), and the order in which a stream takes it (`stream`).

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::backlog::{Backlog, Counters, Fold};
use super::channel::HeldFor;
use super::event::{About, Close, Event};
use super::frame::{Frame, Pull};
use super::overflow::{Decision, Excess, Held, OverflowPolicy, Sharing};
use super::queue::Lost;
use super::slab::ChannelKey;
use super::stream::{AttachParams, CreditError, Stream, StreamId, on_stream};
use crate::budget::Budget;

/// The bound of one channel's queue when a registration names none: 1 MiB.
pub(super) const DEFAULT_CHANNEL_BYTES: u64 = 1 << 20;

/// The bound on everything that waits for an absent application, when a registration names none: 8 MiB.
pub(super) const DEFAULT_AWAY_BYTES: u64 = 8 << 20;

/// A hold ends when a queue has this much room, or half of a smaller queue.
const ROOM: u64 = 512 << 10;

/// The settings of a registration for its inbox.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The bound of each channel's queue, in bytes and [`MESSAGE_COST`](super::credit::MESSAGE_COST) a message. The
    /// message that crosses it is kept, the next is not.
    pub channel_bytes: u64,
    /// The bound on everything that waits while no stream is attached, and on closed sessions at any time, in the same
    /// unit.
    pub away_bytes: u64,
    /// The rule for a full queue of a channel.
    pub overflow: OverflowPolicy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            channel_bytes: DEFAULT_CHANNEL_BYTES,
            away_bytes: DEFAULT_AWAY_BYTES,
            overflow: OverflowPolicy::default(),
        }
    }
}

/// A message that arrives on a channel.
#[derive(Debug)]
pub struct Arrival {
    /// Its code inside the capability.
    pub code: u32,
    /// Its payload, decompressed.
    pub payload: Bytes,
    /// How many bytes its frame took on the wire.
    pub wire_bytes: usize,
}

/// The result of pushing a message.
#[derive(Debug)]
pub enum Push {
    /// It waits for the application.
    Queued,
    /// It does not fit now: stop reading the peer, and push it again when `on_space` names the channel, or at `until`
    /// at the latest.
    Hold {
        /// When to push it again if there has been no room before.
        until: Instant,
        /// Whether the time of the hold counts against the limits of holding.
        charged: bool,
        /// The message's payload, returned.
        payload: Bytes,
    },
    /// It was dropped; a gap will report it.
    Dropped,
    /// It was dropped, a gap will report it, and the channel takes nothing more: close it (reason 0x10). The policy is
    /// to disconnect the peer, but another application shares the connection.
    ClosedChannel,
    /// It was dropped, a gap will report it, and the policy is to disconnect the peer (reason 0x10).
    Disconnect,
    /// The channel is closed, closing or unknown: the capability is mute on this session, and the message is discarded.
    Closed,
}

/// The tasks to wake once the lock is released.
#[derive(Debug, Default)]
pub(super) struct Waking {
    /// The stream can pull, or has ended.
    pub(super) readable: bool,
    /// The connections that are held for these channels can push again.
    pub(super) space: Vec<ChannelKey>,
}

/// The inbox of one registration; see the [room's description](super). `P` describes a peer to the inbox's owner; the
/// inbox never reads it.
#[derive(Debug)]
pub struct Inbox<P> {
    config: Config,
    backlog: Backlog<P>,
    stream: Option<Stream>,
    /// Whether a stream was attached at any time, and whether one was before the latest.
    attached: bool,
    resumed: bool,
    /// The stream is to be woken, or has ended.
    readable: bool,
}

impl<P> Inbox<P> {
    /// An inbox without channels or stream.
    #[must_use]
    pub fn new(config: Config, budget: Arc<Budget>) -> Self {
        Self {
            config,
            backlog: Backlog::new(budget),
            stream: None,
            attached: false,
            resumed: false,
            readable: false,
        }
    }

    /// The counts so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.backlog.counters()
    }

    /// The cost of everything that waits.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.backlog.waiting()
    }

    /// The number of channels that hold their connection, and when the oldest of these holds began; `None` if there is
    /// none.
    #[must_use]
    pub fn holding(&self) -> Option<(usize, Instant)> {
        self.backlog.holding()
    }

    /// How many channels are open.
    #[must_use]
    pub fn open_channels(&self) -> usize {
        self.backlog.channels().filter(|(_, channel)| channel.closed.is_none()).count()
    }

    /// How many channels were announced on a stream and have not been reported as closed. The next stream gets each of
    /// them announced again.
    #[must_use]
    pub fn existing_channels(&self) -> usize {
        self.backlog.channels().filter(|(_, channel)| channel.announced).count()
    }

    /// Replaces the registration's settings. Connections that are held offer their message again, because the new rule
    /// may take it.
    pub fn configure(&mut self, config: Config) {
        self.config = config;
        self.backlog.release_all();
    }

    /// Opens a channel of this registration for a session. Returns `None` only when four billion channels are open.
    pub fn open(&mut self, about: About<P>) -> Option<ChannelKey> {
        let key = self.backlog.open(about, on_stream(self.stream.as_ref()))?;
        self.enlist(key);
        Some(key)
    }

    /// Takes a message of a channel, or decides what happens to it. This costs an index and sometimes the growth of the
    /// queue; the payload is copied only if it is small and has to wait (see `queue`).
    ///
    /// `sharing` and `held` belong to the connection, which other registrations may share.
    pub fn push(
        &mut self,
        now: Instant,
        key: ChannelKey,
        sharing: Sharing,
        held: Held,
        arrival: Arrival,
    ) -> Push {
        // While no stream is attached, closed sessions give up their room before a live channel drops anything.
        let attached = self.stream.is_some();
        if !attached && self.backlog.waiting() >= self.config.away_bytes {
            self.fold_closed();
        }
        let away_full = !attached && self.backlog.waiting() >= self.config.away_bytes;
        let bound = self.config.channel_bytes.min(self.backlog.bound());
        let Some(channel) = self.backlog.get_mut(key).filter(|channel| channel.takes_messages()) else {
            self.backlog.discarded();
            return Push::Closed;
        };
        let held_here = channel.queue.cost();
        let mut short = bound < self.config.channel_bytes;
        if held_here < bound && !away_full {
            if self.backlog.has_room(held_here, arrival.payload.len()) {
                self.enqueue(key, arrival);
                return Push::Queued;
            }
            short = true;
        }
        let Some(channel) = self.backlog.get_mut(key) else { return Push::Closed };
        let decision = channel.overflow.decide(
            now,
            Excess {
                policy: self.config.overflow,
                attached,
                sharing,
                held,
                taken: channel.taken,
                wire_bytes: arrival.wire_bytes,
            },
        );
        if let Decision::Hold { until, charged } = decision {
            // The room that ends the hold: early enough that the reader always finds messages, late enough not to wake
            // the connection for every message. A large queue is not drained to its half first: 64 MiB at 1 MB/s would
            // be a hold of half a minute.
            let since = channel.held.map_or(now, |held| held.since);
            channel.held = Some(HeldFor { room_at: bound.saturating_sub((bound / 2).min(ROOM)), since });
            return Push::Hold { until, charged, payload: arrival.payload };
        }
        channel.held = None;
        if short {
            self.backlog.forced();
        }
        self.drop_arrival(key, &arrival);
        match decision {
            Decision::Disconnect => Push::Disconnect,
            Decision::CloseChannel => {
                if let Some(channel) = self.backlog.get_mut(key) {
                    channel.muted = true;
                }
                Push::ClosedChannel
            }
            Decision::Drop | Decision::Hold { .. } => Push::Dropped,
        }
    }

    /// Takes a message that was read before its connection ended. A hold is no longer possible, so the message may
    /// exceed the channel's bound: connections bound what they have read. It is dropped when no stream is attached and
    /// enough waits already, or when the process is short of memory.
    pub fn push_last(&mut self, key: ChannelKey, arrival: Arrival) -> Push {
        let away_full = self.stream.is_none() && self.backlog.waiting() >= self.config.away_bytes;
        let bound = self.backlog.bound();
        let Some(channel) = self.backlog.get_mut(key).filter(|channel| channel.takes_messages()) else {
            self.backlog.discarded();
            return Push::Closed;
        };
        channel.held = None;
        let held = channel.queue.cost();
        if away_full || held >= bound || !self.backlog.has_room(held, arrival.payload.len()) {
            self.drop_arrival(key, &arrival);
            return Push::Dropped;
        }
        self.enqueue(key, arrival);
        Push::Queued
    }

    /// Puts a message into the queue of an open channel.
    fn enqueue(&mut self, key: ChannelKey, arrival: Arrival) {
        let Arrival { code, payload, .. } = arrival;
        if self.backlog.queue(key, code, payload, self.stream.is_some()) {
            self.enlist(key);
        }
    }

    /// Reports a message of an open channel as lost.
    fn drop_arrival(&mut self, key: ChannelKey, arrival: &Arrival) {
        if let Some(channel) = self.backlog.get_mut(key) {
            channel.arrive(arrival.code, &arrival.payload);
        }
        self.lose(key, Lost::one(arrival.payload.len()));
    }

    /// Reports messages of an open channel as lost: a gap takes their place.
    pub fn lose(&mut self, key: ChannelKey, lost: Lost) {
        if self.backlog.lose(key, lost) {
            self.enlist(key);
        }
    }

    /// Ends the channel. Its messages are still handed over, and then the event [`Event::Closed`].
    pub fn close(&mut self, key: ChannelKey, close: Close) {
        if self.backlog.close(key, close, self.stream.is_some()) {
            self.enlist(key);
            self.fold_closed();
            self.backlog.settle();
        }
    }

    /// Folds closed channels, oldest first, while too much waits.
    fn fold_closed(&mut self) {
        while let Some(fold) = self.backlog.fold(self.config.away_bytes, self.stream.is_some()) {
            match fold {
                Fold::Announced(key) => self.enlist(key),
                Fold::Counted => self.signal(),
            }
        }
    }

    /// Counts a message for which there is no channel as discarded.
    pub fn discard(&mut self) {
        self.backlog.discarded();
    }

    /// Attaches a stream; the stream before it, if any, ends. All channels are announced to the new one by number,
    /// oldest first, and then the waiting messages follow.
    pub fn attach(&mut self, id: StreamId, params: AttachParams) {
        self.resumed = self.attached;
        self.attached = true;
        let stream = self.stream.insert(Stream::new(id, params));
        for key in self.backlog.change_stream(|| on_stream(Some(stream))) {
            self.enlist(key);
        }
        // The task that pulls for the stream before must learn that its stream has ended.
        self.readable = true;
    }

    /// The stream has ended; ignored if another one has taken its place. Messages beyond the bound of an absent
    /// application are dropped, the newest of the fullest channels first.
    pub fn detach(&mut self, stream: StreamId) {
        if self.stream.take_if(|attached| attached.id() == stream).is_none() {
            return;
        }
        self.readable = true;
        self.backlog.change_stream(|| on_stream(None));
        self.backlog.remove_unannounced();
        self.backlog.release_all(); // no application would end these holds
        self.fold_closed();
        self.backlog.lower(self.config.away_bytes);
        self.backlog.settle();
    }

    /// The registration has ended: every channel ends without an event, and connections that wait for room go on.
    pub fn clear(&mut self) {
        self.stream = None;
        self.readable = true;
        self.backlog.clear();
    }

    /// The application returned credit for the channel with this number, or for the stream (`0`). Credit for a channel
    /// that is closed is ignored. After a resume, credit for a number that is unknown on this stream is ignored as well
    /// until the first known number: it belongs to the stream before.
    ///
    /// # Errors
    ///
    /// The number was never used on this stream, or the amount is beyond any window.
    pub fn credit(&mut self, stream: StreamId, number: u32, bytes: u64) -> Result<(), CreditError> {
        let resumed = self.resumed;
        let Some(attached) = self.stream.as_mut().filter(|attached| attached.id() == stream) else {
            return Ok(());
        };
        attached.credit(&mut self.backlog, number, bytes, resumed)?;
        self.signal();
        Ok(())
    }

    /// Appends the events that are ready to `out`, in order, at most `max_events` events and about `max_bytes` bytes: a
    /// message or part that is larger than that comes alone.
    pub fn pull(
        &mut self,
        stream: StreamId,
        max_bytes: usize,
        max_events: usize,
        out: &mut Vec<Event<P>>,
    ) -> Pull {
        let Some(attached) = self.stream.as_mut().filter(|attached| attached.id() == stream) else {
            return Pull::Ended;
        };
        let pull = attached.pull(&mut self.backlog, &mut Frame::new(out, max_events, max_bytes));
        self.backlog.settle();
        pull
    }

    /// Puts the channel into the queue where it waits for its turn, unless it waits already, and wakes the stream.
    fn enlist(&mut self, key: ChannelKey) {
        if let (Some(stream), Some(channel)) = (self.stream.as_mut(), self.backlog.get_mut(key)) {
            stream.enlist(key, channel);
            self.signal();
        }
    }

    /// Wakes the stream if its last pull found nothing and there is something for it now.
    fn signal(&mut self) {
        if self.stream.as_mut().is_some_and(|stream| stream.wants_waking(&self.backlog)) {
            self.readable = true;
        }
    }

    /// The tasks that can go on since the last call.
    pub(super) fn take_waking(&mut self) -> Waking {
        Waking { readable: std::mem::take(&mut self.readable), space: self.backlog.take_released() }
    }
}
