//! An iterative lookup: find the nodes closest to a target by asking ever closer ones.
//!
//! The lookup takes nodes and gives nodes; how a node is asked is the engine's matter. discv4 asks for the target's
//! key, discv5 for the distances of [`super::distance::lookup_distances`]. Three nodes are asked at a time (α). It
//! ends when the 16 closest nodes that did not fail have all answered, so a failed node makes room for the next.
//!
//! ```text
//! while let Some(node) = lookup.next() { ask node }
//! on nodes told:       lookup.offer(nodes)
//! on the last of them: lookup.answered(id)      on no answer: lookup.failed(id)
//! until lookup.is_done()
//! ```
//!
//! Whatever the asked nodes say, it ends: at most 48 candidates are held and at most 128 nodes are asked.

use std::collections::HashSet;

use super::{bucket::BUCKET_SIZE, contact::Contact, distance::xor};
use crate::node::NodeId;

/// How many nodes are asked at a time (Kademlia's α; discv4.md).
pub const ALPHA: usize = 3;
/// The most candidates held. Beyond the 16 that count, spares for those that do not answer.
const MAX_CANDIDATES: usize = 3 * BUCKET_SIZE;
/// The most nodes asked. An honest lookup among ten thousand nodes needs about 30; lies must not extend it for ever.
pub const MAX_ASKED: usize = 128;
/// The most ids remembered as seen. Each asked node tells of 16.
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
    under_way: usize,
    asked: usize,
}

impl Lookup {
    /// A lookup of `target` that never asks `own` and starts from `known` nodes.
    #[must_use]
    pub fn new(target: NodeId, own: NodeId, known: impl IntoIterator<Item = Contact>) -> Self {
        let mut lookup =
            Self { target, candidates: Vec::new(), seen: HashSet::from([own]), under_way: 0, asked: 0 };
        lookup.offer(known);
        lookup
    }

    /// What is looked for.
    #[must_use]
    pub fn target(&self) -> NodeId {
        self.target
    }

    /// How many nodes were asked so far.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.asked
    }

    /// Takes nodes that somebody told. Returns those that this lookup had not seen before.
    pub fn offer(&mut self, nodes: impl IntoIterator<Item = Contact>) -> Vec<Contact> {
        let mut news = Vec::new();
        for contact in nodes {
            if self.seen.len() >= MAX_SEEN || !self.seen.insert(contact.id) {
                continue;
            }
            news.push(contact.clone());
            let distance = xor(&self.target, &contact.id);
            let place = self.candidates.partition_point(|candidate| candidate.distance < distance);
            if place < MAX_CANDIDATES {
                self.candidates.insert(place, Candidate { distance, state: State::Fresh, contact });
                self.drop_farthest();
            }
        }
        news
    }

    /// Keeps the bound. A candidate that was asked may not be dropped before its answer, so a fresh one goes.
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

    /// The asked node `id` told all it tells.
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

    /// Whether nothing is under way and nobody is left to ask.
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

    /// The target itself, if somebody told of it, whether it answered or not.
    #[must_use]
    pub fn found_target(&self) -> Option<&Contact> {
        self.candidates
            .first()
            .map(|candidate| &candidate.contact)
            .filter(|contact| contact.id == self.target)
    }
}
