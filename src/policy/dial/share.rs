//! How the dialed slots are shared between the sources of candidates, and how many more candidates are wanted.
//!
//! A source may take up to half of the slots, and more only while no other source has anything to offer. That no source
//! holds over half of the dialed slots is not enough when an attacker owns two of them: a poisoned
//! database and a table full of his names took every slot within minutes, because honest peers come and go and his
//! never leave (`tests/sim/adversary.rs` found it). So of the dialed slots some are kept for each source that still
//! offers nodes: a source may not take what another one needs to have [`KEPT`] peers that it vouches for. A peer counts
//! for every source that names it, whichever led us to it; in an honest network the sources name the same nodes, and
//! nothing stays free for long.
//!
//! The cost: a source that offers only unreachable nodes keeps that many slots free.

use std::time::{Duration, Instant};

use super::{
    super::rules::Rules,
    candidates::{Candidates, Source, Waiting},
    peers::Peers,
    task::Dials,
};
use crate::node::RegistrationId;

/// Peers that each source shall vouch for: two must stand at all times, and one is always about to leave.
const KEPT: usize = 3;

/// At most one in so many of the dialed slots is kept for a source, so that four sources do not share out all of them.
const SHARE: usize = 4;

/// A source that offered nothing for so long has nothing to offer: searches and trees are read every few seconds while
/// slots are free.
const FORGOTTEN: Duration = Duration::from_secs(10 * 60);

/// The dialed slots that are taken, by source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Use {
    /// The slots for dialed peers.
    slots: usize,
    /// Those that peers take.
    taken: usize,
    /// Dials for candidates of each source.
    dialing: [usize; Source::ALL.len()],
    /// Peers in these slots that each source offered.
    connected: [usize; Source::ALL.len()],
    /// Peers in these slots that each source vouches for.
    vouched: [usize; Source::ALL.len()],
}

impl Use {
    pub(super) fn of(rules: &Rules, dials: &Dials, peers: &Peers) -> Self {
        Self {
            slots: rules.settings.slots().dialed,
            taken: peers.slots_taken(),
            dialing: Source::ALL.map(|source| dials.from(source)),
            connected: Source::ALL.map(|source| peers.from(source)),
            vouched: Source::ALL.map(|source| peers.vouched(source)),
        }
    }
}

fn of(counts: &[usize], source: Source) -> usize {
    counts.get(source as usize).copied().unwrap_or_default()
}

/// Which source may have the next slot.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// When each source last offered anything, by a clock that stands still while nothing is asked for: a source that
    /// is not asked cannot be blamed for silence.
    spoke: [Option<Instant>; Source::ALL.len()],
    /// Since when nothing is asked for.
    unasked: Option<Instant>,
    /// Until when slower sources are waited for; `None` before there is anything to dial for.
    patience: Option<Instant>,
    patience_over: bool,
}

impl Share {
    /// There is something to dial for: the wait for slower sources begins, or goes on.
    pub(super) fn run(&mut self, now: Instant, patience: Duration) {
        self.patience_over |= *self.patience.get_or_insert(now + patience) <= now;
    }

    /// When the wait for slower sources ends, if it is under way.
    pub(super) fn patience_ends(&self) -> Option<Instant> {
        self.patience.filter(|_| !self.patience_over)
    }

    /// So many candidates are wanted now.
    pub(super) fn asked(&mut self, now: Instant, wanted: usize) {
        if wanted == 0 {
            self.unasked.get_or_insert(now);
        } else if let Some(since) = self.unasked.take() {
            let pause = now.saturating_duration_since(since);
            self.spoke.iter_mut().flatten().for_each(|at| *at += pause);
        }
    }

    /// A source offers a node, whatever comes of it.
    pub(super) fn offered(&mut self, now: Instant, source: Source) {
        if let Some(at) = self.spoke.get_mut(source as usize) {
            *at = Some(now);
        }
    }

    /// Takes the candidate that gets the next slot. Returns for which of the registrations that want peers it is.
    pub(super) fn next(
        &self,
        now: Instant,
        used: &Use,
        candidates: &mut Candidates,
        unsatisfied: &[RegistrationId],
    ) -> Option<(RegistrationId, Waiting)> {
        let allowed = Source::ALL.map(|source| self.may_dial(now, source, used, candidates, unsatisfied));
        let allows = |source: Source| allowed.get(source as usize).copied().unwrap_or_default();
        unsatisfied.iter().find_map(|id| Some((*id, candidates.take(*id, allows)?)))
    }

    /// How many candidates wait that may be dialed. Those that wait for a slot which is not theirs fill none, so that
    /// others are looked for nevertheless.
    pub(super) fn of_use(
        &self,
        now: Instant,
        used: &Use,
        candidates: &Candidates,
        unsatisfied: &[RegistrationId],
    ) -> usize {
        let may_dial = |source: &Source| self.may_dial(now, *source, used, candidates, unsatisfied);
        Source::ALL.iter().filter(|source| may_dial(source)).map(|source| candidates.of(*source)).sum()
    }

    /// Whether a source may have another slot: not one that is kept for others; up to half always, beyond that if no
    /// other source has anything to offer, and none is still getting ready after the start.
    fn may_dial(
        &self,
        now: Instant,
        source: Source,
        used: &Use,
        candidates: &Candidates,
        unsatisfied: &[RegistrationId],
    ) -> bool {
        if !self.leaves_enough(now, source, used) {
            return false;
        }
        let own = of(&used.dialing, source);
        if own + of(&used.connected, source) < used.slots.div_ceil(2) {
            return true;
        }
        let others_dialing = used.dialing.iter().sum::<usize>() > own;
        let others_waiting =
            Source::ALL.iter().any(|other| *other != source && candidates.offers(*other, unsatisfied));
        !others_dialing && !others_waiting && self.patience_over
    }

    /// Whether another dial for `source` leaves the slots that are reserved for others.
    fn leaves_enough(&self, now: Instant, source: Source, used: &Use) -> bool {
        let kept = KEPT.min(used.slots / SHARE);
        let missing = |source: Source| kept.saturating_sub(of(&used.vouched, source));
        let spoke = |source: Source| self.spoke.get(source as usize).copied().flatten();
        let clock = self.unasked.unwrap_or(now);
        let is_alive =
            |source: Source| spoke(source).is_some_and(|at| clock.saturating_duration_since(at) < FORGOTTEN);
        let others = Source::ALL.into_iter().filter(|other| *other != source && is_alive(*other));
        let mut reserved: usize = others.map(missing).sum();
        // After the start the slower sources have offered nothing yet: slots are reserved for each of them.
        if !self.patience_over && Source::ALL.into_iter().any(|source| spoke(source).is_none()) {
            reserved += kept;
        }
        let own = missing(source);
        if reserved == 0 || of(&used.dialing, source) < own {
            return true;
        }
        // Dials that would take slots which are reserved for other sources.
        let excess = |source: Source| of(&used.dialing, source).saturating_sub(missing(source));
        let beyond: usize = Source::ALL.into_iter().map(excess).sum();
        beyond + reserved + own < used.slots.saturating_sub(used.taken)
    }
}

/// How many candidates were asked for.
#[derive(Debug, Default)]
pub(super) struct Demand {
    told: usize,
    starved_since: Option<Instant>,
}

impl Demand {
    /// So many candidates are wanted now. Whether that is another number than before.
    pub(super) fn set(&mut self, now: Instant, wanted: usize) -> bool {
        self.starved_since = (wanted > 0).then(|| self.starved_since.unwrap_or(now));
        std::mem::replace(&mut self.told, wanted) != wanted
    }

    /// A candidate came: waiting for one begins anew.
    pub(super) fn candidate_came(&mut self, now: Instant) {
        self.starved_since = self.starved_since.map(|_| now);
    }

    /// Since when candidates are wanted and none has come.
    pub(super) fn starved_since(&self) -> Option<Instant> {
        self.starved_since
    }
}
