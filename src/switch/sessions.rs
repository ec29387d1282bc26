//! All sessions, by node: at most one for each.
//!
//! Left out: the connections below them (`connections`), and the facts of a session ([`session`](super::session)).

use std::{collections::BTreeMap, sync::Arc};

use super::session::Session;
use crate::{
    node::NodeId,
    p2p::{ChannelTraffic, session::ConnectionId},
};

/// The most protocols (name and version) that are counted separately.
const MAX_PROTOCOLS: usize = 256;

/// The traffic of some sessions, by protocol. Applications choose the names. Beyond [`MAX_PROTOCOLS`] they are counted
/// together as `other`, so that a client that registers in a loop does not fill the memory of a monitor.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// The traffic by protocol name and version.
    pub protocols: BTreeMap<(Arc<str>, u32), ChannelTraffic>,
    /// Bytes read from sockets.
    pub bytes_in: u64,
    /// Bytes written to sockets.
    pub bytes_out: u64,
}

impl Totals {
    fn add(&mut self, session: &Session) {
        let traffic = session.traffic.snapshot();
        self.bytes_in += traffic.bytes_in;
        self.bytes_out += traffic.bytes_out;
        for channel in &session.channels {
            let key = (Arc::clone(&channel.name), channel.version);
            let full = self.protocols.len() >= MAX_PROTOCOLS && !self.protocols.contains_key(&key);
            let key = if full { ("other".into(), 0) } else { key };
            self.protocols.entry(key).or_default().add(session.channel_traffic(channel));
        }
    }
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Sessions {
    open: BTreeMap<NodeId, Arc<Session>>,
    /// The traffic of sessions that have ended.
    before: Totals,
}

impl Sessions {
    /// The session with a node.
    pub(super) fn get(&self, node: &NodeId) -> Option<&Arc<Session>> {
        self.open.get(node)
    }

    /// All sessions, by node id.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.open.values()
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Adds a session that has opened.
    pub(super) fn add(&mut self, session: Arc<Session>) {
        self.open.insert(session.node_id, session);
    }

    /// Ends the session with a node, because its connection ended or another connection takes its place. Returns false
    /// if the node's session is on another connection.
    pub(super) fn end(&mut self, node: &NodeId, connection: ConnectionId) -> bool {
        if self.open.get(node).is_none_or(|standing| standing.id != connection) {
            return false;
        }
        if let Some(session) = self.open.remove(node) {
            self.before.add(&session);
        }
        true
    }

    /// Returns the traffic of all sessions since the start.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = self.before.clone();
        self.open.values().for_each(|session| totals.add(session));
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::session, *};

    #[test]
    fn the_end_of_an_old_connection_does_not_end_the_session_of_a_new_one() {
        let mut sessions = Sessions::default();
        let (first, second) = (session(1, 1), session(1, 2));
        let node = first.node_id;
        first.traffic.set_channels(1);
        sessions.add(Arc::clone(&first));
        sessions.add(Arc::clone(&second));
        assert!(!sessions.end(&node, first.id));
        assert_eq!(sessions.len(), 1);
        assert!(sessions.end(&node, second.id) && !sessions.end(&node, second.id));
        assert!(sessions.get(&node).is_none());
        let counted = sessions.totals().protocols;
        assert_eq!(counted.values().copied().collect::<Vec<_>>(), [ChannelTraffic::default()]);
    }
}
