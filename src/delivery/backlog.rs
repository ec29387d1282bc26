//! Everything that waits in an inbox: its channels with their messages, the sums over them, and the closed channels
//! that give way first.
//!
//! Left out: the stream that takes the events (`stream`), and what happens to a message that does not fit (`inbox`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::channel::{Channel, OnStream, Place};
use super::credit::{MESSAGE_COST, cost};
use super::event::{About, Close};
use super::queue::Lost;
use super::slab::{ChannelKey, Slab};
use crate::budget::{Budget, Share};

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
    /// Messages handed over whole.
    pub handed_over: u64,
    /// Messages reported in gaps of their channels.
    pub reported: Lost,
    /// Messages dropped with a gap in their channel, for any reason.
    pub dropped: Lost,
    /// Sessions folded, and the messages they had sent.
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

/// The sums over all channels. Each change of a channel's queue is followed by one of these.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// The cost of everything that waits.
    waiting: u64,
    /// The part of it that closed channels have.
    closed_waiting: u64,
    counters: Counters,
    /// Channels whose connections are not held any more, and have not been told.
    released: Vec<ChannelKey>,
}

impl Totals {
    /// The cost of a channel went from `before` to `after`.
    fn moved(&mut self, before: u64, after: u64, is_closed: bool) {
        self.waiting = self.waiting.saturating_sub(before).saturating_add(after);
        if is_closed {
            self.closed_waiting = self.closed_waiting.saturating_sub(before).saturating_add(after);
        }
    }

    /// A gap at the head of a channel was reported.
    pub(super) fn gap_reported(&mut self, lost: Lost, is_closed: bool) {
        self.counters.reported.add(lost);
        self.moved(MESSAGE_COST, 0, is_closed);
    }

    /// A message at the head of a channel was handed over whole, and its queue costs `freed` less.
    pub(super) fn handed_over(&mut self, freed: u64, is_closed: bool) {
        self.counters.handed_over = self.counters.handed_over.saturating_add(1);
        self.moved(freed, 0, is_closed);
    }

    /// The hold for a channel has ended.
    pub(super) fn release(&mut self, key: ChannelKey) {
        self.released.push(key);
    }
}

/// The work that folding a closed channel leaves to the inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fold {
    /// The channel has a gap to report, and then its end.
    Announced(ChannelKey),
    /// The channel is gone; the sums of folded sessions have grown.
    Counted,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Backlog<P> {
    share: Share,
    channels: Slab<Channel<P>>,
    /// Closed channels that still have something to fold, oldest first.
    closed: BTreeMap<u64, ChannelKey>,
    closings: u64,
    folded: Folded,
    last_folded_session: Option<u64>,
    totals: Totals,
}

impl<P> Backlog<P> {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self {
            share: Share::in_steps(budget),
            channels: Slab::default(),
            closed: BTreeMap::new(),
            closings: 0,
            folded: Folded::default(),
            last_folded_session: None,
            totals: Totals::default(),
        }
    }

    pub(super) fn counters(&self) -> Counters {
        self.totals.counters
    }

    /// The cost of everything that waits.
    pub(super) fn waiting(&self) -> u64 {
        self.totals.waiting
    }

    /// The bound that the memory of the whole process sets for one channel now.
    pub(super) fn bound(&self) -> u64 {
        self.share.allowance()
    }

    /// Whether the memory of the whole process has room for a message on a channel that costs `held` now. If so, the
    /// message must be queued.
    pub(super) fn has_room(&mut self, held: u64, payload: usize) -> bool {
        let waiting = self.totals.waiting.saturating_add(cost(payload));
        // Nearly always the step that was taken last covers it.
        waiting <= self.share.taken() || self.share.try_hold(waiting, held)
    }

    /// Brings the share of the budget in step with what waits. Gaps and ends of channels are not refused: they report
    /// what was lost, and are bounded by the number of channels.
    pub(super) fn settle(&mut self) {
        self.share.hold(self.totals.waiting);
    }

    /// The channels whose connections are not held any more, each once.
    pub(super) fn take_released(&mut self) -> Vec<ChannelKey> {
        std::mem::take(&mut self.totals.released)
    }

    /// A message was discarded, because its channel takes none.
    pub(super) fn discarded(&mut self) {
        let counters = &mut self.totals.counters;
        counters.discarded = counters.discarded.saturating_add(1);
    }

    /// The memory of the whole process decided that a message did not fit.
    pub(super) fn forced(&mut self) {
        self.totals.counters.forced = self.totals.counters.forced.saturating_add(1);
    }

    pub(super) fn channels(&self) -> impl Iterator<Item = (ChannelKey, &Channel<P>)> {
        self.channels.iter()
    }

    pub(super) fn get_mut(&mut self, key: ChannelKey) -> Option<&mut Channel<P>> {
        self.channels.get_mut(key)
    }

    /// A channel with the sums that its changes go into.
    pub(super) fn entry(&mut self, key: ChannelKey) -> Option<(&mut Channel<P>, &mut Totals)> {
        Some((self.channels.get_mut(key)?, &mut self.totals))
    }

    /// Adds a channel; `None` only when four billion are open.
    pub(super) fn open(&mut self, about: About<P>, on: OnStream) -> Option<ChannelKey> {
        let key = self.channels.insert(Channel::new(about, on))?;
        self.share.set_holders(self.channels.len() as u64);
        Some(key)
    }

    /// Puts a message into the queue of an open channel, after [`Self::has_room`]. Returns whether the queue was empty.
    pub(super) fn queue(&mut self, key: ChannelKey, code: u32, payload: Bytes, attached: bool) -> bool {
        let Some(channel) = self.channels.get_mut(key) else { return false };
        let before = channel.queue.cost();
        channel.arrive(code, &payload);
        let was_empty = channel.queue.is_empty();
        channel.queue.push(code, payload, !attached || channel.on.place == Place::NoCredit);
        let grown = channel.queue.cost().saturating_sub(before);
        self.totals.waiting = self.totals.waiting.saturating_add(grown);
        debug_assert!(self.totals.waiting <= self.share.taken(), "`has_room` has taken the memory");
        was_empty
    }

    /// Reports messages of an open channel as lost. Returns whether the channel is open.
    pub(super) fn lose(&mut self, key: ChannelKey, lost: Lost) -> bool {
        let Some(channel) = self.channels.get_mut(key).filter(|channel| channel.closed.is_none()) else {
            return false;
        };
        let before = channel.queue.cost();
        channel.queue.lose(lost);
        self.totals.moved(before, channel.queue.cost(), false);
        self.totals.counters.dropped.add(lost);
        true
    }

    /// Ends a channel. Returns whether its end is to be reported.
    pub(super) fn close(&mut self, key: ChannelKey, close: Close, attached: bool) -> bool {
        let Some(channel) = self.channels.get_mut(key).filter(|channel| channel.closed.is_none()) else {
            return false;
        };
        channel.held = None;
        if !attached && !channel.announced && channel.queue.is_empty() {
            self.remove(key); // no stream was told of it, and nothing waits
            return false;
        }
        let before = channel.queue.cost();
        channel.closed = Some(Arc::new(close));
        channel.closing = self.closings;
        let cost = channel.closed_cost();
        self.totals.moved(before, cost, false);
        self.totals.closed_waiting = self.totals.closed_waiting.saturating_add(cost);
        self.closed.insert(self.closings, key);
        self.closings = self.closings.saturating_add(1);
        true
    }

    /// Folds the oldest closed channel, if more than `bound` waits: on closed channels while a stream is attached, on
    /// all of them otherwise. A channel that no stream was told of leaves only its counts. The messages of an announced
    /// channel become a gap, and its end is still reported.
    pub(super) fn fold(&mut self, bound: u64, attached: bool) -> Option<Fold> {
        loop {
            let held = if attached { self.totals.closed_waiting } else { self.totals.waiting };
            if held < bound {
                return None;
            }
            let (_, key) = self.closed.pop_first()?;
            let Some(channel) = self.channels.get_mut(key) else { continue };
            if channel.announced {
                let before = channel.queue.cost();
                let dropped = channel.queue.trim(0);
                channel.on.offset = 0; // a message that was sent in part is lost like the others
                self.totals.moved(before, channel.queue.cost(), true);
                self.totals.counters.dropped.add(dropped);
                return Some(Fold::Announced(key));
            }
            let Some(channel) = self.remove(key) else { continue };
            // The channels of one session close in a row: together they count as one folded session.
            let session = Some(channel.about.session_id);
            let sessions = u64::from(session != self.last_folded_session);
            self.last_folded_session = session;
            self.totals.counters.given_up.add(channel.queue.messages());
            for sum in [&mut self.folded, &mut self.totals.counters.folded] {
                sum.sessions = sum.sessions.saturating_add(sessions);
                sum.lost.add(channel.queue.total());
            }
            return Some(Fold::Counted);
        }
    }

    /// Whether folded sessions are to be reported.
    pub(super) fn has_folded(&self) -> bool {
        self.folded.sessions > 0
    }

    /// The folded sessions, which are reported now.
    pub(super) fn take_folded(&mut self) -> Folded {
        // Another channel of the same session may fold later: that fold must be reported too.
        self.last_folded_session = None;
        std::mem::take(&mut self.folded)
    }

    /// Removes a channel with all that waits on it.
    pub(super) fn remove(&mut self, key: ChannelKey) -> Option<Channel<P>> {
        let channel = self.channels.remove(key)?;
        if channel.closed.is_some() {
            self.closed.remove(&channel.closing);
            self.totals.moved(channel.closed_cost(), 0, true);
        } else {
            self.totals.moved(channel.queue.cost(), 0, false);
        }
        self.share.set_holders(self.channels.len() as u64);
        Some(channel)
    }

    /// Lets every connection that is held offer its message again.
    pub(super) fn release_all(&mut self) {
        for (key, channel) in self.channels.iter_mut() {
            if channel.held.take().is_some() {
                self.totals.released.push(key);
            }
        }
    }

    /// Another stream takes over, or none: each channel starts there with what `on` returns. Returns the channels,
    /// oldest first.
    pub(super) fn change_stream(&mut self, on: impl Fn() -> OnStream) -> Vec<ChannelKey> {
        let mut keys = Vec::with_capacity(self.channels.len());
        for (key, channel) in self.channels.iter_mut() {
            channel.leave(on());
            keys.push(key);
        }
        keys.sort_unstable();
        keys
    }

    /// Removes the closed channels of which the next stream needs nothing: no stream was told of them, and they hold no
    /// message.
    pub(super) fn remove_unannounced(&mut self) {
        let of_no_use =
            |channel: &Channel<P>| channel.closed.is_some() && !channel.announced && channel.queue.is_empty();
        let keys: Vec<ChannelKey> =
            self.channels.iter().filter(|(_, channel)| of_no_use(channel)).map(|(key, _)| key).collect();
        for key in keys {
            self.remove(key);
        }
    }

    /// Trims all queues to one level, so that the cost of what waits is within `bound`.
    pub(super) fn lower(&mut self, bound: u64) {
        let Some(mut excess) = self.totals.waiting.checked_sub(bound).filter(|excess| *excess > 0) else {
            return;
        };
        let mut costs: Vec<u64> = self.channels.iter().map(|(_, channel)| channel.queue.cost()).collect();
        costs.sort_unstable_by(|a, b| b.cmp(a));
        // The level to which the fullest queues must go down together until the excess is gone.
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
                self.totals.counters.dropped.add(dropped);
                self.totals.moved(before, channel.queue.cost(), channel.closed.is_some());
            }
        }
    }

    /// Every channel ends without an event, and the connections that are held go on.
    pub(super) fn clear(&mut self) {
        let keys: Vec<ChannelKey> = self.channels.iter().map(|(key, _)| key).collect();
        for key in keys {
            if self.remove(key).is_some_and(|channel| channel.held.is_some()) {
                self.totals.released.push(key);
            }
        }
        self.folded = Folded::default();
        self.settle();
    }

    /// The number of channels that hold their connection, and when the oldest of these holds began; `None` if there is
    /// none.
    pub(super) fn holding(&self) -> Option<(usize, Instant)> {
        let mut holds = self.channels.iter().filter_map(|(_, channel)| Some(channel.held?.since));
        let first = holds.next()?;
        Some(holds.fold((1, first), |(count, oldest), since| (count + 1, oldest.min(since))))
    }
}
