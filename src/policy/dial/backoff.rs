//! How long to wait before a node is dialed again: it depends on whose fault the last end was.
//!
//! A full node is dialed again soon, one that speaks another protocol much later. A fault of ours does not count
//! against the node. Static and trusted peers are retried for as long as they are listed, so their waits stay short.
//! Dynamic candidates are plenty, so theirs grow to hours. Each wait doubles with the failures in a row, up to its cap.
//! It gets up to a quarter more at random, so that nodes which failed together are not dialed together again.

use std::time::{Duration, Instant};

use rand::{Rng, rngs::StdRng};

use super::super::{cause::Cause, expiring::ExpiringMap};
use crate::node::NodeId;

/// Nodes whose failures are remembered. A sidecar with 50 slots dials a few thousand nodes in an hour.
const MAX_REMEMBERED: usize = 8192;

/// A connection that stood so long makes up for the failures before it.
pub(super) const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

/// The first wait, unless it is the history window, and the longest, both in seconds.
struct Waits {
    first: Option<u64>,
    cap: u64,
}

const fn waits(first: u64, cap: u64) -> Waits {
    Waits { first: Some(first), cap }
}

/// From the history window on: a node accepted us, and its throttle lasts nearly as long.
const fn history(cap: u64) -> Waits {
    Waits { first: None, cap }
}

fn listed(cause: Cause) -> Waits {
    match cause {
        // Nobody noticed us: a peer that is being restarted is found again quickly.
        Cause::Unreachable | Cause::LinkLost | Cause::Quitting => waits(5, 120),
        Cause::LocalFault => waits(5, 30),
        Cause::NameUnknown => waits(10, 300),
        Cause::AddressRefused => waits(60, 600),
        Cause::NotFound => waits(60, 3600),
        Cause::TooManyPeers | Cause::LocalPolicy => history(120),
        Cause::AlreadyConnected | Cause::Operator => history(35),
        Cause::HungUp | Cause::Silent | Cause::Requested => history(300),
        Cause::UselessPeer => history(600),
        Cause::Garbled | Cause::WrongIdentity | Cause::Breach => waits(60, 600),
    }
}

fn dynamic(cause: Cause) -> Waits {
    match cause {
        Cause::LocalFault => waits(5, 30),
        Cause::AlreadyConnected => history(35),
        Cause::LinkLost => history(600),
        Cause::HungUp => history(1800),
        Cause::TooManyPeers | Cause::Quitting => waits(60, 1800),
        Cause::Unreachable | Cause::NameUnknown | Cause::AddressRefused | Cause::NotFound => history(3600),
        Cause::Silent => waits(120, 3600),
        Cause::Requested => waits(300, 3600),
        // Whom the operator or the rotation sent away is not back half a minute later.
        Cause::LocalPolicy | Cause::Operator => waits(600, 3600),
        Cause::UselessPeer => waits(1800, 14_400),
        Cause::Garbled | Cause::WrongIdentity | Cause::Breach => waits(600, 14_400),
    }
}

/// The wait after the `failures`th failure in a row (1 for the first).
pub(super) fn wait(
    cause: Cause,
    failures: u32,
    is_listed: bool,
    window: Duration,
    rng: &mut StdRng,
) -> Duration {
    let Waits { first, cap } = if is_listed { listed(cause) } else { dynamic(cause) };
    let first = first.map_or(window, Duration::from_secs);
    let doubled = first.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    let wait = doubled.min(Duration::from_secs(cap).max(first));
    wait.mul_f64(rng.random_range(1.0..1.25))
}

/// The record of a dynamic node that failed.
#[derive(Clone, Copy, Debug)]
struct Failed {
    cause: Cause,
    failures: u32,
    until: Instant,
}

/// The back-offs of nodes that are on no list.
#[derive(Debug)]
pub(super) struct Backoffs(ExpiringMap<NodeId, Failed>);

impl Backoffs {
    pub(super) fn new() -> Self {
        Self(ExpiringMap::new(MAX_REMEMBERED))
    }

    /// Whether `id` has to wait.
    pub(super) fn holds(&self, now: Instant, id: &NodeId) -> bool {
        self.0.get(now, id).is_some_and(|failed| failed.until > now)
    }

    /// Counts a failure. A fault of ours is not counted: it shows nothing about the node.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        id: NodeId,
        cause: Cause,
        window: Duration,
        rng: &mut StdRng,
    ) {
        if cause == Cause::LocalFault {
            return;
        }
        let failures = self.0.get(now, &id).map_or(0, |failed| failed.failures).saturating_add(1);
        let wait = wait(cause, failures, false, window, rng);
        // Remembered for twice the wait: a node that fails again right after it has not started afresh.
        let failed = Failed { cause, failures, until: now + wait };
        self.0.insert(now, id, now + wait * 2, failed);
    }

    /// The node proved good.
    pub(super) fn forgive(&mut self, id: &NodeId) {
        self.0.remove(id);
    }

    /// Clears the failures that were counted only because no protocol of ours was of use to the node.
    pub(super) fn forgive_useless(&mut self) {
        self.0.retain(|_, failed| failed.cause != Cause::UselessPeer);
    }
}

/// The longest pause after faults of ours.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A pause in all dialing after a fault of ours, such as running out of file descriptors. It doubles with the faults in
/// a row.
#[derive(Debug, Default)]
pub(super) struct Pause {
    until: Option<Instant>,
    faults: u32,
}

impl Pause {
    /// A dial ended by a fault of ours.
    pub(super) fn begin(&mut self, now: Instant) {
        let length = Duration::from_secs(1 << self.faults.min(5)).min(LONGEST_PAUSE);
        self.faults = self.faults.saturating_add(1);
        self.until = Some(now + length);
    }

    /// A dial ended without a fault of ours: the next pause is short again. One that has begun goes on.
    pub(super) fn works(&mut self) {
        self.faults = 0;
    }

    /// Time passed.
    pub(super) fn run(&mut self, now: Instant) {
        self.until = self.until.filter(|until| *until > now);
    }

    /// When the pause ends, if there is one.
    pub(super) fn end(&self) -> Option<Instant> {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::{super::super::test_now, *};

    const WINDOW: Duration = Duration::from_secs(35);

    #[test]
    fn waits_double_to_their_cap_and_jitter_by_a_quarter() {
        let mut rng = StdRng::seed_from_u64(1);
        // cause, failures, listed, least seconds
        let table = [
            (Cause::Unreachable, 1, true, 5),
            (Cause::Unreachable, 2, true, 10),
            (Cause::Unreachable, 40, true, 120),
            (Cause::TooManyPeers, 1, true, 35),
            (Cause::TooManyPeers, 3, true, 120),
            (Cause::AlreadyConnected, 9, true, 35),
            (Cause::Unreachable, 1, false, 35),
            (Cause::Unreachable, 2, false, 70),
            (Cause::Unreachable, 100, false, 3600),
            (Cause::UselessPeer, 1, false, 1800),
        ];
        for (cause, failures, listed, least) in table {
            let waits: Vec<_> = (0..100).map(|_| wait(cause, failures, listed, WINDOW, &mut rng)).collect();
            let (least, most) = (Duration::from_secs(least), Duration::from_secs(least).mul_f64(1.25));
            assert!(
                waits.iter().all(|wait| (least..=most).contains(wait)),
                "{cause:?} {failures}: {waits:?}"
            );
            assert!(waits.iter().max() > waits.iter().min(), "no jitter");
        }
    }

    #[test]
    fn a_fault_of_ours_is_nobodys_failure_and_uselessness_is_forgiven() {
        let (now, mut rng, mut backoffs) = (test_now().mono, StdRng::seed_from_u64(2), Backoffs::new());
        let [ours, useless, dead] = [1, 2, 3].map(|n| NodeId([n; 32]));
        backoffs.failed(now, ours, Cause::LocalFault, WINDOW, &mut rng);
        backoffs.failed(now, useless, Cause::UselessPeer, WINDOW, &mut rng);
        backoffs.failed(now, dead, Cause::Unreachable, WINDOW, &mut rng);
        assert_eq!([ours, useless, dead].map(|id| backoffs.holds(now, &id)), [false, true, true]);
        backoffs.forgive_useless();
        assert_eq!([ours, useless, dead].map(|id| backoffs.holds(now, &id)), [false, false, true]);
        // A second failure right after the wait counts as the second.
        let later = now + WINDOW.mul_f64(1.25);
        assert!(!backoffs.holds(later, &dead));
        backoffs.failed(later, dead, Cause::Unreachable, WINDOW, &mut rng);
        assert!(backoffs.holds(later + WINDOW * 2 - Duration::from_secs(1), &dead));
    }
}
