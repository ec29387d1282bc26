//! Dials on request: without a list entry, with a result within a time.
//!
//! A request joins whatever is under way to that node. It does not wait for back-off or history, because a person
//! asked; it does obey bans, net restriction and the pool's bound.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::super::{cause::Cause, refusal::Refusal};
use crate::{Now, node::NodeId};

/// The most requests at once. More are refused.
const MAX_ONE_OFFS: usize = 64;

/// A request's name, chosen by the caller; unique among those under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectId(pub u64);

/// The result of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectOutcome {
    /// The node is a peer, newly or already.
    Connected,
    /// The dial failed.
    Failed {
        /// Why.
        cause: Cause,
        /// In more words.
        detail: String,
    },
    /// The address from discovery may not be dialed.
    Refused(Refusal),
    /// The time ran out. The dial was given up, unless another request or a list needs it.
    TimedOut,
}

#[derive(Debug)]
struct OneOff {
    id: NodeId,
    deadline: Instant,
    /// Waits for discovery.
    resolving: bool,
}

/// The requests under way.
#[derive(Debug, Default)]
pub(super) struct OneOffs(BTreeMap<ConnectId, OneOff>);

impl OneOffs {
    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= MAX_ONE_OFFS
    }

    /// Whether a request is for this node.
    pub(super) fn want(&self, id: &NodeId) -> bool {
        self.0.values().any(|one_off| one_off.id == *id)
    }

    /// Adds a request. `resolving`: discovery is asked for the address first.
    pub(super) fn add(&mut self, connect: ConnectId, id: NodeId, deadline: Instant, resolving: bool) {
        self.0.insert(connect, OneOff { id, deadline, resolving });
    }

    /// Discovery answered. The time that is left to the requests that waited for it, if there are any.
    pub(super) fn resolved(&mut self, now: Now, id: &NodeId) -> Option<Duration> {
        let mut left = None;
        for one_off in self.0.values_mut().filter(|one_off| one_off.id == *id && one_off.resolving) {
            one_off.resolving = false;
            left = left.max(Some(one_off.deadline.saturating_duration_since(now.mono)));
        }
        left
    }

    /// Removes all requests for a node and returns their names.
    pub(super) fn take(&mut self, id: &NodeId) -> Vec<ConnectId> {
        let mut taken = Vec::new();
        self.0.retain(|connect, one_off| {
            let stays = one_off.id != *id;
            if !stays {
                taken.push(*connect);
            }
            stays
        });
        taken
    }

    /// Removes a request whose time ran out. Returns its name and its node.
    pub(super) fn take_late(&mut self, now: Now) -> Option<(ConnectId, NodeId)> {
        let late = self.0.iter().find(|(_, one_off)| one_off.deadline <= now.mono);
        let (connect, id) = late.map(|(connect, one_off)| (*connect, one_off.id))?;
        self.0.remove(&connect);
        Some((connect, id))
    }

    /// When the next request runs out of time.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.values().map(|one_off| one_off.deadline).min()
    }
}
