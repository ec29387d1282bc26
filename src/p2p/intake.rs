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
//! Holding delays everything of a peer, so it is bounded *since the last proof that the peer's bytes come through*: 2 MiB
//! were read, or a Pong came back for a Ping written since the last proof, or nothing was held for a second. The time is
//! charged to the channel whose message waits, and not while a cap, the receive budget or parking would stop reading as
//! well: what the network or our own output delays is not held against an application. What follows from the clock is
//! decided where the queues are (`delivery::overflow`). `docs/decisions/0006-overflow.md` has the reasons.
//!
//! A Pong alone would be the wrong judge: it waits behind every answer that the peer still has to write.
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
/// Reading stops while this many messages wait to be delivered: bounds what tiny ones cost.
pub const MAX_BACKLOG_MESSAGES: usize = 1024;

/// Bytes on the wire that prove progress. A blocked writer goes on when a third of its send buffer is free, and Linux
/// gives it 4 MiB at most: each proof lets it write.
pub const PROOF_BYTES: u64 = 2 << 20;
/// A connection that was not held for so long starts anew: longer than any round trip.
pub const PROOF_FREE: Duration = Duration::from_secs(1);
/// A held connection asks for a Pong after so much holding without another proof, and then once in this time. Earlier
/// is worse: a Ping into a socket that the peer has closed is answered with a reset, which destroys what is unread.
const ASK_AFTER: Duration = Duration::from_secs(1);

/// A message of a shared capability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Which of the connection's channels.
    pub channel: ChannelIndex,
    /// The protocol's own code, from 0.
    pub code: u64,
    /// The payload, decompressed. A payload of up to 256 bytes may share an allocation of 2 KiB with others.
    pub payload: Bytes,
    /// How many bytes the frame took on the wire.
    pub wire_bytes: usize,
}

/// For how long a connection was held since the last proof of progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldTime {
    /// For the channel of the message.
    pub channel: Duration,
    /// For all channels.
    pub total: Duration,
}

/// What became of an offered message.
#[derive(Debug)]
pub enum Offer {
    /// It is accounted for: queued, or reported as lost.
    Taken,
    /// It does not fit now. Hold the connection and offer it again when there is room, or at `until`.
    Hold {
        /// The payload, handed back.
        payload: Bytes,
        /// When to offer it again if no room has come.
        until: Instant,
        /// Whether the time is charged.
        charged: bool,
    },
    /// It is accounted for, and the application wants to be rid of the peer.
    Disconnect(DisconnectReason),
}

/// Where the messages of a connection go.
pub trait Delivery {
    /// Takes a message, or says why not now.
    fn offer(&mut self, now: Instant, message: Inbound, held: HeldTime) -> Offer;
    /// Takes a message that was read before the connection ended. Nothing can be held any more.
    fn offer_last(&mut self, now: Instant, message: Inbound);
}

/// A connection that is held, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The channel whose message waits.
    pub channel: ChannelIndex,
    /// Since when the connection has not been read.
    pub since: Instant,
    /// Messages that were read and wait.
    pub messages: usize,
    /// The bytes of their payloads.
    pub bytes: usize,
}

/// A message waits for room in its queue.
#[derive(Debug)]
struct Holding {
    channel: ChannelIndex,
    since: Instant,
    until: Instant,
    charged: bool,
    /// Up to when the clock has been charged.
    counted: Instant,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Intake {
    waiting: VecDeque<Inbound>,
    /// Bytes of payload in `waiting`.
    bytes: usize,
    holding: Option<Holding>,
    parked: bool,
    paused_until: Option<Instant>,
    starved: bool,
    /// Since when reading has been stopped by anything but `starved`.
    stopped: Option<Instant>,
    clock: Clock,
}

impl Intake {
    /// The intake of a connection that opens `now`.
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

    /// A frame of any kind was read: so many bytes of the peer came through.
    pub fn frame_read(&mut self, wire_bytes: usize) {
        self.clock.read(wire_bytes);
    }

    /// A Ping was written; with it, this many are unanswered.
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

    /// Offers what waits, oldest first, until a message has to wait. Returns the reason if the application wants to be
    /// rid of the peer.
    ///
    /// All channels wait behind the first message that does not fit: the order of a channel must not change, and the
    /// socket is held as a whole.
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
                    self.holding = Some(Holding { channel, since, until, charged, counted: now });
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

    /// The connection is over: what was read goes to its queues as far as they take it, and the rest is reported as
    /// lost.
    pub fn deliver_last(&mut self, now: Instant, delivery: &mut impl Delivery) {
        self.holding = None;
        self.bytes = 0;
        self.waiting.drain(..).for_each(|message| delivery.offer_last(now, message));
    }

    /// The node is a peer over another connection: from the first message on, reading stops.
    pub fn park(&mut self) {
        self.parked = true;
    }

    /// The connection becomes its node's session.
    pub fn promote(&mut self) {
        self.parked = false;
    }

    /// Stops reading until then, because a cap is exceeded.
    pub fn pause(&mut self, now: Instant, until: Instant) {
        self.charge(now);
        self.paused_until = Some(until);
    }

    /// Whether the receive buffer needs more than the process has to give. Deadlines of the peer run on meanwhile:
    /// otherwise connections that wait for each other's memory would wait for ever.
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

    /// Whether the next frame may be read, as far as the peer's deadlines are concerned: everything but the receive
    /// budget allows it.
    #[must_use]
    pub fn is_reading(&self) -> bool {
        let full = self.bytes >= MAX_BACKLOG || self.waiting.len() >= MAX_BACKLOG_MESSAGES;
        let parked = self.parked && !self.waiting.is_empty();
        self.holding.is_none() && self.paused_until.is_none() && !full && !parked
    }

    /// Whether the socket may be read.
    #[must_use]
    pub fn wants_bytes(&self) -> bool {
        self.is_reading() && !self.starved
    }

    /// Call after anything that may stop or start reading. Returns how long reading was stopped when it starts again:
    /// deadlines of the peer move by that.
    pub fn settle(&mut self, now: Instant) -> Option<Duration> {
        if self.is_reading() {
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

    /// What is held, if the connection is.
    #[must_use]
    pub fn hold(&self) -> Option<Hold> {
        let Holding { channel, since, .. } = *self.holding.as_ref()?;
        Some(Hold { channel, since, messages: self.waiting.len(), bytes: self.bytes })
    }

    /// Brings the clock up to `now`.
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

/// For how long a connection was held, since the last proof that its peer's bytes come through.
#[derive(Debug)]
struct Clock {
    /// Wire bytes read, and how many there were at the last proof.
    read: u64,
    mark: u64,
    /// Proofs so far: what a channel spent before the last one is forgotten.
    proofs: u64,
    total: Duration,
    /// By channel: the time, and the number of proofs when it was counted.
    spent: Vec<(Duration, u64)>,
    /// When the last hold ended.
    ended: Instant,
    /// A Ping was written since the last proof: so many Pongs are still to come, the last of which answers it.
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

    /// Nothing is held at present.
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
            // As many as the connection has channels: a Hello holds a few hundred at most.
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
