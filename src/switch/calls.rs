//! Callers that wait: for a one-off dial, and for the outcome of the first dial of a listed peer.
//!
//! A caller is known by the number that its driver gave it, and gets at most one answer. A wait for a listed peer ends
//! with an outcome (connected, an error that was not there before, a refusal) or when its caller gives up. If
//! `MAX_WAITING` callers wait already, the next one gets the entry at once.

use std::{collections::BTreeMap, time::Duration};

use super::peers::{ConnectReply, PeerView};
use crate::{
    Now,
    node::{NodeId, NodeRef},
    policy::{
        Policy,
        dial::{ConnectId, ConnectOutcome, EntryState, LastError, ListEntry},
    },
};

/// The most callers that may wait for listed peers at once.
const MAX_WAITING: usize = 256;

/// The number of a caller that waits. The driver chooses it, and never uses it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// The answer to a caller that waited.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The outcome of a one-off dial.
    Connect(ConnectReply),
    /// The entry of the listed peer, after an outcome. `None`: the peer is on no list any more.
    Entry(Option<Box<ListEntry>>),
}

#[derive(Debug)]
struct Waiting {
    call: CallId,
    id: NodeId,
    before: Option<LastError>,
}

/// All callers that wait. See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// One-off dials. The policy reports an outcome for each, which answers the caller.
    connects: BTreeMap<ConnectId, CallId>,
    waiting: Vec<Waiting>,
    connects_made: u64,
}

/// Whether an entry shows an outcome that is newer than the error `before`.
fn is_settled(entry: &ListEntry, before: &Option<LastError>) -> bool {
    match entry.state {
        EntryState::Connected { .. } | EntryState::Refused(_) => true,
        EntryState::Dialing { .. }
        | EntryState::Resolving
        | EntryState::BackingOff { .. }
        | EntryState::WaitingForProtocol
        | EntryState::WaitingForSlot => entry.last_error != *before,
    }
}

impl Calls {
    /// Dials a node once. If the policy refuses, returns the answer; else `call` is answered when the dial has ended. A
    /// dial that the switch itself starts has no caller.
    pub(super) fn connect(
        &mut self,
        now: Now,
        policy: &mut Policy,
        call: Option<CallId>,
        node: &NodeRef,
        timeout: Duration,
    ) -> Option<Answer> {
        self.connects_made += 1;
        let connect = ConnectId(self.connects_made);
        match policy.connect(now, connect, node, timeout) {
            Ok(()) => {
                self.connects.extend(call.map(|call| (connect, call)));
                None
            }
            Err(refusal) => Some(Answer::Connect(Err(ConnectOutcome::Refused(refusal)))),
        }
    }

    /// Ends a one-off dial. `peer` is the session with its node, if there is one. Returns the caller that waits, and
    /// its answer.
    pub(super) fn connect_over(
        &mut self,
        connect: ConnectId,
        outcome: ConnectOutcome,
        peer: Option<PeerView>,
    ) -> Option<(CallId, Answer)> {
        let call = self.connects.remove(&connect)?;
        let reply = match (outcome, peer) {
            (ConnectOutcome::Connected, Some(peer)) => Ok(peer),
            (outcome, _) => Err(outcome),
        };
        Some((call, Answer::Connect(reply)))
    }

    /// Makes a caller wait until the entry of a listed peer shows an outcome. Returns the answer at once if there is an
    /// outcome already, if there is no such entry, or if too many callers wait.
    pub(super) fn wait_for_entry(
        &mut self,
        call: CallId,
        id: NodeId,
        entry: Option<ListEntry>,
        before: Option<LastError>,
    ) -> Option<Answer> {
        let settled = entry.as_ref().is_none_or(|entry| is_settled(entry, &before));
        if settled || self.waiting.len() >= MAX_WAITING {
            return Some(Answer::Entry(entry.map(Box::new)));
        }
        self.waiting.push(Waiting { call, id, before });
        None
    }

    /// Checks the callers that wait for a listed peer, after the peer or its state changed. Returns those whose wait is
    /// over, each with its answer.
    pub(super) fn entry_changed(&mut self, now: Now, policy: &Policy, id: NodeId) -> Vec<(CallId, Answer)> {
        if self.waiting.iter().all(|waiting| waiting.id != id) {
            return Vec::new();
        }
        let entry = policy.entry(now, &id);
        let over = |waiting: &mut Waiting| {
            waiting.id == id && entry.as_ref().is_none_or(|entry| is_settled(entry, &waiting.before))
        };
        let answer = |waiting: Waiting| (waiting.call, Answer::Entry(entry.clone().map(Box::new)));
        self.waiting.extract_if(.., over).map(answer).collect()
    }

    /// Forgets a caller that has given up.
    pub(super) fn give_up(&mut self, call: CallId) {
        self.waiting.retain(|waiting| waiting.call != call);
        self.connects.retain(|_, waiting| *waiting != call);
    }
}
