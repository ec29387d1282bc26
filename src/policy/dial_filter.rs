//! Which nodes registrations want dialed, and whose turn it is.
//!
//! A registration may name an entry of the node record that marks a node of its protocol. The filters of several
//! registrations form a union: a candidate is dialed if at least one of them accepts it. Free slots go round robin to
//! the registrations that are below their number of desired peers, so that a large protocol does not starve a small one
//! on the same sidecar.
//!
//! A fork filter has a follower, which judges fork ids that its schedule does not contain.
//!
//! Left out: computing fork ids (`node::fork_id`), reading a schedule out of a registration (`rpc`), and fetching
//! records of nodes that came without one (`net`): a node without a record passes only where no entry is asked for.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::fork_following::{Followed, Follower, News, Opinion};
use crate::{
    Now,
    node::{ForkId, ForkSchedule, Head, Record, RegistrationId},
};

/// How a registration recognises the nodes it wants dialed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DialFilter {
    /// All nodes.
    #[default]
    Any,
    /// Nodes whose record has this key.
    HasKey(Vec<u8>),
    /// Nodes whose record has this key with one of these values, as RLP.
    Values {
        /// The key.
        key: Vec<u8>,
        /// Accepted values, each one RLP item.
        accepted: Vec<Vec<u8>>,
    },
    /// Nodes whose `eth` entry can be of this chain (EIP-2124 with EIP-6122), seen from its head.
    Fork {
        /// The chain's forks.
        schedule: Arc<ForkSchedule>,
        /// How far the application has followed it; [`Head::default`] accepts whatever can become the chain.
        head: Head,
    },
}

impl DialFilter {
    /// The forks of the chain that it asks for, if it asks for one.
    #[must_use]
    pub fn schedule(&self) -> Option<&Arc<ForkSchedule>> {
        match self {
            Self::Fork { schedule, .. } => Some(schedule),
            _ => None,
        }
    }

    /// Whether a node with this record is wanted.
    #[must_use]
    pub fn accepts(&self, record: Option<&Record>) -> bool {
        let value = |key: &[u8]| record.and_then(|record| record.get(key));
        match self {
            Self::Any => true,
            Self::HasKey(key) => value(key).is_some(),
            Self::Values { key, accepted } => {
                value(key).is_some_and(|have| accepted.iter().any(|a| a == have))
            }
            Self::Fork { schedule, head } => {
                record.and_then(ForkId::of_record).is_some_and(|remote| schedule.check(*head, remote).is_ok())
            }
        }
    }
}

/// The changes that [`Registrations::set`] made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Set {
    /// It was not there.
    New,
    /// It was there, and wants other nodes now.
    OtherFilter,
    /// It was there, and wants the same nodes.
    Same,
}

/// Who wants a node, and by which fork id that is not in a schedule.
#[derive(Debug, Default)]
pub(super) struct Wanting {
    pub(super) by: Vec<RegistrationId>,
    /// The checksum that the node announces, if a filter accepts it only for a fork that its schedule lacks.
    pub(super) fork: Option<[u8; 4]>,
    /// The checksum that the node announces, if every filter refuses it because no schedule contains that.
    pub(super) unknown: Option<[u8; 4]>,
}

#[derive(Debug)]
struct Registration {
    filter: DialFilter,
    /// Follows the chain of a fork filter.
    follower: Option<Follower>,
    /// Peers it wants; `None` is as many as there are slots.
    desired: Option<usize>,
    connected: usize,
    dialing: usize,
}

impl Registration {
    /// How many more dials are useful now: twice the number of missing peers, because many dials fail.
    fn wants(&self) -> usize {
        match self.desired {
            None => usize::MAX,
            Some(desired) => {
                desired.saturating_sub(self.connected).saturating_mul(2).saturating_sub(self.dialing)
            }
        }
    }
}

/// The filters of all registrations.
#[derive(Debug, Default)]
pub(super) struct Registrations {
    by_id: BTreeMap<RegistrationId, Registration>,
    last_served: Option<RegistrationId>,
}

impl Registrations {
    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Adds a registration or changes its filter.
    pub(super) fn set(&mut self, id: RegistrationId, filter: DialFilter, desired: Option<usize>) -> Set {
        match self.by_id.get_mut(&id) {
            Some(known) => {
                known.desired = desired;
                let set = if known.filter == filter { Set::Same } else { Set::OtherFilter };
                // An application that changes the schedule replaces the forks that were followed until now.
                let same_chain = |follower: &Follower| filter.schedule() == Some(follower.schedule());
                if !known.follower.as_ref().is_some_and(same_chain) {
                    known.follower = filter.schedule().cloned().map(Follower::new);
                }
                known.filter = filter;
                set
            }
            None => {
                let follower = filter.schedule().cloned().map(Follower::new);
                self.by_id.insert(id, Registration { filter, follower, desired, connected: 0, dialing: 0 });
                Set::New
            }
        }
    }

    pub(super) fn remove(&mut self, id: RegistrationId) {
        self.by_id.remove(&id);
    }

    /// The registrations that accept a node with this record at `ip`, satisfied or not. `follow`: forks that a schedule
    /// lacks are followed.
    pub(super) fn wanting(&mut self, now: Now, record: Option<&Record>, ip: IpAddr, follow: bool) -> Wanting {
        let remote = record.and_then(ForkId::of_record);
        let mut wanting = Wanting::default();
        for (id, reg) in &mut self.by_id {
            let (opinion, known) = match (&reg.filter, remote, &mut reg.follower) {
                (DialFilter::Fork { schedule, head }, Some(remote), Some(follower)) if follow => {
                    (follower.opinion(now, *head, remote, ip), schedule.contains(remote.hash))
                }
                (filter, remote, _) => {
                    let opinion = if filter.accepts(record) { Opinion::Known } else { Opinion::Foreign };
                    let known = remote.zip(filter.schedule());
                    (opinion, known.is_none_or(|(remote, schedule)| schedule.contains(remote.hash)))
                }
            };
            match opinion {
                Opinion::Foreign if !known => {
                    wanting.unknown = wanting.unknown.or(remote.map(|remote| remote.hash));
                }
                Opinion::Foreign => {}
                Opinion::Known => wanting.by.push(*id),
                Opinion::Ask | Opinion::Followed => {
                    wanting.by.push(*id);
                    wanting.fork = remote.map(|remote| remote.hash);
                }
            }
        }
        if !wanting.by.is_empty() {
            wanting.unknown = None;
        }
        wanting
    }

    /// A node at `ip` that was dialed for `hash` proved its identity.
    pub(super) fn proved(&mut self, now: Now, hash: [u8; 4], ip: IpAddr) -> Vec<News> {
        self.followers().filter_map(|follower| follower.proved(now, hash, ip)).collect()
    }

    /// A peer at `ip` that was dialed for `hash` was disconnected at once. `kept`: other peers of that fork have
    /// stayed.
    pub(super) fn rejected(&mut self, hash: [u8; 4], ip: IpAddr, kept: bool) -> Vec<News> {
        self.followers().flat_map(|follower| follower.rejected(hash, ip, kept)).collect()
    }

    /// The forks that are followed for any registration, each once.
    pub(super) fn followed(&self) -> Vec<Followed> {
        let mut all: Vec<Followed> = Vec::new();
        for followed in
            self.by_id.values().filter_map(|reg| reg.follower.as_ref()).flat_map(Follower::followed)
        {
            if !all.iter().any(|known| known.hash == followed.hash) {
                all.push(*followed);
            }
        }
        all
    }

    fn followers(&mut self) -> impl Iterator<Item = &mut Follower> {
        self.by_id.values_mut().filter_map(|reg| reg.follower.as_mut())
    }

    /// The registrations that want more dials, beginning after the one that was served last.
    pub(super) fn unsatisfied(&self) -> Vec<RegistrationId> {
        let after = |id: &RegistrationId| Some(*id) > self.last_served;
        let unsatisfied = || self.by_id.iter().filter(|(_, reg)| reg.wants() > 0).map(|(id, _)| *id);
        unsatisfied().filter(after).chain(unsatisfied().filter(|id| !after(id))).collect()
    }

    /// How many more dials all of them want together.
    pub(super) fn wants(&self) -> usize {
        self.by_id.values().map(Registration::wants).fold(0, usize::saturating_add)
    }

    /// A slot went to `id`.
    pub(super) fn dialing(&mut self, id: RegistrationId) {
        self.last_served = Some(id);
        if let Some(reg) = self.by_id.get_mut(&id) {
            reg.dialing += 1;
        }
    }

    /// The dial for `id` ended.
    pub(super) fn dialed(&mut self, id: RegistrationId) {
        if let Some(reg) = self.by_id.get_mut(&id) {
            reg.dialing = reg.dialing.saturating_sub(1);
        }
    }

    /// A peer that `ids` have in use came.
    pub(super) fn connected(&mut self, ids: &[RegistrationId]) {
        for id in ids {
            if let Some(reg) = self.by_id.get_mut(id) {
                reg.connected += 1;
            }
        }
    }

    /// A peer that `ids` had in use went.
    pub(super) fn disconnected(&mut self, ids: &[RegistrationId]) {
        for id in ids {
            if let Some(reg) = self.by_id.get_mut(id) {
                reg.connected = reg.connected.saturating_sub(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::node::{NodeKey, RecordBuilder};

    #[test]
    fn filters_look_at_one_entry() {
        let key = NodeKey::random(&mut StdRng::seed_from_u64(1));
        let record = RecordBuilder::new(1).set_bytes("echo", b"yes").sign(&key).unwrap();
        let values = |key: &str, accepted: &[&[u8]]| DialFilter::Values {
            key: key.into(),
            accepted: accepted.iter().map(|value| rlp::encode(value).to_vec()).collect(),
        };
        let table = [
            (DialFilter::Any, true, true),
            (DialFilter::HasKey(b"echo".to_vec()), true, false),
            (DialFilter::HasKey(b"eth".to_vec()), false, false),
            (values("echo", &[b"no", b"yes"]), true, false),
            (values("echo", &[b"no"]), false, false),
            (values("eth", &[b"yes"]), false, false),
        ];
        for (filter, with, without) in table {
            assert_eq!((filter.accepts(Some(&record)), filter.accepts(None)), (with, without), "{filter:?}");
        }
    }

    /// The rules of fork ids are tested where they are; here only that they are asked, and about the right entry.
    #[test]
    fn a_fork_filter_knows_its_chain() {
        let key = NodeKey::random(&mut StdRng::seed_from_u64(2));
        let (ours, other) =
            (ForkSchedule::new([1; 32], 0, &[10], &[]), ForkSchedule::new([2; 32], 0, &[], &[]));
        let announcing = |schedule: &ForkSchedule| {
            let entry = schedule.id(Head::default()).encode_entry();
            RecordBuilder::new(1).set_raw(b"eth", &entry).sign(&key).unwrap()
        };
        let filter = |height| {
            let head = Head { height, time: 0 };
            DialFilter::Fork { schedule: Arc::new(ours.clone()), head }
        };
        assert!(filter(0).accepts(Some(&announcing(&ours))) && filter(20).accepts(Some(&announcing(&ours))));
        assert!(!filter(0).accepts(Some(&announcing(&other))));
        let malformed = RecordBuilder::new(1).set_bytes("eth", b"x").sign(&key).unwrap();
        assert!(!filter(0).accepts(Some(&malformed)) && !filter(0).accepts(None));
    }

    #[test]
    fn slots_go_round_robin_to_those_below_their_desire() {
        let [a, b, c] = [1, 2, 3].map(RegistrationId);
        let mut registrations = Registrations::default();
        registrations.set(a, DialFilter::Any, Some(1));
        registrations.set(b, DialFilter::Any, None);
        registrations.set(c, DialFilter::Any, Some(2));
        let mut served = Vec::new();
        for _ in 0..9 {
            let next = registrations.unsatisfied()[0];
            registrations.dialing(next);
            served.push(next);
        }
        assert_eq!(served, [a, b, c, a, b, c, b, c, b]);
        registrations.connected(&[a]);
        (0..2).for_each(|_| registrations.dialed(a));
        assert!(!registrations.unsatisfied().contains(&a));
        registrations.disconnected(&[a]);
        assert!(registrations.unsatisfied().contains(&a));
    }
}
