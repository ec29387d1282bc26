//! The state of the switch that can be watched: connected peers, failed attempts, and registrations.
//!
//! The switch fills each view, and any number of watchers read it. The size of a view is bounded by the peer slots and
//! the registrations. Ended peers and registrations stay in a view for a while, within a number of bytes
//! ([`MAX_GONE_BYTES`](crate::watch::MAX_GONE_BYTES)). Of a peer that left, a [`GonePeer`] is kept and not its session.
//! The keys of failed attempts are chosen by strangers, so attempts are kept in a ring.
//!
//! Left out: how a watcher waits for a change, and how many may watch (`net::switch`).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::{peers::PeerView, registration::RegistrationView};
use crate::{
    Now,
    delivery::ClosedBy,
    node::{Enode, NodeId, RegistrationId},
    p2p::{DisconnectReason, session::ConnectionId},
    policy::{Cause, Refusal, dial::Kind},
    watch::{Happenings, MAX_CHANGES, MAX_HAPPENINGS, Shared, Watch},
};

/// The most characters of a detail that are kept.
const MAX_DETAIL: usize = 200;

/// The most bytes of the client name that are kept of a peer that left.
const MAX_GONE_CLIENT: usize = 128;

/// The state of a peer, as watchers get it.
#[derive(Clone, Debug)]
pub enum PeerState {
    /// The session and its roles.
    Connected(PeerView),
    /// The facts that are kept of a session that ended.
    Gone(Box<GonePeer>),
}

/// The facts that are kept of a peer that left: its identity, and how its session ended. Capabilities, the record and
/// the session are not kept, because thousands of strangers come and go.
#[derive(Clone, Debug)]
pub struct GonePeer {
    /// The peer's node id.
    pub node_id: NodeId,
    /// The URL it was dialed by, or the address it came from.
    pub enode: Enode,
    /// The other end of the socket.
    pub remote: SocketAddr,
    /// Our end of the socket.
    pub local: SocketAddr,
    /// Whether it dialed us.
    pub inbound: bool,
    /// Why we dialed it; `None` if it dialed us.
    pub dialed_as: Option<Kind>,
    /// Whether it was on the static list.
    pub is_static: bool,
    /// Whether it was on the trusted list.
    pub is_trusted: bool,
    /// The name of its software, cut to 128 bytes. A stranger wrote it, so escape it before you show it.
    pub client: Box<str>,
    /// Wall time at which the session opened.
    pub since: Duration,
    /// The session's number.
    pub session: ConnectionId,
    /// How it ended.
    pub end: PeerEnd,
}

impl GonePeer {
    fn new(view: &PeerView, end: PeerEnd) -> Self {
        let PeerView { session, is_static, is_trusted } = view;
        let client = &session.hello.client;
        let ends = client.char_indices().map(|(at, character)| at + character.len_utf8());
        let kept = ends.take_while(|end| *end <= MAX_GONE_CLIENT).last().unwrap_or(0);
        Self {
            node_id: session.node_id,
            enode: session.enode.clone(),
            remote: session.remote,
            local: session.local,
            inbound: session.inbound,
            dialed_as: session.dialed_as,
            is_static: *is_static,
            is_trusted: *is_trusted,
            client: client.get(..kept).unwrap_or_default().into(),
            since: session.since,
            session: session.id,
            end,
        }
    }

    /// Returns the memory that it takes, in bytes.
    fn bytes(&self) -> usize {
        size_of::<PeerState>() + size_of::<Self>() + self.client.len() + self.end.detail.len()
    }
}

/// How a session ended.
#[derive(Clone, Debug)]
pub struct PeerEnd {
    /// Wall time.
    pub time: Duration,
    /// The reason on the wire, or the one that stands for the end if none was sent.
    pub reason: DisconnectReason,
    /// The party that ended it.
    pub by: ClosedBy,
    /// A description. In a view it has at most 200 characters.
    pub detail: Arc<str>,
}

/// Why an accepted connection did not become a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdmitted {
    /// We refused it.
    Refused(Refusal),
    /// It failed without a decision of ours.
    Failed(Cause),
}

/// An attempt at a connection that did not become a session.
#[derive(Clone, Debug)]
pub struct FailedAttempt {
    /// Wall time.
    pub time: Duration,
    /// The attempt.
    pub attempt: Attempt,
    /// A description. Strangers may have written parts of it.
    pub detail: String,
}

/// The kind of an attempt, and its facts.
#[derive(Clone, Debug)]
pub enum Attempt {
    /// A dial of ours.
    Dial {
        /// The node that we dialed.
        id: NodeId,
        /// The address, if it was known.
        addr: Option<SocketAddr>,
        /// Why we dialed.
        kind: Kind,
        /// Why it failed.
        cause: Cause,
    },
    /// A connection that another node opened to us.
    Inbound {
        /// The address from which it came.
        remote: SocketAddr,
        /// The node id, if the remote proved its key.
        id: Option<NodeId>,
        /// Why it was not admitted.
        why: NotAdmitted,
    },
}

/// The number of causes.
const CAUSES: usize = Cause::ALL.len();

/// The reasons in the ring: the causes of failed dials, the causes of failed inbound connections, and our refusals of
/// inbound connections.
const REASONS: usize = 2 * CAUSES + Refusal::ALL.len();

impl Attempt {
    fn reason(&self) -> usize {
        let cause = |cause: &Cause| Cause::ALL.iter().position(|known| known == cause).unwrap_or(CAUSES);
        match self {
            Self::Dial { cause: why, .. } => cause(why),
            Self::Inbound { why: NotAdmitted::Failed(why), .. } => CAUSES + cause(why),
            Self::Inbound { why: NotAdmitted::Refused(why), .. } => {
                2 * CAUSES + Refusal::ALL.iter().position(|known| known == why).unwrap_or_default()
            }
        }
    }
}

/// Returns the name of a numbered reason of the ring, and whether the reason is one of inbound connections.
#[must_use]
pub fn reason_name(reason: usize) -> (bool, &'static str) {
    let inbound = reason >= CAUSES;
    let name = match reason.checked_sub(2 * CAUSES) {
        Some(refusal) => Refusal::ALL.get(refusal).map(|refusal| refusal.name()),
        None => Cause::ALL.get(reason % CAUSES).map(|cause| cause.name()),
    };
    (inbound, name.unwrap_or("other"))
}

/// The views of peers and attempts.
#[derive(Debug)]
pub struct PeerViews {
    /// Connected peers.
    pub peers: Watch<NodeId, PeerState>,
    /// Attempts that did not become a session.
    pub attempts: Happenings<FailedAttempt>,
}

/// All views of a switch. Clones share the views.
#[derive(Clone, Debug)]
pub struct Views {
    peers: Shared<PeerViews>,
    registrations: Shared<Watch<RegistrationId, RegistrationView>>,
}

impl Views {
    /// Returns empty views. `instance` distinguishes this run of the sidecar from others, so it must be random.
    #[must_use]
    pub fn new(instance: u64) -> Self {
        let attempts = Happenings::new(REASONS, MAX_HAPPENINGS);
        Self {
            peers: Shared::new(PeerViews { peers: Watch::new(instance, MAX_CHANGES), attempts }),
            registrations: Shared::new(Watch::new(instance, MAX_CHANGES)),
        }
    }

    /// Returns the views of peers and attempts.
    #[must_use]
    pub fn peers(&self) -> &Shared<PeerViews> {
        &self.peers
    }

    /// Returns the view of registrations. A value is as of its last change of state, spec or channels.
    #[must_use]
    pub fn registrations(&self) -> &Shared<Watch<RegistrationId, RegistrationView>> {
        &self.registrations
    }

    /// Adds a peer whose session opened.
    pub(super) fn connected(&self, view: PeerView) {
        let id = view.session.node_id;
        self.peers.update(|views| views.peers.set(id, PeerState::Connected(view)));
    }

    /// Updates the lists of a peer, if they changed.
    pub(super) fn listed(&self, view: PeerView) {
        let id = view.session.node_id;
        let roles = |view: &PeerView| (view.is_static, view.is_trusted);
        let changed = self.peers.read(|views| {
            let shown = views.peers.get(&id).map(|shown| &**shown);
            matches!(shown, Some(PeerState::Connected(shown)) if roles(shown) != roles(&view))
        });
        if changed {
            self.connected(view);
        }
    }

    /// Removes a peer whose session ended.
    pub(super) fn gone(&self, view: &PeerView, end: PeerEnd) {
        let detail = end.detail.chars().take(MAX_DETAIL).collect::<String>().into();
        let gone = GonePeer::new(view, PeerEnd { detail, ..end });
        let (id, bytes) = (view.session.node_id, gone.bytes());
        self.peers.update(|views| views.peers.remove(&id, PeerState::Gone(Box::new(gone)), bytes));
    }

    /// Adds an attempt at a connection that did not become a session.
    pub(super) fn attempt(&self, now: Now, attempt: Attempt, detail: &str) {
        let reason = attempt.reason();
        let detail = detail.chars().take(MAX_DETAIL).collect();
        self.peers
            .update(|views| views.attempts.record(reason, FailedAttempt { time: now.unix, attempt, detail }));
    }

    /// Adds an accepted connection that did not become a session.
    pub(super) fn not_admitted(
        &self,
        now: Now,
        remote: SocketAddr,
        id: Option<NodeId>,
        why: NotAdmitted,
        detail: &str,
    ) {
        self.attempt(now, Attempt::Inbound { remote, id, why }, detail);
    }

    /// Updates a registration, or removes it if it has ended (`None`).
    pub(super) fn registration(&self, id: RegistrationId, view: Option<RegistrationView>) {
        self.registrations.update(|views| match view {
            Some(view) => views.set(id, view),
            None => {
                if let Some(last) = views.get(&id).map(|last| (**last).clone()) {
                    let bytes = last.bytes();
                    views.remove(&id, last, bytes);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::{
        node::NodeKey,
        p2p::{self, Outbound, RemoteHello},
        switch::session::Session,
    };

    #[test]
    fn every_reason_has_its_number_and_its_name() {
        let remote = "192.0.2.1:30303".parse().unwrap();
        let (id, kind) = (NodeId([1; 32]), Kind::Static);
        let dial = |cause| Attempt::Dial { id, addr: None, kind, cause };
        let inbound = |why| Attempt::Inbound { remote, id: None, why };
        let mut numbers = HashSet::new();
        for cause in Cause::ALL {
            for (attempt, of) in [(dial(cause), false), (inbound(NotAdmitted::Failed(cause)), true)] {
                assert_eq!(reason_name(attempt.reason()), (of, cause.name()));
                assert!(numbers.insert(attempt.reason()));
            }
        }
        for refusal in Refusal::ALL {
            let attempt = inbound(NotAdmitted::Refused(refusal));
            assert_eq!(reason_name(attempt.reason()), (true, refusal.name()));
            assert!(numbers.insert(attempt.reason()));
        }
        assert_eq!(numbers.len(), REASONS);
    }

    /// A peer with a long client name, and with 600 capabilities in its Hello.
    fn loud(n: u8) -> PeerView {
        let mut scalar = [1; 32];
        scalar[31] = n;
        let public_key = NodeKey::from_bytes(&scalar).unwrap().public();
        let remote: SocketAddr = ([192, 0, 2, n], 30303).into();
        let said = (0..600).map(|n| p2p::Capability { name: format!("{n:x}"), version: 1 });
        let hello =
            RemoteHello {
                version: 5, client: "é".repeat(128), capabilities: said.collect(), listen_port: 0
            };
        let session = Session {
            id: ConnectionId(n.into()),
            public_key,
            node_id: public_key.id(),
            enode: Enode::at(public_key, remote),
            record: None,
            remote,
            local: remote,
            inbound: true,
            dialed_as: None,
            was_static: false,
            was_trusted: false,
            hello: Arc::new(hello),
            channels: Vec::new(),
            since: Duration::ZERO,
            outbound: Outbound::alone(),
            traffic: Arc::default(),
        };
        PeerView { session: Arc::new(session), is_static: false, is_trusted: true }
    }

    #[test]
    fn of_a_peer_that_went_little_is_kept() {
        let views = Views::new(1);
        let mut cursor = views.peers.read(|views| views.peers.watch(None));
        let sessions: Vec<_> = (0..200)
            .map(|n| {
                let view = loud(n);
                views.connected(view.clone());
                let detail = "é".repeat(10_000).into();
                let (reason, by) = (DisconnectReason::UselessPeer, ClosedBy::Remote);
                let end = PeerEnd { time: Duration::ZERO, reason, by, detail };
                views.gone(&view, end);
                Arc::downgrade(&view.session)
            })
            .collect();
        assert!(sessions.iter().all(|session| session.upgrade().is_none()), "no session outlives its peer");
        let mut told = Vec::new();
        views.peers.read(|views| while views.peers.pull(&mut cursor, 500, &mut told).more {});
        assert_eq!(told.len(), 0, "who begins later has no use for those that went");
        let token = format!("{:016x}{:016x}", 1, 0).parse().unwrap();
        let mut cursor = views.peers.read(|views| views.peers.watch(Some(token)));
        views.peers.read(|views| while views.peers.pull(&mut cursor, 500, &mut told).more {});
        assert!(views.peers.read(|views| views.peers.is_empty()));
        // Each peer left before this watcher read its state, so the watcher may or may not get it. The kept facts are
        // small.
        for change in &told {
            let PeerState::Gone(gone) = &*change.value else { panic!("{change:?} is there") };
            assert!(gone.is_trusted && gone.client.len() == MAX_GONE_CLIENT);
            assert_eq!(gone.end.detail.chars().count(), MAX_DETAIL);
            assert!(gone.bytes() < 1_500, "{}", gone.bytes());
        }
        assert!(!told.is_empty());
    }
}
