//! Caps on the bytes per second of connections: a cap for each peer, and one for all peers together.
//!
//! A peer that is over its cap is not read, or gets no more messages, until its bucket is positive again. Pings and all
//! other messages of the base protocol go on. Bytes are counted after they have passed, because a message cannot be
//! cut. So the rate holds over time for messages of any size. Caps may change while connections run.
//!
//! Without caps the cost for a connection is two loads of memory that no other thread writes.
//!
//! Left out: the arithmetic (`policy::token_bucket`), and what a connection does while it waits (`p2p::intake` for
//! reading, `p2p::connection` for writing).

use std::{
    num::NonZeroU64,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    p2p::{DisconnectReason, Next, Outbound, Source},
    policy::token_bucket::TokenBucket,
};

/// The longest time for which a cap stops a connection at once. Other nodes give up a write after 20 s (geth), so some
/// bytes of a capped peer must pass before that.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// The fewest bytes that one read of a capped connection may take. Otherwise a read takes the bytes of an eighth of a
/// second.
const MIN_READ: usize = 1024;

/// The direction in which bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a peer.
    In,
    /// To a peer.
    Out,
}

/// The caps in bytes per second; `None` is no cap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// From one peer.
    pub peer_in: Option<NonZeroU64>,
    /// To one peer.
    pub peer_out: Option<NonZeroU64>,
    /// From all peers together.
    pub total_in: Option<NonZeroU64>,
    /// To all peers together.
    pub total_out: Option<NonZeroU64>,
}

/// The caps, and the buckets of all peers together. All connections share this.
#[derive(Debug, Default)]
pub struct Bandwidth {
    ways: [Way; 2],
}

#[derive(Debug, Default)]
struct Way {
    /// The cap of one peer in bytes per second; 0 is no cap.
    peer: AtomicU64,
    /// The cap of all peers in bytes per second; 0 is no cap, and then the bucket is not used.
    total: AtomicU64,
    bucket: Mutex<Option<TokenBucket>>,
}

impl Way {
    fn bucket(&self) -> MutexGuard<'_, Option<TokenBucket>> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bandwidth {
    /// Returns the caps `rates`, with full buckets.
    #[must_use]
    pub fn new(now: Instant, rates: Rates) -> Self {
        let bandwidth = Self::default();
        bandwidth.set(now, rates);
        bandwidth
    }

    /// Changes the caps.
    pub fn set(&self, now: Instant, rates: Rates) {
        let [way_in, way_out] = &self.ways;
        for (way, peer, total) in
            [(way_in, rates.peer_in, rates.total_in), (way_out, rates.peer_out, rates.total_out)]
        {
            let number = |rate: Option<NonZeroU64>| rate.map_or(0, NonZeroU64::get);
            let mut bucket = way.bucket();
            match (&mut *bucket, total) {
                // The bucket keeps its debt, so that changing a cap does not clear it.
                (Some(bucket), Some(rate)) => bucket.set(now, rate.get(), rate.get()),
                (bucket, rate) => *bucket = rate.map(|rate| TokenBucket::new(now, rate.get(), rate.get())),
            }
            drop(bucket);
            way.total.store(number(total), Ordering::Relaxed);
            way.peer.store(number(peer), Ordering::Relaxed);
        }
    }

    /// Returns the caps.
    #[must_use]
    pub fn rates(&self) -> Rates {
        let [way_in, way_out] = &self.ways;
        let rate = |rate: &AtomicU64| NonZeroU64::new(rate.load(Ordering::Relaxed));
        Rates {
            peer_in: rate(&way_in.peer),
            peer_out: rate(&way_out.peer),
            total_in: rate(&way_in.total),
            total_out: rate(&way_out.total),
        }
    }

    fn way(&self, direction: Direction) -> &Way {
        let [way_in, way_out] = &self.ways;
        match direction {
            Direction::In => way_in,
            Direction::Out => way_out,
        }
    }
}

/// One connection's view of the caps, and its own buckets.
pub(super) struct Pacer<'a> {
    shared: &'a Bandwidth,
    /// For each direction, the cap for which the bucket was made, and the bucket.
    own: [Option<(u64, TokenBucket)>; 2],
}

impl<'a> Pacer<'a> {
    pub(super) fn new(shared: &'a Bandwidth) -> Self {
        Self { shared, own: [None, None] }
    }

    fn own(&mut self, now: Instant, direction: Direction) -> Option<&mut TokenBucket> {
        let rate = self.shared.way(direction).peer.load(Ordering::Relaxed);
        let [own_in, own_out] = &mut self.own;
        let own = if direction == Direction::In { own_in } else { own_out };
        if rate == 0 {
            *own = None;
            return None;
        }
        let (made_for, bucket) = own.get_or_insert_with(|| (rate, TokenBucket::new(now, rate, rate)));
        if *made_for != rate {
            bucket.set(now, rate, rate);
            *made_for = rate;
        }
        Some(bucket)
    }

    /// Returns the time from which more bytes may pass, at most `MAX_PAUSE` ahead; `None` if they may pass now.
    pub(super) fn held_until(&mut self, now: Instant, direction: Direction) -> Option<Instant> {
        let own = self.own(now, direction).and_then(|bucket| bucket.free_at(now));
        let way = self.shared.way(direction);
        let total = match way.total.load(Ordering::Relaxed) {
            0 => None,
            _ => way.bucket().as_mut().and_then(|bucket| bucket.free_at(now)),
        };
        own.max(total).map(|free| free.min(now + MAX_PAUSE))
    }

    /// Counts bytes that have passed.
    pub(super) fn spend(&mut self, now: Instant, direction: Direction, bytes: usize) {
        if let Some(bucket) = self.own(now, direction) {
            bucket.spend(now, bytes as u64);
        }
        let way = self.shared.way(direction);
        if way.total.load(Ordering::Relaxed) > 0
            && let Some(bucket) = way.bucket().as_mut()
        {
            bucket.spend(now, bytes as u64);
        }
    }

    /// Counts bytes that were read from the peer. If a cap is exceeded, returns the time from which more may be read.
    pub(super) fn read(&mut self, now: Instant, bytes: usize) -> Option<Instant> {
        self.spend(now, Direction::In, bytes);
        self.held_until(now, Direction::In)
    }

    /// Returns a source of the messages of `queue` that keeps the caps.
    pub(super) fn pace<'q>(&'q mut self, queue: &'q Outbound) -> Paced<'q, 'a> {
        Paced { queue, pacer: self }
    }

    /// Returns the most bytes that one read may take.
    pub(super) fn read_limit(&self) -> usize {
        let way = self.shared.way(Direction::In);
        let rate = [&way.peer, &way.total].map(|rate| rate.load(Ordering::Relaxed));
        let lowest = rate.into_iter().filter(|rate| *rate > 0).min();
        lowest.map_or(usize::MAX, |rate| usize::try_from(rate / 8).unwrap_or(usize::MAX).max(MIN_READ))
    }
}

/// The messages to one peer, no faster than the caps allow.
pub(super) struct Paced<'q, 'a> {
    queue: &'q Outbound,
    pacer: &'q mut Pacer<'a>,
}

impl Source for Paced<'_, '_> {
    fn next(&mut self, now: Instant) -> Next {
        // Before a disconnect of ours, the accepted messages are sent without a cap, so that the disconnect is not
        // delayed.
        match self.pacer.held_until(now, Direction::Out) {
            Some(until) if self.leaving().is_none() => Next::NotBefore(until),
            _ => self.queue.next(now),
        }
    }

    fn appended(&mut self, now: Instant, bytes: usize) {
        self.pacer.spend(now, Direction::Out, bytes);
    }

    fn leaving(&self) -> Option<DisconnectReason> {
        self.queue.leaving()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        p2p::{ChannelIndex, ChannelLimits, Lane},
        rlpx::Compressor,
    };

    #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
    fn start() -> Instant {
        Instant::now()
    }

    fn rate(bytes: u64) -> Option<NonZeroU64> {
        NonZeroU64::new(bytes)
    }

    /// Passes as many bytes as `pacers` allow for `seconds`, and returns the bytes of each.
    fn run(pacers: &mut [Pacer<'_>], start: Instant, seconds: u64, direction: Direction) -> Vec<usize> {
        let mut passed = vec![0; pacers.len()];
        for tick in 0..seconds * 100 {
            let now = start + Duration::from_millis(tick * 10);
            for (pacer, passed) in pacers.iter_mut().zip(&mut passed) {
                if pacer.held_until(now, direction).is_none() {
                    pacer.spend(now, direction, 500);
                    *passed += 500;
                }
            }
        }
        passed
    }

    #[test]
    fn each_peer_has_its_cap_and_all_together_have_theirs() {
        let start = start();
        let shared = Bandwidth::new(start, Rates { peer_in: rate(10_000), ..Rates::default() });
        let mut pacers = [Pacer::new(&shared), Pacer::new(&shared)];
        for passed in run(&mut pacers, start, 10, Direction::In) {
            assert!((100_000..=111_000).contains(&passed), "{passed}");
        }
        assert_eq!(pacers[0].read_limit(), 1250);
        assert_eq!(run(&mut pacers, start, 1, Direction::Out), [50_000, 50_000], "the other way is free");
        let later = start + Duration::from_secs(100);
        shared.set(start, Rates { total_out: rate(10_000), ..Rates::default() });
        pacers[0].spend(start, Direction::Out, 20_000);
        shared.set(start, Rates { total_out: rate(20_000), ..Rates::default() });
        assert!(pacers[1].held_until(start, Direction::Out).is_some(), "the bucket keeps its debt");
        shared.set(later, Rates { total_in: rate(10_000), ..Rates::default() });
        let passed = run(&mut pacers, later, 10, Direction::In);
        assert!((100_000..=111_000).contains(&(passed[0] + passed[1])), "{passed:?}");
        shared.set(later, Rates::default());
        assert_eq!(pacers[0].held_until(later, Direction::In), None);
        assert_eq!(pacers[0].read_limit(), usize::MAX);
        assert_eq!(shared.rates(), Rates::default());
    }

    #[test]
    fn no_pause_is_longer_than_others_wait() {
        let start = start();
        let shared = Bandwidth::new(start, Rates { peer_in: rate(1024), ..Rates::default() });
        let mut pacer = Pacer::new(&shared);
        pacer.spend(start, Direction::In, 16 << 20);
        assert_eq!(pacer.held_until(start, Direction::In), Some(start + MAX_PAUSE));
    }

    #[test]
    fn a_peer_over_its_cap_gets_nothing_until_it_is_to_be_left() {
        let start = start();
        let shared = Bandwidth::new(start, Rates { peer_out: rate(1000), ..Rates::default() });
        let mut pacer = Pacer::new(&shared);
        let queue = Outbound::alone();
        let limits = ChannelLimits { offset: 0x10, message_count: 1, max_message: 100 };
        queue.set_channels([limits], true);
        for _ in 0..3 {
            let message = Compressor::default().compress(b"hello").unwrap();
            queue.send(Lane::Stream, ChannelIndex(0), 0, message).unwrap();
        }
        let mut paced = pacer.pace(&queue);
        assert!(matches!(paced.next(start), Next::Message(_)));
        paced.appended(start, 2000);
        let Next::NotBefore(until) = paced.next(start) else { panic!("the cap is exceeded") };
        assert!(until > start);
        assert!(matches!(paced.next(until), Next::Message(_)));
        paced.appended(until, 100_000);
        queue.disconnect(DisconnectReason::Quitting);
        assert!(matches!(paced.next(until), Next::Message(_)), "accepted messages are sent");
        assert!(matches!(paced.next(until), Next::Leave(DisconnectReason::Quitting)));
    }
}
