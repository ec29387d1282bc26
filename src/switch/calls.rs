//! Callers that wait: for a one-off dial, and for the outcome of the first dial of a listed peer.
//!
//! A caller is known by the number that its driver gave it, and gets at most one answer. A wait for a listed peer ends with
//! an outcome (connected, an error that was not there before, a refusal) or when its caller gives up; a caller that finds
//! no place is answered at once.

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

/// Callers that may wait for listed peers at once.
const MAX_WAITING: usize = 256;

/// Numbers the callers that wait. The driver chooses; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// The answer to a caller that waited.
#[derive(Clone, Debug)]
pub enum Answer {
    /// How a one-off dial ended.
    Connect(ConnectReply),
    /// The listed peer shows an outcome. `None`: it is on no list any more.
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
    /// One-off dials, each answered by the policy's outcome.
    connects: BTreeMap<ConnectId, CallId>,
    waiting: Vec<Waiting>,
    connects_made: u64,
}

/// Whether an entry shows an outcome since it had the error `before`.
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
    /// Dials a node once. Returns the answer if the policy refuses, else `call` gets it when the dial is over; a dial of
    /// our own has no caller.
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

    /// A one-off dial is over; `peer` is the session with its node. Returns the caller that waits for it, and its answer.
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

    /// A caller waits until the entry of a listed peer shows an outcome. Returns the answer if it does already, if there
    /// is no such entry, or if too many wait.
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

    /// A listed peer, or its state, changed. Returns the callers that wait no longer, each with its answer.
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

    /// A caller has given up.
    pub(super) fn give_up(&mut self, call: CallId) {
        self.waiting.retain(|waiting| waiting.call != call);
        self.connects.retain(|_, waiting| *waiting != call);
    }
}
