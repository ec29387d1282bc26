//! How connected peers learn of a protocol that is registered later: they are reconnected, one at a time.
//!
//! The capabilities of a session are fixed when the Hellos cross. So a pass goes over the peers whose Hello named a
//! capability that was registered since then. It reconnects one every [`PAUSE`], static and trusted peers last. Other
//! applications get their channels closed with the detail `rehello`, and opened again. There is at most one pass in
//! [`EVERY`], and it takes no peer twice. A peer that we could not find again stays connected: it dialed us, and
//! neither its record nor discovery says where it listens.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::session::Session;
use crate::{
    node::{NodeId, NodeRef},
    p2p::session::ConnectionId,
    policy::Policy,
};

/// The pause between two peers of one pass, so that other applications keep their other peers meanwhile.
const PAUSE: Duration = Duration::from_secs(10);

/// The shortest time between the beginnings of two passes, because each pass closes channels of other applications.
const EVERY: Duration = Duration::from_secs(600);

/// The time from a registration to its pass, so that one pass serves applications that start together.
const GRACE: Duration = Duration::from_secs(1);

/// The detail of the `ChannelClosed` event.
pub(super) const DETAIL: &str = "rehello";

/// The state of the current pass, and the time of the next one.
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

    /// Notes that a protocol was registered. A pass that is under way includes it.
    pub(super) fn registered(&mut self, now: Instant) {
        if self.rolling && self.due.is_none() {
            let earliest = self.last_pass.map(|last| last + EVERY);
            self.due = Some(earliest.map_or(now + GRACE, |earliest| earliest.max(now + GRACE)));
        }
    }

    /// Ends all passes, because the sidecar stops. A pass that is due is cancelled.
    pub(super) fn stop(&mut self) {
        (self.rolling, self.due) = (false, None);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Whether the next peer is to be reconnected now. The first call of a pass that returns true begins it.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let due = self.due.is_some_and(|due| due <= now);
        if due && self.last_pass.is_none_or(|last| now >= last + EVERY) {
            self.last_pass = Some(now);
            self.done.clear();
        }
        due
    }

    /// Chooses the next peer of the pass, among sessions that lack a protocol and whose nodes can be found again.
    /// Listed peers come last. Returns its connection, which is to be closed, or `None` when the pass is over.
    pub(super) fn choose<'a>(
        &mut self,
        now: Instant,
        lacking: impl Iterator<Item = &'a Arc<Session>>,
        policy: &Policy,
    ) -> Option<(ConnectionId, NodeId)> {
        let discovery = policy.settings().discovery;
        let listed = |node: &NodeId| policy.is_static(node) || policy.is_trusted(node);
        let chosen = lacking
            .filter(|session| !self.done.contains(&session.node_id))
            .filter_map(|session| Some((session, way_back(session, discovery)?)))
            .min_by_key(|(session, _)| (listed(&session.node_id), session.since));
        self.due = chosen.as_ref().map(|_| now + PAUSE);
        let (session, way_back) = chosen?;
        self.done.insert(session.node_id);
        self.returning.insert(session.id, way_back);
        Some((session.id, session.node_id))
    }

    /// Returns the node to dial again, if the connection that has ended was closed by a pass.
    pub(super) fn returning(&mut self, connection: ConnectionId) -> Option<NodeRef> {
        self.returning.remove(&connection)
    }
}

/// Returns the reference by which the peer of a session can be found again. `discovery`: whether nodes can be looked up
/// by their key.
fn way_back(session: &Session, discovery: bool) -> Option<NodeRef> {
    if !session.inbound {
        return Some(NodeRef::Enode(session.enode.clone()));
    }
    match &session.record {
        Some(record) if record.tcp_addr().is_some() => Some(NodeRef::Record(record.clone())),
        _ => discovery.then_some(NodeRef::Key(session.public_key)),
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::{super::testing::session, *};
    use crate::{
        Now,
        policy::{Settings, dial::ListSource},
    };

    /// A policy with one trusted peer. Nodes can be looked up.
    fn policy(start: Instant, trusted: &Session) -> Policy {
        let now = Now { mono: start, unix: Duration::from_secs(1_700_000_000) };
        let settings = Settings { discovery: true, ..Settings::default() };
        let mut policy = Policy::new(now, NodeId([0; 32]), settings, StdRng::seed_from_u64(1));
        policy.add_trusted(now, &NodeRef::Enode(trusted.enode.clone()), ListSource::Call).unwrap();
        policy
    }

    #[test]
    fn a_pass_takes_one_peer_at_a_time_and_passes_are_apart() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let sessions: Vec<Arc<Session>> = (1..=3).map(|n| session(n, n.into())).collect();
        let policy = policy(start, &session(9, 9));
        let mut rehello = Rehello::new(true);
        let choose = |rehello: &mut Rehello, seconds, count: usize| {
            rehello
                .choose(at(seconds), sessions.iter().take(count), &policy)
                .map(|(connection, _)| connection.0)
        };
        assert_eq!(rehello.poll_timeout(), None);
        rehello.registered(at(0));
        rehello.registered(at(0));
        assert_eq!(rehello.poll_timeout(), Some(at(1)));
        assert!(!rehello.is_due(at(0)) && rehello.is_due(at(1)));
        assert_eq!(choose(&mut rehello, 1, 2), Some(1));
        assert!(!rehello.is_due(at(10)) && rehello.is_due(at(11)));
        assert_eq!(choose(&mut rehello, 11, 2), Some(2), "no peer twice");
        assert_eq!(rehello.returning(ConnectionId(1)), Some(NodeRef::Enode(sessions[0].enode.clone())));
        assert_eq!(rehello.returning(ConnectionId(1)), None, "it is dialed again once");
        assert!(rehello.is_due(at(21)));
        assert_eq!(choose(&mut rehello, 21, 2), None);
        assert_eq!(rehello.poll_timeout(), None);
        rehello.registered(at(30));
        assert_eq!(rehello.poll_timeout(), Some(at(601)), "ten minutes after the last pass began");
        assert!(rehello.is_due(at(601)));
        assert_eq!(choose(&mut rehello, 601, 1), Some(1), "a new pass takes it again");
        let mut off = Rehello::new(false);
        off.registered(at(0));
        assert_eq!(off.poll_timeout(), None);
        rehello.registered(at(602));
        rehello.stop();
        assert_eq!(rehello.poll_timeout(), None, "a pass that never comes must not wake the driver");
        assert!(!rehello.is_due(at(2_000)));
        rehello.registered(at(2_000));
        assert_eq!(rehello.poll_timeout(), None);
    }

    #[test]
    fn listed_peers_come_last_and_the_oldest_of_the_others_first() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let start = Instant::now();
        let sessions: Vec<Arc<Session>> = [(1, 30), (2, 10), (3, 20)]
            .map(|(n, since)| {
                let session = session(n, n.into());
                let Ok(mut session) = Arc::try_unwrap(session) else { panic!("one owner") };
                session.since = Duration::from_secs(since);
                Arc::new(session)
            })
            .into();
        let policy = policy(start, &sessions[1]);
        let mut rehello = Rehello::new(true);
        rehello.registered(start);
        let mut order = Vec::new();
        for _ in 0..3 {
            order.extend(rehello.choose(start, sessions.iter(), &policy).map(|(connection, _)| connection.0));
        }
        assert_eq!(order, [3, 1, 2]);
    }

    #[test]
    fn a_peer_is_closed_only_if_it_can_be_found_again() {
        let Ok(mut inbound) = Arc::try_unwrap(session(1, 1)) else { panic!("one owner") };
        assert_eq!(way_back(&inbound, false), Some(NodeRef::Enode(inbound.enode.clone())));
        inbound.inbound = true;
        assert_eq!(way_back(&inbound, false), None);
        assert_eq!(way_back(&inbound, true), Some(NodeRef::Key(inbound.public_key)));
    }
}
