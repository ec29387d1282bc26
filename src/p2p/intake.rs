//! The intake of a connection: messages that were read and not delivered yet, and whether reading goes on.
//!
//! Reading stops for one of these reasons, and TCP then holds the peer back:
//!
//! | reason | begins | ends |
//! | --- | --- | --- |
//! | held | a message does not fit its application's queue ([`Offer::Hold`]) | there is room, or the time is over |
//! | parked | a message came and the node is a peer over another connection | [`Intake::promote`], or the connection ends |
//! | paused | a cap on bandwidth is exceeded | the time is over |
//! | full | [`MAX_BACKLOG`] waits to be delivered | [`Intake::deliver`] |
//! | starved | the receive budget of the process is used up | [`Intake::set_starved`] |
//!
//! # The clock of holding
//!
//! A hold delays everything of a peer, so the time of holding is bounded. A *proof of progress* resets the time: 2 MiB
//! were read, or a Pong came back for a Ping written since the last proof, or nothing was held for a second. The time
//! is charged to the channel whose message waits. It is not charged while a cap, the receive budget or parking would
//! stop reading as well, because those delays are not the application's. `delivery::overflow` decides what follows when
//! the time is over. `docs/decisions/0006-overflow.md` has the reasons.
//!
//! A Pong alone is not enough as a proof: it waits behind every answer that the peer still has to write.
//!
//! Left out: sockets, queues and policies. The intake knows neither applications nor their number.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{ChannelIndex, DisconnectReason};

/// Reading stops while this many bytes of payload wait to be delivered. One message may cross the bound.
pub const MAX_BACKLOG: usize = 1 << 20;
/// Reading stops while this many messages wait to be delivered: it bounds the memory that tiny messages take.
pub const MAX_BACKLOG_MESSAGES: usize = 1024;

/// Bytes read on the wire that are a proof of progress. Linux wakes a blocked writer when a third of its send buffer is
/// free, and the buffer has 4 MiB at most: each proof lets the peer write.
pub const PROOF_BYTES: u64 = 2 << 20;
/// A connection that was not held for this long starts with a new clock: 1 s is longer than any round trip.
pub const PROOF_FREE: Duration = Duration::from_secs(1);
/// A connection asks for a Pong after this much holding without another proof, and at most once in this time. A Ping
/// that is sent earlier does harm: if the peer has closed its socket, the answer is a reset, which destroys unread
/// bytes.
const ASK_AFTER: Duration = Duration::from_secs(1);

/// A message of a shared capability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// The channel, among those of the connection.
    pub channel: ChannelIndex,
    /// The protocol's own code, from 0.
    pub code: u64,
    /// The payload, decompressed. A payload of up to 256 bytes may share an allocation of 2 KiB with others.
    pub payload: Bytes,
    /// How many bytes the frame took on the wire.
    pub wire_bytes: usize,
}

/// How long a connection was held since the last proof of progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldTime {
    /// Charged to the channel of the message.
    pub channel: Duration,
    /// Charged to all channels together.
    pub total: Duration,
}

/// The queue's decision on an offered message.
#[derive(Debug)]
pub enum Offer {
    /// It is accounted for: queued, or reported as lost.
    Taken,
    /// It does not fit now. Hold the connection and offer it again when there is room, or at `until`.
    Hold {
        /// The payload, returned to the intake.
        payload: Bytes,
        /// When to offer it again if there has been no room before.
        until: Instant,
        /// Whether the time of this hold is charged.
        charged: bool,
    },
    /// It is accounted for, and the connection must end with this reason: the application's policy is to disconnect the
    /// peer.
    Disconnect(DisconnectReason),
}

/// The queues that take the messages of a connection.
pub trait Delivery {
    /// Takes a message, or returns why it cannot be taken now.
    fn offer(&mut self, now: Instant, message: Inbound, held: HeldTime) -> Offer;
    /// Takes a message that was read before the connection ended. A hold is no longer possible.
    fn offer_last(&mut self, now: Instant, message: Inbound);
}

/// The current hold of a connection, for display.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The channel whose message waits.
    pub channel: ChannelIndex,
    /// When the hold began. The connection has not been read since.
    pub since: Instant,
    /// Messages that were read and wait.
    pub messages: usize,
    /// The bytes of their payloads.
    pub bytes: usize,
}

/// The current hold: a message waits for room in its queue.
#[derive(Debug)]
struct Held {
    channel: ChannelIndex,
    since: Instant,
    until: Instant,
    charged: bool,
    /// The time up to which the clock has been charged.
    counted: Instant,
}

/// The intake of one connection. The module's documentation says what stops reading.
#[derive(Debug)]
pub struct Intake {
    waiting: VecDeque<Inbound>,
    /// Bytes of payload in `waiting`.
    bytes: usize,
    holding: Option<Held>,
    parked: bool,
    paused_until: Option<Instant>,
    starved: bool,
    /// When reading stopped, while it is stopped.
    stopped: Option<Instant>,
    clock: Clock,
}

impl Intake {
    /// An intake for a connection that opens `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            waiting: VecDeque::new(),
            bytes: 0,
            holding: None,
            parked: false,
            paused_until: None,
            starved: false,
            stopped: None,
            clock: Clock::new(now),
        }
    }

    /// Takes a message that was read. Check [`Self::is_reading`] before each.
    pub fn push(&mut self, message: Inbound) {
        self.bytes = self.bytes.saturating_add(message.payload.len());
        self.waiting.push_back(message);
    }

    /// Counts the bytes of a frame that was read, of any kind, as progress of the peer.
    pub fn frame_read(&mut self, wire_bytes: usize) {
        self.clock.read(wire_bytes);
    }

    /// A Ping was written; `unanswered` counts the Pings without a Pong, this one included.
    pub fn ping_written(&mut self, now: Instant, unanswered: u32) {
        self.clock.ping_written(now, unanswered);
    }

    /// A Pong was read that answers a Ping of ours.
    pub fn pong_read(&mut self) {
        self.clock.pong_read();
    }

    /// Whether a Ping is due because the connection is held without a proof of progress.
    #[must_use]
    pub fn wants_ping(&self, now: Instant, unanswered: u32) -> bool {
        self.holding.is_some() && unanswered == 0 && self.clock.asks(now)
    }

    /// Offers the waiting messages, oldest first, until one has to wait. Returns the reason if the application's policy
    /// is to disconnect the peer.
    ///
    /// All channels wait behind the first message that does not fit: the order of a channel must not change, and only
    /// the socket as a whole can be held.
    pub fn deliver(&mut self, now: Instant, delivery: &mut impl Delivery) -> Option<DisconnectReason> {
        if self.parked || self.waiting.is_empty() {
            return None;
        }
        self.charge(now);
        if self.holding.is_none() {
            self.clock.rested(now);
        }
        while let Some(message) = self.waiting.pop_front() {
            let (channel, code, wire_bytes) = (message.channel, message.code, message.wire_bytes);
            self.bytes = self.bytes.saturating_sub(message.payload.len());
            let held = self.clock.held(channel);
            match delivery.offer(now, message, held) {
                Offer::Taken => {}
                Offer::Disconnect(reason) => return Some(reason),
                Offer::Hold { payload, until, charged } => {
                    let since = self.holding.as_ref().map_or(now, |holding| holding.since);
                    self.holding = Some(Held { channel, since, until, charged, counted: now });
                    self.bytes = self.bytes.saturating_add(payload.len());
                    self.waiting.push_front(Inbound { channel, code, payload, wire_bytes });
                    return None;
                }
            }
        }
        if self.holding.take().is_some() {
            self.clock.ended = now;
        }
        if self.waiting.capacity() > 64 {
            // After a burst, an idle connection holds no large queue.
            self.waiting = VecDeque::new();
        }
        None
    }

    /// The connection is over: the messages that were read are offered to their queues for the last time. Each is
    /// queued or reported as lost.
    pub fn deliver_last(&mut self, now: Instant, delivery: &mut impl Delivery) {
        self.holding = None;
        self.bytes = 0;
        self.waiting.drain(..).for_each(|message| delivery.offer_last(now, message));
    }

    /// The node is a peer over another connection: reading stops at the first message.
    pub fn park(&mut self) {
        self.parked = true;
    }

    /// The connection becomes its node's session.
    pub fn promote(&mut self) {
        self.parked = false;
    }

    /// Stops reading until the time `until`, because a cap is exceeded.
    pub fn pause(&mut self, now: Instant, until: Instant) {
        self.charge(now);
        self.paused_until = Some(until);
    }

    /// Sets whether the receive buffer needs memory that the process's budget does not have. The peer's deadlines do not
    /// count that time. Connections that wait for each other's memory do not wait for ever, because one of them gives way
    /// ([`verdict`](super::incomplete::verdict)).
    pub fn set_starved(&mut self, now: Instant, starved: bool) {
        self.charge(now);
        self.starved = starved;
    }

    /// Brings the clock up to `now` and ends a pause that is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.charge(now);
        self.paused_until = self.paused_until.filter(|until| *until > now);
    }

    /// When to call [`Self::handle_timeout`] and [`Self::deliver`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let held = self.holding.as_ref().map(|holding| holding.until);
        [held, self.paused_until].into_iter().flatten().min()
    }

    /// Whether the next frame may be read from the received bytes.
    #[must_use]
    pub fn is_reading(&self) -> bool {
        let full = self.bytes >= MAX_BACKLOG || self.waiting.len() >= MAX_BACKLOG_MESSAGES;
        let parked = self.parked && !self.waiting.is_empty();
        self.holding.is_none() && self.paused_until.is_none() && !full && !parked
    }

    /// Whether the socket may be read. The peer's deadlines run while this is true.
    #[must_use]
    pub fn wants_bytes(&self) -> bool {
        self.is_reading() && !self.starved
    }

    /// Call after anything that may stop or start reading. When reading starts again, returns how long it was stopped:
    /// the peer's deadlines move by that time.
    pub fn settle(&mut self, now: Instant) -> Option<Duration> {
        if self.wants_bytes() {
            self.stopped.take().map(|since| now.saturating_duration_since(since))
        } else {
            self.stopped.get_or_insert(now);
            None
        }
    }

    /// Whether anything waits to be delivered.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Bytes of payload that wait to be delivered.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The current hold, if the connection is held.
    #[must_use]
    pub fn hold(&self) -> Option<Hold> {
        let Held { channel, since, .. } = *self.holding.as_ref()?;
        Some(Hold { channel, since, messages: self.waiting.len(), bytes: self.bytes })
    }

    /// Brings the clock up to `now`: charges the time since the last call to the channel whose message waits. It
    /// charges nothing if the hold is not charged, or if reading is stopped for another reason too.
    fn charge(&mut self, now: Instant) {
        let stopped_otherwise = self.parked || self.paused_until.is_some() || self.starved;
        let Some(holding) = &mut self.holding else { return };
        let time = now.saturating_duration_since(holding.counted);
        holding.counted = now;
        if holding.charged && !stopped_otherwise {
            self.clock.charge(holding.channel, time);
        }
    }
}

/// How long a connection was held since the last proof of progress.
#[derive(Debug)]
struct Clock {
    /// Wire bytes read, and how many there were at the last proof.
    read: u64,
    mark: u64,
    /// Proofs so far. The time that a channel was charged before the last one no longer counts.
    proofs: u64,
    total: Duration,
    /// By channel: the time, and the number of proofs when it was counted.
    spent: Vec<(Duration, u64)>,
    /// When the last hold ended.
    ended: Instant,
    /// A Ping was written since the last proof: the number of Pongs still to come, the last of which answers that Ping.
    /// When the last Ping was written.
    asked: Option<u32>,
    asked_at: Option<Instant>,
}

impl Clock {
    fn new(now: Instant) -> Self {
        Self {
            read: 0,
            mark: 0,
            proofs: 0,
            total: Duration::ZERO,
            spent: Vec::new(),
            ended: now,
            asked: None,
            asked_at: None,
        }
    }

    fn proof(&mut self) {
        self.mark = self.read;
        self.proofs = self.proofs.wrapping_add(1);
        self.total = Duration::ZERO;
        self.asked = None;
    }

    fn read(&mut self, bytes: usize) {
        self.read = self.read.wrapping_add(bytes as u64);
        if self.read.wrapping_sub(self.mark) >= PROOF_BYTES {
            self.proof();
        }
    }

    fn ping_written(&mut self, now: Instant, unanswered: u32) {
        self.asked.get_or_insert(unanswered);
        self.asked_at = Some(now);
    }

    fn pong_read(&mut self) {
        match &mut self.asked {
            Some(0 | 1) => self.proof(),
            Some(outstanding) => *outstanding = outstanding.saturating_sub(1),
            None => {}
        }
    }

    fn asks(&self, now: Instant) -> bool {
        let lately = self.asked_at.is_some_and(|at| now.saturating_duration_since(at) < ASK_AFTER);
        self.total >= ASK_AFTER && !lately
    }

    /// Nothing is held now. After a second without a hold, that is a proof.
    fn rested(&mut self, now: Instant) {
        if !self.total.is_zero() && now.saturating_duration_since(self.ended) >= PROOF_FREE {
            self.proof();
        }
    }

    fn held(&self, channel: ChannelIndex) -> HeldTime {
        let spent = self.spent.get(usize::from(channel.0));
        let channel =
            spent.filter(|(_, proofs)| *proofs == self.proofs).map_or(Duration::ZERO, |spent| spent.0);
        HeldTime { channel, total: self.total }
    }

    fn charge(&mut self, channel: ChannelIndex, time: Duration) {
        self.total = self.total.saturating_add(time);
        let index = usize::from(channel.0);
        if self.spent.len() <= index {
            // One entry for each channel of the connection. A Hello has room for a few hundred capabilities at most.
            self.spent.resize(index.saturating_add(1), (Duration::ZERO, self.proofs));
        }
        if let Some((spent, proofs)) = self.spent.get_mut(index) {
            if *proofs != self.proofs {
                (*spent, *proofs) = (Duration::ZERO, self.proofs);
            }
            *spent = spent.saturating_add(time);
        }
    }
}

#[cfg(test)]
mod tests;
