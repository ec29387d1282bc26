//! An iterative lookup: find the nodes closest to a target by asking ever closer ones.
//!
//! The lookup takes nodes and gives nodes; how a node is asked is the engine's matter. discv4 asks for the target's
//! key, discv5 for the distances of [`super::distance::lookup_distances`]. Three nodes are asked at a time (α). It
//! ends when the 16 closest nodes that did not fail have all answered, so a failed node makes room for the next.
//!
//! ```text
//! while let Some(node) = lookup.next_to_ask() { ask node }
//! on nodes told:       lookup.offer(nodes)
//! on the last of them: lookup.answered(id)      on no answer: lookup.failed(id)
//! until lookup.is_done()
//! ```
//!
//! Whatever the asked nodes answer, it ends: at most 48 candidates are held and at most 128 nodes are asked.

use std::collections::HashSet;

use super::{bucket::BUCKET_SIZE, contact::Contact, distance::xor};
use crate::node::NodeId;

/// How many nodes are asked at a time (Kademlia's α; discv4.md).
pub const ALPHA: usize = 3;
/// The most candidates held. Beyond the 16 that count, they are spares for those that do not answer.
const MAX_CANDIDATES: usize = 3 * BUCKET_SIZE;
/// The most nodes asked. An honest lookup among ten thousand nodes needs about 30; lies must not extend it for ever.
pub const MAX_ASKED: usize = 128;
/// The most ids remembered as seen. Each asked node gives 16.
const MAX_SEEN: usize = MAX_ASKED * BUCKET_SIZE;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Fresh,
    Asked,
    Answered,
}

#[derive(Debug)]
struct Candidate {
    distance: [u8; 32],
    state: State,
    contact: Contact,
}

/// One lookup.
#[derive(Debug)]
pub struct Lookup {
    target: NodeId,
    /// By distance, closest first.
    candidates: Vec<Candidate>,
    seen: HashSet<NodeId>,
    target_itself: Option<Contact>,
    under_way: usize,
    asked: usize,
}

impl Lookup {
    /// A lookup of `target` that never asks `own` and starts from `known` nodes.
    #[must_use]
    pub fn new(target: NodeId, own: NodeId, known: impl IntoIterator<Item = Contact>) -> Self {
        let mut lookup = Self {
            target,
            candidates: Vec::new(),
            seen: HashSet::from([own]),
            target_itself: None,
            under_way: 0,
            asked: 0,
        };
        lookup.offer(known);
        lookup
    }

    /// Takes nodes from an answer. Returns those that this lookup had not seen before.
    pub fn offer(&mut self, nodes: impl IntoIterator<Item = Contact>) -> Vec<Contact> {
        let mut news = Vec::new();
        for contact in nodes {
            if self.seen.len() >= MAX_SEEN || !self.seen.insert(contact.id) {
                continue;
            }
            news.push(contact.clone());
            if contact.id == self.target {
                self.target_itself = Some(contact.clone());
            }
            let distance = xor(&self.target, &contact.id);
            let place = self.candidates.partition_point(|candidate| candidate.distance < distance);
            if place < MAX_CANDIDATES {
                self.candidates.insert(place, Candidate { distance, state: State::Fresh, contact });
                self.drop_farthest();
            }
        }
        news
    }

    /// Keeps the bound. A candidate that was asked may not be dropped before its answer, so a fresh one is dropped.
    fn drop_farthest(&mut self) {
        if self.candidates.len() > MAX_CANDIDATES {
            let fresh = |candidate: &Candidate| candidate.state != State::Asked;
            if let Some(index) = self.candidates.iter().rposition(fresh) {
                self.candidates.remove(index);
            }
        }
    }

    /// The next node to ask, if fewer than α are being asked and one of the 16 closest is left to ask.
    pub fn next_to_ask(&mut self) -> Option<Contact> {
        if self.under_way >= ALPHA || self.asked >= MAX_ASKED {
            return None;
        }
        let fresh = |candidate: &&mut Candidate| candidate.state == State::Fresh;
        let candidate = self.candidates.iter_mut().take(BUCKET_SIZE).find(fresh)?;
        candidate.state = State::Asked;
        self.under_way += 1;
        self.asked += 1;
        Some(candidate.contact.clone())
    }

    /// Whether the node `id` was asked and its answer is not complete.
    #[must_use]
    pub fn is_asked(&self, id: &NodeId) -> bool {
        self.asked_index(id).is_some()
    }

    /// The answer of the asked node `id` is complete.
    pub fn answered(&mut self, id: &NodeId) {
        if let Some(index) = self.asked_index(id) {
            self.under_way -= 1;
            if let Some(candidate) = self.candidates.get_mut(index) {
                candidate.state = State::Answered;
            }
        }
    }

    /// The asked node `id` did not answer; it counts no more.
    pub fn failed(&mut self, id: &NodeId) {
        if let Some(index) = self.asked_index(id) {
            self.under_way -= 1;
            self.candidates.remove(index);
        }
    }

    fn asked_index(&self, id: &NodeId) -> Option<usize> {
        let asked = |candidate: &Candidate| candidate.state == State::Asked && candidate.contact.id == *id;
        self.candidates.iter().position(asked)
    }

    /// Whether nothing is under way and there is no node left to ask.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let fresh = |candidate: &Candidate| candidate.state == State::Fresh;
        self.under_way == 0
            && (self.asked >= MAX_ASKED || !self.candidates.iter().take(BUCKET_SIZE).any(fresh))
    }

    /// The 16 closest nodes that answered, closest first.
    pub fn closest(&self) -> impl Iterator<Item = &Contact> {
        let answered = |candidate: &&Candidate| candidate.state == State::Answered;
        self.candidates.iter().filter(answered).take(BUCKET_SIZE).map(|candidate| &candidate.contact)
    }

    /// The target itself, if an answer had it, whether it answered or not.
    #[must_use]
    pub fn found_target(&self) -> Option<&Contact> {
        self.target_itself.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{
        kademlia::distance::closer,
        node::{Endpoint, NodeKey},
    };

    const OWN: NodeId = NodeId([0; 32]);

    fn contact(id: [u8; 32]) -> Contact {
        let public_key = NodeKey::random(&mut StdRng::seed_from_u64(1)).public();
        let endpoint = Endpoint { ip: [127, 0, 0, 1].into(), udp: 1, tcp: 1 };
        Contact { id: NodeId(id), public_key, endpoint, record: None }
    }

    fn network(size: usize, rng: &mut StdRng) -> Vec<Contact> {
        let template = contact([0; 32]);
        (0..size).map(|_| Contact { id: NodeId(rng.random()), ..template.clone() }).collect()
    }

    fn sorted(mut nodes: Vec<Contact>, target: &NodeId) -> Vec<Contact> {
        nodes.sort_by(|a, b| closer(target, &a.id, &b.id));
        nodes
    }

    /// A node's answer: the 16 closest to the target among those in its table, here a random tenth of the network and
    /// its own neighbourhood.
    fn tells(node: &Contact, target: &NodeId, all: &[Contact], rng: &mut StdRng) -> Vec<Contact> {
        let mut known = sorted(all.to_vec(), &node.id);
        let far = known.split_off(20.min(known.len()));
        known.extend(far.into_iter().filter(|_| rng.random_bool(0.1)));
        known = sorted(known, target);
        known.truncate(BUCKET_SIZE);
        known
    }

    #[test]
    fn finds_the_closest_nodes_that_answer() {
        for seed in 0..5 {
            let mut rng = StdRng::seed_from_u64(seed);
            let all = network(400, &mut rng);
            let target = NodeId(rng.random());
            let dead: HashSet<NodeId> = all.iter().filter(|_| rng.random_bool(0.2)).map(|n| n.id).collect();
            let mut lookup = Lookup::new(target, OWN, all.iter().take(5).cloned());
            let mut waiting = Vec::new();
            while !lookup.is_done() {
                while let Some(node) = lookup.next_to_ask() {
                    waiting.push(node);
                }
                assert!((1..=ALPHA).contains(&waiting.len()));
                // Answers come in any order.
                let node = waiting.swap_remove(rng.random_range(0..waiting.len()));
                if dead.contains(&node.id) {
                    lookup.failed(&node.id);
                } else {
                    lookup.offer(tells(&node, &target, &all, &mut rng));
                    lookup.answered(&node.id);
                }
            }
            let mut expected = sorted(all, &target);
            expected.retain(|node| !dead.contains(&node.id));
            expected.truncate(BUCKET_SIZE);
            let found: Vec<_> = lookup.closest().map(|node| node.id).collect();
            assert_eq!(found.first(), expected.first().map(|node| &node.id), "seed {seed}");
            // Now and then a node is in no live node's table.
            let hits = expected.iter().filter(|node| found.contains(&node.id)).count();
            assert!(hits >= BUCKET_SIZE - 1, "{hits} of 16 for seed {seed}");
            assert!(lookup.asked < 60, "{} asked for seed {seed}", lookup.asked);
        }
    }

    #[test]
    fn endless_lies_end() {
        // Every node answers with 16 ever closer ones that do not exist, and answers for them.
        let target = NodeId([0xff; 32]);
        let mut lookup = Lookup::new(target, OWN, [contact([1; 32])]);
        let mut lie: u64 = 0;
        let mut asked = 0;
        while let Some(node) = lookup.next_to_ask() {
            asked += 1;
            let lies: Vec<_> = (0..BUCKET_SIZE)
                .map(|_| {
                    lie += 1;
                    let mut id = [0xff; 32];
                    id[..8].copy_from_slice(&(u64::MAX / 2 + lie).to_be_bytes());
                    contact(id)
                })
                .collect();
            lookup.offer(lies);
            lookup.answered(&node.id);
            assert!(lookup.candidates.len() <= MAX_CANDIDATES);
        }
        assert_eq!(asked, MAX_ASKED);
        assert!(lookup.is_done());
    }

    #[test]
    fn odd_reports_change_nothing() {
        let (a, b) = (contact([1; 32]), contact([2; 32]));
        let mut lookup = Lookup::new(a.id, OWN, [a.clone(), b.clone()]);
        assert!(lookup.offer([a.clone(), contact(OWN.0)]).is_empty(), "seen, and ourselves");
        lookup.answered(&a.id);
        lookup.failed(&NodeId([9; 32]));
        assert_eq!(lookup.next_to_ask(), Some(a.clone()));
        lookup.failed(&a.id);
        lookup.failed(&a.id);
        lookup.answered(&a.id);
        assert_eq!(lookup.next_to_ask(), Some(b.clone()));
        assert_eq!(lookup.next_to_ask(), None);
        assert!(!lookup.is_done(), "b is being asked");
        lookup.answered(&b.id);
        assert!(lookup.is_done());
        assert_eq!(lookup.closest().collect::<Vec<_>>(), [&b]);
        assert_eq!(lookup.found_target(), Some(&a), "in an answer, though it did not answer itself");
    }

    #[test]
    fn nobody_known_is_done_at_once() {
        let lookup = Lookup::new(NodeId([1; 32]), OWN, []);
        assert!(lookup.is_done());
        assert_eq!(lookup.closest().count(), 0);
    }
}
