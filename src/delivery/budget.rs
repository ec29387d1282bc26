//! One bound on the memory that all inboxes of the process hold.
//!
//! An inbox never reads another one: a lock across registrations would let one application wait for another. So every
//! inbox computes for itself which queues are too large. When three quarters of the budget are used, a channel takes
//! messages only while it holds less than its share of the last quarter. Large queues are refused first, small ones go
//! on. The bound itself is exceeded by no more than the messages that are being queued at that time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The default bound of all inbound queues: 512 MiB.
pub const INBOUND_BUDGET: u64 = 512 << 20;

/// Inboxes take and return budget in steps of this many bytes, so that the shared counter is not changed for every
/// message.
const STEP: u64 = 128 << 10;

/// The bound, and the part of it that is taken.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: AtomicU64,
    channels: AtomicU64,
}

impl Budget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0), channels: AtomicU64::new(0) })
    }

    /// How many bytes are taken, rounded up to steps.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether all of it is taken: connections read nothing more until some of it comes back.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.used() >= self.limit
    }

    /// The bound on one channel now, in bytes: it takes one more message while it holds less.
    fn bound(&self) -> u64 {
        let used = self.used();
        let last_quarter = self.limit / 4;
        if used < self.limit.saturating_sub(last_quarter) {
            u64::MAX
        } else if used < self.limit {
            last_quarter / self.channels.load(Ordering::Relaxed).max(1)
        } else {
            0
        }
    }
}

/// One owner's part of the budget, returned when it is dropped.
///
/// An owner is an inbox, or a connection for the messages that it holds.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    taken: u64,
    channels: u64,
}

impl Share {
    /// A share that holds nothing yet.
    #[must_use]
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { budget, taken: 0, channels: 0 }
    }

    /// The bound on one channel now, in bytes.
    pub(super) fn bound(&self) -> u64 {
        self.budget.bound()
    }

    /// The owner holds this many bytes now.
    pub fn hold(&mut self, bytes: u64) {
        // An inbox that drains keeps up to two steps, because it is likely to fill again.
        if bytes > self.taken || self.taken.saturating_sub(bytes) > 2 * STEP {
            self.take(bytes.next_multiple_of(STEP));
        }
    }

    /// The owner holds nothing now, and keeps no step either: there are many connections, and most of them are idle.
    pub fn release(&mut self) {
        if self.taken > 0 {
            self.take(0);
        }
    }

    /// The owner has this many channels now.
    pub(super) fn set_channels(&mut self, channels: u64) {
        shift(&self.budget.channels, self.channels, channels);
        self.channels = channels;
    }

    fn take(&mut self, taken: u64) {
        shift(&self.budget.used, self.taken, taken);
        self.taken = taken;
    }
}

/// Changes a sum by the difference, in one atomic operation: between two operations other threads would read a wrong
/// sum.
fn shift(sum: &AtomicU64, before: u64, after: u64) {
    if let Some(more) = after.checked_sub(before) {
        sum.fetch_add(more, Ordering::Relaxed);
    } else {
        sum.fetch_sub(before.saturating_sub(after), Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.take(0);
        self.set_channels(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_memory_is_short_the_largest_are_refused_first() {
        let budget = Budget::new(8 << 20);
        let mut share = Share::new(Arc::clone(&budget));
        share.set_channels(4);
        share.hold(5 << 20);
        assert_eq!(share.bound(), u64::MAX, "nothing is short yet");
        share.hold(7 << 20);
        assert_eq!(share.bound(), 512 << 10, "a quarter of the last 2 MiB");
        share.hold(8 << 20);
        assert_eq!(share.bound(), 0, "the bound holds for all");
        drop(share);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn an_owner_that_holds_nothing_can_give_all_of_it_back() {
        let budget = Budget::new(4 * STEP);
        let mut shares: Vec<_> = (0..100).map(|_| Share::new(Arc::clone(&budget))).collect();
        for share in &mut shares {
            share.hold(1);
            share.hold(0);
            share.release();
        }
        assert_eq!(budget.used(), 0, "a hundred idle connections hold nothing");
        shares[0].hold(4 * STEP);
        assert!(budget.is_full());
        shares[0].release();
        assert!(!budget.is_full());
    }

    #[test]
    fn the_shared_counter_moves_in_steps_and_comes_back_to_zero() {
        let budget = Budget::new(INBOUND_BUDGET);
        let mut share = Share::new(Arc::clone(&budget));
        for bytes in [1, STEP, STEP + 1, 10 * STEP, STEP * 17 / 2] {
            share.hold(bytes);
            assert!(budget.used() >= bytes);
            assert!(budget.used() <= bytes + 2 * STEP);
        }
        drop(share);
        assert_eq!(budget.used(), 0);
    }
}
