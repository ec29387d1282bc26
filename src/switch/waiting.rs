//! Callers that wait for what the first dial of a listed peer comes to.
//!
//! A wait ends with an outcome (connected, an error that was not there before, a refusal) or with its caller's
//! patience, which is the caller's own timer. Who finds no place here waits for nothing: the call goes on at once.

use tokio::sync::oneshot;

use super::{boards::PeerState, state::State};
use crate::{
    Now,
    node::NodeId,
    policy::dial::{EntryState, LastError, ListEntry},
};

/// Callers that may wait at once.
const MAX_WAITING: usize = 256;

struct Caller {
    id: NodeId,
    before: Option<LastError>,
    reply: oneshot::Sender<ListEntry>,
}

/// All who wait.
#[derive(Default)]
pub(super) struct Waiting(Vec<Caller>);

/// Whether an entry shows what a dial came to since it had the error `before`.
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

impl State {
    /// The entry of a listed peer.
    pub(super) fn listed(&self, now: Now, id: NodeId) -> Option<ListEntry> {
        self.policy.entry(now, &id)
    }

    /// Answers once the entry shows an outcome.
    pub(super) fn wait_for_dial(
        &mut self,
        now: Now,
        id: NodeId,
        before: Option<LastError>,
        reply: oneshot::Sender<ListEntry>,
    ) {
        let Some(entry) = self.listed(now, id) else { return };
        self.waiting.0.retain(|caller| !caller.reply.is_closed());
        if is_settled(&entry, &before) || self.waiting.0.len() >= MAX_WAITING {
            // The caller may have given up.
            let _ = reply.send(entry);
        } else {
            self.waiting.0.push(Caller { id, before, reply });
        }
    }

    /// A listed peer, or its state, changed: whoever waits for it is answered, and a peer shows its new roles.
    pub(super) fn entry_changed(&mut self, now: Now, id: NodeId) {
        if let Some(session) = self.sessions.get(&id) {
            let view = self.peer_view(session);
            self.boards.peers.update(|board| {
                let roles = |view: &super::PeerView| (view.is_static, view.is_trusted);
                let shown = board.peers.get(&id).map(|shown| &**shown);
                if matches!(shown, Some(PeerState::Connected(shown)) if roles(shown) != roles(&view)) {
                    board.peers.set(id, PeerState::Connected(view));
                }
            });
        }
        if self.waiting.0.iter().all(|caller| caller.id != id) {
            return;
        }
        let Some(entry) = self.listed(now, id) else {
            // Whoever waits for an entry that is gone learns it by the dropped reply.
            self.waiting.0.retain(|caller| caller.id != id);
            return;
        };
        for caller in
            self.waiting.0.extract_if(.., |caller| caller.id == id && is_settled(&entry, &caller.before))
        {
            let _ = caller.reply.send(entry.clone());
        }
    }
}
