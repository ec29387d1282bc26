//! Messages on their way to one peer: a queue per session, bounded in bytes per channel and lane.
//!
//! Senders (gRPC streams and calls) put messages in and never wait. A message that does not fit is refused, for that
//! peer and that channel alone, and the sender gets the refusal. Only this file checks a message before it is written
//! (code in range, size), and only this file counts messages to a peer. Each accepted message is written, or is among
//! [`ChannelProgress::unwritten`] when its channel or session ends.
//!
//! The connection's engine pulls messages out ([`Source`]). Its driver reports how many the socket took, which returns
//! the room to senders. Nothing here allocates per message once the queue has its size.
//!
//! A lane has its own budget on a channel: one lane for the stream of an application, one for single calls. Neither can
//! use up the other's room. Messages keep their order within a lane, and in fact over both lanes.
//!
//! One lock guards a session's queue. Senders, the connection and the owner of peers take it for one short call each,
//! and wait for nothing while they hold it. Wakers and hooks are called after the lock is released.
//!
//! Left out: encryption and sockets, and the progress reports for senders (`switch::attachment`).

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{
    ChannelIndex, DisconnectReason, Next, Outgoing, Source,
    wire::{self, Compressed},
};
use crate::{
    Wake, WakeSlot,
    budget::{Budget, Share},
};

/// The cost that one channel may have waiting in each lane, in bytes: the window that applications see. A message that
/// crosses it is still taken, so that one message of any size always fits.
pub const SEND_WINDOW: u64 = 1024 * 1024;

/// The cost of a message beyond its bytes, here and in all credit windows (docs/grpc.md): it bounds queues of tiny
/// messages too.
pub const MESSAGE_COST: u64 = 64;

/// The kind of sender that put a message in.
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
    /// The code is not below the protocol's message count.
    CodeOutOfRange {
        /// How many codes the protocol has.
        message_count: u64,
    },
    /// It is larger than the protocol's owner allows, or than a frame carries.
    TooLarge {
        /// Its size in bytes, uncompressed.
        bytes: usize,
        /// The owner's limit, in bytes.
        limit: usize,
    },
}

/// The bounds on the messages of one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelLimits {
    /// The code on the wire of the protocol's message 0.
    pub offset: u64,
    /// How many message codes the protocol has.
    pub message_count: u64,
    /// The largest payload that its owner allows, in bytes, uncompressed.
    pub max_message: usize,
}

impl ChannelLimits {
    /// Returns the code on the wire of a message that can be written, or why it cannot be written.
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
        // A peer with a base protocol below version 5 gets payloads uncompressed, so their raw size must fit the frame.
        if wire::fits(code, message, compressed) { Ok(code) } else { Err(too_large) }
    }
}

/// One lane's counters since the session began. A message costs its bytes plus [`MESSAGE_COST`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneProgress {
    /// Messages taken.
    pub accepted: u64,
    /// Messages that the socket took.
    pub written: u64,
    /// Cost of the messages taken.
    pub accepted_cost: u64,
    /// Cost of the messages that the socket took.
    pub written_cost: u64,
}

impl LaneProgress {
    /// Cost of the messages that were accepted and are not written yet.
    #[must_use]
    pub fn waiting_cost(&self) -> u64 {
        self.accepted_cost.saturating_sub(self.written_cost)
    }
}

/// The counters of both lanes of one channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelProgress {
    /// Messages from the stream.
    pub stream: LaneProgress,
    /// Messages from calls.
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

/// The values to count when the socket has taken the message.
#[derive(Clone, Copy, Debug)]
struct Receipt {
    channel: ChannelIndex,
    lane: Lane,
    cost: u64,
}

/// Called when a channel's progress moved or the session ended, while no lock of this file is held. It must return
/// quickly.
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
    /// The part of the budget that this session holds. A broadcast counts once for each peer it waits for, though its
    /// payload is shared.
    share: Share,
    hooks: Vec<Option<ProgressHook>>,
    waiters: Vec<WriteWaiter>,
    disconnect: Option<DisconnectReason>,
    closed: bool,
}

/// A call that waits for one message. There is at most one for each message that is not written yet, which bounds the
/// list.
struct WriteWaiter {
    lane: Lane,
    channel: ChannelIndex,
    number: u64,
    wake: Arc<dyn Wake>,
}

impl Inner {
    /// Whether the message was written; `None` while that is undecided.
    fn fate(&self, lane: Lane, channel: ChannelIndex, number: u64) -> Option<bool> {
        let index = usize::from(channel.0);
        if self.channels.get(index).is_some_and(|progress| number <= progress.of(lane).written) {
            return Some(true);
        }
        // A channel that was never opened has no entry: its messages are not written either.
        (self.closed || self.ended.get(index) != Some(&false)).then_some(false)
    }

    /// Returns a part of the budget.
    fn give(&mut self, cost: u64) {
        self.share.hold(self.share.taken().saturating_sub(cost));
    }

    /// Releases a large queue after a burst, so that an idle session holds none.
    fn shrink(&mut self) {
        if self.queue.is_empty() && self.flying.is_empty() && self.queue.capacity() > 1024 {
            (self.queue, self.flying) = (VecDeque::new(), VecDeque::new());
        }
    }

    /// Removes and returns the calls whose message is decided.
    fn decided(&mut self) -> Vec<WriteWaiter> {
        if self.waiters.is_empty() {
            return Vec::new();
        }
        let waiters = std::mem::take(&mut self.waiters);
        let (open, decided) = waiters
            .into_iter()
            .partition(|waiter| self.fate(waiter.lane, waiter.channel, waiter.number).is_none());
        self.waiters = open;
        decided
    }
}

/// One session's outbound queue. Shared by the senders and the connection task.
pub struct Outbound {
    inner: Mutex<Inner>,
    /// Wakes the connection's task: the queue is no longer empty, or the session is to disconnect.
    wake: WakeSlot,
}

impl std::fmt::Debug for Outbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = self.lock();
        f.debug_struct("Outbound").field("queued", &inner.queue.len()).field("closed", &inner.closed).finish()
    }
}

impl Outbound {
    /// An empty queue without channels. Negotiated channels are set with [`Outbound::set_channels`].
    #[must_use]
    pub fn new(budget: Arc<Budget>) -> Arc<Self> {
        let mut share = Share::new(budget);
        share.set_holders(1);
        Arc::new(Self {
            inner: Mutex::new(Inner {
                queue: VecDeque::new(),
                flying: VecDeque::new(),
                limits: Vec::new(),
                compressed: true,
                channels: Vec::new(),
                ended: Vec::new(),
                share,
                hooks: Vec::new(),
                waiters: Vec::new(),
                disconnect: None,
                closed: false,
            }),
            wake: WakeSlot::default(),
        })
    }

    /// An empty queue with a budget of its own.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn alone() -> Arc<Self> {
        Self::new(Budget::whole(crate::budget::Resource::Outbound))
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

    /// Queues a message with the protocol's own code, or refuses it; never waits. Returns the message's number on its
    /// lane, from 1. The message is written when [`LaneProgress::written`] has reached that number.
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
            let Inner { channels, share, .. } = &mut *inner;
            let Some(progress) = channels.get_mut(index) else {
                return Err(Refused::Closed);
            };
            let progress = progress.lane(lane);
            // If the budget is used up, the message is refused as if the channel's own window were.
            let held = share.taken();
            if progress.waiting_cost() >= SEND_WINDOW || !share.try_hold(held.saturating_add(cost), held) {
                return Err(Refused::Full);
            }
            progress.accepted += 1;
            progress.accepted_cost += cost;
            let number = progress.accepted;
            let was_empty = inner.queue.is_empty();
            inner.queue.push_back(Queued {
                message: Outgoing { code, message },
                receipt: Receipt { channel, lane, cost },
            });
            (number, was_empty)
        };
        // Only the first message of an empty queue wakes the task. If the task leaves messages in the queue, it needs
        // no wake to come back: it returns when the socket has taken the bytes before them, when a cap allows more, or
        // when the session opens.
        if was_empty {
            self.wake.wake();
        }
        Ok(number)
    }

    /// Returns whether the socket took the message with this number; false when its session or channel ended first.
    /// While neither has happened, returns `None`, and `wake` is called once when one of them happens.
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
            inner.waiters.push(WriteWaiter { lane, channel, number, wake });
        }
        fate
    }

    /// The counters of a channel so far.
    #[must_use]
    pub fn progress(&self, channel: ChannelIndex) -> ChannelProgress {
        self.lock().channels.get(usize::from(channel.0)).copied().unwrap_or_default()
    }

    /// Whether the session has ended. Messages that were accepted and not written by then are never written.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Ends one channel while the session goes on: takes nothing more for it, drops its messages that wait here, and
    /// counts no more of them as written. Returns how many accepted messages were not written by then; those whose
    /// frames were being written may still arrive.
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
            inner.give(gone);
            let progress = inner.channels.get(index).copied().unwrap_or_default();
            (inner.hooks.get_mut(index).and_then(Option::take), inner.decided(), progress.unwritten())
        };
        // The lock is released here: a hook takes the lock of a stream, and streams take this lock.
        hook.iter().for_each(|hook| hook());
        decided.iter().for_each(|waiter| waiter.wake.wake());
        unwritten
    }

    /// Sets the hook for a channel's progress. A channel has one hook: that of the attached stream.
    pub fn on_progress(&self, channel: ChannelIndex, hook: Option<ProgressHook>) {
        if let Some(slot) = self.lock().hooks.get_mut(usize::from(channel.0)) {
            *slot = hook;
        }
    }

    /// Asks the connection's task to write the queued messages, then Disconnect, and then to close. Only the first
    /// reason counts.
    pub fn disconnect(&self, reason: DisconnectReason) {
        self.lock().disconnect.get_or_insert(reason);
        self.wake.wake();
    }

    /// The waiting messages over all channels: their number, and the cost that this session holds.
    #[must_use]
    pub fn waiting(&self) -> (usize, u64) {
        let inner = self.lock();
        (inner.queue.len(), inner.share.taken())
    }

    // Methods for the connection.

    /// Sets the waker of the connection's task, once, when the task starts.
    pub fn wake_by(&self, wake: Arc<dyn Wake>) {
        self.wake.fill(wake);
    }

    /// The socket took this many of the messages that were pulled, oldest first.
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
                    inner.give(receipt.cost);
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
        // The lock is released here: a hook takes the lock of a stream, and streams take this lock.
        hooks.iter().for_each(|hook| hook());
        decided.iter().for_each(|waiter| waiter.wake.wake());
    }

    /// The session has ended: nothing more is taken or written.
    pub fn close(&self) {
        let (hooks, decided): (Vec<ProgressHook>, Vec<WriteWaiter>) = {
            let mut inner = self.lock();
            inner.closed = true;
            inner.share.release();
            inner.share.set_holders(0);
            inner.queue = VecDeque::new();
            (inner.hooks.drain(..).flatten().collect(), inner.decided())
        };
        hooks.iter().for_each(|hook| hook());
        decided.iter().for_each(|waiter| waiter.wake.wake());
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
    /// A connection that is cut before it has keys may drop its queue without [`Outbound::close`].
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;
