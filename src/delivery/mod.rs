//! The inbox of a registration: the messages that its peers sent and that the application has not taken yet.
//!
//! A registration has one inbox, which outlives the application's streams. Connection tasks push into it, and the
//! current stream pulls from it. The inbox decides what fits, which channel is next, and what was lost and where. Every
//! message is handed over, or a gap takes its place. Both count in the channel's `position`, so an application that
//! counts its messages can tell after a broken stream exactly which ones the break took.
//!
//! # Bounds
//!
//! | what | bound | beyond it |
//! | --- | --- | --- |
//! | one channel | [`Config::channel_bytes`] and the message that crosses it | [`overflow`]: the peer is held while there are proofs of progress, then the policy acts |
//! | all channels while no stream is attached | [`Config::away_bytes`] and one message | closed sessions fold into one gap, then live channels drop |
//! | closed channels while a stream is attached | the same | the same |
//! | messages that one connection had read when it ended | its own bound (`p2p::intake`) | the same as for closed channels |
//! | all inboxes of the process, and the messages that connections hold | [`Budget`] | the largest channels count as full |
//!
//! # Use
//!
//! ```text
//! connection task:  open → push, push, push … → push_last … → close
//! stream:           attach → pull until Idle, wait for `on_readable`, pull … → detach (or another attaches)
//!                   credit(…) whenever the application returned some
//! ```
//!
//! [`SharedInbox`] has the only lock: it wakes the tasks that can go on, after the lock is released.
//!
//! Reading order: `event` (the events of a stream), `channel` and `queue` (one channel, and the messages that wait in
//! it), `credit`, [`overflow`] (a full queue), `slab` (channels by number), `schedule` (the order of turns), `attach`,
//! `pull`, `budget` (all inboxes together), `shared` (the lock and the wakers).
//!
//! Left out: the meaning of messages, the messages to peers, and the right to attach.

mod attach;
mod budget;
mod channel;
mod credit;
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

pub use attach::{AttachParams, CreditError, DEFAULT_MAX_FRAME, MAX_CREDIT, MIN_MAX_FRAME, StreamId};
pub use budget::{Budget, INBOUND_BUDGET, Share};
pub use channel::{MAX_KEEP_FIRST, MAX_KEEP_FIRST_BYTES};
pub use credit::{DEFAULT_CHANNEL_WINDOW, DEFAULT_STREAM_WINDOW, MESSAGE_COST, cost};
pub use event::{About, Close, ClosedBy, Event, FirstMessage, Opened, Part};
pub use overflow::{Action, Held, OverflowPolicy, Sharing};
pub use pull::{MAX_PART, Pull};
pub use queue::Lost;
pub use shared::{Guard, Hooks, SharedInbox};
pub use slab::ChannelKey;

use attach::Stream;
use channel::{Channel, HeldFor, Place};
use overflow::{Decision, Excess};
use slab::Slab;

/// The bound of one channel's queue when a registration names none: 1 MiB.
pub const DEFAULT_CHANNEL_BYTES: u64 = 1 << 20;

/// The bound on everything that waits for an absent application, when a registration names none: 8 MiB.
pub const DEFAULT_AWAY_BYTES: u64 = 8 << 20;

/// A hold ends when a queue has this much room, or half of a smaller queue.
const ROOM: u64 = 512 << 10;

/// The settings of a registration for its inbox.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The bound of each channel's queue, in bytes and [`MESSAGE_COST`] a message. The message that crosses it is
    /// kept, the next is not.
    pub channel_bytes: u64,
    /// The bound on everything that waits while no stream is attached, and on closed sessions at any time, in the same
    /// unit.
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

/// Whole sessions that no stream was told of, given up because more waited than may wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// How many sessions.
    pub sessions: u64,
    /// The messages that they had sent.
    pub lost: Lost,
}

/// The counters of an inbox.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Messages queued.
    pub queued: u64,
    /// Messages handed over whole. With `reported` and `folded`, a client that counts over all sessions can compute
    /// what a broken stream took, including sessions whose end was lost with it.
    pub handed_over: u64,
    /// Messages reported in gaps of their channels.
    pub reported: Lost,
    /// Messages dropped with a gap in their channel, for any reason.
    pub dropped: Lost,
    /// Sessions folded, and the messages they had sent. `Attached` carries these sums, so that a client learns of a
    /// fold that was reported on a broken stream.
    pub folded: Folded,
    /// Messages that still waited when their session was folded.
    pub given_up: Lost,
    /// Messages of channels that were closed already, or that were to be closed.
    pub discarded: u64,
    /// How often the memory of the whole process decided that a message did not fit, and not the channel's own bound.
    pub forced: u64,
}

impl Counters {
    /// All messages that the application lost. A gap reports each of them.
    #[must_use]
    pub fn lost(&self) -> Lost {
        let mut lost = self.dropped;
        lost.add(self.given_up);
        lost
    }
}

/// The tasks to wake once the lock is released.
#[derive(Debug, Default)]
struct Wake {
    readable: bool,
    space: Vec<ChannelKey>,
}

/// The inbox of one registration; see the [module's description](self). `P` describes a peer to the inbox's owner; the
/// inbox never reads it.
#[derive(Debug)]
pub struct Inbox<P> {
    config: Config,
    share: Share,
    channels: Slab<Channel<P>>,
    /// Closed channels that still have something to fold, oldest first.
    closed: BTreeMap<u64, ChannelKey>,
    closings: u64,
    /// The cost of everything that waits on all channels.
    waiting: u64,
    /// The part of it that closed channels have.
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

    /// The counts so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The cost of everything that waits.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.waiting
    }

    /// The number of channels that hold their connection, and when the oldest of these holds began; `None` if there is
    /// none.
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

    /// How many channels were announced on a stream and have not been reported as closed. The next stream gets each of
    /// them announced again.
    #[must_use]
    pub fn existing_channels(&self) -> usize {
        self.channels.iter().filter(|(_, channel)| channel.announced).count()
    }

    /// Replaces the registration's settings. Connections that are held offer their message again, because the new rule
    /// may take it.
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

    /// Opens a channel of this registration for a session. Returns `None` only when four billion channels are open.
    pub fn open(&mut self, about: About<P>) -> Option<ChannelKey> {
        let on = attach::place_on(self.stream.as_ref());
        let key = self.channels.insert(Channel::new(about, on))?;
        self.share.set_channels(self.channels.len() as u64);
        self.enlist(key);
        Some(key)
    }

    /// Takes a message of a channel, or decides what happens to it. This costs an index and sometimes the growth of the
    /// queue; the payload is copied only if it is small and has to wait ([`queue`]).
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
            // The room that ends the hold: early enough that the reader always finds messages, late enough not to wake
            // the connection for every message. A large queue is not drained to its half first: 64 MiB at 1 MB/s would
            // be a hold of half a minute.
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

    /// Takes a message that was read before its connection ended. A hold is no longer possible, so the message may
    /// exceed the channel's bound: connections bound what they have read. It is dropped when no stream is attached and
    /// enough waits already, or when the process is short of memory.
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

    /// Reports messages of an open channel as lost: a gap takes their place.
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

    /// Ends the channel. Its messages are still handed over, and then the event [`Event::Closed`].
    pub fn close(&mut self, key: ChannelKey, close: Close) {
        let Some(channel) = self.channels.get_mut(key).filter(|channel| channel.closed.is_none()) else {
            return;
        };
        channel.held = None;
        if self.stream.is_none() && !channel.announced && channel.queue.is_empty() {
            self.remove(key); // no stream was told of it, and nothing waits
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

    /// Folds closed channels, oldest first, while too much waits. A channel that no stream was told of leaves only its
    /// counts. The messages of an announced channel become a gap, and its end is still reported.
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
                channel.on.offset = 0; // a message that was sent in part is lost like the others
                let freed = before.saturating_sub(channel.queue.cost());
                self.waiting = self.waiting.saturating_sub(freed);
                self.closed_waiting = self.closed_waiting.saturating_sub(freed);
                self.counters.dropped.add(dropped);
                self.enlist(key);
            } else if let Some(channel) = self.remove(key) {
                // The channels of one session close in a row: together they count as one folded session.
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
