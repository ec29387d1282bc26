//! How a protocol that is registered late reaches peers that are connected: by reconnecting them, one at a time.
//!
//! What a session speaks is fixed when the Hellos cross. So a pass goes over the peers that said they speak what was
//! registered since, and reconnects one every [`PAUSE`], static and trusted ones last; other applications see their
//! channels close with the detail `rehello` and open again. There is at most one pass in [`EVERY`], and it takes no peer
//! twice. A peer that we would not find again (it dialed us, and neither its record nor discovery says where it listens)
//! is left alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{session::Session, state::State};
use crate::delivery::ClosedBy;
use crate::{
    Now,
    net::connection::ConnectionId,
    node::{NodeId, NodeRef},
    p2p::DisconnectReason,
    policy::dial::QueryId,
};

/// Between two peers of one pass.
const PAUSE: Duration = Duration::from_secs(10);

/// Between the beginnings of two passes.
const EVERY: Duration = Duration::from_secs(600);

/// From a registration to its pass: applications that start together are served by one.
const GRACE: Duration = Duration::from_secs(1);

/// What ChannelClosed says.
const DETAIL: &str = "rehello";

/// The passes.
#[derive(Debug, Default)]
pub(super) struct Rehello {
    rolling: bool,
    due: Option<Instant>,
    last_pass: Option<Instant>,
    done: BTreeSet<NodeId>,
    /// Peers that are dialed again as soon as their connection has ended.
    returning: BTreeMap<ConnectionId, NodeRef>,
}

impl Rehello {
    pub(super) fn new(rolling: bool) -> Self {
        Self { rolling, ..Self::default() }
    }

    /// A protocol was registered. A pass that is under way takes it along.
    pub(super) fn registered(&mut self, now: Instant) {
        if self.rolling && self.due.is_none() {
            let earliest = self.last_pass.map(|last| last + EVERY);
            self.due = Some(earliest.map_or(now + GRACE, |earliest| earliest.max(now + GRACE)));
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Whether the next peer's turn has come. The first of a pass begins it.
    fn is_due(&mut self, now: Instant) -> bool {
        let due = self.due.is_some_and(|due| due <= now);
        if due && self.last_pass.is_none_or(|last| now >= last + EVERY) {
            self.last_pass = Some(now);
            self.done.clear();
        }
        due
    }

    /// A peer was chosen, or none was left.
    fn chosen(&mut self, now: Instant, peer: Option<NodeId>) {
        self.due = peer.map(|_| now + PAUSE);
        self.done.extend(peer);
    }
}

impl State {
    /// Reconnects the next peer, if its time has come.
    pub(super) fn rehello(&mut self, now: Now) {
        if self.draining || !self.rehello.is_due(now.mono) {
            return;
        }
        let next = self.next_to_rehello();
        self.rehello.chosen(now.mono, next.as_ref().map(|(_, node)| node.id()));
        if let Some((connection, node)) = next {
            tracing::info!(node = %node.id(), "reconnecting a peer, so that it learns of a protocol");
            self.rehello.returning.insert(connection, node);
            self.disconnect(connection, DisconnectReason::Requested, ClosedBy::Sidecar, DETAIL);
        }
    }

    /// A connection has ended: if it was ours to renew, its peer is dialed again.
    pub(super) fn return_after_rehello(&mut self, now: Now, connection: ConnectionId) {
        let Some(node) = self.rehello.returning.remove(&connection) else { return };
        self.queries_made += 1;
        let timeout = self.policy.settings().dial_timeout;
        // A refusal (it dialed us meanwhile, it was banned) is as good an answer.
        let _ = self.policy.connect(now, QueryId(self.queries_made), &node, timeout);
    }

    fn next_to_rehello(&self) -> Option<(ConnectionId, NodeRef)> {
        let listed = |node: &NodeId| self.policy.is_static(node) || self.policy.is_trusted(node);
        self.sessions
            .values()
            .filter(|session| !self.rehello.done.contains(&session.node_id) && self.lacks_a_protocol(session))
            .filter_map(|session| Some((session, self.way_back(session)?)))
            .min_by_key(|(session, _)| (listed(&session.node_id), session.since))
            .map(|(session, node)| (session.id, node))
    }

    /// Whether the peer speaks something that is registered and that the session does not carry for its owner.
    fn lacks_a_protocol(&self, session: &Session) -> bool {
        self.leases.iter().any(|registration| {
            registration.spec().protocols.iter().any(|protocol| {
                let ours = &protocol.capability;
                let spoken = session.hello.capabilities.iter();
                let mut spoken = spoken.filter(|theirs| *theirs.name == *ours.name);
                let carried =
                    session.channel(&ours.name).is_some_and(|channel| channel.owner == registration.id());
                !carried && spoken.any(|theirs| theirs.version == ours.version)
            })
        })
    }

    /// How we would find the peer again.
    fn way_back(&self, session: &Session) -> Option<NodeRef> {
        if !session.inbound {
            return Some(NodeRef::Enode(session.enode.clone()));
        }
        match &session.record {
            Some(record) if record.tcp_addr().is_some() => Some(NodeRef::Record(record.clone())),
            _ => self.policy.settings().discovery.then_some(NodeRef::Key(session.public_key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_takes_one_peer_at_a_time_and_passes_are_apart() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let peer = |n| Some(NodeId([n; 32]));
        let mut rehello = Rehello::new(true);
        assert_eq!(rehello.poll_timeout(), None);
        rehello.registered(at(0));
        rehello.registered(at(0));
        assert_eq!(rehello.poll_timeout(), Some(at(1)));
        assert!(!rehello.is_due(at(0)) && rehello.is_due(at(1)));
        rehello.chosen(at(1), peer(1));
        assert!(!rehello.is_due(at(10)) && rehello.is_due(at(11)));
        rehello.chosen(at(11), peer(2));
        assert_eq!(rehello.done.len(), 2);
        assert!(rehello.is_due(at(21)));
        rehello.chosen(at(21), None);
        rehello.registered(at(30));
        assert_eq!(rehello.poll_timeout(), Some(at(601)), "ten minutes after the last pass began");
        assert!(rehello.is_due(at(601)) && rehello.done.is_empty());
        let mut off = Rehello::new(false);
        off.registered(at(0));
        assert_eq!(off.poll_timeout(), None);
    }
}
