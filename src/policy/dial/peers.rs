//! The peers, as far as dialing goes: which of them take dynamic slots, and which sources vouch for them.
//!
//! A dynamic slot is taken by a peer that we dialed and that is on no list. Left out: admission's own count of peers
//! (`admission`).

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    super::{cause::Cause, fork_following::SETTLED},
    candidates::Source,
    entry::Standing,
};
use crate::{
    Now,
    node::{NodeId, RegistrationId},
};

/// A peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) standing: Standing,
    /// The source that offered it, if it was dialed as a candidate.
    pub(super) source: Option<Source>,
    /// The checksum that it announces and its address, if it was dialed only for a fork that a schedule lacks.
    pub(super) fork: Option<([u8; 4], IpAddr)>,
    pub(super) served: Vec<RegistrationId>,
}

/// A set of sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Vouchers([bool; Source::ALL.len()]);

impl Vouchers {
    fn of(source: Option<Source>) -> Self {
        let mut vouchers = Self::default();
        source.into_iter().for_each(|source| vouchers.add(source));
        vouchers
    }

    fn add(&mut self, source: Source) {
        if let Some(named) = self.0.get_mut(source as usize) {
            *named = true;
        }
    }

    fn has(self, source: Source) -> bool {
        self.0.get(source as usize).copied().unwrap_or_default()
    }
}

#[derive(Debug)]
struct Held {
    peer: Peer,
    /// All sources that have named it.
    vouchers: Vouchers,
    takes_slot: bool,
}

/// All peers. Admission bounds them.
#[derive(Debug, Default)]
pub(super) struct Peers(BTreeMap<NodeId, Held>);

impl Peers {
    pub(super) fn contains(&self, id: &NodeId) -> bool {
        self.0.contains_key(id)
    }

    pub(super) fn standing(&self, id: &NodeId) -> Option<Standing> {
        self.0.get(id).map(|held| held.peer.standing)
    }

    pub(super) fn add(&mut self, id: NodeId, peer: Peer, listed: bool) {
        let vouchers = Vouchers::of(peer.source);
        let takes_slot = !listed && !peer.standing.inbound;
        self.0.insert(id, Held { peer, vouchers, takes_slot });
    }

    pub(super) fn remove(&mut self, id: &NodeId) -> Option<Peer> {
        self.0.remove(id).map(|held| held.peer)
    }

    /// The lists changed: counts again which peers take a slot. Linear in peers, which is fine for the operator's
    /// calls.
    pub(super) fn recount(&mut self, listed: impl Fn(&NodeId) -> bool) {
        for (id, held) in &mut self.0 {
            held.takes_slot = !listed(id) && !held.peer.standing.inbound;
        }
    }

    /// A registration ended.
    pub(super) fn unregister(&mut self, id: RegistrationId) {
        for held in self.0.values_mut() {
            held.peer.served.retain(|served| *served != id);
        }
    }

    /// A source names a node.
    pub(super) fn named_by(&mut self, id: &NodeId, source: Source) {
        if let Some(held) = self.0.get_mut(id) {
            held.vouchers.add(source);
        }
    }

    /// The dynamic slots that peers take.
    pub(super) fn slots_taken(&self) -> usize {
        self.in_slots().count()
    }

    /// The dynamic slots that peers take that this source offered.
    pub(super) fn from(&self, source: Source) -> usize {
        self.in_slots().filter(|held| held.peer.source == Some(source)).count()
    }

    /// Peers in dynamic slots, dialed as candidates, that a source vouches for.
    pub(super) fn vouched(&self, source: Source) -> usize {
        self.in_slots().filter(|held| held.peer.source.is_some() && held.vouchers.has(source)).count()
    }

    /// Whether a peer that was dialed for this fork has stayed.
    pub(super) fn has_settled(&self, now: Now, fork: [u8; 4]) -> bool {
        let of_fork = |held: &&Held| held.peer.fork.is_some_and(|(hash, _)| hash == fork);
        self.0.values().filter(of_fork).any(|held| held.peer.has_settled(now))
    }

    /// Linear in the peers that we hold, as are all that count by it.
    fn in_slots(&self) -> impl Iterator<Item = &Held> {
        self.0.values().filter(|held| held.takes_slot)
    }
}

impl Peer {
    /// The fork, and the address, of a peer that was dialed only for a fork that a schedule lacks, if an application or
    /// the peer ended it at once. Such an end counts against the fork, unless another peer of it has stayed.
    pub(super) fn speaks_against_fork(&self, now: Now, cause: Cause) -> Option<([u8; 4], IpAddr)> {
        let for_its_chain =
            matches!(cause, Cause::Operator | Cause::UselessPeer | Cause::Breach | Cause::Requested);
        self.fork.filter(|_| for_its_chain && !self.has_settled(now))
    }

    fn has_settled(&self, now: Now) -> bool {
        now.mono.saturating_duration_since(self.standing.since.mono) >= SETTLED
    }
}
