//! What can be watched: connected peers and failed attempts, the tables of discovery, registrations.
//!
//! Each board is filled by the one task that owns the truth (the switch; discovery's driver through [`TableBoard`])
//! and read by any number of watchers. What a board holds is bounded by what it mirrors: peer slots, places in tables,
//! registrations. Of those that went a board keeps little, and all of that within a number of bytes
//! ([`MAX_GONE_BYTES`](crate::watch::MAX_GONE_BYTES)): a peer that went leaves a [`GonePeer`] and not its session.
//! Failed attempts have keys that strangers choose, so they go through a ring.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    peers::PeerView,
    registrations::{RegistrationId, RegistrationView},
    watched::Watched,
};
use crate::delivery::ClosedBy;
use crate::{
    kademlia::{Protocol, Removal},
    net::{
        connection::ConnectionId,
        discovery::{TableNode, TableObserver},
    },
    node::{Enode, NodeId, record::MAX_RECORD_BYTES},
    p2p::DisconnectReason,
    policy::{Cause, Refusal, dial::Kind},
    watch::{Happenings, MAX_CHANGES, MAX_HAPPENINGS, Watch},
};

/// Streams that watch, in all. Each may remember one position for each key of what it watches.
pub const MAX_WATCHERS: usize = 128;

/// Streams that watch, of one caller.
pub const MAX_WATCHERS_OF_ONE: usize = 64;

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
pub enum WhyNot {
    /// We decided so.
    Refused(Refusal),
    /// It failed.
    Failed(Cause),
}

/// An attempt at a connection that came to nothing.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Wall time.
    pub time: Duration,
    /// Which.
    pub what: What,
    /// In more words; strangers may have written some of them.
    pub detail: String,
}

/// Which attempt it was.
#[derive(Clone, Debug)]
pub enum What {
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
        why: WhyNot,
    },
}

/// Reasons in the ring: causes of failed dials, causes of failed inbound connections, our refusals of those.
const CAUSES: usize = Cause::ALL.len();

impl What {
    fn reason(&self) -> usize {
        let cause = |cause: &Cause| Cause::ALL.iter().position(|known| known == cause).unwrap_or(CAUSES);
        match self {
            Self::Dial { cause: why, .. } => cause(why),
            Self::Inbound { why: WhyNot::Failed(why), .. } => CAUSES + cause(why),
            Self::Inbound { why: WhyNot::Refused(why), .. } => {
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
pub struct PeerBoard {
    /// Connected peers.
    pub peers: Watch<NodeId, PeerState>,
    /// Attempts that came to nothing.
    pub attempts: Happenings<Attempt>,
}

impl PeerBoard {
    /// A peer's session ended.
    pub(super) fn gone(&mut self, view: &PeerView, end: PeerEnd) {
        let detail = end.detail.chars().take(MAX_DETAIL).collect::<String>().into();
        let gone = GonePeer::new(view, PeerEnd { detail, ..end });
        let bytes = gone.bytes();
        self.peers.remove(&view.session.node_id, PeerState::Gone(Box::new(gone)), bytes);
    }

    pub(super) fn attempt(&mut self, time: Duration, what: What, detail: &str) {
        let reason = what.reason();
        let detail = detail.chars().take(MAX_DETAIL).collect();
        self.attempts.record(reason, Attempt { time, what, detail });
    }
}

/// A node of a table, as watchers are told.
#[derive(Clone, Debug)]
pub struct NodeState {
    /// The node and what the table knows of it, as of its last change.
    pub node: TableNode,
    /// Why and when it left the table, once it has.
    pub removed: Option<(Removal, Duration)>,
}

impl NodeState {
    /// What it takes in memory, in bytes.
    fn bytes(&self) -> usize {
        // A record has up to 300 bytes, and about as much again in keys and pointers.
        size_of::<Self>() + self.node.entry.contact.record.as_ref().map_or(0, |_| 2 * MAX_RECORD_BYTES)
    }
}

/// A node's place: one node may be in both tables.
pub type NodeKey = (Protocol, NodeId);

/// All boards.
#[derive(Clone, Debug)]
pub struct Boards {
    /// Peers and attempts.
    pub peers: Watched<PeerBoard>,
    /// Nodes in use in the tables of discovery.
    pub nodes: Watched<Watch<NodeKey, NodeState>>,
    /// Registrations. A value is as of its last change of state, spec or channels.
    pub registrations: Watched<Watch<RegistrationId, RegistrationView>>,
    census: Arc<Mutex<HashMap<Arc<str>, usize>>>,
}

impl Boards {
    /// Empty boards. `instance` tells this run of the sidecar from others, so it must be random.
    #[must_use]
    pub fn new(instance: u64) -> Self {
        let attempts = Happenings::new(2 * CAUSES + Refusal::ALL.len(), MAX_HAPPENINGS);
        Self {
            peers: Watched::new(PeerBoard { peers: Watch::new(instance, MAX_CHANGES), attempts }),
            nodes: Watched::new(Watch::new(instance, MAX_CHANGES)),
            registrations: Watched::new(Watch::new(instance, MAX_CHANGES)),
            census: Arc::default(),
        }
    }

    /// A place among those who watch, or the bound that is reached.
    pub fn seat(&self, principal: &Arc<str>) -> Result<Seat, TooManyWatchers> {
        let mut census = self.census.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = census.values().sum();
        let own = census.get(principal).copied().unwrap_or_default();
        for (count, limit, whose) in
            [(total, MAX_WATCHERS, "in all"), (own, MAX_WATCHERS_OF_ONE, "of one caller")]
        {
            if count >= limit {
                return Err(TooManyWatchers { limit, whose });
            }
        }
        census.insert(Arc::clone(principal), own + 1);
        Ok(Seat { census: Arc::clone(&self.census), principal: Arc::clone(principal) })
    }

    /// Ends all watches.
    pub fn close(&self) {
        self.peers.close();
        self.nodes.close();
        self.registrations.close();
    }

    /// The board that discovery fills.
    #[must_use]
    pub fn tables(&self) -> TableBoard {
        TableBoard(self.nodes.clone())
    }
}

/// No more watches may be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} watches {whose} are open already; close one")]
pub struct TooManyWatchers {
    /// The bound.
    pub limit: usize,
    /// Whose.
    pub whose: &'static str,
}

/// A place among those who watch. Free again when dropped.
#[derive(Debug)]
pub struct Seat {
    census: Arc<Mutex<HashMap<Arc<str>, usize>>>,
    principal: Arc<str>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut census = self.census.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = census.get_mut(&self.principal) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                census.remove(&self.principal);
            }
        }
    }
}

/// The nodes' board, as discovery's driver sees it.
#[derive(Debug)]
pub struct TableBoard(Watched<Watch<NodeKey, NodeState>>);

impl TableObserver for TableBoard {
    fn there(&self, node: TableNode) {
        let key = (node.table, node.entry.contact.id);
        self.0.update(|nodes| nodes.set(key, NodeState { node, removed: None }));
    }

    fn gone(&self, table: Protocol, id: NodeId, why: Removal, time: Duration) {
        let key = (table, id);
        self.0.update(|nodes| {
            let last =
                nodes.get(&key).map(|last| NodeState { removed: Some((why, time)), ..(**last).clone() });
            if let Some(last) = last {
                let bytes = last.bytes();
                nodes.remove(&key, last, bytes);
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
        let dial = |cause| What::Dial { id, addr: None, kind, cause };
        let inbound = |why| What::Inbound { remote, id: None, why };
        let mut numbers = HashSet::new();
        for cause in Cause::ALL {
            for (what, of) in [(dial(cause), false), (inbound(WhyNot::Failed(cause)), true)] {
                assert_eq!(reason_name(what.reason()), (of, cause.name()));
                assert!(numbers.insert(what.reason()));
            }
        }
        for refusal in Refusal::ALL {
            let what = inbound(WhyNot::Refused(refusal));
            assert_eq!(reason_name(what.reason()), (true, refusal.name()));
            assert!(numbers.insert(what.reason()));
        }
        let boards = Boards::new(1);
        assert_eq!(boards.peers.read(|board| board.attempts.totals().len()), numbers.len());
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
        let boards = Boards::new(1);
        let mut cursor = boards.peers.read(|board| board.peers.watch(None));
        let sessions: Vec<_> = (0..200)
            .map(|n| {
                let view = loud(n);
                let id = view.session.node_id;
                boards.peers.update(|board| board.peers.set(id, PeerState::Connected(view.clone())));
                let detail = "é".repeat(10_000).into();
                let (reason, by) = (DisconnectReason::UselessPeer, ClosedBy::Remote);
                let end = PeerEnd { time: Duration::ZERO, reason, by, detail };
                boards.peers.update(|board| board.gone(&view, end));
                Arc::downgrade(&view.session)
            })
            .collect();
        assert!(sessions.iter().all(|session| session.upgrade().is_none()), "no session outlives its peer");
        let mut told = Vec::new();
        boards.peers.read(|board| while board.peers.pull(&mut cursor, 500, &mut told).more {});
        assert_eq!(told.len(), 0, "who begins later has no use for those that went");
        let token = format!("{:016x}{:016x}", 1, 0).parse().unwrap();
        let mut cursor = boards.peers.read(|board| board.peers.watch(Some(token)));
        boards.peers.read(|board| while board.peers.pull(&mut cursor, 500, &mut told).more {});
        assert!(boards.peers.read(|board| board.peers.is_empty()));
        // Each came and went before this watcher was told, so it may or may not hear of it; what is kept is small.
        for change in &told {
            let PeerState::Gone(gone) = &*change.value else { panic!("{change:?} is there") };
            assert!(gone.is_trusted && gone.client.len() == MAX_GONE_CLIENT);
            assert_eq!(gone.end.detail.chars().count(), MAX_DETAIL);
            assert!(gone.bytes() < 1_500, "{}", gone.bytes());
        }
        assert!(!told.is_empty());
    }

    #[test]
    fn watchers_are_counted_in_all_and_by_caller() {
        let boards = Boards::new(1);
        let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
        let mut seats: Vec<Seat> = (0..MAX_WATCHERS_OF_ONE).map(|_| boards.seat(&one).unwrap()).collect();
        assert_eq!(boards.seat(&one).unwrap_err().limit, MAX_WATCHERS_OF_ONE);
        seats.extend((0..MAX_WATCHERS - MAX_WATCHERS_OF_ONE).map(|_| boards.seat(&other).unwrap()));
        assert_eq!(boards.seat(&"third".into()).unwrap_err().limit, MAX_WATCHERS);
        seats.clear();
        assert!(boards.seat(&one).is_ok());
        assert!(boards.census.lock().unwrap().is_empty(), "nobody is remembered");
    }
}
