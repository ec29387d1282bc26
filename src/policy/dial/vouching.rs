//! Which sources of candidates vouch for our peers, and the slots that are kept for each of them.
//!
//! That no source holds over half of the dialed slots is not enough when an attacker owns two of them: a poisoned
//! database and a table full of his names took every slot within minutes, because honest peers come and go and his never
//! leave (`tests/sim/adversary.rs` found it). So of the dialed slots some are kept for each source that still offers
//! nodes: a source may not take what another one needs to have [`KEPT`] peers that it vouches for. A peer counts for
//! every source that names it, whichever led us to it; in an honest network the sources name the same nodes, and nothing
//! stays free for long.
//!
//! The price: a source that offers only nodes that nobody can reach keeps that many slots free.

use std::time::{Duration, Instant};

use super::{
    super::{rules::Rules, settings::Slots},
    candidates::Source,
    scheduler::{Kind, Scheduler},
};
use crate::node::NodeId;

/// Peers that each source shall vouch for: two must stand at all times, and one is always about to leave.
const KEPT: usize = 3;

/// At most one in so many of the dialed slots is kept for a source, so that four sources do not share out all of them.
const SHARE: usize = 4;

/// A source that offered nothing for so long has nothing to offer: searches and trees are read every few seconds while
/// slots are free.
const FORGOTTEN: Duration = Duration::from_secs(10 * 60);

/// A set of sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Vouchers([bool; Source::ALL.len()]);

impl Vouchers {
    pub(super) fn of(source: Option<Source>) -> Self {
        let mut vouchers = Self::default();
        source.into_iter().for_each(|source| vouchers.add(source));
        vouchers
    }

    pub(super) fn add(&mut self, source: Source) {
        if let Some(named) = self.0.get_mut(source as usize) {
            *named = true;
        }
    }

    fn has(self, source: Source) -> bool {
        self.0.get(source as usize).copied().unwrap_or_default()
    }
}

/// When each source last offered anything, by a clock that stands still while nothing is asked for: whoever is not asked
/// cannot be blamed for silence.
#[derive(Debug, Default)]
pub(super) struct Spoke {
    at: [Option<Instant>; Source::ALL.len()],
    /// Since when nothing is asked for.
    unasked: Option<Instant>,
}

impl Spoke {
    /// So many candidates are wanted now.
    pub(super) fn asked(&mut self, now: Instant, wanted: usize) {
        if wanted == 0 {
            self.unasked.get_or_insert(now);
        } else if let Some(since) = self.unasked.take() {
            let pause = now.saturating_duration_since(since);
            self.at.iter_mut().flatten().for_each(|at| *at += pause);
        }
    }
}

impl Scheduler {
    /// A source names a node, whatever comes of it.
    pub(super) fn named_by(&mut self, now: Instant, id: &NodeId, source: Source) {
        if let Some(spoke) = self.spoke.at.get_mut(source as usize) {
            *spoke = Some(now);
        }
        if let Some(peer) = self.peers.get_mut(id) {
            peer.vouchers.add(source);
        }
    }

    /// Whether another dial for `source` leaves enough slots for what is kept for others.
    pub(super) fn leaves_enough(&self, now: Instant, rules: &Rules, source: Source) -> bool {
        let slots: Slots = self.slots(rules);
        let kept = KEPT.min(slots.dialed / SHARE);
        let missing = |of: Source| kept.saturating_sub(self.vouched(of));
        let spoke = |of: Source| self.spoke.at.get(of as usize).copied().flatten();
        let clock = self.spoke.unasked.unwrap_or(now);
        let is_alive =
            |of: Source| spoke(of).is_some_and(|at| clock.saturating_duration_since(at) < FORGOTTEN);
        let others = Source::ALL.into_iter().filter(|of| *of != source && is_alive(*of));
        let mut reserved: usize = others.map(missing).sum();
        // After the start the slower sources have not spoken yet: something is kept for whoever does.
        if !self.patience_over && Source::ALL.into_iter().any(|of| spoke(of).is_none()) {
            reserved += kept;
        }
        let dialing = |of: Source| self.tasks.values().filter(|task| task.kind == Kind::Dynamic(of)).count();
        let own = missing(source);
        if reserved == 0 || dialing(source) < own {
            return true;
        }
        // Dials that would take more than what is kept for those who made them.
        let beyond: usize = Source::ALL.into_iter().map(|of| dialing(of).saturating_sub(missing(of))).sum();
        beyond + reserved + own < slots.dialed.saturating_sub(self.dialed)
    }

    /// Dialed peers in dynamic slots that a source vouches for. Linear in the peers that we hold.
    fn vouched(&self, source: Source) -> usize {
        self.peers
            .iter()
            .filter(|(id, peer)| {
                peer.source.is_some() && peer.vouchers.has(source) && !self.entries.contains_key(*id)
            })
            .count()
    }
}
