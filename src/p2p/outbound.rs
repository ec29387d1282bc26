//! Messages on their way to one peer: a queue per session, bounded in bytes per channel and lane.
//!
//! Senders (gRPC streams and calls) put messages in and never wait: what does not fit is refused, to that peer and
//! that channel alone, and the sender is told. This is the one place where a message is checked before it is written
//! (code in range, size), and the one place where messages to a peer are counted: each that was accepted is written, or
//! is among [`ChannelProgress::unwritten`] when its channel or session ends.
//!
//! The connection's engine pulls messages out ([`Source`]) and its driver reports how many the socket took, which is what
//! gives senders their room back. Nothing here allocates per message once the queue has its size.
//!
//! A lane is a budget of its own on the same channel: one for the stream of an application, one for calls from a
//! shell, so that neither can use up the other's room. Order holds within a lane, and in fact over both.
//!
//! One lock guards a session's queue. Its senders, its connection and the owner of peers take it, each for one short call
//! that waits for nothing; wakers and hooks are called after it is released.
//!
//! Left out: encryption and sockets, and what senders are told of their progress (`switch::attachment`).

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use super::{
    ChannelIndex, DisconnectReason, Next, Outgoing, Source,
    wire::{self, Compressed},
};
use crate::{Wake, WakeSlot};

/// What one channel may have waiting in each lane: the window that applications see. A message that crosses it is
/// still taken, so that one message of any size always fits.
pub const SEND_WINDOW: u64 = 1024 * 1024;

/// What a message costs beyond its bytes, here and in all credit windows (docs/grpc.md): queues of tiny messages are
/// bounded too.
pub const MESSAGE_COST: u64 = 64;

/// What all sessions together may have waiting. A broadcast counts once for each peer it waits for, though its
/// payload is shared. Beyond it everything is refused as if the channel's own window were used up. In the last quarter a
/// session may hold its share of that quarter and no more: peers that do not read cannot take the room of all others.
pub const OUTBOUND_BUDGET: u64 = 256 * 1024 * 1024;

/// What waits for all peers together, against [`OUTBOUND_BUDGET`].
#[derive(Debug, Default)]
pub struct OutboundBudget {
    used: AtomicU64,
    sessions: AtomicU64,
}

impl OutboundBudget {
    /// Takes `cost` for a session that holds `held` already.
    fn take(&self, cost: u64, held: u64) -> bool {
        let last_quarter = OUTBOUND_BUDGET / 4;
        let share = last_quarter / self.sessions.load(Ordering::Acquire).max(1);
        let fits = |used: u64| {
            let sum = used.checked_add(cost).filter(|sum| *sum <= OUTBOUND_BUDGET)?;
            (sum <= OUTBOUND_BUDGET - last_quarter || held < share).then_some(sum)
        };
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok()
    }

    fn give(&self, cost: u64) {
        self.used.fetch_sub(cost, Ordering::AcqRel);
    }

    /// What waits, in bytes and the cost of each message.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }
}

/// Who put a message in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The Exchange stream of the channel's registration.
    Stream,
    /// SendMessage and BroadcastMessage, and the greeting.
    Call,
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The lane's window is used up.
    Full,
    /// The session or the channel has ended.
    Closed,
    /// The channel's protocol has fewer codes.
    CodeOutOfRange {
        /// How many it has.
        message_count: u64,
    },
    /// It is larger than the protocol's owner allows, or than a frame carries.
    TooLarge {
        /// Its size in bytes, uncompressed.
        bytes: usize,
        /// What the owner allows, in bytes.
        limit: usize,
    },
}

/// Which messages one channel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelLimits {
    /// The code on the wire of its message 0.
    pub offset: u64,
    /// How many message codes it has.
    pub message_count: u64,
    /// The largest payload that its owner allows, in bytes, uncompressed.
    pub max_message: usize,
}

impl ChannelLimits {
    /// The code on the wire of a message that can be written, or why it cannot.
    fn check(&self, code: u64, message: &Compressed, compressed: bool) -> Result<u64, Refused> {
        let Self { offset, message_count, max_message } = *self;
        if code >= message_count {
            return Err(Refused::CodeOutOfRange { message_count });
        }
        let bytes = message.raw_len();
        let too_large = Refused::TooLarge { bytes, limit: max_message };
        if bytes > max_message {
            return Err(too_large);
        }
        let code = offset.saturating_add(code);
        // A peer of an early base protocol gets messages as they are.
        if wire::fits(code, message, compressed) { Ok(code) } else { Err(too_large) }
    }
}

/// One lane's counters since the session began. Costs are bytes plus [`MESSAGE_COST`] a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneProgress {
    /// Messages taken.
    pub accepted: u64,
    /// Messages the socket took.
    pub written: u64,
    /// Cost of the messages taken.
    pub accepted_cost: u64,
    /// Cost of the messages the socket took.
    pub written_cost: u64,
}

impl LaneProgress {
    /// Cost of what was accepted and not written yet.
    #[must_use]
    pub fn waiting_cost(&self) -> u64 {
        self.accepted_cost.saturating_sub(self.written_cost)
    }
}

/// Both lanes of one channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelProgress {
    /// What the stream sent.
    pub stream: LaneProgress,
    /// What calls sent.
    pub call: LaneProgress,
}

impl ChannelProgress {
    /// Messages taken and not written.
    #[must_use]
    pub fn unwritten(&self) -> u64 {
        let unwritten = |lane: LaneProgress| lane.accepted.saturating_sub(lane.written);
        unwritten(self.stream).saturating_add(unwritten(self.call))
    }

    fn of(&self, lane: Lane) -> &LaneProgress {
        match lane {
            Lane::Stream => &self.stream,
            Lane::Call => &self.call,
        }
    }

    fn lane(&mut self, lane: Lane) -> &mut LaneProgress {
        match lane {
            Lane::Stream => &mut self.stream,
            Lane::Call => &mut self.call,
        }
    }
}

/// A message in the queue.
#[derive(Debug)]
struct Queued {
    message: Outgoing,
    receipt: Receipt,
}

/// What to count when the socket took the message.
#[derive(Clone, Copy, Debug)]
struct Receipt {
    channel: ChannelIndex,
    lane: Lane,
    cost: u64,
}

/// Called when a channel's progress moved or the session ended, without any lock of this file held. Must be quick.
pub type ProgressHook = Arc<dyn Fn() + Send + Sync>;

struct Inner {
    queue: VecDeque<Queued>,
    /// Messages that the engine pulled and the socket has not taken whole, in order.
    flying: VecDeque<Receipt>,
    limits: Vec<ChannelLimits>,
    /// Whether payloads are written compressed.
    compressed: bool,
    channels: Vec<ChannelProgress>,
    /// Channels that have ended while the session goes on.
    ended: Vec<bool>,
    /// What this session has taken of the budget.
    held: u64,
    hooks: Vec<Option<ProgressHook>>,
    watched: Vec<Watched>,
    disconnect: Option<DisconnectReason>,
    closed: bool,
}

/// A call that waits for one message. There is at most one for each message that is not written yet, which bounds them.
struct Watched {
    lane: Lane,
    channel: ChannelIndex,
    number: u64,
    wake: Arc<dyn Wake>,
}

impl Inner {
    /// Whether the message was written; `None` while that is open.
    fn fate(&self, lane: Lane, channel: ChannelIndex, number: u64) -> Option<bool> {
        let index = usize::from(channel.0);
        if self.channels.get(index).is_some_and(|progress| number <= progress.of(lane).written) {
            return Some(true);
        }
        (self.closed || self.ended.get(index) != Some(&false)).then_some(false)
    }

    /// After a burst, an idle session holds no large queue.
    fn shrink(&mut self) {
        if self.queue.is_empty() && self.flying.is_empty() && self.queue.capacity() > 1024 {
            (self.queue, self.flying) = (VecDeque::new(), VecDeque::new());
        }
    }

    /// Removes the calls that need not wait any longer.
    fn decided(&mut self) -> Vec<Watched> {
        if self.watched.is_empty() {
            return Vec::new();
        }
        let watched = std::mem::take(&mut self.watched);
        let (open, decided) = watched
            .into_iter()
            .partition(|watched| self.fate(watched.lane, watched.channel, watched.number).is_none());
        self.watched = open;
        decided
    }
}

/// One session's outbound queue. Shared by the senders and the connection task.
pub struct Outbound {
    inner: Mutex<Inner>,
    budget: Arc<OutboundBudget>,
    /// Wakes the connection's task: there is a message again, or a wish to disconnect.
    wake: WakeSlot,
}

impl std::fmt::Debug for Outbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = self.lock();
        f.debug_struct("Outbound").field("queued", &inner.queue.len()).field("closed", &inner.closed).finish()
    }
}

impl Outbound {
    /// An empty queue. Channels are given with [`Outbound::set_channels`] once they are negotiated.
    #[must_use]
    pub fn new(budget: Arc<OutboundBudget>) -> Arc<Self> {
        budget.sessions.fetch_add(1, Ordering::AcqRel);
        Arc::new(Self {
            budget,
            inner: Mutex::new(Inner {
                queue: VecDeque::new(),
                flying: VecDeque::new(),
                limits: Vec::new(),
                compressed: true,
                channels: Vec::new(),
                ended: Vec::new(),
                held: 0,
                hooks: Vec::new(),
                watched: Vec::new(),
                disconnect: None,
                closed: false,
            }),
            wake: WakeSlot::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the channels that were negotiated, in their order. `compressed`: the peer takes compressed payloads.
    pub fn set_channels(&self, channels: impl IntoIterator<Item = ChannelLimits>, compressed: bool) {
        let mut inner = self.lock();
        inner.limits = channels.into_iter().collect();
        inner.compressed = compressed;
        let count = inner.limits.len();
        inner.channels.resize(count, ChannelProgress::default());
        inner.hooks.resize(count, None);
        inner.ended.resize(count, false);
    }

    /// Queues a message with the protocol's own code, or refuses it; never waits. Returns the message's number on its lane, from 1: it is written
    /// when [`LaneProgress::written`] has come that far.
    pub fn send(
        &self,
        lane: Lane,
        channel: ChannelIndex,
        code: u64,
        message: Compressed,
    ) -> Result<u64, Refused> {
        let cost = message.raw_len() as u64 + MESSAGE_COST;
        let (number, was_empty) = {
            let mut inner = self.lock();
            let index = usize::from(channel.0);
            let Some(limits) = inner.limits.get(index) else {
                return Err(Refused::Closed);
            };
            let code = limits.check(code, &message, inner.compressed)?;
            if inner.closed || inner.disconnect.is_some() || inner.ended.get(index) == Some(&true) {
                return Err(Refused::Closed);
            }
            let held = inner.held;
            let Some(progress) = inner.channels.get_mut(index) else {
                return Err(Refused::Closed);
            };
            let progress = progress.lane(lane);
            if progress.waiting_cost() >= SEND_WINDOW || !self.budget.take(cost, held) {
                return Err(Refused::Full);
            }
            progress.accepted += 1;
            progress.accepted_cost += cost;
            let number = progress.accepted;
            inner.held = inner.held.saturating_add(cost);
            let was_empty = inner.queue.is_empty();
            inner.queue.push_back(Queued {
                message: Outgoing { code, message },
                receipt: Receipt { channel, lane, cost },
            });
            (number, was_empty)
        };
        // The task that leaves a message in the queue comes back for it by itself: when the socket has taken what is ahead
        // of it, when a cap allows more, or when the session opens.
        if was_empty {
            self.wake.wake();
        }
        Ok(number)
    }

    /// Returns whether the socket took the message with this number; false when its session or channel ended first. While
    /// neither has happened it returns `None`, and `wake` is called once when it has.
    pub fn watch_written(
        &self,
        lane: Lane,
        channel: ChannelIndex,
        number: u64,
        wake: Arc<dyn Wake>,
    ) -> Option<bool> {
        let mut inner = self.lock();
        let fate = inner.fate(lane, channel, number);
        if fate.is_none() {
            inner.watched.push(Watched { lane, channel, number, wake });
        }
        fate
    }

    /// How far a channel has got.
    #[must_use]
    pub fn progress(&self, channel: ChannelIndex) -> ChannelProgress {
        self.lock().channels.get(usize::from(channel.0)).copied().unwrap_or_default()
    }

    /// Whether the session has ended; what was accepted and not written by then never will be.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Ends one channel while the session goes on: takes nothing more for it, drops what waits here, and counts nothing
    /// of it as written any more. Returns how many accepted messages were not written by then; those whose frames were
    /// being written may still arrive.
    pub fn end_channel(&self, channel: ChannelIndex) -> u64 {
        let (hook, decided, unwritten) = {
            let mut inner = self.lock();
            let index = usize::from(channel.0);
            let Some(ended) = inner.ended.get_mut(index) else { return 0 };
            *ended = true;
            let mut gone = 0;
            inner.queue.retain(|queued| {
                let stays = queued.receipt.channel != channel;
                gone += if stays { 0 } else { queued.receipt.cost };
                stays
            });
            inner.held = inner.held.saturating_sub(gone);
            self.budget.give(gone);
            let progress = inner.channels.get(index).copied().unwrap_or_default();
            (inner.hooks.get_mut(index).and_then(Option::take), inner.decided(), progress.unwritten())
        };
        // Without the lock: a hook takes the lock of a stream, and streams take ours.
        hook.iter().for_each(|hook| hook());
        decided.iter().for_each(|watched| watched.wake.wake());
        unwritten
    }

    /// Sets who is told when a channel's progress moves. One listener a channel: the stream that is attached.
    pub fn on_progress(&self, channel: ChannelIndex, hook: Option<ProgressHook>) {
        if let Some(slot) = self.lock().hooks.get_mut(usize::from(channel.0)) {
            *slot = hook;
        }
    }

    /// Asks the connection task to write what is queued, then Disconnect, then to close. The first reason stands.
    pub fn disconnect(&self, reason: DisconnectReason) {
        self.lock().disconnect.get_or_insert(reason);
        self.wake.wake();
    }

    /// Bytes and messages waiting, over all channels: (messages, cost).
    #[must_use]
    pub fn waiting(&self) -> (usize, u64) {
        let inner = self.lock();
        (inner.queue.len(), inner.held)
    }

    // The connection's side.

    /// Sets what wakes the connection's task, once, when it starts.
    pub fn wake_by(&self, wake: Arc<dyn Wake>) {
        self.wake.fill(wake);
    }

    /// The socket took so many of the messages that were pulled, oldest first.
    pub fn written(&self, messages: usize) {
        if messages == 0 {
            return;
        }
        let mut moved: u64 = 0;
        let mut hooks: Vec<ProgressHook> = Vec::new();
        let decided = {
            let mut inner = self.lock();
            for _ in 0..messages {
                let Some(receipt) = inner.flying.pop_front() else { break };
                let index = usize::from(receipt.channel.0);
                if !inner.closed {
                    inner.held = inner.held.saturating_sub(receipt.cost);
                    self.budget.give(receipt.cost);
                }
                let ended = inner.closed || inner.ended.get(index) == Some(&true);
                if let Some(progress) = inner.channels.get_mut(index).filter(|_| !ended) {
                    let progress = progress.lane(receipt.lane);
                    progress.written += 1;
                    progress.written_cost += receipt.cost;
                }
                moved |= 1_u64.checked_shl(u32::from(receipt.channel.0)).unwrap_or(u64::MAX);
            }
            for (index, hook) in inner.hooks.iter().enumerate() {
                let bit =
                    u32::try_from(index).ok().and_then(|index| 1_u64.checked_shl(index)).unwrap_or(u64::MAX);
                hooks.extend(hook.as_ref().filter(|_| moved & bit != 0).cloned());
            }
            inner.shrink();
            inner.decided()
        };
        // Without the lock: a hook takes the lock of a stream, and streams take ours.
        hooks.iter().for_each(|hook| hook());
        decided.iter().for_each(|watched| watched.wake.wake());
    }

    /// The session has ended: nothing more is taken or written.
    pub fn close(&self) {
        let (hooks, decided): (Vec<ProgressHook>, Vec<Watched>) = {
            let mut inner = self.lock();
            if !std::mem::replace(&mut inner.closed, true) {
                self.budget.give(std::mem::take(&mut inner.held));
                self.budget.sessions.fetch_sub(1, Ordering::AcqRel);
            }
            inner.queue = VecDeque::new();
            (inner.hooks.drain(..).flatten().collect(), inner.decided())
        };
        hooks.iter().for_each(|hook| hook());
        decided.iter().for_each(|watched| watched.wake.wake());
    }
}

impl Source for &Outbound {
    fn next(&mut self, _: Instant) -> Next {
        let mut inner = self.lock();
        if let Some(Queued { message, receipt }) = inner.queue.pop_front() {
            inner.flying.push_back(receipt);
            return Next::Message(message);
        }
        inner.disconnect.map_or(Next::Nothing, Next::Leave)
    }

    fn appended(&mut self, _: Instant, _: usize) {}

    fn leaving(&self) -> Option<DisconnectReason> {
        self.lock().disconnect
    }
}

impl Drop for Outbound {
    /// A connection that is cut before it has keys ends without a word, and its share of the budget with it.
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;
