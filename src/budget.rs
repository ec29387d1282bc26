//! Budgets: the bounds, in bytes, on the memory that peers and applications make the process hold.
//!
//! Each kind of memory is a [`Resource`] with one [`Budget`] over the whole process, and every owner of such memory
//! has a [`Share`] of it. One rule applies to all of them:
//!
//! - Up to three quarters of the limit every holder may grow.
//! - In the last quarter a holder may grow only while it holds less than its equal share of that quarter. So large
//!   holders are refused first, and small ones go on.
//! - The limit is never exceeded.
//!
//! A holder is what the rule is fair to: a channel, a session, a connection. An owner may have several holders, as the
//! inbox of a registration has channels. No owner reads another one, because a lock across owners would let one of them
//! wait for another.
//!
//! [`Budgets`] makes the budgets of a process of a given size. `docs/security.md` has a row for each of them, and
//! `tests/docs.rs` requires that row.
//!
//! Left out: what happens to memory that is refused. Each owner has a policy of its own (drop, hold, refuse, wait).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The memory that the largest budgets are made for, in bytes: 1 GiB. More memory makes no budget larger.
pub const MAX_MEMORY: u64 = 1 << 30;

/// The least memory that the process can be told to live in, in bytes: 96 MiB.
pub const MIN_MEMORY: u64 = 96 << 20;

/// The memory that no budget counts, in bytes: 24 MiB. The process takes 14 MiB when it starts. The rest is for tables
/// of nodes, idle peers (13 KiB each) and open calls.
const BASE: u64 = 24 << 20;

/// The least limit of a budget, in bytes: the largest message fits, 16 MiB and its envelope in a request.
const MIN_LIMIT: u64 = 18 << 20;

/// Owners that change with every message take and return memory in steps of this many bytes, so that the counter that
/// all of them share is not changed for every message.
const STEP: u64 = 128 << 10;

/// Returns the memory that the process uses if the operator names none, and the system allows it this many bytes: three
/// quarters, because the kernel also counts the buffers of sockets and files.
#[must_use]
pub fn default_memory(allowed: Option<u64>) -> u64 {
    allowed.map_or(MAX_MEMORY, |allowed| (allowed / 4).saturating_mul(3)).clamp(MIN_MEMORY, MAX_MEMORY)
}

/// A kind of memory that has a bound over the whole process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// Messages from peers that wait for applications, and messages that connections have read and not delivered.
    Delivery,
    /// Messages from applications that wait for peers.
    Outbound,
    /// Received bytes of messages that are not complete, beyond a first chunk of each connection.
    Receive,
    /// Requests of applications that are not complete.
    Requests,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Delivery, Self::Outbound, Self::Receive, Self::Requests];

    /// Its name in the API, in metrics and in the documentation.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Delivery => "delivery",
            Self::Outbound => "outbound",
            Self::Receive => "receive",
            Self::Requests => "requests",
        }
    }

    /// Its limit in a process that may use this much memory, both in bytes. All limits and [`BASE`] add up to no more
    /// than the memory.
    #[must_use]
    pub fn limit(self, memory: u64) -> u64 {
        let all = memory.clamp(MIN_MEMORY, MAX_MEMORY).saturating_sub(BASE);
        let fifth = (all / 5).max(MIN_LIMIT);
        match self {
            // The messages of all peers of an application that reads late are here, so this is the largest.
            Self::Delivery => all.saturating_sub(3 * fifth),
            Self::Outbound | Self::Receive | Self::Requests => fifth,
        }
    }
}

/// The limit of one resource, and the part of it that is taken.
#[derive(Debug)]
pub struct Budget {
    resource: Resource,
    limit: u64,
    used: AtomicU64,
    holders: AtomicU64,
}

impl Budget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(resource: Resource, limit: u64) -> Arc<Self> {
        Arc::new(Self { resource, limit, used: AtomicU64::new(0), holders: AtomicU64::new(0) })
    }

    /// The budget of a process that may use [`MAX_MEMORY`].
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn whole(resource: Resource) -> Arc<Self> {
        Self::new(resource, resource.limit(MAX_MEMORY))
    }

    /// What it bounds.
    #[must_use]
    pub fn resource(&self) -> Resource {
        self.resource
    }

    /// The limit in bytes.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// How many bytes are taken.
    #[must_use]
    #[inline]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether all of it is taken.
    #[must_use]
    #[inline]
    pub fn is_full(&self) -> bool {
        self.used() >= self.limit
    }

    /// A holder may grow while it holds fewer bytes than this.
    #[inline]
    fn allowance(&self, used: u64) -> u64 {
        let last_quarter = self.limit / 4;
        if used < self.limit.saturating_sub(last_quarter) {
            u64::MAX
        } else if used < self.limit {
            last_quarter / self.holders.load(Ordering::Relaxed).max(1)
        } else {
            0
        }
    }

    /// Takes `wanted` bytes, or at least `needed` of them, for a holder that holds `held` bytes. Returns how many bytes
    /// it took; `None` if the rule forbids it.
    fn take(&self, needed: u64, wanted: u64, held: u64) -> Option<u64> {
        let mut taken = 0;
        let grow = |used: u64| {
            let free = self.limit.checked_sub(used).filter(|free| needed <= *free)?;
            taken = wanted.min(free);
            (held < self.allowance(used)).then(|| used.saturating_add(taken))
        };
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow).ok()?;
        Some(taken)
    }
}

/// One owner's part of a budget. It is returned when the share is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    taken: u64,
    step: u64,
    /// Returned only above this many bytes: an owner that drains is likely to fill again.
    slack: u64,
    holders: u64,
}

impl Share {
    /// A share that holds nothing yet, takes exactly what it holds, and counts as no holder.
    #[must_use]
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { budget, taken: 0, step: 1, slack: 0, holders: 0 }
    }

    /// The same for an owner that changes with every message: it takes and returns memory in steps of 128 KiB.
    #[must_use]
    pub fn in_steps(budget: Arc<Budget>) -> Self {
        Self { budget, taken: 0, step: STEP, slack: 2 * STEP, holders: 0 }
    }

    /// How many bytes it has taken.
    #[must_use]
    #[inline]
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// A holder of this owner may grow while it holds fewer bytes than this.
    #[must_use]
    #[inline]
    pub fn allowance(&self) -> u64 {
        self.budget.allowance(self.budget.used())
    }

    /// The owner wants to hold this many bytes in all. `held`: what its holder that grows holds before that. Returns
    /// whether the budget covers it; if not, nothing changes. Fewer bytes than before are always covered.
    #[inline]
    pub fn try_hold(&mut self, bytes: u64, held: u64) -> bool {
        let Some(needed) = bytes.checked_sub(self.taken).filter(|needed| *needed > 0) else {
            self.shrink(bytes);
            return true;
        };
        let wanted = bytes.next_multiple_of(self.step).saturating_sub(self.taken);
        let Some(taken) = self.budget.take(needed, wanted, held) else { return false };
        self.taken = self.taken.saturating_add(taken);
        true
    }

    /// The owner holds this many bytes now, whatever the budget says: they are here already. An owner that uses this
    /// asks [`Budget::is_full`] before it lets more bytes in.
    #[inline]
    pub fn hold(&mut self, bytes: u64) {
        if bytes > self.taken {
            self.set(bytes.next_multiple_of(self.step));
        } else {
            self.shrink(bytes);
        }
    }

    /// The owner holds nothing now, and keeps no step either: there are many connections, and most of them are idle.
    pub fn release(&mut self) {
        if self.taken > 0 {
            self.set(0);
        }
    }

    /// The owner has this many holders now.
    pub fn set_holders(&mut self, holders: u64) {
        if holders != self.holders {
            shift(&self.budget.holders, self.holders, holders);
            self.holders = holders;
        }
    }

    #[inline]
    fn shrink(&mut self, bytes: u64) {
        if self.taken.saturating_sub(bytes) > self.slack {
            self.set(bytes.next_multiple_of(self.step));
        }
    }

    fn set(&mut self, taken: u64) {
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
        self.release();
        self.set_holders(0);
    }
}

/// The budgets of one process.
#[derive(Clone, Debug)]
pub struct Budgets {
    /// [`Resource::Delivery`].
    pub delivery: Arc<Budget>,
    /// [`Resource::Outbound`].
    pub outbound: Arc<Budget>,
    /// [`Resource::Receive`].
    pub receive: Arc<Budget>,
    /// [`Resource::Requests`].
    pub requests: Arc<Budget>,
}

impl Budgets {
    /// The budgets of a process that may use this many bytes of memory: in proportion to it, but with room for the
    /// largest message each, no smaller than those of [`MIN_MEMORY`] and no larger than those of [`MAX_MEMORY`].
    #[must_use]
    pub fn new(memory: u64) -> Self {
        let budget = |resource: Resource| Budget::new(resource, resource.limit(memory));
        Self {
            delivery: budget(Resource::Delivery),
            outbound: budget(Resource::Outbound),
            receive: budget(Resource::Receive),
            requests: budget(Resource::Requests),
        }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Budget>> {
        Resource::ALL.into_iter().map(|resource| self.of(resource))
    }

    /// The budget of each resource.
    #[must_use]
    pub fn of(&self, resource: Resource) -> &Arc<Budget> {
        match resource {
            Resource::Delivery => &self.delivery,
            Resource::Outbound => &self.outbound,
            Resource::Receive => &self.receive,
            Resource::Requests => &self.requests,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn budget(limit: u64) -> Arc<Budget> {
        Budget::new(Resource::Delivery, limit)
    }

    #[test]
    fn when_memory_is_short_the_largest_are_refused_first() {
        let budget = budget(8 * MIB);
        let mut share = Share::in_steps(Arc::clone(&budget));
        share.set_holders(4);
        share.hold(5 * MIB);
        assert_eq!(share.allowance(), u64::MAX, "nothing is short yet");
        share.hold(7 * MIB);
        assert_eq!(share.allowance(), 512 << 10, "a quarter of the last 2 MiB");
        share.hold(8 * MIB);
        assert_eq!(share.allowance(), 0, "the limit holds for all");
        drop(share);
        assert_eq!((budget.used(), budget.holders.load(Ordering::Relaxed)), (0, 0));
    }

    /// The rule, as a table: the limit is 8 MiB, and there are 4 holders.
    #[test]
    fn a_holder_grows_by_one_rule() {
        // taken by others, held before, wanted in all → whether it may.
        let table = [
            (0, 0, 8 * MIB, true, "free use, up to the limit at once"),
            (0, 0, 8 * MIB + 1, false, "never beyond the limit"),
            (6 * MIB - 1, 0, 1, true, "the last byte of the first three quarters"),
            (5 * MIB, MIB, 2 * MIB, false, "in the last quarter, with more than a share of it"),
            (5 * MIB, MIB - 1, 2 * MIB, true, "not yet in the last quarter"),
            (6 * MIB, 0, 2 * MIB, true, "less than its share, and it fits"),
            (6 * MIB, MIB / 2 - 1, MIB, true, "the same"),
            (6 * MIB, MIB / 2, MIB, false, "its share is used up"),
            (8 * MIB, 0, 1, false, "full"),
            (8 * MIB, 0, 0, true, "nothing always fits"),
        ];
        for (others, held, wanted, may, why) in table {
            let budget = budget(8 * MIB);
            let (mut rest, mut share) = (Share::new(Arc::clone(&budget)), Share::new(Arc::clone(&budget)));
            rest.set_holders(3);
            share.set_holders(1);
            share.hold(held);
            rest.hold(others);
            assert_eq!(share.try_hold(wanted, held), may, "{why}");
            assert_eq!(budget.used(), others + if may { wanted } else { held }, "{why}");
            assert!(share.try_hold(0, held), "less is always allowed");
        }
    }

    #[test]
    fn steps_are_cut_at_the_limit_but_what_is_needed_is_taken() {
        let budget = budget(1000);
        let mut share = Share::in_steps(Arc::clone(&budget));
        assert!(share.try_hold(10, 0) && budget.used() == 1000, "a step would be more than there is");
        let mut other = Share::in_steps(Arc::clone(&budget));
        assert!(!other.try_hold(1, 0));
        assert!(share.try_hold(1000, 10), "it has them already");
        assert!(!share.try_hold(1001, 0));
    }

    #[test]
    fn an_owner_that_holds_nothing_can_give_all_of_it_back() {
        let budget = budget(4 * STEP);
        let mut shares: Vec<_> = (0..100).map(|_| Share::in_steps(Arc::clone(&budget))).collect();
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
        let budget = Budget::whole(Resource::Delivery);
        let mut share = Share::in_steps(Arc::clone(&budget));
        for bytes in [1, STEP, STEP + 1, 10 * STEP, STEP * 17 / 2] {
            share.hold(bytes);
            assert!(budget.used() >= bytes);
            assert!(budget.used() <= bytes + 2 * STEP);
        }
        drop(share);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn without_a_setting_a_quarter_of_what_is_allowed_is_left() {
        let table = [(None, 1024), (Some(64), 96), (Some(128), 96), (Some(512), 384), (Some(4096), 1024)];
        for (allowed, expected) in table {
            assert_eq!(default_memory(allowed.map(|mib: u64| mib * MIB)), expected * MIB, "{allowed:?}");
        }
    }

    /// Each limit in MiB, by the memory of the process.
    #[test]
    fn limits_are_in_proportion_to_the_memory() {
        // memory → delivery, outbound, receive, requests
        let table = [
            (0, [18, 18, 18, 18]),
            (96, [18, 18, 18, 18]),
            (114, [36, 18, 18, 18]),
            (128, [41, 20, 20, 20]),
            (524, [200, 100, 100, 100]),
            (1024, [400, 200, 200, 200]),
            (8192, [400, 200, 200, 200]),
        ];
        for (memory, expected) in table {
            let budgets = Budgets::new(memory * MIB);
            let limits = Resource::ALL.map(|resource| budgets.of(resource).limit() / MIB);
            assert_eq!(limits, expected, "{memory} MiB");
            let sum: u64 = Resource::ALL.iter().map(|resource| resource.limit(memory * MIB)).sum();
            assert!(sum + BASE <= (memory * MIB).max(MIN_MEMORY), "{memory} MiB");
        }
    }

    /// A message of 16 MiB with all that a request has beside it, beside a hundred other holders.
    #[test]
    fn one_message_of_the_largest_size_fits_each_budget() {
        const LARGEST: u64 = 17 * MIB;
        for memory in [MIN_MEMORY, 128 * MIB, MAX_MEMORY] {
            let budgets = Budgets::new(memory);
            for resource in Resource::ALL {
                let budget = budgets.of(resource);
                assert_eq!(budget.resource(), resource);
                let mut share = Share::new(Arc::clone(budget));
                share.set_holders(1);
                let mut others = Share::new(Arc::clone(budget));
                others.set_holders(100);
                assert!(share.try_hold(LARGEST, 0), "{resource:?}");
            }
        }
    }

    #[test]
    fn names_differ() {
        let names: std::collections::BTreeSet<_> = Resource::ALL.iter().map(|of| of.name()).collect();
        assert_eq!(names.len(), Resource::ALL.len());
    }
}
