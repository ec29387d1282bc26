//! A byte rate with a bounded burst, for bandwidth caps per peer and in total.
//!
//! A withdrawal may exceed the balance: a message cannot be sent in part, so the bucket goes into debt and pays it off
//! before anything else passes. Over time the rate holds exactly, for any size of messages. Pings and pongs do not go
//! through a bucket, so a capped peer is slow but alive.

use std::time::{Duration, Instant};

/// A bucket of bytes that fills at a rate. Units are nanobytes inside: rates of a byte a second lose nothing to
/// rounding, however often the bucket is looked at.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    /// Bytes per second.
    rate: u64,
    /// Bytes.
    burst: u64,
    /// Bytes times 10⁹; below zero is debt.
    level: i128,
    at: Instant,
}

const NANO: i128 = 1_000_000_000;

impl TokenBucket {
    /// A full bucket of `burst` bytes that fills at `rate` bytes per second. Both are at least 1.
    #[must_use]
    pub fn new(now: Instant, rate: u64, burst: u64) -> Self {
        let burst = burst.max(1);
        Self { rate: rate.max(1), burst, level: i128::from(burst) * NANO, at: now }
    }

    /// Changes rate and burst. Savings beyond the new burst are lost; a debt stays.
    pub fn set(&mut self, now: Instant, rate: u64, burst: u64) {
        self.fill(now);
        (self.rate, self.burst) = (rate.max(1), burst.max(1));
        self.level = self.level.min(i128::from(self.burst) * NANO);
    }

    /// When the bucket is out of debt, if it is in debt now.
    #[must_use]
    pub fn free_at(&mut self, now: Instant) -> Option<Instant> {
        self.fill(now);
        (self.level <= 0).then(|| now + self.time_to_pay())
    }

    /// Takes `bytes` that have passed already, in debt or not.
    pub fn spend(&mut self, now: Instant, bytes: u64) {
        self.fill(now);
        self.level = self.level.saturating_sub(i128::from(bytes) * NANO);
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        // A u64 rate times a u128 of nanoseconds: saturate rather than reason about centuries.
        let gained = i128::try_from(elapsed.as_nanos()).unwrap_or(i128::MAX).saturating_mul(self.rate.into());
        self.level = self.level.saturating_add(gained).min(i128::from(self.burst) * NANO);
    }

    /// Until the level is above zero: one nanobyte more than the debt, rounded up.
    fn time_to_pay(&self) -> Duration {
        let nanos = (1 - self.level) / i128::from(self.rate) + 1;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::test_now, *};

    /// Takes `bytes` as a sender does: unless the bucket is in debt, until when it then is.
    fn take(bucket: &mut TokenBucket, now: Instant, bytes: u64) -> Result<(), Instant> {
        match bucket.free_at(now) {
            Some(free) => Err(free),
            None => {
                bucket.spend(now, bytes);
                Ok(())
            }
        }
    }

    /// Bytes that may be taken now without debt.
    fn available(bucket: &mut TokenBucket, now: Instant) -> i128 {
        bucket.fill(now);
        bucket.level / NANO
    }

    #[test]
    fn bursts_pass_and_debts_are_paid() {
        let start = test_now().mono;
        let mut bucket = TokenBucket::new(start, 1000, 500);
        assert_eq!(take(&mut bucket, start, 400), Ok(()));
        assert_eq!(available(&mut bucket, start), 100);
        // A message larger than the burst passes, and two seconds and a bit are owed.
        assert_eq!(take(&mut bucket, start, 2100), Ok(()));
        let free = take(&mut bucket, start, 1).unwrap_err();
        assert!((1999..=2001).contains(&(free - start).as_millis()), "{:?}", free - start);
        assert!(take(&mut bucket, free - Duration::from_millis(1), 1).is_err());
        assert_eq!(take(&mut bucket, free, 1), Ok(()));
        assert_eq!(available(&mut bucket, start + Duration::from_secs(3600)), 500);
        bucket.set(start + Duration::from_secs(3600), 10, 20);
        assert_eq!(available(&mut bucket, start + Duration::from_secs(9999)), 20);
    }

    proptest! {
        /// Whatever is asked for and when: over the whole time no more passes than the burst, the rate and one message.
        #[test]
        fn the_rate_holds(rate in 1_u64..1_000_000, burst in 1_u64..100_000, steps in prop::collection::vec((0_u64..2_000_000_000, 1_u64..50_000), 1..200)) {
            let start = test_now().mono;
            let (mut now, mut passed, mut largest) = (start, 0, 0);
            let mut bucket = TokenBucket::new(start, rate, burst);
            for (nanos, bytes) in steps {
                now += Duration::from_nanos(nanos);
                match take(&mut bucket, now, bytes) {
                    Ok(()) => passed += bytes,
                    Err(free) => {
                        prop_assert!(free > now);
                        prop_assert!(take(&mut bucket.clone(), free, bytes).is_ok());
                    }
                }
                largest = largest.max(bytes);
                let allowed = u128::from(burst) + u128::from(rate) * (now - start).as_nanos() / 1_000_000_000;
                prop_assert!(u128::from(passed) <= allowed + u128::from(largest) + 1);
            }
        }
    }
}
