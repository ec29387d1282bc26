//! What watchers see of the switch: connected peers and failed attempts, and registrations.
//!
//! Each view is filled by the switch and read by any number of watchers. What a view holds is bounded by what it mirrors:
//! peer slots and registrations. Of those that ended a view keeps little, and all of that within a number of bytes
//! ([`MAX_GONE_BYTES`](crate::watch::MAX_GONE_BYTES)): a peer that left leaves a [`GonePeer`] and not its session.
//! Failed attempts have keys that strangers choose, so they go through a ring.
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

/// Characters of an attempt's detail that are kept.
const MAX_DETAIL: usize = 200;

/// Bytes of a client's name that are kept of a peer that went.
const MAX_GONE_CLIENT: usize = 128;

/// A peer, as watchers are told.
#[derive(Clone, Debug)]
pub enum PeerState {
    /// The session and its roles.
    Connected(PeerView),
    /// What is left of a session that ended.
    Gone(Box<GonePeer>),
}

/// What is kept of a peer that went: who it was, and how it ended. No capabilities, no record and no reference to its
/// session, for strangers come and go by the thousand.
#[derive(Clone, Debug)]
pub struct GonePeer {
    /// Who it was.
    pub node_id: NodeId,
    /// The URL it was dialed by, or the address it came from.
    pub enode: Enode,
    /// The other end of the socket.
    pub remote: SocketAddr,
    /// Our end of the socket.
    pub local: SocketAddr,
    /// Whether it dialed us.
    pub inbound: bool,
    /// Why we dialed it, if we did.
    pub dialed_as: Option<Kind>,
    /// Whether it was on the static list.
    pub is_static: bool,
    /// Whether it was on the trusted list.
    pub is_trusted: bool,
    /// The name of its software, cut to 128 bytes. From a stranger: escape it before showing it.
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

    /// What it takes in memory, in bytes.
    fn bytes(&self) -> usize {
        size_of::<PeerState>() + size_of::<Self>() + self.client.len() + self.end.detail.len()
    }
}

/// How a session ended.
#[derive(Clone, Debug)]
pub struct PeerEnd {
    /// Wall time.
    pub time: Duration,
    /// The reason on the wire, or what stands for it.
    pub reason: DisconnectReason,
    /// Who ended it.
    pub by: ClosedBy,
    /// In more words.
    pub detail: Arc<str>,
}

/// Why an accepted connection did not become a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdmitted {
    /// We decided so.
    Refused(Refusal),
    /// It failed.
    Failed(Cause),
}

/// An attempt at a connection that came to nothing.
#[derive(Clone, Debug)]
pub struct FailedAttempt {
    /// Wall time.
    pub time: Duration,
    /// Which.
    pub attempt: Attempt,
    /// In more words; strangers may have written some of them.
    pub detail: String,
}

/// Which attempt it was.
#[derive(Clone, Debug)]
pub enum Attempt {
    /// A dial of ours.
    Dial {
        /// Whom we dialed.
        id: NodeId,
        /// Where, if that was known by then.
        addr: Option<SocketAddr>,
        /// Why we dialed.
        kind: Kind,
        /// Why it failed.
        cause: Cause,
    },
    /// A connection that somebody opened to us.
    Inbound {
        /// Where it came from.
        remote: SocketAddr,
        /// Who it was, if it got that far.
        id: Option<NodeId>,
        /// Why it did not stay.
        why: NotAdmitted,
    },
}

/// How many causes there are.
const CAUSES: usize = Cause::ALL.len();

/// Reasons in the ring: causes of failed dials, causes of failed inbound connections, our refusals of those.
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

/// A numbered reason of the ring in words: whether it is of inbound connections, and its name.
#[must_use]
pub fn reason_name(reason: usize) -> (bool, &'static str) {
    let inbound = reason >= CAUSES;
    let name = match reason.checked_sub(2 * CAUSES) {
        Some(refusal) => Refusal::ALL.get(refusal).map(|refusal| refusal.name()),
        None => Cause::ALL.get(reason % CAUSES).map(|cause| cause.name()),
    };
    (inbound, name.unwrap_or("other"))
}

/// Peers and attempts.
#[derive(Debug)]
pub struct PeerViews {
    /// Connected peers.
    pub peers: Watch<NodeId, PeerState>,
    /// Attempts that came to nothing.
    pub attempts: Happenings<FailedAttempt>,
}

/// All that can be watched of a switch. Clones name the same views.
#[derive(Clone, Debug)]
pub struct Views {
    peers: Shared<PeerViews>,
    registrations: Shared<Watch<RegistrationId, RegistrationView>>,
}

impl Views {
    /// Empty views. `instance` tells this run of the sidecar from others, so it must be random.
    #[must_use]
    pub fn new(instance: u64) -> Self {
        let attempts = Happenings::new(REASONS, MAX_HAPPENINGS);
        Self {
            peers: Shared::new(PeerViews { peers: Watch::new(instance, MAX_CHANGES), attempts }),
            registrations: Shared::new(Watch::new(instance, MAX_CHANGES)),
        }
    }

    /// Peers and attempts.
    #[must_use]
    pub fn peers(&self) -> &Shared<PeerViews> {
        &self.peers
    }

    /// Registrations. A value is as of its last change of state, spec or channels.
    #[must_use]
    pub fn registrations(&self) -> &Shared<Watch<RegistrationId, RegistrationView>> {
        &self.registrations
    }

    /// A session opened.
    pub(super) fn connected(&self, view: PeerView) {
        let id = view.session.node_id;
        self.peers.update(|views| views.peers.set(id, PeerState::Connected(view)));
    }

    /// A peer may be on other lists than before.
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

    /// A peer's session ended.
    pub(super) fn gone(&self, view: &PeerView, end: PeerEnd) {
        let detail = end.detail.chars().take(MAX_DETAIL).collect::<String>().into();
        let gone = GonePeer::new(view, PeerEnd { detail, ..end });
        let (id, bytes) = (view.session.node_id, gone.bytes());
        self.peers.update(|views| views.peers.remove(&id, PeerState::Gone(Box::new(gone)), bytes));
    }

    /// An attempt at a connection came to nothing.
    pub(super) fn attempt(&self, now: Now, attempt: Attempt, detail: &str) {
        let reason = attempt.reason();
        let detail = detail.chars().take(MAX_DETAIL).collect();
        self.peers
            .update(|views| views.attempts.record(reason, FailedAttempt { time: now.unix, attempt, detail }));
    }

    /// An accepted connection came to nothing.
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

    /// A registration as it is now, or `None` once it has ended.
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

    /// A peer with a Hello of 2 KiB that says as much as it can.
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
            outbound: Outbound::new(Arc::default()),
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
        // Each came and went before this watcher was told, so it may or may not hear of it; what is kept is small.
        for change in &told {
            let PeerState::Gone(gone) = &*change.value else { panic!("{change:?} is there") };
            assert!(gone.is_trusted && gone.client.len() == MAX_GONE_CLIENT);
            assert_eq!(gone.end.detail.chars().count(), MAX_DETAIL);
            assert!(gone.bytes() < 1_500, "{}", gone.bytes());
        }
        assert!(!told.is_empty());
    }
}
