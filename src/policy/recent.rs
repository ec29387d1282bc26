//! The results of candidates, dials and connections in the last minutes, by reason: the answer to "why have I no peers"
//! in numbers. There are ten buckets of a minute each; the oldest is cleared when its turn comes again.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{cause::Cause, refusal::Refusal};

/// One bucket.
const BUCKET: Duration = Duration::from_secs(60);
/// How many there are. The sum therefore covers between nine and ten minutes.
const BUCKETS: usize = 10;

/// Counts over some time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Candidates that sources offered.
    pub seen: u64,
    /// Candidates and dials that were not pursued, by reason.
    pub not_dialed: BTreeMap<Refusal, u64>,
    /// Candidates that were not dialed because no fork schedule contains the checksum that they announce, by checksum;
    /// at most [`MAX_HASHES`] of them.
    pub unknown_forks: BTreeMap<[u8; 4], u64>,
    /// Dials begun.
    pub dialed: u64,
    /// Dials that failed, by cause.
    pub failed: BTreeMap<Cause, u64>,
    /// Dials that became peers.
    pub connected: u64,
    /// Connections that were not let in, by reason.
    pub not_let_in: BTreeMap<Refusal, u64>,
    /// Connections of others that became peers.
    pub let_in: u64,
}

/// Checksums that are counted apart. A chain's nodes announce one. Checksums that strangers invent must not fill
/// memory.
const MAX_HASHES: usize = 64;

impl Counts {
    /// Counts candidates that announce a checksum that no schedule contains.
    pub(super) fn unknown_fork(&mut self, hash: [u8; 4], count: u64) {
        if self.unknown_forks.len() < MAX_HASHES || self.unknown_forks.contains_key(&hash) {
            *self.unknown_forks.entry(hash).or_default() += count;
        }
    }

    fn add(&mut self, other: &Self) {
        self.seen += other.seen;
        self.dialed += other.dialed;
        self.connected += other.connected;
        self.let_in += other.let_in;
        other.unknown_forks.iter().for_each(|(hash, n)| self.unknown_fork(*hash, *n));
        other.not_dialed.iter().for_each(|(reason, n)| *self.not_dialed.entry(*reason).or_default() += n);
        other.failed.iter().for_each(|(cause, n)| *self.failed.entry(*cause).or_default() += n);
        other.not_let_in.iter().for_each(|(reason, n)| *self.not_let_in.entry(*reason).or_default() += n);
    }
}

/// The counts of the last minutes and of all time.
#[derive(Clone, Debug)]
pub struct Recent {
    buckets: [Counts; BUCKETS],
    current: usize,
    began: Instant,
    /// Since the start.
    pub total: Counts,
}

impl Recent {
    /// Empty counts from now on.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { buckets: Default::default(), current: 0, began: now, total: Counts::default() }
    }

    /// Counts one thing.
    pub fn count(&mut self, now: Instant, note: impl Fn(&mut Counts)) {
        self.turn(now);
        if let Some(bucket) = self.buckets.get_mut(self.current) {
            note(bucket);
        }
        note(&mut self.total);
    }

    /// The sum over the last ten minutes.
    #[must_use]
    pub fn sum(&mut self, now: Instant) -> Counts {
        self.turn(now);
        let mut sum = Counts::default();
        self.buckets.iter().for_each(|bucket| sum.add(bucket));
        sum
    }

    fn turn(&mut self, now: Instant) {
        // After a pause longer than all buckets, clearing each of them once is enough.
        for _ in 0..BUCKETS {
            if now.saturating_duration_since(self.began) < BUCKET {
                return;
            }
            self.began += BUCKET;
            self.current = (self.current + 1) % BUCKETS;
            if let Some(bucket) = self.buckets.get_mut(self.current) {
                *bucket = Counts::default();
            }
        }
        self.began = now;
    }
}

#[cfg(test)]
mod tests {
    use super::{super::test_now, *};

    #[test]
    fn minutes_fall_out_one_by_one() {
        let start = test_now().mono;
        let at = |secs| start + Duration::from_secs(secs);
        let mut recent = Recent::new(start);
        recent.count(at(0), |counts| counts.seen += 1);
        recent.count(at(61), |counts| *counts.failed.entry(Cause::Silent).or_default() += 2);
        assert_eq!((recent.sum(at(599)).seen, recent.sum(at(599)).failed.get(&Cause::Silent)), (1, Some(&2)));
        assert_eq!((recent.sum(at(600)).seen, recent.sum(at(600)).failed.get(&Cause::Silent)), (0, Some(&2)));
        assert_eq!(recent.sum(at(660)), Counts::default());
        recent.count(at(100_000), |counts| counts.dialed += 1);
        assert_eq!((recent.sum(at(100_001)).dialed, recent.total.seen), (1, 1));
        assert_eq!(recent.sum(at(100_600)).dialed, 0);
    }
}
