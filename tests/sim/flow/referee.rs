//! The clock of held time, implemented a second time from the text of the rule. It is compared with the intake's clock
//! at every offer.
//!
//! It also keeps the trace from which "a reader that makes progress loses nothing" is checked without a clock.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use devp2pd::p2p::{ChannelIndex, HeldTime};

const PROOF: u64 = 2 << 20;
const FREE: Duration = Duration::from_secs(1);

/// A period of holding: the charged time before it and after it, and the bytes that had been read.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    from: Duration,
    to: Duration,
    read: u64,
}

#[derive(Debug)]
pub(crate) struct Referee {
    counted: Instant,
    /// The channel for which the connection is held, and whether the time is charged.
    holding: Option<(u16, bool)>,
    /// Whether a cap, the receive budget or parking stops reading as well.
    pub(crate) stopped_otherwise: bool,
    spent: BTreeMap<u16, Duration>,
    total: Duration,
    read: u64,
    mark: u64,
    proofs: u64,
    ended: Instant,
    /// The Pings without a Pong: for each, the number of proofs when it was written.
    pings: VecDeque<u64>,
    since: Instant,
    /// All time that was charged so far.
    pub(crate) charged: Duration,
    pub(crate) longest_hold: Duration,
    pub(crate) holds: u64,
    stretches: Vec<Stretch>,
}

impl Referee {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            counted: now,
            holding: None,
            stopped_otherwise: false,
            spent: BTreeMap::new(),
            total: Duration::ZERO,
            read: 0,
            mark: 0,
            proofs: 0,
            ended: now,
            pings: VecDeque::new(),
            since: now,
            charged: Duration::ZERO,
            longest_hold: Duration::ZERO,
            holds: 0,
            stretches: Vec::new(),
        }
    }

    /// Counts the time up to `now`. It must be called before any state changes.
    pub(crate) fn count(&mut self, now: Instant) {
        let time = now - self.counted;
        self.counted = now;
        if let Some((channel, true)) = self.holding
            && !self.stopped_otherwise
            && !time.is_zero()
        {
            *self.spent.entry(channel).or_default() += time;
            self.total += time;
            self.charged += time;
            match self.stretches.last_mut() {
                Some(last) if last.read == self.read => last.to = self.charged,
                _ => self.stretches.push(Stretch {
                    from: self.charged - time,
                    to: self.charged,
                    read: self.read,
                }),
            }
        }
    }

    fn proof(&mut self) {
        self.proofs += 1;
        self.mark = self.read;
        self.total = Duration::ZERO;
        self.spent.clear();
    }

    pub(crate) fn frame_read(&mut self, wire: u64) {
        self.read += wire;
        if self.read - self.mark >= PROOF {
            self.proof();
        }
    }

    pub(crate) fn ping_written(&mut self) {
        self.pings.push_back(self.proofs);
    }

    pub(crate) fn pong_read(&mut self) {
        if self.pings.pop_front() == Some(self.proofs) {
            self.proof();
        }
    }

    /// Called before messages are offered.
    pub(crate) fn delivering(&mut self, now: Instant) {
        self.count(now);
        if self.holding.is_none() && !self.total.is_zero() && now - self.ended >= FREE {
            self.proof();
        }
    }

    /// Checks the intake's clock at an offer.
    pub(crate) fn offered(&self, channel: ChannelIndex, held: HeldTime) {
        let spent = self.spent.get(&channel.0).copied().unwrap_or_default();
        assert_eq!(held, HeldTime { channel: spent, total: self.total }, "the clock of holding");
    }

    pub(crate) fn held(&mut self, now: Instant, channel: ChannelIndex, charged: bool) {
        if self.holding.is_none() {
            self.since = now;
            self.holds += 1;
        }
        self.holding = Some((channel.0, charged));
    }

    /// Called after messages were offered. `held`: one of them waits.
    pub(crate) fn delivered(&mut self, now: Instant, held: bool) {
        if !held && self.holding.take().is_some() {
            self.ended = now;
            self.longest_hold = self.longest_hold.max(now - self.since);
        }
    }

    /// Whether 2 MiB were read in every part of the charged time that is at least `limit` long. If so, nothing may be
    /// lost.
    pub(crate) fn kept_pace(&self, limit: Duration) -> bool {
        let mut from = 0;
        for (at, last) in self.stretches.iter().enumerate() {
            // The shortest part that ends here and is at least `limit` long.
            while from < at && last.to - self.stretches[from + 1].from >= limit {
                from += 1;
            }
            let first = self.stretches[from];
            if last.to - first.from >= limit && last.read - first.read < PROOF {
                return false;
            }
        }
        true
    }
}
