//! The inbox of a registration: what its peers sent and the application has not taken yet.
//!
//! There is one inbox a registration, and it outlives the application's streams. Connection tasks push into it, the
//! stream of the moment pulls from it, and what neither of them may decide alone stands here: what fits, whose turn
//! it is, what was lost and where. Nothing is lost in silence: a message is handed over, or a gap stands where it
//! would have been, and both count in the channel's `position`, so that an application that counts what it received
//! knows after a broken stream exactly what the break took.
//!
//! # Bounds
//!
//! | what | bound | beyond it |
//! | --- | --- | --- |
//! | one channel | [`Config::channel_bytes`] and the message that crosses it | [`overflow`]: the peer is held while there are proofs of progress, then the policy acts |
//! | all channels while no stream is attached | [`Config::away_bytes`] and one message | closed sessions fold into one gap, then live channels drop |
//! | closed channels while a stream is attached | the same | the same |
//! | what one connection had read when it ended | its own bound (`p2p::intake`) | the same as for closed channels |
//! | all inboxes of the process, and what connections hold | [`Budget`] | the largest channels count as full |
//!
//! # Use
//!
//! ```text
//! connection task:  open → push, push, push … → push_last … → close
//! stream:           attach → pull until Idle, wait for `on_readable`, pull … → detach (or another attaches)
//!                   credit(…) whenever the application returned some
//! ```
//!
//! [`SharedInbox`] is the one place with a lock: it wakes whoever can go on, after the lock is released.
//!
//! Reading order: `event` (what a stream gets), `channel` and `queue` (one channel, and what waits in it), `credit`,
//! [`overflow`] (a full queue), `slab` (channels by number), `schedule` (whose turn it is), `attach`, `pull`, `budget` (all
//! inboxes together), `shared` (the lock and the wakers).
//!
//! Left out: what the messages mean, what goes to the peers, and who may attach.

mod attach;
mod budget;
mod channel;
pub mod credit;
mod event;
pub mod overflow;
mod pull;
mod queue;
mod schedule;
mod shared;
mod slab;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

pub use attach::{AttachParams, CreditError, DEFAULT_MAX_FRAME, MIN_MAX_FRAME, StreamId};
pub use budget::{Budget, INBOUND_BUDGET, Share};
pub use channel::MAX_KEEP_FIRST;
pub use event::{About, Close, ClosedBy, Event, Opened, Part};
pub use overflow::{Action, Held, OverflowPolicy, Sharing};
pub use pull::Pull;
pub use queue::Lost;
pub use shared::{Hooks, SharedInbox};
pub use slab::ChannelKey;

use attach::Stream;
use channel::{Channel, HeldFor, Place};
use overflow::{Decision, Excess};
use slab::Slab;

/// The bound of one channel's queue when a registration names none: 1 MiB.
pub const DEFAULT_CHANNEL_BYTES: u64 = 1 << 20;

/// What waits for an absent application: 8 MiB a registration.
pub const DEFAULT_AWAY_BYTES: u64 = 8 << 20;

/// A hold ends when a queue has this much room, or half of a smaller queue.
const ROOM: u64 = 512 << 10;

/// What a registration may set.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The bound of each channel's queue, in bytes and [`MESSAGE_COST`](credit::MESSAGE_COST) a message. The message that
    /// crosses it is kept, the next is not.
    pub channel_bytes: u64,
    /// The bound of all that waits while no stream is attached, and of closed sessions at any time.
    pub away_bytes: u64,
    /// What happens when a channel's queue is full.
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
    /// What its frame took on the wire, in bytes.
    pub wire_bytes: usize,
}

/// What became of a pushed message.
#[derive(Debug)]
pub enum Push {
    /// It waits for the application.
    Queued,
    /// It does not fit now: stop reading the peer, and push it again when `on_space` tells of the channel, or at
    /// `until` at the latest.
    Hold {
        /// When to push it again if no room has come.
        until: Instant,
        /// Whether the time counts against the limits of holding.
        charged: bool,
        /// The message's payload, back.
        payload: Bytes,
    },
    /// It was dropped; a gap will say so.
    Dropped,
    /// It was dropped, a gap will say so, and so will be everything that follows: close the channel (reason 0x10). The
    /// registration wants to be rid of the peer, and another application shares the connection.
    ClosedChannel,
    /// It was dropped, a gap will say so, and the registration wants the peer disconnected (reason 0x10).
    Disconnect,
    /// The channel is closed or unknown: the capability is mute on this session.
    Closed,
}

/// Whole sessions that opened and closed without being told, beyond what may wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// How many sessions.
    pub sessions: u64,
    /// What they had sent.
    pub lost: Lost,
}

/// What an inbox did so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Messages queued.
    pub queued: u64,
    /// Messages handed over, whole. With what `reported` and `folded` say, a client that counts over all sessions
    /// finds what a broken stream took, sessions included whose end went with it.
    pub handed_over: u64,
    /// Messages reported in gaps of their channels.
    pub reported: Lost,
    /// Messages dropped with a gap in their channel, for whatever reason.
    pub dropped: Lost,
    /// Sessions folded, and what they had sent. `Attached` tells it, so that a fold reported on a broken stream is
    /// known.
    pub folded: Folded,
    /// Messages that still waited when their session was folded.
    pub given_up: Lost,
    /// Messages of channels that were closed already.
    pub discarded: u64,
    /// How often the memory of the whole process decided, and not this channel's.
    pub forced: u64,
}

impl Counters {
    /// All messages that the application lost, each told by a gap.
    #[must_use]
    pub fn lost(&self) -> Lost {
        let mut lost = self.dropped;
        lost.add(self.given_up);
        lost
    }
}

/// Whom to wake once the lock is released.
#[derive(Debug, Default)]
struct Wake {
    readable: bool,
    space: Vec<ChannelKey>,
}

/// See the [module's description](self). `P` is what the owner wants to know of a peer; it is never looked at.
#[derive(Debug)]
pub struct Inbox<P> {
    config: Config,
    share: Share,
    channels: Slab<Channel<P>>,
    /// Closed channels that still have something to fold, oldest first.
    closed: BTreeMap<u64, ChannelKey>,
    closings: u64,
    /// What all channels hold.
    waiting: u64,
    /// What closed ones hold of it.
    closed_waiting: u64,
    folded: Folded,
    last_folded_session: Option<u64>,
    stream: Option<Stream>,
    streams: u64,
    counters: Counters,
    wake: Wake,
}

impl<P> Inbox<P> {
    /// An inbox without channels or stream.
    #[must_use]
    pub fn new(config: Config, budget: Arc<Budget>) -> Self {
        Self {
            config,
            share: Share::new(budget),
            channels: Slab::default(),
            closed: BTreeMap::new(),
            closings: 0,
            waiting: 0,
            closed_waiting: 0,
            folded: Folded::default(),
            last_folded_session: None,
            stream: None,
            streams: 0,
            counters: Counters::default(),
            wake: Wake::default(),
        }
    }

    /// What was done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What all that waits costs.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.waiting
    }

    /// How many channels hold their connection, and since when the longest of these holds lasts.
    #[must_use]
    pub fn holding(&self) -> Option<(usize, Instant)> {
        let mut holds = self.channels.iter().filter_map(|(_, channel)| Some(channel.held?.since));
        let first = holds.next()?;
        Some(holds.fold((1, first), |(count, oldest), since| (count + 1, oldest.min(since))))
    }

    /// How many channels are open.
    #[must_use]
    pub fn open_channels(&self) -> usize {
        self.channels.iter().filter(|(_, channel)| channel.closed.is_none()).count()
    }

    /// How many channels a stream was told of, and not yet of their end. The next stream is told of each of them.
    #[must_use]
    pub fn existing_channels(&self) -> usize {
        self.channels.iter().filter(|(_, channel)| channel.announced).count()
    }

    /// Replaces what the registration set. Connections that are held ask again: the rule may be another.
    pub fn configure(&mut self, config: Config) {
        self.config = config;
        self.wake_held();
    }

    /// Lets every connection that is held offer its message again.
    fn wake_held(&mut self) {
        for (key, channel) in self.channels.iter_mut() {
            if channel.held.take().is_some() {
                self.wake.space.push(key);
            }
        }
    }

    /// A session has a channel for this registration. `None` only when four billion are open.
    pub fn open(&mut self, about: About<P>) -> Option<ChannelKey> {
        let on = attach::place_on(self.stream.as_ref());
        let key = self.channels.insert(Channel::new(about, on))?;
        self.share.set_channels(self.channels.len() as u64);
        self.enlist(key);
        Some(key)
    }

    /// Takes a message of a channel, or decides what happens to it. Costs an index and the queue's growth; the
    /// payload is not copied unless it is small and has to wait ([`queue`]).
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
        let attached = self.stream.is_some();
        if !attached && self.waiting >= self.config.away_bytes {
            self.fold_closed();
        }
        let away_full = !attached && self.waiting >= self.config.away_bytes;
        let Some(channel) = self.channels.get_mut(key).filter(|channel| channel.takes_messages()) else {
            self.counters.discarded = self.counters.discarded.saturating_add(1);
            return Push::Closed;
        };
        let bound = self.config.channel_bytes.min(self.share.bound());
        if channel.queue.cost() < bound && !away_full {
            self.enqueue(key, arrival);
            return Push::Queued;
        }
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
            // Early enough to keep a reader busy and late enough not to wake for every message. A large queue is not
            // drained to its half first: at 1 MB/s that would be a hold of half a minute.
            let since = channel.held.map_or(now, |held| held.since);
            channel.held = Some(HeldFor { room_at: bound.saturating_sub((bound / 2).min(ROOM)), since });
            return Push::Hold { until, charged, payload: arrival.payload };
        }
        channel.held = None;
        if bound < self.config.channel_bytes {
            self.counters.forced = self.counters.forced.saturating_add(1);
        }
        self.drop_arrival(key, &arrival);
        match decision {
            Decision::Disconnect => Push::Disconnect,
            Decision::CloseChannel => {
                if let Some(channel) = self.channels.get_mut(key) {
                    channel.muted = true;
                }
                Push::ClosedChannel
            }
            Decision::Drop | Decision::Hold { .. } => Push::Dropped,
        }
    }

    /// Takes a message that was read before its connection ended. Nothing is held any more, so it may go beyond the
    /// channel's bound: connections bound what they have read. It is dropped when the application is away and enough
    /// waits for it, or when memory is short.
    pub fn push_last(&mut self, key: ChannelKey, arrival: Arrival) -> Push {
        let away_full = self.stream.is_none() && self.waiting >= self.config.away_bytes;
        let Some(channel) = self.channels.get_mut(key).filter(|channel| channel.takes_messages()) else {
            self.counters.discarded = self.counters.discarded.saturating_add(1);
            return Push::Closed;
        };
        channel.held = None;
        if away_full || channel.queue.cost() >= self.share.bound() {
            self.drop_arrival(key, &arrival);
            return Push::Dropped;
        }
        self.enqueue(key, arrival);
        Push::Queued
    }

    /// Puts a message into the queue of an open channel.
    fn enqueue(&mut self, key: ChannelKey, arrival: Arrival) {
        let attached = self.stream.is_some();
        let Some(channel) = self.channels.get_mut(key) else { return };
        let Arrival { code, payload, .. } = arrival;
        let before = channel.queue.cost();
        channel.arrive(code, &payload);
        let idle = channel.queue.is_empty();
        channel.queue.push(code, payload, !attached || channel.on.place == Place::NoCredit);
        self.waiting = self.waiting.saturating_add(channel.queue.cost().saturating_sub(before));
        self.share.hold(self.waiting);
        self.counters.queued = self.counters.queued.saturating_add(1);
        if idle {
            self.enlist(key);
        }
    }

    /// Reports a message of an open channel as lost.
    fn drop_arrival(&mut self, key: ChannelKey, arrival: &Arrival) {
        if let Some(channel) = self.channels.get_mut(key) {
            channel.arrive(arrival.code, &arrival.payload);
        }
        self.lose(key, Lost::one(arrival.payload.len()));
    }

    /// The connection gave a message of this channel up before it could be pushed (it was too large to take in, say).
    pub fn lose(&mut self, key: ChannelKey, lost: Lost) {
        let Some(channel) = self.channels.get_mut(key).filter(|channel| channel.closed.is_none()) else {
            return;
        };
        let before = channel.queue.cost();
        channel.queue.lose(lost);
        self.waiting = self.waiting.saturating_add(channel.queue.cost().saturating_sub(before));
        self.counters.dropped.add(lost);
        self.enlist(key);
    }

    /// The channel ends. Its messages are still handed over, then how it ended.
    pub fn close(&mut self, key: ChannelKey, close: Close) {
        let Some(channel) = self.channels.get_mut(key).filter(|channel| channel.closed.is_none()) else {
            return;
        };
        channel.held = None;
        if self.stream.is_none() && !channel.announced && channel.queue.is_empty() {
            self.remove(key); // nobody heard of it, and there is nothing to hear
            return;
        }
        let before = channel.queue.cost();
        channel.closed = Some(Arc::new(close));
        let cost = channel.closed_cost();
        self.waiting = self.waiting.saturating_sub(before).saturating_add(cost);
        self.closed_waiting = self.closed_waiting.saturating_add(cost);
        channel.closing = self.closings;
        self.closed.insert(self.closings, key);
        self.closings = self.closings.saturating_add(1);
        self.enlist(key);
        self.fold_closed();
        self.share.hold(self.waiting);
    }

    /// Folds closed channels, oldest first, while too much waits. One that no stream was told of leaves nothing but
    /// its counts; of one that was, the messages become a gap and the end is still told.
    fn fold_closed(&mut self) {
        loop {
            let held = if self.stream.is_some() { self.closed_waiting } else { self.waiting };
            if held < self.config.away_bytes {
                return;
            }
            let Some((_, key)) = self.closed.pop_first() else { return };
            let Some(channel) = self.channels.get_mut(key) else { continue };
            if channel.announced {
                let before = channel.queue.cost();
                let dropped = channel.queue.trim(0);
                channel.on.offset = 0; // a message of which parts went out is lost like the others
                let freed = before.saturating_sub(channel.queue.cost());
                self.waiting = self.waiting.saturating_sub(freed);
                self.closed_waiting = self.closed_waiting.saturating_sub(freed);
                self.counters.dropped.add(dropped);
                self.enlist(key);
            } else if let Some(channel) = self.remove(key) {
                let session = Some(channel.about.session_id);
                let fold = Folded {
                    sessions: u64::from(session != self.last_folded_session),
                    lost: channel.queue.total(),
                };
                self.last_folded_session = session;
                self.counters.given_up.add(channel.queue.messages());
                for sum in [&mut self.folded, &mut self.counters.folded] {
                    sum.sessions = sum.sessions.saturating_add(fold.sessions);
                    sum.lost.add(fold.lost);
                }
                self.signal();
            }
        }
    }

    fn remove(&mut self, key: ChannelKey) -> Option<Channel<P>> {
        let channel = self.channels.remove(key)?;
        let cost = if channel.closed.is_some() {
            self.closed.remove(&channel.closing);
            let cost = channel.closed_cost();
            self.closed_waiting = self.closed_waiting.saturating_sub(cost);
            cost
        } else {
            channel.queue.cost()
        };
        self.waiting = self.waiting.saturating_sub(cost);
        if let (Some(stream), Some(number)) = (&mut self.stream, channel.on.number) {
            stream.numbers.remove(&number);
        }
        self.share.set_channels(self.channels.len() as u64);
        Some(channel)
    }
}
