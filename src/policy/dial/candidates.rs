//! Nodes that sources offered, waiting for a free slot.
//!
//! There is one queue per source, so that the fastest source does not choose all our peers: a source may hold at most
//! half of the dialed slots while another one has candidates.

use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use crate::{
    node::{NodeId, PublicKey, Record, RegistrationId},
    policy::Refusal,
};

/// Nodes waiting per source. Sources are asked for at most twice as many as there are free slots (`Action::Demand`),
/// because most dials fail. Answers that are already under way may bring more; those fit here.
const MAX_WAITING: usize = 64;

/// Where a candidate was heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// discv4.
    V4,
    /// discv5.
    V5,
    /// A DNS tree.
    Dns,
    /// The node database: peers of earlier runs.
    Database,
}

impl Source {
    /// All sources.
    pub const ALL: [Self; 4] = [Self::V4, Self::V5, Self::Dns, Self::Database];
}

/// A node that might be dialed.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Who it is.
    pub public_key: PublicKey,
    /// Its RLPx address; port 0 if it announces none.
    pub addr: SocketAddr,
    /// Its record, if there is one.
    pub record: Option<Record>,
    /// Who offered it.
    pub source: Source,
    /// The total time for which it has been our peer, from the node database. Long-serving peers are dialed first.
    pub served: Duration,
}

/// A candidate that passed the checks.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) id: NodeId,
    pub(super) public_key: PublicKey,
    pub(super) addr: SocketAddr,
    pub(super) source: Source,
    pub(super) served: Duration,
    pub(super) record: Option<Record>,
    pub(super) wanted_by: Vec<RegistrationId>,
    /// The checksum that it announces, if it is wanted only for a fork that a schedule lacks.
    pub(super) fork: Option<[u8; 4]>,
}

/// All lines.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    lines: [VecDeque<Waiting>; Source::ALL.len()],
    ids: BTreeSet<NodeId>,
    /// The source to be asked first next time.
    turn: usize,
}

impl Candidates {
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// How many of one source wait.
    pub(super) fn of(&self, source: Source) -> usize {
        self.lines.get(source as usize).map_or(0, VecDeque::len)
    }

    pub(super) fn contains(&self, id: &NodeId) -> bool {
        self.ids.contains(id)
    }

    /// Whether a source may have one more node waiting.
    pub(super) fn check_room(&self, source: Source) -> Result<(), Refusal> {
        let has_room = self.lines.get(source as usize).is_some_and(|line| line.len() < MAX_WAITING);
        if has_room { Ok(()) } else { Err(Refusal::QueueFull) }
    }

    /// Adds a node whose source has room.
    pub(super) fn push(&mut self, waiting: Waiting) {
        if self.check_room(waiting.source).is_err() {
            return;
        }
        let Some(line) = self.lines.get_mut(waiting.source as usize) else { return };
        self.ids.insert(waiting.id);
        let at = line.partition_point(|other| other.served >= waiting.served);
        line.insert(at, waiting);
    }

    /// Whether a source has a node waiting that one of `unsatisfied` wants.
    pub(super) fn offers(&self, source: Source, unsatisfied: &[RegistrationId]) -> bool {
        let wanted = |waiting: &Waiting| waiting.wanted_by.iter().any(|id| unsatisfied.contains(id));
        self.lines.get(source as usize).is_some_and(|line| line.iter().any(wanted))
    }

    /// Takes the next candidate that `wanted_by` wants from a source that `allowed` lets through, sources in turn.
    pub(super) fn take(
        &mut self,
        wanted_by: RegistrationId,
        allowed: impl Fn(Source) -> bool,
    ) -> Option<Waiting> {
        for step in 0..Source::ALL.len() {
            let index = (self.turn + step) % Source::ALL.len();
            let Some(source) = Source::ALL.get(index) else { continue };
            let Some(line) = self.lines.get_mut(index).filter(|_| allowed(*source)) else { continue };
            let found = line.iter().position(|waiting| waiting.wanted_by.contains(&wanted_by));
            if let Some(waiting) = found.and_then(|at| line.remove(at)) {
                self.ids.remove(&waiting.id);
                self.turn = (index + 1) % Source::ALL.len();
                return Some(waiting);
            }
        }
        None
    }

    /// Keeps those for which `keep` returns true, and removes the others.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Waiting) -> bool) {
        for line in &mut self.lines {
            line.retain(|waiting| {
                let kept = keep(waiting);
                if !kept {
                    self.ids.remove(&waiting.id);
                }
                kept
            });
        }
    }
}
