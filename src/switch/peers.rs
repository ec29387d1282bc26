//! The calls of operators about peers and about their lists.
//!
//! The engine makes a [`Peers`] for one call. It combines the policy, which decides, and the sessions, which the policy
//! does not know.
//!
//! Left out: calls whose answer comes later; the engine takes these itself.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

pub use super::error::ListError;
use super::{error::SwitchError, session::Session, sessions::Sessions};
use crate::{
    Now,
    node::{AddressClass, NodeId, NodeRef},
    policy::{
        Ban, BanError, BanTarget, Policy, Settings, Slots, Warning,
        dial::{AddError, ConnectOutcome, ListEntry, ListSource},
        fork_following::Followed,
        one_source::OneSource,
        recent::Counts,
    },
};

/// A session, and the lists that have its node.
#[derive(Clone, Debug)]
pub struct PeerView {
    /// The session.
    pub session: Arc<Session>,
    /// Whether the node is on the static list.
    pub is_static: bool,
    /// Whether the node is on the trusted list.
    pub is_trusted: bool,
}

/// A request to ban.
#[derive(Clone, Debug)]
pub struct BanRequest {
    /// The node, address or network to ban.
    pub target: BanTarget,
    /// The length of the ban.
    pub duration: Duration,
    /// The reason, for people.
    pub reason: String,
    /// Whether it may hit static and trusted peers.
    pub force: bool,
}

/// A summary of the peers.
#[derive(Clone, Debug)]
pub struct PeersSummary {
    /// The number of connected peers.
    pub connected: usize,
    /// Slots for peers on no list.
    pub slots: Slots,
    /// Inbound peers that take a slot.
    pub inbound: usize,
    /// Dialed peers that take a slot.
    pub dialed: usize,
    /// The outcomes of candidates, dials and connections in the last minutes.
    pub recent: Counts,
    /// Whether a node on the Internet has ever dialed us.
    pub reached_from_outside: bool,
    /// The warnings for the operator.
    pub warnings: Vec<Warning>,
    /// The forks that are followed although schedules lack them.
    pub followed_forks: Vec<Followed>,
    /// The private address from which most refused connections came recently, if there is one.
    pub one_source: Option<OneSource>,
}

/// A list of peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// The static list.
    Static,
    /// The trusted list.
    Trusted,
}

impl Listed {
    /// The name of its setting in the configuration.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Static => "static-peers",
            Self::Trusted => "trusted-peers",
        }
    }
}

/// The outcome of a one-off dial: the peer, or why there is none.
pub type ConnectReply = Result<PeerView, ConnectOutcome>;

/// The calls about peers. See the [module](self).
#[derive(Debug)]
pub struct Peers<'a> {
    policy: &'a mut Policy,
    sessions: &'a Sessions,
}

impl<'a> Peers<'a> {
    pub(super) fn new(policy: &'a mut Policy, sessions: &'a Sessions) -> Self {
        Self { policy, sessions }
    }

    /// All connected peers, by node id.
    #[must_use]
    pub fn all(&self) -> Vec<PeerView> {
        self.sessions.iter().map(|session| view(self.policy, session)).collect()
    }

    /// One connected peer.
    pub fn get(&self, node: NodeId) -> Result<PeerView, SwitchError> {
        let session = self.sessions.get(&node).ok_or(SwitchError::PeerNotConnected { node })?;
        Ok(view(self.policy, session))
    }

    /// The peers and their connections as the policy counts them: always those of [`all`](Self::all).
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn counted(&self) -> Vec<(NodeId, crate::p2p::session::ConnectionId)> {
        self.policy.peers().map(|peer| (peer.id, peer.conn)).collect()
    }

    /// Returns a summary of the peers.
    pub fn summary(&mut self, now: Now) -> PeersSummary {
        let (slots, inbound, dialed) = self.policy.slot_use();
        PeersSummary {
            connected: self.sessions.len(),
            slots,
            inbound,
            dialed,
            recent: self.policy.recent(now),
            reached_from_outside: self.policy.reached_from_outside(),
            warnings: self.policy.warnings(now),
            followed_forks: self.policy.followed_forks(),
            one_source: self.policy.one_source(now),
        }
    }

    /// The settings of the policy.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        self.policy.settings()
    }

    /// Changes the settings of the policy.
    pub fn set_settings(&mut self, now: Now, settings: Settings) {
        self.policy.set_settings(now, settings);
    }

    /// Sets the class of our announced address.
    pub fn announced(&mut self, now: Now, class: AddressClass) {
        let settings = self.policy.settings();
        if settings.announced != class {
            self.policy.set_settings(now, Settings { announced: class, ..settings.clone() });
        }
    }

    /// Bans a node, an address or a network.
    pub fn ban(&mut self, now: Now, ban: BanRequest) -> Result<Ban, BanError> {
        let BanRequest { target, duration, reason, force } = ban;
        self.policy.ban(now, target, duration, &reason, ListSource::Call, force)
    }

    /// Lifts a ban.
    pub fn unban(&mut self, now: Now, target: &BanTarget) -> Result<Ban, BanError> {
        self.policy.unban(now, target)
    }

    /// All current bans.
    #[must_use]
    pub fn bans(&self, now: Now) -> Vec<Ban> {
        self.policy.bans(now).cloned().collect()
    }

    /// The entry of a listed peer.
    #[must_use]
    pub fn listed(&self, now: Now, id: NodeId) -> Option<ListEntry> {
        self.policy.entry(now, &id)
    }

    /// Adds a static peer, or returns its entry if it is one already.
    pub fn add_static(&mut self, now: Now, node: &NodeRef) -> Result<ListEntry, SwitchError> {
        let entry = self.policy.add_static(now, node, ListSource::Call).map_err(ListError::Add)?;
        entry.ok_or(SwitchError::Stopped)
    }

    /// Removes a static peer and disconnects it, unless `keep` is set or it is trusted.
    pub fn remove_static(&mut self, now: Now, node: NodeId, keep: bool) -> Result<(), SwitchError> {
        Ok(self.policy.remove_static(now, &node, keep).map_err(ListError::Remove)?)
    }

    /// All static peers.
    #[must_use]
    pub fn static_peers(&self, now: Now) -> Vec<ListEntry> {
        self.policy.entries(now).filter(|entry| entry.as_static.is_some()).collect()
    }

    /// Adds a trusted peer, or returns its entry if it is one already.
    pub fn add_trusted(&mut self, now: Now, node: &NodeRef) -> Result<ListEntry, SwitchError> {
        let entry = self.policy.add_trusted(now, node, ListSource::Call).map_err(ListError::Add)?;
        entry.ok_or(SwitchError::Stopped)
    }

    /// Removes a trusted peer. It stays connected.
    pub fn remove_trusted(&mut self, now: Now, node: NodeId) -> Result<(), SwitchError> {
        Ok(self.policy.remove_trusted(now, &node).map_err(ListError::Remove)?)
    }

    /// All trusted peers.
    #[must_use]
    pub fn trusted_peers(&self, now: Now) -> Vec<ListEntry> {
        self.policy.entries(now).filter(|entry| entry.as_trusted.is_some()).collect()
    }

    /// Applies a change of a list in the configuration, which was read again. Returns the nodes that cannot be listed,
    /// and why.
    pub fn relist(
        &mut self,
        now: Now,
        list: Listed,
        added: Vec<NodeRef>,
        removed: &BTreeSet<NodeId>,
    ) -> Vec<(NodeRef, AddError)> {
        for id in removed {
            // If a call has removed the node already, there is nothing to do.
            let _ = match list {
                Listed::Static => self.policy.unconfigure_static(now, id),
                Listed::Trusted => self.policy.unconfigure_trusted(now, id),
            };
        }
        let mut refused = Vec::new();
        for node in added {
            let listed = match list {
                Listed::Static => self.policy.add_static(now, &node, ListSource::Config),
                Listed::Trusted => self.policy.add_trusted(now, &node, ListSource::Config),
            };
            if let Err(error) = listed {
                refused.push((node, error));
            }
        }
        refused
    }
}

/// Returns a session, and the lists that have its node.
pub(super) fn view(policy: &Policy, session: &Arc<Session>) -> PeerView {
    let id = &session.node_id;
    PeerView {
        session: Arc::clone(session),
        is_static: policy.is_static(id),
        is_trusted: policy.is_trusted(id),
    }
}
