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
//! | one channel | [`Config::channel_bytes`] and the message that crosses it | [`stall`]: hold the peer, then drop or disconnect |
//! | all channels while no stream is attached | [`Config::away_bytes`] and one message | closed sessions fold into one gap, then live channels drop |
//! | closed channels while a stream is attached | the same | the same |
//! | all inboxes of the process | [`Budget`] | the largest channels drop or disconnect, without a stall |
//!
//! # Use
//!
//! ```text
//! connection task:  open → push, push, push … → close
//! stream:           attach → pull until Idle, wait for `on_readable`, pull … → detach (or another attaches)
//!                   credit(…) whenever the application returned some
//! ```
//!
//! [`SharedInbox`] is the one place with a lock: it wakes whoever can go on, after the lock is released.
//!
//! Left out: what the messages mean, what goes to the peers , and who may attach
//! .

mod attach;
mod budget;
mod channel;
mod credit;
mod event;
mod pull;
mod queue;
mod schedule;
mod shared;
mod slab;
pub mod stall;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

pub use attach::{AttachParams, DEFAULT_MAX_FRAME, MIN_MAX_FRAME, StreamId};
pub use budget::{Budget, INBOUND_BUDGET};
pub use channel::{MAX_KEEP_FIRST, MAX_KEEP_FIRST_BYTES};
pub use credit::{DEFAULT_CHANNEL_WINDOW, DEFAULT_STREAM_WINDOW, MESSAGE_COST, cost};
pub use event::{About, Close, ClosedBy, Event, FirstMessage, Opened, Part};
pub use pull::{MAX_PART, Pull};
pub use queue::Lost;
pub use shared::{Guard, Hooks, SharedInbox};
pub use slab::ChannelKey;
pub use stall::{OverflowPolicy, Sharing, Stalls};

use attach::Stream;
use budget::Share;
use channel::{Channel, Place};
use slab::Slab;
use stall::Decision;

/// The bound of one channel's queue when a registration names none: 1 MiB.
pub const DEFAULT_CHANNEL_BYTES: u64 = 1 << 20;

/// What waits for an absent application: 8 MiB a registration.
pub const DEFAULT_AWAY_BYTES: u64 = 8 << 20;

/// What a registration may set.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The bound of each channel's queue, in bytes and [`MESSAGE_COST`] a message. The message that crosses it is
    /// kept, the next is not.
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

/// What became of a pushed message.
#[derive(Debug)]
pub enum Push {
    /// It waits for the application.
    Queued,
    /// It does not fit now: stop reading the peer, and push it again when `on_space` tells of the channel, or at
    /// `until` at the latest.
    Stall {
        /// When the stall ends without room having come.
        until: Instant,
        /// The message's payload, back.
        payload: Bytes,
    },
    /// It was dropped; a gap will say so.
    Dropped,
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

    /// Replaces what the registration set.
    pub fn configure(&mut self, config: Config) {
        self.config = config;
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
    /// `sharing` and `stalls` belong to the session, which other registrations may share.
    pub fn push(
        &mut self,
        now: Instant,
        sharing: Sharing,
        stalls: &mut Stalls,
        key: ChannelKey,
        code: u32,
        payload: Bytes,
    ) -> Push {
        let attached = self.stream.is_some();
        if !attached && self.waiting >= self.config.away_bytes {
            self.fold_closed();
        }
        let away_full = !attached && self.waiting >= self.config.away_bytes;
        let Some(channel) = self.channels.get_mut(key).filter(|channel| channel.closed.is_none()) else {
            self.counters.discarded = self.counters.discarded.saturating_add(1);
            stalls.end(now);
            return Push::Closed;
        };
        let before = channel.queue.cost();
        let forced = !self.share.allows(before);
        if before < self.config.channel_bytes && !away_full && !forced {
            stalls.end(now);
            channel.arrive(code, &payload);
            let idle = channel.queue.is_empty();
            channel.queue.push(code, payload, !attached || channel.on.place == Place::NoCredit);
            self.waiting = self.waiting.saturating_add(channel.queue.cost().saturating_sub(before));
            self.share.hold(self.waiting);
            self.counters.queued = self.counters.queued.saturating_add(1);
            if idle {
                self.enlist(key);
            }
            return Push::Queued;
        }
        let decision = stall::decide(now, self.config.overflow, attached, forced, sharing, stalls);
        if let Decision::Stall(until) = decision {
            channel.stalled = true;
            return Push::Stall { until, payload };
        }
        stalls.end(now);
        self.counters.forced = self.counters.forced.saturating_add(u64::from(forced));
        channel.arrive(code, &payload);
        channel.stalled = false;
        self.lose(key, Lost::one(payload.len()));
        if decision == Decision::Disconnect { Push::Disconnect } else { Push::Dropped }
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
        channel.stalled = false;
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
